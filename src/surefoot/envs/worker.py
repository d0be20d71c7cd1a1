"""A process that steps some of the environments, in turn with the one that trains.

Both read and write one board in shared memory. A byte over a socket says whose turn it is, and
whether something is told beside the board. Waiting for it is first a busy loop: waking a process
that sleeps takes as long as a MuJoCo step. Nothing has a name in the file system that could be
left behind, and a process whose trainer is gone reads the end of its socket and stops.
"""

import contextlib
import mmap
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing import spawn
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import IO, Any, NamedTuple

import numpy as np
from gymnasium import spaces
from gymnasium.vector.utils import CloudpickleWrapper

from surefoot.envs.group import (
    Board,
    EnvRaisedError,
    Group,
    Told,
    make_board,
)
from surefoot.envs.single import (
    CopyObservations,
    EnvFactory,
    check_spaces,
    close_envs,
    crash_error,
)
from surefoot.envs.step_timeout import OverdueError
from surefoot.errors import ConfigError, EnvCrashError, SurefootError

PATIENCE = 1e-3
"""Seconds of busy waiting: longer than a policy takes to act, shorter than an update."""
SLEEPS = 10
"""Waits without a busy loop that follow on one in vain."""
GRACE = 5.0
"""Seconds that processes have to close their environments."""
_ALIGNMENT = 64  # bytes, of every array on the board

# Not multiprocessing's start, which would run the user's script once more. Ctrl-C, and the stop of
# a whole job, are the trainer's to answer from the first moment on; a handler that does nothing
# ends with an exec, where an ignored signal stays ignored by what an environment starts.
_START = f"""
import signal, sys
for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
    signal.signal(getattr(signal, name), lambda *_: None)
sys.path[:] = sys.argv[4:]
from {__name__} import main
main()
"""


class HungUpError(Exception):
    """The other end of a line is gone."""


