"""Adam and its clipped gradient, against a library of optimisers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from surefoot.rules.minibatch_adam import MinibatchAdam

optax = pytest.importorskip("optax")


@pytest.mark.parametrize("max_grad_norm", [0.0, 0.3, 0.6])
def test_a_descent_takes_the_steps_of_adam_on_clipped_gradients(max_grad_norm):
    """One minibatch an epoch: every step has the whole gradient, whatever the shuffle."""
    data = jax.random.normal(jax.random.key(0), (32, 5)) * jnp.array([[0.1, 1.0, 1.0, 3.0, 3.0]])
    params = {"w": jnp.linspace(-1.0, 1.0, 5)}

    def losses(params, rows):
        return 0.1 * jnp.sum(jnp.cosh(rows * params["w"][None]) ** 0.5, axis=-1), jnp.ones(
            len(rows)
        )

    adam = MinibatchAdam(20, 1, max_grad_norm)
    found, state, descent = adam.minimise(
        losses, params, adam.init(params), data, jax.random.key(1), learning_rate=0.1
    )
    clip = [optax.clip_by_global_norm(max_grad_norm)] if max_grad_norm else []
    optimizer = optax.chain(*clip, optax.adam(0.1, eps=1e-5))
    expected, theirs, norms = params, optimizer.init(params), []
    for _ in range(20):
        gradient = jax.grad(lambda params: jnp.mean(losses(params, data)[0]))(expected)
        norms.append(optax.tree.norm(gradient))
        updates, theirs = optimizer.update(gradient, theirs)
        expected = optax.apply_updates(expected, updates)
    np.testing.assert_allclose(found["w"], expected["w"], rtol=2e-5, atol=2e-6)
    assert np.max(np.abs(found["w"] - params["w"])) > 0.1
    np.testing.assert_allclose(descent.gradient_norm, np.mean(norms), rtol=1e-4)
    assert max_grad_norm == 0.0 or min(norms) < max_grad_norm < max(norms)
    assert int(state.count) == 20
