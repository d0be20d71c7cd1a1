"""What a run leaves that met a fault, and how a fault of an environment is met again."""

import contextlib
import json
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from gymnasium.vector.utils import create_empty_array

from surefoot.envs.host import EnvLimits
from surefoot.envs.registry import imports_nothing
from surefoot.errors import (
    ConfigError,
    EnvContractError,
    EnvCrashError,
    NotFiniteError,
    StorageError,
    SurefootError,
)
from surefoot.storage.checkpoint import name_arrays, restore_arrays
from surefoot.storage.run_directory import NOT_FINITE, FaultRecord, RunDirectory
from surefoot.training.run import Run, named_source
from surefoot.types import Rollout


def keep_fault(run: Run, fault: SurefootError) -> None:
    """Keep what led an environment to its fault, and say in it what there is to go on from.

    What failed before a first iteration otherwise leaves nothing that a second try would meet.
    """
    directory, named = run.directory, run.settings.env
    if directory is None:
        return
    story = fault.history if isinstance(fault, EnvContractError | EnvCrashError) else None
    if story is not None and run.source.reopens:
        actions = name_arrays({"action": story.actions})
        record = FaultRecord(str(fault), fault.name, story.index, story.seed, actions)
        with contextlib.suppress(StorageError):  # the fault itself is what has to be told
            directory.write_fault(record)
            again = "" if imports_nothing(named) else f" --env {shlex.quote(named)}"
            line = f"surefoot replay {shlex.quote(str(directory.path))} --fault{again}"
            if directory.config.get("env_from_python"):
                line = f"sf.replay({str(directory.path)!r}, env=...)"
            fault.add(f"`{line}` meets it")
    elif run.iteration == 0:
        directory.forget()
    stored = directory.checkpoints()[-1:]
    if stored and not isinstance(fault, NotFiniteError):
        fault.add(f"the last good checkpoint is {stored[0]}")


def keep_batch(run: Run, rollout: Rollout, row: Mapping[str, Any]) -> str:
    """Keep a batch in numbers behind updates that were refused; the words that say where."""
    assert run.directory is not None
    parts = ("obs", "actions", "log_probs", "rewards", "terminated", "truncated", "valid")
    batch = {name: _statistics(getattr(rollout, name)) for name in parts}
    rows = [old for old in run.rows if old["iteration"] <= row["iteration"]]
    told = {"rows": rows[-run.settings.train.max_refusals - 1 :], "batch": batch}
    run.directory.write(NOT_FINITE, json.dumps(told, indent=1, allow_nan=False))
    said = f"; {run.directory.path / NOT_FINITE} has the batch in numbers"
    kept = run.directory.checkpoints()[-1:]
    return said + (f"; the last good checkpoint is {kept[0]}" if kept else "")


def _statistics(tree: Any) -> dict[str, Any]:
    """What there is to say of arrays, whatever stands in them."""
    flat = [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)]
    values = np.concatenate(flat) if flat else np.zeros(0)
    finite = values[np.isfinite(values)]
    told: dict[str, Any] = {"count": len(values), "not_finite": len(values) - len(finite)}
    if len(finite):
        told |= {"smallest": finite.min(), "mean": finite.mean(), "largest": finite.max()}
    return told


def replay(
    path: str | Path, *, env: Any = None, show: Callable[[str], Any] = lambda text: None
) -> EnvContractError | EnvCrashError:
    """Step the environment that ended a run to its fault again; nothing of the run changes.

    Args:
        path: the run directory.
        env: the environment again, where it needs an import of your own.
        show: called with a line on what is done.

    Returns:
        The fault, with its traceback.

    Raises:
        CheckpointError: where the run has no such fault, or its environment must be named.
        EnvContractError: where the fault does not come again.
    """
    directory = RunDirectory(Path(path))
    fault = directory.read_fault()
    settings, source = named_source(directory, env)

    def refuse(*_: Any) -> NoReturn:
        raise ConfigError(
            f"{path}: {source.env_id} is no environment that can be stepped alone; give a function "
            "that makes one"
        )

    if not source.reopens:
        refuse()
    limits = EnvLimits.from_settings(settings.train)._replace(restarts=0)
    show(f"environment {fault.index} of {source.env_id}: reset(seed={fault.seed})")
    steps = len(next(iter(fault.actions.values()), ()))
    done, again = 0, None
    with contextlib.ExitStack() as closing:
        try:
            opened = source.open(1, seed=fault.seed, limits=limits)
            closing.callback(opened.close)
            show(f"{steps} steps as they were recorded")
            template = {
                "action": create_empty_array(opened.spec.action_space, n=steps, fn=np.zeros)
            }
            actions = restore_arrays(template, fault.actions, str(path)) if steps else {}
            env = opened.visit(host=lambda env: env, jax=refuse)
            env.reset([fault.seed])
            for done in range(1, steps + 1):
                now = jax.tree.map(
                    lambda leaf, t=done: np.asarray(leaf[t - 1 : t]), actions["action"]
                )
                env.step(now)
        except (EnvContractError, EnvCrashError) as met:
            again = met
    if again is not None and (again.name, done) == (fault.name, steps):
        return again
    instead = f"this instead: {again}" if again else "no fault"
    raise EnvContractError(
        f"{source.env_id}: {steps} steps after reset(seed={fault.seed}) brought {instead}; it "
        f"depends on something other than its seed and its actions. Recorded was: {fault.said}",
        name="NOT-REPEATED",
    )
