"""Ray actors that are ranks: start one in each worker, and end all when one is lost.

A rank is the process of a Ray actor. It trains in its main thread, so that it handles signals as
any process does, and it ends with Ray's driver. This is the side of the driver; `ray_ranks` is that
of the command.
"""

import contextlib
import math
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, NamedTuple

from surefoot.errors import StoppedBySignal, SurefootError, WorkerLostError

POLL_S = 0.2
GRACE_S = 10.0
"""Seconds that the other ranks have to end, with an error of their own, after one has ended."""


class RankEnd(NamedTuple):
    """How a rank ended: its exit code, and the signal that stopped it or 0."""

    code: int
    name: str = ""
    text: str = ""
    signal: int = 0
    iteration: int = 0


_LOST = RankEnd(WorkerLostError.code, text="a rank did not end after another one had")


class RankPlan(NamedTuple):
    """What ranks to start.

    Attributes:
        workers: number of ranks.
        devices: of each rank.
        resource: what Ray calls such a device, CPU or GPU.
        local: all are on this machine.
        logs: folder of their logs, and of `stop`, a file that asks them to stop.
        work: a function without arguments, pickled by value.
        folder: the working directory, where their machines have it.
    """

    workers: int
    devices: int
    resource: str
    local: bool
    logs: str
    work: bytes
    folder: str


def stop_file(logs: Path) -> Path:
    """File that asks the ranks to stop, once it exists."""
    return logs / "stop"


def run_ranks(ray: Any, plan: RankPlan) -> list[RankEnd]:
    """Start all ranks, wait until all have ended or one is lost, and leave none running."""
    group, actors = _start(ray, plan)
    address = actors[0].free_address.remote(None if plan.local else ray.util.get_node_ip_address)
    pending = {
        actor.run.remote(plan.work, address, plan.folder): rank for rank, actor in enumerate(actors)
    }
    ends = [_LOST] * len(actors)
    deadline = math.inf
    try:
        while pending and time.monotonic() < deadline:
            for reply in ray.wait(list(pending), timeout=POLL_S)[0]:
                rank = pending.pop(reply)
                ends[rank] = _end_of(ray, reply)
                if ends[rank].code:
                    deadline = min(deadline, time.monotonic() + GRACE_S)
            if stop_file(Path(plan.logs)).exists() and not ray.wait([address], timeout=0)[0]:
                break  # no rank has started, so that there is nothing to store
    finally:
        for actor in actors:
            ray.kill(actor)
        ray.util.remove_placement_group(group)
    return ends


def _start(ray: Any, plan: RankPlan) -> tuple[Any, list[Any]]:
    """Reserve all workers together, and start an actor in each."""
    # Some of the ranks alone would wait for the others in vain.
    group = ray.util.placement_group([{plan.resource: plan.devices}] * plan.workers)
    placed = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy(group)
    options = {f"num_{plan.resource.lower()}s": plan.devices, "scheduling_strategy": placed}
    actor_class = ray.remote(_Rank).options(**options)
    return group, [actor_class.remote(n, plan.workers, plan.logs) for n in range(plan.workers)]


def _end_of(ray: Any, reply: Any) -> RankEnd:
    try:
        return RankEnd(*ray.get(reply))
    except ray.exceptions.RayError as error:
        return _LOST._replace(text=" ".join(str(error).split())[:300])


class _Rank:
    """Body of a Ray actor: one rank."""

    def __init__(self, rank: int, count: int, logs: str):
        self._rank, self._count, self._logs = rank, count, Path(logs)

    def free_address(self, find_host: Callable[[], str] | None) -> str:
        """Address of this machine with a free port, where the ranks connect."""
        host = "127.0.0.1" if find_host is None else find_host()
        with socket.socket() as free:
            free.bind((host, 0))
            return f"{host}:{free.getsockname()[1]}"

    def run(self, work: bytes, address: str, folder: str) -> RankEnd:
        """Do the work of a rank."""
        # Here, because it imports JAX, which Ray's driver does without.
        from surefoot.parallel.rendezvous import COORDINATES

        os.environ.update(
            zip(COORDINATES, (address, str(self._count), str(self._rank)), strict=True)
        )
        with contextlib.suppress(OSError):  # other machines may lack the driver's folder
            os.chdir(folder)
        with open(self._logs / f"rank-{self._rank}.log", "ab") as log:
            # By number, so that native code and child processes print there too.
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        print(f"rank {self._rank}: process {os.getpid()} on {socket.gethostname()}", flush=True)
        # Ray's handler raises SystemExit, which an import or a callback may swallow.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        threading.Thread(target=self._forward_stop, daemon=True).start()
        try:
            pickler: Any = ForkingPickler  # typeshed declares `loads` as a method
            pickler.loads(work).fn()
            return RankEnd(0)
        except StoppedBySignal as stop:
            return RankEnd(stop.code, "", str(stop), stop.number, stop.iteration)
        except SurefootError as error:
            end = RankEnd(error.code, error.name, str(error))
        except Exception as error:
            traceback.print_exc()
            end = RankEnd(SurefootError.code, "INTERNAL", f"{type(error).__name__}: {error}")
        print(f"surefoot: error[{end.name}]: {end.text}", file=sys.stderr, flush=True)
        return end

    def _forward_stop(self) -> None:
        """Pass the driver's signal on: an actor that is busy takes no other message."""
        while not stop_file(self._logs).exists():
            time.sleep(POLL_S)
        os.kill(os.getpid(), signal.SIGTERM)
