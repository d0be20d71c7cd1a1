"""The surrogate: its value, its gradient at the old policy, and what may not disturb it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from surefoot.formulas.distributions import Categorical
from surefoot.formulas.surrogate import (
    entropy_bonus,
    likelihood_ratio,
    promised_gains,
    standardize,
    surrogate,
    weighted_mean,
)

ratio_of = jax.jit(likelihood_ratio)
standardized = jax.jit(standardize)
surrogate_jit = jax.jit(surrogate)

ROWS = 16
REAL = arrays(np.float32, ROWS, elements=st.floats(-5, 5, width=32))
WEIGHTS = arrays(np.float32, ROWS, elements=st.sampled_from([0.0, 0.5, 1.0, 3.0]))


@pytest.mark.core
@given(REAL, WEIGHTS)
def test_a_weighted_mean_is_that_of_numpy_and_0_where_no_row_counts(values, weights):
    got = jax.jit(weighted_mean)(values, weights)
    expected = np.average(values, weights=weights) if weights.any() else 0.0
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.core
@given(arrays(np.float32, ROWS, elements=st.floats(-100, 100, width=32)))
def test_the_ratio_at_the_old_policy_is_1_to_the_bit(log_probs):
    np.testing.assert_array_equal(ratio_of(log_probs, log_probs.copy()), np.float32(1))


@given(REAL, REAL)
def test_the_ratio_is_that_of_the_probabilities(log_probs, old_log_probs):
    expected = np.exp(log_probs) / np.exp(old_log_probs)
    np.testing.assert_allclose(ratio_of(log_probs, old_log_probs), expected, rtol=1e-4)


def test_the_ratio_is_capped_before_it_overflows():
    ratio = ratio_of(jnp.array([500.0, -500.0, 79.0]), jnp.zeros(3))
    assert np.all(np.isfinite(ratio))
    assert np.all(ratio > 0)
    np.testing.assert_allclose(np.log(ratio), [80.0, -80.0, 79.0], rtol=1e-5)


@given(REAL, REAL, REAL, WEIGHTS)
def test_the_promised_gain_is_the_surrogate_less_the_mean_advantage(new, old, advantages, weights):
    new = old + new / 10
    promise = jax.jit(lambda weights, *rows: weighted_mean(promised_gains(*rows), weights))
    got = promise(weights, new, old, advantages)
    flat = jax.jit(weighted_mean)(advantages, weights)
    expected = surrogate_jit(new, old, advantages, weights) - flat
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.core
@pytest.mark.parametrize("kind", ["discrete", "gaussian"])
def test_the_gradient_at_the_old_policy_is_the_policy_gradient(toy, x64, kind):
    policy_fn, params, batch = toy(kind)
    weights = jnp.arange(64.0) / 64

    def log_probs(p):
        return policy_fn(p, batch.inputs).log_prob(batch.actions)

    gradient = jax.jit(
        jax.grad(lambda p: surrogate(log_probs(p), batch.old_log_probs, batch.advantages, weights))
    )(params)
    score = jax.jit(jax.jacobian(log_probs))(params)
    row_weights = weights * batch.advantages / weights.sum()
    for name, leaf in gradient.items():
        expected = np.tensordot(row_weights, score[name], axes=1)
        np.testing.assert_allclose(leaf, expected, rtol=1e-9, atol=1e-12)
        assert np.abs(expected).max() > 1e-3


def test_a_row_of_weight_0_adds_nothing_to_value_or_gradient_even_where_it_is_nan():
    rng = np.random.default_rng(0)
    log_probs, advantages = rng.normal(size=(2, ROWS)).astype(np.float32)
    weights = (np.arange(ROWS) % 4 > 0).astype(np.float32)
    spoiled = np.where(weights > 0, advantages, np.nan)
    both = jax.jit(jax.value_and_grad(surrogate))
    value, gradient = both(log_probs, 0.9 * log_probs, advantages, weights)
    other_value, other_gradient = both(log_probs, 0.9 * log_probs, spoiled, weights)
    np.testing.assert_array_equal(value, other_value)
    np.testing.assert_array_equal(gradient, other_gradient)


@pytest.mark.core
@given(REAL, WEIGHTS, st.sampled_from([1e-6, 1.0, 1e6]))
def test_standardized_advantages_have_mean_0_and_spread_1_at_every_scale(values, weights, scale):
    centre = np.average(values, weights=weights) if weights.any() else 0.0
    got = np.asarray(standardized(values * np.float32(scale), weights))
    if np.average((values - centre) ** 2, weights=weights if weights.any() else None) < 1e-4:
        return
    if weights.any():
        mean = np.average(got, weights=weights)
        assert mean == pytest.approx(0, abs=1e-4)
        assert np.average((got - mean) ** 2, weights=weights) == pytest.approx(1, rel=1e-3)
    np.testing.assert_allclose(got, standardized(values, weights), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("constant", [0.0, 1e-6, -3.7, 1e6])
def test_advantages_that_do_not_vary_become_zeros(constant):
    got = standardized(jnp.full(ROWS, constant), jnp.ones(ROWS))
    np.testing.assert_array_equal(got, 0.0)


def test_rows_of_weight_0_do_not_enter_the_standardization():
    values = np.random.default_rng(1).normal(size=ROWS).astype(np.float32)
    weights = (np.arange(ROWS) % 4 > 0).astype(np.float32)
    clean = standardized(values, weights)
    spoiled = standardized(np.where(weights > 0, values, np.nan), weights)
    np.testing.assert_array_equal(clean[weights > 0], spoiled[weights > 0])


def test_the_entropy_bonus_is_its_coefficient_times_the_entropy():
    uniform = Categorical(jnp.zeros((4, 3)))
    assert entropy_bonus(uniform, ent_coef=0.5) == pytest.approx(np.full(4, 0.5 * np.log(3)))
    assert entropy_bonus(uniform, ent_coef=0.0) == 0
