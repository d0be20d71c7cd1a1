"""Flags for several devices, processes and machines."""

import argparse
from pathlib import Path

from surefoot.cli.flags import whole
from surefoot.config.settings import Parallel
from surefoot.errors import ConfigError


def add_cluster_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of devices and of the processes that train together."""
    add = parser.add_argument
    add("--devices", type=whole, default=1, metavar="N", help="devices per process (default 1)")
    text = "auto: one of several processes that a scheduler starts; ray: start them on Ray"
    add("--cluster", choices=["auto", "ray"], help=text)
    add("--workers", type=whole, metavar="N", help="ray: number of processes (default 2)")


def add_env_worker_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of actors that step environments, and of Ray."""
    add = parser.add_argument
    add("--env-workers", type=whole, metavar="N", help="Ray actors that step the environments")
    add("--address", help="of a running Ray cluster, such as auto (default: start a local one)")
    add("--restarts", type=whole, metavar="N", help="on Ray: maximum restarts (default 3)")


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
        # A `config.json` may hold anything.
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
