"""Warnings: conditions on the rows of a run that were found to come before a collapse.

Each looks at the newest rows alone, so that it costs nothing and can be asked of any run's
`metrics.jsonl`. Which conditions are here, and their thresholds, come from the planted collapses
of `research/collapses`; docs/lens.md has the table of what they caught and what they missed.
"""

import math
import statistics
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

Row = Mapping[str, Any]
LOOK_BACK = 20
"""Rows that a condition may look at."""
FEWEST_EARLIER = 5
WARM_UP = 5
"""Rows at the start of a run in which nothing is raised: first updates are large anyway."""
SMOOTH = 5
"""Rows over which the return is averaged before a fall counts."""
LOST_SHARE = 0.25
CLEAR = 6.0
"""Standard errors that a gain or a fall must exceed: in many rows, some fall by chance."""
RETURN = "episode/return_mean"


class Alarm(NamedTuple):
    """One warning: raised where its score of the newest rows reaches its bound.

    `level` is red (a collapse is likely) or amber (look at it). `score(rows)` reads at most
    `LOOK_BACK` rows and is None where it is unknown; `shows` names the metric that it rests
    on, and `evidence` says it in words.
    """

    level: str
    what: str
    evidence: str
    remedy: str
    shows: str
    bound: float
    score: Callable[[Sequence[Row]], float | None]

    def holds(self, rows: Sequence[Row]) -> bool:
        """Whether the newest of these rows raises it."""
        found = self.score(rows) if len(rows) > 0 else None
        return found is not None and found >= self.bound

    def to_dict(self) -> dict[str, Any]:
        """Everything but the score, for programs."""
        return {name: value for name, value in self._asdict().items() if name != "score"}


def explain_alarm(name: str) -> str:
    """What a warning is, what it rests on and what to do, in a few lines of text."""
    alarm = ALARMS[name]
    return (
        f"{name}  [{alarm.level} warning]\n  {alarm.what}\n"
        f"  evidence: {alarm.evidence} (`surefoot explain {alarm.shows}`)\n"
        f"  remedy: {alarm.remedy}"
    )


def _newest(key: str, sign: float = 1.0) -> Callable[[Sequence[Row]], float | None]:
    return lambda rows: sign * rows[-1][key] if key in rows[-1] else None


def _sustained(key: str, count: int) -> Callable[[Sequence[Row]], float | None]:

    def score(rows: Sequence[Row]) -> float | None:
        values = [row[key] for row in rows[-count:] if key in row]
        return min(values) if len(values) == count else None

    return score


def _surge(key: str) -> Callable[[Sequence[Row]], float | None]:
    """The newest value over the median of those before it, of which there must be five."""

    def score(rows: Sequence[Row]) -> float | None:
        earlier = [row[key] for row in rows[:-1] if key in row]
        if key not in rows[-1] or len(earlier) < FEWEST_EARLIER:
            return None
        usual = statistics.median(earlier)
        return rows[-1][key] / usual if usual > 0 else None

    return score


_SMALLER = "a smaller learning rate or radius, fewer epochs, a target_kl, or --guard."

ALARMS: dict[str, Alarm] = {
    "kl-large": Alarm(
        "red",
        "The policy went so far in one update that its batch says little of where it landed. Of "
        "planted collapses in runs that no threshold was fitted to it announced 75 of 84, mostly "
        "one to four updates ahead; it was raised in none of 246 healthy runs.",
        "policy/kl_mean of at least 0.3402 nats",
        _SMALLER,
        "policy/kl_mean",
        0.3402,
        _newest("policy/kl_mean"),
    ),
    "kl-surge": Alarm(
        "amber",
        "This update went many times as far as the usual one of this run.",
        "policy/kl_mean at least 38.22 times its median over the rows before",
        _SMALLER + " Did a setting change, or the scale of the rewards?",
        "policy/kl_mean",
        38.22,
        _surge("policy/kl_mean"),
    ),
    "kl-twice": Alarm(
        "amber",
        "Two updates running went far: the gentlest sign here, and the longest ahead.",
        "policy/kl_mean of at least 0.1031 nats in each of two rows",
        _SMALLER,
        "policy/kl_mean",
        0.1031,
        _sustained("policy/kl_mean", 2),
    ),
    "kl-p99": Alarm(
        "amber",
        "One state in a hundred has another policy than before, whatever the mean says.",
        "policy/kl_p99 of at least 4.193 nats",
        "a smaller step, or a wider network: states drag each other along.",
        "policy/kl_p99",
        4.193,
        _newest("policy/kl_p99"),
    ),
    "good-actions-lost": Alarm(
        "amber",
        "A tenth of the actions that were better than expected became rarer by more than half: "
        "the step undoes what its own advantages say.",
        "policy/log_ratio_good_p10 of -0.955 or less",
        "a smaller step, fewer epochs, or a wider network.",
        "policy/log_ratio_good_p10",
        0.955,
        _newest("policy/log_ratio_good_p10", -1.0),
    ),
    "clip": Alarm(
        "amber",
        "Most rows lie outside the clip range, where later epochs change nothing for them.",
        "policy/clip_fraction of at least 0.5919",
        "fewer epochs, or a smaller learning rate.",
        "policy/clip_fraction",
        0.5919,
        _newest("policy/clip_fraction"),
    ),
}
"""Every warning that a run can raise, by name; docs/lens.md has those that were dropped."""


class LossOfReturn:
    """Detects that a run lost a quarter of what it had gained, beyond noise.

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
        mean = statistics.fmean(self._newest)
        self._first = mean if math.isnan(self._first) else self._first
        self._best = max(self._best, mean)
        gained, fallen = self._best - self._first, self._best - mean
        # The difference of two independent values has twice the variance of one, hence the 2.
        clear = CLEAR * math.sqrt(self._squares / (2.0 * self._pairs) / SMOOTH)
        self.is_lost = gained > clear and fallen > max(clear, LOST_SHARE * gained)


class WarningMonitor:
    """Sees every row of a run once, in order, and raises warnings.

    `newly_red` and `newly_lost`: whether the newest row raised a red warning that the one before
    did not, and whether with it the return lost a quarter of its gain.
    """

    def __init__(self, rows: Iterable[Row] = ()):
        self._rows: deque[Row] = deque(maxlen=LOOK_BACK)
        self._loss = LossOfReturn()
        self._red: set[str] = set()
        self.newly_red = self.newly_lost = False
        for row in rows:
            self.see(row)

    def see(self, row: Row) -> list[str]:
        """The names of the warnings that this row raises."""
        self._rows.append(row)
        rows, warm = list(self._rows), row["iteration"] > WARM_UP
        raised = [name for name, alarm in ALARMS.items() if warm and alarm.holds(rows)]
        red = {name for name in raised if ALARMS[name].level == "red"}
        self.newly_red, self._red = bool(red - self._red), red
        was_lost = self._loss.is_lost
        if RETURN in row:
            self._loss.see(row[RETURN])
        self.newly_lost = self._loss.is_lost and not was_lost
        return raised
