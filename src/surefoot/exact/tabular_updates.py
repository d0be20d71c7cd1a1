"""Exact maximisers where every state has its own logits: each state is solved by itself."""

from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import optimize

from surefoot.exact.solution import Policy, SolvedPolicy

MIN_PROBABILITY = 1e-12
"""A softmax reaches 0 only at infinite logits: exact ppo stops pushing an action here."""


def constrained_policy(old: SolvedPolicy, max_kl: float) -> Policy:
    """The policy with the largest surrogate within mean KL(old || new) <= max_kl."""
    spread = float(np.max(np.ptp(old.advantages, axis=1) * (old.weights > 0)))
    if spread == 0.0:
        return old.policy

    # The penalised maximiser moves away from the old policy as its weight falls: the weight
    # whose maximiser lies on the radius solves the constrained problem.
    def excess(log_coef: float) -> float:
        return old.kl(penalized_policy(old, np.exp(log_coef))) - max_kl

    low, high = np.log(spread) - 1.0, np.log(spread) + 1.0
    while excess(high) > 0:
        high += 2.0
    while excess(low) < 0:
        low -= 2.0
        if low < np.log(spread) - 40.0:
            # Even the greedy policy is inside the radius.
            return penalized_policy(old, np.exp(low))
    root: Any = optimize.brentq(excess, low, high, xtol=1e-14)
    return penalized_policy(old, np.exp(float(root)))


def penalized_policy(old: SolvedPolicy, kl_coef: float) -> Policy:
    """The policy p with the largest <p, A> - kl_coef KL(old || p) in each visited state.

    p = b pi / (nu - A) with nu above every A so that p sums to 1. `nu - max A` lies between
    b pi(best) and b, and is found by bisection of its logarithm.
    """
    policy = old.policy
    best = np.where(policy > 0, old.advantages, -np.inf).max(axis=1, keepdims=True)
    gaps = np.where(policy > 0, best - old.advantages, np.inf)
    low = np.log(kl_coef * np.where(gaps == 0, policy, 0.0).max(axis=1, keepdims=True))
    high = np.full_like(low, np.log(kl_coef))
    # As many halvings as bring any such interval down to the rounding of float64.
    for _ in range(60):
        middle = 0.5 * (low + high)
        over = np.sum(kl_coef * policy / (np.exp(middle) + gaps), axis=1, keepdims=True) > 1.0
        low, high = np.where(over, middle, low), np.where(over, high, middle)
    rows = kl_coef * policy / (np.exp(0.5 * (low + high)) + gaps)
    rows /= rows.sum(axis=1, keepdims=True)
    return np.where(old.weights[:, None] > 0, rows, policy)


def clipped_policy(old: SolvedPolicy, clip_eps: float) -> Policy:
    """In each state the maximiser p of the clipped objective that is nearest in KL(old || p).

    The objective is at its top where every action with A > 0 has a ratio of at least 1 + eps and
    every one with A < 0 of at most 1 - eps; nothing bounds them on the far side. The nearest such
    policy scales the old one by a common factor, held to those limits. Where there is no room for
    1 + eps, the worse actions go to `MIN_PROBABILITY` and the best ones are filled first.
    """
    policy, advantages = old.policy, old.advantages
    good, bad = advantages > 0, advantages < 0
    floor = np.minimum(policy, MIN_PROBABILITY)
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
    bottom = np.full((policy.shape[0], 1), -60.0)
    top = -bottom
    for _ in range(80):
        middle = 0.5 * (bottom + top)
        over = np.clip(np.exp(middle) * policy, low, high).sum(axis=1, keepdims=True) > 1.0
        bottom, top = np.where(over, bottom, middle), np.where(over, middle, top)
    rows = np.clip(np.exp(0.5 * (bottom + top)) * policy, low, high)
    return rows / rows.sum(axis=1, keepdims=True)
