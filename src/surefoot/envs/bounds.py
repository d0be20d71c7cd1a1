"""Observations and rewards of a batch that are not finite, or outside their space's bounds."""

import functools
import operator
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from surefoot.envs.contract import subscript
from surefoot.errors import EnvContractError

FLOAT32_MAX = float(np.finfo(np.float32).max)


def all_finite(values: np.ndarray) -> bool:
    """Whether a batch is certainly finite in float32; one product tells, in half a microsecond."""
    flat = values if values.ndim == 1 else values.ravel()
    return flat.dot(flat) < FLOAT32_MAX


def check_finite(values: Any, where: str, index: int | None = None) -> None:
    """Raise an `EnvContractError` for the first number that is not finite in float32.

    `values` are a tree of arrays with a row per environment, or those of environment `index`.
    """
    if isinstance(values, dict | tuple):
        for key, part in values.items() if isinstance(values, dict) else enumerate(values):
            check_finite(part, f"{where}[{key!r}]", index)
    elif isinstance(values, np.ndarray) and values.dtype.kind == "f" and not all_finite(values):
        for place in map(tuple, np.argwhere(~(np.abs(values) <= FLOAT32_MAX)).tolist()):
            row, rest = (place[0], place[1:]) if index is None else (index, place)
            raise EnvContractError(f"{where}{subscript(rest)} is {values[place]}", index=row)


class Outside(NamedTuple):
    """Rows of a batch outside their space; index and description of the first."""

    rows: np.ndarray
    at: tuple[int, ...]
    text: str


class Bounds:
    """The bounds of an observation space, if it has any."""

    def __init__(self, space: spaces.Space):
        self._parts = list(_bounded_parts(space, "observation", ()))

    def outside(self, obs: Any, leading: int) -> Outside | None:
        """What is outside the bounds in a batch whose rows have `leading` axes."""
        found: Outside | None = None
        for space, where, path in self._parts:
            values = functools.reduce(operator.getitem, path, obs)
            low, high = space.low, space.high
            if values.dtype.kind == "f":  # rounded as the values are, which may lie on a bound
                low, high = low.astype(values.dtype), high.astype(values.dtype)
            wrong = (values < low) | (values > high)
            if not wrong.any():
                continue
            rows = wrong.reshape(*values.shape[:leading], -1).any(-1)
            if found is not None:
                found = found._replace(rows=found.rows | rows)
                continue
            place = tuple(np.argwhere(wrong)[0].tolist())
            at, inner = place[:leading], place[leading:]
            limits = f"{space.low[inner]:.6g} to {space.high[inner]:.6g}"
            text = f"{where}{subscript(inner)} is {values[place]:.6g}, outside {limits}"
            found = Outside(rows, at, text)
        return found


def _bounded_parts(
    space: Any, where: str, path: tuple[Any, ...]
) -> Iterator[tuple[spaces.Box, str, tuple[Any, ...]]]:
    """Boxes of a nested space with bounds that their dtype does not keep by itself.

    Each comes with its name and the keys that lead to it.
    """
    if isinstance(space, spaces.Dict | spaces.Tuple):
        named = isinstance(space, spaces.Dict)
        for key, part in space.spaces.items() if named else enumerate(space.spaces):
            yield from _bounded_parts(part, f"{where}[{key!r}]", (*path, key))
    elif isinstance(space, spaces.Box):
        dtype: Any = space.dtype
        own = (np.iinfo(dtype).min, np.iinfo(dtype).max) if dtype.kind in "iu" else None
        low, high = own or (-np.inf, np.inf)
        if np.any(space.low > low) or np.any(space.high < high):
            yield space, where, path
