"""Returns of a run: at its start, at its end, and at its best."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from surefoot.analysis.report.table import Table
from surefoot.diagnostics.warnings import Loss
from surefoot.formulas.intervals import Interval, t_interval

NUM_WINDOWS = 10
"""A run without evaluations is judged by means over a tenth of its updates."""
Windows = Float[np.ndarray, " window"]


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
    evaluated, interval = len(where) > 0, None
    if evaluated:
        returns, steps = values[where], table.steps[where]
        if math.isfinite(low[where[-1]]):
            interval = float(low[where[-1]]), float(high[where[-1]])
    else:
        returns, steps = _training_returns(table)
    if not len(returns):
        return None
    first, best = np.append(table.known("episode/return_mean"), returns), int(np.argmax(returns))
    start = first[0] if evaluated else returns[0]
    ends = float(start), float(returns[-1])
    return ReturnSummary(evaluated, *ends, interval, float(returns[best]), float(steps[best]))


def _training_returns(table: Table) -> tuple[Windows, Windows]:
    """Mean return of the training episodes in windows of a tenth of the rows, and their ends."""
    where = np.flatnonzero(np.isfinite(table.column("episode/return_mean")))
    returns, counts = table.column("episode/return_mean")[where], table.column("episode/count")
    counts = np.maximum(np.nan_to_num(counts[where], nan=1.0), 1e-9)
    if not len(where):
        return returns, returns
    ones = np.ones(max(1, len(returns) // NUM_WINDOWS))
    smooth = np.convolve(returns * counts, ones, "valid") / np.convolve(counts, ones, "valid")
    return smooth, table.steps[where[len(ones) - 1 :]]


def has_fallen(table: Table, found: ReturnSummary) -> bool:
    """Whether the end is below the best beyond noise: its interval, or how rows differ."""
    if found.evaluated:
        return found.interval is None or found.interval[1] < found.best
    loss = Loss()
    for value in table.known("episode/return_mean"):
        loss.see(float(value))
    return loss.is_lost
