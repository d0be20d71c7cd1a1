"""The critic: V fitted to the value targets, alone or inside the policy's descent."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from surefoot.config.settings import Critic
from surefoot.formulas.clipping import value_losses
from surefoot.formulas.surrogate import counted, weighted_mean
from surefoot.rules.minibatch_adam import descend, start_descent
from surefoot.types import Batch, Params


def critic_losses(
    config: Critic, value_fn: Callable[[Params, Any], Float[Array, " batch"]]
) -> Callable[[Params, Batch], Float[Array, " batch"]]:
    """The critic's loss in each row of a minibatch, whose mean is to be minimised."""

    def losses(params: Params, rows: Batch) -> Float[Array, " batch"]:
        old_values, targets = (counted(x, rows.weights) for x in (rows.values, rows.value_targets))
        values = value_fn(params, rows.inputs)
        return value_losses(values, old_values, targets, value_clip=config.value_clip)

    return losses


def start_critic(config: Critic, params: Params) -> dict[str, Any]:
    """The state of a critic that is fitted on its own."""
    adam = start_descent(params, max_grad_norm=config.max_grad_norm)
    return {"count": jnp.int32(0), "adam": adam}


def fit_critic(
    config: Critic,
    value_fn: Callable[[Params, Any], Float[Array, " batch"]],
    num_updates: int,
    state: dict[str, Any],
    params: Params,
    batch: Batch,
    key: Key[Array, ""],
    *,
    blocks: int = 1,
) -> tuple[Params, dict[str, Any], dict[str, Array]]:
    """Some epochs of minibatch Adam on the value loss."""
    rate_at = optax.linear_schedule(config.learning_rate, config.learning_rate_end, num_updates)
    learning_rate = jnp.asarray(rate_at(state["count"]))
    rows = batch._replace(return_scale=None)
    losses = critic_losses(config, value_fn)
    params, adam, descent = descend(
        lambda params, rows: (losses(params, rows), rows.weights),
        params,
        state["adam"],
        rows,
        key,
        learning_rate=learning_rate,
        settings=config,
        blocks=blocks,
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
