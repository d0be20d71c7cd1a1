"""Heartbeats between ranks, so that none waits for another one that hangs."""

import contextlib
import os
import sys
import threading
import time
from typing import Any, NoReturn

import jax

from surefoot.errors import SurefootError, WorkerLostError, printable
from surefoot.parallel.jax_private import is_coordinator

TIMEOUT_S = 20
"""Seconds without a heartbeat after which a rank counts as lost, and all others exit."""
_KEY = "surefoot/alive"


class Heartbeat:
    """Threads that send this rank's heartbeat and exit when another rank's stops.

    A process that is stopped, or cut off from the network, closes no connection: the others would
    wait for it forever inside a sum over all ranks.
    """

    def __init__(self, client: Any, rank: int, count: int):
        self._client, self._rank, self._count = client, rank, count
        self._stopped = threading.Event()
        self._last_seen = dict.fromkeys(range(count), time.monotonic())
        # Two threads, since a call to a coordinator that hangs may never return.
        for work in (self._send_and_receive, self._watch):
            threading.Thread(target=work, daemon=True).start()

    def stop(self) -> None:
        """Stop watching, before the ranks disconnect."""
        self._stopped.set()

    def _send_and_receive(self) -> None:
        counters: dict[int, str] = {}
        sent = 0
        while not self._stopped.wait(TIMEOUT_S / 10):
            sent += 1
            # If the store is out of reach, `_watch` notices that no heartbeat arrives.
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                own_key = f"{_KEY}/{self._rank}"
                self._client.key_value_set(own_key, str(sent), allow_overwrite=True)
                for key, counter in self._client.key_value_dir_get(_KEY):
                    rank = int(key.rpartition("/")[2])
                    # Counters and this rank's own clock: clocks of machines differ.
                    if counters.get(rank) != counter:
                        counters[rank] = counter
                        self._last_seen[rank] = time.monotonic()

    def _watch(self) -> None:
        checked = time.monotonic()
        while not self._stopped.wait(1.0):
            now = time.monotonic()
            if now - checked > TIMEOUT_S / 2:  # the whole machine was suspended and resumed
                self._last_seen = dict.fromkeys(self._last_seen, now)
            checked = now
            silent = [rank for rank, seen in self._last_seen.items() if now - seen > TIMEOUT_S]
            # Checked again: `stop` may have been called since the wait.
            if silent and not self._stopped.is_set():
                other = "the coordinator, rank 0," if 0 in silent else f"rank {min(silent)}"
                abort_rank(
                    WorkerLostError(
                        f"rank {self._rank} of {self._count} has had no heartbeat from {other} for "
                        f"{TIMEOUT_S} s: its process hangs, or its machine or network is down; run "
                        "the same command to continue from the last checkpoint"
                    )
                )


def abort_rank(error: SurefootError) -> NoReturn:
    """Print an error and exit, whatever native code the main thread waits in."""
    print(f"surefoot: error[{error.name}]: {printable(str(error))}", file=sys.stderr, flush=True)
    exit_rank(error.code)


def exit_rank(code: int) -> NoReturn:
    """Exit a failed rank at once; an orderly shutdown would wait for the other ranks.

    The coordinator waits a moment longer: without it, ranks that fail with it would be ended by JAX
    before they have printed their own error.
    """
    if jax.distributed.is_initialized() and is_coordinator():
        time.sleep(1.0)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
