"""Pieces of work one after another, or each in a process of its own.

One that fails or dies takes nothing with it. The processes leave the terminal's Ctrl-C to their
parent, which stops each of them once, after a checkpoint; where the parent itself is gone they
stop by themselves.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

from surefoot.errors import StoppedBySignal, SurefootError


class Outcome(NamedTuple):
    """What became of one piece of work: its value, or its error in one line."""

    value: Any
    error: str | None


class ComparisonStopped(KeyboardInterrupt):
    """SIGINT or SIGTERM ended a comparison; every cell under way has its checkpoint."""

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}; the same command goes on")
        self.number = number


def said(fault: Exception) -> str:
    """A fault in one line."""
    if isinstance(fault, SurefootError):
        return f"error[{fault.name}]: {fault}"
    return f"{type(fault).__name__}: {' '.join(str(fault).split())}"


def attempt(work: Callable[[Any], Any], item: Any) -> Outcome:
    """Do one piece of work; only a signal gets through."""
    try:
        return Outcome(work(item), None)
    except StoppedBySignal:
        raise
    except Exception as fault:
        return Outcome(None, said(fault))


def _stop_without_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


def _in_own_process(work: Callable[[Any], Any], item: Any, writing: Connection) -> None:
    os.setpgrp()
    # Several processes on one accelerator: none may take most of its memory beforehand.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    # As everywhere but in Gymnasium, which shows its own in each process anew.
    warnings.simplefilter("ignore", DeprecationWarning)
    threading.Thread(target=_stop_without_parent, daemon=True).start()
    try:
        outcome = attempt(work, item)
    except StoppedBySignal as stop:
        outcome = Outcome(None, f"{stop}; the same command goes on with it")
    with contextlib.suppress(OSError):
        writing.send(outcome)


def side_by_side(
    work: Callable[[Any], Any],
    items: Sequence[Any],
    *,
    jobs: int,
    done: Callable[[int, Outcome], None],
) -> None:
    """Do `work` for each item, `jobs` at a time; an item that fails leaves the others be.

    Args:
        work: a function of a module, since with several jobs it goes to other processes.
        items: what it is called with; picklable with several jobs.
        jobs: processes at a time; 1 works in this one.
        done: called with an item's position and outcome as soon as it has ended.

    Raises:
        ComparisonStopped: after SIGINT or SIGTERM, once every process has stopped.
    """
    with _stoppable():
        if jobs == 1:
            for position, item in enumerate(items):
                done(position, attempt(work, item))
        else:
            _in_processes(work, items, jobs, done)


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
                running[reading] = position, process
                process.start()
                writing.close()
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
        for process in alive:
            process.terminate()
        for process in alive:
            process.join()


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """SIGINT and SIGTERM become ComparisonStopped, wherever the comparison is."""

    def stop(number: int, _: Any) -> None:
        raise ComparisonStopped(number)

    main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM) if main else ()
    old = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    except StoppedBySignal as stopped:
        raise ComparisonStopped(stopped.number) from None
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
