"""The five rules on toy problems: what each promises of one update."""

from dataclasses import asdict
from functools import cache
from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from surefoot.config.presets import preset
from surefoot.config.settings import RULES
from surefoot.formulas.conjugate_gradient import fisher_vector_product, quadratic_form
from surefoot.formulas.distributions import Categorical, DiagGaussian
from surefoot.formulas.line_search import ACCEPTED, NO_GRADIENT, NOT_FINITE, TOO_FAR
from surefoot.formulas.surrogate import standardize, surrogate
from surefoot.formulas.trust_region import mean_kl
from surefoot.rules import UPDATE_RULES
from surefoot.rules.minibatch_adam import MinibatchAdam
from tests.support.cases import case

KEY = jax.random.key(0)
NUM_UPDATES = 4.0
BASE = {
    "vpg": {},
    "npg": {},
    "trpo": {},
    "ppo-kl": {"num_epochs": 3, "num_minibatches": 4, "learning_rate": 0.03},
    "ppo": {"num_epochs": 3, "num_minibatches": 4, "learning_rate": 0.01},
}


def make_rule(name, policy_fn, **settings):
    return UPDATE_RULES[name](RULES[name](**settings), policy_fn, NUM_UPDATES)


@cache
def compiled(name, policy_fn, **settings):
    """A rule and its update as one program; a test asks twice and waits once."""
    rule = make_rule(name, policy_fn, **(settings or BASE[name]))
    return rule, jax.jit(rule.update)


def update_once(name, toy, key=KEY, **settings):
    rule, update = compiled(name, toy.policy_fn, **settings)
    return update(rule.init(toy.params), toy.params, toy.batch, key)


def same_bits(one, other):
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in leaves)


def assert_close(one, other, rtol=1e-5):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)


def with_batch(toy, **fields):
    """The problem with other rows, of the same dtypes, so that nothing is compiled again."""
    fields = {name: jnp.asarray(x, getattr(toy.batch, name).dtype) for name, x in fields.items()}
    return toy._replace(batch=toy.batch._replace(**fields))


@cache
def judge(policy_fn):
    """Mean KL(old || new) and the gain of the surrogate, computed apart from any rule."""

    @jax.jit
    def judged(params, new_params, batch):
        old, new = policy_fn(params, batch.inputs), policy_fn(new_params, batch.inputs)
        advantages = standardize(batch.advantages, batch.weights)
        old_log_probs = old.log_prob(batch.actions)
        gain = surrogate(
            new.log_prob(batch.actions), old_log_probs, advantages, batch.weights
        ) - surrogate(old_log_probs, old_log_probs, advantages, batch.weights)
        return mean_kl(old, new, batch.weights), gain

    return judged


def test_every_rule_that_can_be_named_can_be_built():
    assert list(UPDATE_RULES) == list(RULES)


@pytest.mark.core
@pytest.mark.parametrize(
    ("kind", "max_kl"), [("discrete", 0.01), ("gaussian", 0.5), ("clipped", 0.3)]
)
def test_an_accepted_trpo_step_gains_and_stays_inside_the_radius(toy, kind, max_kl):
    settings = {} if max_kl == 0.01 else {"max_kl": max_kl}
    accepted = 0
    for seed in range(20):
        problem = toy(kind, seed)
        params, _, info = update_once("trpo", problem, **settings)
        kl_mean, gain = judge(problem.policy_fn)(problem.params, params, problem.batch)
        if info["update/accepted"]:
            accepted += 1
            assert info["update/outcome"] == ACCEPTED
            assert 0.3 * max_kl < kl_mean <= max_kl * (1 + 1e-5)
            assert gain > 0
        else:
            assert same_bits(params, problem.params)
    assert accepted >= 18


@pytest.mark.parametrize("name", ["vpg", "npg", "ppo-kl", "ppo"])
def test_every_rule_raises_the_surrogate_of_the_batch_it_learns_from(toy, name):
    problem = toy()
    params, state, _ = update_once(name, problem)
    kl_mean, gain = judge(problem.policy_fn)(problem.params, params, problem.batch)
    assert gain > 0
    assert kl_mean > 0
    assert state["count"] == 1


