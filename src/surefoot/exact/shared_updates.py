"""Exact maximisers over parameters that several states share, by general solvers and by ascent."""

from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import optimize

from surefoot.exact.families import StartingPoint
from surefoot.exact.solution import Policy

MAX_LOGIT_STEP, MIN_LOGIT_STEP = 1e-2, 1e-12
"""Step sizes of the ascent: the largest change of the difference of two logits of a state."""


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


def penalized_parameters(start: StartingPoint, kl_coef: float) -> np.ndarray:
    """The largest mean advantage minus kl_coef times mean KL(old || new), by BFGS."""
    old, family, weights = start.old, start.family, start.old.weights

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        policy = _positive(family.policy(theta))
        rows = weights[:, None] * (old.advantages + kl_coef * old.policy / policy)
        gain = float(weights @ old.expected_advantages(policy))
        return kl_coef * old.kl(policy) - gain, -family.vjp(policy, rows)

    found = optimize.minimize(loss, start.theta, jac=True, method="BFGS", options={"gtol": 1e-12})
    return found.x


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
