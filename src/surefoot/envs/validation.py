"""What an environment must give: checked where it is given, at every reset and step.

It lives here, away from JAX, because every process that steps environments imports it.
"""

import re
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces

from surefoot.errors import EnvContractError

LARGEST_INT = 2**31 - 1
"""What an integer may be: JAX computes with 32 bits, and would wrap others around."""

LARGEST_FLOAT = float(np.finfo(np.float32).max)

TRUTHS = frozenset((bool, np.bool_))
NUMBERS = frozenset((float, int, np.float64, np.float32))
"""What the ends and rewards of nearly every environment are; others are looked at closely."""
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
    """Whether observations of one environment, or of `num_rows` at once, fit their space.

    Attributes:
        casts: whether one had to be cast so far.
    """

    def __init__(self, space: spaces.Space, num_rows: int | None = None):
        self._space = space
        self._leading = () if num_rows is None else (num_rows,)
        self.casts, self._warned = False, False
        plain = isinstance(space, spaces.Box) and _bounds(space) is None
        self._plain = ((*self._leading, *(space.shape or ())), space.dtype) if plain else None

    def __call__(self, obs: Any) -> Any:
        """The observation, of its space's structure, shapes and dtypes.

        Numbers of another kind that the dtype can hold are cast, with one warning where digits may
        be lost.

        Raises:
            EnvContractError: says which part of it does not fit and why.
        """
        # Nearly always it is one array that fits: this is all that is paid for at each step.
        if type(obs) is np.ndarray and (obs.shape, obs.dtype) == self._plain:
            return obs
        return self._fit(self._space, obs, "observation")

    def _fit(self, space: Any, obs: Any, where: str) -> Any:
        if isinstance(space, spaces.Box):
            fits = type(obs) is np.ndarray and obs.dtype == space.dtype
            if fits and obs.shape == (*self._leading, *space.shape) and _bounds(space) is None:
                return obs
            return self._fit_numbers(space, obs, where)
        if isinstance(space, spaces.Discrete):
            if type(obs) in (int, np.int64) and 0 <= obs - space.start < space.n:
                return obs
            return self._fit_numbers(space, obs, where)
        if isinstance(space, spaces.Dict):
            if not isinstance(obs, Mapping) or set(obs) != set(space.spaces):
                found = sorted(map(str, obs)) if isinstance(obs, Mapping) else type(obs).__name__
                raise EnvContractError(f"{where} is {found}, its space has {sorted(space.spaces)}")
            parts = space.spaces.items()
            return {key: self._fit(part, obs[key], f"{where}[{key!r}]") for key, part in parts}
        if isinstance(space, spaces.Tuple):
            if not isinstance(obs, tuple | list) or len(obs) != len(space.spaces):
                raise EnvContractError(f"{where} is no tuple of {len(space.spaces)} parts")
            parts = enumerate(space.spaces)
            return tuple(self._fit(part, obs[i], f"{where}[{i}]") for i, part in parts)
        if isinstance(space, spaces.MultiDiscrete | spaces.MultiBinary):
            return self._fit_numbers(space, obs, where)
        return obs  # no network of ours reads it

    def _fit_numbers(self, space: Any, obs: Any, where: str) -> np.ndarray:
        try:
            array = np.asarray(obs)
        except ValueError as fault:  # parts of several lengths
            raise EnvContractError(f"{where}: {fault}") from fault
        if array.dtype.kind not in "biuf":
            raise EnvContractError(f"{where} has dtype {array.dtype}, {space.dtype} is needed")
        shape = (*self._leading, *space.shape)
        if array.shape != shape:
            raise EnvContractError(f"{where} has shape {array.shape}, its space has {shape}")
        if space.dtype.kind in "iu":
            if array.dtype.kind == "f":
                self._refuse(array != np.floor(array), array, where, "no whole number")
            bounds = _bounds(space) or _held(space.dtype)
            outside = (array < bounds[0]) | (array > bounds[1])
            self._refuse(outside, array, where, f"beyond what {_told(space)}")
        if array.dtype == space.dtype:
            return array
        self.casts = True
        with np.errstate(all="ignore"):
            cast = array.astype(space.dtype)
        if cast.dtype.kind == "f":
            lost = np.isfinite(array) & ~np.isfinite(cast)
            self._refuse(lost, array, where, f"beyond {cast.dtype}")
            loses = array.dtype.kind == "f" and array.dtype.itemsize > cast.dtype.itemsize
            if loses and not self._warned:
                self._warned = True
                text = f"{where} has dtype {array.dtype} in a space of {cast.dtype}, and is cast"
                warnings.warn(text, stacklevel=2)
        return cast

    def _refuse(self, wrong: np.ndarray, array: np.ndarray, where: str, why: str) -> None:
        if not np.any(wrong):
            return
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        index, rest = (at[0], at[1:]) if self._leading else (None, at)
        raise EnvContractError(f"{where}{_place(rest)} is {array[at]}, {why}", index=index)