def discrete_but_nan_elsewhere(params, inputs):
    """A policy that is finite where the first bias is 0, and nowhere else."""
    hidden = jnp.tanh(inputs.obs @ params["hidden"])
    logits = hidden @ params["out"] + jnp.broadcast_to(params["bias"], (len(hidden), 3))
    return Categorical(jnp.where(params["bias"][0] == 0, logits, jnp.nan))


@pytest.mark.core
def test_a_step_that_is_never_finite_is_refused_and_returns_the_parameters_bit_for_bit(toy):
    params = toy().params | {"bias": jnp.array([-0.0, 1.5, -1.5])}
    problem = toy()._replace(policy_fn=discrete_but_nan_elsewhere, params=params)
    new, _, info = update_once("trpo", problem, max_backtracks=3)
    assert same_bits(new, params)
    assert info["update/outcome"] == NOT_FINITE
    assert info["update/accepted"] == 0
    assert info["update/backtracks"] == 3
    assert info["update/step_norm"] == 0


@case(37)
def test_a_step_that_goes_too_far_with_no_backtrack_left_is_refused_bit_for_bit(toy):
    problem = toy("gaussian")
    settings = {"max_kl": 1.0, "max_backtracks": 0, "damping": 0.0, "fisher_fraction": 0.05}
    went_too_far = 0
    for key in jax.random.split(KEY, 20):
        params, _, info = update_once("trpo", problem, key=key, **settings)
        if info["update/kl_full_step"] > 1.0:
            went_too_far += 1
            assert info["update/outcome"] == TOO_FAR
            assert same_bits(params, problem.params)
    assert went_too_far > 2


@case(36)
def test_a_gradient_that_is_not_finite_is_refused_for_that_reason(toy):
    problem = toy()
    spoiled = with_batch(problem, advantages=problem.batch.advantages.at[5].set(jnp.nan))
    params, _, info = update_once("trpo", spoiled)
    assert same_bits(params, problem.params)
    assert info["update/accepted"] == 0
    assert info["update/outcome"] == NOT_FINITE


@pytest.mark.core
@pytest.mark.parametrize("name", ["npg", "trpo"])
@pytest.mark.parametrize("constant", [0.0, -2.5])
def test_advantages_that_do_not_vary_leave_the_parameters_as_they_were(toy, name, constant):
    problem = with_batch(toy(), advantages=jnp.full(64, constant))
    params, _, info = update_once(name, problem)
    assert same_bits(params, problem.params)
    if name == "trpo":
        assert info["update/outcome"] == NO_GRADIENT


@pytest.mark.core
@pytest.mark.parametrize("damping", [0.0, 0.1, 10.0])
def test_npgs_step_ends_on_the_radius_measured_with_its_damping_over_all_rows(toy, damping):
    problem = with_batch(toy(), weights=jnp.arange(64) % 3 * jnp.ones(64))
    params, _, info = update_once("npg", problem, damping=damping)
    step = jax.tree.map(jnp.subtract, params, problem.params)
    batch = problem.batch
    curvature = quadratic_form(problem.policy_fn, problem.params, batch.inputs, batch.weights, step)
    norm = jnp.linalg.norm(ravel_pytree(step)[0])
    np.testing.assert_allclose(0.5 * (curvature + damping * norm**2), 0.01, rtol=1e-4)
    np.testing.assert_allclose(info["update/kl_quadratic"], 0.5 * curvature, rtol=1e-4)
    np.testing.assert_allclose(info["update/step_norm"], norm, rtol=1e-4)


@pytest.mark.core
def test_trpos_full_step_aims_at_its_radius_undamped(toy):
    problem = toy()
    params, _, info = update_once("trpo", problem, max_kl=1e-4)
    step = jax.tree.map(jnp.subtract, params, problem.params)
    batch = problem.batch
    curvature = quadratic_form(problem.policy_fn, problem.params, batch.inputs, batch.weights, step)
    assert info["update/backtracks"] == 0
    np.testing.assert_allclose(0.5 * curvature, 0.9e-4, rtol=1e-3)


@pytest.mark.core
@pytest.mark.parametrize("damping", [0.0, 0.1, 10.0])
def test_trpos_full_step_with_a_damped_scale_is_that_of_npg(toy, damping):
    problem, settings = toy(), {"max_kl": 1e-4, "damping": damping}
    params, _, info = update_once("trpo", problem, damped_scale=True, **settings)
    npg, _, _ = update_once("npg", problem, **settings)
    if damping == 0.0:  # half of all such steps are a hair too long
        assert info["update/backtracks"] <= 1
        assert info["update/kl_quadratic"] == pytest.approx(1e-4, rel=0.05)
    else:
        assert info["update/backtracks"] == 0
        assert info["update/kl_quadratic"] < 1e-4
        assert_close(params, npg)


