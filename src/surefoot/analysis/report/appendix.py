"""The newest probe of a run, its settings, and the commands that go on from here."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from surefoot.analysis.report.section import Facts, Section, told
from surefoot.config.settings import non_default
from surefoot.config.validation import shown
from surefoot.errors import CheckpointError
from surefoot.storage.checkpoint import LARGEST_JSON, read_file, strict_json

LARGEST_PICTURE = 2**20
"""Bytes above which a probe's picture is named and not put into the page."""
PNG = b"\x89PNG\r\n\x1a\n"


class Probe(NamedTuple):
    """A stored probe: what its JSON says, and its picture, as far as either is there."""

    name: str
    record: Mapping[str, Any]
    picture: bytes | None


def newest_probe(run: Path) -> Probe | None:
    """The probe that was written last, or None; what is damaged is missing."""
    stored = [file for end in ("json", "png") for file in run.glob(f"probe/update-*.{end}")]
    if not stored:
        return None
    newest = max(stored, key=lambda file: (file.lstat().st_mtime, file.name)).with_suffix("")
    record, picture = {}, None
    try:
        file = newest.with_suffix(".json")
        read = strict_json(read_file(file, LARGEST_JSON), file)
        record = read if isinstance(read, dict) else {}
    except CheckpointError:
        pass
    try:
        data = read_file(newest.with_suffix(".png"), LARGEST_PICTURE)
        picture = data if data.startswith(PNG) else None
    except CheckpointError:
        pass
    return Probe(newest.name, record, picture)


def probe_section(probe: Probe | None) -> Section:
    """The newest probe, or how to make one."""
    name, title = "probe", "Newest probe"
    if probe is None:
        return Section(
            name,
            title,
            "",
            "No update of this run has been probed.",
            "",
            "A probe plays fresh episodes along one update and shows where its promise breaks; the "
            "command is at the end of this page.",
        )
    number = probe.name.removeprefix("update-").lstrip("0")
    said = [f"Update {number} was probed with fresh episodes of the old and the new policy."]
    verdict = probe.record.get("verdict")
    sentences = verdict if isinstance(verdict, list) else [verdict]
    said += [each for each in sentences if isinstance(each, str)]
    if probe.picture is None:
        extra = (
            "<p>Its picture is not in this page; look into the run's folder probe/ for "
            f"{escape(probe.name)}.png.</p>"
        )
    else:
        data = base64.b64encode(probe.picture).decode()
        extra = f'<img alt="what the probe found" src="data:image/png;base64,{data}">'
    rows = "".join(
        f"<tr><td>{escape(str(key))}</td><td>{escape(_cell(value))}</td></tr>"
        for key, value in probe.record.items()
        if isinstance(value, int | float | str) and key != "verdict"
    )
    meaning = (
        "Left, what the update promised on its own batch, what it promised on fresh data of the "
        "old policy, and what it realised; the first gap is noise, the second moved visits. Right, "
        "the same along the update, before and beyond the step that was taken."
    )
    return Section(name, title, "", " ".join(said), "", meaning, extra=extra + _table(rows))


def _cell(value: float | str) -> str:
    return told(value) if isinstance(value, float) else str(value)


def _table(rows: str, head: str = "") -> str:
    return f"<table>{head}{rows}</table>" if rows else ""


def settings_section(facts: Facts, commands: Sequence[tuple[str, str]]) -> Section:
    """Settings, those unlike the defaults first; versions; commands."""
    unlike = non_default(facts.settings)
    finding = f"Unlike the library's defaults: {', '.join(unlike)}." if unlike else ""
    finding = finding or "Every setting is the library's default."
    extra = "<h3>Go on from here</h3>" + "".join(
        f"<p>{escape(what)}</p><pre>{escape(command)}</pre>" for what, command in commands
    )
    tables = facts.settings.to_dict()
    about = ("env", "env_kwargs", "preset", "observation_space", "action_space")
    tables["run"] = {key: facts.config.get(key, "not recorded") for key in about}
    versions = facts.config.get("versions")
    tables["versions"] = versions if isinstance(versions, Mapping) else {}
    extra += "<h3>All settings</h3><div class='settings'>"
    for section in ("run", "rule", "train", "network", "critic", "versions"):
        rows = "".join(
            f"<tr><td>{escape(str(name))}</td><td>{escape(shown(value))}</td></tr>"
            for name, value in tables[section].items()
        )
        extra += _table(rows, f"<tr><th colspan='2'>{section}</th></tr>")
    return Section("settings", "Settings", "", finding, "", "", extra=extra + "</div>")
