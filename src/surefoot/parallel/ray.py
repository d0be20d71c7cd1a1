"""A run on Ray: it places the ranks, watches them, and starts them anew; the one user of Ray.

Each of Ray's workers starts one rank as a process of its own, with the same command that a job of
SLURM would give, so that a rank is the same thing everywhere: it has the signals and the memory to
itself, writes to a log of its own, and ends with its worker.
"""

import contextlib
import ctypes
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from surefoot.errors import ConfigError, StoppedBySignal, WorkerLostError, fault_of
from surefoot.parallel.ranks import TOKEN
from surefoot.parallel.rendezvous import COORDINATES, LOOPBACK, WITH_PARENT
from surefoot.storage.run_directory import RunDirectory
from surefoot.training.loop import SIGNALS

_STOPPED = {130, 143}
FINAL = {0, 2, 3, 4, 5, 6, 7, 8, *_STOPPED}
"""How a rank may end for good: whatever else happens, it is started again."""
POLL_S = 0.2
_WORD = secrets.token_hex(32)
"""That of Rays which this process starts: theirs is read once."""


class Job(NamedTuple):
    """What ranks are to do.

    `words` is the command line of `surefoot train` for one of them; `directory` the run's, absolute
    and on files that all see; `ranks` where their logs are.
    """

    words: list[str]
    directory: str
    ranks: str
    cwd: str


def train_on_ray(
    ray: Any,
    words: Sequence[str],
    directory: Path,
    *,
    workers: int,
    devices: int,
    local: bool,
    restarts: int,
    told: int,
    tell: Callable[[dict[str, Any]], None],
) -> None:
    """Train with so many ranks, and start all of them anew where one is lost.

    Args:
        ray: from `connected`.
        words: the command line of each rank, behind `surefoot train`.
        directory: the run's.
        workers: how many ranks.
        devices: of each: GPUs where Ray has any, else cores of a CPU.
        local: whether all are on this machine.
        restarts: how often, at most.
        told: environment steps of the rows that are known already.
        tell: called with each row of metrics behind them.

    Raises:
        ConfigError: where Ray has not what is asked for.
        StoppedBySignal: after a signal, with the checkpoint written.
        WorkerLostError: where the restarts are spent; it names the logs.
        SurefootError: what a rank ended with.
    """
    place, logs = directory.absolute(), logs_of(directory)
    _clear(logs)
    job = Job(list(words), str(place), str(logs), os.getcwd())
    gpus = ray.cluster_resources().get("GPU", 0) > 0
    have = ray.cluster_resources().get("GPU" if gpus else "CPU", 0)
    if have < workers * devices:
        raise ConfigError(
            f"{workers} workers of {devices} need {workers * devices} "
            f"{'GPUs' if gpus else 'cores'}, and Ray has {have:g}",
            name="DEVICES",
        )
    trainer = _trainer(job, workers, {"GPU" if gpus else "CPU": devices}, restarts, local)
    failed: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as fault:
            failed.append(fault)

    waiting = threading.Thread(target=fit, daemon=True)
    with _forwarded(logs) as signals:
        waiting.start()
        rows = _Follower(place / "metrics.jsonl", tell, told)
        while waiting.is_alive():
            waiting.join(POLL_S)
            rows.look()
    rows.look()
    _judge(job, workers, restarts, failed, signals)


def logs_of(directory: Path) -> Path:
    """Where the ranks of a run write what they say: beside it."""
    place = directory.absolute()
    return place.with_name(place.name + ".ranks")


def _clear(logs: Path) -> None:
    """Remove what an earlier command left there, but its logs, and nothing else."""
    logs.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(logs / "ray", ignore_errors=True)
    for file in (logs / "stop", *logs.glob("rank-*.end"), *logs.glob("rank-*.pid")):
        file.unlink(missing_ok=True)
    for file in logs.glob("rank-*.log"):
        file.replace(file.with_suffix(".before"))


