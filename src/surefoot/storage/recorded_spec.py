"""What must be known of an environment, as JSON: a run is loaded without opening one."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from surefoot.errors import CheckpointError
from surefoot.types import EnvSpec

MAX_ELEMENTS = 2**25
"""Maximum size of a recorded observation or action, far beyond what any network reads."""
MAX_DEPTH = 16


class _UnknownKindError(Exception):
    """A space of a kind that has no record, such as a class of the user's."""


def record_spec(spec: EnvSpec) -> dict[str, Any] | None:
    """A spec as JSON values; None where a space is of a kind that has no record."""
    try:
        both = _record(spec.observation_space), _record(spec.action_space)
    except _UnknownKindError:
        return None
    return {
        "observation_space": both[0],
        "action_space": both[1],
        "max_episode_steps": spec.max_episode_steps,
        "masked": spec.masked,
    }


def read_spec(record: Any, env_id: str, where: str) -> EnvSpec | None:
    """The spec of host environments from its record, or None where there is no record.

    Raises:
        CheckpointError: for a record that is not of ours.
    """
    if record is None:
        return None
    try:
        limit = record["max_episode_steps"]
        if limit is not None and not (isinstance(limit, int) and limit > 0):
            raise ValueError(f"max_episode_steps is {limit!r}")
        return EnvSpec(
            env_id=env_id,
            observation_space=_read(record["observation_space"]),
            action_space=_read(record["action_space"]),
            max_episode_steps=limit,
            masked=record["masked"] is True,
            jax_native=False,
        )
    # Of any kind: the values may be of any type, and spaces check theirs by assertions.
    except Exception as error:
        raise CheckpointError(f"{where}: spaces that cannot be read: {error}") from error


def _record(space: spaces.Space) -> dict[str, Any]:
    kind = type(space)  # not `isinstance`: a subclass may be anything
    if kind is spaces.Box:
        assert isinstance(space, spaces.Box)
        low, high = _record_array(space.low), _record_array(space.high)
        return _of(space, shape=list(space.shape), dtype=str(space.dtype), low=low, high=high)
    if kind is spaces.Discrete:
        assert isinstance(space, spaces.Discrete)
        return _of(space, n=int(space.n), start=int(space.start), dtype=str(space.dtype))
    if kind is spaces.MultiDiscrete:
        assert isinstance(space, spaces.MultiDiscrete)
        nvec, start = space.nvec.tolist(), space.start.tolist()
        return _of(space, nvec=nvec, start=start, dtype=str(space.dtype))
    if kind is spaces.MultiBinary:
        assert isinstance(space, spaces.MultiBinary)
        return _of(space, n=space.n if isinstance(space.n, int) else list(space.shape))
    if kind is spaces.Dict:
        assert isinstance(space, spaces.Dict)
        if all(isinstance(key, str) for key in space.spaces):
            return _of(space, spaces={key: _record(part) for key, part in space.spaces.items()})
    if kind is spaces.Tuple:
        assert isinstance(space, spaces.Tuple)
        return _of(space, spaces=[_record(part) for part in space.spaces])
    raise _UnknownKindError


def _of(space: spaces.Space, **values: Any) -> dict[str, Any]:
    return {"kind": type(space).__name__, **values}


def _record_array(array: np.ndarray) -> Any:
    """An array as nested lists, or one number where all elements are equal."""
    flat = array.reshape(-1)
    if (flat == flat[:1]).all():
        return _record_number(flat[0].item() if flat.size else 0)
    return _record_list(array.tolist())


def _record_list(values: Any) -> Any:
    if isinstance(values, list):
        return [_record_list(value) for value in values]
    return _record_number(values)


def _record_number(value: float) -> float | str:
    # JSON has no infinity.
    return str(value) if isinstance(value, float) and math.isinf(value) else value


def _read(record: Mapping[str, Any], depth: int = 0) -> spaces.Space:
    if depth > MAX_DEPTH:
        raise ValueError("spaces within spaces without end")
    kind = record["kind"]
    if kind == "Dict":
        return spaces.Dict({key: _read(part, depth + 1) for key, part in record["spaces"].items()})
    if kind == "Tuple":
        return spaces.Tuple([_read(part, depth + 1) for part in record["spaces"]])
    return _LEAVES[kind](record)


def _read_box(record: Mapping[str, Any]) -> spaces.Box:
    shape, dtype = _read_shape(record["shape"]), np.dtype(record["dtype"])
    low, high = (_read_array(record[name], shape, dtype) for name in ("low", "high"))
    return spaces.Box(low, high, shape, dtype.type)


def _read_array(values: Any, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    if isinstance(values, str):
        values = float(values)
    # Through the widest type: text among the numbers stands for infinity.
    wide = np.int64 if dtype.kind in "iub" and dtype != np.uint64 else np.longdouble
    array = np.array(values, dtype=None if dtype == np.uint64 else wide)
    return np.broadcast_to(array, shape).astype(dtype)


def _read_shape(values: Any) -> tuple[int, ...]:
    shape = tuple(values)
    if not all(type(side) is int and side >= 0 for side in shape):
        raise ValueError(f"a shape of {values}")
    if math.prod(shape) > MAX_ELEMENTS or len(shape) > MAX_DEPTH:
        raise ValueError(f"a shape of {values}, which is too large")
    return shape


def _read_discrete(record: Mapping[str, Any]) -> spaces.Discrete:
    n, start = int(record["n"]), int(record["start"])
    return spaces.Discrete(n, start=start, dtype=np.dtype(record["dtype"]).type)


def _read_multi_discrete(record: Mapping[str, Any]) -> spaces.MultiDiscrete:
    dtype = np.dtype(record["dtype"]).type
    nvec, start = np.array(record["nvec"], dtype), np.array(record["start"], dtype)
    return spaces.MultiDiscrete(nvec, dtype=dtype, start=start)


def _read_multi_binary(record: Mapping[str, Any]) -> spaces.MultiBinary:
    n = record["n"]
    shape = _read_shape(n if isinstance(n, list) else [n])
    return spaces.MultiBinary(shape if isinstance(n, list) else shape[0])


_LEAVES: dict[str, Callable[[Mapping[str, Any]], spaces.Space]] = {
    "Box": _read_box,
    "Discrete": _read_discrete,
    "MultiDiscrete": _read_multi_discrete,
    "MultiBinary": _read_multi_binary,
}
