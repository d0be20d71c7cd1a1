"""`train` and `resume` with several processes: ranks, ranks on Ray, environments on Ray."""

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from surefoot.config.settings import Settings
from surefoot.errors import ConfigError


def check_scale(options: argparse.Namespace) -> None:
    """Refuse flags that have no effect without Ray, and fill in their defaults with it."""
    cluster = getattr(options, "cluster", None)
    if options.env_workers is not None and cluster:
        raise ConfigError("--env-workers and --cluster are for different environments", name="FLAG")
    for name, default, minimum in (("workers", 2, 1), ("restarts", 3, 0), ("address", None, 0)):
        value = getattr(options, name, None)
        used = cluster == "ray" or (options.env_workers and name != "workers")
        if value is not None and not used:
            other = " or --env-workers" * (name != "workers")
            raise ConfigError(f"--{name} needs --cluster ray{other}", name="FLAG")
        if isinstance(value, int) and value < minimum:
            raise ConfigError(f"--{name} must be at least {minimum}, got {value}")
        if value is None and used:
            setattr(options, name, default)
    if options.env_workers is not None and options.env_workers < 1:
        raise ConfigError(f"--env-workers must be at least 1, got {options.env_workers}")


@contextlib.contextmanager
def env_workers(options: argparse.Namespace) -> Iterator[Any]:
    """Context manager of the Ray actors that step the environments, or of None."""
    if options.env_workers is None:
        yield None
        return
    from surefoot.parallel.env_actors import EnvWorkers
    from surefoot.parallel.ray import connected

    with connected(options.address, options.env_workers) as ray:
        yield EnvWorkers(ray, options.env_workers, options.restarts)


def on_ray(options: argparse.Namespace, settings: Settings, out: Path, listener: Any) -> Any:
    """Train on Ray, and load the result."""
    import jax

    from surefoot.cli.progress import say
    from surefoot.parallel.ray import connected
    from surefoot.parallel.ray_ranks import RayRanks
    from surefoot.training.api import train_rank
    from surefoot.training.on_ray import RankJob, train_on_ray

    if (out / "config.json").exists() and not options.resume:
        raise ConfigError(f"{out} holds a run: continue it with --resume auto, or name another")
    jax.config.update("jax_platforms", "cpu")  # the accelerators are for the ranks
    out, local = out.absolute(), options.address is None
    ranks = RayRanks(options.workers, options.devices, options.restarts, local, out)
    job = RankJob(options.env, settings, out, options.devices, tuple(options.override))
    with connected(options.address, options.workers * options.devices) as ray:
        say(f"starting {options.workers} ranks on Ray; their logs are in {ranks.logs}")
        return train_on_ray(ray, job, ranks, train_rank, listener)


def ranks_of(options: argparse.Namespace) -> Any:
    """The processes that train together: this one alone, or those of a job."""
    from surefoot.parallel.ranks import ALONE
    from surefoot.parallel.rendezvous import join_cluster

    if options.cluster != "auto":
        return ALONE
    if options.out is None:
        raise ConfigError("--cluster auto needs --out DIR, on a file system that all ranks share")
    return join_cluster(options.devices)
