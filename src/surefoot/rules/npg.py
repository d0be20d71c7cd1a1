"""Natural policy gradient: the tangent direction in the geometry of distributions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Key

from surefoot.config.settings import NPG, TRPO
from surefoot.formulas.conjugate_gradient import (
    Solution,
    conjugate_gradient,
    fisher_vector_product,
    quadratic_form,
)
from surefoot.formulas.surrogate import scale_advantages, surrogate, weighted_mean
from surefoot.formulas.trust_region import boundary_scale
from surefoot.parallel.rows import copying, take
from surefoot.parallel.shuffle import shuffled
from surefoot.types import Batch, Params, UpdateRule


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
    if config.ent_coef > 0:
        gain += config.ent_coef * weighted_mean(new.entropy(), batch.weights)
    return gain


def reference(
    config: NPG | TRPO, policy_fn: Callable[[Params, Any], Any], params: Params, batch: Batch
) -> tuple[Any, Batch]:
    """The old distribution, and the batch with its log-probabilities and scaled advantages."""
    old = policy_fn(params, batch.inputs)
    advantages = scale_advantages(batch.advantages, batch.weights, norm=config.advantage_norm)
    return old, batch._replace(old_log_probs=old.log_prob(batch.actions), advantages=advantages)


def natural_step(
    config: NPG | TRPO,
    policy_fn: Callable[[Params, Any], Any],
    params: Params,
    batch: Batch,
    key: Key[Array, ""],
    *,
    radius: Float[Array, ""],
    boundary_damping: float = 0.0,
    blocks: int = 1,
) -> NaturalStep:
    """Solve (F + damping I)x = g on a random share of the states, then scale x on all of them.

    States are drawn at random over time and environments: whole episodes would give a curvature
    of the wrong states. The scale comes from all rows, so that the share costs no accuracy of KL:
    ½xᵀ(F + boundary_damping I)x = radius. As many states are drawn of each of the `blocks`.
    """
    flat, unravel = ravel_pytree(params)
    copies = copying(unravel, blocks)

    def policy_of(x: Float[Array, " param"], inputs: Any) -> Any:
        return policy_fn(copies(x), inputs)

    gradient = jax.grad(lambda x: objective(config, policy_of(x, batch.inputs), batch))(flat)
    inputs, weights = batch.inputs, batch.weights
    in_block = weights.shape[0] // blocks
    num_states = max(1, round(config.fisher_fraction * in_block))
    if num_states < in_block:
        chosen = shuffled(key, weights.shape[0], blocks)[:, :num_states].reshape(-1)
        inputs, weights = take((inputs, weights), chosen, blocks)
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


def report_step(
    natural: NaturalStep, fraction: Float[Array, ""], radius: Float[Array, ""]
) -> dict[str, Array]:
    """The metrics both natural rules log; `fraction` of the step was taken."""
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


def npg(
    config: NPG,
    policy_fn: Callable[[Params, Any], Any],
    num_updates: int,
    critic_losses: None = None,
    *,
    blocks: int = 1,
) -> UpdateRule:
    """One natural step to the radius of the quadratic model, unchecked.

    With nothing to check it, its length is measured with the damping: near a deterministic
    policy F vanishes, and a radius in F alone would let the parameters move without bound.

    Source: Kakade 2001, "A natural policy gradient", eq. 3, scaled as Schulman et al. 2015.
    """
    radius_at = optax.linear_schedule(config.max_kl, config.max_kl_end, num_updates)

    def update(state, params, batch, key):
        radius = jnp.asarray(radius_at(state["count"]))
        _, batch = reference(config, policy_fn, params, batch)
        natural = natural_step(
            config,
            policy_fn,
            params,
            batch,
            key,
            radius=radius,
            boundary_damping=config.damping,
            blocks=blocks,
        )
        params = jax.tree.map(jnp.add, params, natural.step)
        info = report_step(natural, jnp.ones(()), radius)
        return params, {"count": state["count"] + 1}, info

    return UpdateRule(lambda params: {"count": jnp.int32(0)}, update)
