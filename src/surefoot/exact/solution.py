"""Exact quantities of a policy on a finite MDP: V, Q, A, visits, the return and its surrogate.

NumPy in float64, with dense linear algebra and no other approximation. Nothing here is shared with
`formulas`, so that each can test the other.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from surefoot.exact.mdp import MDP, check_policy

Policy = Float[np.ndarray, "state action"]

UNLIMITED_STEPS = 10_000
"""Steps after which an episode without a time limit is taken to have ended."""


class SolvedPolicy(NamedTuple):
    """Exact quantities of one policy, and of others as its data shows them.

    `visits` is rho, the discounted count of visits to each state, which sums to 1 / (1 - gamma).
    `eta` is the expected discounted return from the start distribution.
    """

    mdp: MDP
    policy: Float[np.ndarray, "state action"]
    values: Float[np.ndarray, " state"]
    q_values: Float[np.ndarray, "state action"]
    advantages: Float[np.ndarray, "state action"]
    visits: Float[np.ndarray, " state"]
    eta: float

    @property
    def weights(self) -> Float[np.ndarray, " state"]:
        """Weight of each state in a mean over visited states: visits without terminal ones, sum 1.

        All 0 where only terminal states are visited.
        """
        visits = np.where(self.mdp.terminal, 0.0, self.visits)
        total = visits.sum()
        return visits / total if total > 0 else visits

    @property
    def scale(self) -> float:
        """Largest |Q(s, a)|: the size of numbers that the rounding of returns is relative to."""
        return float(np.abs(self.q_values).max())

    def expected_advantages(self, new: Policy) -> Float[np.ndarray, " state"]:
        """Abar(s): mean of this policy's advantages under the new policy's actions."""
        return np.sum(new * self.advantages, axis=1)

    def promised_gain(self, new: Policy) -> float:
        """L - eta: the gain in return if the new policy kept this policy's visits."""
        return float(self.visits @ self.expected_advantages(new))

    def gains(self, new: "SolvedPolicy") -> tuple[float, float]:
        """Gain in return of another policy: as L promises it, and as it is."""
        return self.promised_gain(new.policy), new.eta - self.eta

    def surrogate(self, new: Policy) -> float:
        """L: the return of the new policy if its visits were those of this one.

        Source: Schulman et al. 2015, arXiv:1502.05477, eq. 3.
        """
        return self.eta + self.promised_gain(new)

    def clipped(self, new: Policy, *, clip_eps: float) -> float:
        """PPO's objective over all states and actions, in L's units: eta + sum rho pi min(r A, ..).

        Source: Schulman et al. 2017, arXiv:1707.06347, eq. 7, times the horizon.
        """
        held = np.clip(new, (1.0 - clip_eps) * self.policy, (1.0 + clip_eps) * self.policy)
        gains = np.minimum(new * self.advantages, held * self.advantages)
        gains = np.where(self.policy > 0, gains, 0.0)
        return float(self.eta + self.visits @ gains.sum(axis=1))

    def kl(self, new: Policy) -> float:
        """Mean KL(this || new) over the states that this policy visits, in nats."""
        weights, rows = self.weights, kl_per_state(self.policy, new)
        # An unvisited state adds nothing, even where its KL is infinite.
        return float(weights[weights > 0] @ rows[weights > 0])


def next_states(mdp: MDP, policy: Policy) -> Float[np.ndarray, "state state"]:
    """P_pi(s' | s), the transitions averaged over the policy's actions."""
    return np.einsum("sa,sat->st", policy, mdp.transitions)


def resolvent(mdp: MDP, policy: Policy) -> Float[np.ndarray, "state state"]:
    """I - gamma P_pi; solving with it sums over all times, discounted."""
    return np.eye(mdp.num_states) - mdp.gamma * next_states(mdp, policy)


def solve(mdp: MDP, policy: Policy) -> SolvedPolicy:
    """Compute every exact quantity of one policy.

    Raises:
        ConfigError: the policy has the wrong shape, or a row that is not a distribution.

    Source: Sutton & Barto 2018, ch. 3; rho as in Schulman et al. 2015, arXiv:1502.05477, section 2.
    """
    check_policy(mdp, policy)
    system = resolvent(mdp, policy)
    values = np.linalg.solve(system, np.sum(policy * mdp.rewards, axis=1))
    q_values = mdp.rewards + mdp.gamma * mdp.transitions @ values
    advantages = q_values - values[:, None]
    # Advantages within rounding of 0 become 0: a rule that only reads their direction would
    # otherwise take a full step along noise. Rounding is relative to the largest value, so that
    # the unit of the rewards does not matter.
    largest = np.abs(advantages).max(axis=1, keepdims=True)
    rounding = 1e-13 * np.abs(q_values).max()
    advantages = np.where(mdp.terminal[:, None] | (largest <= rounding), 0.0, advantages)
    # Rounding can take the visits of a state that is never reached below 0.
    visits = np.maximum(np.linalg.solve(system.T, mdp.start), 0.0)
    eta = float(mdp.start @ values)
    return SolvedPolicy(mdp, policy, values, q_values, advantages, visits, eta)


