"""Several processes of one run: how they begin alike, agree, and end.

JAX's distributed runtime carries the numbers. Every rank runs the same loop over the same program,
whose decisions are made of sums over all ranks, so that they cannot part; rank 0 alone writes.
"""

import contextlib
import hashlib
import hmac
import importlib.metadata
import json
import os
import platform
import socket
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, UInt32

from surefoot.errors import (
    ConfigError,
    ReplicaError,
    StorageError,
    SurefootError,
    WorkerLostError,
    fault_of,
)
from surefoot.parallel.heartbeat import Heartbeat
from surefoot.parallel.mesh import ONE, Placement, spread_over
from surefoot.parallel.rows import AXIS
from surefoot.training.state import LoopState

ANSWER_S = 60
"""Seconds within which every rank has to say what the others wait for."""
TOKEN = "SUREFOOT_CLUSTER_TOKEN"
"""The variable with the word that all ranks must know where their ports are open to others."""


class Alone:
    """The only process of its run."""

    rank, count = 0, 1

    @contextlib.contextmanager
    def leading(self, settings: dict[str, Any], path: Path | None) -> Iterator[None]:
        """Nobody follows."""
        yield

    def lead(self, iteration: int) -> None:
        """Nobody follows."""

    def exchange(self, said: Any) -> list[Any]:
        """What this process says."""
        return [said]

    def leave(self) -> None:
        """Nobody is left."""

    def agree(self, state: LoopState, caught: int | None) -> int | None:
        """The signal that this process has caught, if any."""
        return caught

    @contextlib.contextmanager
    def told_of_loss(self) -> Iterator[None]:
        """Nobody can be lost."""
        yield


ALONE = Alone()


