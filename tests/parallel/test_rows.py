"""Blocks of environments: rows, orders and gradients are the same on one device and on several."""

from functools import partial

import gymnasium.spaces as spaces
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

from surefoot.config.settings import RULES, Critic, Network
from surefoot.networks.actor_critic import build
from surefoot.parallel.mesh import rows_in, spread_over
from surefoot.parallel.rows import BlockRows
from surefoot.rules import UPDATE_RULES
from surefoot.rules.critic import critic_losses, fit_critic, start_critic
from surefoot.rules.minibatch_adam import MinibatchAdam
from surefoot.rules.rows import AllRows, Rows
from surefoot.types import EnvSpec, Inputs

TWO = spread_over(jax.local_devices()[:2])
KEY = jax.random.key(3)
ACCESS = [AllRows(), BlockRows(1), BlockRows(2), BlockRows(4)]
every_access = pytest.mark.parametrize(
    "rows", ACCESS, ids=lambda rows: f"{type(rows).__name__}-{rows.parts}"
)


def on_two(function):
    def apply(*arguments):
        with TWO.scope():
            return jax.jit(function)(*arguments)

    return apply


def order_of(key, parts, size):
    """Each part's rows in random order, sorted by NumPy: random bits above each row's number."""
    low = np.uint32((1 << max(1, (size - 1).bit_length())) - 1)
    words = np.asarray(jax.random.bits(key, (parts, size), jnp.uint32)) & ~low
    return np.sort(words | np.arange(size, dtype=np.uint32), axis=1) & low


def test_one_block_is_all_rows_and_more_have_blocks_of_their_own():
    assert isinstance(rows_in(1), AllRows)
    assert rows_in(4) == BlockRows(4)
    assert all(isinstance(rows, Rows) for rows in ACCESS)


@given(st.integers(1, 5), st.integers(1, 3), st.integers(1, 4))
def test_rows_stand_block_by_block_and_time_major_in_each(steps, width, blocks):
    time, env = np.meshgrid(np.arange(steps), np.arange(blocks * width), indexing="ij")
    expected = [
        (t, block * width + e)
        for block in range(blocks)
        for t in range(steps)
        for e in range(width)
    ]
    for access in [BlockRows(blocks), *([AllRows()] if blocks == 1 else [])]:
        rows = access.flatten((time, env))
        assert list(zip(*map(np.ndarray.tolist, map(np.asarray, rows)), strict=True)) == expected
        for leaf, back in zip((time, env), rows, strict=True):
            np.testing.assert_array_equal(access.unflatten(back, steps), leaf)


@every_access
def test_a_function_of_one_parts_rows_is_applied_to_each_part(rows):
    x, y = np.arange(24.0).reshape(12, 2), np.arange(12.0)

    def centred(tree, y):  # reads all rows of its part
        return {"x": tree["x"] - jnp.sum(tree["x"], axis=0)}, jnp.flip(y)

    found, back = rows.per_part(centred)({"x": x}, y)
    parts = np.split(x, rows.parts)
    np.testing.assert_array_equal(found["x"], np.concatenate([p - p.sum(0) for p in parts]))
    flipped = [p[::-1] for p in np.split(y, rows.parts)]
    np.testing.assert_array_equal(back, np.concatenate(flipped))


@pytest.mark.parametrize("how", [lambda function: function, on_two])
def test_a_function_of_each_environment_sees_every_entry_of_its_axis_once(how):
    values = np.arange(12.0).reshape(3, 4)
    for rows in ACCESS:
        double = how(rows.per_env(lambda x: 2.0 * x + 1.0, axis=1))
        np.testing.assert_array_equal(double(values), 2.0 * values + 1.0)
        np.testing.assert_array_equal(how(rows.replicate)(values), values)


