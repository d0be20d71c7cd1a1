"""The natural gradient step: the tangent direction in the geometry of distributions, F⁻¹g."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Key

from surefoot.config.settings import NPG, TRPO
from surefoot.config.validation import is_off
from surefoot.formulas.conjugate_gradient import (
    Solution,
    conjugate_gradient,
    fisher_vector_product,
    quadratic_form,
)
from surefoot.formulas.surrogate import surrogate, weighted_mean
from surefoot.formulas.trust_region import boundary_scale
from surefoot.rules.base import PolicyFn
from surefoot.rules.rows import Rows
from surefoot.types import Batch, Params


class NaturalStep(NamedTuple):
    """F⁻¹g, scaled to the radius. `curvature` is xᵀFx of the step, undamped, over all rows."""

    step: Params
    curvature: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    solution: Solution


def objective(config: NPG | TRPO, new: Any, batch: Batch) -> Float[Array, ""]:
    """The surrogate, with an optional entropy bonus; to be maximised."""
    gain = surrogate(
        new.log_prob(batch.actions), batch.old_log_probs, batch.advantages, batch.weights
    )
    if is_off(config.ent_coef):
        return gain
    return gain + config.ent_coef * weighted_mean(new.entropy(), batch.weights)


def natural_step(
    config: NPG | TRPO,
    policy_fn: PolicyFn,
    params: Params,
    batch: Batch,
    key: Key[Array, ""],
    *,
    rows: Rows,
    radius: float | Float[Array, ""],
    boundary_damping: float | Float[Array, ""] = 0.0,
) -> NaturalStep:
    """Solve (F + damping I)x = g on a random share of the states, then scale x on all of them.

    States are drawn at random over time and environments: whole episodes would give a curvature
    of the wrong states. The scale comes from all rows, so that the share costs no accuracy of KL:
    ½xᵀ(F + boundary_damping I)x = radius.
    """
    flat, unravel = ravel_pytree(params)

    def policy_of(flat: Float[Array, " param"], inputs: Any) -> Any:
        return rows.apply(lambda flat, inputs: policy_fn(unravel(flat), inputs), flat, inputs)

    gradient = jax.grad(lambda x: objective(config, policy_of(x, batch.inputs), batch))(flat)
    inputs, weights = batch.inputs, batch.weights
    chosen = rows.sample(key, len(weights), config.fisher_fraction)
    if chosen is not None:
        inputs, weights = rows.take((inputs, weights), chosen)
    product = fisher_vector_product(policy_of, flat, inputs, weights)
    solution = conjugate_gradient(
        lambda v: product(v) + config.damping * v,
        gradient,
        max_iters=config.cg_iters,
        tolerance=config.cg_tolerance,
    )
    curvature = quadratic_form(policy_of, flat, batch.inputs, batch.weights, solution.x)
    squared = jnp.sum(solution.x**2)
    scale = boundary_scale(curvature + boundary_damping * squared, radius=radius)
    return NaturalStep(
        unravel(scale * solution.x), scale**2 * curvature, jnp.linalg.norm(gradient), solution
    )


def natural_step_metrics(
    natural: NaturalStep, fraction: float | Float[Array, ""], radius: Float[Array, ""]
) -> dict[str, Any]:
    """The metrics that npg and trpo log; `fraction` of the step was taken."""
    step, _ = ravel_pytree(natural.step)
    return {
        "update/gradient_norm": natural.gradient_norm,
        "update/step_norm": fraction * jnp.linalg.norm(step),
        "update/natural_norm": fraction * jnp.sqrt(natural.curvature),
        "update/kl_quadratic": 0.5 * fraction**2 * natural.curvature,
        "update/cg_residual": natural.solution.residual,
        "update/cg_iterations": natural.solution.iterations,
        "update/radius": radius,
    }
