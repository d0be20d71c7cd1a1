"""TRPO: the natural step, shortened until true KL is inside the radius and the surrogate gains."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from surefoot.config.settings import TRPO
from surefoot.formulas.line_search import ACCEPTED, NO_GRADIENT, backtrack
from surefoot.formulas.trust_region import mean_kl
from surefoot.rules.base import PolicyFn, decayed, reference, total_kl
from surefoot.rules.natural_step import natural_step, natural_step_metrics, objective
from surefoot.rules.rows import AllRows, Rows
from surefoot.types import UpdateRule

AIM = 0.9
"""Share of the radius the full step aims at: at 1 half of all full steps miss by a hair."""


def trpo(
    config: TRPO,
    policy_fn: PolicyFn,
    num_updates: float | Float[Array, ""],
    critic_losses: None = None,
    rows: Rows = AllRows(),  # noqa: B008  (stateless)
) -> UpdateRule:
    """Maximise the surrogate within mean KL(old || new) <= max_kl.

    Where no trial of the line search passes, the parameters are returned bit for bit.

    Source: Schulman et al. 2015, arXiv:1502.05477, eq. 14 and appendix C.
    """

    def update(state, params, batch, key):
        old, batch = reference(config, policy_fn, params, batch)
        max_kl = total_kl(config, config.max_kl, old)
        radius = decayed(max_kl, config.final_fraction, state["count"], num_updates)
        natural = natural_step(
            config,
            policy_fn,
            params,
            batch,
            key,
            rows=rows,
            # With the damping in its length, a full step stops short of the radius by itself.
            radius=radius if config.damped_scale else AIM * radius,
            boundary_damping=config.damping if config.damped_scale else 0.0,
        )
        old_objective = objective(config, old, batch)

        def at(fraction):
            return jax.tree.map(lambda p, s: p + fraction * s, params, natural.step)

        def evaluate(fraction):
            new = policy_fn(at(fraction), batch.inputs)
            return objective(config, new, batch) - old_objective, mean_kl(old, new, batch.weights)

        step = backtrack(
            evaluate,
            max_kl=radius,
            backtrack_coeff=config.backtrack_coeff,
            max_backtracks=config.max_backtracks,
        )
        # Not by a fraction of 0: that times a step that is not finite would be NaN.
        new_params = jax.tree.map(
            lambda new, old: jnp.where(step.accepted, new, old), at(step.fraction), params
        )
        outcome = jnp.where(natural.gradient_norm == 0, NO_GRADIENT, step.outcome)
        info = natural_step_metrics(natural, step.fraction, radius) | {
            "update/accepted": (outcome == ACCEPTED).astype(jnp.int32),
            "update/outcome": outcome,
            "update/backtracks": step.tries - 1,
            "update/kl_full_step": step.full_kl,
        }
        return new_params, {"count": state["count"] + 1}, info

    return UpdateRule(lambda params: {"count": jnp.int32(0)}, update)
