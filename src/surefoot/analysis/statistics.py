"""What a handful of seeds says about a rule: points always, intervals from five seeds on.

Pure NumPy and SciPy. Every number has its method in words in `METHODS`, so that no table goes
out without them. Scores without spread (every seed solved the task) are ordinary input.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats

ENOUGH_SEEDS = 5
"""Fewest seeds that an interval is drawn from."""

METHODS = {
    "n": "seeds",
    "final": "mean over seeds of the last policy's return, itself the mean of {episodes} fresh "
    "deterministic episodes",
    "interval": "95 % interval of that mean: Student's t over seeds",
    "median": "median over seeds of the last policy's return",
    "IQM": "interquartile mean over seeds: a quarter of them (rounded down) cut from each end",
    "best": "mean over seeds of the highest evaluation along the run; the highest of several "
    "noisy numbers flatters, and as its episodes are others it can also lie below final",
    "beats": "chance that a seed of the first scores above a seed of the second: "
    "Mann-Whitney U / (n m), ties count half",
    "difference": "mean final of the first minus that of the second",
    "difference interval": "95 %, Welch's t; one pair at a time, not corrected for their number",
    "curves": "the picture is of training episodes, whose actions are sampled: another quantity "
    "than final",
}
"""How each column is computed, in words; `{episodes}` is filled in by the table."""

TOO_FEW = (
    f"no interval below {ENOUGH_SEEDS} seeds: so few say almost nothing about their own spread "
    "(a percentile bootstrap of three covers the mean 75 % of the time, not 95 %)"
)


class Interval(NamedTuple):
    """A 95 % interval."""

    low: float
    high: float


class Summary(NamedTuple):
    """One rule on one environment, over its seeds; `interval` is None below five of them."""

    n: int
    mean: float
    median: float
    interquartile_mean: float
    interval: Interval | None


class Contrast(NamedTuple):
    """Two rules on one environment.

    `probability` is the chance that a seed of `first` scores above one of `second`;
    `difference` is the mean of `first` minus that of `second`.
    """

    first: str
    second: str
    probability: float
    difference: float
    interval: Interval | None


def t_interval(scores: Float[np.ndarray, " seed"]) -> Interval | None:
    """The 95 % t interval of the mean; None below `ENOUGH_SEEDS`."""
    count = len(scores)
    if count < ENOUGH_SEEDS:
        return None
    error = np.std(scores, ddof=1) / np.sqrt(count)
    return _around(float(np.mean(scores)), float(error), count - 1)


def welch_interval(
    first: Float[np.ndarray, " seed"], second: Float[np.ndarray, " other_seed"]
) -> Interval | None:
    """The 95 % interval of mean(first) - mean(second), variances not assumed equal.

    None where either has fewer than `ENOUGH_SEEDS`. Degrees of freedom after Welch and
    Satterthwaite; without any spread the interval is the difference alone.
    """
    if min(len(first), len(second)) < ENOUGH_SEEDS:
        return None
    difference = float(np.mean(first) - np.mean(second))
    variances = [float(np.var(x, ddof=1)) / len(x) for x in (first, second)]
    total = sum(variances)
    if total == 0.0:
        return Interval(difference, difference)
    # Shares, not variances, are squared: tiny ones must not underflow to 0 / 0.
    parts = zip(variances, (len(first), len(second)), strict=True)
    freedom = 1.0 / sum((variance / total) ** 2 / (count - 1) for variance, count in parts)
    return _around(difference, total**0.5, freedom)


def _around(centre: float, error: float, freedom: float) -> Interval:
    half = float(stats.t.ppf(0.975, freedom)) * error
    return Interval(centre - half, centre + half)


def probability_of_beating(
    first: Float[np.ndarray, " seed"], second: Float[np.ndarray, " other_seed"]
) -> float:
    """Share of pairs in which `first` scores above `second`, ties half: U / (n m)."""
    gaps = np.subtract.outer(first, second)
    return float(np.mean(gaps > 0) + 0.5 * np.mean(gaps == 0))


def summarize_scores(scores: Float[np.ndarray, " seed"]) -> Summary:
    """Mean, median, interquartile mean and interval of one rule's final scores."""
    return Summary(
        len(scores),
        float(np.mean(scores)),
        float(np.median(scores)),
        float(stats.trim_mean(scores, 0.25)),
        t_interval(scores),
    )


def contrast(
    first: str,
    first_scores: Float[np.ndarray, " seed"],
    second: str,
    second_scores: Float[np.ndarray, " other_seed"],
) -> Contrast:
    """What the seeds of two rules say about each other."""
    return Contrast(
        first,
        second,
        probability_of_beating(first_scores, second_scores),
        float(np.mean(first_scores) - np.mean(second_scores)),
        welch_interval(first_scores, second_scores),
    )
