"""A guard around any rule: a step walked back along its own path, or not taken at all."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
from scipy import special

from surefoot.formulas.trust_region import mean_kl, worst_kl
from surefoot.types import Batch, Inputs, Params

SHORTEN = 0.5
"""Factor between two tries; the first comes from the quadratic model of KL."""
MOST_TRIES = 30
REMEMBERED = 10
"""Updates whose cross-fit promises are averaged before a step is refused."""


def walk_back(
    policy_fn: Callable[[Params, Inputs], Any],
    old_policy: Params,
    new_policy: Params,
    batch: Batch,
    *,
    max_kl: float,
    max_worst_kl: float,
) -> Float[Array, ""]:
    """Share of the step at the farthest try on the straight way inside both radii.

    The full step comes first: 1 where it is inside. From a step outside, KL taken for quadratic
    gives the next try, and halves follow. 0 where none of the tries is inside, or KL is not finite.

    Args:
        policy_fn: the policy.
        old_policy: its parameters before the step.
        new_policy: its parameters after it.
        batch: the rows whose states count.
        max_kl: radius of mean KL(old || new), in nats.
        max_worst_kl: radius of the batch's worst state, in nats.
    """
    old = policy_fn(old_policy, batch.inputs)

    def excess(fraction: Float[Array, ""]) -> Float[Array, ""]:
        """The larger of both KLs over their radii: above 1 is outside."""
        new = policy_fn(part_way(old_policy, new_policy, fraction), batch.inputs)
        return jnp.maximum(
            mean_kl(old, new, batch.weights) / max_kl,
            worst_kl(old, new, batch.weights) / max_worst_kl,
        )

    def outside(carry: Any) -> Bool[Array, ""]:
        _, found, tries = carry
        return ~(found <= 1.0) & (tries < MOST_TRIES)

    def shorten(carry: Any) -> Any:
        fraction, found, tries = carry
        by_model = jnp.where(jnp.isfinite(found), 0.98 / jnp.sqrt(found), SHORTEN)
        factor = jnp.where(tries == 0, jnp.clip(by_model, 1e-4, 0.98), SHORTEN)
        return fraction * factor, excess(fraction * factor), tries + 1

    one = jnp.ones(())
    fraction, found, _ = jax.lax.while_loop(outside, shorten, (one, excess(one), jnp.int32(0)))
    return jnp.where(found <= 1.0, fraction, 0.0)


def part_way(old: Params, new: Params, fraction: Float[Array, ""]) -> Params:
    """Parameters on the straight way from old to new; bit for bit the old ones at 0, new at 1."""

    def between(a: Array, b: Array) -> Array:
        # A new one that is not finite must not reach the old ones through a product with 0.
        return jnp.where(fraction == 0.0, a, jnp.where(fraction == 1.0, b, a + fraction * (b - a)))

    return jax.tree.map(between, old, new)


def remember(
    promises: Float[Array, " update"], newest: Float[Array, ""]
) -> Float[Array, " update"]:
    """The last promises with one more; NaN stands for none."""
    return jnp.concatenate([promises[1:], newest[None]])


def is_hopeless(promises: Float[Array, " update"]) -> Bool[Array, ""]:
    """Whether the mean of the remembered promises is negative beyond its 95 % interval.

    Never before all of them are there: fewer say too little.
    """
    count = promises.shape[0]
    error = jnp.std(promises, ddof=1) / count**0.5
    high = jnp.mean(promises) + float(special.stdtrit(count - 1, 0.975)) * error
    return high < 0.0
