"""A rollout as rows to learn from: scaled rewards, values, advantages; and its metrics."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from surefoot.config.settings import Settings
from surefoot.diagnostics.episodes import EpisodeRows
from surefoot.diagnostics.groups import EpisodeSums, Layout, groups_of, sum_by_group
from surefoot.diagnostics.update_stats import some_rows
from surefoot.formulas.advantages import (
    discounted_returns,
    generalized_advantage_estimation,
    td_errors,
)
from surefoot.formulas.distributions import kl
from surefoot.formulas.running_stats import (
    MAX_MAGNITUDE,
    RunningStats,
    merge_stats,
    standard_deviation,
)
from surefoot.formulas.surrogate import weighted_mean
from surefoot.networks.actor_critic import Actor
from surefoot.rules.critic import explained_variance
from surefoot.rules.rows import Rows
from surefoot.types import Batch, Episodes, Inputs, Params, Rollout

Metrics = dict[str, Array]
Values = tuple[Float[Array, "time env"], Float[Array, "time env"]]
"""The critic's V of each row's state, and of its true successor."""

FINAL_ROWS = 64
"""Truncated rows whose successors are valued at once; few rows of a rollout are truncated."""


def scale_rewards(
    settings: Settings,
    stats: RunningStats,
    so_far: Float[Array, " env"],
    rollout: Rollout,
    rows: Rows,
) -> tuple[Float[Array, "time env"], RunningStats, Float[Array, " env"], Float[Array, ""]]:
    """Rewards over the running std of the discounted return, this rollout's rewards included."""
    # A row that is not valid may hold a NaN, which would stay in the running statistics.
    rewards = jnp.where(rollout.valid, rollout.rewards, 0.0)
    ended = rollout.terminated | rollout.truncated
    gamma = settings.train.gamma
    totals, so_far = discounted_returns(_measured(rewards), so_far, ended, gamma=gamma)
    # Of the return and not of the reward: its scale is that of what the critic predicts.
    totals, valid = rows.flatten((totals, rollout.valid))
    stats = merge_stats(stats, totals, valid.astype(totals.dtype))
    if not settings.train.return_norm:
        return rewards, stats, so_far, jnp.ones(())
    scale = standard_deviation(stats)
    bound = settings.train.reward_clip
    return jnp.clip(rewards / scale, -bound, bound), stats, so_far, scale


def _measured(rewards: Float[Array, "time env"]) -> Float[Array, "time env"]:
    """Rewards that statistics take in: one beyond all measure counts as 0.

    It would stay in the return for the rest of its episode, and in sums of squares for good.
    """
    return jnp.where(jnp.abs(rewards) <= MAX_MAGNITUDE, rewards, 0.0)


def state_values(
    actor: Actor, params: dict[str, Params], obs_stats: Any, rollout: Rollout, rows: Rows
) -> Values:
    """The critic's V of each row's state and of its true successor, read before any reset."""

    def value(obs):
        # Of an unmasked observation: a mask belongs to the action, not to the state.
        return actor.network.value(params, actor.inputs(obs_stats, obs, None))

    def fill(successors, final_rows, final_obs):
        """A block's values of what follows each row, those behind a truncation in their places."""
        size = min(len(final_rows), FINAL_ROWS)
        count = jnp.sum(final_rows < len(successors))

        def write_some(carry):
            start, successors = carry
            # The last slice may reach back into the one before, whose rows get equal values again.
            places, obs = jax.tree.map(
                lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, size),
                (final_rows, final_obs),
            )
            return start + size, successors.at[places].set(value(obs), mode="drop")

        start = (jnp.int32(0), successors)
        return jax.lax.while_loop(lambda carry: carry[0] < count, write_some, start)[1]

    values = rows.per_env(value, axis=1)(rollout.obs)
    after = values[1:]
    successors = rows.flatten(after)
    if len(rollout.final_rows):
        successors = rows.per_part(fill)(successors, rollout.final_rows, rollout.final_obs)
    successors = rows.unflatten(successors, len(after))
    return values[:-1], jnp.where(rollout.truncated, successors, after)


