"""PPO's two rungs: a penalty on KL with an adaptive weight, and a clip of the ratio."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from surefoot.config.settings import PPO, PPOKL
from surefoot.formulas.clipping import adapt_kl_coef, clipped_gains, kl_penalized_gains
from surefoot.formulas.distributions import kl
from surefoot.formulas.surrogate import (
    entropy_bonus,
    likelihood_ratio,
    scale_advantages,
    standardize,
)
from surefoot.formulas.trust_region import mean_kl
from surefoot.rules.minibatch_adam import descend, report, start_descent
from surefoot.types import Batch, Params, UpdateRule


def _start(config: PPO | PPOKL, params: Params) -> dict[str, Any]:
    adam = start_descent(params, max_grad_norm=config.max_grad_norm)
    return {"count": jnp.int32(0), "adam": adam}


def _reference(
    config: PPO | PPOKL, policy_fn: Callable[[Params, Any], Any], params: Params, batch: Batch
) -> tuple[Any, Batch]:
    """The old distribution, and the rows to descend on."""
    old = policy_fn(params, batch.inputs)
    return old, batch._replace(
        return_scale=None,
        old_log_probs=old.log_prob(batch.actions),
        advantages=scale_advantages(batch.advantages, batch.weights, norm=config.advantage_norm),
    )


def _advantages(config: PPO | PPOKL, rows: Batch) -> Float[Array, " batch"]:
    if config.advantage_norm == "minibatch":
        return standardize(rows.advantages, rows.weights)
    return rows.advantages


def ppo_kl(
    config: PPOKL,
    policy_fn: Callable[[Params, Any], Any],
    num_updates: int,
    critic_losses: Callable[[Params, Any], Any] | None = None,
    *,
    blocks: int = 1,
) -> UpdateRule:
    """Descend -E[r A] + β KL(old || new), and adapt β to the KL that came out.

    Source: Schulman et al. 2017, arXiv:1707.06347, section 4.
    """
    learning_rate_at = optax.linear_schedule(
        config.learning_rate, config.learning_rate_end, num_updates
    )

    def update(state, params, batch, key):
        old, rows = _reference(config, policy_fn, params, batch)
        learning_rate = jnp.asarray(learning_rate_at(state["count"]))

        def loss(params, minibatch):
            rows, old_rows = minibatch
            new = policy_fn(params, rows.inputs)
            ratio = likelihood_ratio(new.log_prob(rows.actions), rows.old_log_probs)
            gains = kl_penalized_gains(
                ratio, _advantages(config, rows), kl(old_rows, new), kl_coef=state["kl_coef"]
            )
            gains += entropy_bonus(new, ent_coef=config.ent_coef)
            return -gains + (critic_losses(params, rows) if critic_losses else 0.0), rows.weights

        params, adam, descent = descend(
            loss,
            params,
            state["adam"],
            (rows, old),
            key,
            learning_rate=learning_rate,
            settings=config,
            blocks=blocks,
        )
        kl_mean = mean_kl(old, policy_fn(params, batch.inputs), batch.weights)
        kl_coef = adapt_kl_coef(state["kl_coef"], kl_mean, target_kl=config.target_kl)
        info = report(descent, learning_rate) | {"update/kl_coef": state["kl_coef"]}
        return params, {"count": state["count"] + 1, "adam": adam, "kl_coef": kl_coef}, info

    return UpdateRule(
        lambda params: _start(config, params) | {"kl_coef": jnp.asarray(config.kl_coef)}, update
    )


def ppo(
    config: PPO,
    policy_fn: Callable[[Params, Any], Any],
    num_updates: int,
    critic_losses: Callable[[Params, Any], Any] | None = None,
    *,
    blocks: int = 1,
) -> UpdateRule:
    """Descend the clipped surrogate for some epochs, with an optional stop on KL.

    Source: Schulman et al. 2017, arXiv:1707.06347, algorithm 1.
    """
    learning_rate_at = optax.linear_schedule(
        config.learning_rate, config.learning_rate_end, num_updates
    )
    clip_eps_at = optax.linear_schedule(config.clip_eps, config.clip_eps_end, num_updates)

    def update(state, params, batch, key):
        old, rows = _reference(config, policy_fn, params, batch)
        learning_rate = jnp.asarray(learning_rate_at(state["count"]))
        clip_eps = jnp.asarray(clip_eps_at(state["count"]))

        def loss(params, rows):
            new = policy_fn(params, rows.inputs)
            ratio = likelihood_ratio(new.log_prob(rows.actions), rows.old_log_probs)
            gains = clipped_gains(ratio, _advantages(config, rows), clip_eps=clip_eps)
            gains += entropy_bonus(new, ent_coef=config.ent_coef)
            return -gains + (critic_losses(params, rows) if critic_losses else 0.0), rows.weights

        def too_far(params):
            new = policy_fn(params, batch.inputs)
            return mean_kl(old, new, batch.weights) > 1.5 * config.target_kl

        params, adam, descent = descend(
            loss,
            params,
            state["adam"],
            rows,
            key,
            learning_rate=learning_rate,
            settings=config,
            stop=too_far if config.target_kl > 0 else None,
            blocks=blocks,
        )
        info = report(descent, learning_rate) | {"update/clip_eps": clip_eps}
        return params, {"count": state["count"] + 1, "adam": adam}, info

    return UpdateRule(lambda params: _start(config, params), update)
