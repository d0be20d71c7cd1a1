"""Blocks of environments: rows, orders and gradients are the same on one device and on several."""

from types import SimpleNamespace

import gymnasium.spaces as spaces
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree
from surefoot.parallel.shuffle import shuffled

from surefoot.config.settings import Network
from surefoot.networks.actor_critic import build
from surefoot.parallel.mesh import spread_over
from surefoot.parallel.rows import copying, from_rows, over_copies, take, to_rows
from surefoot.rules.minibatch_adam import descend, mean_and_gradient, start_descent
from surefoot.types import EnvSpec, Inputs

TWO = spread_over(jax.local_devices()[:2])


@given(st.integers(1, 5), st.integers(1, 3), st.integers(1, 4))
def test_rows_stand_block_by_block_and_time_major_in_each(steps, width, blocks):
    time, env = np.meshgrid(np.arange(steps), np.arange(blocks * width), indexing="ij")
    rows = to_rows((time, env), blocks)
    expected = [
        (t, block * width + e)
        for block in range(blocks)
        for t in range(steps)
        for e in range(width)
    ]
    assert list(zip(*map(np.ndarray.tolist, map(np.asarray, rows)), strict=True)) == expected
    for leaf, back in zip((time, env), rows, strict=True):
        np.testing.assert_array_equal(from_rows(back, steps, blocks), leaf)


@pytest.mark.parametrize("blocks", [1, 2, 4])
def test_every_row_of_every_block_comes_once(blocks):
    order = np.asarray(shuffled(jax.random.key(0), 64 * blocks, blocks))
    np.testing.assert_array_equal(np.sort(order), np.tile(np.arange(64), (blocks, 1)))
    assert len({tuple(row) for row in order}) == blocks  # no two blocks in the same order


def on_two(function):
    def apply(*arguments):
        with TWO.scope():
            return jax.jit(function)(*arguments)

    return apply


@pytest.mark.parametrize("how", [jax.jit, on_two])
def test_some_rows_of_each_block(how):
    rows, chosen = jnp.arange(12) * 10, jnp.array([2, 0, 1, 1])
    found = how(lambda rows, chosen: take({"a": rows}, chosen, 2)["a"])(rows, chosen)
    np.testing.assert_array_equal(found, [20, 0, 70, 70])


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

    def loss(copy, flat, inputs):
        params = copy(flat)
        chosen = network.policy(params["policy"], inputs)
        return jnp.mean(chosen.log_prob(actions) * network.value(params, inputs))

    plain = jax.grad(loss, argnums=1)(unravel, flat, inputs)
    for blocks in (2, 4):
        copy = copying(unravel, blocks)
        found = how(jax.grad(lambda flat, inputs, copy=copy: loss(copy, flat, inputs)))(
            flat, inputs
        )
        np.testing.assert_allclose(found, plain, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("how", [jax.jit, on_two])
@pytest.mark.parametrize("blocks", [1, 2, 4])
@pytest.mark.parametrize("counted", ["all", "some", "none"])
def test_the_mean_loss_and_its_gradient_weigh_rows_alike_in_any_number_of_blocks(
    x64, counted, blocks, how
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
    line = over_copies(lambda params, inputs: inputs @ params["slope"] + params["offset"])

    def found(flat, inputs, targets, weights):
        targets = jnp.where(weights > 0, targets, 0.0)

        def losses(params):
            errors = (line(params, inputs) - targets) ** 2
            return jnp.where(weights > 0, errors, jnp.nan), weights

        return mean_and_gradient(losses, flat, unravel, blocks)

    value, gradient = how(found)(flat, inputs, targets, weights)
    errors = inputs @ [0.5, -1.0] + 0.3 - np.where(weights > 0, targets, 0.0)
    total = max(weights.sum(), 1.0)
    slope = 2.0 * (weights * errors) @ inputs / total
    expected = ravel_pytree({"slope": slope, "offset": 2.0 * weights @ errors / total})[0]
    np.testing.assert_allclose(value, weights @ errors**2 / total, rtol=1e-12)
    np.testing.assert_allclose(gradient, expected, rtol=1e-12, atol=1e-15)


def test_a_pass_has_as_many_rows_of_every_block(x64):
    rows = jnp.arange(24)
    seen = []

    def loss(params, minibatch):
        jax.debug.callback(lambda rows: seen.append(np.asarray(rows)), minibatch)
        return jnp.sum(params**2) + jnp.zeros(len(minibatch)), jnp.ones(len(minibatch))

    once = SimpleNamespace(num_epochs=2, num_minibatches=3, max_grad_norm=0.0)
    start = start_descent(jnp.ones(1), max_grad_norm=0.0)
    loose = lambda params, rows: loss(getattr(params, "flat", params), rows)  # noqa: E731
    descend(
        loose, jnp.ones(1), start, rows, jax.random.key(0),
        learning_rate=jnp.asarray(0.1), settings=once, blocks=2,
    )  # fmt: skip
    jax.effects_barrier()
    assert len(seen) == 6
    assert all(np.sum(part < 12) == 4 for part in seen)
    for epoch in (seen[:3], seen[3:]):
        np.testing.assert_array_equal(np.sort(np.concatenate(epoch)), rows)
