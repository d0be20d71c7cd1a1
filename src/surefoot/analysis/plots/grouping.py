"""Rows of a long run in groups, each of which is drawn as one point."""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

MAX_POINTS = 200
"""Maximum points of a line; rows of a longer run are drawn in groups."""

Rows = Float[np.ndarray, " row"]
Starts = Int[np.ndarray, " group"]
Groups = Float[np.ndarray, " group"]
Reduction = Callable[[Rows, Starts], Groups]


def group_size(length: int, max_points: int = MAX_POINTS) -> int:
    """Rows per point."""
    return max(1, math.ceil(length / max_points))


def starts_of(length: int, size: int | None = None) -> Starts:
    """First rows of groups of equal size; the last group may be smaller."""
    return np.arange(0, length, size or group_size(length))


def means(values: Rows, starts: Starts) -> Groups:
    """The mean of each group."""
    # The last group may be smaller than the others.
    sizes = np.diff(np.append(starts, len(values)))
    return np.add.reduceat(values, starts) / sizes


def newest(values: Rows, starts: Starts) -> Groups:
    """The last value of each group, as for sums over a run."""
    return values[np.append(starts[1:], len(values)) - 1]
