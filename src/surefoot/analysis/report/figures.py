"""The figures of a report, from the columns of a run; pure functions."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats

from surefoot.analysis.report.table import Table, column
from surefoot.diagnostics.warnings import Loss

WINDOWS = 10
"""A run without evaluations is judged by means over a tenth of its updates."""


class Score(NamedTuple):
    """Where a run stands: undiscounted returns of whole episodes.

    Attributes:
        evaluated: whether they are of evaluations, or else of training episodes, whose actions
            are sampled.
        start: of the first training episodes, or of the first evaluation where none ended.
        final: the newest.
        interval: 95 %, of `final`; None where its episodes' spread is unknown.
        best: the highest, which flatters, for it is the luckiest of several.
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


def evaluation_half(
    std: Float[np.ndarray, " row"], episodes: int
) -> Float[np.ndarray, " row"] | None:
    """Half of the 95 % t interval of an evaluation's mean; None for one episode."""
    if episodes < 2:
        return None
    return float(stats.t.ppf(0.975, episodes - 1)) * std / episodes**0.5


def score(table: Table, episodes: int) -> Score | None:
    """Start, end and best, of evaluations where there are any, else of training episodes.

    None where no episode has ended.
    """
    smooth, at = _training(table)
    values = column(table, "eval/return_mean")
    where = np.flatnonzero(np.isfinite(values))
    if not len(where):
        if not len(smooth):
            return None
        best = int(np.argmax(smooth))
        return Score(
            False, float(smooth[0]), float(smooth[-1]), None, float(smooth[best]), float(at[best])
        )
    half = evaluation_half(column(table, "eval/return_std"), episodes)
    final, best = float(values[where[-1]]), where[np.argmax(values[where])]
    width = math.nan if half is None else float(half[where[-1]])
    interval = (final - width, final + width) if math.isfinite(width) else None
    returns = column(table, "episode/return_mean")
    started = np.append(returns[np.isfinite(returns)], values[where])
    return Score(
        True, float(started[0]), final, interval, float(values[best]), float(table.steps[best])
    )


def has_fallen(table: Table, found: Score) -> bool:
    """Whether the end is below the best beyond noise: its interval, or how rows differ."""
    if found.evaluated:
        return found.interval is None or found.interval[1] < found.best
    loss, returns = Loss(), column(table, "episode/return_mean")
    for value in returns[np.isfinite(returns)]:
        loss.see(float(value))
    return loss.is_lost


def _training(
    table: Table,
) -> tuple[Float[np.ndarray, " window"], Float[np.ndarray, " window"]]:
    """Mean return of training episodes over windows of a tenth of the rows, and their ends."""
    returns, counts = column(table, "episode/return_mean"), column(table, "episode/count")
    where = np.flatnonzero(np.isfinite(returns))
    if not len(where):
        return np.zeros(0), np.zeros(0)
    smooth = _windowed(returns[where], np.nan_to_num(counts[where], nan=1.0))
    return smooth, table.steps[where[len(where) - len(smooth) :]]


