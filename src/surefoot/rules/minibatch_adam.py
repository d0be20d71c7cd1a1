"""Minibatch Adam on one flat vector: how every descending rule and the critic move."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, Key

from surefoot.formulas.surrogate import counted, weighted_mean
from surefoot.parallel.rows import Copies, take
from surefoot.parallel.shuffle import shuffled
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
    losses: Callable[[Params, Any], tuple[Float[Array, " batch"], Float[Array, " batch"]]],
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
    """Minimise the mean of `losses(params, minibatch)` in epochs of reshuffled minibatches.

    Args:
        losses: the loss in each row of a minibatch, and how much each of them counts.
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
    num_rows = jax.tree.leaves(rows)[0].shape[0]
    in_block = num_rows // blocks
    # Half a batch may be few rows: the minibatches are fewer then, and less than one is left over.
    size = -(-in_block // settings.num_minibatches)
    count = in_block // size
    optimizer = adam(settings.max_grad_norm)

    def step(carry, indices):
        flat, state = carry
        minibatch = take(rows, indices, blocks)
        value, gradient = mean_and_gradient(
            lambda params: losses(params, minibatch), flat, unravel, blocks
        )
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
    (flat, state, _), (means, norms, ran) = jax.lax.scan(
        epoch, (start, state, jnp.array(False)), keys
    )
    share = ran / jnp.sum(ran)
    descent = Descent(jnp.mean(means, 1) @ share, jnp.mean(norms, 1) @ share, jnp.sum(ran))
    return unravel(flat), state, descent


def mean_and_gradient(
    losses: Callable[[Any], tuple[Float[Array, " batch"], Float[Array, " batch"]]],
    flat: Float[Array, " param"],
    unravel: Callable[[Any], Params],
    blocks: int,
) -> tuple[Float[Array, ""], Float[Array, " param"]]:
    """The mean of `losses(params) -> (loss of each row, its weight)`, and its gradient.

    Several blocks add up all of it as one vector: devices wait for each sum that they take by
    itself, were it of a single number.
    """
    if blocks == 1:
        return jax.value_and_grad(lambda flat: weighted_mean(*losses(unravel(flat))))(flat)

    def total(copies: Float[Array, "block param"]) -> tuple[Float[Array, ""], Any]:
        values, weights = losses(Copies(copies, unravel))
        of_rows = jnp.stack([counted(values, weights) * weights, weights], axis=-1)
        sums = jnp.sum(of_rows.reshape(blocks, -1, 2), axis=1)
        return jnp.sum(sums[:, 0]), sums

    copies = jnp.broadcast_to(flat, (blocks, *flat.shape))
    gradients, sums = jax.grad(total, has_aux=True)(copies)
    whole = jnp.sum(jnp.concatenate([gradients, sums], axis=1), axis=0)
    weight = jnp.where(whole[-1] > 0, whole[-1], 1.0)
    return whole[-2] / weight, whole[:-2] / weight


def report(descent: Descent, learning_rate: Float[Array, ""]) -> dict[str, Array]:
    """The metrics every descending rule logs."""
    return {
        "update/loss": descent.loss,
        "update/gradient_norm": descent.gradient_norm,
        "update/epochs": descent.epochs,
        "update/learning_rate": learning_rate,
    }
