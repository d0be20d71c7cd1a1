"""A guard keeps any rule's step inside its radii, and takes none where there is no hope."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import surefoot as sf
from surefoot.config.settings import RULES
from surefoot.diagnostics.groups import Layout
from surefoot.diagnostics.guard import REMEMBERED, fraction_inside, guarded, is_hopeless
from surefoot.formulas.trust_region import interpolate, mean_kl, worst_kl
from surefoot.rules import UPDATE_RULES
from surefoot.types import UpdateRule
from tests.support.learners import learner_of
from tests.support.scripted import scripted_jax
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
    fraction = fraction_inside(policy_fn, params, new, batch, **{**RADII, **radii})
    walk = Walk(interpolate(params, new, fraction), fraction)
    old, here = (policy_fn(p, batch.inputs) for p in (params, walk.policy))
    return walk, float(mean_kl(old, here, batch.weights)), float(worst_kl(old, here, batch.weights))


def test_a_step_inside_both_radii_is_kept_bit_for_bit(problem):
    new = away(problem.params, 1e-3)
    walk, *_ = walked(problem, new)
    assert walk.fraction == 1.0
    assert_same_bits(walk.policy, new)


@pytest.mark.parametrize("size", [0.5, 3.0, 1e3])
@pytest.mark.parametrize("radii", [{}, {"max_worst_kl": 0.01}, {"max_kl": 1e-4}])
def test_a_step_outside_is_shortened_along_its_own_path_until_inside(problem, size, radii):
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
    radii = {"max_kl": radius, "max_worst_kl": radius}
    assert fraction_inside(policy_fn, params, new, alone, **radii) == 1.0


def test_hope_is_given_up_when_ten_promises_are_negative_beyond_their_interval():
    rng = np.random.default_rng(0)
    promises = jnp.asarray(-1.0 + 0.1 * rng.normal(size=REMEMBERED))
    for known in range(REMEMBERED):
        assert not is_hopeless(promises, known), known
    assert is_hopeless(promises, REMEMBERED)
    assert is_hopeless(promises, REMEMBERED + 5)
    assert not is_hopeless(-promises, REMEMBERED)
    wide = jnp.asarray(-1.0 + 10.0 * rng.normal(size=REMEMBERED))
    assert not is_hopeless(wide, REMEMBERED)


def around(rule, policy_fn, *, num_envs=8, **radii):
    """The rule under a guard, on a policy of its own."""
    return guarded(
        rule,
        policy_fn,
        sf.Train(guard=True, **radii),
        layout=Layout(num_envs, 1),
        policy_of=lambda params: params,
        shorten=interpolate,
    )


def climbing(rate):
    """A rule that adds `rate` times the mean gradient of the log-probabilities times advantages."""

    def update_with(policy_fn):
        def update(state, params, batch, key):
            def gain(params):
                log_probs = policy_fn(params, batch.inputs).log_prob(batch.actions)
                return jnp.sum(log_probs * batch.advantages * batch.weights)

            new = jax.tree.map(lambda p, g: p + rate * g, params, jax.grad(gain)(params))
            return new, state + 1, {}

        return UpdateRule(lambda params: jnp.int32(0), update)

    return update_with


def test_the_guard_remembers_the_promises_across_halves_of_unbroken_updates(toy):
    policy_fn, params, batch = toy()
    rule = around(climbing(1e-4)(policy_fn), policy_fn)
    update, state, key = jax.jit(rule.update), rule.init(params), jax.random.key(0)
    found = []
    for count in range(1, 4):
        params, state, info = update(state, params, batch, key)
        found.append(float(info["lens/crossfit_promise"]))
        assert state["known"] == count
        np.testing.assert_allclose(state["promises"][-count:], np.float32(found), rtol=1e-5)
        assert not np.any(state["promises"][:-count])
    assert len(set(found)) == 3
    # One episode is one group: there is no other half to ask, and the count starts anew.
    alone = batch._replace(groups=jnp.zeros_like(batch.groups))
    _, state, info = update(state, params, alone, key)
    assert np.isnan(info["lens/crossfit_promise"])
    assert state["known"] == 0
    assert np.isfinite(state["promises"]).all()  # a state that is not would refuse the update
    assert state["rule"] == 4


def test_a_rule_that_does_harm_on_held_out_rows_is_stopped_after_ten_updates(toy):
    policy_fn, params, batch = toy()
    # Odd groups want half the opposite of even ones: what one half teaches is wrong for the other.
    half = jax.tree.map(lambda leaf: leaf[:32], batch._replace(return_scale=None))
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf], 1).reshape(-1, *leaf.shape[1:]), half)
    sign = 1.0 - 1.5 * (jnp.arange(64) % 2)
    batch = batch._replace(
        advantages=sign * batch.advantages,
        groups=jnp.arange(64, dtype=jnp.int32) % 2,
        return_scale=jnp.ones(()),
    )
    rule = around(climbing(1e-3)(policy_fn), policy_fn, num_envs=2)
    update, state = jax.jit(rule.update), rule.init(params)
    for count in range(REMEMBERED + 2):
        new, state, info = update(state, params, batch, jax.random.key(count))
        assert info["lens/crossfit_promise"] < 0
        assert info["guard/refused"] == (count >= REMEMBERED - 1)
        assert same_bits(new, params) == (count >= REMEMBERED - 1)
        params = new


@pytest.mark.parametrize("name", RULES)
def test_a_guard_whose_radii_are_never_reached_leaves_the_rule_as_it_is_bit_for_bit(toy, name):
    policy_fn, params, batch = toy("gaussian", num_rows=32)
    few = {"num_epochs": 2, "num_minibatches": 2} if name.startswith("ppo") else {}
    rule = UPDATE_RULES[name](RULES[name](**few), policy_fn, 4.0)
    # One program of the rule for both: XLA rounds differently in programs that differ.
    rule = rule._replace(update=jax.jit(rule.update))
    guard = around(rule, policy_fn, guard_kl=1e9, guard_worst_kl=1e9)
    state, guarded_state, guarded_params = rule.init(params), guard.init(params), params
    for key in jax.random.split(jax.random.key(0), 2):
        before = params
        params, state, info = rule.update(state, params, batch, key)
        guarded_params, guarded_state, found = guard.update(
            guarded_state, guarded_params, batch, key
        )
        assert not same_bits(params, before)
        assert_same_bits(guarded_params, params)
        assert_same_bits(guarded_state["rule"], state)
        assert_same_bits({figure: found[figure] for figure in info}, info)
        assert found["guard/fraction"] == 1.0


def remembering(state, level):
    """The state of a guarded run that remembers promises near a level."""
    promises = level + jnp.arange(REMEMBERED, dtype=jnp.float32)
    memory = {"promises": promises, "known": jnp.int32(REMEMBERED)}
    return state._replace(learn=state.learn._replace(rule={**state.learn.rule, **memory}))


SMALL = {
    "network": sf.Network(hidden=(16,)),
    "critic": sf.Critic(num_minibatches=2, num_epochs=2),
}


@pytest.mark.thorough
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


@pytest.mark.thorough
def test_a_guard_without_hope_leaves_the_policy_bit_for_bit_and_lets_the_critic_learn():
    train = sf.Train(num_envs=4, num_steps=8, guard=True)
    learner = learner_of(scripted_jax(), sf.VPG(final_fraction=1.0), train)
    iterate, start = jax.jit(learner.iterate), learner.init(0)
    for level, refused in ((-1e6, 1), (1e6, 0)):
        state = remembering(start, level)
        new, metrics = iterate(state)
        assert metrics["guard/refused"] == refused
        assert metrics["guard/fraction"] == 1 - refused
        assert same_bits(new.learn.params["policy"], state.learn.params["policy"]) == bool(refused)
        assert not same_bits(new.learn.params["critic"], state.learn.params["critic"])
        assert (metrics["policy/kl_mean"] == 0) == bool(refused)


@pytest.mark.thorough
@pytest.mark.parametrize("shared", [False, True], ids=["apart", "shared"])
def test_a_critic_goes_back_with_the_policy_where_they_share_a_torso(shared):
    rule = sf.PPO(learning_rate=1.0, num_minibatches=2, num_epochs=2)
    network = sf.Network(hidden=(8,), shared_torso=shared)
    plain_learner, guarded_learner = (
        learner_of(
            scripted_jax(),
            rule,
            sf.Train(num_envs=4, num_steps=8, guard=guard),
            network=network,
            critic=sf.Critic(joint=True),
        )
        for guard in (False, True)
    )
    start, iterate = guarded_learner.init(0), jax.jit(guarded_learner.iterate)
    unguarded = start._replace(learn=start.learn._replace(rule=start.learn.rule["rule"]))
    plain, _ = jax.jit(plain_learner.iterate)(unguarded)
    for state, refused in ((start, False), (remembering(start, -1e6), True)):
        new, metrics = iterate(state)
        fraction = metrics["guard/fraction"]
        assert fraction < 1.0
        assert (fraction == 0.0) == refused
        expected = jax.tree.map(
            lambda a, b, f=fraction: a + f * (b - a), start.learn.params, plain.learn.params
        )
        if not shared:
            expected["critic"] = plain.learn.params["critic"]
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            new.learn.params,
            expected,
        )


def test_settings_that_nothing_would_read_are_refused():
    with pytest.raises(sf.ConfigError, match="add --guard"):
        sf.train("CartPole-v1", train=sf.Train(guard_kl=0.1))
