"""What several commands share: output, checks of flags, environment arguments."""

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from surefoot.config.settings import Train
from surefoot.config.validation import limits_of
from surefoot.errors import ConfigError, StorageError

SECONDS_BETWEEN_LINES = 5.0
"""Between two lines of progress where standard error is no terminal."""

_own_stdout: IO[str] | None = None
_here = ""


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
        # What was printed before belongs where standard output went until now.
        sys.stdout.flush()
        kept = os.fdopen(os.dup(number), "w", encoding="utf-8")
        # Native code and child processes write to the descriptor, past `sys.stdout`.
        os.dup2(2, number)
    _own_stdout = kept
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        _own_stdout = None
        if number is not None:
            os.dup2(kept.fileno(), number)
            # The reader may have closed its end already, as `head` does.
            with contextlib.suppress(BrokenPipeError):
                kept.close()


def emit(record: Mapping[str, Any]) -> None:
    """Print one JSON line to standard output."""
    # NaN is not JSON, and readers in other languages stop at it.
    print(json.dumps(record, allow_nan=False), file=_own_stdout, flush=True)


def shorten_below(directory: str) -> None:
    """Write paths below a directory, where the user is, relative to it."""
    global _here
    # The root itself is no prefix that anybody would miss.
    _here = directory.rstrip(os.sep) + os.sep


def shortened(text: str) -> str:
    """A text for people, in which paths are as the user would write them."""
    return text.replace(_here, "") if len(_here) > 1 else text


def say(text: str) -> None:
    """Print a line for a person, off standard output."""
    print(shortened(text), file=sys.stderr, flush=True)


def require_at_least(minimum: int, **counts: int | None) -> None:
    """Refuse the flags, by name, whose count is too small."""
    for name, count in counts.items():
        if count is not None and count < minimum:
            flag = name.replace("_", "-")
            raise ConfigError(f"--{flag} must be at least {minimum}, got {count}")


def check_seed(seed: int | None) -> None:
    """Refuse a --seed that training would refuse."""
    seeds = limits_of(Train)["seed"]
    if seed is not None and not seeds.allow(seed):
        raise ConfigError(f"--seed must be {seeds.describe()}, got {seed}")


def picture_file(path: str | Path) -> Path:
    """The file of --plot, in a directory that exists: refused now, not after the work."""
    file = Path(path)
    if not file.parent.is_dir():
        raise StorageError(f"--plot {file}: no directory {file.parent}")
    return file


def parse_env_kwargs(text: str | None) -> dict[str, Any]:
    """The arguments of an environment, from JSON.

    Raises:
        ConfigError: where it is not a JSON object.
    """
    try:
        value = json.loads(text) if text else {}
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--env-kwargs is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError("--env-kwargs must be a JSON object, such as '{\"render_mode\": null}'")
    return value
