"""The batch an update learned from, as rows that can be scored along it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from surefoot.analysis.probe.scoring import OldRows
from surefoot.analysis.probe.sweep import Setting
from surefoot.formulas.advantages import generalized_advantage_estimation
from surefoot.parallel.rows import rows_in
from surefoot.types import Rollout


class OwnBatch(NamedTuple):
    """The rollout an update learned from, and how old each environment's episode was before it.

    `blocks` are those of its environments.
    """

    rollout: Rollout
    ages: Int[np.ndarray, " env"]
    blocks: int


def batch_rows(batch: OwnBatch, setting: Setting) -> OldRows:
    """The training batch as rows to be scored: raw rewards, the critic in their units."""
    rollout, value = batch.rollout, setting.judge.value
    assert value is not None
    times, episodes = episode_times(rollout, batch.ages)
    values, next_values = state_values(rollout, value, batch.blocks)
    advantages = generalized_advantage_estimation(
        jnp.where(rollout.valid, rollout.rewards, 0.0),
        jnp.asarray(values, jnp.float32),
        jnp.asarray(next_values, jnp.float32),
        jnp.asarray(rollout.terminated),
        jnp.asarray(rollout.truncated),
        gamma=setting.gamma,
        gae_lambda=setting.gae_lambda,
    )
    chosen = np.nonzero(np.asarray(rollout.valid))
    flat = lambda leaf: np.asarray(leaf)[chosen]  # noqa: E731
    _, group = np.unique(episodes[chosen], return_inverse=True)
    size = flat(advantages).astype(np.float64)
    return OldRows(
        jax.tree.map(lambda leaf: flat(leaf[:-1]), rollout.obs),
        jax.tree.map(flat, rollout.action_mask),
        jax.tree.map(flat, rollout.actions),
        group,
        setting.gamma ** times[chosen].astype(np.float64),
        size,
        size,
        int(group.max()) + 1,
    )


def episode_times(
    rollout: Rollout, ages: Int[np.ndarray, " env"]
) -> tuple[Int[np.ndarray, "time env"], Int[np.ndarray, "time env"]]:
    """Each row's step in its episode, and a number for each episode of a rollout."""
    ended = np.asarray(rollout.terminated | rollout.truncated)
    valid = np.asarray(rollout.valid)
    steps, episodes = np.zeros(ended.shape, np.int64), np.zeros(ended.shape, np.int64)
    age, episode = ages.astype(np.int64), np.arange(len(ages))
    for t in range(len(ended)):
        steps[t], episodes[t] = age, episode
        age = np.where(ended[t], 0, age + valid[t])
        fresh = np.cumsum(ended[t]) + episode.max()
        episode = np.where(ended[t], fresh, episode)
    return steps, episodes


def state_values(
    rollout: Rollout, value: Callable[[Any], Float[np.ndarray, " row"]], blocks: int
) -> tuple[Float[np.ndarray, "time env"], Float[np.ndarray, "time env"]]:
    """The critic's value of each row's state and of its true successor, read before any reset."""
    shape = np.shape(rollout.rewards)
    flat = jax.tree.map(lambda leaf: np.asarray(leaf).reshape(-1, *leaf.shape[2:]), rollout.obs)
    values = value(flat).reshape(shape[0] + 1, shape[1])
    successors = np.array(rows_in(blocks).flatten(values[1:])).reshape(blocks, -1)
    rows = np.asarray(rollout.final_rows).reshape(blocks, -1)
    inside = rows < successors.shape[1]
    if inside.any():
        seen = value(jax.tree.map(np.asarray, rollout.final_obs)).reshape(rows.shape)
        successors[np.nonzero(inside)[0], rows[inside]] = seen[inside]
    after = rows_in(blocks).unflatten(successors.reshape(-1), shape[0])
    next_values = np.where(rollout.truncated, after, values[1:])
    return values[:-1], next_values
