"""How the processes of one run find each other, and what they open for it."""

import contextlib
import os
import socket
import threading
from typing import Any

import jax

from surefoot.errors import ConfigError, WorkerLostError
from surefoot.parallel.heartbeat import SILENCE_S, end_at_once
from surefoot.parallel.mesh import divide_cpu
from surefoot.parallel.ranks import TOKEN, Ranks

MEET_S = 60
"""Seconds within which all processes have to be there."""
COORDINATES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
WITH_PARENT = "SUREFOOT_END_WITH_PARENT"
"""The variable that lets a rank end where its standard input does: its starter holds the other end.
"""
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def join(devices: int = 1) -> Ranks:
    """Meet the other processes of this run, before JAX has been used.

    Where they are is read from `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`,
    or found by JAX itself (SLURM, Open MPI, Kubernetes, cloud TPUs).

    Args:
        devices: of each process; a CPU is divided into as many.

    Raises:
        ConfigError: where no cluster is found, a process has fewer devices, or ports would be open
            to others without a token.
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
    divide_cpu(devices)
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
            local_device_ids=_own_gpus(devices),
            coordinator_bind_address=address if local else _bound_to(host, port),
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
    return Ranks(devices)


def _end_with_parent() -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 64):
            pass
    os._exit(WorkerLostError.code)


def _found_address() -> str:
    """Where the ranks meet, as JAX finds it."""
    from jax._src.clusters import ClusterEnv

    for kind in ClusterEnv._cluster_types:
        if not kind.opt_in_only_method and kind.is_env_present():
            port = os.environ.get("JAX_COORDINATOR_PORT")
            return kind.get_coordinator_address(MEET_S, port)
    raise ConfigError(
        "--cluster auto found no cluster: start it as the processes of a SLURM or Open MPI job, or "
        f"set {', '.join(COORDINATES)} for each process"
    )


def _own_gpus(devices: int) -> list[int] | None:
    """The numbers of this process' GPUs where it sees no others; else JAX chooses.

    JAX would take that of its number on the machine, though a scheduler shows it its own alone.
    """
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return list(range(devices)) if seen != [""] and len(seen) == devices else None


def _bound_to(host: str, port: str) -> str | None:
    """The one address that rank 0 listens at, where it is this machine's; else any of them."""
    with contextlib.suppress(OSError), socket.socket() as trial:
        number = socket.gethostbyname(host.strip("[]"))
        trial.bind((number, 0))
        return f"{number}:{port}"
    return None


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
            with contextlib.suppress(OSError):  # a container may not allow it
                os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
        return xla_bridge.make_cpu_client(collectives)

    xla_bridge.register_backend_factory("cpu", make_client, priority=0, fail_quietly=False)


def _threads() -> set[int]:
    """The threads of this process, where the system tells."""
    if not hasattr(os, "SCHED_IDLE"):
        return set()
    return {int(name) for name in os.listdir("/proc/self/task")}
