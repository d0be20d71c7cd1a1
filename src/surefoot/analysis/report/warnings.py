"""The warnings of a run, on a timeline and in a table."""

import numpy as np

from surefoot.analysis.plots.report import RaisedWarning
from surefoot.analysis.report.section import Section, html_table, section
from surefoot.analysis.report.table import Table
from surefoot.diagnostics.warnings import ALARMS

LEVELS = ("red", "amber", "green", "")
_HEADER = ("warning", "level", "raised", "first and last at", "meaning", "what to do")


def raised_warnings(table: Table) -> list[RaisedWarning]:
    """Every warning that was raised, the worst level first, then in the order of the run."""
    steps: dict[str, list[float]] = {}
    for step, names in zip(table.steps, table.warnings, strict=True):
        for name in names:
            steps.setdefault(name, []).append(float(step))
    found = [
        RaisedWarning(name, ALARMS[name].level if name in ALARMS else "", np.array(at))
        for name, at in steps.items()
    ]
    return sorted(found, key=lambda each: LEVELS.index(each.level))


def warnings_section(raised: list[RaisedWarning]) -> Section:
    """The warnings that were raised, when, and what to do about each."""
    if not raised:
        return section("warnings", "No warning was raised.")._replace(level="green", meaning="")
    frequent = sorted(raised, key=lambda each: -len(each.steps))[:3]
    most = ", ".join(f"{each.name} ({len(each.steps)} times)" for each in frequent)
    finding = f"{len(raised)} kinds of warnings were raised; most often {most}."
    if len(raised) == 1:
        finding = f"One kind of warning was raised: {most}."
    rows = []
    for each in raised:
        alarm, count = ALARMS.get(each.name), f"{len(each.steps)} times"
        about = ("not known to this version of surefoot", "")
        if alarm is not None:
            about = (alarm.what, alarm.remedy)
        when = f"{each.steps[0]:,.0f} and {each.steps[-1]:,.0f} steps"
        rows.append((each.name, each.level or "unknown here", count, when, *about))
    worst, remedy = raised[0], rows[0][-1]
    return section("warnings", finding)._replace(
        level=worst.level,
        advice=f"{worst.name}: {remedy}" if remedy else "",
        extra=html_table(rows, _HEADER),
    )
