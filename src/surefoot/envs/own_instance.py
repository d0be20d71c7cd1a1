"""Environments that the user made: lent to a run and left open, or copied with all they hold."""

import copy
import logging
from collections.abc import Callable
from enum import Enum
from types import ModuleType
from typing import Any

import gymnasium
import numpy as np
from gymnasium.utils import EzPickle
from gymnasium.vector import VectorEnv

from surefoot.errors import ConfigError

A_WAY_OUT = "give a function that makes one environment"


class Lender:
    """Hands out the user's own environment; while it is in use, what `another` returns."""

    def __init__(self, lend: Callable[[], Any], another: Callable[[], Any]):
        self._lend, self._another, self._lent = lend, another, None

    def __call__(self, *_: int) -> Any:
        """The environment itself, to be closed by its user, or another one."""
        if self._lent is not None and not self._lent.returned:
            return self._another()
        self._lent = self._lend()
        return self._lent

    def __reduce__(self) -> str:
        # A pickle of an environment is often no more than the arguments of its constructor.
        raise TypeError(f"an instance stays in its process: {A_WAY_OUT}")


def lend_instance(env: gymnasium.Env, name: str) -> Lender:
    """A lender of one environment, which is copied where more are needed."""
    return Lender(lambda: _LentEnv(env), lambda: copy_of(env, name))


def lend_vector(vector: VectorEnv, name: str) -> Lender:
    """A lender of a vector environment, which cannot be in use twice."""

    def refuse() -> Any:
        raise ConfigError(
            f"{name} came as a ready vector environment: evaluation beside training needs more of "
            f"them; {A_WAY_OUT}, or set max_envs to their number"
        )

    return Lender(lambda: LentVector(vector), refuse)


class _LentEnv(gymnasium.Wrapper):
    """An environment that stays open when it is closed here."""

    returned = False

    def close(self) -> None:
        self.returned = True


class LentVector:
    """A vector environment, `vector`, that stays open when it is closed here."""

    # No wrapper of Gymnasium's: those close what they wrap when they are deleted.
    def __init__(self, vector: VectorEnv):
        self.vector, self.returned = vector, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.vector, name)

    def close(self) -> None:
        """Give it back."""
        self.returned = True


def copy_of(env: gymnasium.Env, name: str) -> gymnasium.Env:
    """A copy of an environment, with every change that was made to it.

    Raises:
        ConfigError: where it cannot be copied, or the copy is another one or shares something.
    """
    try:
        made = _copied(env, {})
        lost = _first_difference(env, made)
    except Exception as error:
        lost, made = str(error), env
    if lost is not None:
        raise ConfigError(f"{name}: the instance cannot be copied ({lost}); {A_WAY_OUT}")
    return made


def _copied(env: gymnasium.Env, memo: dict[int, Any]) -> gymnasium.Env:
    if isinstance(env, gymnasium.Wrapper):
        _copied(env.env, memo)  # from there the wrapper's copy has it
    if getattr(type(env), "__setstate__", None) is not EzPickle.__setstate__:
        return copy.deepcopy(env, memo)
    # `EzPickle` would make it anew, from the arguments of its constructor.
    made = memo[id(env)] = object.__new__(type(env))
    vars(made).update(copy.deepcopy(vars(env), memo))
    return made


_GLOBAL = type, ModuleType, Enum, logging.Logger
"""What is its own copy, because there is one of it by name."""
_PLAIN = bool, int, float, complex, str, bytes, type(None), np.ndarray


def _first_difference(original: Any, copied: Any) -> str | None:
    """What a copy has otherwise than its original or together with it; None where nothing."""
    waiting, seen = [("it", original, copied)], set()
    while waiting:
        where, old, new = waiting.pop()
        if id(old) in seen or isinstance(old, _GLOBAL) or callable(old):
            continue
        seen.add(id(old))
        if type(old) is not type(new):
            return f"{where} is a {type(new).__name__} in the copy"
        if isinstance(old, _PLAIN):
            if not _equal(old, new):
                return f"{where} is lost"
        elif isinstance(old, list | tuple | dict):
            if len(old) != len(new):
                return f"{where} is lost"
            keyed = old.items() if isinstance(old, dict) else enumerate(old)
            values = new.values() if isinstance(new, dict) else new
            pairs = zip(keyed, values, strict=True)
            waiting += [(f"{where}[{key!r}]", a, b) for (key, a), b in pairs]
        elif hasattr(old, "__dict__"):
            if old is new and vars(old):
                return f"{where}, a {type(old).__name__}, is the same object in the copy"
            if hasattr(type(old), "__del__"):
                return f"{where}, a {type(old).__name__}, ends something when it is deleted"
            before, after = vars(old), vars(new)
            if before.keys() != after.keys():
                return f"{where} has other attributes in the copy"
            waiting += [(f"{where}.{key}", value, after[key]) for key, value in before.items()]
    return None


def _equal(old: Any, new: Any) -> bool:
    if isinstance(old, np.ndarray):
        same = (old.dtype, old.shape) == (new.dtype, new.shape)
        return same and (old.dtype.hasobject or old.tobytes() == new.tobytes())
    return old == new or (old != old and new != new)
