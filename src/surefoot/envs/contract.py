"""What environments must return, validated at every reset and step."""

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from surefoot.envs.env_errors import subscript
from surefoot.envs.offsets import OffsetCheck, loses_digits
from surefoot.errors import EnvContractError

FLOAT32_MAX = float(np.finfo(np.float32).max)
TRUTHS = frozenset((bool, np.bool_))
NUMBERS = frozenset((float, int, np.float64, np.float32))
"""Types of nearly all ends and rewards; others are validated more closely."""
_TRUTHS = (bool, np.bool_, int, np.integer)
_NUMBERS = (bool, int, float, np.bool_, np.integer, np.floating)


class ObsContract:
    """Validates observations of one environment, or of `num_rows` at once, against their space.

    One that does not `warn` is beside another that does.
    """

    def __init__(self, space: spaces.Space, num_rows: int | None = None, *, warn: bool = True):
        self._space, self._warned = space, not warn
        self._leading = () if num_rows is None else (num_rows,)
        self._offsets = OffsetCheck(space, num_rows or 1) if warn else None
        plain = _dtype_suffices(space)
        self._quick = ((*self._leading, *(space.shape or ())), space.dtype) if plain else None
        self._plain = None if warn and plain and loses_digits(space.dtype) else self._quick

    def __call__(self, obs: Any) -> Any:
        """The observation, with its space's structure, shapes and dtypes, or an EnvContractError.

        Other dtypes whose values fit are cast, with one warning if digits may be lost.
        """
        # Nearly always the observation is one array that fits, and this is the only cost.
        if type(obs) is np.ndarray and (obs.shape, obs.dtype) == self._plain:
            return obs
        fitted = self._fit(self._space, obs, "observation")
        # Before the cast, which loses the digits that are looked for.
        if self._offsets is not None and not self._offsets.see(obs):
            self._offsets, self._plain = None, self._quick
        return fitted

    def _fit(self, space: Any, obs: Any, where: str) -> Any:
        if isinstance(space, spaces.Box):
            fits = type(obs) is np.ndarray and obs.dtype == space.dtype
            fits = fits and obs.shape == (*self._leading, *space.shape)
            return obs if fits and _dtype_suffices(space) else self._cast(space, obs, where)
        if isinstance(space, spaces.Discrete):
            fits = type(obs) in (int, np.int64) and 0 <= obs - space.start < space.n
            return obs if fits else self._cast(space, obs, where)
        if isinstance(space, spaces.MultiDiscrete | spaces.MultiBinary):
            return self._cast(space, obs, where)
        if isinstance(space, spaces.Dict):
            if not isinstance(obs, Mapping) or set(obs) != set(space.spaces):
                found = sorted(map(str, obs)) if isinstance(obs, Mapping) else type(obs).__name__
                raise EnvContractError(f"{where} is {found}, its space has {sorted(space.spaces)}")
            parts = space.spaces.items()
            return {key: self._fit(part, obs[key], f"{where}[{key!r}]") for key, part in parts}
        if isinstance(space, spaces.Tuple):
            if not isinstance(obs, tuple | list) or len(obs) != len(space.spaces):
                raise EnvContractError(f"{where} is not a tuple of {len(space.spaces)} parts")
            parts = enumerate(space.spaces)
            return tuple(self._fit(part, obs[i], f"{where}[{i}]") for i, part in parts)
        return obs  # of a kind that no built network reads

    def _cast(self, space: Any, obs: Any, where: str) -> np.ndarray:
        try:
            array = np.asarray(obs)
        except ValueError as error:  # parts of several lengths
            raise EnvContractError(f"{where}: {error}") from error
        if array.dtype.kind not in "biuf":
            raise EnvContractError(f"{where} has dtype {array.dtype}, its space has {space.dtype}")
        shape = (*self._leading, *space.shape)
        if array.shape != shape:
            raise EnvContractError(f"{where} has shape {array.shape}, its space has {shape}")
        if space.dtype.kind in "iu":
            if array.dtype.kind == "f":
                # NaN differs from its own floor; infinities fail the range below.
                self._refuse(array != np.floor(array), array, where, "not a whole number")
            low, high, name = _integer_range(space)
            self._refuse((array < low) | (array > high), array, where, f"outside {name}")
        if array.dtype == space.dtype:
            return array
        # An overflow is refused below, with its place, which a warning of NumPy lacks.
        with np.errstate(all="ignore"):
            cast = array.astype(space.dtype)
        if cast.dtype.kind == "f":
            # Values that were not finite before are left to `check_finite`.
            lost = np.isfinite(array) & ~np.isfinite(cast)
            self._refuse(lost, array, where, f"outside the range of {cast.dtype}")
            loses = array.dtype.kind == "f" and array.dtype.itemsize > cast.dtype.itemsize
            if loses and not self._warned:
                self._warned = True
                text = f"{where} has dtype {array.dtype}, its space {cast.dtype}: it is cast"
                warnings.warn(text, stacklevel=2)
        return cast

    def _refuse(self, wrong: np.ndarray, array: np.ndarray, where: str, why: str) -> None:
        if not np.any(wrong):
            return
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        index, rest = (at[0], at[1:]) if self._leading else (None, at)
        raise EnvContractError(f"{where}{subscript(rest)} is {array[at]}, {why}", index=index)


def _dtype_suffices(space: Any) -> bool:
    """Whether an array of the space's dtype is valid whatever its values."""
    if not isinstance(space, spaces.Box):
        return False
    return space.dtype.kind == "f" or np.can_cast(space.dtype, np.int32)