def _judge(
    job: Job, workers: int, restarts: int, failed: list[BaseException], signals: list[int]
) -> None:
    """Raise what the ranks ended with, if they did not end well."""
    ends: dict[int, Any] = {rank: _end_of(job, rank) for rank in range(workers)}
    stopped = _STOPPED & set(ends.values())
    bad = [rank for rank, code in ends.items() if code in FINAL - _STOPPED - {0}]
    unfinished = any(code != 0 for code in ends.values())
    if stopped or (signals and unfinished and not bad):
        done = re.findall(r"at iteration (\d+)", _last_line(job, 0))
        number = signals[0] if signals else min(stopped) - 128  # to one of them, not to us
        raise StoppedBySignal(number, int(done[-1]) if done else 0, Path(job.directory))
    logs = ", ".join(f"{job.ranks}/rank-{rank}.log" for rank in range(workers))
    if bad:
        rank, code = bad[0], ends[bad[0]]
        said = re.search(r"surefoot: error\[([\w-]+)\]: (.*)", _last_line(job, rank))
        name, text = said.groups() if said else ("RANK", f"rank {rank} ended with {code}")
        raise fault_of(code, name, f"{text}; logs: {logs}")
    if failed or unfinished:
        kept = RunDirectory(Path(job.directory)).checkpoints()
        newest = f"; the newest checkpoint is {kept[-1]}" if kept else ""
        what = f"ranks were lost more often than the {restarts} times that --restarts allows"
        if not any(ends.values()):
            text = " ".join(str(failed[0]).split())[:300] if failed else "they have not begun"
            what = f"Ray ended the ranks: {text}"
        raise WorkerLostError(f"{what}{newest}; logs: {logs}")


def _import_ray(address: str | None) -> Any:
    """Ray, told to say nothing to anybody, and to keep to this machine where it is our own.

    Raises:
        ConfigError: where it is not installed, or one on other machines has no token.
    """
    # What its environment tells it is read at its import.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if address is None:
        # What Ray calls a cluster, on systems of any kind, listens beyond this machine.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _WORD}
        # Its workers would give way to everything else; here they are what is waited for.
        os.environ.setdefault("RAY_worker_niceness", "0")
    elif os.environ.get("RAY_AUTH_MODE") != "token":
        raise ConfigError(
            f"--address {address}: its ports are open to other machines: start that Ray with "
            "RAY_AUTH_MODE=token, and set it and RAY_AUTH_TOKEN here too",
            name="TOKEN",
        )
    try:
        import ray  # pyright: ignore[reportMissingImports]
        import ray.train  # pyright: ignore[reportMissingImports]
    except ImportError as fault:
        raise ConfigError(
            "--cluster ray and --env-workers need Ray: pip install 'surefoot[ray]'"
        ) from fault
    return ray


