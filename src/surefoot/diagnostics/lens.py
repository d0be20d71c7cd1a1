"""The lens: what an update really gained, and how much of its promise that is.

The critic of before the update stays frozen as a yardstick. Under any function B of the state the
sum of gamma^t (r + gamma B(s') - B(s)) over an episode is its discounted return less B at its
start; so the difference of two means of such sums, before and after an update, is what the update
gained, whatever B is. A B near the values only makes it less noisy. What a rollout has of
episodes that began before it, or go on behind it, is counted by its share of them (`episodes`).

One update's gain is far noisier than it is large. But the gains of successive updates share
rollouts: what is noise in one is taken back by the next, so their sum is a level known at every
update to the precision of a single rollout. Two unknowns explain it: the level, and u, how fast
the promise is eaten up with the distance, gain = promise x (1 - u sqrt(KL)).
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from surefoot.diagnostics.groups import (
    EpisodeSums,
    Estimate,
    GroupSums,
    combine,
    effective_groups,
    interval_of,
    mean_by_group,
    mean_of,
)
from surefoot.diagnostics.state_shift import NUM_STATES, States
from surefoot.types import Params

MAX_SURPLUS = 3.0
"""Standard errors by which the episodes that begin may differ from the shares of a rollout."""
FEWEST_GROUPS = 3.0
"""Groups of equal weight that a spread is judged by."""
PRIOR_KL = 0.03
"""The KL at which half of a promise is expected to come true before anything is known."""
PRIOR_U = 0.5 / PRIOR_KL**0.5
GAIN_NOISE = 0.1
"""Standard deviation of what the model leaves unexplained of a gain, as a share of the promise."""
DRIFT = 0.05
"""Standard deviation of u's change from one update to the next, as a share of its prior."""
MEMORY = 0.9
"""What is kept of the smoothed promises when another cross-fit comes in."""
MIN_EXPLAINED = 0.1
"""Least explained variance of a critic whose errors show a gain that is still ahead."""
MAX_CARRIED = 0.15
"""Largest share of episodes begun before a rollout at which any critic's errors show a gain."""


class Gain(NamedTuple):
    """What an update gained: an estimate, and what each group makes of it, whose mean it is.

    The variance is NaN where it cannot be told: see `unbiased`.
    """

    estimate: Estimate
    by_group: Float[Array, " group"]


def realised_gain(before: EpisodeSums, after: EpisodeSums, *, paired: bool = True) -> Gain:
    """What an update gained: the discounted TD errors of an episode after it, less before.

    Both are under one critic. Where a group is the same environment before and after, `paired`,
    the differences of groups are the independent units, and else the groups of each side.

    Source: Kakade & Langford 2002, lemma 6.1, for any function in the place of V.
    """
    first, second = mean_of(before.sums), mean_of(after.sums)
    by_group = mean_by_group(after.sums) - mean_by_group(before.sums)
    if paired:
        found = mean_of(GroupSums(by_group, jnp.ones_like(by_group)))
        found = found._replace(freedom=jnp.minimum(first.freedom, second.freedom))
    else:
        found = combine(second, first, 1.0, -1.0)
    known = unbiased(before) & unbiased(after)
    return Gain(found._replace(variance=jnp.where(known, found.variance, jnp.nan)), by_group)


def unbiased(sums: EpisodeSums) -> Bool[Array, ""]:
    """Whether the rows stand for whole episodes: as many begin as their shares count.

    They do where environments are anywhere in their episodes. Where all are at the same time in
    it, because a time limit alone ends them, or where episodes hardly ever begin, the rows have
    some ages and not others, all environments alike, and no spread between them shows that. Too
    few groups that begin an episode leave the spread itself unknown.
    """
    count = len(sums.begun)
    surplus = sums.begun - sums.episodes
    mean, error = jnp.mean(surplus), jnp.std(surplus, ddof=1) / count**0.5
    balanced = jnp.abs(mean) <= MAX_SURPLUS * error + 1e-6 * jnp.mean(sums.episodes)
    return balanced & (effective_groups(sums.episodes) >= FEWEST_GROUPS)


def shows_gain(explained: Float[Array, ""], carried: Float[Array, ""]) -> Bool[Array, ""]:
    """Whether what an update gained shows in the rollout that follows it.

    An update also changes which states are visited. What that is worth is in the rewards, if
    episodes fit into the rollout, or in the values of a critic that tells good states from bad
    ones. With neither the gain is still ahead at the rollout's end, and is underestimated. The
    rollout before the update is asked: what is chosen by its own outcome is biased by that.

    Args:
        explained: the critic's explained variance on that rollout, which it was not fitted to.
        carried: the share of the episodes that began before that rollout.
    """
    return (explained >= MIN_EXPLAINED) | (carried <= MAX_CARRIED)


