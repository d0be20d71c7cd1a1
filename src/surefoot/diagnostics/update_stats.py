"""What one update did: the same figures for every rule, on the batch it learned from."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from surefoot.formulas.distributions import exact_total_variation, kl, total_variation_bound
from surefoot.formulas.surrogate import counted, likelihood_ratio, promised_gains, weighted_mean
from surefoot.types import Batch, Params

ENOUGH_ROWS = 512
"""Rows, more or less, that quantiles and the drift of the normalisation are taken of."""
MAX_RATIO = 1e15
"""Bound on a ratio in the effective sample size: squares of larger ones could overflow."""
CLIP_REFERENCE = 0.2
"""Half-width of the ratio's range for `policy/clip_fraction`, the same for every rule."""


def diagnose(
    policy_fn: Callable[[Params, Any], Any],
    old_params: Params,
    new_params: Params,
    batch: Batch,
) -> dict[str, Float[Array, ""]]:
    """Promise, divergence, ratios and entropy of an update, by metric name."""
    # Without the barriers XLA weaves the forward passes into the update before and every figure
    # behind: 5 % of an iteration of a small JAX-native run on two cores (docs/performance.md). Both
    # passes stand between them, so that equal parameters give equal bits.
    old_params, new_params, batch = jax.lax.optimization_barrier((old_params, new_params, batch))
    old, new, batch = jax.lax.optimization_barrier(
        (policy_fn(old_params, batch.inputs), policy_fn(new_params, batch.inputs), batch)
    )
    log_probs, old_log_probs = new.log_prob(batch.actions), old.log_prob(batch.actions)
    exact = exact_total_variation(old, new)
    ratio, kls = likelihood_ratio(log_probs, old_log_probs), kl(old, new)
    rows = _Rows(log_probs, old_log_probs, ratio, kls, exact)
    counted = batch.weights > 0
    kl_p99, worst_share = _worst_hundredth(kls, counted)
    found = {"policy/kl_p99": kl_p99, "policy/kl_worst_share": worst_share}
    found |= _quantiles(kls, log_probs - old_log_probs, batch.advantages, counted)
    return _means(old, new, batch, rows) | _extremes(batch, rows) | found


class _Rows(NamedTuple):
    """Figures of each row; `total_variation` is None where it has no closed form."""

    log_probs: Float[Array, " batch"]
    old_log_probs: Float[Array, " batch"]
    ratio: Float[Array, " batch"]
    kl: Float[Array, " batch"]
    total_variation: Float[Array, " batch"] | None


def _means(old: Any, new: Any, batch: Batch, rows: _Rows) -> dict[str, Float[Array, ""]]:
    ratio, advantages, exact = rows.ratio, batch.advantages, rows.total_variation
    # Where the clip leaves the full gradient: the ratio strayed in the direction that hurts.
    hurt = ((advantages > 0) & (ratio < 1.0 - CLIP_REFERENCE)) | (
        (advantages < 0) & (ratio > 1.0 + CLIP_REFERENCE)
    )
    # The square of a huge ratio overflows, and inf / inf would make the effective share NaN.
    bounded = jnp.minimum(ratio, MAX_RATIO)
    promised = promised_gains(rows.log_probs, rows.old_log_probs, advantages)
    means = _reduce_together(
        lambda table: weighted_mean(table, batch.weights),
        {
            "policy/kl_mean": rows.kl,
            "policy/kl_reverse_mean": kl(new, old),
            "policy/tv_mean": 0.5 * jnp.abs(ratio - 1.0) if exact is None else exact,
            "policy/clip_fraction": jnp.abs(ratio - 1.0) > CLIP_REFERENCE,
            "policy/unprotected_fraction": hurt,
            "policy/entropy_old": old.entropy(),
            "policy/entropy": new.entropy(),
            "ratio": bounded,
            "square": bounded**2,
        },
    )
    promise = jnp.sum(counted(promised, batch.visits) * batch.visits)
    means["surrogate/promised_gain"] = batch.return_scale * promise
    means["policy/ess_fraction"] = means.pop("ratio") ** 2 / means.pop("square")
    return means


