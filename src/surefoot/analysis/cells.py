"""Cells of a comparison: run directories like any other, trained or continued, and scored.

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

from surefoot.config.settings import OwnNetworks, Settings
from surefoot.envs.registry import find_env
from surefoot.envs.source import EnvSource
from surefoot.errors import ConfigError, SurefootError
from surefoot.parallel.jobs import Outcome, attempt, said
from surefoot.storage.lock import lock, unlock
from surefoot.storage.run_directory import RunDirectory
from surefoot.training.api import keep_in, resume, start
from surefoot.training.loop import drive, drive_together
from surefoot.training.plan import DEFAULT_EPISODE_LIMIT
from surefoot.training.run import Run, begin, load

SCORE = "score.json"
TRIAL_ITERATIONS = 2


class Cell(NamedTuple):
    """One run of a comparison: what to train, where it is kept, how it is scored.

    `settings` are resolved; `episodes` are those of the final evaluation.
    """

    env: Any
    settings: Settings
    own: OwnNetworks
    path: Path
    episodes: int

    @property
    def name(self) -> str:
        """Environment, rule and seed, as a person would call it."""
        settings = self.settings
        return f"{settings.env} {settings.rule.name} seed {settings.train.seed}"

    @property
    def source(self) -> EnvSource:
        """Makes its environments."""
        by_id = isinstance(self.env, str)
        return find_env(self.env, self.settings.env_kwargs if by_id else {})


Group = tuple[Cell, ...]
"""Cells that are trained at once: seeds of one rule on a JAX-native environment, or one cell."""


def grouped(cells: Sequence[Cell]) -> list[Group]:
    """Cells in groups, in the order of their first ones."""
    groups: dict[Any, list[Cell]] = {}
    for cell in cells:
        kind: Any = cell.path
        if cell.source.jax_env is not None:
            kind = cell.settings.env, cell.settings.rule.name
        groups.setdefault(kind, []).append(cell)
    return [tuple(group) for group in groups.values()]


def train_group(group: Group, *, jobs: int = 1, devices: int = 1) -> list[Outcome]:
    """Train cells or go on with them, then score their final policies; the seconds of each.

    Other groups are trained beside this one, `jobs` in all. Seeds are shared out among `devices`.
    """
    if len(group) == 1:
        return [attempt(_train_alone, group[0])]
    started = time.monotonic()
    template, _ = begin(group[0].settings, group[0].source, group[0].own)
    init = jax.jit(template.learner.init)
    opened = [attempt(partial(_open, template, init), cell) for cell in group]
    runs = [found.value for found in opened if found.error is None and not found.value.finished]
    faults: dict[Path, str] = {}
    for iteration in sorted({run.iteration for run in runs}):
        some = [run for run in runs if run.iteration == iteration]
        paths = [run.directory.path for run in some]
        driven = attempt(partial(drive_together, jobs=jobs, devices=devices), some)
        each = [fault and said(fault) for fault in driven.value or ()]
        told = zip(paths, each or [driven.error] * len(some), strict=True)
        faults |= {path: error for path, error in told if error is not None}
    errors = []
    for cell, found in zip(group, opened, strict=True):
        error = found.error or faults.get(cell.path)
        if error is None:
            error = attempt(partial(score_run, episodes=cell.episodes), found.value).error
        errors.append(error)
    seconds = (time.monotonic() - started) / len(group)
    return [Outcome(seconds, error) for error in errors]


def _open(template: Run, init: Callable[[Any], Any], cell: Cell) -> Run:
    """A cell's run where it stands, with the learner that all its group shares."""
    directory = RunDirectory(cell.path)
    if directory.checkpoints():
        lock(directory.path)
        run = load(cell.path, env=cell.env, network=cell.own)
        if run.finished:
            unlock(directory.path)
        else:
            run.rows = directory.trim(run.iteration, run.env_steps)
        run.learner = template.learner
        return run
    _forget(directory)
    state = init(cell.settings.train.seed)
    run = replace(template, settings=cell.settings, state=state, rows=[])
    keep_in(run, cell.path, env_from_python=not isinstance(cell.env, str), own=cell.own)
    return run


