"""Connect the processes of one run."""

import contextlib
import os
import socket
import threading

import jax

from surefoot.errors import ConfigError, WorkerLostError
from surefoot.parallel.connected_ranks import ConnectedRanks
from surefoot.parallel.heartbeat import TIMEOUT_S, abort_rank
from surefoot.parallel.jax_private import use_cpu_collectives_at
from surefoot.parallel.mesh import ALONE, Ranks, divide_cpu

CONNECT_S = 60
"""Seconds within which all processes must have connected."""
COORDINATES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def join_cluster(devices: int = 1) -> Ranks:
    """Connect to the other processes of this run, before JAX has been used.

    The address comes from `COORDINATES`, environment variables, or from JAX's own detection (SLURM,
    Open MPI, Kubernetes, cloud TPUs). A CPU is split into that many `devices`.

    Raises:
        ConfigError: where no cluster is found, or a process has fewer devices.
        WorkerLostError: where not all processes connect within a minute.
    """
    given = {name: os.environ[name] for name in COORDINATES if os.environ.get(name)}
    try:
        count, rank = (int(given[name]) if name in given else None for name in COORDINATES[1:])
    except ValueError as error:
        raise ConfigError(f"--cluster auto: {', '.join(COORDINATES[1:])}: {error}") from error
    address = given.get(COORDINATES[0])
    bind_address = None if address is None else _bind_address(address)
    divide_cpu(devices)
    if bind_address is not None and bind_address.rpartition(":")[0].strip("[]") in LOOPBACK:
        use_cpu_collectives_at(LOOPBACK[0])
    where = address or "the scheduler's address"
    # After its own timeout JAX would end the process without an error line.
    missing = WorkerLostError(
        f"not all ranks connected to {where} within {CONNECT_S} s; check the address, the number "
        "of processes, and that each of them was started"
    )
    timer = threading.Timer(CONNECT_S - 5, abort_rank, [missing])
    timer.daemon = True
    timer.start()
    # It would catch SIGTERM for itself: one that comes before the loop's handler would be lost.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            address,
            count,
            rank,
            local_device_ids=_own_gpus(devices),
            coordinator_bind_address=bind_address,
            # Longer than the limits of our own, which end a rank with an error line.
            initialization_timeout=2 * CONNECT_S,
            heartbeat_timeout_seconds=3 * TIMEOUT_S,
            shutdown_timeout_seconds=CONNECT_S,
        )
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        text = str(error).splitlines()[0][:200]
        if address is not None:
            raise ConfigError(f"--cluster auto at {address}: {text}") from error
        raise ConfigError(
            f"--cluster auto found no cluster ({text}): run it as the processes of a SLURM or "
            f"Open MPI job, or set {', '.join(COORDINATES)} for each process"
        ) from error
    finally:
        timer.cancel()
    return ALONE if jax.process_count() == 1 else ConnectedRanks(devices)


def _bind_address(address: str) -> str | None:
    """The one address for rank 0 to listen at, or None for all where it is not this machine's."""
    host, _, port = address.rpartition(":")
    if not (host and port.isdigit() and 0 < int(port) < 65536):
        raise ConfigError(f"--cluster auto: JAX_COORDINATOR_ADDRESS {address!r} is not HOST:PORT")
    if host.strip("[]") in LOOPBACK:
        return address
    with contextlib.suppress(OSError), socket.socket() as trial:
        number = socket.gethostbyname(host)
        # Only an address of this machine's own can be bound; any free port will do to see that.
        trial.bind((number, 0))
        return f"{number}:{port}"
    return None


def _own_gpus(devices: int) -> list[int] | None:
    """Indices of the GPUs that a scheduler assigned to this process; None lets JAX choose.

    JAX would take the GPU of the process's number on its machine, even where the scheduler shows
    each process its own GPUs only.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return list(range(devices)) if visible != [""] and len(visible) == devices else None