def _extremes(batch: Batch, rows: _Rows) -> dict[str, Float[Array, ""]]:
    exact = rows.total_variation
    found = _reduce_together(
        lambda table: jnp.max(jnp.where(batch.weights > 0, table, -jnp.inf), axis=-1),
        {
            "policy/kl_worst_state": rows.kl,
            "policy/tv_worst_state": total_variation_bound(rows.kl) if exact is None else exact,
            "policy/ratio_max": rows.ratio,
            # Negated, so that one maximum serves for all columns.
            "policy/ratio_min": -rows.ratio,
            "policy/staleness": jnp.abs(batch.old_log_probs - rows.old_log_probs),
        },
    )
    found["policy/ratio_min"] *= -1.0
    return found


def _reduce_together(
    reduce: Callable[[Float[Array, "column batch"]], Float[Array, " column"]],
    columns: dict[str, Array],
) -> dict[str, Float[Array, ""]]:
    """Columns reduced over their rows together: a program of many small steps is a slow one."""
    return dict(zip(columns, reduce(jnp.stack(list(columns.values()))), strict=True))


def _quantiles(
    kls: Float[Array, " batch"],
    log_ratio: Float[Array, " batch"],
    advantages: Float[Array, " batch"],
    counted: Bool[Array, " batch"],
) -> dict[str, Float[Array, ""]]:
    """Median KL, and quantiles of log(new / old) of the actions better and worse than expected."""
    kls, log_ratio, advantages, counted = map(some_rows, (kls, log_ratio, advantages, counted))
    good, bad = counted & (advantages > 0), counted & (advantages < 0)
    found_at = _nearest_ranks(
        jnp.stack([kls, log_ratio, log_ratio]), jnp.stack([counted, good, bad]), (0.1, 0.5, 0.9)
    )
    found = {"policy/kl_median": found_at[0, 1]}
    for name, values in (("good", found_at[1]), ("bad", found_at[2])):
        for percent, value in zip((10, 50, 90), values, strict=True):
            found[f"policy/log_ratio_{name}_p{percent}"] = value
    return found


def some_rows(column: Shaped[Array, "batch ..."]) -> Shaped[Array, "some ..."]:
    """Every so many rows of a column, of the order of `ENOUGH_ROWS` in all.

    The step shares no factor with the number of rows, hence none with that of environments: it
    visits all of them in turn.
    """
    step = max(1, len(column) // ENOUGH_ROWS)
    while math.gcd(step, len(column)) > 1:
        step += 1
    return column[::step]


def _nearest_ranks(
    values: Float[Array, "column rows"],
    counted: Bool[Array, "column rows"],
    levels: tuple[float, ...],
) -> Float[Array, "column level"]:
    """Of each column's rows that count, the one at each level; NaN where none counts."""
    count = jnp.sum(counted, axis=-1, keepdims=True)
    # Selection is several times as fast as XLA's sort on a CPU; asked for all rows it would sort.
    padded = jnp.pad(
        jnp.where(counted, values, -jnp.inf), ((0, 0), (0, 1)), constant_values=-jnp.inf
    )
    falling, _ = jax.lax.top_k(padded, values.shape[1])
    ranks = jnp.round((1.0 - jnp.asarray(levels)) * (count - 1)).astype(jnp.int32)
    found = jnp.take_along_axis(falling, jnp.maximum(ranks, 0), axis=-1)
    return jnp.where(count > 0, found, jnp.nan)


def _worst_hundredth(
    kls: Float[Array, " batch"], counted: Bool[Array, " batch"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The least KL among the worst 1 % of the states that count, and their share of all KL."""
    # Shapes are static: there must be room for a hundredth of all rows, even if few count.
    falling, _ = jax.lax.top_k(jnp.where(counted, kls, -jnp.inf), -(-len(kls) // 100))
    count = jnp.ceil(0.01 * jnp.sum(counted)).astype(jnp.int32)
    worst = jnp.sum(jnp.where(jnp.arange(len(falling)) < count, falling, 0.0))
    total = jnp.sum(jnp.where(counted, kls, 0.0))
    least = jnp.where(count > 0, falling[jnp.maximum(count, 1) - 1], jnp.nan)
    return least, worst / jnp.where(total > 0, total, 1.0)
