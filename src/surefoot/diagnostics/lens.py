"""What the lens carries from one update to the next, and the figures it gives out."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from surefoot.diagnostics.gain import (
    RatioFilter,
    filter_gain,
    filtered_ratio,
    gain_by_group,
    realised_gain,
    signal_share,
    start_filter,
    total_gain,
)
from surefoot.diagnostics.gradient_noise import gradient_noise
from surefoot.diagnostics.groups import GroupSums, Layout, interval_of
from surefoot.diagnostics.state_shift import States, no_states, visitation_shift
from surefoot.formulas.surrogate import weighted_mean
from surefoot.rules.rows import Rows
from surefoot.types import Batch, Inputs, Params

MAX_NOISE_GROUPS = 16
"""Maximum number of groups, whose gradients are computed one after another."""


class LensState(NamedTuple):
    """What is kept of one update until the next rollout can judge it.

    `params`, `obs_stats` and `return_scale` are those under which the critic's values were read
    before the update; `td` are the TD errors of its rows then, and `promised` and `kl` what the
    surrogate promised and how far the policy went, all in the environment's units and in nats.
    `states` are some of the states it learned from. `gained` is what each group gained over all
    updates that were judged. `ready` is False before the first update.
    """

    params: Params
    obs_stats: Any
    return_scale: Float[Array, ""]
    td: GroupSums
    promised: Float[Array, ""]
    kl: Float[Array, ""]
    states: States
    ratio: RatioFilter
    gained: Float[Array, " group"]
    ready: Bool[Array, ""]


def start_lens(params: Params, obs_stats: Any, *, num_groups: int, num_features: int) -> LensState:
    """Nothing to judge yet."""
    zero = jnp.zeros(())
    sums = GroupSums(jnp.zeros(num_groups), jnp.zeros(num_groups))
    states = no_states(num_features)
    return LensState(
        params=params,
        obs_stats=obs_stats,
        return_scale=jnp.ones(()),
        td=sums,
        promised=zero,
        kl=zero,
        states=states,
        ratio=start_filter(),
        gained=jnp.zeros(num_groups),
        ready=jnp.array(False),
    )


def judge_update(
    lens: LensState, after: GroupSums, *, horizon: float | Float[Array, ""], paired: bool
) -> tuple[LensState, dict[str, Array]]:
    """Judge the update before this rollout: the lens with its gain taken in, and the figures.

    Args:
        lens: what was kept of that update.
        after: TD errors of this rollout under the critic of before that update.
        horizon: 1 / (1 - gamma).
        paired: whether a group is the same environment in both rollouts.
    """
    gain = realised_gain(lens.td, after, horizon=horizon, paired=paired)
    unknown = jnp.where(lens.ready, 0.0, jnp.nan)
    gain = gain._replace(mean=gain.mean + unknown)
    ratio = filter_gain(lens.ratio, gain, lens.promised, lens.kl)
    kept, deviation = filtered_ratio(ratio, lens.kl)
    # A policy that did not move has promised nothing to be kept.
    moved = unknown + jnp.where(lens.kl > 0, 0.0, jnp.nan)
    seen = interval_of(gain)
    change = gain_by_group(lens.td, after, horizon=horizon)
    # One reward that is not finite must not spoil the sums of a whole run.
    gained = lens.gained + jnp.where(lens.ready & jnp.isfinite(change), change, 0.0)
    # Episodes of one rollout are no pairs of those of the next.
    total = interval_of(total_gain(gained))
    unpaired = unknown if paired else jnp.nan
    return (
        lens._replace(ratio=ratio, gained=gained),
        {
            "lens/promised_gain": lens.promised + unknown,
            "lens/realised_gain": seen.mean,
            "lens/realised_low": seen.low,
            "lens/realised_high": seen.high,
            "lens/total_gain": total.mean + unpaired,
            "lens/total_low": total.low + unpaired,
            "lens/total_high": total.high + unpaired,
            "lens/filtered_ratio": kept + moved,
            "lens/filtered_low": kept - 1.96 * deviation + moved,
            "lens/filtered_high": kept + 1.96 * deviation + moved,
            "lens/signal_share": signal_share(ratio),
        },
    )


def shift_metrics(lens: LensState, states: States, key: Key[Array, ""]) -> dict[str, Array]:
    """How far this rollout's states are from those of the one before."""
    shift = visitation_shift(lens.states, states, key)
    unknown = jnp.where(lens.ready, 0.0, jnp.nan)
    return {
        "lens/visitation_shift": jnp.maximum(shift.bound, 0.0) + unknown,
        "lens/visitation_null": jnp.maximum(shift.null, 0.0) + unknown,
    }


def noise_metrics(
    policy_fn: Callable[[Params, Inputs], Any],
    params: Params,
    batch: Batch,
    layout: Layout,
    rows: Rows,
) -> dict[str, Array]:
    """How much of the batch's gradient is noise."""
    # Over the whole batch: a mean of each group's own would hide how the groups differ.
    centred = batch.advantages - weighted_mean(batch.advantages, batch.weights)
    batch = batch._replace(advantages=centred)
    width = layout.envs_in_part
    count = _noise_groups(width) if width > 1 else layout.num_groups

    def part(group: Int[Array, ""]) -> Batch:
        if width == 1:
            return batch._replace(weights=jnp.where(batch.groups == group, batch.weights, 0.0))
        # A group has environments of every part, so that no rows need to go elsewhere.
        size = width // count

        def slice_of(leaf: Array) -> Array:
            wide = leaf.reshape(layout.parts, -1, width, *leaf.shape[1:])
            narrow = jax.lax.dynamic_slice_in_dim(wide, group * size, size, axis=2)
            return narrow.reshape(-1, *leaf.shape[1:])

        chosen = jax.tree.map(slice_of, batch._replace(return_scale=None))
        return chosen._replace(return_scale=batch.return_scale)

    noise = gradient_noise(policy_fn, params, part, count, rows)
    return {"lens/noise_scale": noise.noise_scale, "lens/expected_cosine": noise.cosine}


def _noise_groups(in_block: int) -> int:
    """Groups of equally many environments: as many as allowed, or each alone where none fit."""
    fitting = [n for n in range(2, MAX_NOISE_GROUPS + 1) if in_block % n == 0]
    return max(fitting, default=in_block)
