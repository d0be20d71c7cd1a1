"""Train what a study lacks, and keep each finished run as one small file."""

import contextlib
import importlib.metadata
import json
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.mujoco import early
from benchmarks.mujoco.studies import Planned
from surefoot.analysis.compare.cells import Cell, score_run
from surefoot.config.presets import preset, settle
from surefoot.config.settings import OwnNetworks, Parallel, Settings
from surefoot.parallel.jobs import Outcome, side_by_side
from surefoot.storage.files import replace_file
from surefoot.storage.run_directory import RunDirectory
from surefoot.training.api import train_or_resume
from surefoot.training.trainer import Resources

EPISODES = 20
EVALUATIONS = 10
EVALUATION_EPISODES = 10
POINTS = 50
"""Points of a curve."""
SIGNALS = (
    *("policy/kl_mean", "policy/kl_worst_share", "policy/entropy", "policy/clip_fraction"),
    *("policy/ess_fraction", "critic/explained_variance", "normalize/return_scale"),
    *("lens/explained_variance", "lens/filtered_ratio", "lens/signal_share"),
    *("lens/expected_cosine", "lens/promised_gain", "lens/realised_gain", "update/radius"),
    *(
        "critic/loss",
        "update/cg_residual",
        "update/backtracks",
        "update/accepted",
        "update/step_norm",
    ),
)
SIGNAL_POINTS = 20


def settings_of(planned: Planned) -> Settings:
    """Every setting of a run."""
    tables = planned.tables
    train = {
        **tables.get("train", {}),
        "steps": planned.steps,
        "seed": planned.seed,
        "eval_every": planned.steps // EVALUATIONS,
        "eval_episodes": EVALUATION_EPISODES,
        # Two runs share two cores: the environments of each stay in its process.
        "vectorization": "sync",
    }
    groups = preset(planned.env, planned.rule, "none")
    return settle(planned.env, groups, changes={**tables, "train": train})


def missing(planned: Sequence[Planned], results: Path) -> list[Planned]:
    """Those without a record."""
    return [run for run in planned if not (results / f"{run.name}.json").exists()]


def train_all(
    planned: Sequence[Planned], *, runs: Path, results: Path, peers: Path, jobs: int
) -> int:
    """Train what has no record; how many failed, which are tried again by the next call."""
    left = missing(planned, results)
    print(f"{len(left)} of {len(planned)} runs to train, {jobs} at a time", flush=True)
    started, failed = time.monotonic(), 0

    def done(position: int, outcome: Outcome) -> None:
        nonlocal failed
        failed += outcome.error is not None
        minutes = (time.monotonic() - started) / 60
        found = outcome.error or f"{outcome.value:.1f}"
        print(f"{minutes:6.1f} min  {left[position].name}: {found}", flush=True)

    with _one_thread_each():
        work = partial(_train, runs=runs, results=results, peers=peers)
        side_by_side(work, left, jobs=jobs, done=done)
    return failed


def _train(planned: Planned, *, runs: Path, results: Path, peers: Path) -> float:
    """Train or continue one run and write its record; its final return."""
    by_peer = planned.setting == "zoo"
    record = _by_peer(planned, peers) if by_peer else _by_surefoot(planned, runs)
    path = results / f"{planned.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, (json.dumps({**planned._asdict(), **record}) + "\n").encode())
    return record["final"]["mean"]


def _by_peer(planned: Planned, peers: Path) -> dict[str, Any]:
    """A run of another library, in its own virtual environment."""
    python = peers / "torch" / "bin" / "python"
    command = [str(python), str(Path(__file__).parent / "peer.py"), json.dumps(planned._asdict())]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode:
        raise RuntimeError(found.stderr.strip().splitlines()[-1])
    return json.loads(found.stdout.splitlines()[-1])


def _by_surefoot(planned: Planned, runs: Path) -> dict[str, Any]:
    cell = Cell(planned.env, settings_of(planned), OwnNetworks(), runs / planned.name, EPISODES)
    run = train_or_resume(cell.job, Resources(Parallel()), early.Early())
    score = score_run(run, EPISODES)
    directory = RunDirectory(cell.path)
    return {
        "commit": commit(),
        "versions": directory.config["versions"] | {"mujoco": importlib.metadata.version("mujoco")},
        "settings": cell.settings.to_dict(),
        "final": {
            "mean": score["return_mean"],
            "std": score["return_std"],
            "returns": [round(value, 2) for value in score["returns"]],
        },
        **_of_rows(directory.rows()),
        "early": directory.read_json(early.FILE),
    }


def _of_rows(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What is kept of a run's rows: evaluations, the curve, a few figures along the way."""
    evaluations = [
        [row["env_steps"], round(row["eval/return_mean"], 2), round(row["eval/return_std"], 2)]
        for row in rows
        if "eval/return_mean" in row
    ]
    parts = np.array_split(np.arange(len(rows)), min(POINTS, len(rows)))
    curve = []
    for part in parts:
        returns = [rows[i].get("episode/return_mean", np.nan) for i in part]
        counts = [rows[i].get("episode/count", 0) for i in part]
        if sum(counts):
            mean = np.nansum(np.array(returns) * counts) / sum(counts)
            curve.append([rows[part[-1]]["env_steps"], round(float(mean), 2)])
    signals = {name: list(_means(rows, name)) for name in SIGNALS}
    return {
        "evaluations": evaluations,
        "curve": curve,
        "signals": {
            name: values for name, values in signals.items() if values != [None] * SIGNAL_POINTS
        },
        "seconds": round(sum(row["time/iteration"] for row in rows)),
    }


def _means(rows: Sequence[dict[str, Any]], name: str) -> Iterator[float | None]:
    """A figure's means over equal parts of the run, to four digits; None where it is missing."""
    for part in np.array_split(np.arange(len(rows)), SIGNAL_POINTS):
        values = [rows[i][name] for i in part if name in rows[i]]
        yield float(f"{np.mean(values):.4g}") if values else None


def commit() -> str:
    """The commit that this is run from, marked where files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"]
    here = Path(__file__).parent
    found = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes started in this context run XLA on one thread, on a CPU."""
    before = dict(os.environ)
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