class PerDimension(DiagGaussian):
    """Normals whose KL is a mean over the action's dimensions, as sb3-contrib's TRPO has it."""

    def kl_to(self, new):
        return DiagGaussian(*self).kl_to(DiagGaussian(*new)) / self.mean.shape[-1]

    def fisher(self, tangent):
        product = DiagGaussian(*self).fisher(DiagGaussian(*tangent))
        return PerDimension(*(part / self.mean.shape[-1] for part in product))


def test_a_kl_that_is_a_mean_over_dimensions_is_a_radius_and_a_damping_so_many_times_as_large(toy):
    problem = toy("gaussian")

    def averaged(params, inputs):
        return PerDimension(*problem.policy_fn(params, inputs))

    dimensions = problem.batch.actions.shape[-1]
    assert dimensions > 1
    mean, total = (
        preset("any", "trpo", "sb3-contrib", actions=("Box", size)).rule for size in (1, dimensions)
    )
    mean, total = asdict(mean), asdict(total)
    theirs, _, _ = update_once("trpo", problem._replace(policy_fn=averaged), **mean)
    ours, _, _ = update_once("trpo", problem, **total)
    assert not same_bits(ours, problem.params)
    assert_close(ours, theirs, rtol=1e-4)


def test_the_undamped_natural_step_is_the_pseudoinverse_of_fisher_times_the_gradient(toy, x64):
    problem = toy()
    batch, policy_fn = problem.batch, problem.policy_fn
    exact = {"damping": 0.0, "fisher_fraction": 1.0, "cg_iters": 200, "cg_tolerance": 1e-9}
    params, _, info = update_once("npg", problem, **exact)
    step = ravel_pytree(params)[0] - ravel_pytree(problem.params)[0]

    @jax.jit
    def fisher_and_gradient(params):
        flat, unravel = ravel_pytree(params)
        product = fisher_vector_product(policy_fn, params, batch.inputs, batch.weights)
        rows = jax.vmap(lambda v: ravel_pytree(product(unravel(v)))[0])(jnp.eye(flat.size))
        advantages = standardize(batch.advantages, batch.weights)

        def gain(flat):
            log_probs = policy_fn(unravel(flat), batch.inputs).log_prob(batch.actions)
            return surrogate(log_probs, batch.old_log_probs, advantages, batch.weights)

        return rows, jax.grad(gain)(flat)

    fisher, gradient = fisher_and_gradient(problem.params)
    direction = np.linalg.pinv(fisher, rcond=1e-10, hermitian=True) @ gradient
    expected = direction * np.sqrt(2 * 0.01 / (gradient @ direction))
    np.testing.assert_allclose(step, expected, rtol=1e-5, atol=1e-7)
    assert info["update/cg_residual"] <= 1e-9


@pytest.mark.core
@pytest.mark.parametrize("name", list(BASE))
def test_rows_of_weight_0_change_nothing(toy, name):
    problem = toy()
    batch, invalid = problem.batch, jnp.arange(64) % 3 == 0
    weights = jnp.where(invalid, 0.0, 1.0)
    spoiled = with_batch(
        problem,
        weights=weights,
        actions=jnp.where(invalid, (batch.actions + 1) % 3, batch.actions),
        old_log_probs=jnp.where(invalid, jnp.nan, batch.old_log_probs),
        advantages=jnp.where(invalid, jnp.nan, batch.advantages),
    )
    clean, _, _ = update_once(name, with_batch(problem, weights=weights))
    other, _, _ = update_once(name, spoiled)
    assert same_bits(clean, other)
    assert not same_bits(clean, problem.params)


