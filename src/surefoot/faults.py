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
            f"{path}: of a ready vector environment none can be stepped alone; give a function "
            "that makes one environment"
        )
    strict = Care.of(settings.train)._replace(restarts=0)
    opened = None
    try:
        opened = open_host_env(source, 1, seed=fault.seed, care=strict)
        space = opened.spec.action_space
        steps = len(next(iter(fault.actions.values()), ()))
        template = {"action": create_empty_array(space, n=steps, fn=np.zeros)}
        actions = restore_arrays(template, fault.actions, str(path)) if steps else {}
        show(f"environment {fault.index} of {source.env_id}: reset(seed={fault.seed})")
        opened.reset([fault.seed])
        show(f"{steps} steps as they were recorded")
        for t in range(steps):
            opened.step(
                jax.tree.map(lambda leaf, t=t: np.asarray(leaf[t : t + 1]), actions["action"])
            )
    except (EnvContractError, EnvCrashError) as again:
        return again
    finally:
        if opened is not None:
            opened.close()
    raise EnvContractError(
        f"{source.env_id}: {steps} steps after reset(seed={fault.seed}) brought no fault; it "
        "depends on something other than its seed and its actions",
        name="NOT-REPEATED",
    )
