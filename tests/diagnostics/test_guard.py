"""A guard keeps any rule's step inside its radii, and takes none where there is no hope."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import surefoot as sf
from surefoot.diagnostics.guard import REMEMBERED, is_hopeless, part_way, remember, walk_back
from surefoot.formulas.trust_region import mean_kl, worst_kl
from tests.support.trees import assert_same_bits, same_bits

RADII = {"max_kl": 0.05, "max_worst_kl": 1.0}


@pytest.fixture(params=["discrete", "gaussian"])
def problem(request, toy):
    return toy(request.param)


class Walk(NamedTuple):
    policy: Any
    fraction: Any


def away(params, size, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: p + size * jnp.asarray(rng.normal(size=p.shape)), params)


def walked(problem, new, **radii):
    policy_fn, params, batch = problem
    fraction = walk_back(policy_fn, params, new, batch, **{**RADII, **radii})
    walk = Walk(part_way(params, new, fraction), fraction)
    old, here = (policy_fn(p, batch.inputs) for p in (params, walk.policy))
    return walk, float(mean_kl(old, here, batch.weights)), float(worst_kl(old, here, batch.weights))


def test_a_step_inside_both_radii_is_kept_bit_for_bit(problem):
    new = away(problem.params, 1e-3)
    walk, *_ = walked(problem, new)
    assert walk.fraction == 1.0
    assert_same_bits(walk.policy, new)


@pytest.mark.parametrize("size", [0.5, 3.0, 1e3])
@pytest.mark.parametrize("radii", [{}, {"max_worst_kl": 0.01}, {"max_kl": 1e-4}])
def test_a_step_outside_is_walked_back_along_its_own_path_until_inside(problem, size, radii):
    new = away(problem.params, size)
    walk, mean, worst = walked(problem, new, **radii)
    bounds = {**RADII, **radii}
    assert 0.0 < walk.fraction < 1.0
    assert mean <= bounds["max_kl"] * (1 + 1e-5)
    assert worst <= bounds["max_worst_kl"] * (1 + 1e-5)
    on_the_way = jax.tree.map(lambda a, b: a + walk.fraction * (b - a), problem.params, new)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), walk.policy, on_the_way)
    # Not much shorter than it had to be: the next longer try would have left a radius.
    _, mean_twice, worst_twice = walked(problem, on_the_way, max_kl=1e9, max_worst_kl=1e9)
    assert max(mean_twice / bounds["max_kl"], worst_twice / bounds["max_worst_kl"]) > 0.02


def test_a_step_that_is_not_finite_is_not_taken(problem):
    for bad in (jnp.nan, jnp.inf):
        new = jax.tree.map(lambda p, bad=bad: p + bad, problem.params)
        walk, *_ = walked(problem, new)
        assert walk.fraction == 0.0
        assert_same_bits(walk.policy, problem.params)


def test_dummy_rows_hold_no_step_back(problem):
    new = away(problem.params, 0.5)
    policy_fn, params, batch = problem
    alone = batch._replace(weights=jnp.zeros_like(batch.weights).at[0].set(1.0))
    old, far = (policy_fn(p, batch.inputs) for p in (params, new))
    radius = 1.01 * float(worst_kl(old, far, alone.weights))
    assert walk_back(policy_fn, params, new, alone, max_kl=radius, max_worst_kl=radius) == 1.0


def test_hope_is_given_up_when_ten_promises_are_negative_beyond_their_interval():
    promises = jnp.full(REMEMBERED, jnp.nan)
    rng = np.random.default_rng(0)
    for i in range(REMEMBERED):
        assert not is_hopeless(promises), i
        promises = remember(promises, jnp.asarray(-1.0 + 0.1 * rng.normal()))
    assert is_hopeless(promises)
    assert not is_hopeless(-promises)
    wide = jnp.asarray(-1.0 + 10.0 * rng.normal(size=REMEMBERED))
    assert not is_hopeless(wide)
    for _ in range(REMEMBERED):
        promises = remember(promises, jnp.asarray(1.0))
    assert not is_hopeless(promises)


SMALL = {
    "network": sf.Network(hidden=(16,)),
    "critic": sf.Critic(num_minibatches=2, num_epochs=2),
}


@pytest.mark.parametrize(
    "joint", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["separate", "joint"]
)
def test_a_run_with_a_guard_stays_inside_what_the_same_run_leaves(joint):
    rule = sf.PPO(learning_rate=1.0, num_minibatches=2, num_epochs=4)
    critic = sf.Critic(num_minibatches=2, num_epochs=2, joint=joint)
    rows = {}
    for guard in (False, True):
        train = sf.Train(num_envs=4, num_steps=32, guard=guard)
        network = sf.Network(hidden=(16,), shared_torso=joint)
        run = sf.train(
            "gymnax:CartPole-v1", rule, steps=512, train=train, network=network, critic=critic
        )
        rows[guard] = run.rows
    assert max(row["policy/kl_mean"] for row in rows[False]) > 0.05
    assert max(row["policy/kl_mean"] for row in rows[True]) <= 0.05 * (1 + 1e-4)
    assert min(row["guard/fraction"] for row in rows[True]) < 1.0
    assert {row["guard/refused"] for row in rows[True]} == {0}
    assert all("lens/crossfit_promise" in row for row in rows[True])


def test_a_guard_without_hope_leaves_the_policy_bit_for_bit_and_lets_the_critic_learn():
    train = sf.Train(num_envs=4, num_steps=32, guard=True)
    run = sf.train(
        "gymnax:CartPole-v1", sf.VPG(learning_rate_end=5e-3), steps=128, train=train, **SMALL
    )
    assert run.state.promises.shape == (REMEMBERED,)
    for level, refused in ((-1e6, 1), (1e6, 0)):
        state = run.state._replace(promises=level + jnp.arange(REMEMBERED, dtype=jnp.float32))
        new, metrics = jax.jit(run.learner.iterate)(state)
        assert metrics["guard/refused"] == refused
        assert metrics["guard/fraction"] == 1 - refused
        assert same_bits(new.params["policy"], state.learn.params["policy"]) == bool(refused)
        assert not same_bits(new.params["critic"], state.learn.params["critic"])
        assert (metrics["policy/kl_mean"] == 0) == bool(refused)


@pytest.mark.parametrize(
    ("shared", "refused"),
    [
        pytest.param(False, False, marks=pytest.mark.slow),
        pytest.param(False, True, marks=pytest.mark.slow),
        pytest.param(True, False, marks=pytest.mark.slow),
        (True, True),
    ],
)
def test_a_critic_is_walked_back_with_the_policy_where_they_share_a_torso(shared, refused):
    train = {"num_envs": 4, "num_steps": 32}
    rule = sf.PPO(learning_rate=1.0, num_minibatches=2, num_epochs=4)
    runs = {
        guard: sf.train(
            *("gymnax:CartPole-v1", rule),
            steps=128,
            train=sf.Train(**train, guard=guard),
            network=sf.Network(hidden=(16,), shared_torso=shared),
            critic=sf.Critic(joint=True),
        )
        for guard in (False, True)
    }
    state = runs[True].learner.init(0)
    if refused:
        state = state._replace(promises=-1e6 + jnp.arange(REMEMBERED, dtype=jnp.float32))
    plain, _ = jax.jit(runs[False].learner.iterate)(state)
    new, metrics = jax.jit(runs[True].learner.iterate)(state)
    fraction = metrics["guard/fraction"]
    assert fraction < 1.0
    assert (fraction == 0.0) == refused
    expected = jax.tree.map(lambda a, b: a + fraction * (b - a), state.learn.params, plain.params)
    if not shared:
        expected["critic"] = plain.params["critic"]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), new.params, expected
    )


def test_an_adaptive_radius_goes_where_the_lens_tells_and_at_most_doubles():
    rule = sf.TRPO(radius="adaptive", max_kl=0.001)
    train = sf.Train(num_envs=4, num_steps=64)
    run = sf.train("gymnax:CartPole-v1", rule, steps=4096, train=train, **SMALL)
    radii = np.array([row["update/radius"] for row in run.rows])
    changes = radii[1:] / radii[:-1]
    assert changes.max() <= 2.0 * (1 + 1e-5)
    assert changes.min() >= 0.5 * (1 - 1e-5)
    # What is expected before anything is known lies above the start.
    np.testing.assert_allclose(radii[:2], [0.002, 0.004], rtol=1e-5)
    assert all(row["policy/kl_mean"] <= row["update/radius"] * (1 + 1e-4) for row in run.rows)
    assert run.state.learn.rule["radius"] == radii[-1]
    scheduled = sf.train("gymnax:CartPole-v1", sf.TRPO(), steps=512, train=train, **SMALL)
    assert "radius" not in scheduled.state.rule


def test_settings_that_nothing_would_read_are_refused():
    with pytest.raises(sf.ConfigError, match="add --guard"):
        sf.train("CartPole-v1", train=sf.Train(guard_kl=0.1))
    with pytest.raises(sf.ConfigError, match="has no end"):
        sf.train("CartPole-v1", sf.TRPO(radius="adaptive", max_kl_end=0.1))
