"""Running mean and variance of observations, and of the discounted return that scales rewards."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree, Shaped


class RunningStats(NamedTuple):
    """Count, mean and sum of squared deviations, each of the shape of one observation."""

    count: Float[Array, ""]
    mean: Float[Array, "*shape"]
    m2: Float[Array, "*shape"]


def start_stats(shape: tuple[int, ...]) -> RunningStats:
    """Statistics of nothing yet: they normalise to the value itself."""
    return RunningStats(jnp.zeros(()), jnp.zeros(shape), jnp.zeros(shape))


def merge_stats(
    stats: RunningStats, values: Shaped[Array, "batch ..."], weights: Float[Array, " batch"]
) -> RunningStats:
    """Take in rows of weight above 0; a row with an element that is not finite is left out.

    Source: Chan, Golub & LeVeque 1979, the pairwise update of variance.
    """
    values = values.astype(stats.mean.dtype)
    finite = jnp.all(jnp.isfinite(values).reshape(values.shape[0], -1), axis=1)
    weights = jnp.where(finite, weights, 0.0)
    column = weights.reshape(weights.shape + (1,) * (values.ndim - 1))
    # Replaced as well as weighed: NaN times a weight of 0 is NaN.
    values = jnp.where(column > 0, values, 0.0)
    added = jnp.sum(weights)
    mean = jnp.sum(values * column, axis=0) / jnp.where(added > 0, added, 1.0)
    m2 = jnp.sum((values - mean) ** 2 * column, axis=0)
    count = stats.count + added
    share = added / jnp.where(count > 0, count, 1.0)
    shift = mean - stats.mean
    return RunningStats(
        count, stats.mean + shift * share, stats.m2 + m2 + shift**2 * stats.count * share
    )


def standard_deviation(stats: RunningStats) -> Float[Array, "*shape"]:
    """Root of the variance; 1 where nothing was seen or nothing varies.

    What counts as no variation is judged against the mean, so that no scale is preferred.
    """
    variance = stats.m2 / jnp.where(stats.count > 0, stats.count, 1.0)
    varies = variance > 1e-10 * stats.mean**2
    return jnp.where(varies, jnp.sqrt(jnp.where(varies, variance, 1.0)), 1.0)


def start_obs_stats(obs: PyTree, normalised: tuple[bool, ...]) -> tuple[RunningStats | None, ...]:
    """Statistics for each leaf of an observation that is to be normalised, None for the others."""
    leaves = jax.tree.leaves(obs)
    return tuple(
        start_stats(leaf.shape) if use else None
        for leaf, use in zip(leaves, normalised, strict=True)
    )


def merge_obs_stats(
    stats: tuple[RunningStats | None, ...], obs: PyTree, valid: Bool[Array, " batch"]
) -> tuple[RunningStats | None, ...]:
    """Take in the observations of valid rows."""
    # JAX's default float, which is float64 where that is enabled.
    weights = valid.astype(jnp.zeros(()).dtype)
    return tuple(
        None if s is None else merge_stats(s, leaf, weights)
        for s, leaf in zip(stats, jax.tree.leaves(obs), strict=True)
    )


def normalize_obs(stats: tuple[RunningStats | None, ...], obs: PyTree, *, clip: float) -> PyTree:
    """Observations less their mean, over their standard deviation, held within ± `clip`.

    Leaves without statistics pass through as they are.
    """
    leaves, structure = jax.tree.flatten(obs)
    normalised = [
        leaf if s is None else jnp.clip((leaf - s.mean) / standard_deviation(s), -clip, clip)
        for s, leaf in zip(stats, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, normalised)
