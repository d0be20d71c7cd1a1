"""An end for steps that never return, whoever holds them up.

A thread looks at the clock. Where a step is overdue it interrupts the main thread, wherever in
Python or in a call of the system that is; native code that never comes back to Python cannot be
interrupted, and ends the process with the line that would have been said.
"""

import os
import signal
import sys
import threading
import time
from types import FrameType

from surefoot.errors import EnvCrashError

UNINTERRUPTED = 5.0
"""Seconds that an interrupted step may take to end."""


class OverdueError(BaseException):
    """A step is overdue. No `except Exception` of an environment's may swallow it."""


class Watch:
    """A limit in `seconds` for what goes on; 0 is none.

    `since` is when it began, by the monotonic clock, and None while nothing goes on.
    """

    def __init__(self, seconds: float, what: str):
        self.seconds, self._what = seconds, what
        self.since: float | None = None
        self._closed = threading.Event()
        in_main = threading.current_thread() is threading.main_thread()
        # Without that signal's default action there is somebody else who waits for it.
        free = hasattr(signal, "SIGALRM") and signal.getsignal(signal.SIGALRM) in (
            signal.SIG_DFL,
            _interrupt,
        )
        if seconds and in_main and free:
            signal.signal(signal.SIGALRM, _interrupt)
            thread = threading.Thread(target=self._look, daemon=True, name="surefoot-watch")
            thread.start()
            _looking[self] = thread

    def _look(self) -> None:
        while not self._closed.wait(min(1.0, self.seconds / 4)):
            since = self.since
            if since is None or time.monotonic() - since < self.seconds:
                continue
            _overdue[self] = since
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)
            until = time.monotonic() + UNINTERRUPTED
            while self.since == since and time.monotonic() < until:
                self._closed.wait(0.05)
            _overdue.pop(self, None)
            if self.since == since:
                said = f"{self._what} {self.told}, in code that cannot be interrupted"
                fault = EnvCrashError(said, name="ENV-HUNG")
                print(f"surefoot: error[{fault.name}]: {fault}", file=sys.stderr, flush=True)
                os._exit(fault.code)

    @property
    def told(self) -> str:
        """What is to be said of one that is overdue."""
        return f"gave no answer for {self.seconds:g} s (env_timeout_s)"

    def close(self) -> None:
        """Look no more; the last one gives the signal back."""
        self._closed.set()
        thread = _looking.pop(self, None)
        if thread is None or threading.current_thread() is not threading.main_thread():
            return
        thread.join(1.0)  # a signal of its own after that would end the process
        ours = signal.getsignal(signal.SIGALRM) is _interrupt
        if ours and not _looking and not thread.is_alive():
            signal.signal(signal.SIGALRM, signal.SIG_DFL)

    def is_still(self, since: float) -> bool:
        """Whether what began then has not ended."""
        return self.since == since


_looking: dict[Watch, threading.Thread] = {}
_overdue: dict[Watch, float] = {}


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Runs in the main thread; what was overdue may have ended in the meantime."""
    still = any(watch.is_still(since) for watch, since in _overdue.items())
    _overdue.clear()
    if still:
        raise OverdueError
