"""How the rows of a rollout stand in their episodes, whose discounted sums are what a return is.

A return is the sum of gamma^age x reward over an episode. A rollout has the rows of many episodes,
of which some began before it and some go on behind it. Over a whole episode the shares
gamma^age (1 - gamma + gamma x ended) add up to 1, so that they count episodes row by row, and

    sum of gamma^age x value / sum of shares

is a mean per episode: of the two sums each lacks the same rows. Where environments are anywhere in
their episodes, independently of one another, as many episodes begin as the shares count.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from surefoot.types import Rollout

SMALLEST_DISCOUNT = 1e-6
"""That of all later rows: where episodes never end, all rows then count alike."""


class EpisodeRows(NamedTuple):
    """Rows of a rollout in their episodes.

    `discounts` are gamma^age, `shares` a row's share of an episode; both are 0 for dummy rows.
    `begins` marks the first step of each episode, `carried` the steps of those that began before
    the rollout.
    """

    discounts: Float[Array, "time env"]
    shares: Float[Array, "time env"]
    begins: Bool[Array, "time env"]
    carried: Bool[Array, "time env"]

    @property
    def carried_share(self) -> Float[Array, ""]:
        """Share of the episodes' weight that lies in those that began before the rollout."""
        total = jnp.sum(self.shares)
        carried = jnp.sum(jnp.where(self.carried, self.shares, 0.0))
        return carried / jnp.where(total > 0, total, 1.0)


def episode_rows(
    rollout: Rollout, ages: Int[Array, " env"], gamma: float | Float[Array, ""]
) -> tuple[EpisodeRows, Int[Array, " env"]]:
    """The rows of a rollout in their episodes, and the ages of those that are open behind it.

    `ages` are the steps that each environment's open episode had before it.
    """
    ended, valid = rollout.terminated | rollout.truncated, rollout.valid
    taken = jnp.cumsum(valid, axis=0, dtype=jnp.int32)
    # The steps that were taken when the newest episode ended; before the first, minus its age.
    at_end = jax.lax.cummax(jnp.where(ended, taken, -ages), axis=0)
    after = taken - at_end
    age = jnp.concatenate([ages[None], after[:-1]])
    discounts = jnp.maximum(jnp.power(gamma, age.astype(rollout.rewards.dtype)), SMALLEST_DISCOUNT)
    discounts = jnp.where(valid, discounts, 0.0)
    shares = discounts * (1.0 - gamma + gamma * ended)
    # The age of an episode that began in this rollout is at most the steps taken in it so far.
    return EpisodeRows(discounts, shares, valid & (age == 0), age > taken - valid), after[-1]
