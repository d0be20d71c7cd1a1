"""Arrays that several processes map: actions, and the results of a step."""

import mmap
import os
import tempfile
from typing import Any, NamedTuple

import numpy as np
from gymnasium.vector.utils import create_empty_array

from surefoot.envs.group import Spaces, VectorStep, allocate_step, map_arrays

_ALIGNMENT = 64  # bytes, of every array


class StepBuffers(NamedTuple):
    """Actions and results of a step, a row per environment."""

    actions: Any
    results: VectorStep

    def rows(self, rows: range) -> "StepBuffers":
        """Rows of some of the environments, in the same memory."""
        actions, results = map_arrays(lambda leaf: leaf[rows.start : rows.stop], tuple(self))
        return StepBuffers(actions, VectorStep(*results))


class SharedBuffers:
    """Memory that several processes map by its `descriptor`; what is mapped outlives `close()`.

    It has no name in the file system that could be left behind: the last process frees it.
    """

    def __init__(self, descriptor: int | None = None):
        self.descriptor = _anonymous_file() if descriptor is None else descriptor

    def map(self, spaces: Spaces, num_envs: int) -> StepBuffers:
        """The buffers in this memory, grown to the size they need."""
        local = create_empty_array(spaces[1], n=num_envs), allocate_step(spaces[0], num_envs)
        offsets, size = [], 0

        def measure(leaf: np.ndarray) -> None:
            nonlocal size
            offsets.append(size)
            # At least one byte, since an empty file cannot be mapped.
            size += -(-max(leaf.nbytes, 1) // _ALIGNMENT) * _ALIGNMENT

        map_arrays(measure, local)
        # All processes compute the same size, so it does not matter which of them is first.
        os.ftruncate(self.descriptor, size)
        memory, starts = mmap.mmap(self.descriptor, size), iter(offsets)

        def place(leaf: np.ndarray) -> np.ndarray:
            array = np.frombuffer(memory, leaf.dtype, leaf.size, next(starts)).reshape(leaf.shape)
            array[...] = leaf
            return array

        actions, results = map_arrays(place, local)
        return StepBuffers(actions, VectorStep(*results))

    def close(self) -> None:
        """Close the file."""
        os.close(self.descriptor)


def copy_into(target: Any, values: Any) -> None:
    """Overwrite the arrays of a tree of dicts and tuples."""
    if isinstance(target, dict):
        for key, part in target.items():
            copy_into(part, values[key])
    elif isinstance(target, tuple):
        for part, value in zip(target, values, strict=True):
            copy_into(part, value)
    else:
        target[...] = values


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("surefoot")
    # Without memfd, as on macOS, a deleted file also lives as long as its descriptors.
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
