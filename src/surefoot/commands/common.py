"""What several commands share: JSON lines, arguments of environments, the cache of programs."""

import json
import shlex
from collections.abc import Mapping
from typing import Any

from surefoot.errors import ConfigError


def emit(record: Mapping[str, Any]) -> None:
    """One JSON line on standard output."""
    print(json.dumps(record, allow_nan=False), flush=True)


def parse_env_kwargs(text: str | None) -> dict[str, Any]:
    """The arguments of an environment, from JSON.

    Raises:
        ConfigError: for what is no JSON object.
    """
    try:
        value = json.loads(text) if text else {}
    except ValueError as fault:
        raise ConfigError(f"--env-kwargs is not JSON: {fault}") from fault
    if not isinstance(value, dict):
        raise ConfigError("--env-kwargs must be a JSON object, such as '{\"render_mode\": null}'")
    return value


def env_flag(env: str) -> str:
    """What a command on a run of this environment must add, because loading imports nothing."""
    from surefoot.envs import imports_nothing

    return f" --env {shlex.quote(env)}" if env and not imports_nothing(env) else ""