class Ranks:
    """This process among the others.

    Attributes:
        rank: its number.
        count: how many there are.
        placement: the devices of all of them.
    """

    def __init__(self, devices: int = 1) -> None:
        # What ranks tell each other before they compute. Private, so only where it is needed.
        from jax._src import distributed

        self._runtime: Any = distributed.global_state
        self._client: Any = self._runtime.client
        self.rank, self.count = jax.process_index(), jax.process_count()
        self._told = 0
        self._heartbeat = Heartbeat(self._client, self.rank, self.count)
        self._leads = self._announced = False
        self.placement = self._spread(devices)

    def _spread(self, devices: int) -> Placement:
        """So many devices of every rank, in their order."""
        for rank, have in enumerate(self.exchange(jax.local_device_count())):
            if have < devices:
                raise ConfigError(
                    f"devices {devices}: rank {rank} of {self.count} has {have}; ask for fewer "
                    "(--devices N)",
                    name="DEVICES",
                )
        chosen = [jax.local_devices(rank)[:devices] for rank in range(self.count)]
        flat = [device for some in chosen for device in some]
        return spread_over(flat) if len(flat) > 1 else ONE

    def exchange(self, said: Any) -> list[Any]:
        """What each rank says, in their order; every rank says something JSON can hold.

        Raises:
            WorkerLostError: where one says nothing for a minute.
        """
        self._told += 1
        name = f"surefoot/{self._told}"
        self._client.key_value_set(f"{name}/{self.rank}", json.dumps(said))
        with self.told_of_loss():
            return [
                json.loads(self._client.blocking_key_value_get(f"{name}/{rank}", ANSWER_S * 1000))
                for rank in range(self.count)
            ]

    def compare(self, facts: dict[str, Any]) -> None:
        """Refuse to go on where a rank would compute something else.

        Raises:
            ConfigError: with the rank and what differs there.
        """
        nonce = self.exchange(os.urandom(16).hex())[0]
        everywhere = self.exchange(_flat(facts | _facts(nonce)))
        for rank, other in enumerate(everywhere):
            wrong = [key for key in everywhere[0] if other.get(key) != everywhere[0][key]]
            if wrong:
                secret = {"token"} & set(wrong)
                told = "; ".join(
                    f"{key} {json.dumps(other.get(key))}, not {json.dumps(everywhere[0][key])}"
                    for key in wrong[:3]
                )
                raise ConfigError(
                    f"rank {rank} of {self.count} has another {TOKEN}"
                    if secret
                    else f"rank {rank} of {self.count} differs from rank 0: {told}; start all "
                    "ranks with one command and one installation",
                    name="RANKS",
                )

    @contextlib.contextmanager
    def leading(self, settings: dict[str, Any], path: Path | None) -> Iterator[None]:
        """While rank 0 opens the run: the others hear of a fault that keeps it from `lead`."""
        if self._leads:
            yield
            return
        assert path is not None
        self._leads = True
        self.compare({"settings": settings})
        self._share(path)
        try:
            yield
        except SurefootError as fault:
            self._announce({"fault": [fault.code, fault.name, str(fault)]})
            raise
        if not self._announced:
            self._announce({"finished": True})
            self.leave()

    def lead(self, iteration: int) -> None:
        """Tell the others where the run stands, and wait until they stand there too.

        Raises:
            SurefootError: what keeps one of them from it.
        """
        if self.rank == 0:
            self._announce({"iteration": iteration})
        self._all_ready(None)

    def follow(self, settings: dict[str, Any], path: Path) -> dict[str, Any]:
        """What rank 0 announces: the `iteration` to begin at, or that the run is `finished`.

        Raises:
            SurefootError: the fault that rank 0 met.
        """
        self.compare({"settings": settings})
        self._share(path)
        said = self.exchange(None)[0]
        if "fault" in said:
            code, name, text = said["fault"]
            raise fault_of(code, name, f"rank 0: {text}")
        return said

    @contextlib.contextmanager
    def following(self) -> Iterator[None]:
        """While another rank opens the run: all hear of a fault that keeps it from `lead`."""
        try:
            yield
        except SurefootError as fault:
            self._all_ready([fault.code, fault.name, str(fault)])
            raise

    def _all_ready(self, fault: list[Any] | None) -> None:
        for rank, found in enumerate(self.exchange(fault)):
            if found is not None and fault is None:
                code, name, text = found
                raise fault_of(code, name, f"rank {rank}: {text}")

    def _announce(self, said: dict[str, Any]) -> None:
        if not self._announced:
            self._announced = True
            self.exchange(said)

    def _share(self, path: Path) -> None:
        """Make sure that all ranks see where rank 0 is to write, before it does.

        Raises:
            ConfigError: naming a rank that does not.
            StorageError: where rank 0 cannot write there.
        """
        file, said = path.parent / f".{path.name}.ranks", {"word": os.urandom(8).hex()}
        try:
            if self.rank == 0:
                said = _written(file, said)
            (said, *_) = self.exchange(said)
            if "fault" in said:
                raise StorageError(f"rank 0, writing {file}: {said['fault']}")
            sees = file.is_file() and file.read_text(encoding="ascii") == said["word"]
            answers = self.exchange([sees, socket.gethostname()])
        finally:
            if self.rank == 0:
                file.unlink(missing_ok=True)
        for rank, (seen, host) in enumerate(answers):
            if not seen:
                raise ConfigError(
                    f"rank {rank} (on {host}) does not see {path.absolute()}: --out must be on a "
                    "file system that all ranks share",
                    name="RANKS",
                )

    def agree(self, state: LoopState, caught: int | None) -> int | None:
        """A signal that any rank has caught; every rank asks behind each chunk.

        Raises:
            ReplicaError: where what should be the same everywhere is not, with the rank.
            WorkerLostError: where one is gone.
        """
        if self.placement is ONE:
            return caught
        mesh = self.placement.mesh
        assert mesh is not None
        with self.told_of_loss():
            here = np.full(self.placement.count, caught or 0, np.uint32)
            signals = jax.make_array_from_callback(
                here.shape, NamedSharding(mesh, PartitionSpec(AXIS)), lambda part: here[part]
            )
            learn = state.learn._replace(returns_so_far=jnp.zeros(()))
            same = state._replace(learn=learn, env=None)
            table = np.asarray(self._check(signals, jax.tree.leaves(same)))
        for device, fingerprint in zip(mesh.devices.flat, table[:, 1], strict=True):
            if fingerprint != table[0, 1]:
                raise ReplicaError(
                    f"the state of rank {device.process_index} is no longer that of rank 0 at "
                    f"iteration {int(state.learn.iteration)}: a fault of its memory, its device or "
                    "its network; go on from the last checkpoint without that machine"
                )
        found = table[:, 0]
        return int(found.max()) or None

    @contextlib.contextmanager
    def told_of_loss(self) -> Iterator[None]:
        """While computing with the others: a rank that is gone is an error with a name."""
        try:
            yield
        except jax.errors.JaxRuntimeError as fault:
            raise WorkerLostError(
                f"rank {self.rank} of {self.count} lost another rank: "
                f"{str(fault).splitlines()[0][:200]}; the same command goes on from the last "
                "checkpoint"
            ) from fault

    def leave(self) -> None:
        """Wait for the others, and let them go."""
        self.exchange("leaving")
        self._heartbeat.stop()
        server, self._runtime.service = self._runtime.service, None
        with self.told_of_loss():
            jax.distributed.shutdown()
        if server is not None:
            time.sleep(0.5)  # it crashes where it is taken apart while it still answers
            server.shutdown()

    @cached_property
    def _check(self) -> Any:
        def check(signal: UInt32[Array, "1"], leaves: list[Array]) -> UInt32[Array, "device 2"]:
            return jax.lax.all_gather(jnp.stack([signal[0], _fingerprint(leaves)]), AXIS)

        return jax.jit(
            jax.shard_map(
                check,
                mesh=self.placement.mesh,
                in_specs=(PartitionSpec(AXIS), PartitionSpec()),
                out_specs=PartitionSpec(),
                check_vma=False,  # whether replicas are equal is what is asked
            )
        )