def _place(at: Sequence[int]) -> str:
    return f"[{', '.join(map(str, at))}]" if at else ""


def _bounds(space: Any) -> tuple[Any, Any] | None:
    """The smallest and the largest of whole numbers that a space may give, where one must look."""
    if isinstance(space, spaces.Discrete):
        return int(space.start), int(space.start + space.n) - 1
    if isinstance(space, spaces.MultiDiscrete):
        return space.start, space.start + space.nvec - 1
    if isinstance(space, spaces.MultiBinary):
        return 0, 1
    wide = space.dtype.kind in "iu" and space.dtype.itemsize * 8 > 31 + (space.dtype.kind == "i")
    return (-LARGEST_INT - 1, LARGEST_INT) if wide else None


def _held(dtype: np.dtype) -> tuple[int, int]:
    """The whole numbers that a dtype and 32 bits hold."""
    kept = np.iinfo(dtype)
    return max(int(kept.min), -LARGEST_INT - 1), min(int(kept.max), LARGEST_INT)


def _told(space: Any) -> str:
    """Whose bounds those are."""
    if not isinstance(space, spaces.Box):
        return f"{space} has"
    narrow = space.dtype.itemsize < 4
    return f"{space.dtype} holds" if narrow else "32 bits hold, with which JAX computes"


def old_interface(fault: BaseException) -> str | None:
    """What is wrong and what to do where an exception shows an environment for Gym before 0.26.

    It comes from whoever called it, Gymnasium's wrappers or this package, not from its own code.
    """
    frames = traceback.extract_tb(fault.__traceback__)
    innermost = Path(frames[-1].filename) if frames else Path()
    if not any(innermost.is_relative_to(caller) for caller in _CALLERS):
        return None
    text = str(fault)
    return next((hint for pattern, hint in _OLD_INTERFACE if re.search(pattern, text)), None)


def check_info(info: Any, doing: str) -> None:
    """Infos are dictionaries.

    Raises:
        EnvContractError: for anything else.
    """
    if not isinstance(info, dict):
        pair = "(obs, info)" if doing == "reset" else "obs, reward, terminated, truncated, info"
        raise EnvContractError(
            f"{doing} gave {type(info).__name__} for info; it returns {pair}, info a dictionary"
        )


def check_outcome(reward: Any, terminated: Any, truncated: Any, info: Any) -> None:
    """A reward is one number, ends are truths, and infos are dictionaries.

    Raises:
        EnvContractError: for anything else.
    """
    if not isinstance(reward, _NUMBERS) and not _is_scalar(reward):
        shown = f"shape {reward.shape}" if isinstance(reward, np.ndarray) else type(reward).__name__
        raise EnvContractError(f"reward is of {shown}, one number is needed")
    for name, end in (("terminated", terminated), ("truncated", truncated)):
        if not isinstance(end, _TRUTHS) and not _is_scalar(end):
            raise EnvContractError(f"{name} is of {type(end).__name__}, True or False is needed")
    check_info(info, "step")


def _is_scalar(value: Any) -> bool:
    """Whether it is an array without axes, as simulators on a GPU give."""
    if getattr(value, "shape", None) != ():
        return False
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


class NotFinite(NamedTuple):
    """A number that is none: in which row, where, and what it is."""

    row: int
    where: str
    value: float


