"""Discounted returns and advantages against their definitions as loops and double sums."""

import itertools
from functools import partial

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from surefoot.formulas.advantages import (
    discounted_returns,
    generalized_advantage_estimation,
    td_errors,
)

pytestmark = pytest.mark.usefixtures("x64")

gae = jax.jit(generalized_advantage_estimation)
returns = jax.jit(discounted_returns)

SHAPE = (7, 3)
REAL = arrays(np.float64, SHAPE, elements=st.floats(-10, 10))
# 0 goes on, 1 is terminated, 2 is truncated: the two are disjoint.
ENDS = arrays(np.int8, SHAPE, elements=st.sampled_from([0, 0, 0, 1, 2]))
FRACTION = st.floats(0, 1)


def advantages_by_double_sum(rewards, values, next_values, ends, gamma, gae_lambda):
    """Sum over k of (gamma lambda)^k delta_{t+k}, cut where an episode ends."""
    advantages = np.zeros(rewards.shape)
    for env in range(rewards.shape[1]):
        for t in range(len(rewards)):
            for k in range(t, len(rewards)):
                successor = 0.0 if ends[k, env] == 1 else next_values[k, env]
                error = rewards[k, env] + gamma * successor - values[k, env]
                advantages[t, env] += (gamma * gae_lambda) ** (k - t) * error
                if ends[k, env]:
                    break
    return advantages


@pytest.mark.core
@given(REAL, REAL, REAL, ENDS, FRACTION, FRACTION)
def test_advantages_are_the_double_sum_of_td_errors(r, v, next_v, ends, gamma, gae_lambda):
    got = gae(r, v, next_v, ends == 1, ends == 2, gamma=gamma, gae_lambda=gae_lambda)
    expected = advantages_by_double_sum(r, v, next_v, ends, gamma, gae_lambda)
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)


@given(REAL, REAL, REAL, ENDS, FRACTION)
def test_lambda_zero_gives_the_td_error(r, v, next_v, ends, gamma):
    got = gae(r, v, next_v, ends == 1, ends == 2, gamma=gamma, gae_lambda=0.0)
    expected = r + gamma * np.where(ends == 1, 0.0, next_v) - v
    np.testing.assert_allclose(got, expected, atol=1e-12)
    np.testing.assert_allclose(
        jax.jit(td_errors)(r, v, next_v, ends == 1, gamma=gamma), expected, atol=1e-12
    )


@given(REAL, REAL, ENDS, st.sampled_from([0.3, 0.99, 1.0]))
def test_lambda_one_gives_the_return_bootstrapped_at_the_cut_less_the_value(r, v, ends, gamma):
    next_v = np.vstack([v[1:], np.full((1, SHAPE[1]), 2.5)])
    targets = np.zeros(SHAPE)
    ahead = next_v[-1]
    for t in reversed(range(SHAPE[0])):
        ahead = np.where(ends[t] == 1, 0.0, np.where(ends[t] == 2, next_v[t], ahead))
        ahead = targets[t] = r[t] + gamma * ahead
    got = gae(r, v, next_v, ends == 1, ends == 2, gamma=gamma, gae_lambda=1.0)
    np.testing.assert_allclose(v + got, targets, rtol=1e-9, atol=1e-9)


@pytest.mark.core
def test_a_time_limit_bootstraps_where_a_death_does_not():
    ones, never = np.ones((1, 1)), np.zeros((1, 1), bool)
    truncated = gae(ones, ones, 5 * ones, never, ~never, gamma=0.9, gae_lambda=0.95)
    terminated = gae(ones, ones, 5 * ones, ~never, never, gamma=0.9, gae_lambda=0.95)
    np.testing.assert_allclose(truncated, 1 + 0.9 * 5 - 1)
    np.testing.assert_allclose(terminated, 1 - 1)


