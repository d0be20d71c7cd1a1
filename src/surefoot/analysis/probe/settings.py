"""Settings of a probe."""

import math
from dataclasses import dataclass

from surefoot.errors import ConfigError

LONGEST_EPISODE = 100_000
"""Steps after which an episode without a time limit is cut."""
NEGLIGIBLE = 1e-3
"""Discount below which rewards are left to the frozen critic."""


@dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """What a probe estimates, and from how many environment steps.

    Attributes:
        gamma: discount per step.
        gae_lambda: of the promised gain; 1, Monte Carlo, is unbiased under any critic.
        clip_eps: of PPO's clipped objective.
        fractions: of the update; policies there are played too, beside 0 and 1.
        budget: environment steps; None: 200,000, or 1,000,000 if the environment is JAX-native.
        seed: of the fresh episodes.
    """

    gamma: float = 0.99
    gae_lambda: float = 1.0
    clip_eps: float = 0.2
    fractions: tuple[float, ...] = (0.25, 0.5, 1.5, 2.0, 3.0, 5.0)
    budget: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not (0.0 <= self.gamma <= 1.0 and 0.0 <= self.gae_lambda <= 1.0):
            raise ConfigError(
                f"gamma and gae_lambda must be in [0, 1], got {self.gamma} and {self.gae_lambda}"
            )
        if self.budget is not None and self.budget < 1:
            raise ConfigError(f"--budget must be at least 1 step, got {self.budget}", name="BUDGET")

    def episode_limit(self, time_limit: int | None) -> int:
        """Step at which episodes are cut: the time limit, or where gamma^t falls below 0.001."""
        steps = time_limit or LONGEST_EPISODE
        if 0.0 < self.gamma < 1.0:
            return min(steps, math.ceil(math.log(NEGLIGIBLE) / math.log(self.gamma)))
        return steps if self.gamma else 1
