"""Cells of a comparison: ordinary run directories, trained or continued, and scored.

Seeds of one rule on a JAX-native environment are trained together, as one program.
"""

import contextlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax

from surefoot.config.presets import settings_of
from surefoot.config.settings import OwnNetworks, Parallel, Settings
from surefoot.envs.registry import find_env
from surefoot.envs.source import EnvSource
from surefoot.errors import ConfigError, SurefootError
from surefoot.parallel.jobs import Outcome, attempt, error_line
from surefoot.storage.lock import lock, unlock
from surefoot.storage.run_directory import RunDirectory
from surefoot.training.api import Job, keep_in_directory, train_or_resume
from surefoot.training.callback import Callback
from surefoot.training.run import Run, begin, load
from surefoot.training.trainer import Resources, train_together

SCORE_FILE = "score.json"


class Workers(NamedTuple):
    """Where cells are trained: in `jobs` processes at a time, or on several `devices`.

    With one job, the devices share out the seeds that are one program.
    """

    jobs: int = 1
    devices: int = 1


class Cell(NamedTuple):
    """One run of a comparison: what to train, where it is stored, how it is scored.

    `settings` are resolved; `episodes` are those of the final evaluation.
    """

    env: Any
    settings: Settings
    own: OwnNetworks
    path: Path
    episodes: int

    @property
    def name(self) -> str:
        """Environment, rule and seed, for messages."""
        settings = self.settings
        return f"{settings.env} {settings.rule.name} seed {settings.train.seed}"

    @property
    def source(self) -> EnvSource:
        """Makes its environments."""
        by_id = isinstance(self.env, str)
        return find_env(self.env, self.settings.env_kwargs if by_id else {})

    @property
    def job(self) -> Job:
        """What to train, and where."""
        return Job(self.env, self.source, self.settings, self.own, self.path)


Group = tuple[Cell, ...]
"""Cells that are trained at once: seeds of one rule on a JAX-native environment, or one cell."""


def group_cells(cells: Sequence[Cell]) -> list[Group]:
    """Cells in groups, in the order of their first ones."""
    groups: dict[Any, list[Cell]] = {}
    for cell in cells:
        # No two cells share a path: one that is not JAX-native is a group by itself.
        kind: Any = cell.path
        if cell.source.jax_env is not None:
            kind = cell.settings.env, cell.settings.rule.name
        groups.setdefault(kind, []).append(cell)
    return [tuple(group) for group in groups.values()]


def train_group(group: Group, workers: Workers) -> list[Outcome]:
    """Train or continue cells, and score their final policies; the seconds of each.

    Memory is shared with the other groups of `workers.jobs`.
    """
    if len(group) == 1:
        return [attempt(_train_alone, group[0])]
    started = time.monotonic()
    # One learner for all of them, so that its programs are compiled once.
    template, _ = begin(group[0].settings, group[0].source, group[0].own)
    init = jax.jit(template.learner.init)
    opened = [attempt(partial(_open, template, init), cell) for cell in group]
    errors = [found.error for found in opened]
    # A program advances runs in step, so those that stopped elsewhere get one of their own.
    at_iteration: dict[int, list[int]] = {}
    for i, found in enumerate(opened):
        if found.error is None and not found.value.finished:
            at_iteration.setdefault(found.value.iteration, []).append(i)
    work = partial(train_together, jobs=workers.jobs, devices=workers.devices)
    for _, some in sorted(at_iteration.items()):
        driven = attempt(work, [opened[i].value for i in some])
        # The program itself failed, and with it each of its runs.
        each = driven.value if driven.error is None else [driven.error] * len(some)
        for i, error in zip(some, each, strict=True):
            errors[i] = error_line(error) if isinstance(error, Exception) else error
    for i, cell in enumerate(group):
        if errors[i] is None:
            errors[i] = attempt(partial(score_run, episodes=cell.episodes), opened[i].value).error
    seconds = (time.monotonic() - started) / len(group)
    return [Outcome(seconds, error) for error in errors]


def _open(template: Run, init: Callable[[Any], Any], cell: Cell) -> Run:
    """A cell's run at its newest checkpoint, with the learner that its group shares."""
    directory = RunDirectory(cell.path)
    if directory.checkpoints():
        # Before it is read: another process may be training it.
        lock(directory.path)
        run = load(cell.path, env=cell.env, network=cell.own)
        rows = run.rows
        if run.finished:
            # It is only scored, which needs no lock.
            unlock(directory.path)
        else:
            # Rows after the checkpoint will be written again.
            rows = directory.go_on(run.iteration, run.env_steps)
        return replace(run, rows=rows, learner=template.learner)
    if (directory.path / "config.json").exists():
        # It was killed before its first checkpoint.
        directory.clear()
    state = init(cell.settings.train.seed)
    run = replace(template, settings=cell.settings, state=state, rows=[])
    return keep_in_directory(run, cell.job)


def _train_alone(cell: Cell) -> float:
    """Train or continue one cell, and score it; the seconds that took."""
    started = time.monotonic()
    score_run(train_or_resume(cell.job, Resources(Parallel()), Callback()), cell.episodes)
    return time.monotonic() - started


def score_run(run: Run, episodes: int) -> dict[str, Any]:
    """Return of the final policy over fresh deterministic episodes, stored beside the run.

    Raises:
        ConfigError: where the run is not finished.
        NotFiniteError: where the environment's returns are not finite.
    """
    assert run.directory is not None
    path, planned = run.directory.path, run.settings.num_iterations
    if not run.finished:
        raise ConfigError(
            f"{path} is not finished (iteration {run.iteration} of {planned}); "
            f"continue it with `surefoot resume {path}`",
            name="UNFINISHED",
        )
    result = run.evaluate(episodes)
    kept = ("return_mean", "return_std", "length_mean", "episodes", "returns")
    score = {key: result[key] for key in kept} | {"env_steps": run.env_steps}
    with contextlib.suppress(SurefootError):  # another user's run may be read-only
        run.directory.write(SCORE_FILE, json.dumps(score, indent=1, allow_nan=False))
    return score


def stored_score(directory: RunDirectory, episodes: int) -> dict[str, Any] | None:
    """The score stored beside a run, if it is of as many episodes and of the run's end."""
    try:
        score = json.loads(directory.read(SCORE_FILE) or "null")
        if score["episodes"] == episodes and math.isfinite(score["return_mean"]):
            score["env_steps"] = int(score["env_steps"])
            return score if _of_the_end(directory, score["env_steps"]) else None
    except (ValueError, TypeError, KeyError):
        pass
    return None


def _of_the_end(directory: RunDirectory, env_steps: int) -> bool:
    """Whether a run had its last row by then: one that was scored may go on, and be lost."""
    done = [row["iteration"] for row in directory.rows() if row["env_steps"] <= env_steps]
    return max(done, default=0) >= settings_of(directory.config).num_iterations
