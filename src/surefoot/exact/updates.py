"""One update of each rule, exact: what it would do with all the data and a perfect optimiser.

Every update takes a solved policy and gives new parameters of the same family; unvisited states
stay as they are. `kl` means KL(old || new), averaged over visited states.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import optimize

from surefoot.errors import ConfigError
from surefoot.exact.bounds import mixture_step
from surefoot.exact.families import Family, Shared, Tabular, fisher, gradient, logits_of
from surefoot.exact.maximisers import clipped_rows, penalized_rows
from surefoot.exact.mdp import MDP
from surefoot.exact.solution import Policy, Solution, row_kl, state_weights


@dataclass(frozen=True)
class Step:
    """How far an exact update goes, for the rules that ask.

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


def vpg(mdp: MDP, family: Family, theta: np.ndarray, old: Solution, step: Step) -> np.ndarray:
    """A step along the gradient of the return.

    Source: Sutton et al. 2000, theorem 1.
    """
    return theta + step.learning_rate * gradient(mdp, family, old)


def natural_direction(mdp: MDP, family: Family, old: Solution) -> tuple[np.ndarray, float]:
    """F⁺g, and xᵀFx of it; in a table it is H A(s, a) in every visited state.

    Source: Kakade 2001, "A natural policy gradient", theorem 1.
    """
    if isinstance(family, Tabular):
        weights = state_weights(mdp, old)
        visited = old.visits[weights > 0].sum()
        x = np.where(weights[:, None] > 0, old.advantages, 0.0) * visited
        return x, float(weights @ np.sum(old.policy * x**2, axis=1))
    F, g = fisher(mdp, family, old), gradient(mdp, family, old)
    x = np.linalg.pinv(F, rcond=1e-12, hermitian=True) @ g
    return x, float(x @ F @ x)


def npg(mdp: MDP, family: Family, theta: np.ndarray, old: Solution, step: Step) -> np.ndarray:
    """F⁺g to the radius of the quadratic model; no gradient, no step.

    Source: Kakade 2001, "A natural policy gradient", scaled as Schulman et al. 2015.
    """
    x, curvature = natural_direction(mdp, family, old)
    return theta + np.sqrt(2 * step.max_kl / curvature) * x if curvature > 0 else theta


def trpo(mdp: MDP, family: Family, theta: np.ndarray, old: Solution, step: Step) -> np.ndarray:
    """The largest surrogate within mean KL(old || new) <= max_kl.

    Source: Schulman et al. 2015, arXiv:1502.05477, eq. 12, solved and not approximated.
    """
    if isinstance(family, Shared):
        return _constrained(mdp, family, theta, old, step.max_kl)
    weights = state_weights(mdp, old)

    def at(log_coef: float) -> Policy:
        return penalized_rows(old, np.exp(log_coef), weights > 0)

    def excess(log_coef: float) -> float:
        return float(weights @ row_kl(old.policy, at(log_coef))) - step.max_kl

    spread = float(np.max(np.ptp(old.advantages, axis=1) * (weights > 0)))
    if spread == 0.0:
        return theta
    low, high = np.log(spread) - 1.0, np.log(spread) + 1.0
    while excess(high) > 0:
        high += 2.0
    while excess(low) < 0:
        low -= 2.0
        if low < np.log(spread) - 40.0:
            # All that matters is decided: even the greedy policy is inside the radius.
            return logits_of(at(low))
    root: Any = optimize.brentq(excess, low, high, xtol=1e-14)
    return logits_of(at(float(root)))


