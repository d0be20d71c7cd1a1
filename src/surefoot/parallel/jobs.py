"""Run pieces of work one after another, or each in a process of its own.

A piece that fails or dies takes nothing with it. The processes leave the terminal's Ctrl-C to
their parent, which stops each of them once, after a checkpoint; where the parent itself is gone
they stop by themselves.
"""

import contextlib
import multiprocessing
import os
import signal
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

from surefoot.errors import StoppedBySignal, SurefootError, signal_code
from surefoot.parallel.signals import CatchSignals, end_with_parent


class Outcome(NamedTuple):
    """Result of one piece of work: its value, or its error in one line."""

    value: Any
    error: str | None


class ComparisonStopped(KeyboardInterrupt):
    """A signal ended a comparison; every cell that was training has its checkpoint.

    Attributes:
        number: the signal's number.
        code: the exit code, as that of `StoppedBySignal`.
    """

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}; the same command continues")
        self.number = number
        self.code = signal_code(number)


def error_line(error: Exception) -> str:
    """An error in one line."""
    if isinstance(error, SurefootError):
        return f"error[{error.name}]: {error}"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def attempt(work: Callable[[Any], Any], item: Any) -> Outcome:
    """Do one piece of work and catch its error; signals pass through."""
    try:
        return Outcome(work(item), None)
    except StoppedBySignal:
        raise
    except Exception as error:
        return Outcome(None, error_line(error))


def _in_own_process(work: Callable[[Any], Any], item: Any, writing: Connection) -> None:
    # A terminal sends Ctrl-C to the whole group of the parent.
    os.setpgrp()
    # Several processes on one accelerator: none may reserve its memory beforehand.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    # Gymnasium would show its own again in each process.
    warnings.simplefilter("ignore", DeprecationWarning)
    end_with_parent()
    try:
        outcome = attempt(work, item)
    except StoppedBySignal as stop:
        outcome = Outcome(None, f"{stop}; the same command continues it")
    # A parent that is gone reads no outcome.
    with contextlib.suppress(OSError):
        writing.send(outcome)


def side_by_side(
    work: Callable[[Any], Any],
    items: Sequence[Any],
    *,
    jobs: int,
    done: Callable[[int, Outcome], None],
) -> None:
    """Do `work` for each item, `jobs` at a time; an item that fails does not affect the others.

    With several jobs, `work` and the items are pickled. `done` is called with an item's position
    and outcome as soon as it has ended.

    Raises:
        ComparisonStopped: after SIGINT, SIGTERM or SIGUSR1, once every process has stopped.
    """

    def stop(number: int) -> None:
        raise ComparisonStopped(number)

    try:
        with CatchSignals(stop):
            if jobs == 1:
                for position, item in enumerate(items):
                    done(position, attempt(work, item))
            else:
                _in_processes(work, items, jobs, done)
    except StoppedBySignal as stopped:  # by the handlers of a training loop
        raise ComparisonStopped(stopped.number) from None


def _in_processes(
    work: Callable[[Any], Any],
    items: Sequence[Any],
    jobs: int,
    done: Callable[[int, Outcome], None],
) -> None:
    context = multiprocessing.get_context("spawn")  # forking a process that runs XLA can deadlock
    waiting = list(enumerate(items))
    running: dict[Connection, tuple[int, BaseProcess]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                position, item = waiting.pop(0)
                reading, writing = context.Pipe(duplex=False)
                process = context.Process(target=_in_own_process, args=(work, item, writing))
                # Before the start: a signal that interrupts it must find the process here.
                running[reading] = position, process
                process.start()
                writing.close()  # the other end is the child's alone, so that its death is an EOF
            ready = wait(list(running))
            for reading in [pipe for pipe in running if pipe in ready]:
                position, process = running[reading]
                try:
                    outcome = reading.recv()
                except (EOFError, OSError):
                    process.join()
                    outcome = Outcome(None, f"its process died with code {process.exitcode}")
                process.join()
                reading.close()
                del running[reading]
                done(position, outcome)
    finally:
        alive = [process for _, process in running.values() if process.is_alive()]
        # All are asked before any is awaited: each writes its checkpoint first.
        for process in alive:
            process.terminate()
        for process in alive:
            process.join()
