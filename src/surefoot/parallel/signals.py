"""Signals that ask a process to store and stop, and the end of one whose parent is gone."""

import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

STOP_SIGNALS = (
    signal.SIGINT,
    signal.SIGTERM,
    # Windows has neither of these.
    getattr(signal, "SIGHUP", signal.SIGTERM),
    getattr(signal, "SIGUSR1", signal.SIGTERM),
)
"""Ctrl-C, the end of a job, a terminal that is closed, and a scheduler's notice that it is about to
take the machine."""
_POLL_S = 0.5


class CatchSignals:
    """Context manager that records the first stop signal, `caught`; a second one stops at once.

    Handlers are restored on exit. A no-op outside the main thread, which gets no signals.
    """

    def __init__(
        self,
        react: Callable[[int], Any] | None = None,
        announce: Callable[[str], Any] | None = None,
    ):
        """Catch nothing yet.

        `react` is called with the first signal's number, inside the handler; it may raise.
        `announce` is called with its name at once, from a thread: Python runs the handler only
        when the compiled code that the main thread is in returns.
        """
        self.caught: int | None = None
        self._react, self._announce = react, announce
        self._previous: dict[int, Any] = {}
        self._wakeup: tuple[socket.socket, int, threading.Thread] | None = None

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
            numbers = {n for n in STOP_SIGNALS if not _is_to_survive(n)}
            self._previous = {n: signal.signal(n, self._handle) for n in numbers}
            if self._announce is not None:
                self._announce_from_a_thread(self._announce)
        return self

    def _announce_from_a_thread(self, announce: Callable[[str], Any]) -> None:
        ours, ends = socket.socketpair()
        ends.setblocking(False)  # the C handler must never wait
        previous = signal.set_wakeup_fd(ends.fileno(), warn_on_full_buffer=False)

        def watch() -> None:
            with ours:
                while numbers := ours.recv(64):
                    stops = [n for n in numbers if n in self._previous]
                    if stops:
                        announce(signal.Signals(stops[0]).name)
                        return

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        self._wakeup = ends, previous, thread

    def __exit__(self, *_: Any) -> None:
        if self._wakeup is not None:
            ends, previous, thread = self._wakeup
            signal.set_wakeup_fd(previous)
            ends.close()  # which ends the thread
            # One that is still on its way when the interpreter ends would abort the process.
            thread.join(timeout=1.0)
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def _is_to_survive(number: int) -> bool:
    """Whether `nohup` started this process, which is to outlive its terminal."""
    hangup = getattr(signal, "SIGHUP", None)
    return number == hangup and signal.getsignal(number) is signal.SIG_IGN


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
