"""What a section of a report is, and the words and traces that sections share."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from surefoot.analysis.plots.report import Panel, Raised, Trace
from surefoot.analysis.report.table import Reduction, Table, column, means, starts_of
from surefoot.config.settings import Settings

GOT, PROMISED, SIGNAL, GOOD, BAD, EXTRA = (
    "#000000",
    "#D55E00",
    "#0072B2",
    "#009E73",
    "#E69F00",
    "#CC79A7",
)
"""One colour for one meaning, on the whole page."""
LENS_SINCE = "0.1.0"
"""The version from which on a run logs the lens's figures."""


class Facts(NamedTuple):
    """What a report is made from; nothing of it came from opening the environment.

    `alarms` are the known warnings by name, each with its `level`, `what` and `remedy`.
    """

    path: Path
    settings: Settings
    config: Mapping[str, Any]
    table: Table
    alarms: Mapping[str, Any]

    @property
    def finished(self) -> bool:
        """Whether every planned update was made."""
        return int(self.table.iterations[-1]) >= self.settings.num_iterations

    @property
    def last_step(self) -> float:
        """Environment steps so far."""
        return float(self.table.steps[-1])


class Section(NamedTuple):
    """One part of the page.

    Attributes:
        name: for links to it.
        title: its heading.
        level: "red" or "amber" where it asks for attention, "green" where it is well, "" where
            there is nothing to judge.
        finding: what is to be seen for this run; the picture's caption.
        advice: what to do about it; empty where nothing.
        meaning: what the figures are and how to read them, for somebody who never saw them.
        panels: the picture, from top to bottom.
        extra: more of it, as HTML that is safe already.
    """

    name: str
    title: str
    level: str
    finding: str
    advice: str
    meaning: str
    panels: Sequence[Panel] = ()
    extra: str = ""


def left_out(name: str, title: str, facts: Facts, keys: Sequence[str], why: str = "") -> Section:
    """A section whose figures the run does not have: which, and since when they are logged."""
    made = facts.config.get("versions")
    version = made.get("surefoot") if isinstance(made, Mapping) else None
    by = f"this run was made by {version}" if version else "this run does not say its version"
    reason = why or f"surefoot logs this from {LENS_SINCE} on; {by}"
    listed = ", ".join(keys)
    return Section(
        name, title, "", f"Left out: no row of this run has {listed} ({reason}).", "", ""
    )


def rows_without(table: Table, key: str) -> str:
    """Where a figure that only later rows have begins, as a sentence; empty where all do."""
    where = np.flatnonzero(np.isfinite(column(table, key)))
    # The first row has no update before it, and what is looked at every so often starts soon.
    if not len(where) or table.iterations[where[0]] <= 0.1 * table.iterations[-1] + 2:
        return ""
    return f" {key} is logged from update {table.iterations[where[0]]} on."


def trace(
    table: Table,
    key: str,
    label: str,
    color: str,
    *,
    low: str = "",
    high: str = "",
    reduction: Reduction = means,
    how: Mapping[str, Any] | None = None,
) -> Trace | None:
    """A figure of the table as a trace, its band between the figures `low` and `high`.

    A long run's rows are taken together in groups, by `reduction`. None where no row has it.
    """
    values = column(table, key)
    band = [column(table, name) for name in (low, high)] if low else []
    here = np.isfinite(values)
    if not here.any():
        return None
    starts = starts_of(int(here.sum()))
    drawn = reduction(values[here], starts)
    ends = (_band(bound[here], starts) for bound in band)
    bounds = dict(zip(("low", "high"), ends, strict=False))
    return Trace(label, means(table.steps[here], starts), drawn, color, **bounds, **(how or {}))


def _band(values: Float[np.ndarray, " row"], starts: Any) -> Float[np.ndarray, " group"]:
    """Means of groups in which single values may be missing: those groups have no band."""
    known: Bool[np.ndarray, " row"] = np.isfinite(values)
    filled = means(np.where(known, values, 0.0), starts)
    return np.where(means(known.astype(float), starts) == 1.0, filled, np.nan)


def traces(*found: Trace | None) -> tuple[Trace, ...]:
    """Those that there are."""
    return tuple(each for each in found if each is not None)


def panels(*wanted: Panel) -> tuple[Panel, ...]:
    """Those panels that have something to show."""
    return tuple(panel for panel in wanted if panel.traces)


def raised_warnings(facts: Facts) -> list[Raised]:
    """Every warning that was raised, the worst level first, then in the order of the run."""
    steps: dict[str, list[float]] = {}
    for step, names in zip(facts.table.steps, facts.table.warnings, strict=True):
        for name in names:
            steps.setdefault(name, []).append(float(step))
    order = ("red", "amber", "green", "")
    found = [Raised(name, _level(facts, name), np.array(at)) for name, at in steps.items()]
    return sorted(found, key=lambda each: order.index(each.level))


def _level(facts: Facts, name: str) -> str:
    level = getattr(facts.alarms.get(name), "level", "")
    return level if level in ("red", "amber", "green") else ""


def told(value: float) -> str:
    """A figure with the digits that a person reads."""
    if value == 0 or 1e-3 <= abs(value) < 1000:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1e}"


def percent(share: float) -> str:
    """A share in percent; a small one keeps a digit."""
    return f"{100 * share:.1f} %" if 0 < abs(share) < 0.02 else f"{100 * share:.0f} %"


def between(what: str, low: float | None, high: float | None) -> str:
    """An interval in brackets, behind its figure; nothing where there is none."""
    return "" if low is None or high is None else f" ({what} {told(low)} to {told(high)})"
