"""A guard is a rule around a rule: it shortens steps that go too far, and skips hopeless ones."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from surefoot.config.settings import Train
from surefoot.diagnostics.cross_fit import cross_fit, cross_fit_metrics
from surefoot.diagnostics.groups import Layout
from surefoot.formulas.intervals import t_interval
from surefoot.formulas.trust_region import interpolate, mean_kl, worst_kl
from surefoot.types import Batch, Inputs, Params, UpdateRule

BACKTRACK = 0.5
"""Factor between two trials; the first comes from the quadratic model of KL."""
MAX_TRIALS = 30
REMEMBERED = 10
"""Updates whose cross-fit promises are averaged before a step is skipped."""


def guarded(
    rule: UpdateRule,
    policy_fn: Callable[[Params, Inputs], Any],
    config: Train,
    *,
    layout: Layout,
    policy_of: Callable[[Params], Params],
    shorten: Callable[[Params, Params, Float[Array, ""]], Params],
) -> UpdateRule:
    """A rule whose steps stay within `guard_kl` and `guard_worst_kl`, or are not taken.

    Every update is cross-fit before it is made. Once the mean of the last promises across halves
    is significantly negative, the policy stays as it is. `policy_of` is the policy's part of the
    rule's parameters; `shorten(old, new, fraction)` are those part of the way.
    """

    def step(state: Any, params: Params, batch: Batch, key: Any, skip: Any) -> Any:
        new, state, info = rule.update(state, params, batch, key)
        inside = fraction_inside(
            policy_fn,
            policy_of(params),
            policy_of(new),
            batch,
            max_kl=config.guard_kl,
            max_worst_kl=config.guard_worst_kl,
        )
        fraction = jnp.where(skip, 0.0, inside)
        return shorten(params, new, fraction), state, info | {"guard/fraction": fraction}

    def init(params: Params) -> dict[str, Any]:
        promises = jnp.zeros(REMEMBERED)
        return {"rule": rule.init(params), "promises": promises, "known": jnp.int32(0)}

    def update(state, params, batch, key):
        # Another key for the halves: the update draws what it would without a guard.
        half_key = jax.random.fold_in(key, 1)
        fit = cross_fit(
            lambda half: policy_of(step(state["rule"], params, half, half_key, False)[0]),
            policy_fn,
            policy_of(params),
            batch,
            layout,
        )
        found = jnp.isfinite(fit.per_row)
        newest = jnp.where(found, fit.per_row, 0.0)
        promises = jnp.concatenate([state["promises"][1:], newest[None]])
        # An unknown promise resets the count, so that the 0 in its place is never averaged.
        known = jnp.where(found, state["known"] + 1, 0)
        skip = is_hopeless(promises, known)
        new, inner, info = step(state["rule"], params, batch, key, skip)
        info |= cross_fit_metrics(fit) | {"guard/refused": skip.astype(jnp.int32)}
        return new, {"rule": inner, "promises": promises, "known": known}, info

    return UpdateRule(init, update)


def fraction_inside(
    policy_fn: Callable[[Params, Inputs], Any],
    old_policy: Params,
    new_policy: Params,
    batch: Batch,
    *,
    max_kl: float | Float[Array, ""],
    max_worst_kl: float | Float[Array, ""],
) -> Float[Array, ""]:
    """Share of a step at the farthest trial on the straight line that is inside both radii.

    The full step comes first: 1 where it is inside. From a step outside, KL taken for quadratic
    gives the next trial, and halves follow. 0 where no trial is inside, or KL is not finite.
    The radii are those of the mean KL(old || new) and of the batch's worst state, in nats.
    """
    old = policy_fn(old_policy, batch.inputs)

    def excess(fraction: Float[Array, ""]) -> Float[Array, ""]:
        """The larger of both KLs over their radii: above 1 is outside."""
        new = policy_fn(interpolate(old_policy, new_policy, fraction), batch.inputs)
        return jnp.maximum(
            mean_kl(old, new, batch.weights) / max_kl,
            worst_kl(old, new, batch.weights) / max_worst_kl,
        )

    def outside(carry: Any) -> Bool[Array, ""]:
        _, found, trials = carry
        # Not `found > 1`, which would let a NaN pass as inside.
        return ~(found <= 1.0) & (trials < MAX_TRIALS)

    def backtrack(carry: Any) -> Any:
        fraction, found, trials = carry
        # KL is taken for quadratic in the step; 0.98 leaves room for that model's error.
        by_model = jnp.where(jnp.isfinite(found), 0.98 / jnp.sqrt(found), BACKTRACK)
        factor = jnp.where(trials == 0, jnp.clip(by_model, 1e-4, 0.98), BACKTRACK)
        return fraction * factor, excess(fraction * factor), trials + 1

    one = jnp.ones(())
    fraction, found, _ = jax.lax.while_loop(outside, backtrack, (one, excess(one), jnp.int32(0)))
    return jnp.where(found <= 1.0, fraction, 0.0)


def is_hopeless(promises: Float[Array, " update"], known: int | Int[Array, ""]) -> Bool[Array, ""]:
    """Whether the mean of the last promises is negative beyond its 95 % interval.

    False until as many are known as are remembered: fewer say too little.
    """
    count = len(promises)
    error = jnp.std(promises, ddof=1) / count**0.5
    return (known >= count) & (t_interval(jnp.mean(promises), error, count - 1).high < 0.0)
