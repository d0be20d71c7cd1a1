"""TRPO: the natural step, shortened until true KL is inside the radius and something gained."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from surefoot.config.settings import TRPO
from surefoot.formulas.trust_region import ACCEPTED, NO_GRADIENT, backtrack, mean_kl
from surefoot.rules.npg import natural_step, objective, reference, report_step
from surefoot.types import Params, UpdateRule

AIM = 0.9
"""Share of the radius the full step aims at: at 1 half of all full steps miss by a hair."""
MOST_CHANGE = 2.0
"""Largest factor between two adaptive radii: one probe is right in the median, not in the tails."""
RADII = (1e-6, 1.0)
"""Bounds of an adaptive radius, in nats."""


def trpo(
    config: TRPO,
    policy_fn: Callable[[Params, Any], Any],
    num_updates: int,
    critic_losses: None = None,
    *,
    blocks: int = 1,
) -> UpdateRule:
    """Maximise the surrogate within mean KL(old || new) <= max_kl.

    Where no try of the line search passes, the parameters come back bit for bit. An adaptive
    radius starts at `max_kl` and goes where `steer` tells it.

    Source: Schulman et al. 2015, arXiv:1502.05477, eq. 14 and appendix C.
    """
    radius_at = optax.linear_schedule(config.max_kl, config.max_kl_end, num_updates)
    adaptive = config.radius == "adaptive"

    def init(params):
        start = {"radius": jnp.asarray(config.max_kl)} if adaptive else {}
        return {"count": jnp.int32(0), **start}

    def steer(state, radius):
        held = jnp.clip(radius, state["radius"] / MOST_CHANGE, state["radius"] * MOST_CHANGE)
        return {**state, "radius": jnp.clip(held, *RADII)}

    def update(state, params, batch, key):
        radius = state["radius"] if adaptive else jnp.asarray(radius_at(state["count"]))
        old, batch = reference(config, policy_fn, params, batch)
        natural = natural_step(
            config, policy_fn, params, batch, key, radius=AIM * radius, blocks=blocks
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
        params = jax.tree.map(
            lambda new, old: jnp.where(step.accepted, new, old), at(step.fraction), params
        )
        outcome = jnp.where(natural.gradient_norm == 0, NO_GRADIENT, step.outcome)
        info = report_step(natural, step.fraction, radius) | {
            "update/accepted": (outcome == ACCEPTED).astype(jnp.int32),
            "update/outcome": outcome,
            "update/backtracks": step.tries - 1,
            "update/kl_full_step": step.full_kl,
        }
        return params, {**state, "count": state["count"] + 1}, info

    return UpdateRule(init, update, steer if adaptive else None)
