"""The warnings of a run, its newest probe, its settings, and commands to continue with."""

import contextlib
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from surefoot.analysis.plots.report import RaisedWarning
from surefoot.analysis.report.section import Facts, Section, html_table, section
from surefoot.analysis.report.table import Table
from surefoot.analysis.text import data_url, figure
from surefoot.config.settings import GROUPS, non_default
from surefoot.config.validation import shown
from surefoot.diagnostics.warnings import ALARMS
from surefoot.errors import CheckpointError
from surefoot.storage.run_directory import RunDirectory

LARGEST_PICTURE = 2**20
"""Bytes above which a probe's figure is named instead of embedded."""
PNG = b"\x89PNG\r\n\x1a\n"
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
    # Sorting is stable, so that warnings of one level keep the order of the run.
    return sorted(found, key=lambda each: LEVELS.index(each.level))


def warnings_section(raised: list[RaisedWarning]) -> Section:
    """The warnings that were raised, when, and what to do about each."""
    if not raised:
        return section("warnings", "No warning was raised.")._replace(level="green", meaning="")
    frequent = sorted(raised, key=lambda each: -len(each.steps))[:3]
    most = ", ".join(f"{each.name} ({_times(each)})" for each in frequent)
    finding = f"{len(raised)} kinds of warnings were raised; most often {most}."
    if len(raised) == 1:
        finding = f"One kind of warning was raised: {most}."
    rows = []
    for each in raised:
        alarm, count = ALARMS.get(each.name), _times(each)
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


def _times(raised: RaisedWarning) -> str:
    return "once" if len(raised.steps) == 1 else f"{len(raised.steps)} times"


class StoredProbe(NamedTuple):
    """A probe's JSON and its figure, as far as they are readable."""

    name: str
    record: Mapping[str, Any]
    picture: bytes | None


def newest_probe(run: Path) -> StoredProbe | None:
    """The probe that was written last, or None; damaged parts are left out."""
    stored = [file for end in ("json", "png") for file in run.glob(f"probe/update-*.{end}")]
    if not stored:
        return None
    # `lstat`, as a link to nothing must not stop the report; the name decides equal times.
    newest = max(stored, key=lambda file: (file.lstat().st_mtime, file.name)).stem
    directory, record, picture = RunDirectory(run), {}, None
    with contextlib.suppress(CheckpointError):
        read = directory.read_json(f"probe/{newest}.json")
        record = read if isinstance(read, dict) else {}
    with contextlib.suppress(CheckpointError):
        data = directory.read(f"probe/{newest}.png", LARGEST_PICTURE) or b""
        picture = data if data.startswith(PNG) else None
    return StoredProbe(newest, record, picture)


def probe_section(probe: StoredProbe | None) -> Section:
    """The newest probe, or how to make one."""
    if probe is None:
        return section("probe", "No update of this run has been probed.")._replace(
            meaning="A probe plays fresh episodes along one update and shows where its promise "
            "breaks; the command is at the end of this page."
        )
    number = probe.name.removeprefix("update-").lstrip("0")
    sentences = [f"Update {number} was probed with fresh episodes of the old and the new policy."]
    # The file may be edited or of another version: only text is taken from it.
    verdict = probe.record.get("verdict")
    verdict = verdict if isinstance(verdict, list) else [verdict]
    sentences += [_sentence(each) for each in verdict if isinstance(each, str) and each]
    extra = f"<p>Its figure is not in this page; see probe/{escape(probe.name)}.png.</p>"
    if probe.picture is not None:
        source = data_url("png", probe.picture)
        extra = f'<img alt="result of the probe" src="{source}">'
    rows = [
        (str(key), figure(value) if isinstance(value, float) else str(value))
        for key, value in probe.record.items()
        if isinstance(value, int | float | str) and key != "verdict"
    ]
    return section("probe", " ".join(sentences))._replace(extra=extra + html_table(rows))


def _sentence(line: str) -> str:
    """A line of a list as a sentence of a paragraph."""
    # `capitalize` would also change all other letters.
    return f"{line[0].upper()}{line[1:].rstrip('.')}."


def settings_section(facts: Facts, commands: Sequence[tuple[str, str]]) -> Section:
    """Settings, non-default ones first; versions; commands."""
    unlike = non_default(facts.settings)
    finding = "Every setting has its default value."
    if unlike:
        finding = f"Non-default settings: {', '.join(unlike)}."
    about = ("env", "env_kwargs", "observation_space", "action_space")
    versions = facts.config.get("versions")
    tables = {"run": {key: facts.config.get(key, "not recorded") for key in about}}
    tables |= {key: facts.settings.to_dict()[key] for key in GROUPS}
    tables["versions"] = versions if isinstance(versions, dict) else {}
    extra = "<h3>Next steps</h3>" + "".join(
        f"<p>{escape(what)}</p><pre>{escape(command)}</pre>" for what, command in commands
    )
    extra += "<h3>All settings</h3><div class='settings'>"
    for title, entries in tables.items():
        rows = [(str(name), shown(value)) for name, value in entries.items()]
        extra += html_table(rows, title=title)
    return section("settings", finding)._replace(extra=extra + "</div>")