class Line:
    """One end of a line between two processes: a byte a turn, with a message where there is one.

    `alive` tells whether the other process still runs: its end of the socket may be kept open by
    a program that an environment started.
    """

    def __init__(self, end: socket.socket, *, patience: float, alive: Callable[[], bool]):
        end.setblocking(True)  # whatever default the user's program has set
        self._socket, self._patience, self._alive = end, patience, alive
        self._connection = Connection(os.dup(end.fileno()))
        self._sleeps = 0
        self._poll = select.poll()
        self._poll.register(end, select.POLLIN)

    def send(self, message: Any = None) -> None:
        """Pass the turn, and a message if it is not None.

        Raises:
            HungUpError: where the other end is gone.
        """
        words = None if message is None else ForkingPickler.dumps(message)  # which may fail
        try:
            self._socket.send(b"\0" if words is None else b"\1")
            if words is not None:
                self._connection.send_bytes(words)
        except OSError as fault:
            raise HungUpError from fault

    def receive(self) -> Any:
        """Wait for the turn; the message that comes with it, or None.

        Raises:
            HungUpError: where the other end is gone.
        """
        try:
            byte = self._wait()
            words = self._connection.recv_bytes() if byte == b"\1" else None
        except (OSError, EOFError) as fault:
            raise HungUpError from fault
        if not byte:
            raise HungUpError
        pickler: Any = ForkingPickler  # its `loads` is announced as a method
        return None if words is None else pickler.loads(words)

    def _wait(self) -> bytes:
        """The byte of the turn, awaited in a busy loop while that is what works.

        Where something else wants the cores, a busy loop only keeps the other process from going
        on (rollouts took four times as long); so one in vain is followed by some sleeping waits.
        """
        if self._sleeps:
            self._sleeps -= 1
        else:
            until = time.monotonic() + self._patience
            while time.monotonic() < until:
                try:
                    return self._socket.recv(1, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    os.sched_yield()
            self._sleeps = SLEEPS
        while not self._poll.poll(1000):
            if not self._alive():
                return b""
        return self._socket.recv(1)

    def close(self) -> None:
        """Hang up, though a process that was forked off may hold this end as well."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._connection.close()
        self._socket.close()


class BoardMemory:
    """Memory that several processes map, under no name: the last one that closes it frees it."""

    def __init__(self, number: int | None = None):
        self._file = _anonymous_file() if number is None else os.fdopen(number, "r+b")

    @property
    def number(self) -> int:
        """The file descriptor that another process maps it by."""
        return self._file.fileno()

    def board(self, of: tuple[spaces.Space, spaces.Space], num_envs: int) -> Board:
        """A board of this memory, which is as large as it needs afterwards."""
        size = 0

        def measure(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
            nonlocal size
            size += _aligned(shape, dtype)
            return np.empty(0)

        make_board(of, num_envs, measure)
        os.ftruncate(self.number, size)
        memory, offset = mmap.mmap(self.number, size), 0

        def cut(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
            nonlocal offset
            here, offset = offset, offset + _aligned(shape, dtype)
            return np.frombuffer(memory, dtype, int(np.prod(shape)), here).reshape(shape)

        return make_board(of, num_envs, cut)

    def close(self) -> None:
        """Let go of the file; what is mapped of it stays."""
        self._file.close()


def _aligned(shape: tuple[int, ...], dtype: Any) -> int:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return -(-max(size, 1) // _ALIGNMENT) * _ALIGNMENT


def _anonymous_file() -> IO[bytes]:
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("surefoot"), "r+b")
    return tempfile.TemporaryFile()


class _Job(NamedTuple):
    """What a worker makes: environments `first` to `first + count` of `num_envs`."""

    factory: EnvFactory
    first: int
    count: int
    num_envs: int
    restart: bool


def _whole(value: Any) -> Any:
    """A value that brings along what a module that only this process has defines."""
    wrap: Any = CloudpickleWrapper  # announced for functions that make environments
    return wrap(value)


class Worker:
    """The trainer's side of one such process, which starts and makes its environments at once.

    What an environment raises there is raised here by `answer`.

    Attributes:
        rows: the numbers of its environments.
    """

    def __init__(
        self,
        factory: EnvFactory,
        memory: BoardMemory,
        *,
        rows: range,
        num_envs: int,
        patience: float,
        restart: bool,
    ):
        self.rows, self._env_id = rows, factory.env_id
        ours, theirs = socket.socketpair()
        with theirs:
            numbers = theirs.fileno(), memory.number
            flags = ["-" + "O" * sys.flags.optimize] if sys.flags.optimize else []
            words = *map(str, numbers), str(patience), *sys.path
            self._process = subprocess.Popen(
                [spawn.get_executable(), *flags, "-c", _START, *words],
                stdin=subprocess.DEVNULL,
                pass_fds=numbers,
            )
        self._line = Line(ours, patience=patience, alive=lambda: self._process.poll() is None)
        try:
            self._send(_whole(_Job(factory, rows[0], len(rows), num_envs, restart)))
        except Exception as fault:
            self.hang_up()
            self.end(time.monotonic())
            raise ConfigError(
                f"{factory.env_id}: cannot be made in another process ({fault}); "
                "--vectorization sync needs none"
            ) from fault

    def join(self, env: CopyObservations) -> None:
        """Have it use the board, once its environments are made, with the same spaces as `env`."""
        self._send(_whole((env.observation_space, env.action_space)))

    def reset(self, seeds: Sequence[int]) -> None:
        """Start new episodes there."""
        self._send(list(seeds))

    def step(self) -> None:
        """Have it act as the board says."""
        self._send()

    def answer(self) -> Told:
        """Wait until it has done so; what its environments tell beside the board."""
        try:
            told = self._line.receive()
        except HungUpError as fault:
            raise self._lost() from fault
        except OverdueError as fault:
            fault.args = (f"the process of {self._whose}",)
            raise
        if isinstance(told, Exception):
            raise told
        return told or []

    def _send(self, message: Any = None) -> None:
        # One that is gone may have said why: its answer is read first, and tells.
        with contextlib.suppress(HungUpError):
            self._line.send(message)

    @property
    def _whose(self) -> str:
        return f"environments {self.rows[0]} to {self.rows[-1]}"

    def _lost(self) -> EnvCrashError:
        how = "hung up"
        with contextlib.suppress(subprocess.TimeoutExpired):
            how = _ended(self._process.wait(GRACE))
        return EnvCrashError(
            f"{self._env_id}: the process of {self._whose} "
            f"(pid {self._process.pid}) {how}; --vectorization sync needs no such process"
        )

    def hang_up(self) -> None:
        """Have the process close its environments and end."""
        self._line.close()

    def end(self, deadline: float) -> None:
        """Wait for that until a time of the monotonic clock, and end it then."""
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def end_workers(workers: Sequence[Worker]) -> None:
    """End processes, all at once."""
    for worker in workers:
        worker.hang_up()
    deadline = time.monotonic() + GRACE
    for worker in workers:
        worker.end(deadline)


def _ended(status: int) -> str:
    if status >= 0:
        return f"ended with exit status {status}"
    known = -status in set(signal.Signals)
    name = signal.Signals(-status).name if known else f"signal {-status}"
    return f"was killed by {name}" + (" (out of memory?)" if -status == signal.SIGKILL else "")


def _serve(line: Line, memory: BoardMemory, envs: list[CopyObservations]) -> None:
    """Make environments, and step or reset them at each turn until the line is closed."""
    job: _Job = line.receive().fn
    envs += job.factory.make_all(job.count, job.first)
    expected = line.receive().fn
    check_spaces(job.factory.env_id, envs[0], expected, job.first)
    again = job.factory.make if job.restart else None
    group = Group(envs, memory.board(expected, job.num_envs), job.first, again)
    told: Told = []
    while True:
        line.send(told or None)
        seeds = line.receive()
        told = group.step() if seeds is None else group.reset(seeds)


def main() -> None:
    """Serve the trainer that started this process."""
    numbers, patience = [int(word) for word in sys.argv[1:3]], float(sys.argv[3])
    for number in numbers:
        os.set_inheritable(number, False)  # by what an environment starts
    trainer = os.getppid()
    end = socket.socket(fileno=numbers[0])
    line = Line(end, patience=patience, alive=lambda: os.getppid() == trainer)
    envs: list[CopyObservations] = []
    try:
        _serve(line, BoardMemory(numbers[1]), envs)
    except HungUpError:
        pass
    except BaseException as fault:
        with contextlib.suppress(HungUpError):
            line.send(_tellable(fault))
    finally:
        close_envs(envs)


def _tellable(fault: BaseException) -> Exception:
    """A fault as another process can read it, whose modules may not be this one's."""
    if isinstance(fault, SurefootError | EnvRaisedError):
        return fault
    told = crash_error("environments of another process", "making or stepping them", fault)
    told.add_note(traceback.format_exc())
    return told
