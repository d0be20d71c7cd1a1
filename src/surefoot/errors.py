"""The errors that surefoot raises: each has a name for people and an exit code for programs.

A failure is one line, `surefoot: error[NAME]: what, where, what to do`. Code 1 is kept for a
bug in surefoot itself; everything a user can mend has one of the classes below.
"""

import signal
from pathlib import Path
from typing import Any, ClassVar


def printable(text: str) -> str:
    """Text on one line, in which nothing steers a terminal, wherever it comes from."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


class SurefootError(Exception):
    """An error with a name. `retryable` says whether the same command may succeed later."""

    code: ClassVar[int] = 1
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, name: str):
        super().__init__(message)
        self.name = name

    def add(self, hint: str) -> None:
        """Say one thing more at the end of the line."""
        self.args = (f"{self}; {hint}",)


class ConfigError(SurefootError, ValueError):
    """Wrong settings, found before anything is built: exit code 2."""

    code = 2

    def __init__(self, message: str, *, name: str = "CONFIG"):
        super().__init__(message, name=name)


class EnvContractError(SurefootError):
    """An environment broke its contract (shape, dtype, a number that is none): exit code 3.

    Attributes:
        index: the environment's number, where it is known.
        history: what was done to it since its seed, where that is known.
    """

    code = 3

    def __init__(self, message: str, *, name: str = "ENV-CONTRACT", index: int | None = None):
        super().__init__(message, name=name)
        self.index = index
        self.history: Any = None


class EnvCrashError(SurefootError):
    """An environment raised or hung, or its process died: exit code 4.

    Attributes:
        index: the environment's number, where it is known.
        history: what was done to it since its seed, where that is known.
    """

    code = 4
    retryable = True

    def __init__(self, message: str, *, name: str = "ENV-CRASH", index: int | None = None):
        super().__init__(message, name=name)
        self.index = index
        self.history: Any = None


class NotFiniteError(SurefootError):
    """Updates were refused again and again because they were not finite: exit code 5."""

    code = 5

    def __init__(self, message: str, *, name: str = "NOT-FINITE"):
        super().__init__(message, name=name)


class CheckpointError(SurefootError):
    """A checkpoint is missing, damaged, hostile or of another run: exit code 6."""

    code = 6

    def __init__(self, message: str, *, name: str = "CHECKPOINT"):
        super().__init__(message, name=name)


class StorageError(SurefootError):
    """The output directory is used, full or cannot be written: exit code 7."""

    code = 7
    retryable = True

    def __init__(self, message: str, *, name: str = "STORAGE"):
        super().__init__(message, name=name)


class OutOfMemoryError(SurefootError):
    """The device or the system has no memory left: exit code 8."""

    code = 8

    def __init__(self, message: str, *, name: str = "OUT-OF-MEMORY"):
        super().__init__(message, name=name)


class ReplicaError(SurefootError):
    """What all ranks of a run must have alike is not: exit code 5."""

    code = 5

    def __init__(self, message: str, *, name: str = "REPLICAS"):
        super().__init__(message, name=name)


class WorkerLostError(SurefootError):
    """A process of the run is gone, and is not made anew: exit code 9."""

    code = 9
    retryable = True

    def __init__(self, message: str, *, name: str = "WORKER-LOST"):
        super().__init__(message, name=name)


def error_of_code(code: int, name: str, message: str) -> SurefootError:
    """An error of another process, reported here."""
    if name == "REPLICAS":
        return ReplicaError(message)  # beside updates that are not finite, whose code it has
    others = (kind for kind in SurefootError.__subclasses__() if kind is not ReplicaError)
    kinds: dict[int, Any] = {kind.code: kind for kind in others}
    return kinds.get(code, SurefootError)(message, name=name)


class StoppedBySignal(KeyboardInterrupt):
    """A signal ended a run; its checkpoint, if any, is written.

    A `KeyboardInterrupt`, so that no `except Exception` of a sweep goes on with the next run.

    Attributes:
        run: the run as far as it got, where one was trained here.
        number: the signal's number.
        code: the exit code, 128 more; of a scheduler's SIGUSR1 that of SIGTERM, which it announces.
        iteration: iterations done.
        path: the run directory to resume, or None.
    """

    def __init__(self, number: int, iteration: int, path: Path | None, run: Any = None):
        super().__init__(f"stopped by {signal.Signals(number).name} at iteration {iteration}")
        self.number, self.iteration, self.path, self.run = number, iteration, path, run
        self.code = signal_code(number)


class StoppedAtOnce(KeyboardInterrupt):
    """A signal ended a command outside of training, where there is nothing to store.

    Attributes:
        code: the exit code, as that of `StoppedBySignal`.
    """

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.code = signal_code(number)


def signal_code(number: int) -> int:
    """The exit code after a signal: 130 of SIGINT, 143 of all others."""
    return 128 + (signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)
