"""The ranks of one run, each a process: how they start alike, agree, and end.

JAX's distributed runtime carries the values. All ranks run the same loop over the same program, and
all decisions depend on sums over all ranks, so that they cannot diverge; only rank 0 writes.
"""

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
from jaxtyping import PyTree

from surefoot.errors import (
    ConfigError,
    ReplicaError,
    StorageError,
    SurefootError,
    WorkerLostError,
    fault_of,
)
from surefoot.parallel import jax_private
from surefoot.parallel.heartbeat import Heartbeat
from surefoot.parallel.mesh import ONE, Placement, spread_over
from surefoot.parallel.replicas import flatten_keys, installation, replica_check

ANSWER_S = 60
"""Seconds within which every rank must send a value that the others wait for."""


class Alone:
    """The only process of its run: every method is a no-op."""

    rank = 0
    count = 1

    @contextlib.contextmanager
    def opening(self, settings: dict[str, Any], path: Path | None) -> Iterator[None]:
        """No-op."""
        yield

    def start(self, iteration: int) -> None:
        """No-op."""

    def exchange(self, value: Any) -> list[Any]:
        """This process's value."""
        return [value]

    def synchronize(self, replicated: PyTree, iteration: int, signal: int | None) -> int | None:
        """This process's signal."""
        return signal

    @contextlib.contextmanager
    def reporting_loss(self) -> Iterator[None]:
        """No-op."""
        yield

    def leave(self) -> None:
        """No-op."""


ALONE = Alone()


