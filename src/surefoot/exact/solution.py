"""Exact quantities of a policy on a finite MDP: V, Q, A, visits, the return and its surrogate.

NumPy in float64, with dense linear algebra and no other approximation. It shares no code with the
ladder, so that each can be the other's oracle.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from surefoot.exact.mdp import MDP, check_policy

Policy = Float[np.ndarray, "state action"]

LONG_ENOUGH = 10_000
"""Steps that stand for no time limit, where episodes end by themselves."""


class Solution(NamedTuple):
    """A policy solved: `visits` is rho, unnormalised, and sums to 1 / (1 - gamma).

    `eta` is the expected discounted return from the start. `inverse` is (I - gamma P_pi)^-1.
    """

    policy: Float[np.ndarray, "state action"]
    values: Float[np.ndarray, " state"]
    q_values: Float[np.ndarray, "state action"]
    advantages: Float[np.ndarray, "state action"]
    visits: Float[np.ndarray, " state"]
    eta: float


def next_states(mdp: MDP, policy: Policy) -> Float[np.ndarray, "state state"]:
    """P_pi(s' | s), the transitions averaged over the policy's actions."""
    return np.einsum("sa,sat->st", policy, mdp.transitions)


def resolvent(mdp: MDP, policy: Policy) -> Float[np.ndarray, "state state"]:
    """I - gamma P_pi: solving with it sums over all times, discounted."""
    return np.eye(mdp.num_states) - mdp.gamma * next_states(mdp, policy)


def solve(mdp: MDP, policy: Policy) -> Solution:
    """Everything about one policy.

    Raises:
        ConfigError: for a policy of the wrong shape, or one whose rows are no distributions.

    Source: Sutton & Barto 2018, ch. 3; rho as in Schulman et al. 2015, arXiv:1502.05477, section 2.
    """
    check_policy(mdp, policy)
    system = resolvent(mdp, policy)
    values = np.linalg.solve(system, np.sum(policy * mdp.rewards, axis=1))
    q_values = mdp.rewards + mdp.gamma * mdp.transitions @ values
    advantages = q_values - values[:, None]
    # A state whose advantages are all rounding has none: a rule that looks at their direction
    # alone would take a step of full length along it.
    largest = np.abs(advantages).max(axis=1, keepdims=True)
    rounding = 1e-13 * (1.0 + np.abs(q_values).max())
    advantages = np.where(mdp.terminal[:, None] | (largest <= rounding), 0.0, advantages)
    visits = np.maximum(np.linalg.solve(system.T, mdp.start), 0.0)
    return Solution(policy, values, q_values, advantages, visits, float(mdp.start @ values))


def state_weights(mdp: MDP, solution: Solution) -> Float[np.ndarray, " state"]:
    """Share of each state in a mean over states: visits, terminal states left out, to a sum of 1.

    Where only terminal states are visited all shares are 0.
    """
    visits = np.where(mdp.terminal, 0.0, solution.visits)
    total = visits.sum()
    return visits / total if total > 0 else visits


def expected_advantages(old: Solution, new: Policy) -> Float[np.ndarray, " state"]:
    """Abar(s): mean of the old policy's advantages under the new one's actions."""
    return np.sum(new * old.advantages, axis=1)


def surrogate(old: Solution, new: Policy) -> float:
    """L: what the new policy would return if its visits were the old one's.

    Source: Schulman et al. 2015, arXiv:1502.05477, eq. 3.
    """
    return float(old.eta + old.visits @ expected_advantages(old, new))


def clipped(mdp: MDP, old: Solution, new: Policy, *, clip_eps: float) -> float:
    """PPO's objective over all states and actions, in L's units: eta + sum rho pi min(r A, ...).

    Source: Schulman et al. 2017, arXiv:1707.06347, eq. 7, times the horizon.
    """
    held = np.clip(new, (1.0 - clip_eps) * old.policy, (1.0 + clip_eps) * old.policy)
    gains = np.minimum(new * old.advantages, held * old.advantages)
    gains = np.where(old.policy > 0, gains, 0.0)
    return float(old.eta + old.visits @ gains.sum(axis=1))


def row_kl(old: Policy, new: Policy) -> Float[np.ndarray, " state"]:
    """KL(old || new) of each state's actions, in nats; infinite where the new one rules one out."""
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(old > 0, old * (np.log(old) - np.log(new)), 0.0)
    # A sum of 1e-17s may come out below 0.
    return np.maximum(terms.sum(axis=1), 0.0)


def row_tv(old: Policy, new: Policy) -> Float[np.ndarray, " state"]:
    """Total variation of each state's actions, in [0, 1]."""
    return 0.5 * np.abs(old - new).sum(axis=1)


def gap_forms(mdp: MDP, old: Policy, new: Policy) -> dict[str, float]:
    """The lie eta' - L, computed in three ways that agree.

    `visits`: (rho' - rho) Abar. `dynamics`: gamma rho (P' - P) (I - gamma P')^-1 Abar.
    `values`: gamma rho (P' - P) (V' - V): old visits x change of the next state x change of value.
    """
    before, after = solve(mdp, old), solve(mdp, new)
    lift = expected_advantages(before, new)
    shift = next_states(mdp, new) - next_states(mdp, old)
    pushed = mdp.gamma * before.visits @ shift
    return {
        "visits": float((after.visits - before.visits) @ lift),
        "dynamics": float(pushed @ np.linalg.solve(resolvent(mdp, new), lift)),
        "values": float(pushed @ (after.values - before.values)),
    }


def visitation_tv(mdp: MDP, old: Solution, new: Solution) -> float:
    """Total variation between the two policies' state distributions d = (1 - gamma) rho."""
    return float(0.5 * (1.0 - mdp.gamma) * np.abs(old.visits - new.visits).sum())


def best_policy(mdp: MDP) -> Policy:
    """An optimal deterministic policy, by policy iteration."""
    choice = np.argmax(mdp.rewards, axis=1)
    while True:
        q_values = solve(mdp, np.eye(mdp.num_actions)[choice]).q_values
        best = q_values.max(axis=1)
        chosen = q_values[np.arange(mdp.num_states), choice]
        # Ties keep the old choice, or rounding would let two equal policies alternate for ever.
        better = best > chosen + 1e-12 * (1.0 + np.abs(best))
        if not better.any():
            return np.eye(mdp.num_actions)[choice]
        choice = np.where(better, np.argmax(q_values, axis=1), choice)


def time_limited_return(mdp: MDP, policy: Policy, *, max_steps: int) -> float:
    """Expected undiscounted return of episodes cut after `max_steps`: what an evaluation sees."""
    law, rewards = next_states(mdp, policy), np.sum(policy * mdp.rewards, axis=1)
    states, total = mdp.start, 0.0
    for _ in range(max_steps):
        total += float(states @ rewards)
        states = states @ law
    return total


def time_limited_optimum(mdp: MDP, *, max_steps: int) -> float:
    """The best expected undiscounted return within `max_steps`, by policies that watch the clock.

    No stationary policy can beat it; most cannot reach it.
    """
    values = np.zeros(mdp.num_states)
    for _ in range(max_steps):
        values = np.max(mdp.rewards + mdp.transitions @ values, axis=1)
    return float(mdp.start @ values)
