"""`probe`: from its parsed options to its exit code."""

import argparse
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from surefoot.cli.commands.common import emit
from surefoot.cli.flags import whole
from surefoot.config.settings import Train
from surefoot.config.validation import limits_of
from surefoot.errors import ConfigError, StorageError

SECONDS_BETWEEN_LINES = 5.0


def add_probe_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `surefoot probe`."""
    parser.add_argument("path", metavar="RUN")
    parser.add_argument(
        "--update", type=whole, metavar="K", help="the update of iteration K (default: the newest)"
    )
    parser.add_argument(
        "--budget",
        type=whole,
        metavar="STEPS",
        help="environment steps to take (default 2e5; 1e6 where the environment is JAX-native)",
    )
    parser.add_argument(
        "--replay", action="store_true", help="rebuild an update that was never kept"
    )
    parser.add_argument("--seed", type=whole, default=0, help="of the fresh episodes (default 0)")
    parser.add_argument("--env", help="the environment again, where it is a module of your own")
    parser.add_argument("--plot", metavar="FILE", help="the picture there too, as PNG")


class _Progress:
    """Says how far a probe is: a line that is written over on a terminal, else one now and then."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._last, self._start = -SECONDS_BETWEEN_LINES, time.monotonic()

    def __call__(self, steps: int, budget: int) -> None:
        now = time.monotonic() - self._start
        if now - self._last < (0.2 if self._live else SECONDS_BETWEEN_LINES):
            return
        self._last = now
        text = f"probing: {steps:,} of {budget:,} steps"
        print(f"\r{text} " if self._live else text, end="" if self._live else "\n",
              file=sys.stderr, flush=True)  # fmt: skip

    def done(self) -> None:
        """Leave the line."""
        if self._live:
            print(file=sys.stderr)


def probe_command(options: argparse.Namespace) -> int:
    """Probe one update of a run, and write what was found into the run."""
    seeds = limits_of(Train)["seed"]
    if not seeds.allow(options.seed):
        raise ConfigError(f"--seed must be {seeds.describe()}, got {options.seed}")
    plot = Path(options.plot) if options.plot else None
    if plot and not plot.parent.is_dir():
        raise StorageError(f"--plot {plot}: no directory {plot.parent}")

    from surefoot.analysis.probe.runs import probe_run
    from surefoot.analysis.probe.text import describe
    from surefoot.cli.progress import say
    from surefoot.storage.run_directory import RunDirectory

    progress = _Progress()
    found = probe_run(
        options.path,
        options.update,
        budget=options.budget,
        replay=options.replay,
        seed=options.seed,
        env=options.env,
        say=say,
        progress=progress,
    )
    progress.done()
    record = found.to_dict()
    directory = RunDirectory(Path(options.path))
    name = f"update-{found.iteration:06d}"
    folder = directory.folder("probe")
    directory.write(f"probe/{name}.json", json.dumps(record, indent=1, allow_nan=False))
    for file in (folder / f"{name}.png", plot):
        if file is not None:
            found.plot(file)
    _tell(options, record, found, describe(found), folder / name)
    return 0


def _tell(options: argparse.Namespace, record: Any, found: Any, text: str, file: Path) -> None:
    if options.json:
        emit({"event": "probe", "files": [f"{file}.json", f"{file}.png"], **record})
        return
    print(text)
    print(f"picture: {file}.png; figures: {file}.json")
    if found.ratio is None and found.needed is not None:
        again = f"surefoot probe {shlex.quote(options.path)} --update {found.iteration}"
        print(f"more steps: {again} --budget {found.needed.steps}")