def _written(file: Path, said: dict[str, str]) -> dict[str, str]:
    """The word, in a file, or the fault that kept it from there."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(said["word"], encoding="ascii")
    except OSError as fault:
        return {"fault": fault.strerror or str(fault)}
    return said


def _fingerprint(leaves: list[Array]) -> UInt32[Array, ""]:
    """A number that changes with any bit of the arrays, as good as surely."""
    total = jnp.uint32(0)
    for leaf in leaves:
        if not leaf.size:
            continue  # XLA of jax 0.11 crashes on the sum of nothing
        if leaf.dtype == bool:
            leaf = leaf.astype(jnp.uint8)
        kind = {1: jnp.uint8, 2: jnp.uint16}.get(leaf.dtype.itemsize, jnp.uint32)
        words = jax.lax.bitcast_convert_type(leaf, kind).reshape(-1).astype(jnp.uint32)
        odd = 2 * jnp.arange(words.size, dtype=jnp.uint32) + 1
        total = total * jnp.uint32(0x9E3779B1) + jnp.sum(words * odd * jnp.uint32(0x85EBCA6B))
    return total


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one, whose keys tell the way."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        within = isinstance(value, dict) and value
        found |= _flat(value, f"{prefix}{key}.") if within else {prefix + key: value}
    return found


def _facts(nonce: str) -> dict[str, Any]:
    """What must be equal on every rank beside its settings; its token can be asked for once."""
    token = os.environ.get(TOKEN, "").encode()
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(file.read_bytes())
    return {
        "code": digest.hexdigest()[:16],
        "python": platform.python_version(),
        "precision": jnp.zeros(()).dtype.name,
        "token": hmac.digest(token, nonce.encode(), "sha256").hex(),
        **{name: _version(name) for name in _LIBRARIES},
    }


_LIBRARIES = ("jax", "jaxlib", "numpy", "equinox", "optax", "gymnasium", "gymnax", "brax", "mujoco")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