def test_what_follows_an_episodes_end_does_not_reach_back_over_it():
    rng = np.random.default_rng(0)
    r, v, next_v = rng.normal(size=(3, *SHAPE))
    ended = np.zeros(SHAPE, bool)
    ended[3] = True
    for flags in ((ended, ~ended & False), (~ended & False, ended)):
        run = partial(gae, values=v, next_values=next_v, gamma=0.9, gae_lambda=0.8)
        one = run(r, terminated=flags[0], truncated=flags[1])
        other = run(
            np.where(np.arange(7)[:, None] > 3, 1e6, r), terminated=flags[0], truncated=flags[1]
        )
        np.testing.assert_array_equal(one[:4], other[:4])
        assert not np.allclose(one[4:], other[4:])


@pytest.mark.core
@given(REAL, arrays(np.float64, 3, elements=st.floats(-10, 10)), ENDS, FRACTION)
def test_discounted_returns_are_those_of_the_loop(rewards, start, ends, gamma):
    expected, total = [], start
    for reward, ended in zip(rewards, ends > 0, strict=True):
        total = reward + gamma * total
        expected.append(total)
        total = np.where(ended, 0.0, total)
    totals, last = returns(rewards, start, ends > 0, gamma=gamma)
    np.testing.assert_allclose(totals, expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(last, total, rtol=1e-12, atol=1e-12)


def test_discounted_returns_of_two_rollouts_go_on_where_the_first_stopped():
    rng = np.random.default_rng(1)
    rewards, ended = rng.normal(size=(8, 3)), rng.random((8, 3)) < 0.2
    whole, last = returns(rewards, np.zeros(3), ended, gamma=0.9)
    first, carried = returns(rewards[:4], np.zeros(3), ended[:4], gamma=0.9)
    second, final = returns(rewards[4:], carried, ended[4:], gamma=0.9)
    np.testing.assert_array_equal(whole, np.vstack([first, second]))
    np.testing.assert_array_equal(last, final)


def every_trajectory(num_steps):
    """A random two-state, two-action MDP with its exact V and A, and all paths from (0, 1)."""
    rng = np.random.default_rng(2)
    transition = rng.dirichlet(np.ones(2), (2, 2))
    reward, policy, gamma = rng.normal(size=(2, 2)), rng.dirichlet(np.ones(2), 2), 0.9
    law = np.einsum("sa,sat->st", policy, transition)
    value = np.linalg.solve(np.eye(2) - gamma * law, np.sum(policy * reward, axis=1))
    advantage = reward + gamma * transition @ value - value[:, None]
    choices = itertools.product(range(2), repeat=2 * num_steps - 1)
    paths = np.array([(0, 1, *choice) for choice in choices])
    states, actions = paths[:, ::2].T, paths[:, 1::2].T
    moves = transition[states[:-1], actions, states[1:]]
    probs = np.prod(moves, axis=0) * np.prod(policy[states[1:-1], actions[1:]], axis=0)
    return states, reward[states[:-1], actions], probs, value, advantage[0, 1], gamma


@pytest.mark.parametrize("gae_lambda", [0.0, 0.5, 1.0])
def test_advantages_under_an_exact_critic_have_the_true_mean_for_every_lambda(gae_lambda):
    states, rewards, probs, value, advantage, gamma = every_trajectory(4)
    never = np.zeros(rewards.shape, bool)
    got = gae(
        rewards,
        value[states[:-1]],
        value[states[1:]],
        never,
        never,
        gamma=gamma,
        gae_lambda=gae_lambda,
    )
    assert probs.sum() == pytest.approx(1.0)
    assert probs @ got[0] == pytest.approx(advantage, rel=1e-10)


def test_monte_carlo_advantages_have_the_true_mean_less_the_error_of_any_critic():
    states, rewards, probs, value, advantage, gamma = every_trajectory(4)
    critic, never = np.array([3.0, -7.0]), np.zeros(rewards.shape, bool)
    next_values = np.vstack([critic[states[1:-1]], value[states[-1:]]])
    got = gae(rewards, critic[states[:-1]], next_values, never, never, gamma=gamma, gae_lambda=1.0)
    assert probs @ got[0] == pytest.approx(advantage + value[0] - critic[0], rel=1e-10)
