"""What a collapse is, from a curve of returns alone.

The return of an iteration is smoothed as the mean of the last `WINDOW` iterations that ended an
episode. What a run has gained at iteration t is its best smoothed return so far, less its return
at the start (the first smoothed value). A run has *learned* once it gained `LEARNED` of the
environment's span, the distance between a random policy and a good one; before that there is
nothing to lose. Its *loss* at t is what it fell below its best so far, as a share of what it had
gained, so that returns may be negative.

- **collapsed**: it learned, its loss then reached half, and from there on it was half or more in
  the mean of `LASTING` iterations (or of those up to the run's end, `SHORTEST` at least): a fall
  that lasts. That iteration is its *half point*. Its *quarter point* is where the fall that ended
  there began to show: the last iteration, not after the half point, at which the loss rose from
  below a quarter to a quarter or more.
- **faltered**: it learned and lost a quarter at some iteration, but did not collapse.
- **steady**: it learned and never lost a quarter.
- **unlearned**: it never learned.

A *healthy* run is a steady one in which nothing was planted.
"""

from typing import NamedTuple

import numpy as np

WINDOW, LASTING, SHORTEST = 3, 10, 5
LEARNED, QUARTER, HALF = 0.4, 0.25, 0.5


class Label(NamedTuple):
    """A run's fate, and where it was sealed; the rows are indices, None where there is none.

    `first_quarter` is the first iteration that lost a quarter, whether or not it recovered.
    """

    fate: str
    quarter: int | None
    half: int | None
    first_quarter: int | None


def smooth(returns: np.ndarray) -> np.ndarray:
    """Mean of the last `WINDOW` returns that there are, carried on where no episode ended.

    Iterations before the first ended episode are NaN.
    """
    smoothed, recent = np.full(len(returns), np.nan), []
    for t, value in enumerate(returns):
        if np.isfinite(value):
            recent = [*recent, float(value)][-WINDOW:]
        if recent:
            smoothed[t] = np.mean(recent)
    return smoothed


def losses(returns: np.ndarray, *, span: float, start: float | None = None) -> np.ndarray:
    """Share of what was gained that is lost, per iteration; NaN before the run has learned.

    Args:
        returns: mean return of the episodes that ended in each iteration, NaN where none did.
        span: return of a good policy less that of a random one, in the same units.
        start: the level gains are counted from; None: the first smoothed return.
    """
    smoothed = smooth(returns)
    known = np.flatnonzero(np.isfinite(smoothed))
    if not known.size:
        return smoothed
    level = smoothed[known[0]] if start is None else start
    filled = np.where(np.isfinite(smoothed), smoothed, level)
    best = np.maximum.accumulate(filled)
    gained = best - level
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(gained >= LEARNED * span, (best - filled) / gained, np.nan)


def label(returns: np.ndarray, *, span: float, start: float | None = None) -> Label:
    """The fate of one run; see the module for what the words mean."""
    loss = losses(returns, span=span, start=start)
    if not np.isfinite(loss).any():
        return Label("unlearned", None, None, None)
    below = np.nan_to_num(loss, nan=0.0)
    quarters = np.flatnonzero(below >= QUARTER)
    first = int(quarters[0]) if quarters.size else None
    half = _lasting(below)
    if half is None:
        return Label("steady" if first is None else "faltered", None, None, first)
    before = np.flatnonzero(below[: half + 1] < QUARTER)
    quarter = int(before[-1]) + 1 if before.size else 0
    return Label("collapsed", quarter, half, first)


def _lasting(loss: np.ndarray) -> int | None:
    """Where the loss first reaches half and then is half on average."""
    for t in np.flatnonzero(loss >= HALF):
        stretch = loss[t : t + LASTING]
        if len(stretch) >= SHORTEST and np.mean(stretch) >= HALF:
            return int(t)
    return None
