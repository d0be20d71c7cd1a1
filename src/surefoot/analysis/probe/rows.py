"""Rows of the old policy with their advantages, and the scores of other policies on them.

Rows are from fresh episodes or a training batch. Everything is weighted by gamma^t and in the
environment's units, with raw advantages: so a promise and the gain that comes of it compare.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, PyTree

from surefoot.analysis.probe.players import PlayedEpisodes, Trajectories
from surefoot.analysis.probe.policies import PolicyFunctions
from surefoot.analysis.probe.settings import ProbeSettings
from surefoot.formulas.advantages import generalized_advantage_estimation

BOUND_ROWS = 50_000
"""Maximum number of rows that the bounds are computed from."""
_compiled_advantages = jax.jit(generalized_advantage_estimation)


class Experience(NamedTuple):
    """Steps of the old policy, `[time, column]`, with the critic's values in reward units.

    A column has one episode after another; `ages` are the steps that its first one had before.
    `next_values` are of true successors. Rows that are not `valid` count nowhere.
    """

    steps: Trajectories
    values: Float[np.ndarray, "time column"]
    next_values: Float[np.ndarray, "time column"]
    terminated: Bool[np.ndarray, "time column"]
    truncated: Bool[np.ndarray, "time column"]
    valid: Bool[np.ndarray, "time column"]
    ages: Int[np.ndarray, " column"]


class OldRows(NamedTuple):
    """Valid rows of the old policy, flat, with raw advantages in the environment's units.

    `episode` is the number of each row's episode, and `weights` gamma^t with t counted from its
    start. `monte_carlo` are advantages by lambda = 1, whose mean is right under any critic.
    """

    obs: PyTree
    action_mask: PyTree | None
    actions: PyTree
    episode: Int[np.ndarray, " row"]
    weights: Float[np.ndarray, " row"]
    advantages: Float[np.ndarray, " row"]
    monte_carlo: Float[np.ndarray, " row"]
    num_episodes: int


def rows_of_episodes(
    played: PlayedEpisodes, functions: PolicyFunctions, settings: ProbeSettings
) -> OldRows:
    """Rows of whole episodes.

    Without a critic, the mean return ahead in the other episodes is the baseline of each: a
    constant that does not depend on the episode's own actions.
    """
    steps, value = played.trajectories, functions.value
    assert steps is not None
    time = np.arange(len(steps.rewards))[:, None]
    valid, last = time < played.lengths, time == np.asarray(played.lengths) - 1
    # One row more, for the successor of the last step.
    values = np.zeros((len(time) + 1, len(played.lengths)))
    if value is not None:
        values[:-1][valid] = value(jax.tree.map(lambda leaf: leaf[valid], steps.obs))
    after = np.where(last, played.values_ahead(functions), values[1:])
    terminated, ages = last & np.asarray(played.terminated), np.zeros_like(played.lengths)
    # A cut at the limit of the probe is treated as a time limit.
    experience = Experience(steps, values[:-1], after, terminated, last & ~terminated, valid, ages)
    rows = rows_of(experience, settings)
    if value is not None:
        return rows
    base = _mean_of_others(rows)[rows.episode]
    return rows._replace(advantages=rows.advantages - base, monte_carlo=rows.monte_carlo - base)


def _mean_of_others(rows: OldRows) -> Float[np.ndarray, " episode"]:
    """For each episode the mean, over the other ones, of their weighted mean return ahead."""
    count = rows.num_episodes
    total = np.bincount(rows.episode, rows.weights * rows.monte_carlo, count)
    mean = total / np.bincount(rows.episode, rows.weights, count)
    return (mean.sum() - mean) / (count - 1) if count > 1 else np.zeros(1)


def rows_of(experience: Experience, settings: ProbeSettings) -> OldRows:
    """The valid rows, with advantages by both lambdas."""
    steps, valid = experience.steps, experience.valid
    advantages, monte_carlo = (
        _advantages(experience, settings.gamma, gae_lambda)[valid]
        for gae_lambda in (settings.gae_lambda, 1.0)
    )
    ended = experience.terminated | experience.truncated
    age, episode, _ = episode_ages(ended, valid, experience.ages)
    # Renumbered: an episode without a valid row would count as one with a sum of 0.
    _, episode = np.unique(episode[valid], return_inverse=True)
    kept = jax.tree.map(lambda leaf: leaf[valid], (steps.obs, steps.action_mask, steps.actions))
    weights = settings.gamma ** age[valid].astype(np.float64)
    parts = [*kept, episode, weights, advantages, monte_carlo, int(episode.max()) + 1]
    return OldRows._make(parts)


def episode_ages(
    ended: Bool[np.ndarray, "time column"],
    valid: Bool[np.ndarray, "time column"],
    age: Int[np.ndarray, " column"],
) -> tuple[Int[np.ndarray, "time column"], Int[np.ndarray, "time column"], Any]:
    """Step of each row in its episode, a number for each episode, and the ages after all rows."""
    ages = np.zeros(ended.shape, np.int64)
    episodes, episode = np.zeros_like(ages), np.arange(len(age))
    for t in range(len(ended)):
        ages[t], episodes[t] = age, episode
        # A dummy transition of a reset is no step of its episode.
        age = np.where(ended[t], 0, age + valid[t])
        # Each episode that begins gets the next free number.
        episode = np.where(ended[t], episode.max() + np.cumsum(ended[t]), episode)
    return ages, episodes, age


def _advantages(
    experience: Experience, gamma: float, gae_lambda: float
) -> Float[np.ndarray, "time column"]:
    """Generalised advantages, in float64: what two policies differ by is small."""
    shape = experience.valid.shape
    # Episodes differ in length: powers of two keep the number of compiled programs small.
    extra = [(0, (1 << (size - 1).bit_length()) - size) for size in shape]
    rewards = np.where(experience.valid, experience.steps.rewards, 0.0)
    # Zeros behind the last row change nothing: their TD errors are 0.
    arrays = [np.pad(array, extra) for array in (rewards, *experience[1:5])]
    with jax.enable_x64(True):
        found = _compiled_advantages(*arrays, gamma=gamma, gae_lambda=gae_lambda)
        return np.asarray(found)[: shape[0], : shape[1]]


def join_rows(lots: list[OldRows]) -> OldRows:
    """Rows of several lots of episodes, with consecutive numbers."""
    offsets = np.cumsum([0, *(lot.num_episodes for lot in lots)])
    pairs = zip(lots, offsets[:-1], strict=True)
    moved = [lot._replace(episode=lot.episode + offset)[:-1] for lot, offset in pairs]
    arrays = jax.tree.map(lambda *leaves: np.concatenate(leaves), *moved)
    return OldRows._make([*arrays, int(offsets[-1])])


class PolicyScores(NamedTuple):
    """One policy on the old one's episodes: sums of each episode, weighted by gamma^t.

    The first three are of (r - 1) A, which is a gain of discounted return: by the run's lambda, by
    Monte Carlo, and under PPO's clip. `mass` is the sum of the weights alone. `worst_kl` and `rows`
    are for `sampled_bounds`.
    """

    promise: Float[np.ndarray, " episode"]
    monte_carlo: Float[np.ndarray, " episode"]
    clipped: Float[np.ndarray, " episode"]
    kl: Float[np.ndarray, " episode"]
    mass: Float[np.ndarray, " episode"]
    worst_kl: tuple[float, float]
    rows: Float[np.ndarray, "row figure"]


def score_rows(
    functions: PolicyFunctions, old: Any, new: Any, rows: OldRows, *, clip_eps: float
) -> PolicyScores:
    """Score a policy on the old one's rows."""
    batch = rows.obs, rows.action_mask, rows.actions
    ratio, kl, reverse_kl = functions.compare(old, new, *batch)
    lift = (ratio - 1.0) * rows.advantages
    clipped = np.clip(ratio, 1.0 - clip_eps, 1.0 + clip_eps) - 1.0

    def by_episode(values: Float[np.ndarray, " row"]) -> Float[np.ndarray, " episode"]:
        return np.bincount(rows.episode, rows.weights * values, rows.num_episodes)

    parts = rows.weights, lift, np.abs(ratio - 1.0) / 2, np.abs(rows.advantages)
    return PolicyScores(
        promise=by_episode(lift),
        monte_carlo=by_episode((ratio - 1.0) * rows.monte_carlo),
        clipped=by_episode(np.minimum(lift, clipped * rows.advantages)),
        kl=by_episode(kl),
        mass=by_episode(np.ones_like(lift)),
        worst_kl=(float(kl.max()), float(reverse_kl.max())),
        rows=np.stack([part[:BOUND_ROWS] for part in parts], axis=1),
    )


def join_scores(first: PolicyScores, second: PolicyScores) -> PolicyScores:
    """Scores of two lots of episodes."""
    sums = [np.concatenate(pair) for pair in zip(first[:5], second[:5], strict=True)]
    worst = tuple(map(max, first.worst_kl, second.worst_kl))
    # The bounds want a sample of rows, not all that were played.
    rows = [first.rows] if len(first.rows) >= BOUND_ROWS else [first.rows, second.rows]
    return PolicyScores._make([*sums, worst, np.concatenate(rows)])
