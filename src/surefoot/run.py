"""A run directory: `config.json`, `metrics.jsonl`, `checkpoints/`; the only writer of files.

A checkpoint is a directory `step-000001234` of `arrays.safetensors` (every array of the loop's
state), `state.json` (counters and versions) and `manifest.json` (sizes and SHA-256 digests),
written aside and renamed, so that a kill leaves the old one or the new one. Reading it imports
nothing, follows no link and runs no code.
"""

import contextlib
import hashlib
import json
import math
import os
import shutil
import stat
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors.numpy
from jaxtyping import PyTree

from surefoot.errors import CheckpointError, ConfigError, StorageError

FORMAT = 1
LARGEST_JSON = 16 * 2**20
LARGEST_ARRAYS = 8 * 2**30
_PARTS = ("arrays.safetensors", "state.json")


class Checkpoint(NamedTuple):
    """One stored point of a run: its arrays by name, and its counters.

    `exact` says whether going on from here equals never having stopped.
    """

    arrays: dict[str, np.ndarray]
    iteration: int
    env_steps: int
    exact: bool
    versions: dict[str, str]


@contextlib.contextmanager
def _storage(path: Path, doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as fault:
        raise StorageError(f"{doing} {path}: {fault.strerror or fault}") from fault


def _strict_json(data: bytes, path: Path) -> Any:
    if len(data) > LARGEST_JSON:
        raise CheckpointError(f"{path} is {len(data)} bytes; no file of ours is that long")

    def refuse(word: str) -> Any:
        raise ValueError(f"{word} is not JSON")

    try:
        return json.loads(data, parse_constant=refuse)
    except (ValueError, RecursionError) as fault:
        raise CheckpointError(f"{path} is not valid JSON: {fault}") from fault


def _read(path: Path, limit: int) -> bytes:
    """The bytes of a regular file that is no link and no longer than `limit`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as fault:
        raise CheckpointError(f"{path} cannot be read: {fault.strerror}") from fault
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
        os.close(descriptor)
        raise CheckpointError(f"{path} is no plain file of at most {limit} bytes")
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _dump(value: Any) -> bytes:
    return json.dumps(value, indent=1, allow_nan=False).encode()


def name_arrays(tree: PyTree) -> dict[str, np.ndarray]:
    """The arrays of a tree by the path that leads to each."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {_name(path): np.asarray(leaf) for path, leaf in flat}


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def restore_arrays(template: PyTree, arrays: Mapping[str, np.ndarray], where: str) -> PyTree:
    """A tree like `template` (of arrays or shapes) with the named arrays in its leaves.

    Raises:
        CheckpointError: lists what is missing, left over or of another shape or dtype.
    """
    flat, structure = jax.tree_util.tree_flatten_with_path(template)
    names = [_name(path) for path, _ in flat]
    differences = [f"{name} is left over" for name in arrays if name not in names]
    for name, (_, leaf) in zip(names, flat, strict=True):
        found = arrays.get(name)
        if found is None:
            differences.append(f"{name} is missing")
        elif found.shape != leaf.shape or found.dtype != leaf.dtype:
            differences.append(
                f"{name} is {found.dtype}{list(found.shape)}, "
                f"this run needs {leaf.dtype}{list(leaf.shape)}"
            )
    if differences:
        shown = "; ".join(differences[:5]) + (" ..." if len(differences) > 5 else "")
        raise CheckpointError(
            f"{where} is of another run: {shown}; is the environment or the network another?"
        )
    return jax.tree.unflatten(structure, [jax.numpy.asarray(arrays[name]) for name in names])


def write_checkpoint(parent: Path, checkpoint: Checkpoint) -> Path:
    """Store a checkpoint under `parent`; it is there whole, or not at all.

    Raises:
        StorageError: where the disk is full or cannot be written.
    """
    target = parent / f"step-{checkpoint.env_steps:09d}"
    aside = parent / f".tmp-{os.getpid()}-{os.urandom(4).hex()}"
    arrays = {name: np.array(array, order="C") for name, array in checkpoint.arrays.items()}
    state = {
        "format": FORMAT,
        "iteration": checkpoint.iteration,
        "env_steps": checkpoint.env_steps,
        "exact": checkpoint.exact,
        "versions": checkpoint.versions,
    }
    parts = {_PARTS[0]: safetensors.numpy.save(arrays), _PARTS[1]: _dump(state)}
    files = {
        name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in parts.items()
    }
    with _storage(target, "writing"):
        aside.mkdir(parents=True)
        try:
            for name, data in parts.items():
                _write(aside / name, data)
            _write(aside / "manifest.json", _dump({"format": FORMAT, "files": files}))
            _sync_directory(aside)
            if target.exists():
                shutil.rmtree(target)
            aside.rename(target)
            _sync_directory(parent)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
    return target


def _marked_exact(path: Path) -> bool:
    """Whether a stored checkpoint says that it is exact; nothing else of it is read."""
    try:
        state = _strict_json(_read(path / _PARTS[1], LARGEST_JSON), path)
    except CheckpointError:
        return False
    return isinstance(state, dict) and state.get("exact") is True


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint: manifest first, then sizes, digests, and only then what is inside.

    Raises:
        CheckpointError: where anything is missing, altered, of a newer format or not ours.
    """
    if path.is_symlink():
        raise CheckpointError(f"{path} is a link; a checkpoint is a directory of its own")
    manifest = _strict_json(_read(path / "manifest.json", LARGEST_JSON), path / "manifest.json")
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise CheckpointError(f"{path / 'manifest.json'} is not a manifest of ours")
    if manifest.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {manifest.get('format')!r}, this surefoot reads {FORMAT}; "
            "install the version that wrote it"
        )
    parts = {}
    for name in _PARTS:
        entry = manifest["files"].get(name)
        if not isinstance(entry, dict):
            raise CheckpointError(f"{path / 'manifest.json'} does not list {name}")
        data = _read(path / name, LARGEST_ARRAYS)
        if len(data) != entry.get("size"):
            raise CheckpointError(
                f"{path / name} has {len(data)} bytes, its manifest says {entry.get('size')}"
            )
        if hashlib.sha256(data).hexdigest() != entry.get("sha256"):
            raise CheckpointError(f"{path / name} differs from its SHA-256 digest: it was altered")
        parts[name] = data
    state = _strict_json(parts["state.json"], path / "state.json")
    try:
        arrays = safetensors.numpy.load(parts["arrays.safetensors"])
        return Checkpoint(
            arrays,
            int(state["iteration"]),
            int(state["env_steps"]),
            bool(state["exact"]),
            {str(key): str(value) for key, value in state["versions"].items()},
        )
    except Exception as fault:
        raise CheckpointError(f"{path} cannot be read: {fault}") from fault


class RunDirectory:
    """The files of one run."""

    def __init__(self, path: Path):
        self.path = path

    @classmethod
    def create(cls, path: Path, config: Mapping[str, Any]) -> "RunDirectory":
        """A new run directory.

        Raises:
            ConfigError: where a run or anything else is there already.
            StorageError: where it cannot be written.
        """
        with _storage(path, "reading"):
            used = path.exists() and (not path.is_dir() or any(path.iterdir()))
        if used:
            raise ConfigError(
                f"{path} is used already; choose another --out, or go on with "
                f"`surefoot resume {path}`",
                name="OUT-USED",
            )
        run = cls(path)
        with _storage(path, "writing"):
            path.mkdir(parents=True, exist_ok=True)
            _write(path / "config.json", _dump(dict(config)))
        return run

    @property
    def config(self) -> dict[str, Any]:
        """What `config.json` froze.

        Raises:
            CheckpointError: where there is no run here.
        """
        file = self.path / "config.json"
        if not file.exists():
            raise CheckpointError(f"{self.path} is no run directory: it has no config.json")
        config = _strict_json(_read(file, LARGEST_JSON), file)
        if not isinstance(config, dict):
            raise CheckpointError(f"{file} is not a configuration of ours")
        return config

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one row to `metrics.jsonl`."""
        with (
            _storage(self.path / "metrics.jsonl", "writing"),
            open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file,
        ):
            file.write(json.dumps(row, allow_nan=False) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """The rows of `metrics.jsonl`; a line cut short by a kill is passed over."""
        file = self.path / "metrics.jsonl"
        rows = []
        for line in file.read_bytes().splitlines() if file.exists() else ():
            with contextlib.suppress(ValueError):
                row = json.loads(line)
                if isinstance(row, dict) and isinstance(row.get("iteration"), int):
                    rows.append(row)
        return rows

    def trim(self, iteration: int, env_steps: int) -> list[dict[str, Any]]:
        """Drop the rows after an iteration, so that going on leaves no gap and no double.

        Checkpoints of later steps are set aside as `left-step-*`: they are of a course that is
        not followed. What a kill left half written goes too.
        """
        for folder in ("checkpoints", "best"):
            for later in self.checkpoints(folder):
                if int(later.name.removeprefix("step-")) > env_steps:
                    aside = later.with_name(f"left-{later.name}")
                    shutil.rmtree(aside, ignore_errors=True)
                    later.rename(aside)
        for left in (*self.path.glob(".tmp-*"), *self.path.glob("*/.tmp-*")):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        kept = [row for row in self.rows() if row["iteration"] <= iteration]
        text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in kept)
        self.write("metrics.jsonl", text)
        return kept

    def forget(self) -> None:
        """Remove a run that never reached a checkpoint; what else is here stays."""
        for name in ("config.json", "metrics.jsonl", "score.json", "wandb-id.txt"):
            (self.path / name).unlink(missing_ok=True)
        folders = (self.path / name for name in ("checkpoints", "best", "tensorboard", "wandb"))
        for left in (*self.path.glob(".tmp-*"), *folders):
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(True)
        with contextlib.suppress(OSError):  # somebody else's files are there
            self.path.rmdir()

    def write(self, name: str, text: str) -> None:
        """Write a small file whole, or leave the old one."""
        target, aside = self.path / name, self.path / f".tmp-{os.getpid()}-{name}"
        with _storage(target, "writing"):
            try:
                _write(aside, text.encode())
                aside.replace(target)
            except BaseException:
                aside.unlink(missing_ok=True)
                raise

    def read(self, name: str) -> str | None:
        """A small file's text, or None."""
        file = self.path / name
        return _read(file, LARGEST_JSON).decode() if file.exists() else None

    def checkpoints(self, folder: str = "checkpoints") -> list[Path]:
        """The stored checkpoints, oldest first."""
        parent = self.path / folder
        # Beyond nine digits a longer name is a later step, though it sorts before.
        stored = parent.glob("step-[0-9]*") if parent.is_dir() else ()
        return sorted(stored, key=lambda path: (len(path.name), path.name))

    def save(self, checkpoint: Checkpoint, *, keep: int, folder: str = "checkpoints") -> Path:
        """Store a checkpoint and remove all but the newest `keep` and the newest exact one."""
        path = write_checkpoint(self.path / folder, checkpoint)
        stored = self.checkpoints(folder)
        exact = [old for old in stored if _marked_exact(old)][-1:]
        for old in stored[:-keep]:
            if old not in exact:
                shutil.rmtree(old, ignore_errors=True)
        return path

    def newest(self, *, exact: bool = False, folder: str = "checkpoints") -> Checkpoint:
        """The newest checkpoint that reads well; with `exact`, the newest marked so.

        Warns of newer ones that are damaged.

        Raises:
            CheckpointError: where there is none; the fault of the newest one is in the message.
        """
        faults = []
        for path in reversed(self.checkpoints(folder)):
            try:
                checkpoint = read_checkpoint(path)
            except CheckpointError as fault:
                faults.append(str(fault))
                continue
            if checkpoint.exact or not exact:
                for fault in faults:
                    warnings.warn(f"{fault}; using {path.name} instead", stacklevel=2)
                return checkpoint
        kind = "exact checkpoint" if exact else "checkpoint"
        reason = f"; {faults[0]}" if faults else ""
        raise CheckpointError(f"{self.path} has no {kind} to load{reason}")


def finite_row(values: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics as plain numbers; those that are not finite (no episode ended) are left out."""
    row = {}
    for key, value in values.items():
        if isinstance(value, str):
            row[key] = value
            continue
        number = value.item() if hasattr(value, "item") else value
        if not isinstance(number, float) or math.isfinite(number):
            row[key] = number
    return row