@contextlib.contextmanager
def connected(address: str | None, cores: int) -> Iterator[Any]:
    """Ray, while connected to one that is there, or to one of our own on this machine alone.

    To be entered before JAX is used: it starts processes.

    Args:
        address: of one that is there, as `auto`; None starts one.
        cores: of our own.

    Raises:
        ConfigError: where Ray is not installed, one on other machines has no token, or none
            answers.
    """
    ray = _import_ray(address)
    ours: dict[str, Any] = {"address": address}
    if address is None:
        ours = {"address": "local", "include_dashboard": False, "num_cpus": cores}
        ours |= {"object_store_memory": 80 * 2**20}
    try:
        # Ray puts handlers of its own in the place of ours.
        with _limited(address), _handlers_kept():
            ray.init(**ours, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as fault:
        ray.shutdown()
        text = " ".join(str(fault).split())[:300]
        raise ConfigError(f"Ray at {address or 'this machine'}: {text}") from fault
    try:
        yield ray
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _handlers_kept() -> Iterator[None]:
    """What signals do is the same behind it."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def _limited(address: str | None) -> Iterator[None]:
    """Within a minute: a Ray that is nowhere is waited for much longer."""
    if address is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(number: int, frame: FrameType | None) -> None:
        raise ConnectionError("nobody answers within 50 s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(50)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _trainer(job: Job, workers: int, resources: dict[str, int], restarts: int, local: bool) -> Any:
    """Ray's data-parallel trainer, which runs `_rank` in every worker."""
    import logging

    from ray import train  # pyright: ignore[reportMissingImports]
    from ray.train.backend import Backend, BackendConfig  # pyright: ignore[reportMissingImports]
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer  # pyright: ignore[reportMissingImports]

    logging.getLogger("ray.train").setLevel(logging.ERROR)

    class Meeting(Backend):
        """Tells the ranks where they meet: `jax.distributed` does the rest."""

        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            host, port = worker_group.execute_single(0, _meeting_place, local)
            known = {COORDINATES[0]: f"{host}:{port}", COORDINATES[1]: str(len(worker_group))}
            known |= {TOKEN: secrets.token_hex(16)}
            for rank in range(len(worker_group)):
                mine = known | {COORDINATES[2]: str(rank)}
                worker_group.execute_single(rank, _learn_where, mine)

    class MeetingConfig(BackendConfig):
        """The settings that Ray asks for: there are none."""

        @property
        def backend_cls(self) -> type[Backend]:
            return Meeting

    return DataParallelTrainer(
        _rank,
        train_loop_config=job._asdict(),
        backend_config=MeetingConfig(),
        scaling_config=train.ScalingConfig(num_workers=workers, resources_per_worker=resources),
        run_config=train.RunConfig(
            name="surefoot",
            storage_path=str(Path(job.ranks) / "ray"),
            failure_config=train.FailureConfig(max_failures=restarts),
        ),
    )


def _meeting_place(local: bool) -> tuple[str, int]:
    """An address of rank 0's machine, and a port that is free there."""
    import socket

    import ray  # pyright: ignore[reportMissingImports]

    host = LOOPBACK[0] if local else ray.util.get_node_ip_address()
    with socket.socket() as free:
        free.bind((host, 0))
        return host, free.getsockname()[1]


def _learn_where(known: dict[str, str]) -> None:
    """In a worker of Ray: keep what its rank will read."""
    os.environ.update(known)


def _rank(job: dict[str, Any]) -> None:
    """In a worker of Ray: one rank, from its start to its end.

    Raises:
        RuntimeError: where it was lost, so that Ray starts all of them again.
    """
    rank, logs = os.environ[COORDINATES[2]], Path(job["ranks"])
    stop, end = logs / "stop", logs / f"rank-{rank}.end"
    if any(_code(file) in FINAL - {0} for file in logs.glob("rank-*.end")):
        return  # one has ended for good: starting again would not help
    if stop.exists():
        end.write_text(str(128 + signal.SIGTERM), encoding="ascii")
        return
    end.unlink(missing_ok=True)
    command = [sys.executable, "-m", "surefoot", "train", *job["words"]]
    with open(logs / f"rank-{rank}.log", "ab") as log:
        process = subprocess.Popen(
            [*command, "--cluster", "auto", "--resume", "auto", "--json"],
            cwd=job["cwd"],
            env=os.environ | {WITH_PARENT: "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=log,
            preexec_fn=_end_with_starter,
        )
        (logs / f"rank-{rank}.pid").write_text(str(process.pid), encoding="ascii")
        told = False
        while process.poll() is None:
            if stop.exists() and not told:
                told = True
                process.send_signal(signal.SIGTERM)
            time.sleep(POLL_S)
    code = process.returncode
    if told and code == -signal.SIGTERM:  # before it could handle signals
        code = 128 + signal.SIGTERM
    end.write_text(str(code), encoding="ascii")
    if code not in FINAL:
        raise RuntimeError(f"rank {rank} ended with {code}")


def _end_with_starter() -> None:
    """In a rank that starts: be killed where its worker is gone, even while it is stopped."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _code(file: Path) -> int | None:
    """The code in a file that a rank's worker left at its end."""
    with contextlib.suppress(OSError, ValueError):
        return int(file.read_text(encoding="ascii"))
    return None


def _end_of(job: Job, rank: int) -> int | None:
    return _code(Path(job.ranks) / f"rank-{rank}.end")


def _last_line(job: Job, rank: int) -> str:
    """The last thing that a rank said of its own end."""
    with contextlib.suppress(OSError):
        text = (Path(job.ranks) / f"rank-{rank}.log").read_text(encoding="utf-8", errors="replace")
        lines = [line for line in text.splitlines() if line.startswith("surefoot: ")]
        return lines[-1] if lines else ""
    return ""


@contextlib.contextmanager
def _forwarded(logs: Path) -> Iterator[list[int]]:
    """Signals to this process are for the ranks: they store and stop. A second one stops at once.

    Gives the list of those that came.
    """
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if came:
            raise KeyboardInterrupt
        came.append(number)
        (logs / "stop").touch()

    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    with _handlers_kept():
        for number in SIGNALS:
            signal.signal(number, note)
        yield came


class _Follower:
    """Tells the rows that rank 0 appends to a file, each once, also where it starts again."""

    def __init__(self, file: Path, tell: Callable[[dict[str, Any]], None], told: int):
        self._file, self._tell, self._told = file, tell, told
        self._offset = self._inode = 0

    def look(self) -> None:
        """Tell what is new."""
        with contextlib.suppress(FileNotFoundError), open(self._file, "rb") as rows:
            inode = os.fstat(rows.fileno()).st_ino
            if inode != self._inode:  # a rank that goes on writes the file anew
                self._inode, self._offset = inode, 0
            rows.seek(self._offset)
            for line in rows:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                row = json.loads(line)
                if row["env_steps"] > self._told:
                    self._told = row["env_steps"]
                    self._tell(row)
