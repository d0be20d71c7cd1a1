"""Time out environments that hang while they are made, reset, stepped or closed.

A thread watches the clock and interrupts the main thread, wherever it is in Python or in a system
call. Native code that never returns to Python cannot be interrupted: there the process exits with
the error line that would have been raised.
"""

import faulthandler
import os
import signal
import sys
import threading
import time
from types import FrameType

from surefoot.errors import EnvCrashError

INTERRUPT_SECONDS = 5.0
"""Time that an interrupted step has to end."""


class StepTimeoutError(BaseException):
    """A call took too long. No `except Exception` of an environment's may swallow it."""


class StepTimeout:
    """A limit of `seconds` for each call of an environment; 0 is none.

    Set `started` to the monotonic clock before a call, and to None after it.
    """

    def __init__(self, seconds: float, env_id: str):
        self.seconds, self._env_id = seconds, env_id
        self.started: float | None = None
        self._closed = threading.Event()
        # Python sets and runs signal handlers in the main thread only.
        in_main = threading.current_thread() is threading.main_thread()
        # A handler other than the default is the program's own, which needs the signal.
        free = hasattr(signal, "SIGALRM") and signal.getsignal(signal.SIGALRM) in (
            signal.SIG_DFL,
            _interrupt,
        )
        if seconds and in_main and free:
            signal.signal(signal.SIGALRM, _interrupt)
            thread = threading.Thread(target=self._watch, daemon=True, name="surefoot-timeout")
            thread.start()
            _watching[self] = thread

    @property
    def message(self) -> str:
        """What went wrong, to follow what did not respond."""
        return f"did not respond within {self.seconds:g} s (env_timeout_s)"

    def _watch(self) -> None:
        # A step exceeds its limit by at most a quarter of it, or by a second.
        while not self._closed.wait(min(1.0, self.seconds / 4)):
            started = self.started
            if started is None or time.monotonic() - started < self.seconds:
                continue
            # Before the signal: the handler raises only if this very step still runs.
            _overdue[self] = started
            # Of an environment that has set the default handler it would end the process unsaid.
            if signal.getsignal(signal.SIGALRM) is _interrupt:
                # To the thread, not the process, so that its system call is interrupted.
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)
            until = time.monotonic() + INTERRUPT_SECONDS
            while self.started == started and time.monotonic() < until:
                self._closed.wait(0.05)
            _overdue.pop(self, None)
            if self.started == started:
                text = f"{self._env_id} {self.message}, in code that cannot be interrupted"
                error = EnvCrashError(text, name="ENV-HUNG")
                print(f"surefoot: error[{error.name}]: {error}", file=sys.stderr, flush=True)
                os._exit(error.code)

    def close(self) -> None:
        """Stop watching; the last one restores the signal's handler."""
        self._closed.set()
        thread = _watching.pop(self, None)
        if thread is None or threading.current_thread() is not threading.main_thread():
            return
        thread.join(1.0)  # its signal would end the process once the handler is restored
        ours = signal.getsignal(signal.SIGALRM) is _interrupt
        if ours and not _watching and not thread.is_alive():
            signal.signal(signal.SIGALRM, signal.SIG_DFL)


_watching: dict[StepTimeout, threading.Thread] = {}
_overdue: dict[StepTimeout, float] = {}


def restart_clocks() -> None:
    """Give the next of several calls that are timed as one the whole time."""
    for timeout in _watching:
        if timeout.started is not None:
            timeout.started = time.monotonic()


def stop_clocks() -> None:
    """Time nothing of what is left of a call, because it has a limit of its own."""
    for timeout in _watching:
        timeout.started = None


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise in the main thread, unless the overdue step has ended in the meantime."""
    still = any(timeout.started == started for timeout, started in _overdue.items())
    _overdue.clear()
    if still:
        raise StepTimeoutError


def exit_where_lock_is_held(seconds: float) -> None:
    """From now on exit this process once one thread has kept Python's lock for `seconds`; 0: never.

    For a process of which another one notices the end: the traceback goes to its standard error,
    and the exit status is 1.
    """

    def put_off() -> None:
        while True:
            # Its timer is native code, which fires without the lock unless it is set again.
            faulthandler.dump_traceback_later(seconds, exit=True, file=2)
            time.sleep(min(1.0, seconds / 4))

    if seconds:
        threading.Thread(target=put_off, daemon=True, name="surefoot-lock").start()
