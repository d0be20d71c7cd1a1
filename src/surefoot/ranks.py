"""Several processes of one run: how they meet, agree, and notice that one of them is gone.

JAX's distributed runtime carries the numbers. Every rank runs the same loop over the same program,
whose decisions are made of sums over all ranks, so that they cannot part; rank 0 alone writes.
"""

import contextlib
import hashlib
import json
import os
import platform
import socket
import sys
import threading
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, UInt32

from surefoot.blocks import AXIS
from surefoot.devices import ONE, Placement, spread_over
from surefoot.errors import (
    ConfigError,
    ReplicaError,
    SurefootError,
    WorkerLostError,
    printable,
)
from surefoot.loop_state import LoopState

MEET_S = 60
"""Seconds within which all processes have to be there."""
SILENCE_S = 20
"""Seconds after which a process that says nothing is taken for dead, and all end."""
TOKEN = "SUREFOOT_CLUSTER_TOKEN"
"""The variable with the word that all ranks must know where their ports are open to others."""
COORDINATES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
WITH_PARENT = "SUREFOOT_END_WITH_PARENT"
"""The variable that lets a rank end where its standard input does: its starter holds the other end.
"""
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Alone:
    """The only process of its run."""

    rank, count = 0, 1

    @contextlib.contextmanager
    def leading(self, settings: dict[str, Any]) -> Iterator[None]:
        """Nobody follows."""
        yield

    def lead(self, iteration: int, directory: Path | None) -> None:
        """Nobody follows."""

    def leave(self) -> None:
        """Nobody is left."""

    def agree(self, state: LoopState, caught: int | None) -> int | None:
        """The signal that this process has caught, if any."""
        return caught

    @contextlib.contextmanager
    def losing(self) -> Iterator[None]:
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

    def __init__(self) -> None:
        from jax._src import distributed  # what ranks tell each other before they compute

        self._client: Any = distributed.global_state.client
        self.rank, self.count = jax.process_index(), jax.process_count()
        self.placement: Placement = spread_over(jax.devices()) if jax.device_count() > 1 else ONE
        self._told = 0
        self._pulse = _Pulse(self._client, self.rank, self.count)
        self._leads = self._announced = False

    def exchange(self, said: Any) -> list[Any]:
        """What each rank says, in their order; every rank says something JSON can hold.

        Raises:
            WorkerLostError: where one says nothing for a minute.
        """
        self._told += 1
        name = f"surefoot/{self._told}"
        self._client.key_value_set(f"{name}/{self.rank}", json.dumps(said))
        with self.losing():
            return [
                json.loads(self._client.blocking_key_value_get(f"{name}/{rank}", MEET_S * 1000))
                for rank in range(self.count)
            ]

    def compare(self, facts: dict[str, Any]) -> None:
        """Refuse to go on where a rank would compute something else.

        Raises:
            ConfigError: with the rank and what differs there.
        """
        everywhere = self.exchange(_flat(facts | _facts()))
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
    def leading(self, settings: dict[str, Any]) -> Iterator[None]:
        """While rank 0 opens the run: the others hear of a fault that keeps it from `lead`."""
        if self._leads:
            yield
            return
        self._leads = True
        self.compare({"settings": settings})
        try:
            yield
        except SurefootError as fault:
            self._announce({"fault": [fault.code, fault.name, str(fault)]})
            raise
        self._announce({"finished": True})

    def lead(self, iteration: int, directory: Path | None) -> None:
        """Tell the others where the run stands, so that they begin there too."""
        if self.rank == 0:
            assert directory is not None
            self._announce({"iteration": iteration})
            self.share(directory)

    def follow(self, settings: dict[str, Any]) -> dict[str, Any]:
        """What rank 0 announces: the `iteration` to begin at, or that the run is `finished`.

        Raises:
            SurefootError: the fault that rank 0 met.
        """
        self.compare({"settings": settings})
        said = self.exchange(None)[0]
        if "fault" in said:
            code, name, text = said["fault"]
            kind: Any = next(k for k in SurefootError.__subclasses__() if k.code == code)
            raise kind(f"rank 0: {text}", name=name)
        return said

    def _announce(self, said: dict[str, Any]) -> None:
        if not self._announced:
            self._announced = True
            self.exchange(said)

    def share(self, directory: Path) -> None:
        """Make sure that all ranks see the directory that rank 0 writes.

        Raises:
            ConfigError: naming a rank that does not.
        """
        mark = directory / ".ranks"
        if self.rank == 0:
            mark.write_text(os.urandom(8).hex(), encoding="ascii")
        (word, *_) = self.exchange(mark.read_text(encoding="ascii") if self.rank == 0 else None)
        sees = mark.is_file() and mark.read_text(encoding="ascii") == word
        for rank, (seen, host) in enumerate(self.exchange([sees, socket.gethostname()])):
            if not seen:
                raise ConfigError(
                    f"rank {rank} (on {host}) does not see {directory}: --out must be on a file "
                    "system that all ranks share",
                    name="RANKS",
                )
        if self.rank == 0:
            mark.unlink()

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
        with self.losing():
            here = np.full(self.placement.count, caught or 0, np.uint32)
            signals = jax.make_array_from_callback(
                here.shape, NamedSharding(mesh, PartitionSpec(AXIS)), lambda part: here[part]
            )
            same = state._replace(env=None, returns_so_far=jnp.zeros(()))
            table = np.asarray(self._check(signals, jax.tree.leaves(same)))
        for device, mark in zip(mesh.devices.flat, table[:, 1], strict=True):
            if mark != table[0, 1]:
                raise ReplicaError(
                    f"the state of rank {device.process_index} is no longer that of rank 0 at "
                    f"iteration {int(state.iteration)}: a fault of its memory, its device or its "
                    "network; go on from the last checkpoint without that machine"
                )
        found = table[:, 0]
        return int(found.max()) or None

    @contextlib.contextmanager
    def losing(self) -> Iterator[None]:
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
        self._pulse.stop()
        with self.losing():
            jax.distributed.shutdown()

    @cached_property
    def _check(self) -> Any:
        def check(signal: UInt32[Array, "1"], leaves: list[Array]) -> UInt32[Array, "device 2"]:
            return jax.lax.all_gather(jnp.stack([signal[0], _mark(leaves)]), AXIS)

        return jax.jit(
            jax.shard_map(
                check,
                mesh=self.placement.mesh,
                in_specs=(PartitionSpec(AXIS), PartitionSpec()),
                out_specs=PartitionSpec(),
                check_vma=False,  # whether replicas are equal is what is asked
            )
        )


