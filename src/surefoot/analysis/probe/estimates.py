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


FEWEST_FREE = 8
"""Fewest degrees of freedom that a regression is believed with."""


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


def double_sample(
    values: Float[np.ndarray, " episode"], known: Float[np.ndarray, "more figure"]
) -> Estimate:
    """The mean of a figure known of the first episodes, by figures that are known of more.

    What the first episodes' known figures differ from all episodes' tells how unlike these the
    first ones are; by least squares the mean is corrected for that. Where a fraction of an update
    was played on a tenth of the episodes of the whole, this counts the other nine.

    Args:
        values: of the first episodes.
        known: figures of all episodes, those first.

    Source: Cochran 1977, Sampling Techniques, section 12.6 (double sampling for regression).
    """
    few, (many, size) = len(values), known.shape
    freedom = few - 1 - size
    if freedom < FEWEST_FREE or many <= few:
        return mean_interval(values)
    centred = known[:few] - known[:few].mean(axis=0)
    inverse = np.linalg.pinv(centred.T @ centred)
    slope = inverse @ centred.T @ (values - values.mean())
    away = known.mean(axis=0) - known[:few].mean(axis=0)
    # Twins that acted alike differ by nothing, others by much: the spread is not the same in all
    # episodes, and what the line leaves of each counts by itself, as if it had been left out.
    rest = values - values.mean() - centred @ slope
    leverage = 1 / few + np.sum(centred @ inverse * centred, axis=1)
    rest /= np.maximum(1.0 - leverage, 1 / few)
    share = 1 / few + centred @ inverse @ away
    variance = float(np.sum((share * rest) ** 2))
    scatter = np.atleast_2d(np.cov(known.T, ddof=1))
    variance += float(slope @ scatter @ slope) / many
    mean = float(values.mean() + slope @ away)
    half = float(stats.t.ppf(LEVEL, freedom)) * variance**0.5
    return Estimate(mean, mean - half, mean + half)


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


NEAR = 1.35
"""Fractions within this factor of the edge say where it lies."""


class Edge(NamedTuple):
    """Where along an update half of the promise is kept.

    `fraction` of the update, or None where it was not met. `sure` is the farthest fraction at
    which more than half is kept beyond doubt, `gone` the nearest after it at which less is, each
    by a 95 % interval, or None.
    """

    fraction: float | None
    sure: float | None
    gone: float | None


def find_edge(fractions: Float[np.ndarray, " point"], kept: list[Estimate]) -> Edge:
    """The edge of trust, from the gain less half the promise at each fraction.

    Near the old policy both are small and their difference is noise: a fraction counts as beyond
    the edge only where its interval says so. The edge lies near the last fraction before it with
    more than half and the first after that with less, where a line through them and their
    neighbours crosses 0.

    Args:
        fractions: above 0, rising.
        kept: gain - promise / 2 at each.
    """
    above = [i for i, each in enumerate(kept) if each.above]
    below = [i for i, each in enumerate(kept) if each.below]
    if not below:
        return Edge(None, float(fractions[above[-1]]) if above else None, None)
    gone = below[0]
    before = [i for i in above if i < gone]
    sure = float(fractions[before[-1]]) if before else None
    low = max((i for i in range(gone) if kept[i].mean > 0.0), default=None)
    if low is None:
        # Already gone at the nearest fraction: where before it, nothing says.
        return Edge(float(fractions[0]) if gone == 0 else None, sure, float(fractions[gone]))
    # Both grow with the step from nothing: over the step their difference is nearly straight.
    left, right = (kept[i].mean / fractions[i] for i in (low, low + 1))
    share = left / (left - right)
    place = fractions[low] + share * (fractions[low + 1] - fractions[low])
    near = [
        i
        for i in range(len(kept))
        if fractions[low] / NEAR <= fractions[i] <= NEAR * fractions[low + 1]
    ]
    smooth = _crossing(fractions[near], [kept[i] for i in near], float(place))
    return Edge(smooth, sure, float(fractions[gone]))


def _crossing(fractions: Float[np.ndarray, " point"], kept: list[Estimate], place: float) -> float:
    """Where a line through several points crosses 0, each counted by its interval.

    From four points on the line is a parabola. `place`, where the line between two of them
    crosses, is kept where there are no more, or where the smooth line crosses nowhere among them.
    """
    halves = [np.inf if e.low is None else e.mean - e.low for e in kept]
    if len(kept) < 3 or not all(0.0 < half < np.inf for half in halves):
        return place
    slopes = np.array([each.mean for each in kept]) / fractions
    degree = 2 if len(kept) > 3 else 1
    line = np.polynomial.Polynomial.fit(fractions, slopes, degree, w=fractions / np.array(halves))
    roots = [float(r.real) for r in line.roots() if abs(r.imag) < 1e-9]
    inside = [r for r in roots if fractions[0] <= r <= fractions[-1]]
    return min(inside, key=lambda r: abs(r - place), default=place)
