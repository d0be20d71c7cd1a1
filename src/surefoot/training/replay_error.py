"""Record the error that ended a run; replay it if an environment caused it."""

import contextlib
import json
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from gymnasium.vector.utils import create_empty_array

from surefoot.envs.env_id import imports_nothing
from surefoot.envs.host import EnvLimits
from surefoot.envs.source import EnvSource, as_host
from surefoot.errors import (
    ConfigError,
    EnvContractError,
    EnvCrashError,
    NotFiniteError,
    StorageError,
    SurefootError,
)
from surefoot.storage.checkpoint import name_arrays, restore_arrays
from surefoot.storage.env_error_record import EnvErrorRecord, read_env_error, write_env_error
from surefoot.storage.run_directory import NOT_FINITE, RunDirectory
from surefoot.training.run import Run, named_source
from surefoot.types import Rollout


def record_error(run: Run, error: SurefootError) -> None:
    """Keep what reproduces an environment error, and add to its message how to continue.

    A run that failed before its first update, for another reason, leaves no directory.
    """
    directory = run.directory
    if directory is None:
        return
    history = error.history if isinstance(error, EnvContractError | EnvCrashError) else None
    if history is not None and run.source.reopens:
        actions = name_arrays({"action": history.actions})
        record = EnvErrorRecord(
            str(error), error.name, history.index, history.seed, actions, history.cut
        )
        with contextlib.suppress(StorageError):  # the error itself matters more
            write_env_error(directory, record)
            error.add(f"reproduce it with `{_replay_command(directory, run.settings.env)}`")
    elif run.iteration == 0:
        directory.forget()
    stored = directory.checkpoints()[-1:]
    if stored and not isinstance(error, NotFiniteError):
        error.add(f"the last good checkpoint is {stored[0]}")


def _replay_command(directory: RunDirectory, env_id: str) -> str:
    path = str(directory.path)
    if directory.config.get("env_from_python"):
        return f"sf.replay({path!r}, env=...)"
    named = "" if imports_nothing(env_id) else f" --env {shlex.quote(env_id)}"
    return f"surefoot replay {shlex.quote(path)}{named}"


def record_batch(run: Run, rollout: Rollout, row: Mapping[str, Any]) -> str:
    """Keep statistics of a rollout whose update was refused; return where, for the error line."""
    assert run.directory is not None
    parts = ("obs", "actions", "log_probs", "rewards", "terminated", "truncated", "valid")
    batch = {name: _statistics(getattr(rollout, name)) for name in parts}
    rows = [old for old in run.rows if old["iteration"] <= row["iteration"]]
    record = {"rows": rows[-run.settings.train.max_refusals - 1 :], "batch": batch}
    run.directory.write(NOT_FINITE, json.dumps(record, indent=1, allow_nan=False))
    text = f"; {run.directory.path / NOT_FINITE} has statistics of the batch"
    stored = run.directory.checkpoints()[-1:]
    return text + (f"; the last good checkpoint is {stored[0]}" if stored else "")


def _statistics(tree: Any) -> dict[str, Any]:
    flat = [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)]
    values = np.concatenate(flat) if flat else np.zeros(0)
    finite = values[np.isfinite(values)]
    found: dict[str, Any] = {"count": len(values), "not_finite": len(values) - len(finite)}
    if len(finite):
        # Of the finite values alone, because the file is JSON without NaN or infinity.
        found |= {"smallest": finite.min(), "mean": finite.mean(), "largest": finite.max()}
    return found


def replay(
    path: str | Path, *, env: Any = None, show: Callable[[str], Any] = lambda text: None
) -> EnvContractError | EnvCrashError:
    """Replay the environment error that ended a run; the run itself does not change.

    Args:
        path: the run directory.
        env: the environment again, if it is from a module of your own.
        show: called with a line for each stage.

    Returns:
        The error, with its traceback.

    Raises:
        CheckpointError: if the run has no such error, or its environment must be named.
        EnvContractError: if the error does not occur again.
    """
    directory = RunDirectory(path)
    record = read_env_error(directory)
    settings, source = named_source(directory, env)
    if source.jax_env is not None or not source.reopens:
        raise ConfigError(
            f"{path}: {source.env_id} cannot be stepped alone; give a function that makes one "
            "environment"
        )
    # A restart would hide the very error that is looked for.
    limits = EnvLimits.from_settings(settings.train)._replace(restarts=0)
    steps = len(next(iter(record.actions.values()), ()))
    show(f"environment {record.index} of {source.env_id}: reset(seed={record.seed})")
    show(f"repeating {steps} steps")
    error, done = _repeat(source, record, steps, limits)
    # The same error at an earlier step is another one.
    if error is not None and (error.name, done) == (record.name, steps):
        return error
    instead = f"another error: {error}" if error else "no error"
    raise EnvContractError(
        f"{source.env_id}: {steps} steps after reset(seed={record.seed}) raised {instead}; the "
        "environment depends on more than its seed and its actions. The recorded error is: "
        f"{record.message}",
        name="NOT-REPEATED",
    )


def _repeat(
    source: EnvSource, record: EnvErrorRecord, steps: int, limits: EnvLimits
) -> tuple[EnvContractError | EnvCrashError | None, int]:
    """Take the recorded steps; return the error, if any, and the step that raised it."""
    done = 0
    with contextlib.ExitStack() as closing:
        try:
            env = as_host(source.open(1, seed=record.seed, limits=limits))
            closing.callback(env.close)
            template = {"action": create_empty_array(env.spec.action_space, n=steps, fn=np.zeros)}
            actions = restore_arrays(template, record.actions, source.env_id) if steps else {}
            env.reset([record.seed], [record.cut])
            for done in range(1, steps + 1):
                env.step(jax.tree.map(lambda leaf, t=done: leaf[t - 1 : t], actions["action"]))
        except (EnvContractError, EnvCrashError) as error:
            return error, done
    return None, done
