"""Checkpoints: arrays, counters and digests, written aside and renamed, read without running code.

A checkpoint is a directory `step-000001234` of `arrays.safetensors` (every array of the loop's
state), `state.json` (counters and versions) and `manifest.json` (sizes and SHA-256 digests). A kill
leaves the old one or the new one. Reading it imports nothing, follows no link and runs no code.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors.numpy
from jaxtyping import PyTree

from surefoot.errors import CheckpointError, NotFiniteError
from surefoot.storage.files import Folder, dump, storage, strict_json

FORMAT = 1
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


def name_of(env_steps: int) -> str:
    """The name of a checkpoint."""
    return f"step-{env_steps:09d}"


def is_name(name: str) -> bool:
    """Whether a checkpoint has this name; copies of one, such as `step-000000100.bak`, have not."""
    steps = name.removeprefix("step-")
    return steps.isdecimal() and steps.isascii() and name == name_of(int(steps))


def not_finite(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Names of arrays that are not finite; environments may have what they like in theirs."""
    return [
        name
        for name, array in arrays.items()
        if array.dtype.kind == "f" and not name.startswith("env/") and not np.isfinite(array).all()
    ]


def write_checkpoint(folder: Folder, checkpoint: Checkpoint) -> Path:
    """Store a checkpoint in a folder; it is there whole, or not at all.

    Raises:
        NotFiniteError: for arrays that are not finite, of which nothing is stored.
        StorageError: where the disk is full or cannot be written.
    """
    if names := not_finite(checkpoint.arrays):
        raise NotFiniteError(
            f"{', '.join(names[:5])} of the state at step {checkpoint.env_steps:,} are not finite: "
            "nothing was stored"
        )
    name = name_of(checkpoint.env_steps)
    aside = f".tmp-{os.getpid()}-{os.urandom(4).hex()}"
    # safetensors writes memory as it lies, so views and other orders are copied.
    arrays = {name: np.array(array, order="C") for name, array in checkpoint.arrays.items()}
    state = {
        "format": FORMAT,
        "iteration": checkpoint.iteration,
        "env_steps": checkpoint.env_steps,
        "exact": checkpoint.exact,
        "versions": checkpoint.versions,
    }
    parts = {_PARTS[0]: safetensors.numpy.save(arrays), _PARTS[1]: dump(state)}
    files = {
        part: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for part, data in parts.items()
    }
    parts["manifest.json"] = dump({"format": FORMAT, "files": files})
    with storage(folder.path / name, "writing"):
        try:
            with folder.folder(aside, create=True) as made:
                for part, data in parts.items():
                    made.write(part, data)
                made.sync()
            # The one that is replaced goes last: a kill can lose both only between two renames.
            replaced = f"{aside}-replaced"
            if folder.has(name):
                folder.rename(name, replaced)
            folder.rename(aside, name)
            folder.sync()
            folder.remove(replaced)
        except BaseException:
            folder.remove(aside)
            raise
    return folder.path / name


def marked_exact(path: Path) -> bool:
    """Whether a stored checkpoint says that it is exact; nothing else of it is read."""
    try:
        return read_state(path).get("exact") is True
    except CheckpointError:
        return False


def read_state(path: Path) -> Mapping[str, Any]:
    """The counters of a stored checkpoint, of which no digest is computed.

    Raises:
        CheckpointError: where they cannot be read.
    """
    with _open(path) as stored:
        state = stored.read_json(_PARTS[1])
    if not isinstance(state, dict):
        raise CheckpointError(f"{path / _PARTS[1]} has no counters of ours")
    return state


def _open(path: Path) -> Folder:
    """A checkpoint's directory, which is no link."""
    try:
        with Folder.open(path.parent) as parent:
            return parent.folder(path.name)
    except OSError as error:
        raise CheckpointError(f"{path} is a link, or no directory") from error


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint: manifest first, then sizes, digests, and only then what is inside.

    Raises:
        CheckpointError: where anything is missing, altered, not finite, of a newer format or not
            ours.
    """
    with _open(path) as stored:
        manifest = stored.read_json("manifest.json")
        if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
            raise CheckpointError(f"{path / 'manifest.json'} is not a manifest of ours")
        if manifest.get("format") != FORMAT:
            raise CheckpointError(
                f"{path} has format {manifest.get('format')!r}, this surefoot reads {FORMAT}; "
                "install the version that wrote it"
            )
        parts = {part: _read_part(stored, part, manifest["files"].get(part)) for part in _PARTS}
    state = strict_json(parts["state.json"], path / "state.json")
    try:
        arrays = safetensors.numpy.load(parts["arrays.safetensors"])
        counters = _counter(state, "iteration"), _counter(state, "env_steps")
        versions = {str(key): str(value) for key, value in state["versions"].items()}
        checkpoint = Checkpoint(arrays, *counters, state["exact"] is True, versions)
    # safetensors has errors of its own, and counters may be of any kind.
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if names := not_finite(arrays):
        raise CheckpointError(f"{path}: {', '.join(names[:5])} are not finite")
    return checkpoint


def _read_part(stored: Folder, part: str, entry: Any) -> bytes:
    if not isinstance(entry, dict):
        raise CheckpointError(f"{stored.path / 'manifest.json'} does not list {part}")
    data = stored.read(part, LARGEST_ARRAYS)
    if len(data) != entry.get("size"):
        raise CheckpointError(
            f"{stored.path / part} has {len(data)} bytes, its manifest says {entry.get('size')}"
        )
    if hashlib.sha256(data).hexdigest() != entry.get("sha256"):
        raise CheckpointError(
            f"{stored.path / part} differs from its SHA-256 digest: it was altered"
        )
    return data


def _counter(state: Mapping[str, Any], name: str) -> int:
    count = state[name]
    if type(count) is not int or not 0 <= count < 2**63:
        raise ValueError(f"{name} is {count!r}")
    return count
