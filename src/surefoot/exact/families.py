"""Softmax policies on finite states: each state with its own logits, or states that share some."""

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from scipy import special

from surefoot.exact.mdp import MDP
from surefoot.exact.solution import Policy, Solution, state_weights


@runtime_checkable
class Family(Protocol):
    """A family of policies with parameters theta."""

    def policy(self, theta: np.ndarray) -> Policy:
        """The policy at theta."""
        ...

    def pull(self, policy: Policy, rows: Float[np.ndarray, "state action"]) -> np.ndarray:
        """Sum of rows(s, a) times the gradient of pi(a|s), in the shape of theta."""
        ...


class Tabular(NamedTuple):
    """A logit for every state and action: no state can spoil another."""

    def policy(self, theta: np.ndarray) -> Policy:
        """The policy whose logits are theta; minus infinity is a probability of 0."""
        return special.softmax(theta, axis=1)

    def pull(self, policy: Policy, rows: Float[np.ndarray, "state action"]) -> np.ndarray:
        """Sum of rows(s, a) times the gradient of pi(a|s)."""
        return policy * (rows - np.sum(policy * rows, axis=1, keepdims=True))


class Shared(NamedTuple):
    """Logits that are linear in few parameters: moving one state moves the others.

    Attributes:
        features: gradient of each logit.
    """

    features: Float[np.ndarray, "state action param"]

    def policy(self, theta: np.ndarray) -> Policy:
        """The policy with logits features @ theta."""
        return special.softmax(self.features @ theta, axis=1)

    def pull(self, policy: Policy, rows: Float[np.ndarray, "state action"]) -> np.ndarray:
        """Sum of rows(s, a) times the gradient of pi(a|s)."""
        centred = rows - np.sum(policy * rows, axis=1, keepdims=True)
        return np.einsum("sa,sap->p", policy * centred, self.features)


def one_parameter(mdp: MDP) -> Shared:
    """Two actions, and one logit of the second that all states share."""
    features = np.zeros((mdp.num_states, 2, 1))
    features[:, 1, 0] = 1.0
    return Shared(features)


def logits_of(policy: Policy) -> Float[np.ndarray, "state action"]:
    """Logits of a policy; minus infinity where an action is ruled out."""
    with np.errstate(divide="ignore"):
        return np.log(policy)


def gradient(mdp: MDP, family: Family, solution: Solution) -> np.ndarray:
    """Gradient of eta, and of L, at the solved policy: sum of rho pi A times the score.

    Source: Sutton et al. 2000, theorem 1.
    """
    weighted = solution.visits[:, None] * solution.advantages
    return family.pull(solution.policy, weighted)


def fisher(mdp: MDP, family: Family, solution: Solution) -> Float[np.ndarray, "param param"]:
    """Mean Fisher matrix over visited states, terminal ones left out; theta in flat order.

    It is the Hessian of mean KL, in either direction, at the solved policy. Singular where a
    change of the parameters changes no policy.

    Source: Kakade 2001, "A natural policy gradient", eq. 2.
    """
    weights, policy = state_weights(mdp, solution), solution.policy
    blocks = weights[:, None, None] * (
        np.einsum("sa,ab->sab", policy, np.eye(mdp.num_actions))
        - policy[:, :, None] * policy[:, None, :]
    )
    if isinstance(family, Shared):
        J = family.features
        return np.einsum("sap,sab,sbq->pq", J, blocks, J)
    size = mdp.num_actions
    dense = np.zeros((mdp.num_states * size,) * 2)
    for state, block in enumerate(blocks):
        dense[state * size : (state + 1) * size, state * size : (state + 1) * size] = block
    return dense
