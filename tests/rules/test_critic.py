"""The critic's fit, alone and inside the policy's descent, and what it explains."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from surefoot.config.settings import PPO, Critic
from surefoot.rules import UPDATE_RULES
from surefoot.rules.critic import critic_losses, explained_variance, fit_critic, start_critic
from surefoot.rules.rows import AllRows

ROWS = 64
CONFIG = Critic(learning_rate=0.05, num_epochs=20, num_minibatches=4)


def linear_value(params, inputs):
    return inputs.obs @ params["slope"] + params["offset"]


START = {"slope": jnp.zeros(3), "offset": jnp.zeros(())}


@jax.jit
def fit(state, params, batch, key):
    return fit_critic(CONFIG, linear_value, 4.0, state, params, batch, key, AllRows())


@pytest.fixture
def batch(toy):
    """Value targets that a linear critic can meet exactly."""
    rows = toy().batch
    return rows._replace(value_targets=rows.inputs.obs @ jnp.array([1.0, -2.0, 0.5]) + 3.0)


@pytest.mark.core
def test_the_critic_comes_to_fit_a_target_within_its_reach(batch):
    state, params = start_critic(CONFIG, START), START
    losses = []
    for key in jax.random.split(jax.random.key(0), 4):
        params, state, info = fit(state, params, batch, key)
        losses.append(float(info["critic/loss"]))
    assert losses == sorted(losses, reverse=True)
    assert state["count"] == 4
    values = linear_value(params, batch.inputs)
    assert explained_variance(values, batch.value_targets, batch.weights) > 0.999
    np.testing.assert_allclose(params["offset"], 3.0, atol=0.05)
    assert info["critic/gradient_norm"] > 0


def test_rows_of_weight_0_do_not_enter_the_fit(batch):
    invalid = jnp.arange(ROWS) % 3 == 0
    weights, key = jnp.where(invalid, 0.0, 1.0), jax.random.key(0)
    state = start_critic(CONFIG, START)
    results = []
    for other in (batch.value_targets, jnp.full(ROWS, jnp.nan), jnp.full(ROWS, 1e9)):
        targets = jnp.where(invalid, other, batch.value_targets)
        rows = batch._replace(weights=weights, value_targets=targets)
        results.append(fit(state, START, rows, key)[0])
    for other in results[1:]:
        np.testing.assert_array_equal(results[0]["slope"], other["slope"])
        np.testing.assert_array_equal(results[0]["offset"], other["offset"])


def test_the_critics_loss_is_half_the_squared_error_of_each_row(batch):
    losses = critic_losses(CONFIG, linear_value)(START, batch)
    np.testing.assert_allclose(losses, 0.5 * np.square(batch.value_targets), rtol=1e-5)


def test_a_joint_descent_moves_policy_and_critic_together(toy, batch):
    policy_fn, params, _ = toy()
    losses = critic_losses(CONFIG, lambda p, inputs: linear_value(p["critic"], inputs))
    rule = UPDATE_RULES["ppo"](
        PPO(num_epochs=5, num_minibatches=4, learning_rate=0.01),
        lambda p, inputs: policy_fn(p["policy"], inputs),
        4.0,
        losses,
    )
    both = {"policy": params, "critic": START}
    after, _, _ = jax.jit(rule.update)(rule.init(both), both, batch, jax.random.key(0))
    assert jnp.mean(losses(after, batch)) < jnp.mean(losses(both, batch))
    assert not np.array_equal(after["policy"]["out"], params["out"])


REAL = arrays(np.float32, ROWS, elements=st.floats(-10, 10, width=32))
WEIGHTS = arrays(np.float32, ROWS, elements=st.sampled_from([0.0, 1.0, 2.0]))
explained = jax.jit(explained_variance)


@pytest.mark.core
@given(REAL, REAL, WEIGHTS)
def test_explained_variance_is_one_less_the_share_left_over(values, targets, weights):
    def variance(x):
        return np.average((x - np.average(x, weights=weights)) ** 2, weights=weights)

    if not weights.any() or variance(targets) < 1e-2:
        return
    expected = 1 - variance(targets - values) / variance(targets)
    np.testing.assert_allclose(explained(values, targets, weights), expected, rtol=1e-3, atol=1e-3)


def test_explained_variance_is_1_for_a_perfect_critic_0_for_a_constant_and_0_without_variation():
    targets, ones = jnp.arange(ROWS * 1.0), jnp.ones(ROWS)
    assert explained(targets, targets, ones) == 1
    assert explained(7 * ones, targets, ones) == pytest.approx(0, abs=1e-6)
    assert explained(-targets, targets, ones) == pytest.approx(-3)
    assert explained(targets, ones, ones) == 0
