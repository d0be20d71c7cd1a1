"""Ranks on Ray: start one in each worker, watch them, restart all when one is lost.

A rank is the process of a Ray actor. It trains in its main thread, so that it handles signals as
any process does, and it ends with the driver.
"""

import contextlib
import json
import math
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from surefoot.errors import ConfigError, StoppedBySignal, SurefootError, WorkerLostError, fault_of
from surefoot.parallel.ray import node_address
from surefoot.parallel.rendezvous import COORDINATES, LOOPBACK
from surefoot.parallel.signals import CatchSignals

POLL_S = 0.2
GRACE_S = 10.0
"""Seconds in which the other ranks may end by themselves, with their own error, after one ended."""


class RayRanks(NamedTuple):
    """Ranks to start on Ray.

    Attributes:
        workers: number of ranks.
        devices: of each rank: GPUs if Ray has any, else CPU cores.
        restarts: how often all ranks may be restarted.
        local: whether Ray runs on this machine alone.
        directory: the run's, on files that all machines share; logs are written beside it.
    """

    workers: int
    devices: int
    restarts: int
    local: bool
    directory: Path

    @property
    def logs(self) -> Path:
        """Folder of `rank-N.log`, what the ranks print."""
        place = self.directory.absolute()
        return place.with_name(place.name + ".ranks")


class _End(NamedTuple):
    """How a rank ended: an exit code as on the command line; `signal` 0 if none stopped it."""

    code: int
    name: str = ""
    text: str = ""
    signal: int = 0
    iteration: int = 0


_LOST = _End(WorkerLostError.code, text="a rank did not end after another one had")


def run_ranks(
    ray: Any,
    ranks: RayRanks,
    work: Callable[[Any], None],
    job: Any,
    *,
    env_steps: int,
    on_row: Callable[[dict[str, Any]], None],
) -> None:
    """Run `work(job)` as every rank of one run, and restart all of them where one is lost.

    Args:
        ray: from `connected`.
        ranks: how many, and where.
        work: function of a module, to call after `COORDINATES` are set; it continues the run in
            the directory if there is one.
        job: its argument, which can be pickled.
        env_steps: environment steps of the last row of metrics that is known already.
        on_row: called with each later row.

    Raises:
        ConfigError: where Ray has too few devices.
        StoppedBySignal: after a signal, with the checkpoint written.
        WorkerLostError: where all restarts are used.
        SurefootError: a rank's error.
    """
    resource = _resource(ray, ranks)
    _clear_logs(ranks.logs)
    rows = _RowFollower(ranks.directory / "metrics.jsonl", on_row, env_steps)
    stop = ranks.logs / "stop"
    lost = ""
    with CatchSignals(lambda number: stop.touch()) as signals:
        for _ in range(ranks.restarts + 1):
            ends = _run_once(ray, ranks, resource, (work, job), rows, signals)
            if _finished(ends, ranks, signals.caught):
                return
            lost = next(end.text for end in ends if end.code == WorkerLostError.code)
    raise WorkerLostError(
        f"ranks were lost more often than the {ranks.restarts} times that --restarts allows "
        f"({lost}); logs: {_log_files(ranks)}"
    )


def _resource(ray: Any, ranks: RayRanks) -> str:
    """Name of the resource that ranks need, of which Ray has enough."""
    available = ray.cluster_resources()
    resource = "GPU" if available.get("GPU", 0) > 0 else "CPU"
    needed = ranks.workers * ranks.devices
    if available.get(resource, 0) < needed:
        raise ConfigError(
            f"{ranks.workers} workers with {ranks.devices} devices each need {needed} "
            f"{'GPUs' if resource == 'GPU' else 'cores'}, and Ray has "
            f"{available.get(resource, 0):g}",
            name="DEVICES",
        )
    return resource


def _clear_logs(logs: Path) -> None:
    """Set the logs of an earlier command aside; leave other files alone."""
    logs.mkdir(parents=True, exist_ok=True)
    (logs / "stop").unlink(missing_ok=True)
    for file in logs.glob("rank-*.log"):
        file.replace(file.with_suffix(".before"))


def _log_files(ranks: RayRanks) -> str:
    return ", ".join(f"{ranks.logs}/rank-{rank}.log" for rank in range(ranks.workers))


