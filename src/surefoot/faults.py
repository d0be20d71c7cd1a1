"""A recorded fault of an environment, met again: one environment, its seed and its actions."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from gymnasium.vector.utils import create_empty_array

from surefoot.checkpoint import restore_arrays
from surefoot.envs.host import Care, open_host_env
from surefoot.errors import ConfigError, EnvContractError, EnvCrashError
from surefoot.run import RunDirectory
from surefoot.trained import named_source


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
    if source.kind not in ("gymnasium", "pool"):
        raise ConfigError(
            f"{path}: {source.env_id} is no environment that can be stepped alone; give a function "
            "that makes one"
        )
    care = Care.of(settings.train)._replace(restarts=0)
    show(f"environment {fault.index} of {source.env_id}: reset(seed={fault.seed})")
    steps = len(next(iter(fault.actions.values()), ()))
    done, again, opened = 0, None, None
    try:
        opened = open_host_env(source, 1, seed=fault.seed, care=care)
        show(f"{steps} steps as they were recorded")
        template = {"action": create_empty_array(opened.spec.action_space, n=steps, fn=np.zeros)}
        actions = restore_arrays(template, fault.actions, str(path)) if steps else {}
        opened.reset([fault.seed])
        for done in range(1, steps + 1):
            now = jax.tree.map(lambda leaf, t=done: np.asarray(leaf[t - 1 : t]), actions["action"])
            opened.step(now)
    except (EnvContractError, EnvCrashError) as met:
        again = met
    finally:
        if opened is not None:
            opened.close()
    if again is not None and (again.name, done) == (fault.name, steps):
        return again
    instead = f"this instead: {again}" if again else "no fault"
    raise EnvContractError(
        f"{source.env_id}: {steps} steps after reset(seed={fault.seed}) brought {instead}; it "
        f"depends on something other than its seed and its actions. Recorded was: {fault.said}",
        name="NOT-REPEATED",
    )
