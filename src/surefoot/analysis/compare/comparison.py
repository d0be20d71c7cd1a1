"""A comparison of rules over seeds: scores, learning curves, and what else differed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Score(NamedTuple):
    """Mean returns of one run: of its final policy, and of its best evaluation during training.

    `best` is None for a run without evaluations.
    """

    env: str
    rule: str
    seed: int
    final: float
    best: float | None
    env_steps: int
    path: str


class LearningCurve(NamedTuple):
    """Returns of one run over environment steps.

    `returns` are means of the training episodes that ended in an iteration, under sampled actions;
    `eval_returns` those of the deterministic evaluations. Iterations without one are left out.
    """

    env_steps: Int[np.ndarray, " iteration"]
    returns: Float[np.ndarray, " iteration"]
    eval_steps: Int[np.ndarray, " evaluation"]
    eval_returns: Float[np.ndarray, " evaluation"]


class Failure(NamedTuple):
    """A cell without a score, and the error that ended it."""

    cell: str
    message: str


@dataclass(frozen=True)
class Comparison:
    """Scores of rules over seeds.

    Attributes:
        scores: one per run.
        curves: by environment, rule and seed.
        differences: for each environment, a line for each setting that differed between the runs
            of its rules; empty where only the rule did.
        episodes: episodes behind each final score.
        failures: cells without a score.
        optima: the largest mean return of any policy, for environments with a known table.
    """

    scores: tuple[Score, ...]
    curves: Mapping[tuple[str, str, int], LearningCurve]
    differences: Mapping[str, tuple[str, ...]]
    episodes: int
    failures: tuple[Failure, ...] = ()
    optima: Mapping[str, float] = field(default_factory=dict)

    @property
    def envs(self) -> tuple[str, ...]:
        """Environments, in the order of their first run."""
        return tuple(dict.fromkeys(score.env for score in self.scores))

    def rules(self, env: str) -> tuple[str, ...]:
        """Rules on an environment, in the order of their first run."""
        return tuple(dict.fromkeys(score.rule for score in self.scores if score.env == env))

    def of(self, env: str, rule: str) -> tuple[Score, ...]:
        """The scores of a rule on an environment, one per seed."""
        return tuple(s for s in self.scores if (s.env, s.rule) == (env, rule))