def _run_once(
    ray: Any,
    ranks: RayRanks,
    resource: str,
    task: tuple[Callable[[Any], None], Any],
    rows: "_RowFollower",
    signals: CatchSignals,
) -> list[_End]:
    """Start all ranks and wait until all have ended, or one is lost; none is left running."""
    # Reserved together: some of the ranks alone would wait for the others in vain.
    group = ray.util.placement_group([{resource: ranks.devices}] * ranks.workers)
    placed = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy
    actors = [
        ray.remote(_Rank)
        .options(
            **{f"num_{resource.lower()}s": ranks.devices},
            scheduling_strategy=placed(group, placement_group_bundle_index=rank),
        )
        .remote(rank, ranks)
        for rank in range(ranks.workers)
    ]
    address = actors[0].free_address.remote()
    pending = {
        actor.run.remote(*task, address, os.getcwd()): rank for rank, actor in enumerate(actors)
    }
    ends = [_LOST] * ranks.workers
    deadline = math.inf
    try:
        while pending and time.monotonic() < deadline:
            ended, _ = ray.wait(list(pending), timeout=POLL_S)
            for reply in ended:
                rank = pending.pop(reply)
                ends[rank] = _end_of(ray, reply)
                if ends[rank].code:
                    deadline = min(deadline, time.monotonic() + GRACE_S)
            rows.read()
            if signals.caught is not None and not ray.wait([address], timeout=0)[0]:
                break  # no rank has started, so that there is nothing to store
    finally:
        for actor in actors:
            ray.kill(actor)
        ray.util.remove_placement_group(group)
    return ends


def _end_of(ray: Any, reply: Any) -> _End:
    try:
        return _End(*ray.get(reply))
    except ray.exceptions.RayError as error:
        return _LOST._replace(text=" ".join(str(error).split())[:300])


def _finished(ends: list[_End], ranks: RayRanks, signal: int | None) -> bool:
    """Whether all ranks have finished; raises what ended them for good."""
    for end in ends:
        if end.code not in (0, WorkerLostError.code) and not end.signal:
            raise fault_of(end.code, end.name, f"{end.text}; logs: {_log_files(ranks)}")
    if all(end.code == 0 for end in ends):
        return True
    signal = signal or max(end.signal for end in ends)
    if signal:
        raise StoppedBySignal(signal, max(end.iteration for end in ends), ranks.directory)
    return False


class _Rank:
    """Body of a Ray actor: one rank."""

    def __init__(self, rank: int, ranks: RayRanks):
        self._rank, self._ranks = rank, ranks

    def free_address(self) -> str:
        """Address of this machine with a free port, where the ranks connect."""
        host = LOOPBACK[0] if self._ranks.local else node_address()
        with socket.socket() as free:
            free.bind((host, 0))
            return f"{host}:{free.getsockname()[1]}"

    def run(self, work: Callable[[Any], None], job: Any, address: str, folder: str) -> _End:
        """Do the work of a rank."""
        coordinates = (address, str(self._ranks.workers), str(self._rank))
        os.environ.update(zip(COORDINATES, coordinates, strict=True))
        with contextlib.suppress(OSError):  # other machines may lack the driver's folder
            os.chdir(folder)
        with open(self._ranks.logs / f"rank-{self._rank}.log", "ab") as log:
            for number in (1, 2):
                os.dup2(log.fileno(), number)
        print(f"rank {self._rank}: process {os.getpid()} on {socket.gethostname()}", flush=True)
        threading.Thread(target=self._forward_stop, daemon=True).start()
        try:
            work(job)
        except StoppedBySignal as stop:
            return _End(stop.code, "", str(stop), stop.number, stop.iteration)
        except SurefootError as error:
            end = _End(error.code, error.name, str(error))
        except Exception as error:
            traceback.print_exc()
            end = _End(SurefootError.code, "INTERNAL", f"{type(error).__name__}: {error}")
        else:
            return _End(0)
        print(f"surefoot: error[{end.name}]: {end.text}", file=sys.stderr, flush=True)
        return end

    def _forward_stop(self) -> None:
        """Pass the driver's signal on: an actor that is busy takes no other message."""
        while not (self._ranks.logs / "stop").exists():
            time.sleep(POLL_S)
        os.kill(os.getpid(), signal.SIGTERM)


class _RowFollower:
    """Reads the rows that rank 0 appends to a file, each once, even if the file is rewritten."""

    def __init__(self, file: Path, on_row: Callable[[dict[str, Any]], None], env_steps: int):
        self._file, self._on_row, self._env_steps = file, on_row, env_steps
        self._offset = self._inode = 0

    def read(self) -> None:
        """Pass new rows on."""
        with contextlib.suppress(FileNotFoundError), open(self._file, "rb") as rows:
            inode = os.fstat(rows.fileno()).st_ino
            if inode != self._inode:  # a rank that resumes writes the file anew
                self._inode, self._offset = inode, 0
            rows.seek(self._offset)
            for line in rows:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                row = json.loads(line)
                if row["env_steps"] > self._env_steps:
                    self._env_steps = row["env_steps"]
                    self._on_row(row)
