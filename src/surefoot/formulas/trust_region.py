"""The trust region: how far a policy is from the old one, and the length of a step to its edge."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from surefoot.formulas.distributions import kl
from surefoot.formulas.surrogate import weighted_mean
from surefoot.types import Params


def mean_kl(old: Any, new: Any, weights: Float[Array, " batch"]) -> Float[Array, ""]:
    """Mean over states of KL(old || new), in nats: what TRPO constrains.

    Source: Schulman et al. 2015, arXiv:1502.05477, section 4.
    """
    return weighted_mean(kl(old, new), weights)


def worst_kl(old: Any, new: Any, weights: Float[Array, " batch"]) -> Float[Array, ""]:
    """Largest KL(old || new) over the batch's states, in nats: what the theorem constrains.

    A maximum over a sample is a lower estimate and grows with the sample.
    """
    return jnp.max(jnp.where(weights > 0, kl(old, new), 0.0))


def boundary_scale(
    curvature: Float[Array, ""], *, radius: float | Float[Array, ""]
) -> Float[Array, ""]:
    """Factor that takes a direction x with xᵀFx = `curvature` to quadratic KL = `radius`.

    Where a line search follows, the undamped curvature belongs here: the damped one stops well
    short of the radius.

    Source: Schulman et al. 2015, arXiv:1502.05477, appendix C.
    """
    return jnp.sqrt(2.0 * radius / jnp.where(curvature > 0, curvature, 1.0))


def interpolate(old: Params, new: Params, fraction: float | Float[Array, ""]) -> Params:
    """Parameters on the straight line from old to new: bit for bit the old at 0, the new at 1."""

    def between(a: Array, b: Array) -> Array:
        # A new one that is not finite must not reach the old ones through a product with 0.
        return jnp.where(fraction == 0.0, a, jnp.where(fraction == 1.0, b, a + fraction * (b - a)))

    return jax.tree.map(between, old, new)