def _mark(leaves: list[Array]) -> UInt32[Array, ""]:
    """A number that changes with any bit of the arrays, as good as surely."""
    total = jnp.uint32(0)
    for leaf in leaves:
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


def _facts() -> dict[str, Any]:
    """What must be equal on every rank beside its settings."""
    import importlib.metadata

    names = ("jax", "jaxlib", "numpy")
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    return {
        "code": digest.hexdigest()[:16],
        "python": platform.python_version(),
        "precision": jnp.zeros(()).dtype.name,
        **{name: importlib.metadata.version(name) for name in names},
        "token": hashlib.sha256(os.environ.get(TOKEN, "").encode()).hexdigest(),
    }


def join() -> Ranks:
    """Meet the other processes of this run, before JAX has been used.

    Where they are is read from `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`,
    or found by JAX itself (SLURM, Open MPI, Kubernetes, cloud TPUs).

    Raises:
        ConfigError: where no cluster is found, or ports would be open to others without a token.
        WorkerLostError: where the others are not there within a minute.
    """
    if os.environ.get(WITH_PARENT):
        threading.Thread(target=_end_with_parent, daemon=True).start()
    given = {name: os.environ[name] for name in COORDINATES if os.environ.get(name)}
    try:
        count, rank = (int(given[name]) if name in given else None for name in COORDINATES[1:])
    except ValueError as fault:
        raise ConfigError(f"--cluster auto: {', '.join(COORDINATES[1:])}: {fault}") from fault
    address = given.get(COORDINATES[0]) or _found_address()
    host, _, port = address.rpartition(":")
    if not (host and port.isdigit() and 0 < int(port) < 65536):
        raise ConfigError(f"--cluster auto: {address!r} is no HOST:PORT to meet at")
    local = host.strip("[]") in LOOPBACK
    if not local and not os.environ.get(TOKEN):
        raise ConfigError(
            f"--cluster auto: ranks that meet at {address} open ports beyond this machine: set "
            f"{TOKEN} to one secret word on all of them",
            name="TOKEN",
        )
    _meet_over_tcp(LOOPBACK[0] if local else None)
    # JAX ends a process that meets nobody without a word of its own: this comes before it.
    missing = WorkerLostError(
        f"not all ranks were at {address} within {MEET_S} s; look at the address, at the number of "
        "processes, and whether each of them was started"
    )
    waiting = threading.Timer(MEET_S - 5, end_at_once, [missing])
    waiting.daemon = True
    waiting.start()
    try:
        jax.distributed.initialize(
            address,
            count,
            rank,
            coordinator_bind_address=address if local else None,
            initialization_timeout=2 * MEET_S,
            heartbeat_timeout_seconds=3 * SILENCE_S,
            shutdown_timeout_seconds=MEET_S,
        )
    except (RuntimeError, ValueError, TypeError) as fault:
        raise ConfigError(
            f"--cluster auto at {address}: {str(fault).splitlines()[0][:200]}"
        ) from fault
    finally:
        waiting.cancel()
    return Ranks()


