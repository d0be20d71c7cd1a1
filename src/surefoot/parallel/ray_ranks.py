"""Ranks on Ray, seen from the command that starts them: restart all of them when one is lost.

`ray_rank_actors` is the other side.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, NamedTuple

from surefoot.config.settings import Parallel
from surefoot.envs.worker import by_value
from surefoot.errors import (
    ConfigError,
    StoppedBySignal,
    WorkerLostError,
    error_of_code,
)
from surefoot.parallel.ray_process import RayProcess, cluster_resources
from surefoot.parallel.ray_rank_actors import RankEnd, RankPlan, run_ranks, stop_file
from surefoot.parallel.signals import CatchSignals


class RayRanks(NamedTuple):
    """Ranks of one run on Ray, a connection from `connected`.

    Their `devices` are GPUs if Ray has any, else CPU cores. `directory` is absolute, on files that
    all machines share; logs are written beside it.
    """

    ray: RayProcess
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
        plan = self._plan(work)
        self.logs.mkdir(parents=True, exist_ok=True)
        stop = stop_file(self.logs)
        # One that an earlier command has left would stop the new ranks at once.
        stop.unlink(missing_ok=True)
        rows = _follow_rows(self.directory / "metrics.jsonl", env_steps)
        lost = ""

        def tick() -> None:
            for row in next(rows):
                on_row(row)

        with CatchSignals(lambda number: stop.touch()) as signals:
            for _ in range(self.settings.restarts + 1):
                try:
                    ends = self.ray.call(run_ranks, plan, pulse=tick)
                except WorkerLostError:
                    tick()  # the rows of the last moment
                    raise
                tick()
                if self._finished(ends, signals.caught):
                    return
                lost = next(end.text for end in ends if end.code == WorkerLostError.code)
        raise WorkerLostError(
            f"ranks were lost more often than the {self.settings.restarts} times that --restarts "
            f"allows ({lost}); {self._see_logs()}"
        )

    def _plan(self, work: Callable[[], None]) -> RankPlan:
        data, local = bytes(ForkingPickler.dumps(by_value(work))), not self.settings.address
        workers, devices, resource = self.settings.workers, self.settings.devices, self._resource()
        return RankPlan(workers, devices, resource, local, str(self.logs), data, os.getcwd())

    def _resource(self) -> str:
        workers, devices = self.settings.workers, self.settings.devices
        available = self.ray.call(cluster_resources)
        resource = "GPU" if available.get("GPU", 0) > 0 else "CPU"
        if available.get(resource, 0) < workers * devices:
            raise ConfigError(
                f"{workers} workers with {devices} devices each need {workers * devices} "
                f"{resource}s, and Ray has {available.get(resource, 0):g}",
                name="DEVICES",
            )
        return resource

    def _finished(self, ends: list[RankEnd], signal: int | None) -> bool:
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
