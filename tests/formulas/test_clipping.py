"""The clip, the penalty and the clipped value: identities, gradients and the known weakness."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from surefoot.formulas.clipping import (
    adapt_kl_coef,
    clipped_gains,
    kl_penalized_gains,
    value_losses,
)
from surefoot.formulas.surrogate import likelihood_ratio, surrogate, weighted_mean

pytestmark = pytest.mark.usefixtures("x64")

ROWS = 16
REAL = arrays(np.float64, ROWS, elements=st.floats(-5, 5))
RATIO = arrays(np.float64, ROWS, elements=st.floats(0, 4))
WEIGHTS = arrays(np.float64, ROWS, elements=st.floats(0.1, 2))


def clipped_mean(ratio, advantages, weights, *, clip_eps):
    return weighted_mean(clipped_gains(ratio, advantages, clip_eps=clip_eps), weights)


clipped = jax.jit(clipped_mean)
clipped_gradient = jax.jit(jax.grad(clipped_mean))


@pytest.mark.core
@given(RATIO, REAL, WEIGHTS, st.floats(0.01, 0.9))
def test_the_clipped_surrogate_is_the_surrogate_less_a_hinge_and_never_above_it(r, a, w, eps):
    hinge = np.abs(a) * np.maximum(0, np.sign(a) * (r - 1) - eps)
    value = clipped(r, a, w, clip_eps=eps)
    np.testing.assert_allclose(value, np.average(r * a - hinge, weights=w), atol=1e-12)
    assert value <= np.average(r * a, weights=w) + 1e-12


def clip_of_log_probs(log_probs, old_log_probs, advantages, weights):
    ratio = likelihood_ratio(log_probs, old_log_probs)
    return clipped_mean(ratio, advantages, weights, clip_eps=0.2)


clip_and_gradient = jax.jit(jax.value_and_grad(clip_of_log_probs))
surrogate_and_gradient = jax.jit(jax.value_and_grad(surrogate))


@pytest.mark.core
@given(REAL, REAL, WEIGHTS)
def test_clip_and_surrogate_share_value_and_gradient_at_the_old_policy(log_probs, a, w):
    value, gradient = clip_and_gradient(log_probs, log_probs, a, w)
    plain, plain_gradient = surrogate_and_gradient(log_probs, log_probs, a, w)
    np.testing.assert_allclose(value, plain, atol=1e-12)
    np.testing.assert_allclose(gradient, plain_gradient, atol=1e-12)
    np.testing.assert_allclose(gradient, w * a / w.sum(), atol=1e-12)


@pytest.mark.core
@pytest.mark.parametrize(
    ("ratio", "advantage", "slope"),
    [
        (1.3, 2.0, 0.0),
        (0.7, -2.0, 0.0),
        (0.7, 2.0, 2.0),
        (1.3, -2.0, -2.0),
        (1.1, 2.0, 2.0),
        (0.9, -2.0, -2.0),
    ],
)
def test_the_gradient_is_cut_only_where_the_ratio_strayed_to_the_side_that_helps(
    ratio, advantage, slope
):
    ratios, advantages = jnp.full(ROWS, ratio), jnp.full(ROWS, advantage)
    gradient = clipped_gradient(ratios, advantages, jnp.ones(ROWS), clip_eps=0.2)
    np.testing.assert_allclose(gradient, slope / ROWS, atol=1e-15)


@pytest.mark.parametrize("q", [0.1, 0.01, 0.001])
def test_the_clip_lets_the_ratio_of_a_rare_action_grow_without_bound(q):
    """One state, two actions, exact expectations: the maximum is a plateau far outside 1 ± ε."""
    eps = 0.2
    advantages, weights = np.array([1 - q, -q]), np.array([q, 1 - q])

    def value(p):
        ratio = np.array([p / q, (1 - p) / (1 - q)])
        return float(clipped(ratio, advantages, weights, clip_eps=eps))

    edge = q + eps * (1 - q)
    assert edge / q == pytest.approx(1 + eps * (1 - q) / q)
    highest = value(edge)
    for p in np.linspace(edge, 1, 7):
        assert value(p) == pytest.approx(highest, rel=1e-12)
    assert all(value(p) < highest for p in np.linspace(0, edge - 1e-3, 7))
    if q == 0.01:
        assert edge / q == pytest.approx(20.8)


@given(RATIO, REAL, WEIGHTS, st.floats(0.1, 10))
def test_the_penalized_surrogate_charges_its_coefficient_per_nat(r, a, w, kl_coef):
    kl_rows = np.linspace(0.0, 0.3, ROWS)
    got = jax.jit(kl_penalized_gains)(r, a, kl_rows, kl_coef=kl_coef)
    expected = np.average(r * a, weights=w) - kl_coef * np.average(kl_rows, weights=w)
    np.testing.assert_allclose(np.average(got, weights=w), expected, atol=1e-12)


@pytest.mark.core
def test_the_penalty_doubles_far_above_the_target_halves_far_below_and_stays_between():
    adapt = jax.jit(lambda kl_coef, kl_mean: adapt_kl_coef(kl_coef, kl_mean, target_kl=0.01))
    kl_coef, path = jnp.ones(()), []
    for kl_mean in (0.016, 0.1, 0.0149, 0.0068, 0.0066, 0.0, 0.02):
        kl_coef = adapt(kl_coef, jnp.asarray(kl_mean))
        path.append(float(kl_coef))
    assert path == [2.0, 4.0, 4.0, 4.0, 2.0, 1.0, 2.0]


@pytest.mark.parametrize(("kl_mean", "end"), [(0.0, 1e-4), (1.0, 1e4)])
def test_the_penalty_stays_within_its_bounds(kl_mean, end):
    kl_coef = jnp.ones(())
    for _ in range(20):
        kl_coef = adapt_kl_coef(kl_coef, jnp.asarray(kl_mean), target_kl=0.01)
    assert kl_coef == pytest.approx(end)


@pytest.mark.core
@given(REAL, REAL, REAL)
def test_the_value_loss_is_half_the_squared_error_or_the_larger_of_it_and_the_held_one(
    v, old, targets
):
    losses = jax.jit(value_losses, static_argnames="value_clip")
    errors = (v - targets) ** 2
    held = (np.clip(v, old - 0.2, old + 0.2) - targets) ** 2
    np.testing.assert_allclose(losses(v, old, targets, value_clip=0.0), 0.5 * errors, atol=1e-12)
    np.testing.assert_allclose(
        losses(v, old, targets, value_clip=0.2), 0.5 * np.maximum(errors, held), atol=1e-12
    )
