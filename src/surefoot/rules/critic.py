"""The critic: V fitted to the value targets, alone or inside the policy's descent."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from surefoot.config.settings import Critic
from surefoot.formulas.clipping import value_losses
from surefoot.formulas.surrogate import counted, weighted_mean
from surefoot.rules.base import decayed
from surefoot.rules.minibatch_adam import MinibatchAdam
from surefoot.rules.rows import AllRows, Rows
from surefoot.types import Batch, Params

ValueFn = Callable[[Params, Any], Float[Array, " batch"]]
"""`value_fn(params, inputs) -> V` of each row."""


def critic_losses(
    config: Critic, value_fn: ValueFn
) -> Callable[[Params, Batch], Float[Array, " batch"]]:
    """The critic's loss in each row of a minibatch, whose mean is to be minimised."""

    def losses(params: Params, rows: Batch) -> Float[Array, " batch"]:
        old_values, targets = (counted(x, rows.weights) for x in (rows.values, rows.value_targets))
        values = value_fn(params, rows.inputs)
        return value_losses(values, old_values, targets, value_clip=config.value_clip)

    return losses


def _adam(config: Critic, rows: Rows) -> MinibatchAdam:
    return MinibatchAdam(config.num_epochs, config.num_minibatches, config.max_grad_norm, rows)


def start_critic(config: Critic, params: Params) -> dict[str, Any]:
    """The optimiser's state of a critic that is fitted on its own."""
    return {"count": jnp.int32(0), "adam": _adam(config, AllRows()).init(params)}


def fit_critic(
    config: Critic,
    value_fn: ValueFn,
    num_updates: float | Float[Array, ""],
    state: dict[str, Any],
    params: Params,
    batch: Batch,
    key: Key[Array, ""],
    rows: Rows,
) -> tuple[Params, dict[str, Any], dict[str, Array]]:
    """Some epochs of minibatch Adam on the value loss."""
    learning_rate = decayed(
        config.learning_rate, config.final_fraction, state["count"], num_updates
    )
    losses = critic_losses(config, value_fn)
    params, adam, descent = _adam(config, rows).minimise(
        lambda params, rows: (losses(params, rows), rows.weights),
        params,
        state["adam"],
        # Minibatches take rows of every leaf, and the scale of returns has none.
        batch._replace(return_scale=None),
        key,
        learning_rate=learning_rate,
    )
    info = {"critic/loss": descent.loss, "critic/gradient_norm": descent.gradient_norm}
    return params, {"count": state["count"] + 1, "adam": adam}, info


def explained_variance(
    values: Float[Array, " batch"],
    value_targets: Float[Array, " batch"],
    weights: Float[Array, " batch"],
) -> Float[Array, ""]:
    """1 - Var(target - V) / Var(target): 1 is perfect, 0 no better than a constant, below worse.

    In sample, so it flatters; 0 where the targets do not vary.
    """

    def variance(x):
        return weighted_mean((x - weighted_mean(x, weights)) ** 2, weights)

    total = variance(value_targets)
    explained = 1.0 - variance(value_targets - values) / jnp.where(total > 0, total, 1.0)
    return jnp.where(total > 0, explained, 0.0)
