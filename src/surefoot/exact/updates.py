"""One exact update of each rule: its result with all the data and a perfect optimiser.

Every update takes a starting point and returns new parameters of the same family; unvisited states
stay as they are. KL means KL(old || new), averaged over visited states.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from surefoot.errors import ConfigError
from surefoot.exact.bounds import mixture_step
from surefoot.exact.families import (
    Family,
    LinearSoftmax,
    StartingPoint,
    TabularSoftmax,
    fisher_matrix,
    logits_of,
    policy_gradient,
)
from surefoot.exact.maximisers import (
    clipped_parameters,
    clipped_policy,
    constrained_parameters,
    constrained_policy,
    penalized_parameters,
    penalized_policy,
)
from surefoot.exact.solution import Policy, SolvedPolicy, solve


@dataclass(frozen=True)
class StepSizes:
    """How far an exact update goes; each rule reads its own field.

    Attributes:
        max_kl: radius of npg and trpo, in nats of mean KL.
        clip_eps: ppo's clip range.
        kl_coef: ppo-kl's weight on mean KL, against the mean advantage.
        learning_rate: vpg's step along the gradient of the discounted return.
    """

    max_kl: float = 0.01
    clip_eps: float = 0.2
    kl_coef: float = 1.0
    learning_rate: float = 1.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (value > 0 and math.isfinite(value)):
                raise ConfigError(f"{name} must be above 0 and finite, got {value}")


ExactRule = Callable[[StartingPoint, StepSizes], np.ndarray]
"""Parameters after one update from a starting point."""


def exact_vpg(start: StartingPoint, sizes: StepSizes) -> np.ndarray:
    """A step along the gradient of the return.

    Source: Sutton et al. 2000, theorem 1.
    """
    return start.theta + sizes.learning_rate * policy_gradient(start.family, start.old)


def natural_gradient(family: Family, old: SolvedPolicy) -> tuple[np.ndarray, float]:
    """X = F⁺g and xᵀFx; in a table x is H A(s, a) in every visited state.

    Source: Kakade 2001, "A natural policy gradient", theorem 1.
    """
    if isinstance(family, TabularSoftmax):
        weights = old.weights
        visited = old.visits[weights > 0].sum()
        x = np.where(weights[:, None] > 0, old.advantages, 0.0) * visited
        return x, float(weights @ np.sum(old.policy * x**2, axis=1))
    F, g = fisher_matrix(family, old), policy_gradient(family, old)
    # F is singular where parameters are redundant: of all solutions this takes the shortest.
    x = np.linalg.pinv(F, rcond=1e-12, hermitian=True) @ g
    return x, float(x @ F @ x)


def exact_npg(start: StartingPoint, sizes: StepSizes) -> np.ndarray:
    """F⁺g to the radius of the quadratic model; no step where the gradient is 0.

    Source: Kakade 2001, "A natural policy gradient", scaled as Schulman et al. 2015.
    """
    x, curvature = natural_gradient(start.family, start.old)
    return start.theta + np.sqrt(2 * sizes.max_kl / curvature) * x if curvature > 0 else start.theta


def exact_trpo(start: StartingPoint, sizes: StepSizes) -> np.ndarray:
    """The largest surrogate within mean KL(old || new) <= max_kl.

    Source: Schulman et al. 2015, arXiv:1502.05477, eq. 12, solved instead of approximated.
    """
    if isinstance(start.family, LinearSoftmax):
        natural = exact_npg(start, sizes) - start.theta
        if not natural.any():
            return start.theta
        return constrained_parameters(start, natural, sizes.max_kl)
    return logits_of(constrained_policy(start.old, sizes.max_kl))


def exact_ppo_kl(start: StartingPoint, sizes: StepSizes) -> np.ndarray:
    """The largest mean advantage minus kl_coef times mean KL(old || new).

    Source: Schulman et al. 2017, arXiv:1707.06347, eq. 8.
    """
    if isinstance(start.family, LinearSoftmax):
        return penalized_parameters(start, start.family.features, sizes.kl_coef)
    return logits_of(penalized_policy(start.old, sizes.kl_coef))


def exact_ppo(start: StartingPoint, sizes: StepSizes) -> np.ndarray:
    """Ascent of the clipped objective to its nearest local maximum.

    Source: Schulman et al. 2017, arXiv:1707.06347, eq. 7, solved instead of approximated.
    """
    if isinstance(start.family, LinearSoftmax):
        return clipped_parameters(start, start.family.features, sizes.clip_eps)
    visited = start.old.weights[:, None] > 0
    rows = clipped_policy(start.old, sizes.clip_eps)
    return logits_of(np.where(visited, rows, start.old.policy))


def exact_cpi(start: StartingPoint, sizes: StepSizes) -> np.ndarray:
    """Conservative policy iteration: a mixture with the greedy policy, by the guaranteed step.

    Source: Kakade & Langford 2002, corollary 4.2.
    """
    _require_table("cpi", start)
    target = greedy_policy(start.old)
    share = mixture_step(start.old, target)
    return logits_of((1 - share) * start.old.policy + share * target)


def exact_policy_iteration(start: StartingPoint, sizes: StepSizes) -> np.ndarray:
    """The greedy policy, with no trust region at all.

    Source: Howard 1960.
    """
    _require_table("pi", start)
    return logits_of(greedy_policy(start.old))


def greedy_policy(old: SolvedPolicy) -> Policy:
    """The action of the largest Q in each state; ties go to the old policy's own choice."""
    best = old.q_values.max(axis=1, keepdims=True)
    ties = old.q_values >= best - 1e-12 * old.scale
    choice = np.argmax(np.where(ties, 1.0 + old.policy, 0.0), axis=1)
    return np.eye(old.policy.shape[1])[choice]


def _require_table(rule: str, start: StartingPoint) -> None:
    if not isinstance(start.family, TabularSoftmax):
        raise ConfigError(
            f"{rule}: mixtures and greedy policies leave a family that shares parameters; "
            "give each state its own with --tabular"
        )


EXACT_UPDATES: dict[str, ExactRule] = {
    "vpg": exact_vpg,
    "npg": exact_npg,
    "trpo": exact_trpo,
    "ppo-kl": exact_ppo_kl,
    "ppo": exact_ppo,
    "cpi": exact_cpi,
    "pi": exact_policy_iteration,
}
"""The exact form of each rule, and of the two that came before them."""


def find_rule(name: str) -> ExactRule:
    """The exact form of a rule, by name.

    Raises:
        ConfigError: the name is unknown; lists the known ones.
    """
    if name not in EXACT_UPDATES:
        raise ConfigError(f"unknown rule {name}; exact rules are {', '.join(EXACT_UPDATES)}")
    return EXACT_UPDATES[name]


def updated(start: StartingPoint, rule: str, sizes: StepSizes | None = None) -> SolvedPolicy:
    """The solved policy after one exact update."""
    theta = EXACT_UPDATES[rule](start, sizes or StepSizes())
    return solve(start.mdp, start.family.policy(theta))
