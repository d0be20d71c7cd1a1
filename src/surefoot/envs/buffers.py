"""Arrays through which environments get actions and return steps, in one process or several."""

import mmap
import os
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from gymnasium.vector.utils import create_empty_array

_ALIGNMENT = 64  # bytes, of every array


class StepBuffers(NamedTuple):
    """Actions and results of one step, a row per environment.

    `obs` and `actions` are arrays, or dicts and tuples of them as the spaces say.
    """

    obs: Any
    actions: Any
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray

    def rows(self, first: int, count: int) -> "StepBuffers":
        """Rows of some of the environments, in the same memory."""
        parts = (map_arrays(lambda leaf: leaf[first : first + count], part) for part in self)
        return StepBuffers(*parts)


def make_buffers(of: tuple[spaces.Space, spaces.Space], num_envs: int) -> StepBuffers:
    """Buffers of `num_envs` rows for these observation and action spaces.

    A space that no network reads has none; building the network raises an error for it.
    """
    obs, actions = (create_empty_array(space, n=num_envs) for space in of)
    ends = np.zeros((2, num_envs), bool)
    return StepBuffers(obs, actions, np.zeros(num_envs), *ends)


def map_arrays(function: Callable[[np.ndarray], Any], tree: Any) -> Any:
    """A tree of dicts and tuples with its arrays mapped."""
    if isinstance(tree, dict):
        return {key: map_arrays(function, part) for key, part in tree.items()}
    if isinstance(tree, tuple):
        return tuple(map_arrays(function, part) for part in tree)
    return function(tree) if isinstance(tree, np.ndarray) else tree


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


class SharedBuffers:
    """Memory that several processes map by its `descriptor`; what is mapped outlives `close()`.

    It has no name in the file system that could be left behind: the last process frees it.
    """

    def __init__(self, descriptor: int | None = None):
        self.descriptor = _anonymous_file() if descriptor is None else descriptor

    def map(self, of: tuple[spaces.Space, spaces.Space], num_envs: int) -> StepBuffers:
        """The buffers in this memory, grown to the size they need."""
        local, offsets, size = make_buffers(of, num_envs), [], 0

        def measure(leaf: np.ndarray) -> None:
            nonlocal size
            offsets.append(size)
            size += -(-max(leaf.nbytes, 1) // _ALIGNMENT) * _ALIGNMENT

        map_arrays(measure, tuple(local))
        os.ftruncate(self.descriptor, size)
        memory, starts = mmap.mmap(self.descriptor, size), iter(offsets)

        def place(leaf: np.ndarray) -> np.ndarray:
            flat = np.frombuffer(memory, leaf.dtype, leaf.size, next(starts))
            return flat.reshape(leaf.shape)

        return StepBuffers(*map_arrays(place, tuple(local)))

    def close(self) -> None:
        """Close the file."""
        os.close(self.descriptor)


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("surefoot")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