def total_gain(gained: Float[Array, " group"]) -> Estimate:
    """The mean of what each environment gained, its error judged by how environments differ."""
    return mean_of(GroupSums(gained, jnp.ones_like(gained)))


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
    """The smoothed promises with one more cross-fit; one that is not finite is passed over.

    With the first one the ratio starts anew: before it noise was taken for signal, and what u made
    of that would be blamed on the distance for many updates.
    """
    finite = jnp.isfinite(insample) & jnp.isfinite(across)
    first = finite & (state.insample == 0.0) & (state.across == 0.0)
    start = start_filter()
    state = RatioFilter(
        *(jnp.where(first, new, old) for new, old in zip(start, state, strict=True))
    )

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
    """Take in what one update promised, its mean KL, and what the next rollout says it gained.

    Without a cross-fit so far the whole promise is taken for signal. After a gain without a
    variance, or one that is not finite, the level starts anew.

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
    observed = state.observed + jnp.where(known, gain.mean, 0.0)
    weight = covariance[:, 0] / (covariance[0, 0] + variance)
    weight = jnp.where(known, weight, 0.0)
    surprise = observed - level
    updated = covariance - jnp.outer(weight, covariance[0])
    updated = jnp.where(known, updated, covariance.at[0].set(0.0).at[:, 0].set(0.0))
    return state._replace(
        level=jnp.where(known, level + weight[0] * surprise, 0.0),
        u=state.u + weight[1] * surprise,
        # Rounding makes the product slightly asymmetric, and that would add up over updates.
        covariance=0.5 * (updated + updated.T),
        observed=jnp.where(known, observed, 0.0),
    )


def filtered_ratio(
    state: RatioFilter, kl: Float[Array, ""]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Ratio of realised to promised at a mean KL, and its standard deviation."""
    root = jnp.sqrt(kl)
    # Rounding may leave a variance just below zero.
    return 1.0 - state.u * root, jnp.sqrt(jnp.maximum(state.covariance[1, 1], 0.0)) * root


class LensState(NamedTuple):
    """What is kept of one update until the next rollout can judge it.

    `params`, `obs_stats` and `return_scale` are those under which the critic's values were read
    before the update; `td` are the discounted TD errors of its rows then, and `promised` and `kl`
    what the surrogate promised and how far the policy went, all in the environment's units and in
    nats. `shows_gain` says whether the next rollout shows what it gained. `states` are some of the
    states it learned from. `gained` is what each group gained over the updates that have an
    interval, of which there were `judged`. `ready` is False before the first update.
    """

    params: Params
    obs_stats: Any
    return_scale: Float[Array, ""]
    td: EpisodeSums
    promised: Float[Array, ""]
    kl: Float[Array, ""]
    shows_gain: Bool[Array, ""]
    states: States
    ratio: RatioFilter
    gained: Float[Array, " group"]
    judged: Int[Array, ""]
    ready: Bool[Array, ""]


def start_lens(params: Params, obs_stats: Any, *, num_groups: int, num_features: int) -> LensState:
    """Nothing to judge yet."""
    zero, zeros, no = jnp.zeros(()), jnp.zeros(num_groups), jnp.zeros(NUM_STATES, bool)
    features = jnp.zeros((NUM_STATES, num_features))
    return LensState(
        params=params,
        obs_stats=obs_stats,
        return_scale=jnp.ones(()),
        td=EpisodeSums(zeros, zeros, zeros),
        promised=zero,
        kl=zero,
        shows_gain=jnp.array(True),
        states=States(features, jnp.zeros(NUM_STATES, jnp.int32), no, no),
        ratio=start_filter(),
        gained=zeros,
        judged=jnp.int32(0),
        ready=jnp.array(False),
    )


def judge_update(
    lens: LensState, after: EpisodeSums, *, paired: bool
) -> tuple[LensState, dict[str, Array]]:
    """Judge the update before this rollout: the lens with its gain taken in, and the figures.

    `after` has the TD errors of this rollout under the critic of before that update.
    """
    gain, change = realised_gain(lens.td, after, paired=paired)
    gain = gain._replace(variance=jnp.where(lens.shows_gain, gain.variance, jnp.nan))
    unknown = jnp.where(lens.ready, 0.0, jnp.nan)
    gain = gain._replace(mean=gain.mean + unknown)
    ratio = filter_gain(lens.ratio, gain, lens.promised, lens.kl)
    kept, deviation = filtered_ratio(ratio, lens.kl)
    # A policy that did not move has promised nothing to be kept.
    moved = unknown + jnp.where(lens.kl > 0, 0.0, jnp.nan)
    seen = interval_of(gain)
    known = lens.ready & jnp.isfinite(gain.variance)
    # One reward that is not finite must not spoil the sums of a whole run.
    gained = lens.gained + jnp.where(known & jnp.isfinite(change), change, 0.0)
    # The intervals of single gains do not tell how well their sum is known: two successive ones
    # share a rollout with opposite sign. How the environments' own sums differ does.
    total = interval_of(total_gain(gained))
    judged = lens.judged + known
    # Episodes of one rollout are no pairs of those of the next.
    unpaired = jnp.where(judged > 0, 0.0, jnp.nan) if paired else jnp.nan
    return (
        lens._replace(ratio=ratio, gained=gained, judged=judged),
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
