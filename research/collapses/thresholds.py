"""From scores to warnings: thresholds fitted on one part of the runs and scored on the other.

A condition's threshold is the least at which no more than `FALSE_ALARMS` of the healthy training
runs would ever have been flagged. Conditions then join the union one by one, each the one that
announces most training collapses beyond those already announced, until the next would add less
than `WORTH`. The held-out part is looked at once, with everything fixed.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

FALSE_ALARMS, MARGIN, WORTH = 0.01, 1.1, 0.02


class Judged(NamedTuple):
    """One run: its label's fate, where the fault was planted, its quarter point, its scores.

    `where` is its environment, rule and fault, for tables.
    """

    fate: str
    planted: int | None
    quarter: int | None
    scores: Mapping[str, np.ndarray]
    where: tuple[str, str, str] = ("", "", "")

    @property
    def healthy(self) -> bool:
        """Nothing planted, learned, and no collapse; a return that falters may be noisy."""
        return self.fate in ("steady", "faltered") and self.planted is None

    @property
    def collapsed(self) -> bool:
        """Planted, and collapsed after it was."""
        return (
            self.fate == "collapsed"
            and self.planted is not None
            and self.quarter is not None
            and self.quarter > self.planted
        )


class Tally(NamedTuple):
    """How often, of how many, with a 95 % interval (Clopper & Pearson 1934)."""

    count: int
    of: int
    low: float
    high: float

    @property
    def share(self) -> float:
        """The share; NaN of none."""
        return self.count / self.of if self.of else float("nan")


def tally(count: int, of: int) -> Tally:
    """A share and its exact 95 % interval."""
    low = stats.beta.ppf(0.025, count, of - count + 1) if count else 0.0
    high = stats.beta.ppf(0.975, count + 1, of - count) if count < of else 1.0
    return Tally(count, of, float(low), float(high))


def peak(scores: np.ndarray) -> float:
    """The worst score of a run; minus infinity where it never had one."""
    known = scores[np.isfinite(scores) | np.isposinf(scores)]
    return float(np.max(known)) if known.size else -np.inf


def fit_threshold(healthy: Sequence[np.ndarray]) -> float:
    """The least threshold, with a margin, that flags at most `FALSE_ALARMS` of healthy runs.

    Infinity where no healthy run has a score: then there is nothing to fit.
    """
    peaks = np.sort([peak(scores) for scores in healthy])[::-1]
    allowed = int(FALSE_ALARMS * len(peaks))
    if not len(peaks) or not np.isfinite(peaks[allowed]):
        return np.inf
    # Above the worst of those that must stay silent, by a margin that holds for either sign.
    return float(peaks[allowed] + (MARGIN - 1.0) * abs(peaks[allowed]) + 1e-12)


def first_flag(run: Judged, thresholds: Mapping[str, float], start: int = 0) -> int | None:
    """First row from `start` on at which any condition reaches its threshold."""
    rows = [
        start + int(hit[0])
        for name, threshold in thresholds.items()
        if (hit := np.flatnonzero(run.scores[name][start:] >= threshold)).size
    ]
    return min(rows, default=None)


def lead(run: Judged, thresholds: Mapping[str, float]) -> int | None:
    """Updates between the first flag since the fault was planted and the quarter point.

    None where there was no flag before the quarter point: the collapse was not announced.
    """
    assert run.quarter is not None
    flag = first_flag(run, thresholds, run.planted or 0)
    return run.quarter - flag if flag is not None and flag < run.quarter else None


class Scored(NamedTuple):
    """What some conditions together achieve on some runs; leads in updates."""

    hits: Tally
    false_alarms: Tally
    leads: tuple[float, float, float]


def score(runs: Sequence[Judged], thresholds: Mapping[str, float]) -> Scored:
    """Hits among collapses, false alarms among healthy runs, quartiles of the lead."""
    collapsed = [run for run in runs if run.collapsed]
    healthy = [run for run in runs if run.healthy]
    leads = [ahead for run in collapsed if (ahead := lead(run, thresholds)) is not None]
    flagged = sum(first_flag(run, thresholds) is not None for run in healthy)
    quartiles = np.percentile(leads, [25, 50, 75]) if leads else [np.nan] * 3
    return Scored(
        tally(len(leads), len(collapsed)),
        tally(flagged, len(healthy)),
        tuple(float(q) for q in quartiles),  # type: ignore[arg-type]
    )


def fit(runs: Sequence[Judged], names: Sequence[str]) -> dict[str, float]:
    """A threshold for every candidate, from the healthy ones of `runs`."""
    healthy = [run for run in runs if run.healthy]
    return {name: fit_threshold([run.scores[name] for run in healthy]) for name in names}


def choose(runs: Sequence[Judged], thresholds: Mapping[str, float]) -> dict[str, float]:
    """The union, in the order in which its conditions joined."""
    collapsed = [run for run in runs if run.collapsed]
    announced = {
        name: {i for i, run in enumerate(collapsed) if lead(run, {name: threshold}) is not None}
        for name, threshold in thresholds.items()
        if np.isfinite(threshold)
    }
    chosen: dict[str, float] = {}
    covered: set[int] = set()
    while announced:
        best = max(announced, key=lambda name: len(announced[name] - covered))
        gained = announced.pop(best) - covered
        if len(gained) < max(1.0, WORTH * len(collapsed)):
            break
        covered |= gained
        chosen[best] = thresholds[best]
    return chosen