def _integer_range(space: Any) -> tuple[Any, Any, str]:
    """The lowest and highest integers of a space in 32 bits, and what to call that range."""
    if isinstance(space, spaces.Discrete):
        return int(space.start), int(space.start + space.n) - 1, str(space)
    if isinstance(space, spaces.MultiDiscrete):
        return space.start, space.start + space.nvec - 1, str(space)
    if isinstance(space, spaces.MultiBinary):
        return 0, 1, str(space)
    own, jax_int = np.iinfo(space.dtype), np.iinfo(np.int32)  # JAX would wrap others around
    narrow = space.dtype.itemsize < 4
    name = f"the range of {space.dtype}" if narrow else "32 bits, in which JAX computes"
    return max(own.min, jax_int.min), min(own.max, jax_int.max), name


def check_info(info: Any, doing: str) -> None:
    """Raise an `EnvContractError` for an info that is not a dictionary."""
    if not isinstance(info, dict):
        values = "(obs, info)" if doing == "reset" else "obs, reward, terminated, truncated, info"
        raise EnvContractError(
            f"{doing} returned {type(info).__name__} for info; it must return {values}, where info "
            "is a dictionary"
        )


def check_outcome(reward: Any, terminated: Any, truncated: Any, info: Any) -> None:
    """Raise an `EnvContractError` unless they are one number, two booleans and a dictionary."""
    if not isinstance(reward, _NUMBERS) and not _is_scalar(reward):
        array = isinstance(reward, np.ndarray)
        found = f"has shape {reward.shape}" if array else f"is a {type(reward).__name__}"
        raise EnvContractError(f"reward {found}; it must be one number")
    for name, end in (("terminated", terminated), ("truncated", truncated)):
        if not isinstance(end, _TRUTHS) and not _is_scalar(end):
            raise EnvContractError(f"{name} is a {type(end).__name__}; it must be True or False")
    check_info(info, "step")


def _is_scalar(value: Any) -> bool:
    """Whether it is an array without axes, as simulators on a GPU return."""
    if getattr(value, "shape", None) != ():
        return False
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _all_finite(values: np.ndarray) -> bool:
    """Whether a batch is certainly finite in float32; one product, half a microsecond."""
    flat = values if values.ndim == 1 else values.ravel()
    # NaN and infinity survive a sum of squares. Large finite values may exceed the bound as well:
    # they are then looked at one by one.
    return flat.dot(flat) < FLOAT32_MAX


def check_finite(values: Any, where: str, index: int | None = None) -> None:
    """Raise an `EnvContractError` for the first number that is not finite in float32.

    `values` are a tree of arrays with a row per environment, or those of environment `index`.
    """
    if isinstance(values, dict | tuple):
        for key, part in values.items() if isinstance(values, dict) else enumerate(values):
            check_finite(part, f"{where}[{key!r}]", index)
    elif isinstance(values, np.ndarray) and values.dtype.kind == "f" and not _all_finite(values):
        # Negated, so that NaN, for which no comparison holds, is found too.
        wrong = np.argwhere(~(np.abs(values) <= FLOAT32_MAX)).tolist()
        if wrong:
            row, rest = (wrong[0][0], wrong[0][1:]) if index is None else (index, wrong[0])
            value = values[tuple(wrong[0])]
            raise EnvContractError(f"{where}{subscript(rest)} is {value}", index=row)


class Outside(NamedTuple):
    """Rows of a batch outside their space; index and description of the first."""

    rows: np.ndarray
    at: tuple[int, ...]
    element: str
    value: float
    limits: str

    @property
    def text(self) -> str:
        """What is outside, in words."""
        return f"{self.element} is {self.value:.6g}, outside {self.limits}"


def outside(space: Any, obs: Any, leading: int, where: str = "observation") -> Outside | None:
    """What is outside a space's bounds, if it has any, in a batch of so many leading axes."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        found, parts = None, space.spaces
        for key, part in parts.items() if isinstance(parts, dict) else enumerate(parts):
            inner = outside(part, obs[key], leading, f"{where}[{key!r}]")
            if found is None or inner is None:
                found = found or inner
            else:
                found = found._replace(rows=found.rows | inner.rows)
        return found
    if not isinstance(space, spaces.Box) or _dtype_keeps_bounds(space):
        return None
    low, high = space.low, space.high
    if obs.dtype.kind == "f":  # rounded as the observations are, which may lie on a bound
        low, high = low.astype(obs.dtype), high.astype(obs.dtype)
    wrong = (obs < low) | (obs > high)
    if not wrong.any():
        return None
    place = tuple(np.argwhere(wrong)[0].tolist())
    at, inner = place[:leading], place[leading:]
    limits = f"{space.low[inner]:.6g} to {space.high[inner]:.6g}"
    rows = np.any(wrong.reshape(*obs.shape[:leading], -1), axis=-1)
    element = f"{where}{subscript(inner)}"
    return Outside(np.asarray(rows), at, element, float(obs[place]), limits)


def _dtype_keeps_bounds(space: spaces.Box) -> bool:
    dtype: Any = space.dtype
    # A whole image of bytes need not be compared with 0 and 255.
    own = (np.iinfo(dtype).min, np.iinfo(dtype).max) if dtype.kind in "iu" else (-np.inf, np.inf)
    return bool(np.all(space.low <= own[0]) and np.all(space.high >= own[1]))
