"""What replaces the constraint: a clip of the ratio, or a penalty on KL; and the clipped value."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from surefoot.config.validation import is_off


def clipped_gains(
    ratio: Float[Array, " batch"],
    advantages: Float[Array, " batch"],
    *,
    clip_eps: float | Float[Array, ""],
) -> Float[Array, " batch"]:
    """The gain min(r A, clip(r, 1 - ε, 1 + ε) A) of each row, whose mean is to be maximised.

    That mean is at most the surrogate, with the surrogate's gradient at the old policy. It bounds
    neither the ratio nor KL: where it is flat, nothing pulls a policy back. Advantages and ratios
    must be finite in rows of weight 0 too (`counted`), or the gradient is not.

    Source: Schulman et al. 2017, arXiv:1707.06347, eq. 7.
    """
    clipped_ratio = jnp.clip(ratio, 1.0 - clip_eps, 1.0 + clip_eps)
    # The min, not the clip, makes this pessimistic: when the ratio strays in the direction that
    # hurts (A > 0, r < 1 - ε) the gradient must survive to undo it.
    return jnp.minimum(ratio * advantages, clipped_ratio * advantages)


def kl_penalized_gains(
    ratio: Float[Array, " batch"],
    advantages: Float[Array, " batch"],
    kl_rows: Float[Array, " batch"],
    *,
    kl_coef: float | Float[Array, ""],
) -> Float[Array, " batch"]:
    """The gain r A - β KL(old || new) of each row, whose mean is to be maximised.

    Source: Schulman et al. 2017, arXiv:1707.06347, eq. 8.
    """
    return ratio * advantages - kl_coef * kl_rows


def adapt_kl_coef(
    kl_coef: Float[Array, ""], kl_mean: Float[Array, ""], *, target_kl: float | Float[Array, ""]
) -> Float[Array, ""]:
    """The paper's rule: double β when KL exceeded 1.5 targets, halve it below target / 1.5.

    β stays within [1e-4, 1e4], so that a policy that cannot move does not send it to 0 and one
    that jumped once is not held for ever.

    Source: Schulman et al. 2017, arXiv:1707.06347, section 4.
    """
    factor = jnp.where(kl_mean > 1.5 * target_kl, 2.0, 1.0)
    factor = jnp.where(kl_mean < target_kl / 1.5, 0.5, factor)
    return jnp.clip(kl_coef * factor, 1e-4, 1e4)


def value_losses(
    values: Float[Array, " batch"],
    old_values: Float[Array, " batch"],
    value_targets: Float[Array, " batch"],
    *,
    value_clip: float | Float[Array, ""],
) -> Float[Array, " batch"]:
    """Half the squared error of V in each row; clipped when `value_clip` is above 0.

    The clipped form takes the larger of the error and the error of a value held within
    `value_clip` of the old one.

    Source: Schulman et al. 2017's released code; Engstrom et al. 2020, arXiv:2005.12729.
    """
    errors = (values - value_targets) ** 2
    if not is_off(value_clip):
        held = old_values + jnp.clip(values - old_values, -value_clip, value_clip)
        errors = jnp.maximum(errors, (held - value_targets) ** 2)
    return 0.5 * errors
