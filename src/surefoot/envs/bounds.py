"""Observations and rewards of a batch that are not finite, or outside their space's bounds."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from surefoot.envs.contract import subscript

FLOAT32_MAX = float(np.finfo(np.float32).max)


class NotFinite(NamedTuple):
    """The first number of a batch that is not finite: its row, its place and its value."""

    row: int
    where: str
    value: float


def all_finite(values: np.ndarray) -> bool:
    """Whether a batch is certainly finite in float32; one product tells, in half a microsecond."""
    flat = values if values.ndim == 1 else values.ravel()
    return flat.dot(flat) < FLOAT32_MAX


def find_not_finite(values: Any, where: str) -> NotFinite | None:
    """The first entry of a batch of arrays that is not finite in float32."""
    if isinstance(values, dict | tuple):
        parts = values.items() if isinstance(values, dict) else enumerate(values)
        found = (find_not_finite(part, f"{where}[{key!r}]") for key, part in parts)
        return next(filter(None, found), None)
    if not isinstance(values, np.ndarray) or values.dtype.kind != "f" or all_finite(values):
        return None
    wrong = np.argwhere(~(np.abs(values) <= FLOAT32_MAX))
    if not len(wrong):
        return None
    row, *rest = (int(i) for i in wrong[0])
    return NotFinite(row, f"{where}{subscript(rest)}", float(values[tuple(wrong[0])]))


class Outside(NamedTuple):
    """Rows of a batch outside their space; index and description of the first."""

    rows: np.ndarray
    at: tuple[int, ...]
    text: str


class Bounds:
    """The bounds of an observation space, if it has any."""

    def __init__(self, space: spaces.Space):
        self._parts = list(_bounded_parts(space))

    def outside(self, obs: Any, leading: int) -> Outside | None:
        """What is outside the bounds in a batch whose rows have `leading` axes."""
        found: Outside | None = None
        for space, where, path in self._parts:
            values = obs
            for key in path:
                values = values[key]
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
            place = tuple(int(i) for i in np.argwhere(wrong)[0])
            at, inner = place[:leading], place[leading:]
            limits = f"{space.low[inner]:.6g} to {space.high[inner]:.6g}"
            text = f"{where}{subscript(inner)} is {values[place]:.6g}, outside {limits}"
            found = Outside(rows, at, text)
        return found


def _bounded_parts(
    space: Any, where: str = "observation", path: tuple[Any, ...] = ()
) -> Iterator[tuple[Any, str, tuple[Any, ...]]]:
    """Bounded parts of a nested space, with their names and the keys to them."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        named = isinstance(space, spaces.Dict)
        for key, part in space.spaces.items() if named else enumerate(space.spaces):
            yield from _bounded_parts(part, f"{where}[{key!r}]", (*path, key))
    elif isinstance(space, spaces.Box) and _is_bounded(space):
        yield space, where, path


def _is_bounded(space: spaces.Box) -> bool:
    """Whether a Box has a bound that its dtype does not keep by itself."""
    kept: Any = np.iinfo if space.dtype.kind in "iu" else None
    low, high = (kept(space.dtype).min, kept(space.dtype).max) if kept else (-np.inf, np.inf)
    return bool(np.any(space.low > low) or np.any(space.high < high))
