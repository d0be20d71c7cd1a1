"""One cell of a comparison: a run directory like any other, trained or continued, and scored."""

import contextlib
import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from surefoot.config import Settings
from surefoot.errors import ConfigError, SurefootError
from surefoot.plan import DEFAULT_EPISODE_LIMIT
from surefoot.run import RunDirectory
from surefoot.trained import OwnNetworks, Run
from surefoot.training import resume, train

SCORE = "score.json"
TRIAL_ITERATIONS = 2


class Cell(NamedTuple):
    """One run of a comparison: what to train, where it is kept, how it is scored.

    `shared_only` is `train`'s; `episodes` are those of the final evaluation.
    """

    env: Any
    settings: Settings
    own: OwnNetworks
    shared_only: bool
    path: Path
    episodes: int

    @property
    def name(self) -> str:
        """Environment, rule and seed, as a person would call it."""
        settings = self.settings
        return f"{settings.env} {settings.rule.name} seed {settings.train.seed}"


def _start(cell: Cell, **how: Any) -> Run:
    settings, own = cell.settings, cell.own != OwnNetworks()
    how = {"train": settings.train} | how
    return train(
        cell.env,
        settings.rule,
        preset=settings.preset,
        network=cell.own if own else settings.network,
        critic=settings.critic,
        env_kwargs=settings.env_kwargs,
        shared_only=cell.shared_only,
        **how,
    )


def train_cell(cell: Cell) -> float:
    """Train a cell or go on with it, then score its final policy; the seconds that took."""
    started, directory = time.monotonic(), RunDirectory(cell.path)
    if directory.checkpoints():
        run = resume(cell.path, env=cell.env, network=cell.own)
    else:
        if (cell.path / "config.json").exists():
            # A run of these very settings, killed before its first checkpoint: nothing to keep.
            directory.forget()
        run = _start(cell, out=cell.path)
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


def trial(cell: Cell) -> float:
    """Seconds that a whole cell will take, from two iterations of it that nothing keeps.

    Compilation counts once. An evaluation on the host is taken to last its episodes' time limit.
    """
    settings, started = cell.settings, time.monotonic()
    short = replace(
        settings.train,
        steps=TRIAL_ITERATIONS * settings.batch_size,
        dispatch=TRIAL_ITERATIONS,
        eval_every=0,
    )
    run = _start(cell, train=short)
    iteration = run.rows[-1]["time/iteration"]
    overhead = max(0.0, time.monotonic() - started - len(run.rows) * iteration)
    every = settings.train.eval_every
    evaluations = math.ceil(settings.train.steps / every) if every else 0
    along, last = settings.train.eval_episodes, cell.episodes
    if run.learner.spec.jax_native:
        before = time.monotonic()
        run.evaluate(along)
        evaluating = (evaluations + 1) * (time.monotonic() - before)
    else:
        limit = run.learner.spec.max_episode_steps or DEFAULT_EPISODE_LIMIT
        acting = run.rows[-1]["time/env"] + run.rows[-1]["time/policy"]
        evaluating = (evaluations * along + last) * limit * acting / settings.batch_size
    return overhead + settings.num_iterations * iteration + evaluating
