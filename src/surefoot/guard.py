"""A guard around any rule: a step walked back along its own path, or not taken at all."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
from scipy import special

from surefoot.trust_region import mean_kl, worst_kl
from surefoot.types import Batch, Inputs, Params

SHORTEN = 0.5
"""Factor between two tries; the first comes from the quadratic model of KL."""
MOST_TRIES = 30
REMEMBERED = 10
"""Updates whose cross-fit promises are averaged before a step is refused."""


class Walk(NamedTuple):
    """A step walked back: the policy there, and the share of the step that was kept."""

    policy: Params
    fraction: Float[Array, ""]


def walk_back(
    policy_fn: Callable[[Params, Inputs], Any],
    old_policy: Params,
    new_policy: Params,
    batch: Batch,
    *,
    max_kl: float,
    max_worst_kl: float,
) -> Walk:
    """The farthest try on the straight way to the new policy inside both radii.

    The full step comes first and is kept bit for bit where it is inside. From a step outside, KL
    taken for quadratic gives the next try, and halves follow. Where none of the tries is inside,
    or KL is not finite, the old policy comes back bit for bit.

    Args:
        policy_fn: the policy.
        old_policy: its parameters before the step.
        new_policy: its parameters after it.
        batch: the rows whose states count.
        max_kl: radius of mean KL(old || new), in nats.
        max_worst_kl: radius of the batch's worst state, in nats.
    """
    old = policy_fn(old_policy, batch.inputs)

    def at(fraction: Float[Array, ""]) -> Params:
        return part_way(old_policy, new_policy, fraction)

    def excess(fraction: Float[Array, ""]) -> Float[Array, ""]:
        """The larger of both KLs over their radii: above 1 is outside."""
        new = policy_fn(at(fraction), batch.inputs)
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
    inside = found <= 1.0
    policy = jax.tree.map(lambda a, b: jnp.where(inside, b, a), old_policy, at(fraction))
    return Walk(policy, jnp.where(inside, fraction, 0.0))


def part_way(old: Params, new: Params, fraction: Float[Array, ""]) -> Params:
    """Parameters at a share of the straight way from old to new; at 1 bit for bit the new ones."""
    return jax.tree.map(
        lambda a, b: jnp.where(fraction == 1.0, b, a + fraction * (b - a)), old, new
    )


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
