"""Train one run as several ranks on Ray: validate it here, start the ranks, load the result."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from surefoot.config.settings import OwnNetworks, Settings
from surefoot.envs.registry import find_env
from surefoot.errors import ConfigError, SurefootError, WorkerLostError
from surefoot.parallel.ray_ranks import RayRanks
from surefoot.storage.checkpoint import steps_of
from surefoot.storage.run_directory import RunDirectory
from surefoot.training.callback import Callback
from surefoot.training.plan import make_plan
from surefoot.training.run import Run, begin, load


class RankJob(NamedTuple):
    """What each rank trains: resolved settings, and those that may differ from a run at `out`."""

    env: Any
    settings: Settings
    out: Path
    devices: int
    override: Sequence[str] = ()


def train_on_ray(
    job: RankJob, ranks: RayRanks, train_rank: Callable[[RankJob], None], callback: Callback
) -> Run:
    """Train a JAX-native run on Ray, continuing the one at `job.out` if there is one.

    Raises:
        ConfigError: before any rank starts, where a setting or the environment is wrong.
        WorkerLostError: where all restarts are used.
    """
    settings, directory = job.settings, RunDirectory(job.out)
    source = find_env(job.env, settings.env_kwargs)
    if source.jax_env is None:
        raise ConfigError(
            f"{settings.env} is stepped by Python: --cluster ray trains JAX-native environments "
            "(gymnax:ID); --env-workers N steps others on many machines"
        )
    known = max(map(steps_of, directory.checkpoints()), default=0)
    run = begin(settings, source, OwnNetworks())[0]
    run = replace(run, directory=directory, env_steps=known)
    plan = make_plan(settings, run.learner.spec)
    started = False

    def on_row(row: dict[str, Any]) -> None:
        nonlocal started
        if not started:  # by now rank 0 has made the directory, where loggers put their files
            started = True
            learn = run.state.learn._replace(iteration=row["iteration"] - 1)
            run.set_state(run.state._replace(learn=learn))
            callback.on_start(run, plan)
        callback.on_row(run, row)

    try:
        ranks.run(partial(train_rank, job), env_steps=known, on_row=on_row)
    except WorkerLostError as error:
        if not _is_complete(job):
            if kept := directory.checkpoints():
                error.add(f"the newest checkpoint is {kept[-1]}")
            raise
    finally:
        if started:
            callback.on_end(run)
    return load(job.out, env=job.env)


def _is_complete(job: RankJob) -> bool:
    """Whether the newest checkpoint is that of the last iteration, so that no rank is missed."""
    try:
        return load(job.out, env=job.env).iteration >= job.settings.num_iterations
    except SurefootError:
        return False
