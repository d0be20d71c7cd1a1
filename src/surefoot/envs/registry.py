"""Which library an environment's id or object belongs to."""

import importlib
from collections.abc import Mapping
from typing import Any

from surefoot.envs.gymnasium import find_gymnasium, wrap_gymnasium
from surefoot.envs.source import EnvSource, jax_source
from surefoot.errors import ConfigError

ADAPTORS = {
    "envpool": "surefoot.envs.envpool:find_envpool",
    "gymnax": "surefoot.envs.gymnax:find_gymnax",
    "tabular": "surefoot.envs.tabular:find_tabular",
}
"""By prefix of an id, module and function: `find(name, env_kwargs) -> EnvSource`. It may import a
module of the user's only if the name itself has a colon."""
PLANNED = ("brax",)


def imports_nothing(env_id: str) -> bool:
    """Whether making an environment by this id imports no module of the user's."""
    prefix, colon, name = env_id.partition(":")
    if prefix not in ADAPTORS:
        return not (colon and name)
    module, colon, _ = name.partition(":")
    return not colon or module == "random"  # `tabular:random:SEED`


def find_env(env: Any, env_kwargs: Mapping[str, Any]) -> EnvSource:
    """The source of an id, an instance, a vector environment, a `JaxEnv` or a factory.

    A ConfigError names the nearest known id, or the extra that is missing.
    """
    if isinstance(env, str):
        prefix, _, name = env.partition(":")
        if name and prefix in PLANNED:
            raise ConfigError(f"{env}: {prefix} environments are not supported yet")
        if name and prefix in ADAPTORS:
            # By name, so that a library is imported only where it is used.
            module, _, function = ADAPTORS[prefix].partition(":")
            return getattr(importlib.import_module(module), function)(name, env_kwargs)
        return find_gymnasium(env, env_kwargs)
    if env_kwargs:
        raise ConfigError("env_kwargs go with an id; give an instance or a factory its own")
    from surefoot.envs.jax_native import JaxEnv

    return jax_source(env) if isinstance(env, JaxEnv) else wrap_gymnasium(env)
