"""Flags for several devices, processes and machines."""

import argparse
from pathlib import Path

from surefoot.config.settings import Parallel
from surefoot.errors import ConfigError


def parallel_of(options: argparse.Namespace, *, previous: str | None = None) -> Parallel:
    """The devices, processes and machines that flags ask for.

    Args:
        options: parsed flags.
        previous: the directory of a run to continue, on as many devices as before by default.

    Raises:
        ConfigError: for a value that is not allowed, or a flag that would be ignored.
    """
    cluster = getattr(options, "cluster", None)
    if options.env_workers is not None and cluster:
        raise ConfigError("--env-workers and --cluster are for different environments", name="FLAG")
    if options.env_workers is not None and options.env_workers < 1:
        raise ConfigError(f"--env-workers must be at least 1, got {options.env_workers}")
    devices = options.devices
    if devices is None and previous is not None:
        from surefoot.storage.run_directory import RunDirectory

        stored = RunDirectory(Path(previous)).config.get("devices")
        devices = stored if isinstance(stored, int) and stored >= 1 else None
    given = {"devices": devices, "cluster": cluster, "env_workers": options.env_workers}
    for name, minimum in (("workers", 1), ("restarts", 0), ("address", 0)):
        value = getattr(options, name, None)
        if value is None:
            continue
        if isinstance(value, int) and value < minimum:
            raise ConfigError(f"--{name} must be at least {minimum}, got {value}")
        if cluster != "ray" and (name == "workers" or not options.env_workers):
            other = " or --env-workers" * (name != "workers")
            raise ConfigError(f"--{name} needs --cluster ray{other}", name="FLAG")
        given[name] = value
    return Parallel(**{name: value for name, value in given.items() if value is not None})
