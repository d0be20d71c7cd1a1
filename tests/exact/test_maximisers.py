"""Exact maximisers over shared parameters: how far they look for the largest maximum."""

import numpy as np
import pytest
from scipy import optimize, special

from surefoot.exact import LinearSoftmax, StartingPoint, StepSizes, random_mdp, updated


def draw(rng):
    """A starting point with one to four shared parameters, and a weight of KL."""
    size = int(rng.integers(1, 5))
    mdp = random_mdp(
        int(rng.integers(2**31)),
        gamma=float(rng.choice([0.5, 0.9, 0.99])),
        num_states=int(rng.integers(2, 8)),
        num_actions=int(rng.integers(2, 5)),
    )
    family = LinearSoftmax(rng.normal(size=(mdp.num_states, mdp.num_actions, size)))
    theta = float(rng.choice([0.1, 1.0, 3.0])) * rng.normal(size=size)
    start = StartingPoint(mdp, family, theta)
    return start, float(np.abs(start.old.advantages).max() * 10 ** rng.uniform(-2, 1))


def objective(start, kl_coef):
    """Mean advantage less kl_coef times mean KL, by scipy, as a function of the parameters."""
    old, features = start.old, start.family.features

    def at(theta):
        new = np.maximum(special.softmax(features @ theta, axis=1), 1e-300)
        gain = np.sum(new * old.advantages, axis=1)
        kl = np.sum(special.rel_entr(old.policy, new), axis=1)
        return float(old.weights @ (gain - kl_coef * kl))

    return at


@pytest.mark.parametrize(("seed", "reached"), [(10, 0.1377), (23, 0.5028), (33, 0.5762)])
def test_exact_ppo_kl_looks_for_other_maxima_than_the_nearest(seed, reached):
    rng = np.random.default_rng(0)
    for _ in range(seed + 1):
        start, kl_coef = draw(rng)
    value, old = objective(start, kl_coef), start.theta
    new = updated(start, "ppo-kl", StepSizes(kl_coef=kl_coef)).policy
    kl = np.sum(special.rel_entr(start.old.policy, np.maximum(new, 1e-300)), axis=1)
    found = start.old.weights @ (np.sum(new * start.old.advantages, axis=1) - kl_coef * kl)
    nearest = -optimize.minimize(lambda theta: -value(theta), old, method="BFGS").fun
    assert found == pytest.approx(reached, abs=1e-4)
    assert found > nearest + 1e-3


@pytest.mark.thorough
def test_exact_ppo_kl_finds_the_largest_maximum_in_all_but_few_random_cases():
    rng, climbs, missed = np.random.default_rng(11), np.random.default_rng(12), 0
    for _ in range(60):
        start, kl_coef = draw(rng)
        value = objective(start, kl_coef)
        theta = start.theta
        new = updated(start, "ppo-kl", StepSizes(kl_coef=kl_coef)).policy
        logits = np.log(np.maximum(new, 1e-300))
        kl = np.sum(special.rel_entr(start.old.policy, np.exp(logits)), axis=1)
        found = start.old.weights @ (np.sum(new * start.old.advantages, axis=1) - kl_coef * kl)
        best = max(
            -optimize.minimize(lambda x: -value(x), theta + push, method="BFGS").fun  # noqa: B023
            for size in (0.3, 1.0, 3.0, 10.0)
            for push in size * climbs.normal(size=(10, theta.size))
        )
        missed += best > found + 1e-6 * (kl_coef + abs(found))
    assert missed <= 1
