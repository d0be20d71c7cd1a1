"""The edge of trust: how far along an update half of the promised gain is realised."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from surefoot.formulas.intervals import Interval

NEAR = 1.35
"""Points within this factor of the edge are used to locate it."""


class Edge(NamedTuple):
    """The fraction of an update at which half of the promise is realised, with its mean KL.

    None if it is not within the points. `gone` is the smallest fraction that is significantly
    below half, `sure` the largest before it that is significantly above.
    """

    fraction: float | None
    sure: float | None
    gone: float | None
    kl: float | None = None

    @property
    def before(self) -> bool:
        """Whether less than half is kept at all points, and `fraction` is the first of them."""
        return self.fraction is not None and self.sure is None and self.fraction == self.gone


def find_edge(fractions: Float[np.ndarray, " point"], surplus: Sequence[Interval]) -> Edge:
    """The edge of trust, from the surplus (gain - promise / 2) at ascending fractions.

    Near the old policy gain and promise are small, and their difference is noise. So a fraction
    is beyond the edge only where its interval says so. The edge lies between the last fraction
    before it with a positive surplus and the next, where a line through these two and their
    neighbours crosses 0.
    """
    above = [i for i, each in enumerate(surplus) if each.low > 0.0]
    below = [i for i, each in enumerate(surplus) if each.high < 0.0]
    before = [i for i in above if not below or i < below[0]]
    sure = float(fractions[before[-1]]) if before else None
    if not below:
        return Edge(None, sure, None)
    gone = float(fractions[below[0]])
    low = max((i for i in range(below[0]) if surplus[i].mean > 0.0), default=None)
    if low is None:
        # Gone at the nearest fraction already: the edge is somewhere before it.
        return Edge(gone if below[0] == 0 else None, sure, gone)
    # Gain and promise start at 0: divided by the step, their difference is nearly straight.
    left, right = (surplus[i].mean / fractions[i] for i in (low, low + 1))
    between = fractions[low] + left / (left - right) * (fractions[low + 1] - fractions[low])
    near = (fractions >= fractions[low] / NEAR) & (fractions <= NEAR * fractions[low + 1])
    chosen = np.array(surplus)[near]
    return Edge(_crossing(fractions[near], chosen, float(between)), sure, gone)


def _crossing(
    fractions: Float[np.ndarray, " point"], surplus: Float[np.ndarray, "point 3"], default: float
) -> float:
    """Where a line through the points, weighted by their intervals, crosses 0.

    From four points on it is a parabola. With fewer than three, or no crossing among them, the
    result is `default`.
    """
    means, halves = surplus[:, 0], surplus[:, 0] - surplus[:, 1]
    if len(means) < 3 or not np.all(halves > 0.0):
        return default
    fit = np.polynomial.Polynomial.fit
    # `fit` takes 1 / error as weights, and the error of mean / fraction is half / fraction.
    line = fit(fractions, means / fractions, min(len(means) - 2, 2), w=fractions / halves)
    # A parabola that does not reach 0 has a pair of complex roots.
    roots = [float(root.real) for root in line.roots() if abs(root.imag) < 1e-9]
    inside = [root for root in roots if fractions[0] <= root <= fractions[-1]]
    return min(inside, key=lambda root: abs(root - default), default=default)
