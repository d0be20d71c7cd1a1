"""What every probe settles first: where episodes are cut, how many steps it may take, on what."""

import math
from collections.abc import Callable
from typing import Any

from surefoot.envs.source import EnvSource
from surefoot.errors import ConfigError
from surefoot.training.evaluate import LONGEST_EPISODE

HOST_BUDGET, JAX_BUDGET = 200_000, 1_000_000
"""Environment steps of a probe where nobody says how many."""
NEGLIGIBLE = 1e-3
"""Discount below which steps are cut off and left to the frozen critic."""
CLIP_EPS = 0.2
"""Of ppo's clipped objective, where the rule that was probed has none."""

Progress = Callable[[int, int], None]
"""Told the steps taken so far, and the budget."""


def quiet(*_: Any) -> None:
    """Nobody listens."""


def cut_at(gamma: float, time_limit: int | None) -> int:
    """The step at which a probe's episodes are cut: the time limit, or where gamma^t is 0.001."""
    longest = time_limit or LONGEST_EPISODE
    if gamma >= 1.0:
        return longest
    return min(longest, 1 if gamma == 0.0 else math.ceil(math.log(NEGLIGIBLE) / math.log(gamma)))


def refuse_vectors(source: EnvSource) -> None:
    """A probe resets environments one by one, which vector environments cannot.

    Raises:
        ConfigError: for one.
    """
    if source.jax_env is None and source.make is None:
        raise ConfigError(
            f"{source.env_id}: a probe plays environments one by one, which vector environments "
            "cannot; give an id of Gymnasium's or a function that makes one environment",
            name="VECTOR-ENV",
        )


def budget_of(budget: int | None, jax_native: bool) -> int:
    """The steps that were asked for, or the default.

    Raises:
        ConfigError: for less than a step.
    """
    if budget is not None and budget < 1:
        raise ConfigError(f"--budget must be at least 1 step, got {budget}", name="BUDGET")
    return (JAX_BUDGET if jax_native else HOST_BUDGET) if budget is None else budget