@pytest.mark.parametrize("name", ["vpg", "ppo"])
def test_the_first_descending_step_follows_the_gradient_of_the_surrogate(toy, name):
    problem = toy()
    batch = problem.batch
    one_step = {"num_epochs": 1, "num_minibatches": 1, "max_grad_norm": 0.0, "learning_rate": 0.01}
    settings = one_step if name == "ppo" else {"learning_rate": 0.01}
    params, _, info = update_once(name, problem, **settings)

    @jax.jit
    @jax.grad
    def gradient(params):
        log_probs = problem.policy_fn(params, batch.inputs).log_prob(batch.actions)
        advantages = standardize(batch.advantages, batch.weights)
        return surrogate(log_probs, batch.old_log_probs, advantages, batch.weights)

    g = gradient(problem.params)
    expected = jax.tree.map(lambda p, g: p + 0.01 * g / (abs(g) + 1e-5), problem.params, g)
    assert_close(params, expected)
    norm = jnp.linalg.norm(ravel_pytree(g)[0])
    np.testing.assert_allclose(info["update/gradient_norm"], norm, rtol=1e-4)


def test_ppo_leaves_out_the_epochs_after_the_first_that_passes_the_target(toy):
    problem = toy()
    settings = {"learning_rate": 0.02, "num_minibatches": 1}
    stopped, _, info = update_once("ppo", problem, num_epochs=8, target_kl=0.01, **settings)
    ran = int(info["update/epochs"])
    assert 1 < ran < 8
    before, _, info = update_once("ppo", problem, num_epochs=ran - 1, **settings)
    assert info["update/epochs"] == ran - 1
    judged = judge(problem.policy_fn)
    assert judged(problem.params, stopped, problem.batch)[0] > 1.5 * 0.01
    assert judged(problem.params, before, problem.batch)[0] <= 1.5 * 0.01


@pytest.mark.core
def test_ppo_kl_doubles_its_penalty_after_a_long_step_and_halves_it_after_none(toy):
    problem = toy()
    rule, update = compiled("ppo-kl", problem.policy_fn)
    state = rule.init(problem.params)
    params, state, info = update(state, problem.params, problem.batch, KEY)
    kl_mean, _ = judge(problem.policy_fn)(problem.params, params, problem.batch)
    assert kl_mean > 1.5 * 0.01
    assert info["update/kl_coef"] == 1
    assert state["kl_coef"] == 2
    still = with_batch(problem, weights=jnp.zeros(64)).batch
    state = rule.init(params) | {"kl_coef": state["kl_coef"]}
    after, state, info = update(state, params, still, KEY)
    assert same_bits(after, params)
    assert info["update/kl_coef"] == 2
    assert state["kl_coef"] == 1


@pytest.mark.parametrize(
    ("name", "setting", "metric"),
    [("npg", "max_kl", "radius"), ("vpg", "learning_rate", "learning_rate")],
)
def test_a_schedule_goes_in_equal_steps_from_its_start_towards_its_end(toy, name, setting, metric):
    problem = toy()
    rule, update = compiled(name, problem.policy_fn, **{setting: 0.04}, final_fraction=0.25)
    state, params, values = rule.init(problem.params), problem.params, []
    for _ in range(int(NUM_UPDATES)):
        params, state, info = update(state, params, problem.batch, KEY)
        values.append(float(info[f"update/{metric}"]))
    steps = np.diff(values)
    assert values[0] == pytest.approx(0.04)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-4)
    assert 0.01 * (1 - 1e-5) <= values[-1] <= 0.01 - steps[0] * (1 + 1e-5)


@pytest.mark.parametrize(("kind", "dimensions"), [("discrete", 1), ("gaussian", 3), ("clipped", 3)])
@pytest.mark.parametrize("name", ["npg", "trpo"])
def test_the_radius_is_for_each_dimension_of_the_action_or_in_all(toy, name, kind, dimensions):
    problem = toy(kind)
    for each, radius in ((True, 0.02 * dimensions), (False, 0.02)):
        params, _, info = update_once(name, problem, max_kl=0.02, kl_per_dimension=each)
        assert info["update/radius"] == pytest.approx(radius)
        kl_mean, _ = judge(problem.policy_fn)(problem.params, params, problem.batch)
        assert 0.3 * radius < kl_mean < 1.5 * radius


def test_the_penalty_aims_at_its_target_for_each_dimension_or_in_all(toy):
    problem = toy("gaussian")
    given = {"target_kl": 0.02, "learning_rate": 0.01, "num_epochs": 3, "num_minibatches": 4}
    states, kls = [], []
    for each in (True, False):
        rule, update = compiled("ppo-kl", problem.policy_fn, kl_per_dimension=each, **given)
        params, state, _ = update(rule.init(problem.params), problem.params, problem.batch, KEY)
        states.append(float(state["kl_coef"]))
        kls.append(float(judge(problem.policy_fn)(problem.params, params, problem.batch)[0]))
    # The same step, between the two: short of three times the target, beyond it.
    assert kls[0] == kls[1]
    assert 1.5 * 0.02 < kls[0] < 0.06 / 1.5
    assert states == [0.5, 2.0]


