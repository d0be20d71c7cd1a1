"""Which library an environment's id or object belongs to."""

import importlib
from collections.abc import Mapping
from typing import Any

from surefoot.envs.env_id import ADAPTORS, PLANNED, import_own, parse_env_id
from surefoot.envs.gymnasium import find_gymnasium, wrap_gymnasium
from surefoot.envs.source import EnvSource, jax_source
from surefoot.errors import ConfigError


def find_env(env: Any, env_kwargs: Mapping[str, Any]) -> EnvSource:
    """The source of an id, an instance, a vector environment, a `JaxEnv` or a factory.

    A ConfigError names the nearest known id, or the extra that is missing.
    """
    if not isinstance(env_kwargs, Mapping):
        kind = type(env_kwargs).__name__
        raise ConfigError(f"env_kwargs must be a dictionary of arguments, got a {kind}")
    if isinstance(env, str):
        parts = parse_env_id(env)
        if parts.adaptor in PLANNED:
            raise ConfigError(f"{env}: {parts.adaptor} environments are not supported yet")
        if not parts.adaptor:
            return find_gymnasium(parts, env_kwargs)
        if parts.module:
            import_own(parts.module, env)
        # By name, so that a library is imported only where it is used.
        module, _, function = ADAPTORS[parts.adaptor].partition(":")
        return getattr(importlib.import_module(module), function)(parts.within, env_kwargs)
    if env_kwargs:
        raise ConfigError("env_kwargs go with an id; give an instance or a factory its own")
    from surefoot.envs.jax_native import JaxEnv

    return jax_source(env) if isinstance(env, JaxEnv) else wrap_gymnasium(env)
