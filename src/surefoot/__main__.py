"""`surefoot` and `python -m surefoot`: the command line, which signals stop from the start."""

import contextlib
import os
import signal
import sys
from types import FrameType

_SIGNALS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
    if hasattr(signal, name)
]


def run_command() -> int:
    """Run one command. A signal outside of training, which has handlers of its own, stops it."""
    for number in _SIGNALS:
        # What `nohup` started is to outlive its terminal.
        if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)
    try:
        from surefoot.cli.parser import main

        return main()
    except KeyboardInterrupt as stop:  # around what answers it elsewhere
        return getattr(stop, "code", 130)
    finally:
        _stop_hard()  # Python itself is about to end


def _stop(number: int, frame: FrameType | None) -> None:
    """Print which signal it is, and unwind to where the command ends."""
    with contextlib.suppress(OSError):
        os.write(2, f"surefoot: stopped by {signal.Signals(number).name}\n".encode())
    _stop_hard()
    if _is_importing(frame):
        # Modules turn an exception into another one, or catch it; and nothing has begun.
        _exit(number, frame)
    from surefoot.errors import StoppedAtOnce

    raise StoppedAtOnce(number)


def _stop_hard() -> None:
    """Have the next signal end the process, whatever it is doing."""
    for number in _SIGNALS:
        if signal.getsignal(number) is _stop:
            signal.signal(number, _exit)


def _exit(number: int, frame: FrameType | None) -> None:
    os._exit(130 if number == signal.SIGINT else 143)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


if __name__ == "__main__":
    # Python puts the current directory first, where a file may have the name of a library's
    # module. What an environment id names is found there all the same, after everything that is
    # installed.
    if sys.path[0] in ("", os.getcwd()):
        del sys.path[0]
    sys.exit(run_command())
