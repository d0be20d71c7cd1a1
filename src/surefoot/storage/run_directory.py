"""A run directory: `config.json`, `metrics.jsonl`, `checkpoints/`, and who may write there."""

import contextlib
import json
import math
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from surefoot.config.history import SettingsHistory, read_history
from surefoot.config.settings import Settings
from surefoot.envs.env_id import env_flag
from surefoot.errors import CheckpointError, ConfigError
from surefoot.storage.checkpoint import (
    Checkpoint,
    is_name,
    marked_exact,
    read_checkpoint,
    steps_of,
    write_checkpoint,
)
from surefoot.storage.files import LARGEST_JSON, Folder, dump, storage, strict_json
from surefoot.storage.lock import held, lock, unlock

METRICS_FILE = "metrics.jsonl"
LARGEST_METRICS = 2**31
LARGEST_FIGURE = 1e300
TEXTS = ("warnings",)
"""Entries of a row that are words; all others are numbers."""
CHECKPOINT_FOLDERS = ("checkpoints", "best", "kept")
NOT_FINITE = "not-finite.json"
ENV_ERROR_FILES = ("env-error.json", "env-error.safetensors")


def folder_name(env_id: str) -> str:
    """An environment's id as one part of a path, such as `gymnax_CartPole-v1`."""
    return re.sub(r"[^\w.-]", "_", env_id)


