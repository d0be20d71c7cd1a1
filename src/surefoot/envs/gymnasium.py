"""The adaptor of Gymnasium: ids, factories of a module, instances, and vector environments."""

import importlib.util
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from types import ModuleType
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorEnv

from surefoot.config.validation import nearest
from surefoot.envs.env_id import EnvId, import_own
from surefoot.envs.own_instance import lend_instance, lend_vector
from surefoot.envs.source import EnvSource
from surefoot.errors import ConfigError

SELF_CONTAINED = tuple(
    f"gymnasium.envs.{part}" for part in ("mujoco", "classic_control", "box2d", "toy_text")
)
"""Modules of environments that share no state with the program. Others may read globals or NumPy's
global generator, of which another process has its own."""


def find_gymnasium(parts: EnvId, env_kwargs: Mapping[str, Any]) -> EnvSource:
    """The source of a bare id, `module:id` or `module:factory`; ConfigError for an unknown one."""
    env_id, name = parts.within, parts.name
    module = import_own(parts.module, env_id) if parts.module else None
    factory: Any = getattr(module, name, None)
    if callable(factory):
        _check_arguments(factory, env_id, env_kwargs)
        make: Any = partial(factory, **env_kwargs)
        return EnvSource(env_id=env_id, make=make)
    try:
        spec = gymnasium.spec(name)
    except gymnasium.error.Error as error:
        raise _unknown(name, env_id, module) from error
    own = isinstance(spec.entry_point, str) and spec.entry_point.startswith(SELF_CONTAINED)
    make = partial(_make, spec, env_id, dict(env_kwargs))
    return EnvSource(env_id=env_id, make=make, self_contained=own)


def _check_arguments(factory: Callable[..., Any], name: str, env_kwargs: Mapping[str, Any]) -> None:
    try:
        inspect.signature(factory).bind(**env_kwargs)
    except TypeError as error:
        given = f"env_kwargs {dict(env_kwargs)}: " if env_kwargs else ""
        raise ConfigError(f"{name}: {given}{error}", name="ENV-KWARGS") from error
    except ValueError:
        return  # some functions in C show no signature


def _unknown(name: str, env_id: str, module: ModuleType | None) -> ConfigError:
    own = [key for key, value in vars(module).items() if callable(value)] if module else []
    hint = nearest(name, [*own, *gymnasium.registry])
    why = f"{hint} (module:id imports your own module first)"
    if not hint and "/" in name:
        why = f": import the package that registers it, as in ale_py:{name}"
    if module:
        why = f": {module.__name__} has no function {name} and registers no such id{hint}"
    return ConfigError(f"unknown environment {env_id}{why}", name="UNKNOWN-ENV")


def wrap_gymnasium(env: Any) -> EnvSource:
    """The source of a vector environment, an instance or a function that makes one."""
    if isinstance(env, VectorEnv):
        name = _name(env)
        return EnvSource(env_id=name, make_vector=lend_vector(env, name), lent=True, reopens=False)
    if isinstance(env, gymnasium.Env):
        name = _name(env)
        return EnvSource(env_id=name, make=lend_instance(env, name), lent=True)
    if callable(env):
        make: Any = env
        name = getattr(env, "__qualname__", type(env).__name__)
        _check_arguments(env, name, {})
        return EnvSource(env_id=name, make=make)
    raise ConfigError(
        f"{env!r} is no environment: give an id, a gymnasium.Env, a VectorEnv, a JaxEnv or a "
        "function that makes an Env"
    )


def _make(spec: EnvSpec, env_id: str, env_kwargs: dict[str, Any]) -> gymnasium.Env:
    # By spec, not by id: another process has not imported the module that registers the id.
    try:
        return gymnasium.make(spec, disable_env_checker=True, **env_kwargs)
    except (gymnasium.error.DependencyNotInstalled, ImportError) as error:
        raise _missing_extra(env_id, error) from error
    except TypeError as error:
        # Without arguments of the user's it is an error in the environment's own code.
        if not env_kwargs:
            raise
        text = f"{env_id}: env_kwargs {env_kwargs}: {error}"
        raise ConfigError(text, name="ENV-KWARGS") from error


def _missing_extra(env_id: str, error: Exception) -> ConfigError:
    text = str(error).lower()
    # A package that is there already is not what an old version of a task lacks.
    packages = {"mujoco": "mujoco", "box2d": "Box2D"}
    lacking = (e for e, p in packages.items() if e in text and not importlib.util.find_spec(p))
    extra = next(lacking, None)
    fix = f"pip install 'surefoot[{extra}]'" if extra else str(error).replace("\n", " ")
    return ConfigError(f"{env_id} needs a package that is not installed: {fix}", name="EXTRA")


def _name(env: Any) -> str:
    return env.spec.id if getattr(env, "spec", None) else type(env).__name__
