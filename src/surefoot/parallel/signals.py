"""Signals that ask a process to store and stop, and the end of one whose parent is gone."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGUSR1", signal.SIGTERM))
"""Ctrl-C, the end of a job, and the notice of a scheduler that is about to take the machine."""
_POLL_S = 0.5


class CatchSignals:
    """Context manager that records the first stop signal, `caught`; a second one stops at once.

    Handlers are restored on exit. A no-op outside the main thread, which gets no signals.
    """

    def __init__(self, react: Callable[[int], Any] | None = None):
        """`react` is called with the first signal's number, inside the handler; it may raise."""
        self.caught: int | None = None
        self._react = react
        self._previous: dict[int, Any] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.caught is not None:
            raise KeyboardInterrupt
        self.caught = number
        if self._react is not None:
            self._react(number)

    def __enter__(self) -> "CatchSignals":
        if threading.current_thread() is threading.main_thread():
            # A set: without SIGUSR1 there is SIGTERM twice, and the second time its previous
            # handler would be ours.
            self._previous = {n: signal.signal(n, self._handle) for n in set(STOP_SIGNALS)}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def end_with_parent(number: int = signal.SIGTERM) -> None:
    """Send this process a signal once its parent is gone; SIGTERM lets it store and stop.

    The parent is that of `multiprocessing`, which may have died already, or of the system.
    """
    parent = multiprocessing.parent_process()
    pid = parent.pid if parent is not None else os.getppid()

    def watch() -> None:
        # An orphan's parent is init, or whatever process adopts it.
        while os.getppid() == pid:
            time.sleep(_POLL_S)
        os.kill(os.getpid(), number)

    threading.Thread(target=watch, daemon=True).start()
