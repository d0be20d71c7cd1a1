"""What an update really gained, from the rollout that follows it.

The critic of before the update stays frozen as a yardstick. Under any function B of the state the
mean of r + gamma B(s') - B(s) over a policy's states, times the horizon, is its return less B at
the start; so the difference of two such means, before and after an update, is what the update
gained, whatever B is. A B near the values only makes it less noisy.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from surefoot.diagnostics.groups import Estimate, GroupSums, combine, mean_by_group, mean_of


def gain_by_group(
    before: GroupSums, after: GroupSums, *, horizon: float | Float[Array, ""]
) -> Float[Array, " group"]:
    """What an update gained in each environment: horizon x the change of its mean TD error."""
    return horizon * (mean_by_group(after) - mean_by_group(before))


def total_gain(gained: Float[Array, " group"]) -> Estimate:
    """The mean of what each environment gained over all updates.

    Two successive gains share a rollout with opposite sign, so the intervals of single gains do
    not tell how well their sum is known; how the environments' own sums differ does, whatever
    cancels in them.
    """
    return mean_of(GroupSums(gained, jnp.ones_like(gained)))


def realised_gain(
    before: GroupSums, after: GroupSums, *, horizon: float | Float[Array, ""], paired: bool = True
) -> Estimate:
    """What an update gained: horizon x (mean TD error after - before), both under one critic.

    Args:
        before: TD errors under the old policy, by group.
        after: the same under the new policy and the same critic.
        horizon: 1 / (1 - gamma).
        paired: whether a group is the same environment before and after; then the differences of
            the groups are the independent units, and else the groups of each side.

    Source: Kakade & Langford 2002, lemma 6.1, for any function in the place of V.
    """
    if not paired:
        return combine(mean_of(after), mean_of(before), horizon, -horizon)
    return total_gain(gain_by_group(before, after, horizon=horizon))
