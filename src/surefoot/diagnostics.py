"""What one update did: the same figures for every rule, on the batch it learned from."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from surefoot.distributions import exact_total_variation, kl, total_variation_bound
from surefoot.surrogate import likelihood_ratio, promised_gain, weighted_mean
from surefoot.types import Batch, Params

ENOUGH_ROWS = 512
"""Rows, more or less, that medians and tenths are taken of; all where there are fewer."""
CLIP_REFERENCE = 0.2
"""Half-width of the ratio's range for `policy/clip_fraction`, the same for every rule."""


def diagnose(
    policy_fn: Callable[[Params, Any], Any],
    old_params: Params,
    new_params: Params,
    batch: Batch,
    *,
    horizon: float,
) -> dict[str, Float[Array, ""]]:
    """Promise, divergence, ratios and entropy of an update, by metric name.

    Args:
        policy_fn: the policy.
        old_params: its parameters when the batch was collected.
        new_params: its parameters after the update; equal ones give zeros.
        batch: the rows the update saw, with raw advantages.
        horizon: 1 / (1 - gamma), which turns a gain per step into one of discounted return.
    """
    old, new = policy_fn(old_params, batch.inputs), policy_fn(new_params, batch.inputs)
    weights, counted = batch.weights, batch.weights > 0
    old_log_probs, log_probs = old.log_prob(batch.actions), new.log_prob(batch.actions)
    ratio = likelihood_ratio(log_probs, old_log_probs)
    rows = kl(old, new)
    exact = exact_total_variation(old, new)
    variation = 0.5 * jnp.abs(ratio - 1.0) if exact is None else exact
    worst = total_variation_bound(rows) if exact is None else exact
    promise = promised_gain(log_probs, old_log_probs, batch.advantages, weights)
    stale = jnp.abs(batch.old_log_probs - old_log_probs)
    second_moment = weighted_mean(ratio**2, weights)
    kl_p99, worst_share = _worst_hundredth(rows, counted)
    # Where the clip leaves the full gradient: the ratio strayed in the direction that hurts.
    hurt = ((batch.advantages > 0) & (ratio < 1.0 - CLIP_REFERENCE)) | (
        (batch.advantages < 0) & (ratio > 1.0 + CLIP_REFERENCE)
    )
    return {
        "surrogate/promised_gain": horizon * promise * batch.return_scale,
        "policy/kl_mean": weighted_mean(rows, weights),
        "policy/kl_median": _quantiles(*_some(rows, counted), levels=(0.5,))[0],
        "policy/kl_p99": kl_p99,
        "policy/kl_worst_share": worst_share,
        "policy/kl_worst_state": jnp.max(jnp.where(counted, rows, 0.0)),
        "policy/kl_reverse_mean": weighted_mean(kl(new, old), weights),
        "policy/tv_mean": weighted_mean(variation, weights),
        "policy/tv_worst_state": jnp.max(jnp.where(counted, worst, 0.0)),
        "policy/ratio_min": jnp.min(jnp.where(counted, ratio, jnp.inf)),
        "policy/ratio_max": jnp.max(jnp.where(counted, ratio, 0.0)),
        "policy/clip_fraction": weighted_mean(
            (jnp.abs(ratio - 1.0) > CLIP_REFERENCE).astype(ratio.dtype), weights
        ),
        **_log_ratios(log_probs - old_log_probs, batch.advantages, counted),
        "policy/unprotected_fraction": weighted_mean(hurt.astype(ratio.dtype), weights),
        "policy/ess_fraction": weighted_mean(ratio, weights) ** 2 / second_moment,
        "policy/entropy_old": weighted_mean(old.entropy(), weights),
        "policy/entropy": weighted_mean(new.entropy(), weights),
        "policy/staleness": jnp.max(jnp.where(counted, stale, 0.0)),
    }


def _log_ratios(
    log_ratio: Float[Array, " batch"],
    advantages: Float[Array, " batch"],
    counted: Bool[Array, " batch"],
) -> dict[str, Float[Array, ""]]:
    """Quantiles of log(new / old) of the actions that were better and worse than expected."""
    found = {}
    log_ratio, advantages, counted = _some(log_ratio, advantages, counted)
    for name, rows in (("good", advantages > 0), ("bad", advantages < 0)):
        quantiles = _quantiles(log_ratio, counted & rows, (0.1, 0.5, 0.9))
        for percent, value in zip((10, 50, 90), quantiles, strict=True):
            found[f"policy/log_ratio_{name}_p{percent}"] = value
    return found


def _some(*columns: Array) -> tuple[Array, ...]:
    """Every so many rows of each column, some `ENOUGH_ROWS` in all.

    The step is odd, so that it visits every environment: one of four would meet the same ones
    each time.
    """
    step = len(columns[0]) // ENOUGH_ROWS | 1
    return tuple(column[::step] for column in columns)


def _quantiles(
    values: Float[Array, " rows"], counted: Bool[Array, " rows"], levels: tuple[float, ...]
) -> list[Float[Array, ""]]:
    """Of the rows that count, the one at each level (the nearest rank); NaN where none counts."""
    rows, count = len(values), jnp.sum(counted)
    # Selection is several times as fast as XLA's sort on a CPU; asked for all rows it would sort.
    padded = jnp.append(jnp.where(counted, values, -jnp.inf), -jnp.inf)
    falling, _ = jax.lax.top_k(padded, rows)
    ranks = [jnp.round((1.0 - level) * (count - 1)).astype(jnp.int32) for level in levels]
    return [jnp.where(count > 0, falling[rank], jnp.nan) for rank in ranks]


def _worst_hundredth(
    kls: Float[Array, " batch"], counted: Bool[Array, " batch"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The least KL among the worst 1 % of the states that count, and their share of all KL."""
    falling, _ = jax.lax.top_k(jnp.where(counted, kls, -jnp.inf), -(-len(kls) // 100))
    count = jnp.ceil(0.01 * jnp.sum(counted)).astype(jnp.int32)
    worst = jnp.sum(jnp.where(jnp.arange(len(falling)) < count, falling, 0.0))
    total = jnp.sum(jnp.where(counted, kls, 0.0))
    least = jnp.where(count > 0, falling[jnp.maximum(count, 1) - 1], jnp.nan)
    return least, worst / jnp.where(total > 0, total, 1.0)
