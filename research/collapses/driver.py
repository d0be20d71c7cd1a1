"""Train cells in a few processes, keep each as one file of metrics, go on where it stopped."""

import hashlib
import json
import multiprocessing
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research.collapses.cells import Cell

SECONDS_PER_STEP = 2.0e-5
"""Of one core, for one environment step of one run, learned from and looked at; measured."""
SECONDS_PER_PROGRAM = 15.0


def fingerprint(cell: Cell) -> str:
    """What decides a cell's runs, shortened; a stored cell of another is trained again."""
    text = json.dumps(cell, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def path_of(cell: Cell, out: Path) -> Path:
    """Where a cell's metrics are kept."""
    return out / cell.variant / f"{cell.name}.npz"


def load(cell: Cell, out: Path) -> dict[str, np.ndarray] | None:
    """A stored cell's metrics, `[run, iteration]`; None where there are none of this very cell."""
    path = path_of(cell, out)
    if not path.exists():
        return None
    with np.load(path) as stored:
        if str(stored["fingerprint"]) != fingerprint(cell):
            return None
        return {name: stored[name] for name in stored.files if name != "fingerprint"}


def estimate(cells: Sequence[Cell]) -> float:
    """Seconds of one core that these cells take, compilation included."""
    programs = {key for cell in cells for key in cell.programs}
    steps = sum(cell.env_steps for cell in cells)
    return SECONDS_PER_STEP * steps + SECONDS_PER_PROGRAM * len(programs)


def train_cell(cell: Cell, out: Path) -> float:
    """Train one cell and keep its metrics; the processor seconds that took."""
    from research.collapses.programs import (
        phases_of,
        train_chunks,
    )  # imports jax: in workers only

    started = time.process_time()  # of its own core, whoever else is at work
    metrics = train_chunks(phases_of(cell), cell.seeds)
    path = path_of(cell, out)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".part"), "wb") as file:
        np.savez_compressed(file, fingerprint=np.array(fingerprint(cell)), **metrics)  # type: ignore[arg-type]
    path.with_suffix(".part").replace(path)
    return time.process_time() - started


def _train_family(cells: Sequence[Cell], out: Path) -> list[tuple[str, float | str]]:
    """Cells that share their programs, in one process; a cell that fails does not stop the rest."""
    results: list[tuple[str, float | str]] = []
    for cell in cells:
        try:
            results.append((cell.name, train_cell(cell, out)))
        except Exception as fault:  # told in the summary, and the process goes on
            results.append((cell.name, f"{type(fault).__name__}: {fault}"))
        print(f"  {cell.variant} {cell.name}: {_shown(results[-1][1])}", flush=True)
    return results


def _shown(result: float | str) -> str:
    return result.splitlines()[0][:300] if isinstance(result, str) else f"{result:.0f} s"


def _families(cells: Sequence[Cell]) -> list[list[Cell]]:
    families: dict[Any, list[Cell]] = {}
    for cell in cells:
        families.setdefault((cell.env, cell.rule, cell.variant), []).append(cell)
    return sorted(families.values(), key=estimate, reverse=True)


def train_cells(cells: Sequence[Cell], out: Path, *, jobs: int) -> Mapping[str, float | str]:
    """Train all cells that are not on disk yet; seconds or the fault of each, by name."""
    left = [cell for cell in cells if load(cell, out) is None]
    seconds = estimate(left)
    print(
        f"{len(left)} of {len(cells)} cells to train, {sum(len(c.seeds) for c in left)} runs: "
        f"about {seconds / 60:.0f} minutes of one core, {seconds / 60 / jobs:.0f} with {jobs} jobs",
        flush=True,
    )
    _single_threaded(out)
    context = multiprocessing.get_context("spawn")
    # A process that has built dozens of programs runs out of maps: each family has its own.
    with context.Pool(jobs, maxtasksperchild=1) as pool:
        families = pool.starmap(_train_family, [(f, out) for f in _families(left)], chunksize=1)
    return dict(result for family in families for result in family)


def _single_threaded(out: Path) -> None:
    """One core a process, programs kept on disk, and no time spent on optimising them."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = (
        "--xla_cpu_multi_thread_eigen=false --xla_backend_optimization_level=1"
    )
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(out / "programs")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "1"
