"""Choose an update of a run: its iteration, and what is stored around it."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from surefoot.errors import CheckpointError, ConfigError
from surefoot.storage.checkpoint import read_state
from surefoot.storage.run_directory import RunDirectory

FOLDERS = ("checkpoints", "kept", "best")
"""Where a run directory has checkpoints."""


class StoredCheckpoint(NamedTuple):
    """A checkpoint of a run; `exact` if a host run's rollout that follows it is reproducible."""

    iteration: int
    path: Path
    exact: bool


class Chosen(NamedTuple):
    """An update of a run by its iteration; the newest one, checkpoints, and rows by iteration."""

    iteration: int
    done: int
    stored: Sequence[StoredCheckpoint]
    rows: Mapping[int, Mapping[str, Any]]


def find_checkpoints(directory: RunDirectory) -> list[StoredCheckpoint]:
    """All checkpoints of a run, in any folder, oldest first; a `CheckpointError` without any."""
    # With other settings a run began new episodes.
    found, resumed = [], {until for until, _ in directory.history.earlier}
    for path in (path for folder in FOLDERS for path in directory.checkpoints(folder)):
        # The small file alone: arrays are read from the checkpoints that are used.
        state = read_state(path)
        try:
            iteration, exact = int(state["iteration"]), bool(state["exact"])
            found.append(StoredCheckpoint(iteration, path, exact or iteration in resumed))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} is not a checkpoint of surefoot: {error}") from error
    if not found:
        raise CheckpointError(
            f"{directory.path} has no checkpoint: a probe needs one next to an update",
            name="NO-CHECKPOINT",
        )
    return sorted(found)


def choose_update(directory: RunDirectory, iteration: int | None) -> Chosen:
    """Choose the update of an iteration that the run has made.

    None takes that of most promise, among the updates that have a checkpoint next to them.

    Raises:
        ConfigError: for an iteration that the run never made.
        CheckpointError: where there is no run, or no checkpoint.
    """
    stored = find_checkpoints(directory)
    # Without rows the newest checkpoint shows how far the run came.
    rows = {row["iteration"]: row for row in directory.rows()}
    done = max(rows, default=stored[-1].iteration)
    if iteration is None:
        iteration = _of_most_promise(rows, stored, done)
    if not 1 <= iteration <= done:
        what = f"the updates that {directory.path} made"
        raise ConfigError(f"--update must be 1 to {done}, {what}; got {iteration}", name="UPDATE")
    return Chosen(iteration, done, stored, rows)


def _of_most_promise(
    rows: Mapping[int, Mapping[str, Any]], stored: Sequence[StoredCheckpoint], done: int
) -> int:
    """The update that promised most of those next to a checkpoint, the newest of equal ones."""

    def promise(iteration: int) -> tuple[float, int]:
        found = rows.get(iteration, {}).get("surrogate/promised_gain")
        if isinstance(found, float) and math.isfinite(found):
            return found, iteration
        return -math.inf, iteration

    # A checkpoint is next to the update that led to it and to the one that follows.
    near = {k for each in stored for k in (each.iteration, each.iteration + 1)}
    return max((k for k in near if 1 <= k <= done), key=promise, default=0)
