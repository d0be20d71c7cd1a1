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
_ALIVE = "surefoot/alive"


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
                mine = f"{_ALIVE}/{self._rank}"
                self._client.key_value_set(mine, str(beats), allow_overwrite=True)
                for key, said in self._client.key_value_dir_get(_ALIVE):
                    rank = int(key.rpartition("/")[2])
                    if seen.get(rank) != said:
                        seen[rank], self._heard[rank] = said, time.monotonic()

    def _listen(self) -> None:
        looked = time.monotonic()
        while not self._stopped.wait(1.0):
            now = time.monotonic()
            if now - looked > SILENCE_S / 2:  # all were put to sleep, and go on
                self._heard = dict.fromkeys(self._heard, now)
            looked = now
            silent = [rank for rank, heard in self._heard.items() if now - heard > SILENCE_S]
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
    """End a rank that has failed: to leave in peace would be to wait for the others.

    Rank 0, through which they meet, goes a moment later than ranks that fail with it: without it
    they would be ended before they have said why.
    """
    if jax.distributed.is_initialized():
        from jax._src import distributed  # JAX itself would start its devices to answer

        if distributed.global_state.process_id == 0:
            time.sleep(1.0)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
