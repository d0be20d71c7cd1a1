"""The lens: what an update gained, measured on sampled data against exact answers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from surefoot import tabular as t
from surefoot.config import NPG, resolve
from surefoot.distributions import Categorical
from surefoot.lens import cross_fit, mean_by_env, realised_gain
from surefoot.types import Batch, Inputs
from surefoot.update import UPDATE_RULES


def sampled_td(mdp, solution, critic, *, num_envs, rows, rng):
    """Mean TD error of each of `num_envs` groups of rows drawn from d(s) pi(a|s) P(s'|s, a)."""
    law = (1 - mdp.gamma) * solution.visits[:, None] * solution.policy
    pairs = rng.choice(law.size, size=(num_envs, rows), p=law.reshape(-1) / law.sum())
    states, actions = np.divmod(pairs, mdp.num_actions)
    reach = np.cumsum(mdp.transitions, axis=-1)[states, actions]
    after = np.sum(rng.random((num_envs, rows, 1)) > reach, axis=-1).clip(max=mdp.num_states - 1)
    errors = mdp.rewards[states, actions] + mdp.gamma * critic[after] - critic[states]
    return errors.mean(axis=1)


@pytest.mark.parametrize("quality", ["exact", "noisy", "nothing"])
def test_the_interval_of_the_realised_gain_covers_the_exact_gain_at_its_rate(quality):
    mdp, rng = t.random_mdp(5, gamma=0.9), np.random.default_rng(0)
    old = t.solve(mdp, np.full((6, 3), 1 / 3))
    new = t.solve(mdp, t.Tabular().policy(0.5 * old.advantages))
    noise = {"exact": 0.0, "noisy": 1.0, "nothing": 0.0}[quality]
    critic = (0.0 if quality == "nothing" else 1.0) * old.values + noise * rng.normal(size=6)
    gain = jax.jit(lambda before, after: realised_gain(before, after, horizon=mdp.horizon))
    size = {"num_envs": 8, "rows": 200, "rng": rng}
    covered = []
    for _ in range(1000):
        before = sampled_td(mdp, old, critic, **size)
        found = gain(jnp.asarray(before), jnp.asarray(sampled_td(mdp, new, critic, **size)))
        covered.append(float(found.low) <= new.eta - old.eta <= float(found.high))
    assert 0.93 <= np.mean(covered) <= 0.97


def test_a_good_critic_makes_the_interval_narrow_and_no_critic_moves_the_mean():
    mdp, rng = t.random_mdp(5, gamma=0.9), np.random.default_rng(1)
    old = t.solve(mdp, np.full((6, 3), 1 / 3))
    new = t.solve(mdp, t.Tabular().policy(0.5 * old.advantages))
    size = {"num_envs": 400, "rows": 400, "rng": rng}
    widths = []
    for critic in (old.values, old.values + 5.0 * rng.normal(size=6)):
        before, after = (sampled_td(mdp, s, critic, **size) for s in (old, new))
        found = realised_gain(jnp.asarray(before), jnp.asarray(after), horizon=mdp.horizon)
        widths.append(float(found.high - found.low))
        assert abs(float(found.mean) - (new.eta - old.eta)) < 2 * widths[-1]
    assert widths[1] > 3 * widths[0]


def test_noise_promises_in_sample_and_not_across_halves():
    """A bandit of 200 states without any true advantage, and one with."""
    num_states, rng = 200, np.random.default_rng(0)
    theta = jnp.zeros((num_states, 2))

    def policy_fn(theta, inputs):
        return Categorical(theta[inputs.obs])

    rule = UPDATE_RULES["npg"](
        resolve(NPG(advantage_norm="none", fisher_fraction=1.0)), policy_fn, 1
    )

    @jax.jit
    def look(batch):
        def update(half):
            return rule.update(rule.init(theta), theta, half, jax.random.key(0))[0]

        first = jnp.arange(800) % 2 == 0
        return cross_fit(update, policy_fn, theta, batch, first, horizon=10.0)

    def mean_of(signal):
        found = []
        for _ in range(60):
            obs, actions = rng.integers(num_states, size=800), rng.integers(2, size=800)
            advantages = signal * (2.0 * actions - 1.0) + rng.normal(size=800)
            zeros, ones = jnp.zeros(800), jnp.ones(800)
            batch = Batch(
                Inputs(jnp.asarray(obs), None),
                jnp.asarray(actions),
                zeros,
                jnp.asarray(advantages, jnp.float32),
                zeros,
                zeros,
                ones,
                jnp.asarray(2.0),
            )
            look_at = look(batch)
            found.append(
                [float(look_at[f"lens/{name}_promise"]) for name in ("insample", "crossfit")]
            )
        return np.mean(found, axis=0), np.std(found, axis=0) / 60**0.5

    (insample, across), (_, error) = mean_of(0.0)
    assert insample > 20 * error
    assert abs(across) < 3 * error
    (insample, across), (_, error) = mean_of(1.0)
    assert insample > across > 5 * error


def test_one_environment_has_a_gain_and_no_interval():
    found = realised_gain(jnp.array([1.0]), jnp.array([3.0]), horizon=10.0)
    assert float(found.mean) == 20.0
    assert np.isnan(found.low)
    assert np.isnan(found.high)


def test_dummy_rows_count_nowhere():
    rows = jnp.array([[1.0, jnp.nan], [3.0, 5.0]])
    valid = jnp.array([[True, False], [True, True]])
    np.testing.assert_array_equal(mean_by_env(rows, valid), [2.0, 5.0])
    np.testing.assert_array_equal(mean_by_env(rows, jnp.zeros((2, 2), bool)), [0.0, 0.0])
