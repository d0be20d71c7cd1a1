"""Sums of the gains that the updates of a run promised and realised."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from surefoot.analysis.report.table import Column, Table
from surefoot.formulas.intervals import Interval, t_quantile

Updates = Float[np.ndarray, " update"]


class Totals(NamedTuple):
    """Cumulative gains of the updates, in discounted reward, by the steps at which they were known.

    `promised` is by the surrogate, on the batch that it was fitted to; `signal` the part of it that
    held on data the update had not seen, or None; `realised` as measured on the next rollouts, with
    half of its 95 % interval.
    """

    steps: Updates
    promised: Updates
    signal: Updates | None
    realised: Updates
    realised_half: Updates

    @property
    def signal_share(self) -> float:
        """Share of the whole promise that was signal; NaN where there is none.

        The signal is negative where updates promised losses on their own batches.
        """
        if self.signal is None or self.promised[-1] <= 0 or self.signal[-1] < 0:
            return math.nan
        return float(self.signal[-1] / self.promised[-1])

    def gain(self) -> Interval:
        """Sum of all realised gains."""
        total, half = float(self.realised[-1]), float(self.realised_half[-1])
        return Interval(total, total - half, total + half)

    def realised_share(self) -> Interval | None:
        """Realised over signal, or over the promise where the signal is unknown.

        The interval is that of what was realised. None where nothing was promised.
        """
        base = float((self.promised if self.signal is None else self.signal)[-1])
        return Interval(*(value / base for value in self.gain())) if base > 0 else None

    def to_dict(self) -> dict[str, float | None]:
        """The sums at the end, for programs; None where they are unknown."""
        sums = self._asdict()
        del sums["steps"]
        ends = {name: None if each is None else float(each[-1]) for name, each in sums.items()}
        return ends | {"signal_share": None if math.isnan(share := self.signal_share) else share}


def totals(table: Table, num_envs: int, *, whole: bool = True) -> Totals | None:
    """Sums over the updates whose gain is known with an interval; None where there are none.

    A gain without one may be the time in the episode and not the update's doing. The interval is
    the run's own where it has one, which holds for the sum over the `whole` run.
    """
    promised, realised = table.column("lens/promised_gain"), table.column("lens/realised_gain")
    halves = _halves(table, "realised")
    known = np.isfinite(promised) & np.isfinite(realised) & np.isfinite(halves)
    if not known.any():
        return None
    # A row's share is of its own update, its lens/promised_gain of the update before.
    shares = _filled(np.append(np.nan, table.column("lens/signal_share")[:-1]))
    signal = None
    if np.isfinite(shares).any():
        # Its estimate may lie outside [0, 1], where it is no share.
        signal = np.cumsum(promised[known] * np.clip(shares[known], 0.0, 1.0))
    halves, half = halves[known], _halves(table, "total")[known]
    # The run's own interval is of the sum from its first update on.
    if not whole or not np.isfinite(half).all():
        half = None
    if half is None:
        half = half_of_sums(realised[known], halves, num_envs)
    return Totals(
        table.steps[known], np.cumsum(promised[known]), signal, np.cumsum(realised[known]), half
    )


def _halves(table: Table, name: str) -> Column:
    """Half of the width of a gain's interval."""
    return 0.5 * (table.column(f"lens/{name}_high") - table.column(f"lens/{name}_low"))


def _filled(values: Column) -> Column:
    """Each gap with the value before it; the first one also with the value after."""
    finite = np.flatnonzero(np.isfinite(values))
    if not len(finite):
        return values
    before = np.searchsorted(finite, np.arange(len(values)), side="right") - 1
    return values[finite[np.maximum(before, 0)]]


def half_of_sums(gains: Updates, halves: Updates, num_envs: int) -> Updates:
    """Half of the 95 % interval of each sum of gains, from the gains' own half-widths alone.

    For runs without each environment's own sum, and for a part of a run.
    Two successive gains share a rollout with opposite sign: noise that made the first look large
    makes the second look small. With a constant critic, all but the first and the newest rollout
    would cancel; with a new one each time, little would. Adding variances as if gains were
    independent is several times too wide for the first; ignoring what does not cancel is far too
    narrow for the second. So the correlation of neighbours is estimated, from how far neighbours
    differ compared with their intervals, between -1/2 (all cancels) and 0; one standard error is
    added, as a short run estimates it badly, and the noise of the first and the newest rollout is
    a lower bound.

    Source: the variance of a first-order moving average; the estimate is von Neumann's 1941 ratio
    of squared differences to variance.
    """
    # With one environment the groups behind a gain are its episodes, eight on either side of an
    # update: at most sixteen less two degrees of freedom.
    quantile = t_quantile(num_envs - 1 if num_envs > 1 else 14)
    correlation, variances = -0.5, (halves / quantile) ** 2
    pairs = float(np.sum(variances[1:] + variances[:-1]))
    if len(gains) > 2 and pairs > 0:
        # A few large variances among small ones carry no more information than a few updates.
        count = float(np.sum(variances)) ** 2 / float(np.sum(variances**2))
        found = 1.0 - float(np.sum(np.diff(gains) ** 2)) / pairs
        correlation = float(np.clip(found + math.sqrt(3.0 / count), -0.5, 0.0))
    neighbours = np.append(0.0, np.cumsum(halves[1:] * halves[:-1]))
    squares = np.cumsum(halves**2) + 2.0 * correlation * neighbours
    least = 0.5 * (halves[0] ** 2 + halves**2)
    return np.sqrt(np.maximum(squares, least))
