"""What several commands share: JSON lines, arguments of environments, the cache of programs."""

import contextlib
import json
import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from typing import IO, Any

from surefoot.errors import ConfigError

_own_stdout: IO[str] | None = None


@contextlib.contextmanager
def only_json() -> Iterator[None]:
    """Standard output has nothing but what `emit` says: what environments print goes elsewhere.

    That is standard error, for Python's prints, those of native code and of other processes.
    """
    global _own_stdout
    number, kept = None, sys.stdout
    with contextlib.suppress(OSError, ValueError):  # a stand-in has no number
        number = sys.stdout.fileno()
    if number is not None:
        sys.stdout.flush()
        kept = os.fdopen(os.dup(number), "w", encoding="utf-8")
        os.dup2(2, number)
    _own_stdout = kept
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        _own_stdout = None
        if number is not None:
            os.dup2(kept.fileno(), number)
            with contextlib.suppress(BrokenPipeError):
                kept.close()


def emit(record: Mapping[str, Any]) -> None:
    """One JSON line on standard output."""
    print(json.dumps(record, allow_nan=False), file=_own_stdout, flush=True)


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
    from surefoot.envs.registry import imports_nothing

    return f" --env {shlex.quote(env)}" if env and not imports_nothing(env) else ""