class Ranks:
    """This process among the others.

    Attributes:
        rank: number of this process.
        count: number of processes.
        placement: devices of all processes.
    """

    def __init__(self, devices: int = 1) -> None:
        self.rank = jax.process_index()
        self.count = jax.process_count()
        self._client = jax_private.key_value_client()
        self._exchanges = 0
        self._heartbeat = Heartbeat(self._client, self.rank, self.count)
        self._is_opening = self._announced = False
        self.placement = self._place(devices)

    def _place(self, devices: int) -> Placement:
        """Place the run on that many devices of every rank, in the order of ranks."""
        for rank, available in enumerate(self.exchange(jax.local_device_count())):
            if available < devices:
                raise ConfigError(
                    f"devices {devices}: rank {rank} of {self.count} has {available}; ask for "
                    "fewer (--devices N)",
                    name="DEVICES",
                )
        chosen = [jax.local_devices(rank)[:devices] for rank in range(self.count)]
        flat = [device for some in chosen for device in some]
        return spread_over(flat) if len(flat) > 1 else ONE

    def exchange(self, value: Any) -> list[Any]:
        """Every rank's value, in the order of ranks; values are JSON.

        Raises:
            WorkerLostError: where a rank sends none within a minute.
        """
        self._exchanges += 1
        key = f"surefoot/{self._exchanges}"
        self._client.key_value_set(f"{key}/{self.rank}", json.dumps(value))
        with self.reporting_loss():
            return [
                json.loads(self._client.blocking_key_value_get(f"{key}/{rank}", ANSWER_S * 1000))
                for rank in range(self.count)
            ]

    def _compare(self, settings: dict[str, Any]) -> None:
        """Refuse to start where a rank would compute something else."""
        everywhere = self.exchange(flatten_keys({"settings": settings} | installation()))
        first = everywhere[0]
        for rank, other in enumerate(everywhere):
            differences = [
                f"{key} {json.dumps(other.get(key))}, not {json.dumps(first[key])}"
                for key in first
                if other.get(key) != first[key]
            ]
            if differences:
                raise ConfigError(
                    f"rank {rank} of {self.count} differs from rank 0: "
                    f"{'; '.join(differences[:3])}; start all ranks with one command and one "
                    "installation",
                    name="RANKS",
                )

    def _check_shared(self, path: Path) -> None:
        """Check that all ranks see the directory of the run, before rank 0 writes there."""
        file = path.parent / f".{path.name}.ranks"
        message = {"word": os.urandom(8).hex()}
        try:
            if self.rank == 0:
                message |= _write(file, message["word"])
            message = self.exchange(message)[0]
            if "error" in message:
                raise StorageError(f"rank 0 cannot write {file}: {message['error']}")
            sees = file.is_file() and file.read_text(encoding="ascii") == message["word"]
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
    def opening(self, settings: dict[str, Any], path: Path | None) -> Iterator[None]:
        """Context manager in which rank 0 opens the run, up to `start`; may be nested.

        Its errors reach the other ranks, and so does the end of a run that is already finished.
        """
        if self._is_opening:
            yield
            return
        assert path is not None
        self._is_opening = True
        self._compare(settings)
        self._check_shared(path)
        try:
            yield
        except SurefootError as error:
            self._announce({"error": [error.code, error.name, str(error)]})
            raise
        if not self._announced:
            self._announce({"finished": True})
            self.leave()

    def await_opening(self, settings: dict[str, Any], path: Path) -> dict[str, Any]:
        """Wait for rank 0 to open the run: its `iteration`, or that it is `finished`.

        Raises:
            SurefootError: rank 0's error.
        """
        self._compare(settings)
        self._check_shared(path)
        message = self.exchange(None)[0]
        if "error" in message:
            code, name, text = message["error"]
            raise fault_of(code, name, f"rank 0: {text}")
        return message

    @contextlib.contextmanager
    def opening_too(self) -> Iterator[None]:
        """Context manager in which a rank other than 0 opens the run; its errors reach all."""
        try:
            yield
        except SurefootError as error:
            self._await_all([error.code, error.name, str(error)])
            raise

    def start(self, iteration: int) -> None:
        """Wait until all ranks have opened the run at the same iteration.

        Raises:
            SurefootError: the error of a rank that could not.
        """
        if self.rank == 0:
            self._announce({"iteration": iteration})
        self._await_all(None)

    def _await_all(self, error: list[Any] | None) -> None:
        for rank, other in enumerate(self.exchange(error)):
            if other is not None and error is None:
                code, name, text = other
                raise fault_of(code, name, f"rank {rank}: {text}")

    def _announce(self, message: dict[str, Any]) -> None:
        if not self._announced:
            self._announced = True
            self.exchange(message)

    @cached_property
    def _check(self) -> Any:
        assert self.placement.mesh is not None
        return replica_check(self.placement.mesh)

    def synchronize(self, replicated: PyTree, iteration: int, signal: int | None) -> int | None:
        """Compare what all ranks must have alike; return a signal that any rank has received.

        Every rank calls it after each chunk of iterations.

        Raises:
            ReplicaError: where a rank's arrays differ from rank 0's.
            WorkerLostError: where a rank is lost.
        """
        mesh = self.placement.mesh
        if mesh is None:
            return signal
        with self.reporting_loss():
            signals, fingerprints = self._check(signal or 0, jax.tree.leaves(replicated)).T
        for device, found in zip(mesh.devices.flat, fingerprints, strict=True):
            if found != fingerprints[0]:
                raise ReplicaError(
                    f"the state of rank {device.process_index} no longer equals that of rank 0 at "
                    f"iteration {iteration}: its memory, device or network made an error; continue "
                    "from the last checkpoint without that machine"
                )
        return int(signals.max()) or None

    @contextlib.contextmanager
    def reporting_loss(self) -> Iterator[None]:
        """Context manager of a computation with the others: a lost rank is a WorkerLostError."""
        try:
            yield
        except jax.errors.JaxRuntimeError as error:
            raise WorkerLostError(
                f"rank {self.rank} of {self.count} lost another rank: "
                f"{str(error).splitlines()[0][:200]}; run the same command to continue from the "
                "last checkpoint"
            ) from error

    def leave(self) -> None:
        """Wait for the others and disconnect."""
        self.exchange("leaving")
        self._heartbeat.stop()
        with self.reporting_loss():
            jax_private.shut_down()


def _write(file: Path, text: str) -> dict[str, str]:
    """Write a file; `{"error": reason}` where that fails."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="ascii")
    except OSError as error:
        return {"error": error.strerror or str(error)}
    return {}
