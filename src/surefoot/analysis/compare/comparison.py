"""A comparison of rules over seeds: scores, learning curves, differences, and statistics.

Statistics are of a handful of seeds: points always, intervals from five seeds on. Every number has
its method in words in `METHODS`, for the tables. Scores without spread (every seed solved the task)
are ordinary input.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from surefoot.formulas.intervals import Interval, mean_interval, t_interval

ENOUGH_SEEDS = 5
"""Fewest seeds with an interval."""

METHODS = {
    "n": "seeds",
    "final": "mean over seeds of the final policy's return, itself the mean of {episodes} fresh "
    "deterministic episodes",
    "interval": "95 % interval of that mean: Student's t over seeds; where few seeds differ "
    "much it can reach beyond the highest return there is",
    "median": "median over seeds of the final policy's return",
    "IQM": "interquartile mean over seeds: a quarter of them (rounded down) cut from each end",
    "best": "mean over seeds of the highest evaluation during training; the highest of several "
    "noisy numbers is biased upwards, and as its episodes are others it can also be below final",
    "beats": "probability that a seed of the first scores above a seed of the second: "
    "Mann-Whitney U / (n m), ties count half",
    "difference": "mean final of the first minus that of the second",
    "difference interval": "95 %, Welch's t; one pair at a time, not corrected for their number",
    "curves": "the figure shows training episodes, with sampled actions: another quantity than "
    "final",
}
"""How each column is computed, in words; the table fills in `{episodes}`."""

TOO_FEW = (
    f"no interval below {ENOUGH_SEEDS} seeds: so few say almost nothing about their own spread "
    "(a percentile bootstrap of three covers the mean 75 % of the time, not 95 %)"
)

Scores = Float[np.ndarray, " seed"]


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


class Summary(NamedTuple):
    """One rule on one environment, over its seeds; `interval` is None below five of them.

    `best_mean` is the mean over seeds of their best evaluations, None where a seed has none.
    """

    n: int
    mean: float
    median: float
    interquartile_mean: float
    interval: Interval | None
    best_mean: float | None = None


class Contrast(NamedTuple):
    """Two rules on one environment.

    `probability` is that of a seed of `first` scoring above one of `second`; `difference` is the
    mean of `first` minus that of `second`.
    """

    first: str
    second: str
    probability: float
    difference: float
    interval: Interval | None


def summarize_scores(scores: Scores) -> Summary:
    """Mean, median, interquartile mean and interval of one rule's final scores."""
    return Summary(
        len(scores),
        float(np.mean(scores)),
        float(np.median(scores)),
        float(stats.trim_mean(scores, 0.25)),
        mean_interval(scores) if len(scores) >= ENOUGH_SEEDS else None,
    )


def contrast(first: str, first_scores: Scores, second: str, second_scores: Scores) -> Contrast:
    """Compare the final scores of two rules."""
    return Contrast(
        first,
        second,
        probability_of_beating(first_scores, second_scores),
        float(np.mean(first_scores) - np.mean(second_scores)),
        welch_interval(first_scores, second_scores),
    )


def probability_of_beating(
    first: Float[np.ndarray, " seed"], second: Float[np.ndarray, " other_seed"]
) -> float:
    """Share of pairs in which `first` scores above `second`, ties half: U / (n m)."""
    gaps = np.subtract.outer(first, second)
    return float(np.mean(gaps > 0) + 0.5 * np.mean(gaps == 0))


def welch_interval(
    first: Float[np.ndarray, " seed"], second: Float[np.ndarray, " other_seed"]
) -> Interval | None:
    """95 % interval of mean(first) - mean(second), variances not assumed equal.

    None where either has fewer than `ENOUGH_SEEDS`. Degrees of freedom after Welch and
    Satterthwaite; without any spread the interval is the difference alone.
    """
    if min(len(first), len(second)) < ENOUGH_SEEDS:
        return None
    difference = float(np.mean(first) - np.mean(second))
    variances = [float(np.var(x, ddof=1)) / len(x) for x in (first, second)]
    total = sum(variances)
    if total == 0.0:
        return Interval(difference, difference, difference)
    # Shares, not variances, are squared: tiny ones must not underflow to 0 / 0.
    parts = zip(variances, (len(first), len(second)), strict=True)
    freedom = 1.0 / sum((variance / total) ** 2 / (count - 1) for variance, count in parts)
    return t_interval(difference, total**0.5, freedom)