def _windowed(
    returns: Float[np.ndarray, " row"], counts: Float[np.ndarray, " row"]
) -> Float[np.ndarray, " window"]:
    """Mean return of the episodes in every window of a tenth of the rows."""
    size = max(1, len(returns) // WINDOWS)
    ones, counts = np.ones(size), np.maximum(counts, 1e-9)
    return np.convolve(returns * counts, ones, "valid") / np.convolve(counts, ones, "valid")


class Totals(NamedTuple):
    """What the updates of a run promised and gained so far, summed; discounted reward.

    Attributes:
        steps: environment steps at which the newest gain of each sum was known.
        promised: by the surrogate, on the batch that it was fitted to.
        signal: the part of it that held on data the update had not seen, or None.
        realised: what the next rollouts showed.
        half: half of the 95 % interval of `realised`; None where a gain has no interval.
    """

    steps: Float[np.ndarray, " update"]
    promised: Float[np.ndarray, " update"]
    signal: Float[np.ndarray, " update"] | None
    realised: Float[np.ndarray, " update"]
    half: Float[np.ndarray, " update"] | None

    @property
    def signal_share(self) -> float | None:
        """Of all that was promised, the share that was signal; None where nothing was."""
        if self.signal is None or self.promised[-1] <= 0:
            return None
        return float(self.signal[-1] / self.promised[-1])

    def came_true(self) -> tuple[float, float | None, float | None] | None:
        """Realised over signal (over the promise, where the signal is unknown), with interval.

        The interval is that of what was realised. None where nothing was promised.
        """
        base = float((self.promised if self.signal is None else self.signal)[-1])
        if base <= 0:
            return None
        ratio = float(self.realised[-1]) / base
        if self.half is None:
            return ratio, None, None
        width = float(self.half[-1]) / base
        return ratio, ratio - width, ratio + width


def totals(table: Table, num_envs: int, *, whole: bool = True) -> Totals | None:
    """Sums over the updates whose promise and gain are both known; None where there are none.

    The interval is the run's own where it has one, which holds for the sum over the `whole` run.
    """
    promised, realised = column(table, "lens/promised_gain"), column(table, "lens/realised_gain")
    known = np.isfinite(promised) & np.isfinite(realised)
    if not known.any():
        return None
    # A row's share is of its own update, its lens/promised_gain of the update before.
    shares = _filled(np.append(np.nan, column(table, "lens/signal_share")[:-1]))
    signal = None
    if np.isfinite(shares).any():
        signal = np.cumsum(promised[known] * np.clip(shares[known], 0.0, 1.0))
    halves, half = _halves(table, "realised")[known], _halves(table, "total")[known]
    if not whole or not np.isfinite(half).all():
        half = None
    if half is None and np.isfinite(halves).all():
        half = half_of_sums(realised[known], halves, num_envs)
    return Totals(
        table.steps[known], np.cumsum(promised[known]), signal, np.cumsum(realised[known]), half
    )


def _halves(table: Table, name: str) -> Float[np.ndarray, " row"]:
    """Half of the width of a gain's interval."""
    return 0.5 * (column(table, f"lens/{name}_high") - column(table, f"lens/{name}_low"))


def _filled(values: Float[np.ndarray, " row"]) -> Float[np.ndarray, " row"]:
    """Each gap with the value before it; the first one also with the value after."""
    finite = np.flatnonzero(np.isfinite(values))
    if not len(finite):
        return values
    before = np.searchsorted(finite, np.arange(len(values)), side="right") - 1
    return values[finite[np.maximum(before, 0)]]


def half_of_sums(
    gains: Float[np.ndarray, " update"], halves: Float[np.ndarray, " update"], num_envs: int
) -> Float[np.ndarray, " update"]:
    """Half of the 95 % interval of each sum of gains, from the gains' own half-widths alone.

    For runs that did not keep each environment's own sum, and for a part of a run.
    Two successive gains share a rollout, with opposite sign: what made the first look large makes
    the second look small. Were the critic always the same, all but the first and the newest
    rollout would cancel; were it a new one each time, little would. Adding variances as if gains
    were independent is several times too wide for the first, ignoring what does not cancel far
    too narrow for the second. So the correlation of neighbours is estimated, from how far
    neighbours differ beside what their intervals say, between -1/2 (all cancels) and 0; one
    standard error is added, for a short run knows it badly, and the noise of the first and the
    newest rollout is the least there can be.

    Source: the variance of a first-order moving average; the estimate is von Neumann's 1941 ratio
    of squared differences to variance.
    """
    correlation, variances = -0.5, (halves / _quantile(num_envs)) ** 2
    pairs = float(np.sum(variances[1:] + variances[:-1]))
    if len(gains) > 2 and pairs > 0:
        # Few large variances among small ones know as little as few updates.
        count = float(np.sum(variances)) ** 2 / float(np.sum(variances**2))
        found = 1.0 - float(np.sum(np.diff(gains) ** 2)) / pairs
        correlation = float(np.clip(found + math.sqrt(3.0 / count), -0.5, 0.0))
    neighbours = np.append(0.0, np.cumsum(halves[1:] * halves[:-1]))
    squares = np.cumsum(halves**2) + 2.0 * correlation * neighbours
    least = 0.5 * (halves[0] ** 2 + halves**2)
    return np.sqrt(np.maximum(squares, least))


def _quantile(num_envs: int) -> float:
    """Student's quantile behind a gain's interval.

    With one environment the groups are its episodes, eight on either side of an update: sixteen
    less two degrees of freedom at most.
    """
    return float(stats.t.ppf(0.975, num_envs - 1 if num_envs > 1 else 14))
