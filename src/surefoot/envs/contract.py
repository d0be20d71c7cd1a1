"""What one environment must return, validated at every reset and step."""

import re
import traceback
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from surefoot.errors import EnvContractError

TRUTHS = frozenset((bool, np.bool_))
NUMBERS = frozenset((float, int, np.float64, np.float32))
"""Types of nearly all ends and rewards; others are validated more closely."""
_TRUTHS = (bool, np.bool_, int, np.integer)
_NUMBERS = (bool, int, float, np.bool_, np.integer, np.floating)
_CALLERS = Path(__file__).parents[1], Path(gymnasium.__file__).parent
_OLD_INTERFACE = (
    (
        r"^not enough values to unpack \(expected 5, got 4\)$",
        "step returned 4 values, as Gym did before 0.26; return obs, reward, terminated, "
        "truncated, info, where terminated is an end of the task and truncated a time limit",
    ),
    (
        r"^(not enough|too many) values to unpack \(expected 2",
        "reset returned no pair; since Gym 0.26 it returns (obs, info)",
    ),
    (
        r"reset\(\) got an unexpected keyword argument '(seed|options)'",
        "reset takes no seed; since Gym 0.26 it is reset(self, *, seed=None, options=None) and "
        "begins with super().reset(seed=seed)",
    ),
)


class ObsContract:
    """Validates observations of one environment, or of `num_rows` at once, against their space."""

    def __init__(self, space: spaces.Space, num_rows: int | None = None):
        self._space, self._warned = space, False
        self._leading = () if num_rows is None else (num_rows,)
        plain = _dtype_suffices(space)
        self._plain = ((*self._leading, *(space.shape or ())), space.dtype) if plain else None

    def __call__(self, obs: Any) -> Any:
        """The observation, with its space's structure, shapes and dtypes.

        Other dtypes whose values fit are cast, with one warning if digits may be lost.

        Raises:
            EnvContractError: for the first part that does not fit, and why.
        """
        # Nearly always the observation is one array that fits, and this is the only cost.
        if type(obs) is np.ndarray and (obs.shape, obs.dtype) == self._plain:
            return obs
        return self._fit(self._space, obs, "observation")

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
                self._refuse(array != np.floor(array), array, where, "not a whole number")
            low, high, name = _integer_range(space)
            self._refuse((array < low) | (array > high), array, where, f"outside {name}")
        if array.dtype == space.dtype:
            return array
        with np.errstate(all="ignore"):
            cast = array.astype(space.dtype)
        if cast.dtype.kind == "f":
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


def subscript(at: Sequence[int]) -> str:
    """An index as it is written behind an array's name; nothing for a scalar."""
    return f"[{', '.join(map(str, at))}]" if at else ""


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


def old_interface(error: BaseException) -> str | None:
    """What to change, for an exception that shows an environment for Gym before 0.26.

    Such an exception is raised by the caller, Gymnasium's wrappers or this package, and not by the
    environment's own code.
    """
    frames = traceback.extract_tb(error.__traceback__)
    innermost = Path(frames[-1].filename) if frames else Path()
    if not any(innermost.is_relative_to(caller) for caller in _CALLERS):
        return None
    text = str(error)
    return next((hint for pattern, hint in _OLD_INTERFACE if re.search(pattern, text)), None)


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
