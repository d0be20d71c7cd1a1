"""Ranks that say they are alive, and end where another one no longer does."""

import contextlib
import os
import sys
import threading
import time
from typing import Any, NoReturn

import jax

from surefoot.errors import SurefootError, WorkerLostError, printable

SILENCE_S = 20
"""Seconds after which a rank that says nothing is taken for dead, and all end."""


class Heartbeat:
    """Says every few seconds that this rank is alive, and ends it where another one is silent.

    A process that is stopped, or whose machine is gone, closes no connection; the others would wait
    for it inside a sum over all ranks.
    """

    def __init__(self, client: Any, rank: int, count: int):
        self._client, self._rank, self._count = client, rank, count
        self._stopped = threading.Event()
        self._heard = dict.fromkeys(range(count), time.monotonic())
        for work in (self._beat, self._listen):
            threading.Thread(target=work, daemon=True).start()

    def stop(self) -> None:
        """Everybody may go now."""
        self._stopped.set()

    def _beat(self) -> None:
        seen: dict[int, str] = {}
        beats = 0
        while not self._stopped.wait(SILENCE_S / 10):
            beats += 1
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                mine = f"surefoot/alive/{self._rank}"
                self._client.key_value_set(mine, str(beats), allow_overwrite=True)
                for rank in range(self._count):
                    said = self._client.key_value_try_get(f"surefoot/alive/{rank}")
                    if seen.get(rank) != said:
                        seen[rank], self._heard[rank] = said, time.monotonic()

    def _listen(self) -> None:
        while not self._stopped.wait(1.0):
            silent = {
                rank: time.monotonic() - heard
                for rank, heard in self._heard.items()
                if time.monotonic() - heard > SILENCE_S
            }
            if silent and not self._stopped.is_set():
                who = "the coordinator, rank 0" if 0 in silent else f"rank {min(silent)}"
                end_at_once(
                    WorkerLostError(
                        f"rank {self._rank} of {self._count} has heard nothing of {who} for "
                        f"{SILENCE_S} s: it hangs, or its machine or network is gone; the same "
                        "command goes on from the last checkpoint"
                    )
                )


def end_at_once(fault: SurefootError) -> NoReturn:
    """End this process with a fault: others wait for it in native code, and it for them."""
    print(f"surefoot: error[{fault.name}]: {printable(str(fault))}", file=sys.stderr, flush=True)
    leave_at_once(fault.code)


def leave_at_once(code: int) -> NoReturn:
    """End a rank: to leave as Python does would be to wait for the others in native code.

    Rank 0, through which they meet, goes a moment later than the others: without it they would be
    ended before they have said why they fail, or heard that they may go.
    """
    if jax.distributed.is_initialized() and jax.process_index() == 0:
        time.sleep(1.0)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
