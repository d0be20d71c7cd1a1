"""`probe`: from its parsed options to its exit code."""

import argparse
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from surefoot.cli.commands.common import emit
from surefoot.cli.flags import add_run, whole
from surefoot.config.settings import Train
from surefoot.config.validation import limits_of
from surefoot.errors import ConfigError, StorageError
from surefoot.training.callback import Callback

SECONDS_BETWEEN_LINES = 5.0


def add_probe_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `surefoot probe`."""
    add_run(parser)
    parser.add_argument(
        "--update",
        type=whole,
        metavar="K",
        help="the update of iteration K (default: the newest with a checkpoint next to it)",
    )
    parser.add_argument(
        "--budget",
        type=whole,
        metavar="STEPS",
        help="maximum environment steps (default: 2e5, or 1e6 if JAX-native)",
    )
    parser.add_argument(
        "--replay",
        action="store_true",
        help="repeat the run from an earlier checkpoint if none is next to the update",
    )
    parser.add_argument("--seed", type=whole, default=0, help="of the fresh episodes (default: 0)")
    parser.add_argument("--plot", metavar="FILE", help="write the picture there too, as PNG")


class _Progress(Callback):
    """A progress line on stderr: rewritten on a terminal, otherwise one every few seconds."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._last = -SECONDS_BETWEEN_LINES
        self._start = time.monotonic()

    def on_message(self, text: str) -> None:
        """Print it."""
        print(text, file=sys.stderr, flush=True)

    def on_row(self, run: Any, row: dict[str, Any]) -> None:
        """Show the steps taken so far."""
        now = time.monotonic() - self._start
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
    seeds = limits_of(Train)["seed"]
    if not seeds.allow(options.seed):
        raise ConfigError(f"--seed must be {seeds.describe()}, got {options.seed}")
    plot = Path(options.plot) if options.plot else None
    # Refused now, not after all episodes were played.
    if plot and not plot.parent.is_dir():
        raise StorageError(f"--plot {plot}: no directory {plot.parent}")

    from surefoot.analysis.probe.api import probe_run
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
    record, directory = found.to_dict(), RunDirectory(Path(options.path))
    name = f"update-{found.iteration:06d}"
    file = directory.folder("probe") / name
    directory.write(f"probe/{name}.json", json.dumps(record, indent=1, allow_nan=False))
    for picture in (Path(f"{file}.png"), plot):
        if picture is not None:
            found.plot(picture)
    if options.json:
        emit({"event": "probe", "files": [f"{file}.json", f"{file}.png"], **record})
    else:
        _print(options, found, file)
    return 0


def _print(options: argparse.Namespace, found: Any, file: Path) -> None:
    from surefoot.analysis.probe.text import probe_report

    print(probe_report(found))
    print(f"picture: {file}.png; figures: {file}.json")
    if found.ratio is None and found.needed is not None:
        again = f"surefoot probe {shlex.quote(options.path)} --update {found.iteration}"
        print(f"more steps: {again} --budget {found.needed.steps}")
