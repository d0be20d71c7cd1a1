"""In a table every state chooses for itself: the exact maximisers, state by state."""

import numpy as np
from jaxtyping import Float

from surefoot.exact.solution import Policy, Solution

LEAST_PROBABILITY = 1e-12
"""A softmax reaches 0 only at infinite logits: exact ppo stops pushing an action here."""


def penalized_rows(
    old: Solution, kl_coef: float, where: np.ndarray
) -> Float[np.ndarray, "state action"]:
    """The policy with the largest <p, A> - kl_coef KL(old || p), state by state.

    p = b pi / (nu - A) with nu above every A so that p sums to 1. `nu - max A` lies between
    b pi(best) and b, and is found by bisection of its logarithm.
    """
    policy = old.policy
    gaps = np.where(policy > 0, old.advantages, -np.inf).max(axis=1, keepdims=True)
    gaps = np.where(policy > 0, gaps - old.advantages, np.inf)
    low = np.log(kl_coef * np.where(gaps == 0, policy, 0.0).max(axis=1, keepdims=True))
    high = np.full_like(low, np.log(kl_coef))
    for _ in range(60):
        middle = 0.5 * (low + high)
        over = np.sum(kl_coef * policy / (np.exp(middle) + gaps), axis=1, keepdims=True) > 1.0
        low, high = np.where(over, middle, low), np.where(over, high, middle)
    rows = kl_coef * policy / (np.exp(0.5 * (low + high)) + gaps)
    rows /= rows.sum(axis=1, keepdims=True)
    return np.where(where[:, None], rows, policy)


def clipped_rows(old: Solution, clip_eps: float) -> Float[np.ndarray, "state action"]:
    """In each state the maximiser of the clipped objective that is nearest in KL(old || p).

    The objective is at its top where every action with A > 0 has a ratio of at least 1 + eps and
    every one with A < 0 of at most 1 - eps; nothing bounds them on the far side. The nearest such
    policy scales the old one by a common factor, held to those limits. Where there is no room for
    1 + eps, the worse actions go to `LEAST_PROBABILITY` and the best ones are filled first.
    """
    policy, advantages = old.policy, old.advantages
    good, bad = advantages > 0, advantages < 0
    floor = np.minimum(policy, LEAST_PROBABILITY)
    low = np.where(good, (1 + clip_eps) * policy, floor)
    high = np.where(bad, np.maximum((1 - clip_eps) * policy, floor), 1.0)
    rows = _scaled_within(policy, low, high)
    for state in np.flatnonzero(low.sum(axis=1) > 1.0):
        rows[state] = floor[state]
        for action in np.argsort(-advantages[state]):
            room = 1.0 - rows[state].sum()
            rows[state, action] += min(room, low[state, action] - rows[state, action])
    return np.where(good.any(axis=1, keepdims=True), rows, policy)


def _scaled_within(
    policy: Policy, low: Float[np.ndarray, "state action"], high: Float[np.ndarray, "state action"]
) -> Float[np.ndarray, "state action"]:
    """clip(c policy, low, high) with the c of each state that makes it sum to 1."""
    least = np.full((policy.shape[0], 1), -60.0)
    most = -least
    for _ in range(80):
        middle = 0.5 * (least + most)
        over = np.clip(np.exp(middle) * policy, low, high).sum(axis=1, keepdims=True) > 1.0
        least, most = np.where(over, least, middle), np.where(over, middle, most)
    rows = np.clip(np.exp(0.5 * (least + most)) * policy, low, high)
    return rows / rows.sum(axis=1, keepdims=True)
