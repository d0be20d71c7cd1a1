"""Minibatch Adam on one flat vector: how every descending rule and the critic move."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from surefoot.config.validation import is_off
from surefoot.rules.rows import AllRows, Losses, Rows
from surefoot.types import Params

MEAN_DECAY, SQUARE_DECAY, EPSILON = 0.9, 0.999, 1e-5


class AdamState(NamedTuple):
    """Adam's steps so far, and its running means of the gradient and of its square."""

    count: Int[Array, ""]
    mean: Float[Array, " param"]
    square: Float[Array, " param"]


def adam_step(
    gradient: Float[Array, " param"], state: AdamState
) -> tuple[Float[Array, " param"], AdamState]:
    """The direction of Adam's next step, before the step size, and its state after it.

    Source: Kingma & Ba 2015, arXiv:1412.6980, algorithm 1. It is here because importing a library
    of optimisers takes 0.2 s, a tenth of what a short run takes to its first update.
    """
    count = state.count + 1
    mean = (1 - MEAN_DECAY) * gradient + MEAN_DECAY * state.mean
    square = (1 - SQUARE_DECAY) * gradient**2 + SQUARE_DECAY * state.square
    unbiased = mean / (1 - MEAN_DECAY**count)
    spread = jnp.sqrt(square / (1 - SQUARE_DECAY**count))
    return unbiased / (spread + EPSILON), AdamState(count, mean, square)


class Descent(NamedTuple):
    """What a descent did: mean loss, mean gradient norm (before clipping), epochs run."""

    loss: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    epochs: Int[Array, ""]


class MinibatchAdam(NamedTuple):
    """Adam over epochs of reshuffled minibatches.

    `max_grad_norm` bounds the global norm of a gradient; 0 leaves it as it is.
    """

    num_epochs: int
    num_minibatches: int
    max_grad_norm: float | Float[Array, ""]
    rows: Rows = AllRows()

    def init(self, params: Params) -> AdamState:
        """Adam's state before its first step."""
        zeros = jnp.zeros_like(ravel_pytree(params)[0])
        return AdamState(jnp.int32(0), zeros, zeros)

    def _clip(
        self, gradient: Float[Array, " param"], norm: Float[Array, ""]
    ) -> Float[Array, " param"]:
        if is_off(self.max_grad_norm):
            return gradient
        return jnp.where(norm < self.max_grad_norm, gradient, gradient / norm * self.max_grad_norm)

    def minimise(
        self,
        losses: Losses,
        params: Params,
        state: AdamState,
        data: PyTree,
        key: Key[Array, ""],
        *,
        learning_rate: float | Float[Array, ""],
        prepare: Callable[[Any], Any] = lambda minibatch: minibatch,
        stop: Callable[[Params], Bool[Array, ""]] | None = None,
    ) -> tuple[Params, AdamState, Descent]:
        """Minimise the weighted mean of `losses` over `data`.

        Args:
            losses: the loss and the weight of each row.
            params: where to start.
            state: Adam's state, from `init` or the last call.
            data: a tree of arrays with one leading axis of rows.
            key: for the shuffles.
            learning_rate: Adam's step size.
            prepare: what is computed from a whole minibatch before its losses, without gradient.
            stop: asked after every epoch; True skips the remaining epochs.

        Returns:
            The new parameters, Adam's state, and what the descent did.
        """
        start, unravel = ravel_pytree(params)
        num_rows = len(jax.tree.leaves(data)[0])

        def step(carry, indices):
            flat, state = carry
            minibatch = prepare(self.rows.take(data, indices))
            value, gradient = self.rows.mean_and_gradient(losses, flat, unravel, minibatch)
            norm = jnp.linalg.norm(gradient)
            direction, state = adam_step(self._clip(gradient, norm), state)
            return (flat - learning_rate * direction, state), (value, norm)

        def epoch(carry, epoch_key):
            flat, state, stopped = carry
            parts = self.rows.minibatches(epoch_key, num_rows, self.num_minibatches)
            (new, new_state), traces = jax.lax.scan(step, (flat, state), parts)
            if stop is None:
                return (new, new_state, stopped), (*traces, jnp.array(True))
            # A scan has a fixed length: epochs after the stop are computed and thrown away.
            flat, state = jax.tree.map(
                lambda old, new: jnp.where(stopped, old, new), (flat, state), (new, new_state)
            )
            return (flat, state, stopped | stop(unravel(flat))), (*traces, ~stopped)

        keys = jax.random.split(key, self.num_epochs)
        (flat, state, _), (means, norms, ran) = jax.lax.scan(
            epoch, (start, state, jnp.array(False)), keys
        )
        # The sum is never zero, because the first epoch always counts.
        share = ran / jnp.sum(ran)
        descent = Descent(jnp.mean(means, 1) @ share, jnp.mean(norms, 1) @ share, jnp.sum(ran))
        return unravel(flat), state, descent


def descent_metrics(descent: Descent, learning_rate: float | Float[Array, ""]) -> dict[str, Any]:
    """The metrics that every descending rule logs."""
    return {
        "update/loss": descent.loss,
        "update/gradient_norm": descent.gradient_norm,
        "update/epochs": descent.epochs,
        "update/learning_rate": learning_rate,
    }