class RunDirectory:
    """The files of one run.

    What this process has locked is written to the directory that it locked; a run whose directory
    is replaced stops.
    """

    def __init__(self, path: str | Path):
        if not isinstance(path, str | os.PathLike) or not str(path):
            raise ConfigError(f"a run's directory must be a path, got {path!r}")
        # Absolute: an environment may change the working directory.
        self.path = Path(path).expanduser().absolute()

    @classmethod
    def create(cls, path: Path, config: Mapping[str, Any]) -> "RunDirectory":
        """A new run directory, locked.

        Raises:
            ConfigError: where a run or anything else is there already.
            StorageError: where it cannot be written, or another run is about to.
        """
        run = cls(path)
        with storage(run.path, "reading"):
            # After a mistake in an environment is corrected, the same command works again.
            if run._failed_at_once():
                run.clear()
            used = run.path.exists() and (not run.path.is_dir() or any(run.path.iterdir()))
        if used:
            if held(run.path) is None and run.has("lock"):
                lock(run.path)  # raises if another process is writing to it now
                unlock(run.path)
            raise ConfigError(
                f"{path} is used already; choose another --out, or continue with "
                f"`surefoot resume {path}{env_flag(str(config.get('env') or ''))}`",
                name="OUT-USED",
            )
        with storage(run.path, "writing"):
            run.path.mkdir(parents=True, exist_ok=True)
            lock(run.path)
            try:
                run.write("config.json", dump(dict(config)))
            except BaseException:
                run.forget()
                raise
        return run

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Folder]:
        """The directory: as it was locked by this process, or opened for now."""
        folder = held(self.path)
        if folder is not None:
            yield folder
            return
        with storage(self.path, "opening"):
            folder = Folder.open(self.path)
        with folder:
            yield folder

    def _failed_at_once(self) -> bool:
        """Whether nothing is here but an environment error before the first update."""
        if not self.has(ENV_ERROR_FILES[0]):
            return False
        with self._opened() as folder:
            return set(folder.names()) <= {"config.json", "lock", *ENV_ERROR_FILES}

    def has(self, name: str) -> bool:
        """Whether it has a file of this name."""
        if not self.path.is_dir():
            return False
        with self._opened() as folder:
            return folder.has(name)

    @property
    def config(self) -> dict[str, Any]:
        """What `config.json` holds; CheckpointError where there is no run."""
        # A `Path` has made one slash of two.
        address = re.search(r"(^|/)\w+:/", str(self.path))
        if address:
            raise CheckpointError(
                f"{str(self.path)[address.start() :].strip('/')} is an address: runs are read from "
                "directories only; fetch it yourself and check what you got",
                name="ADDRESS",
            )
        if not self.has("config.json"):
            raise CheckpointError(f"{self.path} is no run directory: it has no config.json")
        config = self.read_json("config.json")
        if not isinstance(config, dict):
            raise CheckpointError(f"{self.path / 'config.json'} is not a configuration of ours")
        return config

    @property
    def history(self) -> SettingsHistory:
        """The settings of each of its iterations; errors as in `read_history`."""
        return read_history(self.config, self.path / "config.json")

    def go_on(
        self, iteration: int, env_steps: int, settings: Settings | None = None
    ) -> list[dict[str, Any]]:
        """`trim`, and write the `settings` that the run goes on with, if others; the rows left."""
        rows = self.trim(iteration, env_steps)
        self.change_settings(iteration, settings)
        return rows

    def change_settings(self, iteration: int, settings: Settings | None) -> None:
        """Write `settings`, if any, for what comes after an iteration; forget what was for it."""
        before = self.history
        after = before.continued(iteration, settings)
        if after != before:
            self.write("config.json", dump(self.config | after.to_dict()))

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one row to `metrics.jsonl`."""
        data = (json.dumps(row, allow_nan=False) + "\n").encode()
        with storage(self.path / METRICS_FILE, "writing"), self._opened() as folder:
            folder.append(METRICS_FILE, data)

    def rows(self) -> list[dict[str, Any]]:
        """The rows of `metrics.jsonl`; what is no row of ours is passed over.

        Such as a line cut short by a kill, or a number that is none.
        """
        if not self.has(METRICS_FILE):
            return []
        with self._opened() as folder:
            lines = folder.read(METRICS_FILE, LARGEST_METRICS).splitlines()
        return [row for line in lines if (row := read_row(line)) is not None]

    def trim(self, iteration: int, env_steps: int) -> list[dict[str, Any]]:
        """Drop the rows after an iteration, so that going on leaves no gap and no double.

        Checkpoints of later steps are set aside as `left-step-*`: they are of a course that is
        not followed. What a kill left half written goes too.
        """
        kept = [row for row in self.rows() if row["iteration"] <= iteration]
        with storage(self.path, "trimming"), self._opened() as folder:
            for name in CHECKPOINT_FOLDERS:
                if folder.has_folder(name):
                    with folder.folder(name) as inner:
                        _trim(inner, env_steps)
            for name in (*ENV_ERROR_FILES, *_half_written(folder)):  # of the run that continues
                folder.remove(name)
        text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in kept)
        self.write(METRICS_FILE, text)
        return kept

    def forget(self) -> None:
        """Remove a run that never reached a checkpoint; what else is here stays."""
        files = ("config.json", METRICS_FILE, "score.json", "wandb-id.txt", NOT_FINITE, "lock")
        folders = (*CHECKPOINT_FOLDERS, "tensorboard", "wandb")
        with storage(self.path, "clearing"), self._opened() as folder:
            for name in (*files, *ENV_ERROR_FILES, *folders, *_half_written(folder)):
                folder.remove(name)
        unlock(self.path)
        with contextlib.suppress(OSError):  # other files are in it
            self.path.rmdir()

    def clear(self) -> None:
        """`forget` the run; StorageError where another process writes to it."""
        lock(self.path)
        try:
            self.forget()
        finally:
            unlock(self.path)

    def write(self, name: str, data: str | bytes) -> None:
        """Write a small file whole, or leave the old one; `name` may be in a folder of the run."""
        inner, _, last = name.rpartition("/")
        data = data.encode() if isinstance(data, str) else data
        with storage(self.path / name, "writing"), self._opened() as folder:
            if not inner:
                folder.replace(last, data)
                return
            with folder.folder(inner, create=True) as made:
                made.replace(last, data)

    def read(self, name: str, limit: int = LARGEST_JSON) -> bytes | None:
        """A file's bytes, or None where there is none; `name` may be in a folder of the run."""
        inner, _, last = name.rpartition("/")
        if not self.path.is_dir():
            return None
        with self._opened() as folder:
            if not inner:
                return folder.read(last, limit) if folder.has(last) else None
            if not folder.has_folder(inner):
                return None
            with folder.folder(inner) as made:
                return made.read(last, limit) if made.has(last) else None

    def read_json(self, name: str) -> Any:
        """The value of a small JSON file, or None where there is none."""
        data = self.read(name)
        return None if data is None else strict_json(data, self.path / name)

    def checkpoints(self, folder: str = "checkpoints") -> list[Path]:
        """The stored checkpoints, oldest first."""
        if not self.path.is_dir():
            return []
        with self._opened() as run:
            if not run.has_folder(folder):
                return []
            with run.folder(folder) as inner:
                names = [name for name in inner.names() if is_name(name)]
        # Beyond nine digits a longer name is a later step, though it sorts before.
        return [self.path / folder / name for name in sorted(names, key=lambda n: (len(n), n))]

    def save(self, checkpoint: Checkpoint, *, keep: int, folder: str = "checkpoints") -> Path:
        """Store a checkpoint and remove all but the newest `keep` and the newest exact one."""
        with (
            storage(self.path / folder, "writing"),
            self._opened() as run,
            run.folder(folder, create=True) as inner,
        ):
            path = write_checkpoint(inner, checkpoint)
            stored = self.checkpoints(folder)
            # Checkpoints that signals force are not exact, and could push out the last one that is.
            exact = [old for old in stored if marked_exact(old)][-1:]
            for old in stored[:-keep]:
                if old not in exact:
                    inner.remove(old.name)
        return path

    def newest(self, *, exact: bool = False, folder: str = "checkpoints") -> Checkpoint:
        """The newest checkpoint that reads well; with `exact`, the newest marked so.

        Warns of newer ones that are damaged. A CheckpointError has the error of the newest.
        """
        errors = []
        for path in reversed(self.checkpoints(folder)):
            try:
                checkpoint = read_checkpoint(path)
            except CheckpointError as error:
                errors.append(str(error))
                continue
            if checkpoint.exact or not exact:
                for error in errors:
                    warnings.warn(f"{error}; using {path.name} instead", stacklevel=2)
                return checkpoint
        kind = "exact checkpoint" if exact else "checkpoint"
        reason = f"; {errors[0]}" if errors else ""
        raise CheckpointError(f"{self.path} has no {kind} to load{reason}")


