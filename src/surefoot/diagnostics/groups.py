"""Which rows of a rollout are independent of which, and means whose error that decides.

Rows of one episode resemble each other. With several environments each is a group; with one, its
episodes are dealt in turn to a few groups.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from surefoot.formulas.intervals import Interval, t_interval
from surefoot.types import Rollout

EPISODE_GROUPS = 8
"""Groups that the episodes of a single environment are dealt to."""


class Layout(NamedTuple):
    """How the rows of a batch stand: in `parts` equal parts, each of them time-major."""

    num_envs: int
    parts: int

    @property
    def num_groups(self) -> int:
        """How many independent groups there are at most."""
        return self.num_envs if self.num_envs > 1 else EPISODE_GROUPS

    @property
    def envs_in_part(self) -> int:
        """Neighbouring rows of one time step; with several environments each is a group."""
        return self.num_envs // self.parts


def groups_of(rollout: Rollout) -> Int[Array, "time env"]:
    """The group of each row: its environment, or its episode in turn where there is only one.

    The parts of episodes at both ends of a rollout are one group: what is missing in one of them,
    such as the early steps of an episode, the other has. Apart they differ in more than chance.
    """
    num_steps, num_envs = rollout.rewards.shape
    if num_envs > 1:
        return jnp.broadcast_to(jnp.arange(num_envs, dtype=jnp.int32), (num_steps, num_envs))
    ended = rollout.terminated | rollout.truncated
    before = jnp.cumsum(ended, axis=0) - ended
    whole = before % jnp.maximum(jnp.sum(ended), 1)
    return (whole % EPISODE_GROUPS).astype(jnp.int32)


class GroupSums(NamedTuple):
    """Sum of a row's value, and the weight of the rows, in each group."""

    totals: Float[Array, " group"]
    weights: Float[Array, " group"]


def sum_by_group(
    values: Float[Array, "..."],
    weights: Float[Array, "..."] | Bool[Array, "..."],
    groups: Int[Array, "..."],
    count: int,
) -> GroupSums:
    """Weighted sums of each group's rows; a row of weight 0 adds nothing, whatever its value."""
    flat = weights.reshape(-1).astype(values.dtype)
    # Chosen before it is weighted, because NaN times a weight of 0 is NaN.
    rows = jnp.where(flat > 0, values.reshape(-1), 0.0) * flat
    index = groups.reshape(-1)
    return GroupSums(
        jax.ops.segment_sum(rows, index, count), jax.ops.segment_sum(flat, index, count)
    )


class EpisodeSums(NamedTuple):
    """Sums over the rows of each group that belong to episodes.

    `totals` are of gamma^age x value. `episodes` counts episodes by their rows' shares, and
    `begun` by their first steps.
    """

    totals: Float[Array, " group"]
    episodes: Float[Array, " group"]
    begun: Float[Array, " group"]

    @property
    def sums(self) -> GroupSums:
        """Totals per episode, as the ratio of two sums."""
        return GroupSums(self.totals, self.episodes)


class Estimate(NamedTuple):
    """A mean, the variance of its error, and the degrees of freedom behind that variance.

    With fewer than two groups the variance is NaN.
    """

    mean: Float[Array, ""]
    variance: Float[Array, ""]
    freedom: Float[Array, ""]


def mean_of(sums: GroupSums) -> Estimate:
    """Mean over all rows, its error judged by how the groups differ.

    Groups of unequal weight tell as much about that error as fewer of equal weight: (sum w)² /
    sum w² of them (Kish 1965).

    Source: Cochran 1977, "Sampling techniques", eq. 6.13 (the ratio estimator), with groups as
    the sampled units.
    """
    weight = jnp.sum(sums.weights)
    mean = jnp.sum(sums.totals) / jnp.where(weight > 0, weight, 1.0)
    used = jnp.sum(sums.weights > 0)
    residuals = sums.totals - mean * sums.weights
    spread = jnp.sum(residuals**2) / jnp.where(weight > 0, weight, 1.0) ** 2
    variance = jnp.where(used > 1, spread * used / jnp.maximum(used - 1, 1), jnp.nan)
    return Estimate(mean, variance, jnp.maximum(effective_groups(sums.weights) - 1.0, 1.0))


def effective_groups(weights: Float[Array, " group"]) -> Float[Array, ""]:
    """How many groups of equal weight tell as much as these: Kish 1965, (sum w)² / sum w²."""
    squares = jnp.sum(weights**2)
    # Rounding must not make seven of eight equal ones.
    count = jnp.sum(weights) ** 2 / jnp.where(squares > 0, squares, 1.0)
    return count * (1.0 + 1e-5)


def mean_by_group(sums: GroupSums) -> Float[Array, " group"]:
    """What each group makes of the mean over all rows: their own mean is that mean.

    The mean and its error are those of `mean_of`, to first order (the influence of each group).
    """
    weight, count = jnp.sum(sums.weights), len(sums.weights)
    mean = jnp.sum(sums.totals) / jnp.where(weight > 0, weight, 1.0)
    residuals = sums.totals - mean * sums.weights
    return mean + count * residuals / jnp.where(weight > 0, weight, 1.0)


def interval_of(estimate: Estimate) -> Interval:
    """Student's 95 % interval of an estimate; degrees of freedom are rounded down."""
    return t_interval(estimate.mean, jnp.sqrt(estimate.variance), estimate.freedom)


def combine(
    a: Estimate,
    b: Estimate,
    weight_a: float | Float[Array, ""],
    weight_b: float | Float[Array, ""],
) -> Estimate:
    """weight_a x a + weight_b x b of two independent estimates.

    Source: Satterthwaite 1946 and Welch 1947, for the degrees of freedom.
    """
    part_a, part_b = weight_a**2 * a.variance, weight_b**2 * b.variance
    variance = part_a + part_b
    spread = part_a**2 / a.freedom + part_b**2 / b.freedom
    # The inner choice keeps the branch that is not taken from dividing by zero.
    freedom = jnp.where(spread > 0, variance**2 / jnp.where(spread > 0, spread, 1.0), a.freedom)
    return Estimate(weight_a * a.mean + weight_b * b.mean, variance, freedom)
