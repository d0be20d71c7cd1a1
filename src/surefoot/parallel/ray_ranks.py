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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from surefoot.config.settings import Parallel
from surefoot.errors import (
    ConfigError,
    StoppedBySignal,
    SurefootError,
    WorkerLostError,
    error_of_code,
)
from surefoot.parallel.rendezvous import COORDINATES, LOOPBACK
from surefoot.parallel.signals import CatchSignals

POLL_S = 0.2
GRACE_S = 10.0
"""Seconds that the other ranks have to end, with an error of their own, after one has ended."""


class _End(NamedTuple):
    """How a rank ended: its exit code, and the signal that stopped it or 0."""

    code: int
    name: str = ""
    text: str = ""
    signal: int = 0
    iteration: int = 0


_LOST = _End(WorkerLostError.code, text="a rank did not end after another one had")


class RayRanks(NamedTuple):
    """Ranks of one run on Ray, a connection from `connected`.

    Their `devices` are GPUs if Ray has any, else CPU cores. `directory` is absolute, on files that
    all machines share; logs are written beside it.
    """

    ray: Any
    settings: Parallel
    directory: Path

    @property
    def logs(self) -> Path:
        """Folder of `rank-N.log`, where each rank prints."""
        # Not inside: a directory that holds any file counts as used.
        return self.directory.with_name(self.directory.name + ".ranks")

    def run(
        self, work: Callable[[], None], *, env_steps: int, on_row: Callable[[dict[str, Any]], None]
    ) -> None:
        """Call `work()` as every rank, and restart all of them where one is lost.

        `work`, of a module or a partial of such a function, continues the run in the directory if
        there is one; `COORDINATES` are set before. `on_row` gets each row after `env_steps`.

        Raises:
            StoppedBySignal: after a signal, with the checkpoint written.
            WorkerLostError: where all restarts are used.
            SurefootError: a rank's error; a ConfigError where Ray has too few devices.
        """
        resource = self._resource()
        self.logs.mkdir(parents=True, exist_ok=True)
        stop = self.logs / "stop"
        # One that an earlier command has left would stop the new ranks at once.
        stop.unlink(missing_ok=True)
        rows = _follow_rows(self.directory / "metrics.jsonl", env_steps)
        lost = ""

        def tick() -> None:
            for row in next(rows):
                on_row(row)

        with CatchSignals(lambda number: stop.touch()) as signals:
            for _ in range(self.settings.restarts + 1):
                ends = self._run_once(resource, work, tick, signals)
                if self._finished(ends, signals.caught):
                    return
                lost = next(end.text for end in ends if end.code == WorkerLostError.code)
        raise WorkerLostError(
            f"ranks were lost more often than the {self.settings.restarts} times that --restarts "
            f"allows ({lost}); {self._see_logs()}"
        )

    def _resource(self) -> str:
        workers, devices = self.settings.workers, self.settings.devices
        available = self.ray.cluster_resources()
        resource = "GPU" if available.get("GPU", 0) > 0 else "CPU"
        if available.get(resource, 0) < workers * devices:
            raise ConfigError(
                f"{workers} workers with {devices} devices each need {workers * devices} "
                f"{resource}s, and Ray has {available.get(resource, 0):g}",
                name="DEVICES",
            )
        return resource

    def _start(self, resource: str) -> tuple[Any, list[Any]]:
        """Reserve all workers together, and start an actor in each."""
        workers, devices = self.settings.workers, self.settings.devices
        # Some of the ranks alone would wait for the others in vain.
        group = self.ray.util.placement_group([{resource: devices}] * workers)
        placed = self.ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy(group)
        options = {f"num_{resource.lower()}s": devices, "scheduling_strategy": placed}
        actor_class = self.ray.remote(_Rank).options(**options)
        return group, [actor_class.remote(n, workers, str(self.logs)) for n in range(workers)]

    def _run_once(
        self,
        resource: str,
        work: Callable[[], None],
        tick: Callable[[], None],
        signals: CatchSignals,
    ) -> list[_End]:
        """Start all ranks, wait until all have ended or one is lost, and leave none running."""
        group, actors = self._start(resource)
        find_host = self.ray.util.get_node_ip_address if self.settings.address else None
        address = actors[0].free_address.remote(find_host)
        pending = {
            actor.run.remote(work, address, os.getcwd()): rank for rank, actor in enumerate(actors)
        }
        ends = [_LOST] * len(actors)
        deadline = math.inf
        try:
            while pending and time.monotonic() < deadline:
                for reply in self.ray.wait(list(pending), timeout=POLL_S)[0]:
                    rank = pending.pop(reply)
                    ends[rank] = self._end_of(reply)
                    if ends[rank].code:
                        deadline = min(deadline, time.monotonic() + GRACE_S)
                tick()
                if signals.caught is not None and not self.ray.wait([address], timeout=0)[0]:
                    break  # no rank has started, so that there is nothing to store
        finally:
            for actor in actors:
                self.ray.kill(actor)
            self.ray.util.remove_placement_group(group)
        return ends

    def _end_of(self, reply: Any) -> _End:
        try:
            return _End(*self.ray.get(reply))
        except self.ray.exceptions.RayError as error:
            return _LOST._replace(text=" ".join(str(error).split())[:300])

    def _finished(self, ends: list[_End], signal: int | None) -> bool:
        """Whether all ranks have finished; raise what ended them for good."""
        # First a rank's own error, which has made the others lose that rank.
        for end in ends:
            if end.code not in (0, WorkerLostError.code) and not end.signal:
                raise error_of_code(end.code, end.name, f"{end.text}; {self._see_logs()}")
        if all(end.code == 0 for end in ends):
            return True
        signal = signal or max(end.signal for end in ends)
        if signal:
            raise StoppedBySignal(signal, max(end.iteration for end in ends), self.directory)
        return False

    def _see_logs(self) -> str:
        files = ", ".join(f"{self.logs}/rank-{rank}.log" for rank in range(self.settings.workers))
        return f"logs: {files}"


