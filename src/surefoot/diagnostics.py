"""What one update did: the same figures for every rule, on the batch it learned from."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from surefoot.distributions import exact_total_variation, kl, total_variation_bound
from surefoot.surrogate import likelihood_ratio, promised_gain, weighted_mean
from surefoot.types import Batch, Params

ENOUGH_ROWS = 512
"""Rows, more or less, that quantiles of log-ratios are taken of; all where there are fewer."""
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
    kl_median, kl_p99 = jnp.nanquantile(
        jnp.where(counted, rows, jnp.nan), jnp.array([0.5, 0.99], rows.dtype)
    )
    total = weighted_mean(rows, weights)
    # Where the clip leaves the full gradient: the ratio strayed in the direction that hurts.
    hurt = ((batch.advantages > 0) & (ratio < 1.0 - CLIP_REFERENCE)) | (
        (batch.advantages < 0) & (ratio > 1.0 + CLIP_REFERENCE)
    )
    return {
        "surrogate/promised_gain": horizon * promise * batch.return_scale,
        "policy/kl_mean": total,
        "policy/kl_median": kl_median,
        "policy/kl_p99": kl_p99,
        "policy/kl_worst_share": weighted_mean(jnp.where(rows >= kl_p99, rows, 0.0), weights)
        / jnp.where(total > 0, total, 1.0),
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
    log_ratio: Float[Array, " batch"], advantages: Float[Array, " batch"], counted: Any
) -> dict[str, Float[Array, ""]]:
    """Quantiles of log(new / old) of the actions that were better and worse than expected.

    Of some `ENOUGH_ROWS` rows: sorting all of them would be a tenth of all that the lens costs.
    """
    found = {}
    # An odd step visits every environment: a step of four would meet the same ones each time.
    step = len(log_ratio) // ENOUGH_ROWS | 1
    log_ratio, advantages, counted = (x[::step] for x in (log_ratio, advantages, counted))
    for name, rows in (("good", advantages > 0), ("bad", advantages < 0)):
        of_sign = jnp.where(counted & rows, log_ratio, jnp.nan)
        low, middle, high = jnp.nanquantile(of_sign, jnp.array([0.1, 0.5, 0.9], log_ratio.dtype))
        prefix = f"policy/log_ratio_{name}"
        found |= {f"{prefix}_p10": low, f"{prefix}_p50": middle, f"{prefix}_p90": high}
    return found