def _end_with_parent() -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 64):
            pass
    os._exit(WorkerLostError.code)


def end_at_once(fault: SurefootError) -> NoReturn:
    """End this process with a fault: others wait for it in native code, and it for them."""
    print(f"surefoot: error[{fault.name}]: {printable(str(fault))}", file=sys.stderr, flush=True)
    leave_at_once(fault.code)


def leave_at_once(code: int) -> NoReturn:
    """End a rank that has failed: to leave in peace would be to wait for the others.

    Rank 0, through which they meet, goes a moment later than ranks that fail with it: without it
    they would be ended before they have said why.
    """
    if jax.distributed.is_initialized() and jax.process_index() == 0:
        time.sleep(1.0)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class _Pulse:
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


def _found_address() -> str:
    """Where the ranks meet, as JAX finds it."""
    from jax._src.clusters import ClusterEnv

    for kind in ClusterEnv._cluster_types:
        if not kind.opt_in_only_method and kind.is_env_present():
            return kind.get_coordinator_address(MEET_S, None)
    raise ConfigError(
        "--cluster auto found no cluster: start it as the processes of a SLURM or Open MPI job, or "
        f"set {', '.join(COORDINATES)} for each process"
    )


def _meet_over_tcp(host: str | None) -> None:
    """Let the CPUs of the ranks add up over TCP, listening at a host's address, or at this one's.

    The thread that moves the bytes polls without rest and would take the core from the thread that
    waits for them: between two processes on two cores a sum of 4,600 floats then takes 4 ms instead
    of 0.3. It only gets what others leave (docs/performance.md).
    """
    from jax._src import distributed, xla_bridge
    from jax._src.lib import _jax  # pyright: ignore[reportPrivateImportUsage]

    def make_client() -> Any:
        before = _threads()
        collectives = _jax.make_gloo_tcp_collectives(
            distributed_client=distributed.global_state.client, hostname=host
        )
        for thread in _threads() - before:
            os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
        return xla_bridge.make_cpu_client(collectives)

    xla_bridge.register_backend_factory("cpu", make_client, priority=0, fail_quietly=False)


def _threads() -> set[int]:
    """The threads of this process, where the system tells."""
    if not hasattr(os, "SCHED_IDLE"):
        return set()
    return {int(name) for name in os.listdir("/proc/self/task")}
