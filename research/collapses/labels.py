"""What a collapse is, from a curve of returns alone.

The return of an iteration is smoothed as the mean over all episodes that ended within the last
`WINDOW` environment steps, three iterations of the usual batch; small batches do not make it
noisier. What a run has *gained* at an iteration is its best smoothed return so far, less a random
policy's. It has *learned* once it gained `LEARNED` of the environment's span, the distance between
a random policy and a good one; before that there is nothing to lose. Its *loss* is what it fell
below its best so far, as a share of what it had gained, so that returns may be negative.

- **collapsed**: it learned, its loss then reached half, and from there on it was half or more in
  the mean of `LASTING` steps (or of those up to the run's end, `SHORTEST` at least): a fall that
  lasts. That iteration is its *half point*. Its *quarter point* is where the fall that ended there
  began to show: the last iteration, not after the half point, at which the loss rose from below a
  quarter to a quarter or more.
- **faltered**: it learned and lost a quarter at some iteration, but did not collapse.
- **steady**: it learned and never lost a quarter.
- **unlearned**: it never learned.

A *healthy* run is one in which nothing was planted, and that learned and did not collapse. It may
falter: where returns are noisy (PointRobot's) most runs do, and to leave them out would be to look
for false alarms only where nothing moves.
"""

from typing import NamedTuple

import numpy as np

USUAL = 2048
WINDOW, LASTING, SHORTEST = 3 * USUAL, 9 * USUAL, 5 * USUAL
LEARNED, QUARTER, HALF = 0.4, 0.25, 0.5


class Curve(NamedTuple):
    """A run's returns, iteration by iteration.

    `returns` are means over the `counts` episodes that ended in an iteration, NaN where none did;
    `steps` are the environment steps that the iteration took.
    """

    returns: np.ndarray
    counts: np.ndarray
    steps: np.ndarray


class Label(NamedTuple):
    """A run's fate, and where it was sealed; the rows are indices, None where there is none.

    `first_quarter` is the first iteration that lost a quarter, whether or not it recovered.
    """

    fate: str
    quarter: int | None
    half: int | None
    first_quarter: int | None


def smooth(curve: Curve) -> np.ndarray:
    """Mean return of the episodes of the last `WINDOW` steps, carried on where none ended.

    Iterations before the first ended episode are NaN.
    """
    ended = np.where(np.isfinite(curve.returns), curve.counts, 0.0)
    totals = np.where(ended > 0, ended * np.nan_to_num(curve.returns), 0.0)
    progress, smoothed = np.cumsum(curve.steps), np.full(len(ended), np.nan)
    for t, first in enumerate(np.searchsorted(progress, progress - WINDOW, side="right")):
        count = np.sum(ended[first : t + 1])
        if count > 0:
            smoothed[t] = np.sum(totals[first : t + 1]) / count
        elif t > 0:
            smoothed[t] = smoothed[t - 1]
    return smoothed


def losses(curve: Curve, *, span: float, start: float) -> np.ndarray:
    """Share of what was gained that is lost, per iteration; NaN before the run has learned.

    Args:
        curve: the run's returns.
        span: return of a good policy less that of a random one.
        start: return of a random policy, from which gains are counted.
    """
    smoothed = smooth(curve)
    filled = np.where(np.isfinite(smoothed), smoothed, start)
    best = np.maximum.accumulate(filled)
    gained = best - start
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(gained >= LEARNED * span, (best - filled) / gained, np.nan)


def label(curve: Curve, *, span: float, start: float) -> Label:
    """The fate of one run; see the module for what the words mean."""
    loss = losses(curve, span=span, start=start)
    if not np.isfinite(loss).any():
        return Label("unlearned", None, None, None)
    below = np.nan_to_num(loss, nan=0.0)
    quarters = np.flatnonzero(below >= QUARTER)
    first = int(quarters[0]) if quarters.size else None
    half = _lasting(below, curve.steps)
    if half is None:
        return Label("steady" if first is None else "faltered", None, None, first)
    before = np.flatnonzero(below[: half + 1] < QUARTER)
    quarter = int(before[-1]) + 1 if before.size else 0
    return Label("collapsed", quarter, half, first)


def _lasting(loss: np.ndarray, steps: np.ndarray) -> int | None:
    """Where the loss first reaches half and then is half on average."""
    progress = np.cumsum(steps)
    for t in np.flatnonzero(loss >= HALF):
        begun = progress[t] - steps[t]
        end = np.searchsorted(progress, begun + LASTING, side="right")
        if progress[end - 1] - begun >= SHORTEST and np.mean(loss[t:end]) >= HALF:
            return int(t)
    return None
