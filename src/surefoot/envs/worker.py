"""Processes that step some of a run's environments, in turn with the process that trains.

Both sides read and write the same `SharedBuffers`; a `Channel` passes the turn. Free of JAX.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Any, NamedTuple

from gymnasium.vector.utils import CloudpickleWrapper

from surefoot.envs.channel import Channel, ChannelClosedError
from surefoot.envs.child_process import start_serving
from surefoot.envs.env_errors import crash_error
from surefoot.envs.group import EnvFactory, EnvGroup, EnvInfos, Spaces
from surefoot.envs.shared_memory import SharedBuffers
from surefoot.envs.step_timeout import StepTimeoutError, stop_clocks
from surefoot.errors import ConfigError, EnvCrashError, SurefootError

GRACE_SECONDS = 5.0
"""Time that processes have to close their environments."""


class Share(NamedTuple):
    """The environments of one process: `rows` of `num_envs`."""

    factory: EnvFactory
    rows: range
    num_envs: int


class WorkerProcess:
    """The trainer's side of a process that makes and steps its share of the environments.

    `receive` raises what an environment raised there.
    """

    def __init__(self, share: Share, shared: SharedBuffers, *, busy_seconds: float):
        self.rows, self._env_id = share.rows, share.factory.env_id
        self._process_of = f"the process of environments {self.rows[0]} to {self.rows[-1]}"
        ours, theirs = socket.socketpair()
        # Closed here after the start: else the death of the process would not end the socket.
        with theirs:
            descriptors = theirs.fileno(), shared.descriptor
            words = *map(str, descriptors), str(busy_seconds)
            self._process = start_serving(f"{__name__}:serve_environments", words, descriptors)
        self._channel = Channel(
            ours, busy_seconds=busy_seconds, alive=lambda: self._process.poll() is None
        )
        try:
            self.send(by_value(share))
        except Exception as error:
            end_workers([self])
            raise ConfigError(
                f"{self._env_id}: cannot be made in another process ({error}); use --vectorization "
                "sync"
            ) from error

    def send(self, message: Any = None) -> None:
        """Pass the turn: once with `by_value(spaces)`, then with a reset's arguments, or a step."""
        # A process that is gone may have sent the reason: `receive` reads and raises that.
        with contextlib.suppress(ChannelClosedError):
            self._channel.send(message)

    def receive(self) -> EnvInfos:
        """Wait for the end of a step, and return the infos of its environments."""
        try:
            answer = self._channel.receive()
        except ChannelClosedError as error:
            raise self._lost() from error
        except StepTimeoutError as error:
            error.args = (self._process_of,)
            raise
        if isinstance(answer, Exception):
            raise answer
        return answer or {}

    def _lost(self) -> EnvCrashError:
        # The socket ends a moment before the process does.
        how = "closed its channel"
        with contextlib.suppress(subprocess.TimeoutExpired):
            how = _describe_exit(self._process.wait(GRACE_SECONDS))
        return EnvCrashError(
            f"{self._env_id}: {self._process_of} (pid {self._process.pid}) {how}; "
            "--vectorization sync uses no such process"
        )

    def hang_up(self) -> None:
        """Have the process close its environments and exit."""
        self._channel.close()

    def end(self, deadline: float) -> None:
        """Wait for its exit until a time of the monotonic clock, then kill it."""
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)


def end_workers(workers: Sequence[WorkerProcess]) -> None:
    """End processes, all at once, with `GRACE_SECONDS` to close their environments."""
    stop_clocks()
    for worker in workers:
        worker.hang_up()
    # One deadline for all, so that many that hang take no longer than one.
    deadline = time.monotonic() + GRACE_SECONDS
    for worker in workers:
        worker.end(deadline)


def by_value(value: Any) -> Any:
    """A value pickled with the classes of modules that only this process has."""
    wrap: Any = CloudpickleWrapper  # declared for functions that make environments
    return wrap(value)


def _describe_exit(status: int) -> str:
    if status >= 0:
        return f"ended with exit status {status}"
    known = -status in set(signal.Signals)
    name = signal.Signals(-status).name if known else f"signal {-status}"
    return f"was killed by {name}" + (" (out of memory?)" if -status == signal.SIGKILL else "")


def serve_environments() -> None:
    """Serve the trainer that started this process."""
    descriptors, busy_seconds = [int(word) for word in sys.argv[1:3]], float(sys.argv[3])
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)  # by programs that environments start
    # An orphan gets another parent, which shows the death of this one.
    trainer = os.getppid()
    end = socket.socket(fileno=descriptors[0])
    channel = Channel(end, busy_seconds=busy_seconds, alive=lambda: os.getppid() == trainer)
    try:
        _serve(channel, SharedBuffers(descriptors[1]))
    # How the work ends: the trainer has hung up, or is gone.
    except ChannelClosedError:
        pass
    except BaseException as error:
        with contextlib.suppress(ChannelClosedError):
            channel.send(_sendable(error))
    finally:
        if os.getppid() != trainer:  # which can no longer end what is left
            os.killpg(0, signal.SIGKILL)


def _serve(channel: Channel, shared: SharedBuffers) -> None:
    """Make environments, and step or reset them at each turn until the channel closes."""
    share: Share = channel.receive().fn
    with contextlib.closing(EnvGroup(share.factory, share.rows)) as group:
        expected: Spaces = channel.receive().fn
        share.factory.check_spaces(group.envs[0], expected, share.rows[0])
        actions, group.results = shared.map(expected, share.num_envs).rows(share.rows)
        infos: EnvInfos = {}
        while True:
            channel.send(infos or None)
            reset = channel.receive()
            infos = group.step(actions).infos if reset is None else group.reset(*reset)[1]


def _sendable(error: BaseException) -> Exception:
    """An error that another process can unpickle, which may lack the modules of this one."""
    sent = error
    if not isinstance(sent, SurefootError):
        sent = crash_error("environments of another process", "making or stepping them", error)
    # A traceback cannot be pickled, and text can.
    sent.add_note(traceback.format_exc())
    return sent