def all_finite(values: np.ndarray) -> bool:
    """Whether a batch is finite in 32 bits for sure: one product says it in half a microsecond."""
    flat = values if values.ndim == 1 else values.ravel()
    return flat.dot(flat) < LARGEST_FLOAT


def find_not_finite(values: Any, where: str) -> NotFinite | None:
    """The first entry of a batch of arrays that is not finite in 32 bits."""
    if isinstance(values, dict):
        found = (find_not_finite(part, f"{where}[{key!r}]") for key, part in values.items())
        return next(filter(None, found), None)
    if isinstance(values, tuple):
        found = (find_not_finite(part, f"{where}[{i}]") for i, part in enumerate(values))
        return next(filter(None, found), None)
    if not isinstance(values, np.ndarray) or values.dtype.kind != "f" or all_finite(values):
        return None
    wrong = np.argwhere(~(np.abs(values) <= LARGEST_FLOAT))
    if not len(wrong):
        return None
    row, *rest = (int(i) for i in wrong[0])
    return NotFinite(row, f"{where}{_place(rest)}", float(values[tuple(wrong[0])]))


def has_whole_numbers(space: spaces.Space) -> bool:
    """Whether a space has numbers whose range has to be looked at at every step."""
    return any(_bounds(part.space) is not None for part in _parts(space))


def may_wrap(space: spaces.Space) -> bool:
    """Whether NumPy would wrap a whole number that does not fit, and say nothing."""
    dtypes = [part.space.dtype for part in _parts(space)]
    return any(dtype.kind in "iu" and dtype.itemsize < 8 for dtype in dtypes)


class _Part(NamedTuple):
    """A part of a nested space that holds numbers: what it is called, and the keys to it."""

    space: Any
    where: str
    path: tuple[Any, ...]


def _parts(space: Any, where: str = "observation", path: tuple[Any, ...] = ()) -> Iterator[_Part]:
    if isinstance(space, spaces.Dict | spaces.Tuple):
        named = isinstance(space, spaces.Dict)
        for key, part in space.spaces.items() if named else enumerate(space.spaces):
            yield from _parts(part, f"{where}[{key!r}]", (*path, key))
    elif isinstance(
        space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary
    ):
        yield _Part(space, where, path)


class Outside(NamedTuple):
    """Rows of a batch that lie outside their space; where the first is, and in words."""

    rows: np.ndarray
    at: tuple[int, ...]
    said: str


class Bounds:
    """The bounds of an observation space, where it has some."""

    def __init__(self, space: spaces.Space):
        self._parts = [part for part in _parts(space) if _has_bounds(part.space)]

    def outside(self, obs: Any, leading: int) -> Outside | None:
        """What lies outside of a batch whose rows have so many axes."""
        found: Outside | None = None
        for space, where, path in self._parts:
            values = obs
            for key in path:
                values = values[key]
            low, high = space.low, space.high
            if values.dtype.kind == "f":  # where a bound may be rounded, so was what lies on it
                low, high = low.astype(values.dtype), high.astype(values.dtype)
            wrong = (values < low) | (values > high)
            if wrong.any():
                place = tuple(int(i) for i in np.argwhere(wrong)[0])
                at, inner = place[:leading], place[leading:]
                limits = f"{space.low[inner]:.6g} to {space.high[inner]:.6g}"
                said = f"{where}{_place(inner)} is {values[place]:.6g}, outside {limits}"
                rows = wrong.reshape(*values.shape[:leading], -1).any(-1)
                found = (
                    Outside(rows, at, said)
                    if found is None
                    else found._replace(rows=found.rows | rows)
                )
        return found


def _has_bounds(space: Any) -> bool:
    """Whether a space is a Box with a bound that its dtype does not keep by itself."""
    if not isinstance(space, spaces.Box):
        return False
    kept: Any = np.iinfo if space.dtype.kind in "iu" else None
    low, high = (kept(space.dtype).min, kept(space.dtype).max) if kept else (-np.inf, np.inf)
    return bool(np.any(space.low > low) or np.any(space.high < high))
