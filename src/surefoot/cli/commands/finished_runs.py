"""The commands `probe`, `report`, `export` and `replay`, which read a finished run."""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from surefoot.cli.commands.common import (
    SECONDS_BETWEEN_LINES,
    check_seed,
    emit,
    picture_file,
    say,
)
from surefoot.cli.flags import add_run, whole
from surefoot.envs.env_id import env_flag
from surefoot.errors import ConfigError, printable
from surefoot.training.callback import Callback


def add_report_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `surefoot report`."""
    parser.add_argument("path", metavar="RUN")
    parser.add_argument("--out", metavar="FILE", help="the page (default RUN/report.html)")


def add_export_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `surefoot export`."""
    add_run(parser, best=True)
    parser.add_argument("file", metavar="FILE", help="the file to write, such as policy.npz")


def add_probe_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `surefoot probe`."""
    add_run(parser)
    add = parser.add_argument
    text = "the update of iteration K (default: that of most promise with a checkpoint next to it)"
    add("--update", type=whole, metavar="K", help=text)
    text = "environment steps to spend, about (default: 2e5, or 1e6 if JAX-native)"
    add("--budget", type=whole, metavar="STEPS", help=text)
    text = "repeat the run from an earlier checkpoint if none is next to the update"
    add("--replay", action="store_true", help=text)
    add("--seed", type=whole, default=0, help="of the fresh episodes (default: 0)")
    add("--plot", metavar="FILE", help="write the picture there too, as PNG")


class _Progress(Callback):
    """A progress line on stderr: rewritten on a terminal, otherwise one every few seconds."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._last = -SECONDS_BETWEEN_LINES
        self._start = time.monotonic()

    def on_message(self, text: str) -> None:
        """Print it."""
        say(text)

    def on_row(self, run: Any, row: dict[str, Any]) -> None:
        """Show the steps taken so far."""
        now = time.monotonic() - self._start
        # A terminal can be rewritten often; a log would fill up.
        if now - self._last < (0.2 if self._live else SECONDS_BETWEEN_LINES):
            return
        self._last = now
        text = f"probing: {row['env_steps']:,} of {row['budget']:,} steps"
        start, end = ("\r", " ") if self._live else ("", "\n")
        print(f"{start}{text}", end=end, file=sys.stderr, flush=True)

    def on_end(self, run: Any) -> None:
        """Leave the line."""
        if self._live:
            print(file=sys.stderr)


def probe_command(options: argparse.Namespace) -> int:
    """Measure one update of a run on fresh episodes."""
    check_seed(options.seed)
    plot = picture_file(options.plot) if options.plot else None

    from surefoot.analysis.probe.api import probe_run
    from surefoot.analysis.probe.result import probe_report
    from surefoot.storage.files import replace_file
    from surefoot.storage.run_directory import RunDirectory

    found = probe_run(
        options.path,
        options.update,
        budget=options.budget,
        replay=options.replay,
        seed=options.seed,
        env=options.env,
        callback=_Progress(),
    )
    record, directory = found.to_dict(), RunDirectory(options.path)
    name = f"update-{found.iteration:06d}"
    file, picture = directory.path / "probe" / name, found.picture()
    directory.write(f"probe/{name}.json", json.dumps(record, indent=1, allow_nan=False))
    directory.write(f"probe/{name}.png", picture)
    if plot is not None:
        replace_file(plot, picture)
    if options.json:
        emit({"event": "probe", "files": [f"{file}.json", f"{file}.png"], **record})
        return 0
    print(probe_report(found))
    print(f"picture: {file}.png; figures: {file}.json")
    if found.ratio is None and found.worthwhile is not None:
        again = f"surefoot probe {shlex.quote(options.path)} --update {found.iteration}"
        print(f"more steps: {again} --budget {found.worthwhile.steps}")
    return 0


def report_command(options: argparse.Namespace) -> int:
    """Write one page that shows how a run went."""
    from surefoot.analysis.report import report
    from surefoot.storage.files import replace_file, storage
    from surefoot.storage.run_directory import RunDirectory

    path = Path(options.path)
    target = Path(options.out) if options.out else path / "report.html"
    if target.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--out {target} must end in .html")
    made = report(path, commands=_commands(path, RunDirectory(path).config))
    with storage(target.parent, "writing"):
        target.parent.mkdir(parents=True, exist_ok=True)
    replace_file(target, made.page.encode())
    if options.json:
        emit({"report": str(target), **made.summary})
        return 0
    print("\n".join(made.summary["verdict"]))
    print(f"report: {target}")
    return 0


def _commands(path: Path, config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Next steps with the run: a purpose and a line each."""
    # A command line cannot name what was given as an object.
    if config.get("env_from_python") or config.get("own_networks"):
        run, given = repr(str(path)), "env=..." if config.get("env_from_python") else "network=..."
        return [
            ("Continue it, in Python:", f"surefoot.resume({run}, {given})"),
            ("Play it, in Python:", f"surefoot.load({run}, {given}).evaluate(episodes=100)"),
        ]
    run, flag = shlex.quote(str(path)), env_flag(str(config.get("env", "")))
    return [
        ("Continue it, if it is not finished:", f"surefoot resume {run}{flag}"),
        ("Find where the promise of an update breaks:", f"surefoot probe {run}{flag}"),
        ("Play its policy:", f"surefoot evaluate {run} --episodes 100{flag}"),
    ]


def export_command(options: argparse.Namespace) -> int:
    """Write a policy that needs NumPy alone."""
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
    from surefoot.training.replay_error import replay

    show = (lambda text: None) if options.json else say
    error = replay(options.path, env=options.env, show=show)
    if options.debug:
        # With its traceback, which leads into the environment.
        raise error
    if options.json:
        emit({"event": "replayed", "name": error.name, "message": str(error)})
    else:
        say(f"reproduced: {printable(str(error))}")
        say("--debug shows where; the environment alone, its seed and its actions are enough")
    return 0
