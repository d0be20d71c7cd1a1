"""A run directory: `config.json`, `metrics.jsonl`, `checkpoints/`, and who may write there."""

import contextlib
import json
import math
import os
import re
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from surefoot.errors import CheckpointError, ConfigError
from surefoot.storage.checkpoint import (
    LARGEST_JSON,
    Checkpoint,
    dump,
    marked_exact,
    read_checkpoint,
    read_file,
    replace_file,
    steps_of,
    storage,
    strict_json,
    write_checkpoint,
    write_file,
)
from surefoot.storage.lock import lock, unlock

NOT_FINITE = "not-finite.json"
ENV_ERROR_FILES = ("env-error.json", "env-error.safetensors")


def folder_name(env_id: str) -> str:
    """An environment's id as one part of a path, such as `gymnax_CartPole-v1`."""
    return re.sub(r"[^\w.-]", "_", env_id)


class RunDirectory:
    """The files of one run."""

    def __init__(self, path: Path):
        self.path = path

    @classmethod
    def create(cls, path: Path, config: Mapping[str, Any]) -> "RunDirectory":
        """A new run directory, locked.

        Raises:
            ConfigError: where a run or anything else is there already.
            StorageError: where it cannot be written, or another run is about to.
        """
        run = cls(path)
        with storage(path, "reading"):
            # After a mistake in an environment is corrected, the same command works again.
            if run._failed_at_once():
                run.clear()
            used = path.exists() and (not path.is_dir() or any(path.iterdir()))
        if used:
            raise ConfigError(
                f"{path} is used already; choose another --out, or continue with "
                f"`surefoot resume {path}`",
                name="OUT-USED",
            )
        with storage(path, "writing"):
            path.mkdir(parents=True, exist_ok=True)
            lock(path)
            try:
                write_file(path / "config.json", dump(dict(config)))
            except BaseException:
                run.forget()
                raise
        return run

    def _failed_at_once(self) -> bool:
        """Whether nothing is here but an environment error before the first update."""
        ours = {"config.json", "lock", *ENV_ERROR_FILES}
        if not (self.path / ENV_ERROR_FILES[0]).is_file():
            return False
        return {path.name for path in self.path.iterdir()} <= ours

    @property
    def config(self) -> dict[str, Any]:
        """What `config.json` froze; CheckpointError where there is no run."""
        file = self.path / "config.json"
        # A `Path` has made one slash of two.
        if "://" in str(self.path) or re.match(r"\w+:/", str(self.path)):
            raise CheckpointError(
                f"{self.path} is an address: runs are read from directories only; fetch it "
                "yourself and check what you got",
                name="ADDRESS",
            )
        if not file.exists():
            raise CheckpointError(f"{self.path} is no run directory: it has no config.json")
        config = strict_json(read_file(file, LARGEST_JSON), file)
        if not isinstance(config, dict):
            raise CheckpointError(f"{file} is not a configuration of ours")
        return config

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one row to `metrics.jsonl`."""
        file = self.path / "metrics.jsonl"
        # Not through a link, by which a run would write outside its directory.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        with storage(file, "writing"), os.fdopen(os.open(file, flags, 0o644), "a") as rows:
            rows.write(json.dumps(row, allow_nan=False) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """The rows of `metrics.jsonl`; a line cut short by a kill is passed over."""
        file = self.path / "metrics.jsonl"
        rows = []
        for line in file.read_bytes().splitlines() if file.exists() else ():
            with contextlib.suppress(ValueError, RecursionError):
                row = json.loads(line.decode())
                if isinstance(row, dict) and isinstance(row.get("iteration"), int):
                    rows.append(row)
        return rows

    def trim(self, iteration: int, env_steps: int) -> list[dict[str, Any]]:
        """Drop the rows after an iteration, so that going on leaves no gap and no double.

        Checkpoints of later steps are set aside as `left-step-*`: they are of a course that is
        not followed. What a kill left half written goes too.
        """
        for folder in ("checkpoints", "best", "kept"):
            for later in self.checkpoints(folder):
                if steps_of(later) > env_steps:
                    aside = later.with_name(f"left-{later.name}")
                    shutil.rmtree(aside, ignore_errors=True)
                    later.rename(aside)
        for name in ENV_ERROR_FILES:  # of the run that continues
            (self.path / name).unlink(missing_ok=True)
        # Files behind a link are not ours to remove.
        inner = (left for left in self.path.glob("*/.tmp-*") if not left.parent.is_symlink())
        for left in (*self.path.glob(".tmp-*"), *inner):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        kept = [row for row in self.rows() if row["iteration"] <= iteration]
        text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in kept)
        self.write("metrics.jsonl", text)
        return kept

    def forget(self) -> None:
        """Remove a run that never reached a checkpoint; what else is here stays."""
        files = ("config.json", "metrics.jsonl", "score.json", "wandb-id.txt", NOT_FINITE, "lock")
        for name in files + ENV_ERROR_FILES:
            (self.path / name).unlink(missing_ok=True)
        kept = ("checkpoints", "best", "kept", "tensorboard", "wandb")
        folders = (self.path / name for name in kept)
        for left in (*self.path.glob(".tmp-*"), *folders):
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(True)
        unlock(self.path)
        with contextlib.suppress(OSError):  # other files are in it
            self.path.rmdir()

    def clear(self) -> None:
        """`forget` the run; StorageError where another process writes to it."""
        lock(self.path)
        try:
            with storage(self.path, "clearing"):
                self.forget()
        finally:
            unlock(self.path)

    def write(self, name: str, text: str | bytes) -> None:
        """Write a small file whole, or leave the old one."""
        target = self.path / name
        with storage(target, "writing"):
            replace_file(target, text.encode() if isinstance(text, str) else text)

    def folder(self, name: str) -> Path:
        """A folder of the run for what was made of it later, there from now on."""
        path = self.path / name
        with storage(path, "making"):
            path.mkdir(exist_ok=True)
        return path

    def read(self, name: str) -> str | None:
        """A small file's text, or None."""
        file = self.path / name
        return read_file(file, LARGEST_JSON).decode() if file.exists() else None

    def checkpoints(self, folder: str = "checkpoints") -> list[Path]:
        """The stored checkpoints, oldest first."""
        parent = self.path / folder
        # Beyond nine digits a longer name is a later step, though it sorts before.
        own = parent.is_dir() and not parent.is_symlink()
        stored = parent.glob("step-[0-9]*") if own else ()
        return sorted(stored, key=lambda path: (len(path.name), path.name))

    def save(self, checkpoint: Checkpoint, *, keep: int, folder: str = "checkpoints") -> Path:
        """Store a checkpoint and remove all but the newest `keep` and the newest exact one."""
        path = write_checkpoint(self.path / folder, checkpoint)
        stored = self.checkpoints(folder)
        # Checkpoints that signals force are not exact, and could push out the last one that is.
        exact = [old for old in stored if marked_exact(old)][-1:]
        for old in stored[:-keep]:
            if old not in exact:
                shutil.rmtree(old, ignore_errors=True)
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


def finite_row(values: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics as plain numbers; those that are not finite (no episode ended) are left out."""
    plain = {key: x.item() if hasattr(x, "item") else x for key, x in values.items()}
    return {key: x for key, x in plain.items() if not isinstance(x, float) or math.isfinite(x)}
