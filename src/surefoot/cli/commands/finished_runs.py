"""The commands `report`, `export` and `replay`, which read a finished run."""

import argparse
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from surefoot.cli.commands.common import emit, env_flag
from surefoot.cli.flags import add_run
from surefoot.errors import ConfigError, printable


def add_report_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `surefoot report`."""
    parser.add_argument("path", metavar="RUN")
    parser.add_argument("--out", metavar="FILE", help="the page (default RUN/report.html)")


def add_export_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `surefoot export`."""
    add_run(parser, best=True)
    parser.add_argument("file", metavar="FILE", help="the file to write, such as policy.npz")


def add_replay_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `surefoot replay`."""
    add_run(parser)


def report_command(options: argparse.Namespace) -> int:
    """Write one page that shows how a run went."""
    from surefoot.analysis.report import report
    from surefoot.storage.checkpoint import storage
    from surefoot.storage.run_directory import RunDirectory

    path = Path(options.path)
    target = Path(options.out) if options.out else path / "report.html"
    if target.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--out {target} must end in .html")
    made = report(path, commands=_commands(path, RunDirectory(path).config))
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
    """Next steps with the run: a purpose and a line each."""
    if config.get("env_from_python") or config.get("own_networks"):
        run, given = repr(str(path)), "env=..." if config.get("env_from_python") else "network=..."
        return [
            ("Continue it, in Python:", f"surefoot.resume({run}, {given})"),
            ("Play it, in Python:", f"surefoot.load({run}, {given}).evaluate(episodes=100)"),
        ]
    run, flag = shlex.quote(str(path)), env_flag(str(config.get("env", "")))
    return [
        ("Continue it, if it is not finished:", f"surefoot resume {run}{flag}"),
        ("Find where the promise of its newest update breaks:", f"surefoot probe {run}{flag}"),
        ("Play its policy:", f"surefoot evaluate {run} --episodes 100{flag}"),
    ]


def export_command(options: argparse.Namespace) -> int:
    """Write a policy that needs NumPy alone."""
    from surefoot.cli.progress import say
    from surefoot.exporting.export import COMPARED, export
    from surefoot.training.run import load

    run = load(options.path, env=options.env, best=options.best)
    made = export(run, options.file)
    size = sum(leaf.size for leaf in made.arrays.values())
    if options.json:
        record = {"file": str(options.file), "numbers": size, "compared": COMPARED}
        emit({"event": "exported", **record})
    else:
        say(f"{options.file}: {size:,} numbers; {COMPARED:,} actions equal the run's")
        say(
            "play it with NumPy alone: copy surefoot/exporting/numpy_policy.py, then "
            "NumpyPolicy.load(file)(observation)"
        )
    return 0


def replay_command(options: argparse.Namespace) -> int:
    """Replay the environment error that ended a run."""
    from surefoot.cli.progress import say
    from surefoot.training.replay_error import replay

    show = (lambda text: None) if options.json else say
    error = replay(options.path, env=options.env, show=show)
    if options.debug:
        raise error
    if options.json:
        emit({"event": "replayed", "name": error.name, "message": str(error)})
    else:
        say(f"reproduced: {printable(str(error))}")
        say("--debug shows where; the environment alone, its seed and its actions are enough")
    return 0
