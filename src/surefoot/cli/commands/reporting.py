"""`report`: from its parsed options to its exit code."""

import argparse
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from surefoot.cli.commands.common import emit, env_flag
from surefoot.errors import ConfigError


def report_command(options: argparse.Namespace) -> int:
    """Write a run's report."""
    from surefoot.analysis.report import report
    from surefoot.storage.checkpoint import storage
    from surefoot.storage.run_directory import RunDirectory

    path = Path(options.path)
    target = Path(options.out) if options.out else path / "report.html"
    if target.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--out {target} must end in .html: it is the page to write")
    commands = _commands(path, RunDirectory(path).config)
    made = report(path, commands=commands)
    with storage(target.parent, "writing"):
        target.parent.mkdir(parents=True, exist_ok=True)
    RunDirectory(target.parent).write(target.name, made.page)
    if options.json:
        emit({"report": str(target), **made.summary})
        return 0
    print("\n".join(made.summary["verdict"]))
    print(f"report: {target}")
    return 0


def _commands(path: Path, config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What else can be done with the run, each with the line that does it."""
    quoted = shlex.quote(str(path))
    if config.get("env_from_python") or config.get("own_networks"):
        given = "env=..." if config.get("env_from_python") else "network=..."
        return [
            ("Go on with it, in Python:", f"surefoot.resume({str(path)!r}, {given})"),
            (
                "Play it, in Python:",
                f"surefoot.load({str(path)!r}, {given}).evaluate(episodes=100)",
            ),
        ]
    flag = env_flag(str(config.get("env", "")))
    return [
        ("Go on with it, where it is not complete:", f"surefoot resume {quoted}{flag}"),
        ("See where the promise of its newest update breaks:", f"surefoot probe {quoted}{flag}"),
        ("Play its policy:", f"surefoot evaluate {quoted} --episodes 100{flag}"),
    ]