def _constrained(
    mdp: MDP, family: Shared, theta: np.ndarray, old: Solution, max_kl: float
) -> np.ndarray:
    """The largest surrogate inside the radius that is found over shared parameters.

    SLSQP from the natural step and from its opposite, for the surrogate may have several tops;
    the natural step itself, shortened to the radius; and no step at all. The best one counts.
    """
    weights, moved = state_weights(mdp, old), npg(mdp, family, theta, old, Step(max_kl=max_kl))
    if np.array_equal(moved, theta):
        return theta
    rows = old.visits[:, None] * old.advantages

    def kl_at(step: np.ndarray) -> tuple[float, np.ndarray]:
        """Mean KL after a step, and its gradient; a probability of 0 counts as a tiny one."""
        policy = _never_zero(family.policy(theta + step))
        value = float(weights @ row_kl(old.policy, policy))
        return value, -family.pull(policy, weights[:, None] * old.policy / policy)

    def gain(step: np.ndarray) -> tuple[float, np.ndarray]:
        policy = family.policy(theta + step)
        return float(np.sum((policy - old.policy) * rows)), family.pull(policy, rows)

    def shortened(step: np.ndarray) -> np.ndarray:
        if kl_at(step)[0] <= max_kl:
            return step
        share: Any = optimize.brentq(lambda a: kl_at(a * step)[0] - max_kl, 0.0, 1.0, xtol=1e-15)
        return share * step

    natural = moved - theta
    found = [np.zeros_like(natural), shortened(natural)]
    # Lengths in natural steps, gains in what that step gives, KL in radii: all of order 1, so
    # that a radius of 1e-6 is solved as well as one of 1.
    size, scale = np.linalg.norm(natural), max(abs(gain(natural)[0]), 1e-300)
    for sign in (1.0, -1.0):
        end = optimize.minimize(
            lambda z: -gain(size * z)[0] / scale,
            sign * natural / size,
            jac=lambda z: -gain(size * z)[1] * size / scale,
            constraints={
                "type": "ineq",
                "fun": lambda z: 1.0 - kl_at(size * z)[0] / max_kl,
                "jac": lambda z: -kl_at(size * z)[1] * size / max_kl,
            },
            method="SLSQP",
            options={"ftol": 1e-15, "maxiter": 500},
        )
        if np.isfinite(end.x).all():
            found.append(shortened(size * end.x))
    return theta + max(found, key=lambda step: gain(step)[0])


def _never_zero(policy: Policy) -> Policy:
    """A try may go so far that a probability is 0 in floats; KL stays a number there."""
    return np.maximum(policy, 1e-300)


def ppo_kl(mdp: MDP, family: Family, theta: np.ndarray, old: Solution, step: Step) -> np.ndarray:
    """The largest mean advantage less kl_coef times mean KL(old || new).

    Source: Schulman et al. 2017, arXiv:1707.06347, eq. 8.
    """
    weights = state_weights(mdp, old)
    if isinstance(family, Tabular):
        return logits_of(penalized_rows(old, step.kl_coef, weights > 0))

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        policy = _never_zero(family.policy(theta))
        rows = weights[:, None] * (old.advantages + step.kl_coef * old.policy / policy)
        kl_mean = float(weights @ row_kl(old.policy, policy))
        gain = float(weights @ np.sum(policy * old.advantages, axis=1))
        return step.kl_coef * kl_mean - gain, -family.pull(policy, rows)

    return optimize.minimize(loss, theta, jac=True, method="BFGS", options={"gtol": 1e-12}).x


def ppo(mdp: MDP, family: Family, theta: np.ndarray, old: Solution, step: Step) -> np.ndarray:
    """Ascent of the clipped objective to its nearest local maximum.

    Source: Schulman et al. 2017, arXiv:1707.06347, eq. 7, solved and not approximated.
    """
    if isinstance(family, Shared):
        return _ascend_clipped(mdp, family, theta, old, step.clip_eps)
    visited = state_weights(mdp, old) > 0
    rows = clipped_rows(old, step.clip_eps)
    return logits_of(np.where(visited[:, None], rows, old.policy))


LONGEST, SHORTEST = 1e-2, 1e-12
"""Steps of the ascent, as the largest change of a logit's difference within a state."""