def kl_per_state(old: Policy, new: Policy) -> Float[np.ndarray, " state"]:
    """KL(old || new) of each state, in nats; infinite where the new policy rules an action out."""
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(old > 0, old * (np.log(old) - np.log(new)), 0.0)
    # Rounding can take a sum of tiny terms below 0.
    return np.maximum(terms.sum(axis=1), 0.0)


def tv_per_state(old: Policy, new: Policy) -> Float[np.ndarray, " state"]:
    """Total variation between the two policies' actions in each state, in [0, 1]."""
    return 0.5 * np.abs(old - new).sum(axis=1)


def visit_shift(old: SolvedPolicy, new: SolvedPolicy) -> float:
    """Sum over states of |rho' - rho|, with all terminal states counted as one; at most 2H.

    After the end nothing happens, so it makes no difference in which terminal state an episode is.
    """
    shift, ends = new.visits - old.visits, old.mdp.terminal
    return float(np.abs(shift[~ends]).sum() + abs(shift[ends].sum()))


def visitation_tv(old: SolvedPolicy, new: SolvedPolicy) -> float:
    """Total variation between the two policies' state distributions d = (1 - gamma) rho, in [0, 1].

    All terminal states count as one, as in `visit_shift`.
    """
    return 0.5 * (1.0 - old.mdp.gamma) * visit_shift(old, new)


def gap_forms(old: SolvedPolicy, new: SolvedPolicy) -> dict[str, float]:
    """The gap eta' - L in three equal forms (docs/theory.md, G1 to G3).

    `visits`: (rho' - rho) Abar. `dynamics`: gamma rho (P' - P) (I - gamma P')^-1 Abar.
    `values`: gamma rho (P' - P) (V' - V), old visits x change of the next state x change of value.
    """
    mdp, lift = old.mdp, old.expected_advantages(new.policy)
    shift = next_states(mdp, new.policy) - next_states(mdp, old.policy)
    pushed = mdp.gamma * old.visits @ shift
    return {
        "visits": float((new.visits - old.visits) @ lift),
        "dynamics": float(pushed @ np.linalg.solve(resolvent(mdp, new.policy), lift)),
        "values": float(pushed @ (new.values - old.values)),
    }


def optimal_policy(mdp: MDP) -> Policy:
    """An optimal deterministic policy, by policy iteration."""
    choice = np.argmax(mdp.rewards, axis=1)
    while True:
        solved = solve(mdp, np.eye(mdp.num_actions)[choice])
        q_values = solved.q_values
        best = q_values.max(axis=1)
        chosen = q_values[np.arange(mdp.num_states), choice]
        # Ties keep the old choice: rounding would let two equal policies alternate for ever.
        better = best > chosen + 1e-12 * solved.scale
        if not better.any():
            return np.eye(mdp.num_actions)[choice]
        choice = np.where(better, np.argmax(q_values, axis=1), choice)


def episode_limit(mdp: MDP) -> int | None:
    """Steps after which every episode is over; None where episodes neither end nor are cut."""
    if mdp.max_steps is None and not mdp.terminal.any():
        return None
    return mdp.max_steps or UNLIMITED_STEPS


def time_limited_return(mdp: MDP, policy: Policy, *, max_steps: int) -> float:
    """Expected undiscounted return of episodes cut after `max_steps`, as an evaluation sees it."""
    law, rewards = next_states(mdp, policy), np.sum(policy * mdp.rewards, axis=1)
    states, total = mdp.start, 0.0
    for _ in range(max_steps):
        total += float(states @ rewards)
        states = states @ law
    return total


def time_limited_optimum(mdp: MDP, *, max_steps: int) -> float:
    """Largest expected undiscounted return within `max_steps`, over policies that see the clock.

    An upper bound for stationary policies, most of which cannot reach it.
    """
    values = np.zeros(mdp.num_states)
    for _ in range(max_steps):
        values = np.max(mdp.rewards + mdp.transitions @ values, axis=1)
    return float(mdp.start @ values)