class _Rank:
    """Body of a Ray actor: one rank."""

    def __init__(self, rank: int, count: int, logs: str):
        self._rank, self._count, self._logs = rank, count, Path(logs)

    def free_address(self, find_host: Callable[[], str] | None) -> str:
        """Address of this machine with a free port, where the ranks connect."""
        host = LOOPBACK[0] if find_host is None else find_host()
        with socket.socket() as free:
            free.bind((host, 0))
            return f"{host}:{free.getsockname()[1]}"

    def run(self, work: Callable[[], None], address: str, folder: str) -> _End:
        """Do the work of a rank."""
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
            work()
            return _End(0)
        except StoppedBySignal as stop:
            return _End(stop.code, "", str(stop), stop.number, stop.iteration)
        except SurefootError as error:
            end = _End(error.code, error.name, str(error))
        except Exception as error:
            traceback.print_exc()
            end = _End(SurefootError.code, "INTERNAL", f"{type(error).__name__}: {error}")
        print(f"surefoot: error[{end.name}]: {end.text}", file=sys.stderr, flush=True)
        return end

    def _forward_stop(self) -> None:
        """Pass the driver's signal on: an actor that is busy takes no other message."""
        while not (self._logs / "stop").exists():
            time.sleep(POLL_S)
        os.kill(os.getpid(), signal.SIGTERM)


def _follow_rows(file: Path, env_steps: int) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows that rank 0 has appended since the last time, each once.

    Rows up to `env_steps` are skipped, also if a rank that resumes rewrites the file.
    """
    offset = inode = 0
    while True:
        new: list[dict[str, Any]] = []
        with contextlib.suppress(FileNotFoundError), open(file, "rb") as rows:
            # A rank that resumes writes a new file in the place of the old one.
            if os.fstat(rows.fileno()).st_ino != inode:
                inode, offset = os.fstat(rows.fileno()).st_ino, 0
            rows.seek(offset)
            for line in rows:
                # Rank 0 is still writing this row; the next call reads it whole.
                if not line.endswith(b"\n"):
                    break
                offset += len(line)
                row = json.loads(line)
                if row["env_steps"] > env_steps:
                    env_steps = row["env_steps"]
                    new.append(row)
        yield new
