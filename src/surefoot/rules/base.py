"""What the rules share: the old policy as reference, a linear decay, and the shape of a descent."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from surefoot.formulas.surrogate import entropy_bonus, scale_advantages, standardize
from surefoot.formulas.trust_region import mean_kl
from surefoot.rules.minibatch_adam import MinibatchAdam, descent_metrics
from surefoot.types import Batch, Params, UpdateRule

PolicyFn = Callable[[Params, Any], Any]
"""`policy_fn(params, inputs) -> distribution`."""
CriticLosses = Callable[[Params, Any], Float[Array, " batch"]]
"""`critic_losses(params, rows)`: a joint critic's loss in each row, already weighted."""


def decayed(
    start: float | Float[Array, ""],
    final_fraction: float | Float[Array, ""],
    count: Int[Array, ""],
    num_updates: float | Float[Array, ""],
) -> Float[Array, ""]:
    """A step size or radius that falls linearly from `start` to `final_fraction` of it."""
    left = 1 - jnp.clip(count, 0, num_updates) / num_updates
    end = final_fraction * start
    return (start - end) * left + end


def total_kl(config: Any, kl: float | Float[Array, ""], old: Any) -> float | Float[Array, ""]:
    """A radius or target in nats of the whole action, as the KL that it is compared with.

    With `kl_per_dimension`, `kl` is a dimension's: a step then moves each mean by the same part of
    its standard deviation, however many dimensions there are.
    """
    return kl * old.dimensions if config.kl_per_dimension else kl


def reference(config: Any, policy_fn: PolicyFn, params: Params, batch: Batch) -> tuple[Any, Batch]:
    """The old distribution, and the batch with its log-probabilities and scaled advantages.

    Both are recomputed from `params`, so that the ratio is exactly 1 before the first step.
    """
    old = policy_fn(params, batch.inputs)
    advantages = scale_advantages(batch.advantages, batch.weights, norm=config.advantage_norm)
    return old, batch._replace(old_log_probs=old.log_prob(batch.actions), advantages=advantages)


def descending(
    config: Any,
    policy_fn: PolicyFn,
    num_updates: float | Float[Array, ""],
    critic_losses: CriticLosses | None,
    adam: MinibatchAdam,
    gains: Callable[[Any, Any, Batch, Any], Float[Array, " batch"]],
    *,
    stop_kl: float | Float[Array, ""] | None = None,
) -> UpdateRule:
    """A rule that maximises the mean of `gains` by minibatch Adam, with an entropy bonus.

    Args:
        config: settings with `learning_rate`, `final_fraction`, `advantage_norm`, `ent_coef`.
        policy_fn: the policy.
        num_updates: updates of the run, over which the learning rate decays.
        critic_losses: the critic's loss where it is fitted in the same descent.
        adam: the optimiser.
        gains: `gains(state, new, rows, old)`, the gain of each row, to be maximised.
        stop_kl: mean KL(old || new), in nats, beyond which the remaining epochs are skipped.
    """

    def init(params: Params) -> dict[str, Any]:
        return {"count": jnp.int32(0), "adam": adam.init(params)}

    def update(state, params, batch, key):
        old, data = reference(config, policy_fn, params, batch)
        learning_rate = decayed(
            config.learning_rate, config.final_fraction, state["count"], num_updates
        )

        def losses(params, minibatch):
            rows, old_rows = minibatch
            new = policy_fn(params, rows.inputs)
            loss = -gains(state, new, rows, old_rows)
            loss -= entropy_bonus(new, ent_coef=config.ent_coef)
            if critic_losses is not None:
                loss += critic_losses(params, rows)
            return loss, rows.weights

        def too_far(params):
            return mean_kl(old, policy_fn(params, batch.inputs), batch.weights) > stop_kl  # type: ignore[operator]

        how = {"prepare": _standardize_advantages} if config.advantage_norm == "minibatch" else {}
        params, state_, descent = adam.minimise(
            losses,
            params,
            state["adam"],
            # Minibatches take rows of every leaf, and the scale of returns has none.
            (data._replace(return_scale=None), old),
            key,
            learning_rate=learning_rate,
            stop=None if stop_kl is None else too_far,
            **how,
        )
        new_state = {**state, "count": state["count"] + 1, "adam": state_}
        return params, new_state, descent_metrics(descent, learning_rate)

    return UpdateRule(init, update)


def _standardize_advantages(minibatch: tuple[Batch, Any]) -> tuple[Batch, Any]:
    rows, old = minibatch
    return rows._replace(advantages=standardize(rows.advantages, rows.weights)), old
