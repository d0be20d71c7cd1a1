"""Exact maximisers: each state by itself, or over shared parameters by solvers and by ascent."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import optimize

from surefoot.exact.families import StartingPoint
from surefoot.exact.solution import Policy, SolvedPolicy

MIN_PROBABILITY = 1e-12
"""A softmax reaches 0 only at infinite logits: exact ppo stops pushing an action here."""
RAYS = 64
"""Directions in which exact ppo-kl looks for other maxima."""
LOGIT_STEPS = (0.5, 1.0, 2.0, 4.0, 6.0, 9.0, 14.0, 20.0)
"""How far it looks along each: the largest change of the difference of two logits of a state."""
MAX_LOGIT_STEP, MIN_LOGIT_STEP = 1e-2, 1e-12
"""Step sizes of the ascent: the largest change of the difference of two logits of a state."""


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
    # From e^-60 to e^60; 80 halvings of the exponent end far below rounding.
    bottom = np.full((policy.shape[0], 1), -60.0)
    top = -bottom
    for _ in range(80):
        middle = 0.5 * (bottom + top)
        over = np.clip(np.exp(middle) * policy, low, high).sum(axis=1, keepdims=True) > 1.0
        bottom, top = np.where(over, bottom, middle), np.where(over, middle, top)
    rows = np.clip(np.exp(0.5 * (bottom + top)) * policy, low, high)
    return rows / rows.sum(axis=1, keepdims=True)


def constrained_parameters(start: StartingPoint, natural: np.ndarray, max_kl: float) -> np.ndarray:
    """The largest surrogate within the radius that is found over shared parameters.

    SLSQP from the step `natural` and from its opposite, for the surrogate may have several maxima;
    the natural step itself, shortened to the radius; and no step at all. The best one counts.
    """
    old, family, theta = start.old, start.family, start.theta
    weights, rows = old.weights, old.visits[:, None] * old.advantages

    def kl_at(step: np.ndarray) -> tuple[float, np.ndarray]:
        """Mean KL after a step, and its gradient."""
        policy = _positive(family.policy(theta + step))
        slope = -family.vjp(policy, weights[:, None] * old.policy / policy)
        return old.kl(policy), slope

    def gain(step: np.ndarray) -> tuple[float, np.ndarray]:
        policy = family.policy(theta + step)
        return float(np.sum((policy - old.policy) * rows)), family.vjp(policy, rows)

    def shortened(step: np.ndarray) -> np.ndarray:
        if kl_at(step)[0] <= max_kl:
            return step
        share: Any = optimize.brentq(lambda a: kl_at(a * step)[0] - max_kl, 0.0, 1.0, xtol=1e-15)
        return share * step

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
            # SLSQP satisfies its constraint only to a tolerance, and may end outside the radius.
            found.append(shortened(size * end.x))
    return theta + max(found, key=lambda step: gain(step)[0])


def penalized_parameters(
    start: StartingPoint, features: Float[np.ndarray, "state action param"], kl_coef: float
) -> np.ndarray:
    """The largest mean advantage minus kl_coef times mean KL(old || new) that a search finds.

    Over shared parameters there may be several maxima, and no method is sure to find the largest.
    BFGS climbs from the old parameters and from the best place on each of `RAYS` rays around
    them; the highest end counts.
    """
    old, family, weights = start.old, start.family, start.old.weights
    # In units of what is at stake, so that the tolerance of BFGS does not depend on the rewards'.
    unit = kl_coef + float(np.abs(old.advantages).max())

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        policy = _positive(family.policy(theta))
        rows = weights[:, None] * (old.advantages + kl_coef * old.policy / policy) / unit
        gain = float(weights @ old.expected_advantages(policy))
        return (kl_coef * old.kl(policy) - gain) / unit, -family.vjp(policy, rows)

    def climbed(theta: np.ndarray, gtol: float) -> Any:
        return optimize.minimize(loss, theta, jac=True, method="BFGS", options={"gtol": gtol})

    tops = [min(ray, key=lambda theta: loss(theta)[0]) for ray in _rays(features, start.theta)]
    ends = [climbed(theta, 1e-5) for theta in (start.theta, *tops)]
    return climbed(min(ends, key=lambda end: end.fun).x, 1e-12).x


def _rays(
    features: Float[np.ndarray, "state action param"], theta: np.ndarray
) -> Iterator[list[np.ndarray]]:
    """Parameters from near the old ones to where policies are almost deterministic, by direction.

    The directions are random, but always the same, so that an update can be repeated.
    """
    centred = features - features.mean(axis=1, keepdims=True)
    _, sizes, axes = np.linalg.svd(centred.reshape(-1, theta.size), full_matrices=False)
    # A redundant axis moves no policy.
    kept = sizes > 1e-12 * sizes.max()
    # In units in which every axis moves the logits alike; without it a stiff axis hides the others.
    moves = axes[kept] / sizes[kept, None]
    draws = np.random.default_rng(0).normal(size=(RAYS // 2, len(moves)))
    if len(moves) < 2:
        draws = np.ones((len(moves), len(moves)))
    for direction in (*(draws @ moves), *(-draws @ moves)):
        # The largest change of the difference of two logits of a state, by a step of 1.
        spread = float(np.ptp(features @ direction, axis=1).max())
        yield [theta + length / spread * direction for length in LOGIT_STEPS]


def _positive(policy: Policy) -> Policy:
    """Replace probabilities that underflowed to 0, so that KL stays finite for the solvers."""
    return np.maximum(policy, 1e-300)


def clipped_parameters(
    start: StartingPoint, features: Float[np.ndarray, "state action param"], clip_eps: float
) -> np.ndarray:
    """Follow the steepest ascent of the clipped objective, along its kinks where it leads there.

    A step that gains nothing has passed a kink or the top: it is halved, and so is the distance
    at which a kink is felt. The ascent ends where no step gains any more.
    """
    old, family, theta = start.old, start.family, start.theta
    rows = old.weights[:, None] * old.advantages
    # The least-squares problem at a kink has an absolute tolerance.
    rows /= max(float(np.abs(rows).max()), 1e-300)
    edges = np.where(old.advantages > 0, 1, -1) * clip_eps + 1

    def objective(ratio: np.ndarray) -> float:
        held = np.minimum(np.maximum(ratio, 1 - clip_eps), 1 + clip_eps)
        return float((old.policy * np.minimum(ratio * rows, held * rows)).sum())

    policy, length = family.policy(theta), MAX_LOGIT_STEP
    ratio = policy / old.policy
    value = objective(ratio)
    while length > MIN_LOGIT_STEP:
        # A step changes no difference of logits by more than `length`, and a ratio by that share of
        # itself: twice as far no kink is missed.
        at_kink = (np.abs(ratio - edges) <= 2 * length * ratio) & (rows != 0)
        free = np.where(rows > 0, ratio < edges, ratio > edges) & ~at_kink
        slope = family.vjp(policy, np.where(free, rows, 0.0))
        if at_kink.any():
            slope = _along_kinks(slope, policy, features, np.where(at_kink, rows, 0.0))
        logits = features @ slope
        # A shift of all logits of a state changes nothing, so their spread is the size of a step.
        push = float((logits.max(axis=1) - logits.min(axis=1)).max())
        trial = theta + (length / push if push > 0 else 0.0) * slope
        trial_policy = family.policy(trial)
        trial_ratio = trial_policy / old.policy
        gained = objective(trial_ratio)
        if gained > value:
            theta, policy, ratio, value = trial, trial_policy, trial_ratio, gained
            length = min(1.5 * length, MAX_LOGIT_STEP)
        else:
            length *= 0.5
    return theta


def _along_kinks(
    slope: np.ndarray, policy: np.ndarray, features: np.ndarray, kinks: np.ndarray
) -> np.ndarray:
    """Steepest ascent where the terms of `kinks` count on one side only.

    The shortest vector among the gradients with any share, 0 to 1, of each of those terms: what
    it points to rises on both sides, and where it vanishes nothing does.
    """
    states, actions = np.nonzero(kinks)
    centred = features[states, actions] - np.einsum("na,nap->np", policy[states], features[states])
    columns = ((policy * kinks)[states, actions, None] * centred).T
    if len(slope) == 1:
        # Shares only move the one number between two ends.
        low, high = np.minimum(columns, 0.0).sum(), np.maximum(columns, 0.0).sum()
        return np.clip(0.0, slope + low, slope + high)
    if columns.shape[1] == 1:
        share = np.clip(-columns.T @ slope / max(float(np.sum(columns**2)), 1e-300), 0.0, 1.0)
    else:
        share = optimize.lsq_linear(columns, -slope, bounds=(0.0, 1.0), method="bvls").x
    return slope + columns @ share
