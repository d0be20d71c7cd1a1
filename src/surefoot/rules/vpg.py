"""Vanilla policy gradient: one Adam step along the tangent direction, and hope."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import optax

from surefoot.config.settings import VPG
from surefoot.formulas.surrogate import entropy_bonus, scale_advantages
from surefoot.rules.minibatch_adam import descend, report, start_descent
from surefoot.types import Params, UpdateRule


def vpg(
    config: VPG,
    policy_fn: Callable[[Params, Any], Any],
    num_updates: int,
    critic_losses: Callable[[Params, Any], Any] | None = None,
    *,
    blocks: int = 1,
) -> UpdateRule:
    """One step on the whole batch along E[A grad log π(a|s)].

    Source: Williams 1992; Sutton et al. 2000, eq. 2.
    """
    learning_rate_at = optax.linear_schedule(
        config.learning_rate, config.learning_rate_end, num_updates
    )
    once = SimpleNamespace(num_epochs=1, num_minibatches=1, max_grad_norm=config.max_grad_norm)

    def init(params):
        return {
            "count": jnp.int32(0),
            "adam": start_descent(params, max_grad_norm=config.max_grad_norm),
        }

    def loss(params, rows):
        new = policy_fn(params, rows.inputs)
        gains = new.log_prob(rows.actions) * rows.advantages
        gains += entropy_bonus(new, ent_coef=config.ent_coef)
        return -gains + (critic_losses(params, rows) if critic_losses else 0.0), rows.weights

    def update(state, params, batch, key):
        advantages = scale_advantages(batch.advantages, batch.weights, norm=config.advantage_norm)
        rows = batch._replace(return_scale=None, advantages=advantages)
        learning_rate = jnp.asarray(learning_rate_at(state["count"]))
        params, adam, descent = descend(
            loss,
            params,
            state["adam"],
            rows,
            key,
            learning_rate=learning_rate,
            settings=once,
            blocks=blocks,
        )
        state = {"count": state["count"] + 1, "adam": adam}
        return params, state, report(descent, learning_rate)

    return UpdateRule(init, update)
