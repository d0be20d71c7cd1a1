"""Find an update of a run: its two policies and its batch, from the checkpoints around it."""

from pathlib import Path
from typing import NamedTuple

from surefoot.analysis.probe.rerun import PolicyUpdate, Rerun
from surefoot.errors import CheckpointError, ConfigError
from surefoot.storage.checkpoint import LARGEST_JSON, read_file, strict_json
from surefoot.storage.run_directory import RunDirectory
from surefoot.training.callback import Callback

FOLDERS = ("checkpoints", "kept", "best")
"""Where a run directory has checkpoints."""


class StoredCheckpoint(NamedTuple):
    """A checkpoint of a run; `exact` if the rollout that follows it is reproducible."""

    iteration: int
    path: Path
    exact: bool


def find_checkpoints(directory: RunDirectory, *, jax_native: bool) -> list[StoredCheckpoint]:
    """All checkpoints of a run, in any folder, oldest first; a `CheckpointError` without any."""
    found = []
    for path in (path for folder in FOLDERS for path in directory.checkpoints(folder)):
        file = path / "state.json"
        state = strict_json(read_file(file, LARGEST_JSON), file)
        try:
            exact = jax_native or bool(state["exact"])
            found.append(StoredCheckpoint(int(state["iteration"]), path, exact))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{file} is not a checkpoint of surefoot: {error}") from error
    if not found:
        raise CheckpointError(
            f"{directory.path} has no checkpoint: a probe needs one next to an update",
            name="NO-CHECKPOINT",
        )
    return sorted(found)


def find_update(
    directory: RunDirectory,
    rerun: Rerun,
    iteration: int | None,
    *,
    replay: bool,
    callback: Callback,
) -> PolicyUpdate:
    """The update of one iteration, from the best checkpoint next to it; None for the newest.

    If there is none, `replay` repeats iterations since an earlier one.

    Raises:
        ConfigError: for an iteration that the run never made, or an update that was refused.
        CheckpointError: if no checkpoint is next to it; the message says how to replay it.
    """
    stored = find_checkpoints(directory, jax_native=rerun.jax_native)
    done = max((row["iteration"] for row in directory.rows()), default=stored[-1].iteration)
    if iteration is None:
        near = {k for each in stored for k in (each.iteration, each.iteration + 1)}
        iteration = max((k for k in near if k <= done), default=0)
    if not 1 <= iteration <= done:
        what = f"the updates that {directory.path} made"
        raise ConfigError(f"--update must be 1 to {done}, {what}; got {iteration}", name="UPDATE")
    exact = [each for each in stored if each.exact and each.iteration < iteration]
    before = next((each.path for each in stored if each.iteration == iteration - 1), None)
    after = next((each.path for each in stored if each.iteration == iteration), None)
    first, start, _ = exact[-1] if exact else (0, None, True)
    if first == iteration - 1:
        return rerun.repeat(start, 0, after)
    if after:
        source = (
            "both policies are the run's own; its batch is not stored: its promise is as logged"
        )
        others = [each.iteration for each in stored if each.exact and each.iteration < done]
        source += f" (--update {max(others) + 1} has its batch)" if others else ""
        return rerun.last_update(rerun.restore(after))._replace(source=source)
    if before:
        source = (
            "a similar update: from the run's policy before it, on another batch, because the "
            "checkpoint was stored in the middle of episodes"
        )
        return rerun.repeat(before, 0, None)._replace(source=source)
    count = iteration - 1 - first
    cost = f"{count} iterations, {count * rerun.batch_size:,} steps"
    if not replay:
        listed = ", ".join(map(str, sorted({each.iteration for each in stored})))
        raise CheckpointError(
            f"update {iteration} has no checkpoint next to it; there are checkpoints after "
            f"iterations {listed}; --replay repeats the run from iteration {first}: {cost}",
            name="NEVER-KEPT",
        )
    callback.on_message(f"replaying from iteration {first}: {cost}")
    found = rerun.repeat(start, count, None)
    return found._replace(source=f"replayed from iteration {first}; {found.source}")