def _forget(directory: RunDirectory) -> None:
    """A run of these very settings, killed before its first checkpoint, holds nothing to keep."""
    if (directory.path / "config.json").exists():
        directory.clear()


def _start(cell: Cell, settings: Settings, out: Path | None) -> tuple[Run, Any]:
    own, local = cell.own, not isinstance(cell.env, str)
    return start(settings, cell.source, own, out, env_from_python=local)


def _train_alone(cell: Cell) -> float:
    """Train one cell or go on with it, and score it; the seconds that took."""
    started, directory = time.monotonic(), RunDirectory(cell.path)
    if directory.checkpoints():
        run = resume(cell.path, env=cell.env, network=cell.own)
    else:
        _forget(directory)
        run = drive(*_start(cell, cell.settings, cell.path), None, None)
    score_run(run, cell.episodes)
    return time.monotonic() - started


def score_run(run: Run, episodes: int) -> dict[str, Any]:
    """The final policy's return over fresh deterministic episodes, kept beside the run.

    Raises:
        ConfigError: where the run is not finished.
        NotFiniteError: where the environment's returns are not.
    """
    assert run.directory is not None
    path, planned = run.directory.path, run.settings.num_iterations
    if not run.finished:
        raise ConfigError(
            f"{path} is not finished (iteration {run.iteration} of {planned}); "
            f"`surefoot resume {path}` goes on with it",
            name="UNFINISHED",
        )
    result = run.evaluate(episodes)
    score = {
        "return_mean": result["return_mean"],
        "return_std": result["return_std"],
        "length_mean": result["length_mean"],
        "episodes": episodes,
        "returns": result["returns"],
        "env_steps": run.env_steps,
    }
    with contextlib.suppress(SurefootError):  # a run of someone else's may be read-only
        run.directory.write(SCORE, json.dumps(score, indent=1, allow_nan=False))
    return score


def stored_score(directory: RunDirectory, episodes: int) -> dict[str, Any] | None:
    """The score kept beside a run, where there is one of as many episodes."""
    try:
        score = json.loads(directory.read(SCORE) or "null")
        if score["episodes"] == episodes and math.isfinite(score["return_mean"]):
            return {**score, "env_steps": int(score["env_steps"])}
    except (ValueError, TypeError, KeyError):
        pass
    return None


def trial(group: Group, *, devices: int = 1) -> float:
    """Seconds that a whole group will take, from two iterations of it that nothing keeps.

    Compilation counts once. An evaluation on the host is taken to last its episodes' time limit.
    """
    cell, count, started = group[0], len(group), time.monotonic()
    settings = cell.settings
    train = replace(
        settings.train,
        steps=TRIAL_ITERATIONS * settings.batch_size,
        dispatch=TRIAL_ITERATIONS,
        eval_every=0,
    )
    run, opened = _start(cell, replace(settings, train=train), None)
    if count == 1:
        drive(run, opened, None, None)
    else:
        several = [replace(run, rows=[]) for _ in group[1:]] + [run]
        faults = drive_together(several, devices=devices)
        if (fault := faults[-1]) is not None:
            raise fault
    iteration = count * run.rows[-1]["time/iteration"]
    overhead = max(0.0, time.monotonic() - started - TRIAL_ITERATIONS * iteration)
    every = settings.train.eval_every
    evaluations = math.ceil(settings.train.steps / every) if every else 0
    along, last = settings.train.eval_episodes, cell.episodes
    if run.learner.spec.jax_native:
        before = time.monotonic()
        run.evaluate(along)
        evaluating = count * (evaluations + 1) * (time.monotonic() - before)
    else:
        limit = run.learner.spec.max_episode_steps or DEFAULT_EPISODE_LIMIT
        acting = run.rows[-1]["time/env"] + run.rows[-1]["time/policy"]
        evaluating = (evaluations * along + last) * limit * acting / settings.batch_size
    return overhead + settings.num_iterations * iteration + evaluating