def _ascend_clipped(
    mdp: MDP, family: Shared, theta: np.ndarray, old: Solution, clip_eps: float
) -> np.ndarray:
    """Follow the steepest ascent of the clipped objective, along its kinks where it leads there.

    A step that gains nothing has passed a kink or the top: it is halved, and so is the distance
    at which a kink is felt. The ascent has arrived where no step gains any more.
    """
    visits = state_weights(mdp, old)[:, None]
    rows, edges = visits * old.advantages, np.where(old.advantages > 0, 1, -1) * clip_eps + 1

    def objective(policy: Policy) -> float:
        ratio = policy / old.policy
        held = np.clip(ratio, 1 - clip_eps, 1 + clip_eps)
        return float(np.sum(old.policy * np.minimum(ratio * rows, held * rows)))

    policy, length = family.policy(theta), LONGEST
    value = objective(policy)
    while length > SHORTEST:
        ratio = policy / old.policy
        at_kink = (np.abs(ratio - edges) <= 2 * length * ratio) & (rows != 0)
        free = np.where(rows > 0, ratio < edges, ratio > edges) & ~at_kink
        slope = _steepest(family, policy, np.where(free, rows, 0.0), np.where(at_kink, rows, 0.0))
        push = float(np.ptp(family.features @ slope, axis=1).max())
        trial = theta + (length / push if push > 0 else 0.0) * slope
        trial_policy = family.policy(trial)
        gained = objective(trial_policy)
        if gained > value:
            theta, policy, value = trial, trial_policy, gained
            length = min(1.5 * length, LONGEST)
        else:
            length *= 0.5
    return theta


def _steepest(
    family: Shared,
    policy: Policy,
    rows: Float[np.ndarray, "state action"],
    kinks: Float[np.ndarray, "state action"],
) -> Float[np.ndarray, " param"]:
    """Steepest ascent where the terms of `kinks` count on one side only.

    The shortest vector among the gradients with any share, 0 to 1, of each of those terms: what
    it points to rises on both sides, and where it vanishes nothing does.
    """
    slope, where = family.pull(policy, rows), np.argwhere(kinks)
    if len(where) == 0:
        return slope
    one_sided = []
    for state, action in where:
        row = np.zeros_like(kinks)
        row[state, action] = kinks[state, action]
        one_sided.append(family.pull(policy, row))
    columns = np.stack(one_sided, axis=1)
    if len(where) == 1:
        share = np.clip(-columns.T @ slope / max(float(np.sum(columns**2)), 1e-300), 0.0, 1.0)
    else:
        share = optimize.lsq_linear(columns, -slope, bounds=(0.0, 1.0), method="bvls").x
    return slope + columns @ share


def cpi(mdp: MDP, family: Family, theta: np.ndarray, old: Solution, step: Step) -> np.ndarray:
    """Conservative policy iteration: a mixture with the greedy policy, by the guaranteed step.

    Source: Kakade & Langford 2002, corollary 4.2.
    """
    _needs_table("cpi", family)
    target = greedy(old)
    share = mixture_step(mdp, old, target)
    return logits_of((1 - share) * old.policy + share * target)


def policy_iteration(
    mdp: MDP, family: Family, theta: np.ndarray, old: Solution, step: Step
) -> np.ndarray:
    """The greedy policy, with no trust region at all.

    Source: Howard 1960.
    """
    _needs_table("pi", family)
    return logits_of(greedy(old))


def greedy(old: Solution) -> Policy:
    """The action of the largest Q in each state; ties go to the old policy's own choice."""
    best = old.q_values.max(axis=1, keepdims=True)
    ties = old.q_values >= best - 1e-12 * (1.0 + np.abs(best))
    choice = np.argmax(np.where(ties, 1.0 + old.policy, 0.0), axis=1)
    return np.eye(old.policy.shape[1])[choice]


def _needs_table(rule: str, family: Family) -> None:
    if not isinstance(family, Tabular):
        raise ConfigError(
            f"{rule}: mixtures and greedy policies leave a family that shares parameters; "
            "give each state its own with --tabular"
        )


EXACT: dict[str, Callable[[MDP, Family, np.ndarray, Solution, Step], np.ndarray]] = {
    "vpg": vpg,
    "npg": npg,
    "trpo": trpo,
    "ppo-kl": ppo_kl,
    "ppo": ppo,
    "cpi": cpi,
    "pi": policy_iteration,
}
"""The exact form of each rule, and the two that came before them."""
