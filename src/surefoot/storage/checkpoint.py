"""Checkpoints: arrays, counters and digests, written aside and renamed, read without running code.

A checkpoint is a directory `step-000001234` of `arrays.safetensors` (every array of the loop's
state), `state.json` (counters and versions) and `manifest.json` (sizes and SHA-256 digests). A kill
leaves the old one or the new one. Reading it imports nothing, follows no link and runs no code.
"""

import contextlib
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors.numpy
from jaxtyping import PyTree

from surefoot.errors import CheckpointError, StorageError

FORMAT = 1
LARGEST_JSON = 16 * 2**20
LARGEST_ARRAYS = 8 * 2**30
_PARTS = ("arrays.safetensors", "state.json")


class Checkpoint(NamedTuple):
    """One stored point of a run: its arrays by name, and its counters.

    `exact` says whether continuing from here equals never having stopped.
    """

    arrays: dict[str, np.ndarray]
    iteration: int
    env_steps: int
    exact: bool
    versions: dict[str, str]


@contextlib.contextmanager
def storage(path: Path, doing: str) -> Iterator[None]:
    """Turns what the disk refuses into a StorageError that says what was being done where."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{doing} {path}: {error.strerror or error}") from error


def strict_json(data: bytes, path: Path) -> Any:
    """JSON without NaN or infinity; CheckpointError for anything else, or more than we write."""
    if len(data) > LARGEST_JSON:
        raise CheckpointError(f"{path} is {len(data)} bytes; no file of ours is that long")

    def refuse(word: str) -> Any:
        raise ValueError(f"{word} is not JSON")

    try:
        return json.loads(data.decode(), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error


def read_file(path: Path, limit: int) -> bytes:
    """The bytes of a regular file that is no link and no longer than `limit`."""
    try:
        # Non-blocking, since opening a named pipe would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    # Of what was opened: the path may name another file by now.
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
        os.close(descriptor)
        raise CheckpointError(f"{path} is no plain file of at most {limit} bytes")
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


def write_file(path: Path, data: bytes) -> None:
    """Write and wait until the disk has it."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_file(target: Path, data: bytes) -> None:
    """Write a file whole, or leave the old one."""
    aside = target.with_name(f".tmp-{os.getpid()}-{target.name}")
    try:
        write_file(aside, data)
        aside.replace(target)
    # Ctrl-C must not leave the half-written file either.
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def dump(value: Any) -> bytes:
    """Strict JSON that a person can read."""
    return json.dumps(value, indent=1, allow_nan=False).encode()


def name_arrays(tree: PyTree) -> dict[str, np.ndarray]:
    """The arrays of a tree by the path that leads to each."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {_name(path): np.asarray(leaf) for path, leaf in flat}


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def restore_arrays(template: PyTree, arrays: Mapping[str, np.ndarray], where: str) -> PyTree:
    """A tree like `template` (of arrays or shapes) with the named arrays in its leaves.

    A CheckpointError lists what is missing, left over, or of another shape or dtype.
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


def steps_of(path: Path) -> int:
    """The environment steps after which a checkpoint was stored, by its name."""
    return int(path.name.removeprefix("step-"))


def write_checkpoint(parent: Path, checkpoint: Checkpoint) -> Path:
    """Store a checkpoint under `parent`, whole or not at all; StorageError if the disk refuses."""
    target = parent / f"step-{checkpoint.env_steps:09d}"
    aside = parent / f".tmp-{os.getpid()}-{os.urandom(4).hex()}"
    state: dict[str, Any] = {"format": FORMAT, **checkpoint._asdict()}
    # safetensors writes memory as it lies, so views and other orders are copied.
    arrays = {name: np.array(leaf, order="C") for name, leaf in state.pop("arrays").items()}
    parts = {_PARTS[0]: safetensors.numpy.save(arrays), _PARTS[1]: dump(state)}
    files = {
        name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in parts.items()
    }
    with storage(target, "writing"):
        aside.mkdir(parents=True)
        try:
            for name, data in parts.items():
                write_file(aside / name, data)
            write_file(aside / "manifest.json", dump({"format": FORMAT, "files": files}))
            # A directory's names are not on the disk merely because its files are.
            _sync_directory(aside)
            # The one that is replaced goes last: a kill can lose both only between two renames.
            replaced = aside.with_name(f"{aside.name}-replaced")
            if target.exists():
                target.rename(replaced)
            aside.rename(target)
            _sync_directory(parent)
            shutil.rmtree(replaced, ignore_errors=True)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
    return target


def marked_exact(path: Path) -> bool:
    """Whether a stored checkpoint says that it is exact; nothing else of it is read."""
    try:
        # No digest is computed, since each save asks this of every checkpoint.
        state = strict_json(read_file(path / _PARTS[1], LARGEST_JSON), path)
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
    manifest = strict_json(read_file(path / "manifest.json", LARGEST_JSON), path / "manifest.json")
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
        data = read_file(path / name, LARGEST_ARRAYS)
        if len(data) != entry.get("size"):
            raise CheckpointError(
                f"{path / name} has {len(data)} bytes, its manifest says {entry.get('size')}"
            )
        if hashlib.sha256(data).hexdigest() != entry.get("sha256"):
            raise CheckpointError(f"{path / name} differs from its SHA-256 digest: it was altered")
        parts[name] = data
    state = strict_json(parts["state.json"], path / "state.json")
    try:
        arrays = safetensors.numpy.load(parts["arrays.safetensors"])
        return Checkpoint(
            arrays,
            int(state["iteration"]),
            int(state["env_steps"]),
            bool(state["exact"]),
            {str(key): str(value) for key, value in state["versions"].items()},
        )
    # safetensors has errors of its own, and counters may be of any kind.
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
