"""Returns of a run: at its start, at its end, and at its best."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from surefoot.analysis.report.table import Column, Table
from surefoot.diagnostics.warnings import Loss
from surefoot.formulas.intervals import Interval, t_interval

WINDOWS = 10
"""A run without evaluations is judged by means over a tenth of its updates."""


class ReturnSummary(NamedTuple):
    """Undiscounted returns of whole episodes over a run.

    Attributes:
        evaluated: whether they are of evaluations, or else of training episodes, with sampled
            actions.
        start: of the first training episodes, or of the first evaluation where none ended.
        final: the newest.
        interval: ends of its 95 % interval; None where the spread of its episodes is unknown.
        best: the highest, which is biased upwards as the maximum of several noisy values.
        best_step: environment steps at the best.
    """

    evaluated: bool
    start: float
    final: float
    interval: tuple[float, float] | None
    best: float
    best_step: float

    @property
    def lost(self) -> float:
        """Share of what was learned that the end has lost again; 0 where nothing was learned."""
        learned = self.best - self.start
        return (self.best - self.final) / learned if learned > 0 else 0.0


def evaluation_intervals(table: Table, episodes: int) -> Interval:
    """95 % t intervals of the evaluations' means; the ends are NaN for one episode."""
    means = table.column("eval/return_mean")
    error = table.column("eval/return_std") / episodes**0.5
    if episodes < 2:
        return Interval(means, np.full_like(means, np.nan), np.full_like(means, np.nan))
    return t_interval(means, error, episodes - 1)


def summarize_returns(table: Table, episodes: int) -> ReturnSummary | None:
    """Start, end and best, of evaluations if there are any, else of training episodes.

    None where no episode has ended.
    """
    values, low, high = evaluation_intervals(table, episodes)
    where = np.flatnonzero(np.isfinite(values))
    if not len(where):
        return _of_training(table)
    last, best = where[-1], where[np.argmax(values[where])]
    started = np.append(table.known("episode/return_mean"), values[where])
    return ReturnSummary(
        evaluated=True,
        start=float(started[0]),
        final=float(values[last]),
        interval=(float(low[last]), float(high[last])) if math.isfinite(low[last]) else None,
        best=float(values[best]),
        best_step=float(table.steps[best]),
    )


def _of_training(table: Table) -> ReturnSummary | None:
    """Returns of training episodes, over windows of a tenth of the rows."""
    returns, counts = table.column("episode/return_mean"), table.column("episode/count")
    where = np.flatnonzero(np.isfinite(returns))
    if not len(where):
        return None
    smooth = _windowed(returns[where], np.nan_to_num(counts[where], nan=1.0))
    ends = table.steps[where[len(where) - len(smooth) :]]
    start, final, best = smooth[0], smooth[-1], int(np.argmax(smooth))
    return ReturnSummary(
        False, float(start), float(final), None, float(smooth[best]), float(ends[best])
    )


def _windowed(returns: Column, counts: Column) -> Float[np.ndarray, " window"]:
    """Mean return of the episodes in every window of a tenth of the rows."""
    size = max(1, len(returns) // WINDOWS)
    ones, counts = np.ones(size), np.maximum(counts, 1e-9)
    return np.convolve(returns * counts, ones, "valid") / np.convolve(counts, ones, "valid")


def has_fallen(table: Table, found: ReturnSummary) -> bool:
    """Whether the end is below the best beyond noise: its interval, or how rows differ."""
    if found.evaluated:
        return found.interval is None or found.interval[1] < found.best
    loss = Loss()
    for value in table.known("episode/return_mean"):
        loss.see(float(value))
    return loss.is_lost
