"""Warnings: conditions on the rows of a run that were found to come before a collapse.

Each looks at the newest rows alone, so that it costs nothing and can be asked of any run's
`metrics.jsonl`. Which conditions are here, and their thresholds, come from the planted collapses
of `benchmarks/collapses`; docs/lens.md has the table of what they caught and what they missed.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

Row = Mapping[str, Any]
LOOK_BACK = 20
"""Rows that a condition may look at."""
SMOOTH = 5
"""Rows over which a return is averaged before it is called a loss."""
LOST_SHARE = 0.25
CLEAR = 4.0
"""Standard errors that a gain or a fall of the return must exceed."""
RETURN = "episode/return_mean"


class Alarm(NamedTuple):
    """One warning. `level` is red (a collapse is likely), amber (look at it) or green (advice).

    `holds(rows)` judges the newest of at most `LOOK_BACK` rows; `shows` names the metric that is
    its evidence.
    """

    level: str
    what: str
    remedy: str
    shows: str
    holds: Callable[[Sequence[Row]], bool]


def _newest(rows: Sequence[Row], key: str, count: int) -> list[float]:
    """The last `count` values of a metric, where that many rows have it in a row."""
    values = [row[key] for row in rows[-count:] if key in row]
    return values if len(values) == count else []


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


def _mean_above(key: str, bound: float, count: int) -> Callable[[Sequence[Row]], bool]:
    def holds(rows: Sequence[Row]) -> bool:
        values = _newest(rows, key, count)
        return bool(values) and _mean(values) > bound

    return holds


def _mean_below(key: str, bound: float, count: int) -> Callable[[Sequence[Row]], bool]:
    def holds(rows: Sequence[Row]) -> bool:
        values = _newest(rows, key, count)
        return bool(values) and _mean(values) < bound

    return holds


ALARMS: dict[str, Alarm] = {
    "kl-runaway": Alarm(
        "red",
        "The policy moves so far in one update that its batch says nothing of where it lands.",
        "a smaller learning rate, fewer epochs, a target_kl, or --guard.",
        "policy/kl_mean",
        _mean_above("policy/kl_mean", 0.2, 3),
    ),
}
"""Every warning that a run can raise, by name."""


class Loss:
    """Tells when a quarter of what a run had gained is lost again, noise aside.

    The return is averaged over `SMOOTH` rows in which episodes ended. Its noise is judged by how
    successive rows differ: a gain or a fall within `CLEAR` standard errors is none.
    """

    def __init__(self) -> None:
        self._newest: deque[float] = deque(maxlen=SMOOTH)
        self._first, self._best = math.nan, -math.inf
        self._squares, self._pairs = 0.0, 0
        self.is_lost = False

    def see(self, value: float) -> None:
        """Take in the mean return of one row."""
        if self._newest:
            self._squares += (value - self._newest[-1]) ** 2
            self._pairs += 1
        self._newest.append(value)
        if len(self._newest) < SMOOTH:
            return
        mean = _mean(self._newest)
        self._first = mean if math.isnan(self._first) else self._first
        self._best = max(self._best, mean)
        gained, fallen = self._best - self._first, self._best - mean
        clear = CLEAR * math.sqrt(self._squares / (2.0 * self._pairs) / SMOOTH)
        self.is_lost = gained > clear and fallen > max(clear, LOST_SHARE * gained)


class Watchman:
    """Looks at every row of a run once, in order, and says what it warns of.

    Attributes:
        newly_red: whether the newest row raised a red warning that the one before did not.
        newly_lost: whether the return lost a quarter of its gain with the newest row.
    """

    def __init__(self, rows: Iterable[Row] = ()):
        self._rows: deque[Row] = deque(maxlen=LOOK_BACK)
        self._loss = Loss()
        self._red: set[str] = set()
        self.newly_red = self.newly_lost = False
        for row in rows:
            self.see(row)

    def see(self, row: Row) -> list[str]:
        """The names of the warnings that this row raises."""
        self._rows.append(row)
        rows = list(self._rows)
        raised = [name for name, alarm in ALARMS.items() if alarm.holds(rows)]
        red = {name for name in raised if ALARMS[name].level == "red"}
        self.newly_red, self._red = bool(red - self._red), red
        was_lost = self._loss.is_lost
        if RETURN in row:
            self._loss.see(row[RETURN])
        self.newly_lost = self._loss.is_lost and not was_lost
        return raised
