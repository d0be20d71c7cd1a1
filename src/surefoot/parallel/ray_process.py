"""The process of Ray's driver, seen from the process that trains.

Ray exits its driver where its raylet or GCS dies, and leaves calls without an answer where one
hangs. Here either is an error like any other, and no process of that Ray stays behind.
"""

import contextlib
import os
import re
import secrets
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from surefoot.envs.child_process import start_serving
from surefoot.errors import ConfigError, WorkerLostError, printable
from surefoot.parallel.heartbeat import TIMEOUT_S

START_S = 120.0
"""Maximum time of Ray's start, or of a connection to a running one."""
CLOSE_S = 10.0
"""Maximum time of Ray's orderly end, after which it is killed."""
KILL_S = 5.0
"""Maximum time in which processes that are killed must be gone."""
PULSE_S = 0.2
"""Between two calls of a `pulse`."""


def _no_pulse() -> None:
    pass


def cluster_resources(ray: Any) -> dict[str, float]:
    """Numbers of CPUs, GPUs and others of all of Ray's machines, for `RayProcess.call`."""
    return ray.cluster_resources()


class RayProcess:
    """Ray's driver in a process of its own, started with this object.

    `address` is that of a running Ray; None starts one with that many CPU cores, on this machine
    alone.
    """

    def __init__(self, address: str | None, cores: int):
        """Start the driver, and wait until it has connected.

        Raises:
            ConfigError: where Ray is not installed, does not answer, or has no token.
            WorkerLostError: where a local Ray does not start.
        """
        if os.name != "posix":
            raise ConfigError("--cluster ray and --env-workers need a POSIX system")
        # Password of the Ray that is started here, and the mark of all its processes.
        self._token = None if address else secrets.token_hex(32)
        variables = dict(os.environ)
        if self._token:
            variables |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self._token}
        self._calling = False
        # What native code of Ray prints, its last words among it.
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115  (`close` closes it)
        ours, theirs = socket.socketpair()
        with theirs:  # closed here, so that the death of the process ends the socket
            words = str(theirs.fileno()), address or "", str(cores)
            self._process = start_serving(
                "surefoot.parallel.ray:serve_ray",
                words,
                [theirs.fileno()],
                variables=variables,
                output=self._printed,
            )
        self._connection = Connection(ours.detach())
        self._silence, self._checked = 0.0, time.monotonic()
        try:
            self._receive(_no_pulse, START_S)
        except BaseException as error:
            self.close()
            if address and isinstance(error, WorkerLostError):
                raise ConfigError(f"{address}: {error}") from None
            raise
        self._silence = 0.0

    def call(
        self, function: Callable[..., Any], *arguments: Any, pulse: Callable[[], None] = _no_pulse
    ) -> Any:
        """Call a module's function there, with `ray` before its arguments, and return its value.

        A class makes an object, which takes the place of `ray` in the calls that follow. `pulse` is
        called while the value is awaited, and may raise; then only `close` is left to be called.

        Raises:
            SurefootError: what the function raised.
            WorkerLostError: where the driver is gone, or Ray has been silent for `TIMEOUT_S`.
        """
        with contextlib.suppress(OSError):  # `_receive` finds out why
            self._connection.send((function, arguments))
        return self._receive(pulse, TIMEOUT_S)

    def _receive(self, pulse: Callable[[], None], limit: float) -> Any:
        self._calling = True
        while True:
            message = self._next_message()
            now = time.monotonic()
            # Bounded, because this process and Ray's may have been suspended together.
            self._silence += min(now - self._checked, limit / 4)
            self._checked = now
            if message == "beat":
                self._silence = 0.0
                continue
            # Also where a value has arrived: Ray calls actors without its GCS for a minute.
            if self._silence > limit:
                raise self._lost(f"has not answered for {limit:g} s")
            if message is None:
                pulse()
                continue
            self._calling = False
            is_error, value = message
            if is_error:
                raise value
            return value

    def _next_message(self) -> tuple[bool, Any] | Literal["beat"] | None:
        try:
            # One that waits is read whatever the time: this process may itself have been stopped.
            return self._connection.recv() if self._connection.poll(PULSE_S) else None
        except (EOFError, OSError):
            raise self._lost("is gone") from None

    def _lost(self, how: str) -> WorkerLostError:
        self._end(0.0)
        self._printed.seek(0)
        text = re.sub(r"\x1b\[\d*m", "", self._printed.read().decode(errors="replace"))
        # Ray's last words are a paragraph, with parts of its logs indented below it.
        said = [f" ({printable(line)[:200]})" for line in text.split("\n") if line[:1].strip()]
        return WorkerLostError(
            f"Ray {how}{''.join(said[-1:])}: its raylet, GCS or driver was killed, or hangs; run "
            "the same command with --resume auto to continue from the last checkpoint"
        )

    def close(self) -> None:
        """End the driver, and every process of a Ray that it has started."""
        self._end(0.0 if self._calling else CLOSE_S)
        self._printed.close()

    def _end(self, patience: float) -> None:
        self._connection.close()  # the driver then disconnects, unless it is busy
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(patience)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        # Workers have groups of their own; a raylet that is gone or stopped ends none of them.
        until = time.monotonic() + KILL_S
        # Again until none is found: one that has just been started shows its environment late.
        while (pids := list(_marked(self._token))) and time.monotonic() < until:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)


def _marked(token: str | None) -> Iterator[int]:
    """Processes with the token of a Ray in their environment, where there is a /proc to tell."""
    if token is None:
        return
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if token.encode() in (process / "environ").read_bytes():
                yield int(process.name)


@contextlib.contextmanager
def ray_process(address: str | None, cores: int) -> Iterator[RayProcess]:
    """Context manager of a `RayProcess`."""
    process = RayProcess(address, cores)
    try:
        yield process
    finally:
        process.close()
