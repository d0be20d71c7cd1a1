"""Several ranks of one run: how they start alike, agree, and end.

JAX's distributed runtime carries the values. All ranks run the same loop over the same program, and
all decisions depend on sums over all ranks, so that they cannot diverge; only rank 0 writes.
"""

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from jaxtyping import PyTree

from surefoot.config.differences import differences
from surefoot.errors import (
    ConfigError,
    ReplicaError,
    StorageError,
    SurefootError,
    WorkerLostError,
    error_of_code,
)
from surefoot.parallel import jax_private
from surefoot.parallel.heartbeat import Heartbeat
from surefoot.parallel.mesh import Ranks, spread_over
from surefoot.parallel.replicas import installation, replica_check

ANSWER_S = 60
"""Seconds within which every rank must send a value that the others wait for."""


class ConnectedRanks(Ranks):
    """The processes that `jax.distributed` has connected, with that many devices each."""

    def __init__(self, devices: int):
        self.rank, self.count = jax.process_index(), jax.process_count()
        self._exchanges = 0
        self._is_opening = self._announced = False
        self._client = jax_private.key_value_client()
        self._heartbeat = Heartbeat(self._client, self.rank, self.count)
        # Every rank checks all counts, so that all end with the same error.
        for rank, available in enumerate(self.exchange(jax.local_device_count())):
            if available < devices:
                raise ConfigError(
                    f"devices {devices}: rank {rank} of {self.count} has {available}; ask for "
                    "fewer (--devices N)",
                    name="DEVICES",
                )
        chosen = [jax.local_devices(rank)[:devices] for rank in range(self.count)]
        self.placement = spread_over([device for some in chosen for device in some])
        self._devices = list(self.placement.mesh.devices.flat)
        self._check = replica_check(self.placement.mesh)

    def exchange(self, value: Any) -> list[Any]:
        """See `Ranks`."""
        self._exchanges += 1
        # Matched by number: all ranks must make the same exchanges in the same order.
        key = f"surefoot/{self._exchanges}"
        self._client.key_value_set(f"{key}/{self.rank}", json.dumps(value))
        with self.reporting_loss():
            return [
                json.loads(self._client.blocking_key_value_get(f"{key}/{rank}", ANSWER_S * 1000))
                for rank in range(self.count)
            ]

    def _compare(self, settings: dict[str, Any]) -> None:
        """Refuse to start where a rank would compute something else."""
        everywhere = self.exchange(settings | installation())
        for rank, other in enumerate(everywhere):
            pairs = differences(everywhere[0], other).items()
            if pairs:
                texts = [f"{k} {json.dumps(new)}, not {json.dumps(old)}" for k, (old, new) in pairs]
                raise ConfigError(
                    f"rank {rank} of {self.count} differs from rank 0: {'; '.join(texts[:3])}; "
                    "start all ranks with one command and one installation",
                    name="RANKS",
                )

    def _check_shared(self, path: Path) -> None:
        """Check that all ranks see the directory of the run, before rank 0 writes there."""
        file = path.parent / f".{path.name}.ranks"
        # A new word each time: a file that another job has left must not count.
        word, error = os.urandom(8).hex(), None
        try:
            if self.rank == 0:
                try:
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_text(word, encoding="ascii")
                except OSError as failure:
                    error = failure.strerror or str(failure)
            # An error is sent like the word, since the others wait for one of them.
            word, error = self.exchange([word, error])[0]
            if error is not None:
                raise StorageError(f"rank 0 cannot write {file}: {error}")
            sees = file.is_file() and file.read_text(encoding="ascii") == word
            answers = self.exchange([sees, socket.gethostname()])
        finally:
            if self.rank == 0:
                file.unlink(missing_ok=True)
        for rank, (sees, host) in enumerate(answers):
            if not sees:
                raise ConfigError(
                    f"rank {rank} (on {host}) does not see {path.absolute()}: --out must be on a "
                    "file system that all ranks share",
                    name="RANKS",
                )

    @contextlib.contextmanager
    def opening(self, settings: dict[str, Any], path: Path | None) -> Iterator[dict[str, Any]]:
        """See `Ranks`."""
        if self._is_opening:
            yield {}
            return
        assert path is not None
        self._is_opening = True
        self._compare(settings)
        self._check_shared(path)
        message = {}
        if self.rank:
            message = self.exchange(None)[0]
            # Outside the `try`: rank 0 waits for no answer to its own error.
            _raise_error(message, 0)
        try:
            yield message
        except SurefootError as error:
            self._announce({"error": [error.code, error.name, str(error)]})
            raise
        if not self._announced:
            if self.rank == 0:
                self._announce({"finished": True})
            self.leave()

    def start(self, iteration: int) -> None:
        """See `Ranks`."""
        if self.rank == 0:
            self._announce({"iteration": iteration})
        self._announced = True
        # In this same exchange a rank that could not open the run sends its error.
        for rank, message in enumerate(self.exchange({})):
            _raise_error(message, rank)

    def _announce(self, message: dict[str, Any]) -> None:
        if not self._announced:
            self._announced = True
            self.exchange(message)

    def synchronize(self, replicated: PyTree, iteration: int, signal: int | None) -> int | None:
        """See `Ranks`."""
        with self.reporting_loss():
            signals, fingerprints = self._check(signal or 0, jax.tree.leaves(replicated)).T
        for device, found in zip(self._devices, fingerprints, strict=True):
            if found != fingerprints[0]:
                raise ReplicaError(
                    f"the state of rank {device.process_index} no longer equals that of rank 0 at "
                    f"iteration {iteration}: its memory, device or network made an error; continue "
                    "from the last checkpoint without that machine"
                )
        # All ranks see the same table, so they stop at the same iteration.
        return int(signals.max()) or None

    @contextlib.contextmanager
    def reporting_loss(self) -> Iterator[None]:
        """See `Ranks`."""
        try:
            yield
        except jax.errors.JaxRuntimeError as error:
            raise WorkerLostError(
                f"rank {self.rank} of {self.count} lost another rank: "
                f"{str(error).splitlines()[0][:200]}; run the same command to continue from the "
                "last checkpoint"
            ) from error

    def leave(self) -> None:
        """See `Ranks`."""
        # A rank that disconnected while others compute would count as lost.
        self.exchange("leaving")
        self._heartbeat.stop()
        with self.reporting_loss():
            jax_private.shut_down()


def _raise_error(message: dict[str, Any], rank: int) -> None:
    if "error" in message:
        code, name, text = message["error"]
        raise error_of_code(code, name, f"rank {rank}: {text}")
