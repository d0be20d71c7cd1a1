"""The surrogate L: the tangent plane to the return at the old policy."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from surefoot.config.validation import is_off

MAX_LOG_RATIO = 80.0
"""Beyond this a float32 ratio would overflow; the ratio is held there."""


def counted(
    values: Float[Array, "*columns batch"], weights: Float[Array, " batch"]
) -> Float[Array, "*columns batch"]:
    """`values` with 0 in rows of weight 0.

    To be taken before anything is computed from them: a value that is not finite would survive a
    weight of 0 in the gradient.
    """
    return jnp.where(weights > 0, values, 0.0)


def weighted_mean(
    values: Float[Array, "*columns batch"], weights: Float[Array, " batch"]
) -> Float[Array, "*columns"]:
    """Mean over rows, each counted `weights` times; 0 where no row counts.

    Every reduction over rows weighs them so: dummy rows and exact state weights are treated alike
    everywhere. A row of weight 0 adds nothing even where its value is not finite.
    """
    total = jnp.sum(weights)
    return jnp.sum(counted(values, weights) * weights, axis=-1) / jnp.where(total > 0, total, 1.0)


def likelihood_ratio(
    log_probs: Float[Array, " batch"], old_log_probs: Float[Array, " batch"]
) -> Float[Array, " batch"]:
    """π(a|s) / π_old(a|s) of the sampled actions; 1 at the old policy, to the bit."""
    return jnp.exp(jnp.clip(log_probs - old_log_probs, -MAX_LOG_RATIO, MAX_LOG_RATIO))


def surrogate(
    log_probs: Float[Array, " batch"],
    old_log_probs: Float[Array, " batch"],
    advantages: Float[Array, " batch"],
    weights: Float[Array, " batch"],
) -> Float[Array, ""]:
    """Importance-weighted mean advantage E[r A], to be maximised.

    Its gradient at the old policy is the policy gradient of the rows' state weighting; times the
    horizon it is the change that the tangent plane promises when E[A] = 0 under the old policy.

    Source: Schulman et al. 2015, arXiv:1502.05477, eq. 14, without the constant eta(π_old).
    """
    ratio = likelihood_ratio(log_probs, old_log_probs)
    return weighted_mean(ratio * counted(advantages, weights), weights)


def promised_gains(
    log_probs: Float[Array, " batch"],
    old_log_probs: Float[Array, " batch"],
    advantages: Float[Array, " batch"],
) -> Float[Array, " batch"]:
    """(r - 1) A of each row, whose mean is what the surrogate promises per step.

    Subtracting 1 removes the batch mean of A, which is noise and no policy's doing.
    """
    return (likelihood_ratio(log_probs, old_log_probs) - 1.0) * advantages


def entropy_bonus(
    new: Any, *, ent_coef: float | Float[Array, ""]
) -> float | Float[Array, " batch"]:
    """Entropy times its coefficient, to be added to each row's gain; free where it is 0."""
    return 0.0 if is_off(ent_coef) else ent_coef * new.entropy()


def scale_advantages(
    advantages: Float[Array, " batch"], weights: Float[Array, " batch"], *, norm: str
) -> Float[Array, " batch"]:
    """Advantages as a rule reads them: standardised over the batch where `norm` says so."""
    advantages = counted(advantages, weights)
    return standardize(advantages, weights) if norm == "batch" else advantages


def standardize(
    advantages: Float[Array, " batch"], weights: Float[Array, " batch"]
) -> Float[Array, " batch"]:
    """Advantages less their mean, over their standard deviation; all 0 where they do not vary.

    The spread is compared with the magnitude, not with a constant, so that rewards of 1e-6 and
    1e6 lead to the same step.
    """
    known = counted(advantages, weights)
    # Two sums in all, one of three columns: devices wait for each that they take by itself.
    sums = jnp.sum(jnp.stack([weights, known * weights, known**2 * weights]), axis=-1)
    total = jnp.where(sums[0] > 0, sums[0], 1.0)
    mean, scale = sums[1] / total, jnp.sqrt(sums[2] / total)
    std = jnp.sqrt(jnp.sum((known - mean) ** 2 * weights) / total)
    # Not `std > ...`: a NaN must come out as NaN and be refused, not pass for no variation.
    varies = ~(std <= 1e-6 * scale)
    return jnp.where(varies, (advantages - mean) / jnp.where(varies, std, 1.0), 0.0)
