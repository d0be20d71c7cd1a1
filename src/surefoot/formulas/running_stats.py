"""Running mean and variance of observations, and of the discounted return that scales rewards."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree, Shaped

MAX_MAGNITUDE = 1e18
"""Largest value that statistics take in: the square of a difference of two must not overflow."""


class RunningStats(NamedTuple):
    """Count, mean and variance, the latter two of the shape of one observation."""

    count: Float[Array, ""]
    mean: Float[Array, "*shape"]
    variance: Float[Array, "*shape"]


def start_stats(shape: tuple[int, ...]) -> RunningStats:
    """Statistics of nothing yet: they normalise to the value itself."""
    return RunningStats(jnp.zeros(()), jnp.zeros(shape), jnp.zeros(shape))


def merge_stats(
    stats: RunningStats, values: Shaped[Array, "batch ..."], weights: Float[Array, " batch"]
) -> RunningStats:
    """Take in rows of weight above 0.

    A row is left out if an element is not finite or beyond `MAX_MAGNITUDE`: one such number would
    spoil the statistics of all the others for good.

    Source: Chan, Golub & LeVeque 1979, the pairwise update of variance.
    """
    values = values.astype(stats.mean.dtype)
    # NaN compares as False.
    usable = jnp.all((jnp.abs(values) <= MAX_MAGNITUDE).reshape(values.shape[0], -1), axis=1)
    weights = jnp.where(usable, weights, 0.0)
    column = weights.reshape(weights.shape + (1,) * (values.ndim - 1))
    # The mean so far is taken off first: of values that vary little around a large one, the digits
    # are in what is left. Replaced as well as weighed: NaN times a weight of 0 is NaN.
    values = jnp.where(column > 0, values - stats.mean, 0.0)
    added = jnp.sum(weights)
    rows = jnp.where(added > 0, added, 1.0)
    shift = jnp.sum(values * column, axis=0) / rows
    # Divided before the sum, which could overflow where the variance does not.
    variance = jnp.sum((values - shift) ** 2 * (column / rows), axis=0)
    count = stats.count + added
    share = added / jnp.where(count > 0, count, 1.0)
    variance = stats.variance * (1 - share) + variance * share + shift**2 * (share * (1 - share))
    return RunningStats(count, stats.mean + shift * share, variance)


def standard_deviation(stats: RunningStats) -> Float[Array, "*shape"]:
    """Root of the variance; 1 where nothing was seen or nothing varies.

    No more than the rounding of the mean counts as no variation, so that no scale is preferred.
    """
    rounding = 4 * jnp.finfo(stats.mean.dtype).eps * stats.mean
    varies = stats.variance > rounding**2
    return jnp.where(varies, jnp.sqrt(jnp.where(varies, stats.variance, 1.0)), 1.0)


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