def td_sums(
    settings: Settings,
    values: Values,
    return_scale: Float[Array, ""],
    rollout: Rollout,
    episodes: EpisodeRows,
    groups: Int[Array, " batch"],
    rows: Rows,
) -> EpisodeSums:
    """Discounted TD errors of each group under a critic, in the environment's own units.

    Per episode they are its discounted return, the critic standing for what lies behind a time
    limit, less the critic's value of its start.

    Args:
        settings: of the run.
        values: that critic's `state_values`.
        return_scale: what the rewards were divided by when it was fitted.
        rollout: whose rewards count as the environment gave them.
        episodes: its rows in their episodes.
        groups: the independent group of each row.
        rows: access to the rows.
    """
    here, after = values
    errors = td_errors(
        _measured(rollout.rewards),
        return_scale * here,
        return_scale * after,
        rollout.terminated,
        gamma=settings.train.gamma,
    )
    errors, (discounts, shares, begins, _) = rows.flatten((errors, episodes))
    count = Layout(settings.train.num_envs, rows.parts).num_groups
    begun = jax.ops.segment_sum(begins.astype(shares.dtype), groups, count)
    of_errors = sum_by_group(errors, discounts, groups, count).totals
    return EpisodeSums(of_errors, jax.ops.segment_sum(shares, groups, count), begun)


def make_batch(
    settings: Settings,
    inputs: Inputs,
    rollout: Rollout,
    episodes: EpisodeRows,
    rewards: Float[Array, "time env"],
    values: Values,
    return_scale: Float[Array, ""],
    rows: Rows,
) -> Batch:
    """Rows with advantages and value targets.

    Args:
        settings: of the run.
        inputs: what the policy reads in each state of the rollout.
        rollout: the experience.
        episodes: its rows in their episodes.
        rewards: scaled, from `scale_rewards`.
        values: the critic's, from `state_values`.
        return_scale: what the rewards were divided by.
        rows: access to the rows.
    """
    advantages = _advantages(settings, rollout, rewards, values, settings.train.gae_lambda)
    return Batch(
        inputs=rows.flatten(inputs),
        actions=rows.flatten(rollout.actions),
        old_log_probs=rows.flatten(rollout.log_probs),
        advantages=rows.flatten(advantages),
        values=rows.flatten(values[0]),
        value_targets=rows.flatten(values[0] + advantages),
        weights=rows.flatten(rollout.valid).astype(advantages.dtype),
        visits=rows.flatten(episodes.discounts) / jnp.sum(episodes.shares),
        groups=rows.flatten(groups_of(rollout)),
        return_scale=return_scale,
    )


def _advantages(
    settings: Settings,
    rollout: Rollout,
    rewards: Float[Array, "time env"],
    values: Values,
    gae_lambda: float,
) -> Float[Array, "time env"]:
    return generalized_advantage_estimation(
        rewards,
        *values,
        rollout.terminated,
        rollout.truncated,
        gamma=settings.train.gamma,
        gae_lambda=gae_lambda,
    )


def fresh_explained_variance(
    settings: Settings,
    rollout: Rollout,
    rewards: Float[Array, "time env"],
    values: Values,
    rows: Rows,
) -> Float[Array, ""]:
    """How much of the discounted returns that followed V explains, on rows it was not fitted to.

    The returns are the rewards themselves, to the end of the episode or of the rollout; V stands
    only for what comes after a rollout's end or a time limit.
    """
    # At lambda 1 the values between cancel and the rewards alone remain.
    monte_carlo = _advantages(settings, rollout, rewards, values, 1.0)
    here, monte_carlo, valid = rows.flatten((values[0], monte_carlo, rollout.valid))
    return explained_variance(here, here + monte_carlo, valid.astype(monte_carlo.dtype))


def episode_metrics(episodes: Episodes) -> Metrics:
    """Count, mean, least and greatest return, mean length of the episodes that ended."""
    count = jnp.sum(episodes.ended)
    share = episodes.ended / jnp.maximum(count, 1)
    nothing = jnp.where(count > 0, 0.0, jnp.nan)
    return {
        "episode/count": count,
        "episode/return_mean": jnp.sum(episodes.returns * share) + nothing,
        "episode/return_min": jnp.min(jnp.where(episodes.ended, episodes.returns, jnp.inf))
        + nothing,
        "episode/return_max": jnp.max(jnp.where(episodes.ended, episodes.returns, -jnp.inf))
        + nothing,
        "episode/length_mean": jnp.sum(episodes.lengths * share) + nothing,
    }


def normalization_kl(
    actor: Actor, policy: Params, stats: Any, next_stats: Any, rows: tuple[Any, Any, Any]
) -> Float[Array, ""]:
    """Mean KL of the new policy that the next statistics alone cause, in nats, over some rows.

    `rows` are raw observations, masks, and which of them are valid.
    """
    if all(each is None for each in stats):
        return jnp.zeros(())
    obs, mask, valid = jax.tree.map(some_rows, rows)
    before, after = (
        actor.network.policy(policy, actor.inputs(each, obs, mask)) for each in (stats, next_stats)
    )
    return weighted_mean(kl(before, after), valid.astype(jnp.zeros(()).dtype))