@every_access
@pytest.mark.parametrize(("num_rows", "count"), [(24, 1), (24, 3), (24, 4), (20, 3), (8, 5)])
def test_minibatches_cut_each_parts_random_order_into_equal_shares(rows, num_rows, count):
    size = num_rows // rows.parts
    share = -(-size // count)
    cuts = size // share
    order = order_of(KEY, rows.parts, size)
    if cuts == 1:
        order = np.tile(np.arange(size), (rows.parts, 1))
    expected = [
        np.concatenate([order[part, i * share : (i + 1) * share] for part in range(rows.parts)])
        for i in range(cuts)
    ]
    np.testing.assert_array_equal(rows.minibatches(KEY, num_rows, count), expected)


@every_access
@pytest.mark.parametrize("fraction", [0.01, 0.25, 0.6, 1.0])
def test_a_sample_has_the_same_random_share_of_every_part(rows, fraction):
    size = 24 // rows.parts
    chosen = rows.sample(KEY, 24, fraction)
    kept = max(1, round(fraction * size))
    if kept == size:
        assert chosen is None
        return
    expected = order_of(KEY, rows.parts, size)[:, :kept].reshape(-1)
    np.testing.assert_array_equal(chosen, expected)


@pytest.mark.parametrize("blocks", [1, 2, 4])
def test_every_row_of_every_block_comes_once(blocks):
    access = rows_in(blocks)
    minibatches = np.asarray(access.minibatches(jax.random.key(0), 64 * blocks, 8))
    order = minibatches.reshape(8, blocks, 8).swapaxes(0, 1).reshape(blocks, 64)
    np.testing.assert_array_equal(np.sort(order), np.tile(np.arange(64), (blocks, 1)))
    assert len({tuple(row) for row in order}) == blocks  # no two blocks in the same order


@pytest.mark.parametrize("how", [jax.jit, on_two])
def test_some_rows_of_each_block(how):
    rows, chosen = jnp.arange(12) * 10, jnp.array([2, 0, 1, 1])
    found = how(lambda rows, chosen: BlockRows(2).take({"a": rows}, chosen)["a"])(rows, chosen)
    np.testing.assert_array_equal(found, [20, 0, 70, 70])
    alone = AllRows().take({"a": rows}, chosen)["a"]
    np.testing.assert_array_equal(alone, [20, 0, 10, 10])


SPACES = {
    "vector": spaces.Box(-1.0, 1.0, (3,), np.float32),
    "picture": spaces.Box(0.0, 1.0, (10, 10, 4), np.float32),
}


@pytest.mark.parametrize("how", [jax.jit, on_two])
@pytest.mark.parametrize("kind", SPACES)
def test_a_gradient_of_a_mean_over_blocks_is_that_of_all_rows(x64, kind, how):
    """Summed over devices it would be twice as long."""
    actions = spaces.Dict({"a": spaces.Discrete(3), "b": spaces.Box(-1.0, 1.0, (2,), np.float32)})
    spec = EnvSpec("x", SPACES[kind], actions, None, False, True)
    network = build(spec, Network(hidden=(5,), head_scale=1.0))
    params = network.init(jax.random.key(0))
    flat, unravel = ravel_pytree(params)
    obs = jax.random.normal(jax.random.key(1), (12, *SPACES[kind].shape))
    inputs = Inputs(obs, None)
    actions = network.policy(params["policy"], inputs).sample(
        network.noise(jax.random.key(2), (12,))
    )

    def outputs(flat, inputs):
        params = unravel(flat)
        return network.policy(params["policy"], inputs), network.value(params, inputs)

    def loss(rows, flat, inputs):
        chosen, values = rows.apply(outputs, flat, inputs)
        return jnp.mean(chosen.log_prob(actions) * values)

    plain = jax.grad(lambda flat: loss(AllRows(), flat, inputs))(flat)
    for rows in (BlockRows(2), BlockRows(4)):
        found = how(jax.grad(partial(loss, rows)))(flat, inputs)
        np.testing.assert_allclose(found, plain, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("rows", "how"),
    [(rows, jax.jit) for rows in ACCESS] + [(BlockRows(2), on_two), (BlockRows(4), on_two)],
)
@pytest.mark.parametrize("counted", ["all", "some", "none"])
def test_the_mean_loss_and_its_gradient_weigh_rows_alike_in_any_number_of_blocks(
    x64, counted, rows, how
):
    """Blocks whose weights differ, so that a mean of the blocks' means would be another."""
    params = {"slope": jnp.array([0.5, -1.0]), "offset": jnp.array(0.3)}
    flat, unravel = ravel_pytree(params)
    rng = np.random.default_rng(0)
    inputs, targets, weights = rng.normal(size=(12, 2)), rng.normal(size=12), np.arange(12) ** 2.0
    if counted != "all":
        weights[::3] = 0.0
        targets[::3] = np.nan
    if counted == "none":
        weights[:] = 0.0

    def losses(params, data):
        inputs, targets, weights = data
        targets = jnp.where(weights > 0, targets, 0.0)
        errors = (inputs @ params["slope"] + params["offset"] - targets) ** 2
        return jnp.where(weights > 0, errors, jnp.nan), weights

    value, gradient = how(lambda flat, data: rows.mean_and_gradient(losses, flat, unravel, data))(
        flat, (inputs, targets, weights)
    )
    errors = inputs @ [0.5, -1.0] + 0.3 - np.where(weights > 0, targets, 0.0)
    total = max(weights.sum(), 1.0)
    slope = 2.0 * (weights * errors) @ inputs / total
    expected = ravel_pytree({"slope": slope, "offset": 2.0 * weights @ errors / total})[0]
    np.testing.assert_allclose(value, weights @ errors**2 / total, rtol=1e-12)
    np.testing.assert_allclose(gradient, expected, rtol=1e-12, atol=1e-15)


def test_a_pass_has_as_many_rows_of_every_block(x64):
    rows = jnp.arange(24)
    seen = []

    def losses(params, minibatch):
        return jnp.sum(params**2) + jnp.zeros(len(minibatch)), jnp.ones(len(minibatch))

    def noted(minibatch):
        jax.debug.callback(lambda rows: seen.append(np.asarray(rows)), minibatch, ordered=True)
        return minibatch

    adam = MinibatchAdam(2, 3, 0.0, BlockRows(2))
    adam.minimise(
        losses,
        jnp.ones(1),
        adam.init(jnp.ones(1)),
        rows,
        jax.random.key(0),
        learning_rate=jnp.asarray(0.1),
        prepare=noted,
    )
    jax.effects_barrier()
    assert len(seen) == 6
    assert all(np.sum(part < 12) == 4 for part in seen)
    for epoch in (seen[:3], seen[3:]):
        np.testing.assert_array_equal(np.sort(np.concatenate(epoch)), rows)


EXACT = {
    "vpg": {},
    "npg": {"fisher_fraction": 1.0, "ent_coef": 0.01},
    "trpo": {"fisher_fraction": 1.0},
    "ppo-kl": {"num_epochs": 3, "num_minibatches": 1, "learning_rate": 0.03},
    "ppo": {"num_epochs": 3, "num_minibatches": 1, "learning_rate": 0.01, "ent_coef": 0.01},
}


@pytest.mark.parametrize("name", RULES)
def test_a_rule_takes_the_same_step_from_the_rows_of_two_blocks_as_from_all_rows(toy, x64, name):
    policy_fn, params, batch = toy("gaussian", num_rows=24)
    batch = batch._replace(weights=jnp.arange(24.0) % 3)

    def updated(rows):
        rule = UPDATE_RULES[name](RULES[name](**EXACT[name]), policy_fn, 4.0, rows=rows)
        return jax.jit(rule.update)(rule.init(params), params, batch, KEY)

    plain, blocked = updated(AllRows()), updated(BlockRows(2))
    moved = ravel_pytree(plain[0])[0] - ravel_pytree(params)[0]
    assert jnp.linalg.norm(moved) > 1e-3
    for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(blocked), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-9)


def test_a_critic_is_fitted_alike_from_the_rows_of_two_blocks_and_from_all_rows(toy, x64):
    _, _, batch = toy(num_rows=24)
    config = Critic(num_epochs=3, num_minibatches=1)
    start = {"slope": jnp.zeros(3), "offset": jnp.zeros(())}

    def value(params, inputs):
        return inputs.obs @ params["slope"] + params["offset"]

    def fitted(rows):
        state = start_critic(config, start)
        return jax.jit(
            lambda batch: fit_critic(config, value, 4.0, state, start, batch, KEY, rows)
        )(batch)

    plain, blocked = fitted(AllRows()), fitted(BlockRows(2))
    assert jnp.mean(critic_losses(config, value)(plain[0], batch)) < jnp.mean(
        critic_losses(config, value)(start, batch)
    )
    for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(blocked), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-9)
