"""JSON lines and environment arguments, for several commands."""

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
    """Context manager that keeps standard output for `emit`; all else goes to standard error.

    That holds for Python's prints, and for those of native code and of child processes.
    """
    global _own_stdout
    number, kept = None, sys.stdout
    with contextlib.suppress(OSError, ValueError):  # a replaced stream has no number
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
    """Print one JSON line to standard output."""
    print(json.dumps(record, allow_nan=False), file=_own_stdout, flush=True)


def parse_env_kwargs(text: str | None) -> dict[str, Any]:
    """The arguments of an environment, from JSON.

    Raises:
        ConfigError: where it is not a JSON object.
    """
    try:
        value = json.loads(text) if text else {}
    except ValueError as error:
        raise ConfigError(f"--env-kwargs is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError("--env-kwargs must be a JSON object, such as '{\"render_mode\": null}'")
    return value


def env_flag(env: str) -> str:
    """The --env flag for commands on a run of this environment, as loading imports nothing."""
    from surefoot.envs.registry import imports_nothing

    return f" --env {shlex.quote(env)}" if env and not imports_nothing(env) else ""
