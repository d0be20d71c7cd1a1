"""Sections of a report, and the lines and words that they share."""

import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from surefoot.analysis.plots.grouping import Reduction, means, starts_of
from surefoot.analysis.plots.report import Dash, Panel, PanelSeries
from surefoot.analysis.report.table import Column, Table
from surefoot.analysis.text import figure
from surefoot.config.history import SettingsHistory
from surefoot.config.settings import Settings
from surefoot.formulas.intervals import Interval

GUIDE = tomllib.loads((Path(__file__).parent / "guide.toml").read_text(encoding="utf-8"))
"""Titles of the sections, and how to read their figures."""


class Color:
    """One colour for one meaning, on the whole page."""

    GOT = "#000000"
    PROMISED = "#D55E00"
    SIGNAL = "#0072B2"
    GOOD = "#009E73"
    BAD = "#E69F00"
    EXTRA = "#CC79A7"


class Facts(NamedTuple):
    """Input of a report; the environment is never opened."""

    path: Path
    history: SettingsHistory
    config: Mapping[str, Any]
    table: Table

    @property
    def settings(self) -> Settings:
        """The settings in force now."""
        return self.history.now

    def of_rows(self, number: Callable[[Settings], float]) -> Column:
        """A number of the settings that made each row."""
        return np.array([number(self.history.at(int(k))) for k in self.table.iterations], float)

    @property
    def changed_at(self) -> tuple[float, ...]:
        """Environment steps at which settings changed."""
        last = [change.iteration for change in self.history.changes()]
        steps = np.append(0.0, self.table.steps)
        return tuple(map(float, steps[np.searchsorted(self.table.iterations, last, "right")]))

    @property
    def finished(self) -> bool:
        """Whether every planned update is done."""
        return int(self.table.iterations[-1]) >= self.settings.num_iterations

    @property
    def last_step(self) -> float:
        """Environment steps so far."""
        return float(self.table.steps[-1])


class Section(NamedTuple):
    """One part of the page; links go to its name.

    `finding` is the state of this run and the figure's caption, `meaning` how to read the figure,
    `extra` HTML below, escaped already. `level` is "red" for action, "amber" for a look, "green"
    where all is well, and "" where there is nothing to judge.
    """

    name: str
    title: str
    finding: str
    meaning: str = ""
    level: str = ""
    advice: str = ""
    panels: Sequence[Panel] = ()
    extra: str = ""

    def at_rest(self) -> "Section":
        """The section of a run that stays near its best: its figures ask for nothing."""
        if self.level in ("green", ""):
            return self
        words = "As the return stays near its best, nothing needs to be done about this."
        return self._replace(level="green", advice="", finding=f"{self.finding} {words}")

    def judged(self, checks: Sequence[tuple[Any, str]], *panels: Panel) -> "Section":
        """The section with the advice of the checks that are true, and the panels with data.

        It is amber where it has advice.
        """
        advice = " ".join(text for wrong, text in checks if wrong)
        shown = [panel for panel in panels if panel.series]
        return self._replace(level="amber" if advice else "green", advice=advice, panels=shown)


def section(name: str, finding: str, *, guide: str = "") -> Section:
    """A section with the title and meaning that `guide.toml` has under its name or `guide`."""
    entry = GUIDE[guide or name]
    return Section(name, entry["title"], finding, entry["meaning"].strip())


def left_out(name: str, keys: Sequence[str], *, why: str = "", guide: str = "") -> Section:
    """A section without its figures, which no row has."""
    reason = f" ({why})" if why else ""
    finding = f"Left out: no row of this run has {', '.join(keys)}{reason}."
    return section(name, finding, guide=guide)._replace(meaning="")


def recently(table: Table, *parts: tuple[float, str]) -> str:
    """A sentence on the newest tenth of a run: the texts whose figures are known.

    Those that it has one value of, or none, say of which update it is: `Table.when`.
    """
    texts = [text for value, text in parts if math.isfinite(value)]
    if not texts:
        return ""
    listed = f"{', '.join(texts[:-1])} and {texts[-1]}" if len(texts) > 1 else texts[0]
    return f"{table.period}, {listed}."


def smaller_steps(settings: Settings) -> str:
    """How the steps of this run's rule are made smaller."""
    rule = settings.rule
    # A target_kl of 0 is none.
    names = ("max_kl", "target_kl", "learning_rate", "clip_eps")
    named = [name for name in names if getattr(rule, name, 0)]
    ways = [f"a smaller {' or '.join(named)}" if named else "a smaller step size"]
    if getattr(rule, "num_epochs", 1) > 1:
        ways.append("fewer epochs")
    return ", or ".join(ways)


def not_logged(keys: Sequence[str]) -> str:
    """A sentence on metrics that no row has, or nothing."""
    return f" Not logged in this run: {', '.join(keys)}." if keys else ""


def line(
    table: Table,
    key: str,
    label: str,
    color: str,
    *,
    band: tuple[str, str] | None = None,
    reduction: Reduction = means,
    points: bool = False,
    dash: Dash = "solid",
) -> list[PanelSeries]:
    """A metric as a series to be drawn, in a band between two others; empty where no row has it.

    Rows of a long run are drawn in groups, by `reduction`.
    """
    values = table.column(key)
    here = np.isfinite(values)
    if not here.any():
        return []
    # Over the rows that have the figure, which may be few of many.
    starts = starts_of(int(here.sum()))
    steps, drawn = means(table.steps[here], starts), reduction(values[here], starts)
    made = PanelSeries(label, steps, drawn, color, dash=dash, points=points)
    if band:
        low, high = (_band(table.column(bound)[here], starts) for bound in band)
        made = made._replace(band=(low, high))
    return [made]


def _band(values: Column, starts: Any) -> Column:
    """Means of groups; a group with a missing value has no band."""
    known = np.isfinite(values)
    # `reduceat` has no variant that leaves out NaN.
    filled = means(np.where(known, values, 0.0), starts)
    return np.where(means(known.astype(float), starts) == 1.0, filled, np.nan)


def ends_of(interval: Interval, *, show: Any = figure, what: str = "95 % interval") -> str:
    """An interval in brackets, to follow its mean; empty where the ends are unknown."""
    if not math.isfinite(interval.low):
        return ""
    return f" ({what} {show(interval.low)} to {show(interval.high)})"


def html_table(
    rows: Sequence[tuple[str, ...]], header: Sequence[str] = (), *, title: str = ""
) -> str:
    """Rows of text as an HTML table below its header or title; empty without rows."""
    if not rows:
        return ""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    if title:
        head = f"<th colspan='2'>{escape(title)}</th>"
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table>{f'<tr>{head}</tr>' if head else ''}{body}</table>"