def _half_written(folder: Folder) -> list[str]:
    """What a kill left."""
    return [name for name in folder.names() if name.startswith(".tmp-")]


def _trim(folder: Folder, env_steps: int) -> None:
    """Set the checkpoints of later steps aside."""
    for name in folder.names():
        if is_name(name) and steps_of(Path(name)) > env_steps:
            folder.remove(f"left-{name}")
            folder.rename(name, f"left-{name}")
    for name in _half_written(folder):
        folder.remove(name)


def read_row(line: bytes) -> dict[str, Any] | None:
    """A line of `metrics.jsonl`, or None where it is no row of ours."""
    try:
        row = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict):
        return None
    counters = [row.get(name) for name in ("iteration", "env_steps")]
    if not all(type(count) is int and 0 <= count < 2**63 for count in counters):
        return None
    # A figure of another type is left out, as if it had not been measured.
    return {name: value for name, value in row.items() if _is_figure(name, value)}


def _is_figure(name: str, value: Any) -> bool:
    if name in TEXTS:
        return isinstance(value, str)
    # Compared, not converted: a whole number of 400 digits has no float.
    return type(value) in (float, int) and abs(value) < LARGEST_FIGURE


def finite_row(values: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics as plain numbers; those that are not finite (no episode ended) are left out."""
    plain = {key: x.item() if hasattr(x, "item") else x for key, x in values.items()}
    return {key: x for key, x in plain.items() if not isinstance(x, float) or math.isfinite(x)}