@pytest.mark.parametrize("name", ["trpo", "ppo"])
def test_one_compiled_update_is_one_plain_update(toy, name):
    problem = toy()
    rule = make_rule(name, problem.policy_fn, **BASE[name])
    plain = rule.update(rule.init(problem.params), problem.params, problem.batch, KEY)
    assert_close(update_once(name, problem), plain)


@pytest.mark.parametrize("name", ["trpo", "ppo-kl"])
def test_many_updates_at_once_are_each_update_alone(toy, name):
    problems = [toy(seed=seed) for seed in range(3)]
    keys = jax.random.split(KEY, 3)
    params, batches = (
        jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)
        for parts in zip(*((p.params, p.batch) for p in problems), strict=True)
    )
    rule = make_rule(name, problems[0].policy_fn, **BASE[name])
    states = jax.vmap(rule.init)(params)
    together = jax.jit(jax.vmap(rule.update))(states, params, batches, keys)
    for row, (problem, key) in enumerate(zip(problems, keys, strict=True)):
        one_of_many = jax.tree.map(itemgetter(row), together)
        assert_close(one_of_many, update_once(name, problem, key))


@pytest.mark.core
@pytest.mark.parametrize("name", ["npg", "ppo"])
def test_the_key_decides_which_rows_meet_and_the_same_key_gives_the_same_bits(toy, name):
    problem = toy()
    first, _, _ = update_once(name, problem, jax.random.key(1))
    again, _, _ = update_once(name, problem, jax.random.key(1))
    other, _, _ = update_once(name, problem, jax.random.key(2))
    assert same_bits(first, again)
    assert not same_bits(first, other)


@pytest.mark.parametrize("name", list(BASE))
def test_the_stored_log_probs_do_not_enter_a_step(toy, name):
    problem = toy()
    stale = with_batch(problem, old_log_probs=problem.batch.old_log_probs - 1.0)
    assert same_bits(update_once(name, stale)[0], update_once(name, problem)[0])


@pytest.mark.core
@pytest.mark.parametrize("name", list(BASE))
@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_scale_of_rewards_does_not_change_the_step(toy, name, scale):
    problem, tolerance = toy(), 1e-4 if name in ("npg", "trpo") else 1e-3
    params, _, _ = update_once(name, problem)
    scaled = with_batch(problem, advantages=problem.batch.advantages * scale)
    other, _, _ = update_once(name, scaled)
    assert not same_bits(params, problem.params)
    for old, new, new_scaled in zip(
        *map(jax.tree.leaves, (problem.params, params, other)), strict=True
    ):
        largest = np.abs(new - old).max()
        np.testing.assert_allclose(new_scaled - old, new - old, atol=tolerance * largest)


@pytest.mark.parametrize("name", list(BASE))
def test_an_entropy_bonus_raises_entropy_where_no_advantage_speaks(toy, name):
    problem = with_batch(toy(), advantages=jnp.zeros(64))
    params, _, _ = update_once(name, problem, ent_coef=0.1)
    before, after = (
        float(jnp.mean(problem.policy_fn(p, problem.batch.inputs).entropy()))
        for p in (problem.params, params)
    )
    assert after > before + 1e-4


@pytest.mark.parametrize(
    ("num_rows", "num_minibatches"), [(48, 32), (64, 16), (65, 32), (7, 3), (5, 8)]
)
def test_an_epoch_sees_every_row_but_less_than_a_minibatch(num_rows, num_minibatches):
    adam = MinibatchAdam(1, num_minibatches, 0.0)
    # Each row pushes a parameter of its own: Adam moves those that an epoch has seen.
    params = jnp.zeros(num_rows)
    moved, _, _ = adam.minimise(
        lambda params, rows: (params[rows], jnp.ones(len(rows))),
        params,
        adam.init(params),
        jnp.arange(num_rows),
        jax.random.key(0),
        learning_rate=jnp.float32(0.1),
    )
    unseen, size = int((moved == 0).sum()), -(-num_rows // num_minibatches)
    assert unseen == num_rows % size
