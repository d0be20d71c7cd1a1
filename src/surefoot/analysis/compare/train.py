"""Train the cells of a comparison that are missing, and read them all."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from surefoot.analysis.compare.cells import (
    Cell,
    Group,
    Workers,
    group_cells,
    stored_score,
    train_group,
)
from surefoot.analysis.compare.comparison import Comparison, Failure
from surefoot.analysis.compare.grid import SharedSettings, lay_out
from surefoot.analysis.compare.read import read_runs
from surefoot.analysis.text import duration
from surefoot.config.settings import Rule
from surefoot.errors import ConfigError
from surefoot.jax_defaults import jax_defaults
from surefoot.parallel.jobs import Outcome, side_by_side
from surefoot.parallel.mesh import claim_devices
from surefoot.storage.run_directory import RunDirectory


@jax_defaults()
def compare(
    envs: Sequence[Any],
    rules: Sequence[str | Rule],
    *,
    seeds: int,
    out: str | Path,
    shared: SharedSettings = SharedSettings(),  # noqa: B008 (immutable)
    episodes: int = 20,
    workers: Workers = Workers(),  # noqa: B008
    progress: Callable[[str], None] = print,
) -> Comparison:
    """Train every rule on every environment with seeds 0, 1, ... and score the final policies.

    Each cell is a run directory `out/<env>/<rule>/seed-<n>`. The same call again continues where
    it stopped; with more seeds it adds the new ones. A cell that fails is listed in the result's
    `failures` and does not stop the others.

    Args:
        envs: ids; with one job also functions that make an environment, and JaxEnvs.
        rules: names, or rules with settings of their own; each once.
        seeds: how many.
        out: the directory of all cells.
        shared: settings that the rules share.
        episodes: fresh deterministic episodes behind each final score.
        workers: several `jobs` train cells in new processes (a script needs its `__main__` guard);
            the seeds of a rule on a JAX-native environment are one program and count as one cell,
            and several `devices` share them out.
        progress: called at the start, then with a line for each cell and the time left.

    Raises:
        ConfigError: before anything is trained, for wrong settings or an unknown environment,
            and where `out` holds cells of other settings; the differences are listed.
        ComparisonStopped: after a signal, with the checkpoints written.
    """
    for name, count in (("seeds", seeds), ("jobs", workers.jobs), ("episodes", episodes)):
        if count < 1:
            raise ConfigError(f"compare: {name} must be at least 1, got {count}")
    cells = lay_out(envs, rules, shared, Path(out), seeds=seeds, episodes=episodes)
    _check_workers(workers, cells, seeds)
    # A score is written last, so a cell that has one is complete.
    waiting = [c for c in cells if stored_score(RunDirectory(c.path), episodes) is None]
    groups = group_cells(waiting)
    failures = _train_all(groups, len(cells), workers, progress) if waiting else {}
    result = read_runs([cell.path for cell in cells if cell.name not in failures], episodes)
    return replace(result, failures=tuple(Failure(*failure) for failure in failures.items()))


def _check_workers(workers: Workers, cells: Sequence[Cell], seeds: int) -> None:
    # Another process can import an environment, but receives no object.
    by_python = [cell.settings.env for cell in cells if not isinstance(cell.env, str)]
    if workers.jobs > 1 and by_python:
        raise ConfigError(
            f"{by_python[0]}: with several jobs an environment must be an id (module:id)"
        )
    if workers.jobs > 1 and any(cell.settings.train.max_envs for cell in cells):
        raise ConfigError("compare: jobs open environments side by side: leave out --max-envs")
    if workers.devices > 1 and workers.jobs > 1:
        raise ConfigError(
            "compare: devices and jobs cannot be combined: each job would take the same devices"
        )
    if workers.devices > 1 and any(cell.source.jax_env is None for cell in cells):
        raise ConfigError(
            "compare: devices share out the seeds of JAX-native environments (gymnax:ID); "
            "train others in parallel with jobs"
        )
    if workers.devices > seeds:
        raise ConfigError(f"compare: {workers.devices} devices need as many seeds, got {seeds}")
    claim_devices(workers.devices)


def _train_all(
    groups: Sequence[Group], total: int, workers: Workers, progress: Callable[[str], None]
) -> dict[str, str]:
    """Train the cells that are missing; the messages of those that failed, by name."""
    count = sum(map(len, groups))
    text = f"{count} cells with {workers.jobs} job{'s' if workers.jobs > 1 else ''}"
    if len(groups) < count:
        text += "; the seeds of a JAX-native environment are trained as one program"
    if count < total:
        text += f"; {total - count} of {total} are finished already"
    progress(text)
    failures: dict[str, str] = {}
    ended, started = 0, time.monotonic()

    def done(position: int, outcome: Outcome) -> None:
        nonlocal ended
        group = groups[position]
        failed = [Outcome(None, outcome.error)] * len(group)
        ended += len(group)
        # Cells of one kind take equally long; the first ones also compile for those after them.
        left = (time.monotonic() - started) / ended * (count - ended)
        state = f"{ended} of {count}" + (f", about {duration(left)} left" if left else "")
        for cell, one in zip(group, outcome.value or failed, strict=True):
            if one.error is not None:
                failures[cell.name] = one.error
            progress(f"{cell.name}: {one.error or _final(cell, one.value)} ({state})")

    side_by_side(partial(train_group, workers=workers), groups, jobs=workers.jobs, done=done)
    return failures


def _final(cell: Cell, seconds: float) -> str:
    score = stored_score(RunDirectory(cell.path), cell.episodes) or {}
    return f"final return {score.get('return_mean', math.nan):.1f}, {duration(seconds)}"
