"""How much of a promise is signal, asked of halves of the data.

Scored on the half that it was fitted to, a promise holds noise; on the other half it holds only
what is there in both.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from surefoot.diagnostics.groups import (
    Estimate,
    Layout,
    combine,
    interval_of,
    mean_of,
    sum_by_group,
)
from surefoot.formulas.surrogate import counted, likelihood_ratio, weighted_mean
from surefoot.types import Batch, Inputs, Params


class CrossFit(NamedTuple):
    """Promises of an update made from half of the data, in the environment's units.

    `insample` is scored on that half, `across` on the other one; both are means over the halves.
    `per_row` is the promise across with all rows alike, undiscounted: far less noisy where
    episodes are long, and with the sign of what the rule maximised.
    """

    insample: Float[Array, ""]
    across: Estimate
    per_row: Float[Array, ""]


def cross_fit(
    update: Callable[[Batch], Params],
    policy_fn: Callable[[Params, Inputs], Any],
    old_params: Params,
    batch: Batch,
    layout: Layout,
) -> CrossFit:
    """Make the update from each half of the groups, even and odd ones, and score it on both.

    `update` makes new policy parameters of `old_params` from a batch. The error of `across` is
    that of scoring: it is about what these two updates are worth, not about what other halves
    would have made. Where one half has no rows both promises are NaN.

    Source: the sample splitting of Chernozhukov et al. 2018, arXiv:1608.00060, section 1.
    """
    old = policy_fn(old_params, batch.inputs).log_prob(batch.actions)
    advantages = counted(batch.advantages, batch.weights)
    first = batch.groups % 2 == 0
    halves = jnp.stack([jnp.where(rows, batch.weights, 0.0) for rows in (first, ~first)])

    # Of an episode: a half has about half of its visits.
    length = jnp.sum(batch.visits)

    def scored(half: Int[Array, ""]) -> tuple[Estimate, Estimate, Float[Array, ""]]:
        new_params = update(_half_of(batch, halves[half], half, layout))
        new = policy_fn(new_params, batch.inputs).log_prob(batch.actions)
        gains = batch.return_scale * (likelihood_ratio(new, old) - 1.0) * advantages

        def mean(weights: Float[Array, " batch"]) -> Estimate:
            sums = sum_by_group(length * gains, weights, batch.groups, layout.num_groups)
            return mean_of(sums)

        other = halves[1 - half]
        own, across = (
            mean(jnp.where(chosen > 0, batch.visits, 0.0)) for chosen in (halves[half], other)
        )
        return own, across, weighted_mean(gains, other)

    # A loop over the halves, so that the update is compiled once and not twice.
    own, across, per_row = jax.lax.map(scored, jnp.arange(2))
    each = [Estimate(*(leaf[half] for leaf in across)) for half in (0, 1)]
    scored_across = combine(each[0], each[1], 0.5, 0.5)
    # One long episode is one group: there is no other half to ask.
    unknown = jnp.where(jnp.all(jnp.any(halves > 0, axis=1)), 0.0, jnp.nan)
    return CrossFit(
        jnp.mean(own.mean) + unknown,
        scored_across._replace(mean=scored_across.mean + unknown),
        jnp.mean(per_row) + unknown,
    )


def _half_of(
    batch: Batch, weights: Float[Array, " batch"], half: Int[Array, ""], layout: Layout
) -> Batch:
    """A half of the groups as a batch; `weights` are 0 in the other one's rows."""
    if layout.envs_in_part % 2:
        return batch._replace(weights=weights)
    # Rows of even and odd environments take turns: the update need not see the others at all.
    rows = jax.tree.map(
        lambda leaf: jax.lax.dynamic_index_in_dim(
            leaf.reshape(-1, 2, *leaf.shape[1:]), half, axis=1, keepdims=False
        ),
        batch._replace(return_scale=None),
    )
    return rows._replace(return_scale=batch.return_scale)


def cross_fit_metrics(fit: CrossFit) -> dict[str, Array]:
    """The figures of a cross-fit."""
    across = interval_of(fit.across)
    return {
        "lens/insample_promise": fit.insample,
        "lens/crossfit_promise": across.mean,
        "lens/crossfit_low": across.low,
        "lens/crossfit_high": across.high,
    }
