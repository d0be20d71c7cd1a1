"""Minibatch Adam on one flat vector: how every descending rule and the critic move."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, Key

from surefoot.blocks import copying, take
from surefoot.shuffle import shuffled
from surefoot.types import Params


class Descent(NamedTuple):
    """What a descent did: mean loss and mean gradient norm (before any clip), epochs run."""

    loss: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    epochs: Int[Array, ""]


def adam(max_grad_norm: float) -> Any:
    """Adam without its step size, after an optional bound on the gradient's global norm."""
    parts = [optax.clip_by_global_norm(max_grad_norm)] if max_grad_norm > 0 else []
    return optax.chain(*parts, optax.scale_by_adam(eps=1e-5))


def start_descent(params: Params, *, max_grad_norm: float) -> Any:
    """Adam's state for `params`, to be given to the first `descend`."""
    return adam(max_grad_norm).init(ravel_pytree(params)[0])


def descend(
    loss: Callable[[Params, Any], Float[Array, ""]],
    params: Params,
    state: Any,
    rows: Any,
    key: Key[Array, ""],
    *,
    learning_rate: Float[Array, ""],
    settings: Any,
    stop: Callable[[Params], Any] | None = None,
    blocks: int = 1,
) -> tuple[Params, Any, Descent]:
    """Minimise `loss(params, minibatch)` for some epochs of reshuffled minibatches.

    Args:
        loss: mean loss of one minibatch.
        params: where to start.
        state: Adam's state, from `start_descent` or the last call.
        rows: a tree of arrays with one leading axis of rows.
        key: consumed by the shuffles.
        learning_rate: Adam's step size.
        settings: anything with `num_epochs`, `num_minibatches` and `max_grad_norm`.
        stop: asked after every epoch; True leaves the remaining epochs out.
        blocks: of rows; every minibatch has as many rows of each.
    """
    start, unravel = ravel_pytree(params)
    copies = copying(unravel, blocks)
    num_rows = jax.tree.leaves(rows)[0].shape[0]
    in_block = num_rows // blocks
    # Half a batch may be few rows: the minibatches are fewer then, and less than one is left over.
    size = -(-in_block // settings.num_minibatches)
    count = in_block // size
    optimizer = adam(settings.max_grad_norm)

    def step(carry, indices):
        flat, state = carry
        minibatch = take(rows, indices, blocks)
        value, gradient = jax.value_and_grad(lambda x: loss(copies(x), minibatch))(flat)
        direction, state = optimizer.update(gradient, state)
        return (flat - learning_rate * direction, state), (value, jnp.linalg.norm(gradient))

    def epoch(carry, epoch_key):
        flat, state, stopped = carry
        order = jnp.tile(jnp.arange(in_block), (blocks, 1))
        if count > 1:
            order = shuffled(epoch_key, num_rows, blocks)[:, : count * size]
        parts = order.reshape(blocks, count, size).swapaxes(0, 1).reshape(count, blocks * size)
        (new, new_state), traces = jax.lax.scan(step, (flat, state), parts)
        if stop is None:
            return (new, new_state, stopped), (*traces, jnp.array(True))
        keep = lambda a, b: jnp.where(stopped, a, b)  # noqa: E731
        flat, state = jax.tree.map(keep, (flat, state), (new, new_state))
        return (flat, state, stopped | stop(unravel(flat))), (*traces, ~stopped)

    keys = jax.random.split(key, settings.num_epochs)
    (flat, state, _), (losses, norms, ran) = jax.lax.scan(
        epoch, (start, state, jnp.array(False)), keys
    )
    share = ran / jnp.sum(ran)
    descent = Descent(jnp.mean(losses, 1) @ share, jnp.mean(norms, 1) @ share, jnp.sum(ran))
    return unravel(flat), state, descent


def report(descent: Descent, learning_rate: Float[Array, ""]) -> dict[str, Array]:
    """The metrics every descending rule logs."""
    return {
        "update/loss": descent.loss,
        "update/gradient_norm": descent.gradient_norm,
        "update/epochs": descent.epochs,
        "update/learning_rate": learning_rate,
    }
