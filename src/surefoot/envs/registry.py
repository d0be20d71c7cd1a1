"""Environments: what an id or an object names, and how instances of it are made."""

import contextlib
import copy
import difflib
import importlib
from collections.abc import Callable, Mapping
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec

from surefoot.config.validation import nearest
from surefoot.errors import ConfigError, EnvCrashError

LATER = {"brax": "Brax"}
SELF_CONTAINED = tuple(
    f"gymnasium.envs.{part}" for part in ("mujoco", "classic_control", "box2d", "toy_text")
)
"""Where environments live that share nothing with a program: Gymnasium's own. Those of others may
read what a module or NumPy's global generator holds, of which another process has its own."""


class EnvSource(NamedTuple):
    """Where environments come from.

    `make` gives one more environment of its own. `kind` is "gymnasium" (one environment),
    "vector" (a ready vector environment), "pool" (`make(num_envs)` gives a vector environment of
    that size) or "jax" (a pure reset and step). `self_contained` tells that they are known to keep
    all they have in themselves, so that another process makes the very same ones.
    """

    env_id: str
    kind: str
    make: Callable[..., Any]
    self_contained: bool = False


def imports_nothing(env_id: str) -> bool:
    """Whether making an environment by this id imports no module of the user's."""
    prefix, _, rest = env_id.partition(":")
    inner = rest.partition(":")[0] if ":" in rest else "random"
    own = prefix in ("gymnax", "envpool") or (prefix == "tabular" and inner == "random")
    return own or not rest


def time_limit(env: gymnasium.Env) -> int | None:
    """The steps after which an episode is truncated, as a wrapper or its registration says."""
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, gymnasium.wrappers.TimeLimit):
            return env._max_episode_steps
        env = env.env
    return env.spec.max_episode_steps if env.spec else None


class OwnObs(gymnasium.Wrapper):
    """Copies each observation: an environment that reuses its array would rewrite `final_obs`.

    It lives here, away from JAX, because every process that steps environments imports it.
    """

    @property
    def time_limit(self) -> int | None:
        """See the function of this name."""
        return time_limit(self.env)

    def step(self, action: Any) -> Any:
        """Step, and copy what is seen."""
        obs, *rest = self.env.step(action)
        return obs.copy() if type(obs) is np.ndarray else copy.deepcopy(obs), *rest


def find_env(env: Any, env_kwargs: Mapping[str, Any]) -> EnvSource:
    """The source an id, an instance or a factory stands for.

    Raises:
        ConfigError: for an unknown id (with the nearest valid one) or a missing extra.
    """
    from surefoot.envs.jax_native import JaxEnv, find_gymnax
    from surefoot.envs.tabular import find_tabular

    if isinstance(env, str):
        prefix, _, rest = env.partition(":")
        pure = {"gymnax": find_gymnax, "tabular": find_tabular}
        if prefix in pure and rest:
            # Made at once, so that a wrong id or argument is refused before anything starts.
            found = pure[prefix](rest, env_kwargs)
            return EnvSource(env, "jax", lambda: found)
        if prefix == "envpool" and rest:
            from surefoot.envs.envpool import find_envpool

            return find_envpool(rest, env_kwargs)
        if prefix in LATER and rest:
            raise ConfigError(f"{env}: {LATER[prefix]} environments are not supported yet")
        return _find_gymnasium(env, env_kwargs)
    if env_kwargs:
        raise ConfigError("env_kwargs go with an id; give an instance or a factory its own")
    if isinstance(env, JaxEnv):
        return EnvSource(env.spec.env_id, "jax", lambda: env)
    if isinstance(env, gymnasium.vector.VectorEnv):
        return EnvSource(_name(env), "vector", lambda: env)
    if isinstance(env, gymnasium.Env):
        return EnvSource(_name(env), "gymnasium", _copies_of(env))
    if callable(env):
        return EnvSource(getattr(env, "__qualname__", type(env).__name__), "gymnasium", env)
    raise ConfigError(
        f"{env!r} is no environment: give an id, a gymnasium.Env, a VectorEnv, a JaxEnv or a "
        "function that makes an Env"
    )


