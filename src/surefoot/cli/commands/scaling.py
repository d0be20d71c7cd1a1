"""What `train` and `resume` do with more than this process: ranks, Ray, environments elsewhere."""

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from surefoot.config.settings import Settings
from surefoot.errors import ConfigError


def check_scale(options: argparse.Namespace) -> None:
    """Refuse what would be passed over without Ray, and fill in what is usual with it."""
    cluster = getattr(options, "cluster", None)
    if options.env_workers is not None and cluster:
        raise ConfigError("--env-workers and --cluster are for different environments", name="FLAG")
    for name, usual, least in (("workers", 2, 1), ("restarts", 3, 0), ("address", None, 0)):
        value = getattr(options, name, None)
        read = cluster == "ray" or (options.env_workers and name != "workers")
        if value is not None and not read:
            other = " or --env-workers" * (name != "workers")
            raise ConfigError(f"--{name} goes with --cluster ray{other}", name="FLAG")
        if isinstance(value, int) and value < least:
            raise ConfigError(f"--{name} must be at least {least}, got {value}")
        if value is None and read:
            setattr(options, name, usual)
    if options.env_workers is not None and options.env_workers < 1:
        raise ConfigError(f"--env-workers must be at least 1, got {options.env_workers}")


@contextlib.contextmanager
def env_workers(options: argparse.Namespace) -> Iterator[Any]:
    """Ray's actors that are to step the environments, or None."""
    if options.env_workers is None:
        yield None
        return
    from surefoot.parallel.env_actors import EnvWorkers
    from surefoot.parallel.ray import connected

    with connected(options.address, options.env_workers) as ray:
        yield EnvWorkers(ray, options.env_workers, options.restarts)


def on_ray(options: argparse.Namespace, settings: Settings, out: Path, listener: Any) -> Any:
    """Train on Ray, and load what came of it."""
    import jax

    from surefoot.cli.progress import say
    from surefoot.config.settings import OwnNetworks
    from surefoot.envs.registry import find_env
    from surefoot.parallel.ray import connected, logs_of, train_on_ray
    from surefoot.storage.checkpoint import steps_of
    from surefoot.storage.run_directory import RunDirectory
    from surefoot.training.plan import make_plan
    from surefoot.training.run import begin, load

    if (out / "config.json").exists() and not options.resume:
        raise ConfigError(f"{out} holds a run: --resume auto goes on with it, or name another")
    # The accelerators are for the ranks.
    jax.config.update("jax_platforms", "cpu")
    with connected(options.address, options.workers * options.devices) as ray:
        # Opened here too, so that what is wrong is told before anything is started.
        run, opened = begin(settings, find_env(options.env, settings.env_kwargs), OwnNetworks())
        if not opened.spec.jax_native:
            opened.close()
            raise ConfigError(
                f"{settings.env} is stepped by Python: --cluster ray trains JAX-native "
                "environments (gymnax:ID); --env-workers N steps others on many machines"
            )
        run.directory, plan = RunDirectory(out), make_plan(settings, run.learner.spec)
        say(f"starting {options.workers} ranks on Ray; what they say is in {logs_of(out)}")

        def tell(row: dict[str, Any]) -> None:
            # The directory is rank 0's to make: what the display keeps there comes after it.
            if not listener.began:
                run.state = run.state._replace(iteration=row["iteration"] - 1)
                listener.started(run, plan)
            listener.row(row)

        try:
            train_on_ray(
                ray,
                _words_of_a_rank(options, out),
                out,
                workers=options.workers,
                devices=options.devices,
                local=options.address is None,
                restarts=options.restarts,
                told=max(map(steps_of, run.directory.checkpoints()), default=0),
                tell=tell,
            )
        finally:
            if listener.began:
                listener.finished(run)
    return load(out, env=options.env)


def _words_of_a_rank(options: argparse.Namespace, out: Path) -> list[str]:
    """The command line of one rank: this one's, without what is Ray's."""
    mine = {"--cluster", "--workers", "--address", "--restarts", "--resume", "--out", "--wandb"}
    words, skip = [], False
    for word in options.words:
        name, equals, _ = word.partition("=")
        if skip or name in (mine | {"--json", "--tensorboard", "--debug"}):
            skip = not skip and name in mine and not equals
            continue
        words.append(word)
    return [*words, "--out", str(out.absolute())]


def ranks_of(options: argparse.Namespace) -> Any:
    """The processes that train together: this one alone, or those of a job."""
    from surefoot.parallel.ranks import ALONE
    from surefoot.parallel.rendezvous import join

    if options.cluster != "auto":
        return ALONE
    if options.out is None:
        raise ConfigError("--cluster auto needs --out DIR, on files that all ranks see")
    return join(options.devices)
