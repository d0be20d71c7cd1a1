"""What one iteration learns from a rollout: the same function for every rule."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from surefoot.diagnostics.episodes import EpisodeRows, episode_rows
from surefoot.formulas.running_stats import merge_obs_stats
from surefoot.rules.critic import fit_critic
from surefoot.training.batch import Metrics, Values, make_batch, scale_rewards, state_values
from surefoot.training.random_keys import Purpose, run_key
from surefoot.training.state import LearnState, Parts
from surefoot.types import Batch, Rollout


class Learned(NamedTuple):
    """What an iteration learned from, and how.

    `rewards` are scaled, `values` those of the critic before its fit, `episodes` its rows in their
    episodes; `info` is what the rule and the critic report. `finite` is False where the update was
    refused.
    """

    batch: Batch
    rewards: Float[Array, "time env"]
    values: Values
    episodes: EpisodeRows
    info: Metrics
    finite: Bool[Array, ""]


def learn(parts: Parts, state: LearnState, rollout: Rollout) -> tuple[LearnState, Learned]:
    """Make a batch of the rollout, update the policy by the rule, and fit the critic.

    A non-finite update leaves parameters and optimisers as they were, bit for bit.
    """
    settings, rows = parts.settings, parts.rows
    batch, rewards, values, episodes, totals = read_rollout(parts, state, rollout)
    key = run_key(state.seed, state.iteration, Purpose.UPDATE)
    start = state.params if parts.joint else state.params["policy"]
    params, rule, info = parts.rule.update(state.rule, start, batch, key)
    critic = None
    if not parts.joint:
        critic_params, critic, critic_info = fit_critic(
            settings.critic,
            lambda critic, inputs: parts.network.value({"critic": critic}, inputs),
            parts.num_updates,
            state.critic,
            state.params["critic"],
            batch,
            run_key(state.seed, state.iteration, Purpose.CRITIC),
            rows,
        )
        params, info = {"policy": params, "critic": critic_params}, info | critic_info
    # The rewards count too: an infinite one is clipped to an ordinary one.
    new, old = (params, rule, critic), (state.params, state.rule, state.critic)
    finite = all_finite((new, jnp.where(rollout.valid, rollout.rewards, 0.0)))
    # By selection and not by a product, in which NaN times zero would stay NaN.
    params, rule, critic = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
    obs = jax.tree.map(lambda leaf: leaf[:-1], rollout.obs)
    return_stats, returns_so_far, ages = totals
    state = state._replace(
        iteration=state.iteration + 1,
        params=params,
        rule=rule,
        critic=critic,
        # Only for the next rollout: this update must read what the acting policy read.
        obs_stats=merge_obs_stats(state.obs_stats, *rows.flatten((obs, rollout.valid))),
        return_stats=return_stats,
        returns_so_far=returns_so_far,
        ages=ages,
        refusals=jnp.where(finite, 0, state.refusals + 1),
    )
    return state, Learned(batch, rewards, values, episodes, info, finite)


def read_rollout(
    parts: Parts, state: LearnState, rollout: Rollout
) -> tuple[Batch, Float[Array, "time env"], Values, EpisodeRows, tuple]:
    """The batch, scaled rewards, the critic's values, rows in their episodes.

    Last what is carried on: statistics of returns, and returns and ages of the open episodes.
    """
    settings, rows = parts.settings, parts.rows
    rewards, return_stats, returns_so_far, scale = scale_rewards(
        settings, state.return_stats, state.returns_so_far, rollout, rows
    )
    values = state_values(parts.actor, state.params, state.obs_stats, rollout, rows)
    obs = jax.tree.map(lambda leaf: leaf[:-1], rollout.obs)
    inputs = parts.actor.inputs(state.obs_stats, obs, rollout.action_mask)
    episodes, ages = episode_rows(rollout, state.ages, settings.train.gamma)
    batch = make_batch(settings, inputs, rollout, episodes, rewards, values, scale, rows)
    return batch, rewards, values, episodes, (return_stats, returns_so_far, ages)


def all_finite(tree: PyTree) -> Bool[Array, ""]:
    """Whether every number of a tree is finite."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))