def _name(env: Any) -> str:
    return env.spec.id if getattr(env, "spec", None) else type(env).__name__


def _copies_of(env: gymnasium.Env) -> Callable[[], gymnasium.Env]:
    """The instance itself first, then others like it (evaluation must not disturb training)."""
    handed_out = []

    def make():
        if not handed_out:
            handed_out.append(env)
            return env
        if env.spec is not None:
            # A wrapper that does not note its arguments cannot be made again, only copied.
            with contextlib.suppress(Exception):
                return gymnasium.make(env.spec, disable_env_checker=True)
        try:
            return copy.deepcopy(env)
        except Exception as fault:
            raise ConfigError(
                f"{_name(env)}: one instance cannot be copied for a second environment "
                f"({fault}); give a function that makes one"
            ) from fault

    return make


def _find_gymnasium(env_id: str, env_kwargs: Mapping[str, Any]) -> EnvSource:
    """Gymnasium by bare id, `module:id`, or `module:factory`."""
    module_name, _, name = env_id.rpartition(":")
    module = None
    if module_name:
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as fault:
            if fault.name is not None and not module_name.startswith(fault.name):
                raise
            raise ConfigError(
                f"{env_id}: no module {module_name} in the current directory or installed",
                name="UNKNOWN-ENV",
            ) from fault
        factory = getattr(module, name, None)
        if callable(factory):
            return EnvSource(env_id, "gymnasium", partial(factory, **env_kwargs))
    spec = _registered(name, env_id, module)

    def make():
        try:
            # By what is registered, not by id: another process has not imported what registers it.
            return gymnasium.make(spec, disable_env_checker=True, **env_kwargs)
        except gymnasium.error.DependencyNotInstalled as fault:
            raise _missing_extra(env_id, fault) from fault
        except ImportError as fault:
            raise _missing_extra(env_id, fault) from fault
        except TypeError as fault:
            if not env_kwargs:
                raise
            raise ConfigError(f"{env_id}: env_kwargs {dict(env_kwargs)}: {fault}") from fault

    own = isinstance(spec.entry_point, str) and spec.entry_point.startswith(SELF_CONTAINED)
    return EnvSource(env_id, "gymnasium", make, self_contained=own)


def _registered(name: str, env_id: str, module: ModuleType | None) -> EnvSpec:
    """What an id stands for; refused where it is not registered, and no function of its module."""
    try:
        return gymnasium.spec(name)
    except gymnasium.error.Error as fault:
        own = [key for key, value in vars(module).items() if callable(value)] if module else []
        known = [*own, *gymnasium.registry]
        folded = {key.lower(): key for key in known}
        near = difflib.get_close_matches(name.lower(), list(folded), n=1, cutoff=0.5)
        hint = f"; did you mean {folded[near[0]]}?" if near else nearest(name, known)
        what = f"unknown environment {env_id}{hint} (module:id imports your own module first)"
        if module:
            what = (
                f"unknown environment {env_id}: module {module.__name__} has no function {name}, "
                f"and registers no environment of that id{hint}"
            )
        raise ConfigError(what, name="UNKNOWN-ENV") from fault


def _missing_extra(env_id: str, fault: Exception) -> ConfigError:
    text = str(fault).lower()
    extra = next((e for e in ("mujoco", "box2d") if e in text), None)
    fix = f"pip install 'surefoot[{extra}]'" if extra else str(fault).replace("\n", " ")
    return ConfigError(f"{env_id} needs a package that is not installed: {fix}", name="EXTRA")


def crashed(env_id: str, doing: str, fault: BaseException) -> EnvCrashError:
    """The error for an exception that an environment raised."""
    text = " ".join(str(fault).split()) or "no message"
    return EnvCrashError(
        f"{env_id}: {doing} raised {type(fault).__name__}: {text}; run it alone with the same seed "
        "to see it"
    )
