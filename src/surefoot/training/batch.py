"""A rollout as rows to learn from: scaled rewards, values, advantages; and what it tells."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from surefoot.config.settings import Settings
from surefoot.diagnostics.groups import GroupSums, sum_by_group
from surefoot.diagnostics.update_stats import some_rows
from surefoot.formulas.advantages import (
    discounted_returns,
    generalized_advantage_estimation,
    td_errors,
)
from surefoot.formulas.distributions import kl
from surefoot.formulas.running_stats import RunningStats, merge_stats, standard_deviation
from surefoot.formulas.surrogate import weighted_mean
from surefoot.parallel.rows import by_block, from_rows, local, to_rows
from surefoot.rules.critic import explained_variance
from surefoot.training.rollout_jax import Actor
from surefoot.types import Batch, EnvSpec, Episodes, Inputs, Params, Rollout

Metrics = dict[str, Array]

FINAL_ROWS = 64
"""Truncated rows whose successors are valued at once; few rows of a rollout are truncated."""


def horizon_of(settings: Settings, spec: EnvSpec) -> float:
    """Steps over which a gain per step adds up: 1 / (1 - gamma), or the time limit at gamma 1."""
    gamma = settings.train.gamma
    if gamma < 1.0:
        return 1.0 / (1.0 - gamma)
    return float(spec.max_episode_steps or 1)


def scale_rewards(
    settings: Settings, stats: RunningStats, so_far: Float[Array, " env"], rollout: Rollout
) -> tuple[Float[Array, "time env"], RunningStats, Float[Array, " env"], Float[Array, ""]]:
    """Rewards over the running std of the discounted return, this rollout's rewards included."""
    rewards = jnp.where(rollout.valid, rollout.rewards, 0.0)
    ended = rollout.terminated | rollout.truncated
    totals, so_far = discounted_returns(rewards, so_far, ended, gamma=settings.train.gamma)
    totals, valid = to_rows((totals, rollout.valid), settings.train.blocks)
    stats = merge_stats(stats, totals, valid.astype(totals.dtype))
    if not settings.train.return_norm:
        return rewards, stats, so_far, jnp.ones(())
    scale = standard_deviation(stats)
    bound = settings.train.reward_clip
    return jnp.clip(rewards / scale, -bound, bound), stats, so_far, scale


def state_values(
    actor: Actor, params: dict[str, Params], obs_stats: Any, rollout: Rollout, *, blocks: int = 1
) -> tuple[Float[Array, "time env"], Float[Array, "time env"]]:
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
            rows, obs = jax.tree.map(
                lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, size),
                (final_rows, final_obs),
            )
            return start + size, successors.at[rows].set(value(obs), mode="drop")

        start = (jnp.int32(0), successors)
        return jax.lax.while_loop(lambda carry: carry[0] < count, write_some, start)[1]

    values = local(value, axis=1)(rollout.obs)
    after = values[1:]
    successors = to_rows(after, blocks)
    if len(rollout.final_rows):
        successors = by_block(fill, blocks)(successors, rollout.final_rows, rollout.final_obs)
    successors = from_rows(successors, len(after), blocks)
    return values[:-1], jnp.where(rollout.truncated, successors, after)


def td_sums(
    settings: Settings,
    values: tuple[Float[Array, "time env"], Float[Array, "time env"]],
    return_scale: Float[Array, ""],
    rollout: Rollout,
    groups: Int[Array, "time env"],
    count: int,
) -> GroupSums:
    """TD errors of each group's rows under a critic, in the environment's own units.

    Args:
        settings: of the run.
        values: that critic's `state_values`.
        return_scale: what the rewards were divided by when it was fitted.
        rollout: whose rewards count as the environment gave them.
        groups: the independent group of each row.
        count: how many groups there are at most.
    """
    here, after = values
    errors = td_errors(
        rollout.rewards,
        return_scale * here,
        return_scale * after,
        rollout.terminated,
        gamma=settings.train.gamma,
    )
    errors, valid, groups = to_rows((errors, rollout.valid, groups), settings.train.blocks)
    return sum_by_group(errors, valid, groups, count)


def make_batch(
    settings: Settings,
    actor: Actor,
    params: dict[str, Params],
    obs_stats: Any,
    rollout: Rollout,
    rewards: Float[Array, "time env"],
    return_scale: Float[Array, ""],
) -> tuple[Batch, tuple[Float[Array, "time env"], Float[Array, "time env"]]]:
    """Rows with advantages and value targets, and the `state_values` they were made of."""
    blocks = settings.train.blocks
    values = state_values(actor, params, obs_stats, rollout, blocks=blocks)
    advantages = _advantages(settings, rollout, rewards, values, settings.train.gae_lambda)
    obs = jax.tree.map(lambda leaf: leaf[:-1], rollout.obs)
    inputs = actor.inputs(obs_stats, obs, rollout.action_mask)
    batch = Batch(
        inputs=Inputs(*to_rows(tuple(inputs), blocks)),
        actions=to_rows(rollout.actions, blocks),
        old_log_probs=to_rows(rollout.log_probs, blocks),
        advantages=to_rows(advantages, blocks),
        values=to_rows(values[0], blocks),
        value_targets=to_rows(values[0] + advantages, blocks),
        weights=to_rows(rollout.valid, blocks).astype(advantages.dtype),
        return_scale=return_scale,
    )
    return batch, values


def _advantages(
    settings: Settings,
    rollout: Rollout,
    rewards: Float[Array, "time env"],
    values: tuple[Float[Array, "time env"], Float[Array, "time env"]],
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
    values: tuple[Float[Array, "time env"], Float[Array, "time env"]],
) -> Float[Array, ""]:
    """How much of the discounted returns that followed V explains, on rows it was not fitted to.

    The returns are the rewards themselves, to the end of the episode or of the rollout; V stands
    only for what comes after a rollout's end or a time limit.
    """
    monte_carlo = _advantages(settings, rollout, rewards, values, 1.0)
    blocks = settings.train.blocks
    here, monte_carlo, valid = to_rows((values[0], monte_carlo, rollout.valid), blocks)
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
