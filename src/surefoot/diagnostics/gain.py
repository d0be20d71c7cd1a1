"""What an update really gained, and how much of its promise that is, filtered over updates.

The critic of before the update stays frozen as a yardstick. Under any function B of the state the
mean of r + gamma B(s') - B(s) over a policy's states, times the horizon, is its return less B at
the start; so the difference of two such means, before and after an update, is what the update
gained, whatever B is. A B near the values only makes it less noisy.

One update's gain is far noisier than it is large. But the gains of successive updates share
rollouts: what is noise in one is taken back by the next, so their sum is a level known at every
update to the precision of a single rollout. Two unknowns explain it: the level, and u, how fast
the promise is eaten up with the distance, gain = promise x (1 - u sqrt(KL)).
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from surefoot.diagnostics.groups import Estimate, GroupSums, combine, mean_by_group, mean_of

PRIOR_KL = 0.03
"""The KL at which half of a promise is expected to come true before anything is known."""
PRIOR_U = 0.5 / PRIOR_KL**0.5
GAIN_NOISE = 0.1
"""Standard deviation of what the model leaves unexplained of a gain, as a share of the promise."""
DRIFT = 0.05
"""Standard deviation of u's change from one update to the next, as a share of its prior."""
MEMORY = 0.9
"""What is kept of the smoothed promises when another cross-fit comes in."""


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


class RatioFilter(NamedTuple):
    """The two states of the filter, their covariance, and what feeds it.

    `level` is the return gained since the first update, `u` the slope; `observed` is the sum of
    the realised gains. `insample` and `across` are smoothed cross-fits, whose ratio is the share
    of a promise that is signal; both are 0 before the first.
    """

    level: Float[Array, ""]
    u: Float[Array, ""]
    covariance: Float[Array, "2 2"]
    observed: Float[Array, ""]
    insample: Float[Array, ""]
    across: Float[Array, ""]


def start_filter() -> RatioFilter:
    """Nothing observed yet: u is its prior, give or take as much again."""
    zero = jnp.zeros(())
    covariance = jnp.diag(jnp.array([0.0, PRIOR_U**2]))
    return RatioFilter(zero, jnp.full((), PRIOR_U), covariance, zero, zero, zero)


def take_in_cross_fit(
    state: RatioFilter, insample: Float[Array, ""], across: Float[Array, ""]
) -> RatioFilter:
    """The smoothed promises with one more cross-fit; one that is not finite is passed over."""
    finite = jnp.isfinite(insample) & jnp.isfinite(across)

    def smoothed(old: Float[Array, ""], new: Float[Array, ""]) -> Float[Array, ""]:
        return jnp.where(finite, MEMORY * old + (1.0 - MEMORY) * new, old)

    return state._replace(
        insample=smoothed(state.insample, insample), across=smoothed(state.across, across)
    )


def signal_share(state: RatioFilter) -> Float[Array, ""]:
    """Share of an in-sample promise that is signal, in [0, 1]; NaN before the first cross-fit."""
    known = (state.insample != 0.0) | (state.across != 0.0)
    share = state.across / jnp.where(state.insample > 0, state.insample, 1.0)
    share = jnp.where(state.insample > 0, jnp.clip(share, 0.0, 1.0), 0.0)
    return jnp.where(known, share, jnp.nan)


def filter_gain(
    state: RatioFilter,
    gain: Estimate,
    promised: Float[Array, ""],
    kl: Float[Array, ""],
) -> RatioFilter:
    """Take in what one update promised and what the next rollout says it gained.

    Without a cross-fit so far the whole promise is taken for signal. A gain without a variance,
    or one that is not finite, moves only the prediction.

    Args:
        state: the filter before.
        gain: the realised gain.
        promised: the in-sample promise, in the same units.
        kl: the update's mean KL(old || new), in nats.

    Source: Kalman 1960, with the model of a gap quadratic in the step.
    """
    share = signal_share(state)
    promise = jnp.where(jnp.isnan(share), 1.0, share) * promised
    promise, root = (jnp.where(jnp.isfinite(x), x, 0.0) for x in (promise, jnp.sqrt(kl)))
    known = jnp.isfinite(gain.mean) & (gain.variance > 0)
    # A gain has the noise of two rollouts, the level that of the newest alone; the noise of the
    # first stays in every level, as what is not known of where they start.
    variance = jnp.where(known, 0.5 * gain.variance, 1.0)
    begins = known & (state.covariance[0, 0] == 0)
    covariance = state.covariance.at[0, 0].add(jnp.where(begins, variance, 0.0))
    move = jnp.eye(2).at[0, 1].set(-promise * root)
    noise = jnp.stack([(GAIN_NOISE * promise) ** 2, jnp.full((), (DRIFT * PRIOR_U) ** 2)])
    level = state.level + promise * (1.0 - state.u * root)
    covariance = move @ covariance @ move.T + jnp.diag(noise)
    observed = state.observed + jnp.where(jnp.isfinite(gain.mean), gain.mean, 0.0)
    weight = covariance[:, 0] / (covariance[0, 0] + variance)
    weight = jnp.where(known, weight, 0.0)
    surprise = observed - level
    updated = covariance - jnp.outer(weight, covariance[0])
    return state._replace(
        level=level + weight[0] * surprise,
        u=state.u + weight[1] * surprise,
        # Rounding makes the product slightly asymmetric, and that would add up over updates.
        covariance=0.5 * (updated + updated.T),
        observed=observed,
    )


def filtered_ratio(
    state: RatioFilter, kl: Float[Array, ""]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Ratio of realised to promised at a mean KL, and its standard deviation."""
    root = jnp.sqrt(kl)
    # Rounding may leave a variance just below zero.
    return 1.0 - state.u * root, jnp.sqrt(jnp.maximum(state.covariance[1, 1], 0.0)) * root
