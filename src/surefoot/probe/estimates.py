"""Figures from paired episodes, with 95 % intervals: means, ratios, what could not be told.

Episodes are the independent units everywhere.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats

LEVEL = 0.975
"""Both tails of a 95 % interval."""
TOLERANCE = 0.25
"""The half-width, as a share of the promise, at which a ratio is worth having."""


class Estimate(NamedTuple):
    """A figure and its 95 % interval; the interval is None where there is none."""

    mean: float
    low: float | None
    high: float | None

    @property
    def above(self) -> bool:
        """Whether the interval lies above 0."""
        return self.low is not None and self.low > 0.0

    @property
    def below(self) -> bool:
        """Whether the interval lies below 0."""
        return self.high is not None and self.high < 0.0


def mean_interval(values: Float[np.ndarray, " episode"]) -> Estimate:
    """Mean over episodes with Student's interval; fewer than two have none."""
    count, mean = len(values), float(np.mean(values))
    if count < 2:
        return Estimate(mean, None, None)
    half = _quantile(count) * float(np.std(values, ddof=1)) / count**0.5
    return Estimate(mean, mean - half, mean + half)


def _quantile(count: int) -> float:
    return float(stats.t.ppf(LEVEL, count - 1))


class Ratio(NamedTuple):
    """A ratio of two means over the same episodes, and its 95 % interval.

    None where the denominator is within two standard errors of 0: then no ratio can be told.
    """

    mean: float
    low: float
    high: float


def ratio_interval(
    numerator: Float[np.ndarray, " episode"], denominator: Float[np.ndarray, " episode"]
) -> Ratio | None:
    """Mean over mean, with Fieller's interval: all q for which mean(n - q d) may be 0.

    Source: Fieller 1954, J. R. Stat. Soc. B 16, 175-185.
    """
    count = len(numerator)
    if count < 3:
        return None
    n, d = float(np.mean(numerator)), float(np.mean(denominator))
    spread = np.cov(numerator, denominator, ddof=1) / count
    # Two standard errors are asked for, and a bounded set besides.
    if d == 0.0 or d * d <= max(4.0, _quantile(count) ** 2) * spread[1, 1]:
        return None
    square = _quantile(count) ** 2
    a = d * d - square * spread[1, 1]
    b = n * d - square * spread[0, 1]
    c = n * n - square * spread[0, 0]
    root = max(b * b - a * c, 0.0) ** 0.5
    return Ratio(n / d, float((b - root) / a), float((b + root) / a))


def pairs_needed(
    gains: Float[np.ndarray, " episode"], promises: Float[np.ndarray, " episode"]
) -> int:
    """Pairs at which both gain and promise would be known to a quarter of the promise.

    (z sd / (tol |promise|))², by the larger of the two spreads. The promise itself is uncertain
    where this is asked; it is taken for what it seems, and for its standard error at the least.
    """
    error = float(np.std(promises, ddof=1)) / len(promises) ** 0.5
    promise = max(abs(float(np.mean(promises))), error)
    spread = max(float(np.std(gains, ddof=1)), float(np.std(promises, ddof=1)))
    if promise == 0.0:
        return len(promises)
    return int(np.ceil((1.96 * spread / (TOLERANCE * promise)) ** 2))


class Edge(NamedTuple):
    """Where along an update half of the promise is kept.

    `fraction` of the update, or None where it was not met. `sure` is the farthest fraction at
    which more than half is kept beyond doubt, `gone` the nearest after it at which less is, each
    by a 95 % interval, or None.
    """

    fraction: float | None
    sure: float | None
    gone: float | None


def find_edge(
    fractions: Float[np.ndarray, " point"], kept: list[Float[np.ndarray, " episode"]]
) -> Edge:
    """The edge of trust, from gain less half the promise of each episode at each fraction.

    Near the old policy both are small and their difference is noise: a fraction counts as beyond
    the edge only where its interval says so, and the edge lies between the last fraction before it
    with more than half and the first after that with less, where the line between them crosses 0.

    Args:
        fractions: above 0, rising.
        kept: gain - promise / 2 of each episode, to be divided by the fraction here.
    """
    scaled = [mean_interval(rows / at) for rows, at in zip(kept, fractions, strict=True)]
    above = [i for i, each in enumerate(scaled) if each.above]
    below = [i for i, each in enumerate(scaled) if each.below]
    if not below:
        return Edge(None, float(fractions[above[-1]]) if above else None, None)
    gone = below[0]
    before = [i for i in above if i < gone]
    sure = float(fractions[before[-1]]) if before else None
    low = max((i for i in range(gone) if scaled[i].mean > 0.0), default=None)
    if low is None:
        # Already gone at the nearest fraction: where before it, nothing says.
        return Edge(float(fractions[0]) if gone == 0 else None, sure, float(fractions[gone]))
    high = low + 1
    left, right = scaled[low].mean, scaled[high].mean
    share = left / (left - right)
    place = fractions[low] + share * (fractions[high] - fractions[low])
    return Edge(float(place), sure, float(fractions[gone]))
