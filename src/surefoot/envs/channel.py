"""A channel between two processes that take turns: one byte a turn, and rarely a message.

Waiting for a turn starts as a busy loop: waking a process that sleeps takes as long as a MuJoCo
step. A process whose partner is gone reads the end of the socket.
"""

import contextlib
import os
import select
import socket
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

BUSY_SECONDS = 1e-3
"""Length of a busy wait: longer than a policy takes to act, shorter than an update."""
SLEEPING_WAITS = 10
"""Waits without a busy loop after one in vain."""


class ChannelClosedError(Exception):
    """The process at the other end is gone."""


class Channel:
    """One end of the channel.

    `alive` returns whether the other process still runs: a program that an environment started may
    keep its end of the socket open.
    """

    def __init__(self, end: socket.socket, *, busy_seconds: float, alive: Callable[[], bool]):
        end.setblocking(True)  # whatever default timeout the user's program has set
        self._socket, self._busy_seconds, self._alive = end, busy_seconds, alive
        # A descriptor of its own, since the socket and the connection each close theirs.
        self._connection = Connection(os.dup(end.fileno()))
        self._sleeping_waits = 0
        self._poll = select.poll()
        self._poll.register(end, select.POLLIN)

    def send(self, message: Any = None) -> None:
        """Pass the turn, and a message unless it is None, or raise a ChannelClosedError."""
        data = None if message is None else ForkingPickler.dumps(message)  # which may fail
        try:
            self._socket.send(b"\0" if data is None else b"\1")
            if data is not None:
                self._connection.send_bytes(data)
        except OSError as error:
            raise ChannelClosedError from error

    def receive(self) -> Any:
        """Wait for the turn; return its message or None, or raise a ChannelClosedError."""
        try:
            byte = self._wait()
            data = self._connection.recv_bytes() if byte == b"\1" else None
        except (OSError, EOFError) as error:
            raise ChannelClosedError from error
        if not byte:
            raise ChannelClosedError
        pickler: Any = ForkingPickler  # typeshed declares `loads` as a method
        return None if data is None else pickler.loads(data)

    def _wait(self) -> bytes:
        # If other programs compete for the cores, a busy loop keeps the other process from going
        # on (rollouts took four times as long), so a few sleeping waits follow one in vain.
        if self._sleeping_waits:
            self._sleeping_waits -= 1
        else:
            until = time.monotonic() + self._busy_seconds
            while time.monotonic() < until:
                try:
                    return self._socket.recv(1, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    # As fast as a plain loop on idle cores, and far less in the way on busy ones.
                    os.sched_yield()
            self._sleeping_waits = SLEEPING_WAITS
        # The end of the socket is not enough: a fork of the other process may hold it open.
        while not self._poll.poll(1000):
            if not self._alive():
                return b""
        return self._socket.recv(1)

    def close(self) -> None:
        """Close the channel, even if a forked process holds this end as well."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._connection.close()
        self._socket.close()
