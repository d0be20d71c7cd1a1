"""Softmax policies on finite states: logits of their own for each state, or shared parameters."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from surefoot.errors import ConfigError
from surefoot.exact.mdp import MDP, check_policy
from surefoot.exact.solution import Policy, SolvedPolicy, solve


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities of each row of logits; `scipy.special.softmax` costs several times as much."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


class TabularSoftmax(NamedTuple):
    """A logit for every state and action: no state can spoil another."""

    def policy(self, theta: np.ndarray) -> Policy:
        """The policy with logits theta; a logit of minus infinity is a probability of 0."""
        return softmax(theta)

    def vjp(self, policy: Policy, rows: Float[np.ndarray, "state action"]) -> np.ndarray:
        """Sum of rows(s, a) times the gradient of pi(a|s)."""
        return policy * (rows - np.sum(policy * rows, axis=1, keepdims=True))


class LinearSoftmax(NamedTuple):
    """Logits linear in few parameters: moving one state moves the others.

    Attributes:
        features: gradient of each logit.
    """

    features: Float[np.ndarray, "state action param"]

    def policy(self, theta: np.ndarray) -> Policy:
        """The policy with logits features @ theta."""
        return softmax(self.features @ theta)

    def vjp(self, policy: Policy, rows: Float[np.ndarray, "state action"]) -> np.ndarray:
        """Sum of rows(s, a) times the gradient of pi(a|s)."""
        centred = rows - (policy * rows).sum(axis=1, keepdims=True)
        return (policy * centred).reshape(-1) @ self.features.reshape(policy.size, -1)


Family = TabularSoftmax | LinearSoftmax


def one_parameter(mdp: MDP) -> LinearSoftmax:
    """Two actions, and one logit of the second that all states share."""
    features = np.zeros((mdp.num_states, 2, 1))
    features[:, 1, 0] = 1.0
    return LinearSoftmax(features)


@dataclass(frozen=True, eq=False)
class StartingPoint:
    """Where an update starts: parameters of a family of policies on an MDP."""

    mdp: MDP
    family: Family
    theta: np.ndarray

    @cached_property
    def old(self) -> SolvedPolicy:
        """The policy at theta, solved."""
        return solve(self.mdp, self.family.policy(self.theta))


def starting_point(
    mdp: MDP,
    *,
    p_old: float | None = None,
    policy: Float[np.ndarray, "..."] | None = None,
    tabular: bool = False,
) -> StartingPoint:
    """Start from the uniform policy, a given one, or P(action 1) = `p_old` in every state.

    The ridge and the corridor share one parameter unless `tabular`, and go right with probability
    0.1 and 0.05 by default.

    Raises:
        ConfigError: a probability outside (0, 1), more than two actions, or two starts.
    """
    shared = {"ridge": 0.1, "corridor": 0.05}.get(mdp.name)
    if policy is not None and p_old is not None:
        raise ConfigError("a policy and p_old both set the start: give one of them")
    if policy is not None:
        check_policy(mdp, policy)
        return StartingPoint(mdp, TabularSoftmax(), logits_of(policy))
    p = shared if p_old is None else p_old
    if p is None:
        return StartingPoint(mdp, TabularSoftmax(), np.zeros((mdp.num_states, mdp.num_actions)))
    if not 0.0 < p < 1.0:
        raise ConfigError(f"p_old {p}: give a probability in (0, 1)")
    if mdp.num_actions != 2:
        raise ConfigError(
            f"p_old is the probability of the second of two actions; {mdp.name} has "
            f"{mdp.num_actions}"
        )
    logit = np.log(p) - np.log1p(-p)
    if shared is None or tabular:
        return StartingPoint(mdp, TabularSoftmax(), np.tile([0.0, logit], (mdp.num_states, 1)))
    return StartingPoint(mdp, one_parameter(mdp), np.array([logit]))


def logits_of(policy: Policy) -> Float[np.ndarray, "state action"]:
    """Logits of a policy; minus infinity where an action is ruled out."""
    with np.errstate(divide="ignore"):
        return np.log(policy)


def policy_gradient(family: Family, solved: SolvedPolicy) -> np.ndarray:
    """Gradient of eta, and of L, at the solved policy: sum of rho pi A times the score.

    Source: Sutton et al. 2000, theorem 1.
    """
    return family.vjp(solved.policy, solved.visits[:, None] * solved.advantages)


def fisher_matrix(family: Family, solved: SolvedPolicy) -> Float[np.ndarray, "param param"]:
    """Mean Fisher matrix over visited states, terminal ones left out; theta in flat order.

    The Hessian of mean KL, in either direction, at the solved policy. Singular where a change of
    the parameters changes no policy.

    Source: Kakade 2001, "A natural policy gradient", eq. 2.
    """
    weights, policy = solved.weights, solved.policy
    num_states, num_actions = policy.shape
    blocks = weights[:, None, None] * (
        np.einsum("sa,ab->sab", policy, np.eye(num_actions))
        - policy[:, :, None] * policy[:, None, :]
    )
    if isinstance(family, LinearSoftmax):
        J = family.features
        return np.einsum("sap,sab,sbq->pq", J, blocks, J)
    dense = np.zeros((num_states, num_actions, num_states, num_actions))
    # On the diagonal alone: a state's logits move no other state's policy.
    dense[np.arange(num_states), :, np.arange(num_states)] = blocks
    return dense.reshape(policy.size, policy.size)
