"""What episodes of the old policy say about other policies: promise, clip, KL, bounds.

Everything is weighted by gamma^t and in the environment's units, with the advantages raw: so that
a promise and what comes of it are one and the same quantity.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int, PyTree
from scipy import special

from surefoot.analysis.probe.contenders import Judge
from surefoot.analysis.probe.estimates import Estimate, ratio_interval
from surefoot.analysis.probe.players import Played

BOUND_ROWS = 50_000
"""Rows that the bounds are computed from."""
CERTIFICATES = {
    "B6": "Schulman et al. 2015: largest KL of a state",
    "B10": "square-root-horizon visitation lemma: mean KL",
    "B11": "entropic: spread of the expected advantage over old states",
}
"""The bounds of the theory that a probe draws; from a batch none of them is a guarantee."""


class OldRows(NamedTuple):
    """Rows of the old policy, ready to be scored; `group` is each row's episode.

    `advantages` are by the run's lambda, `monte_carlo` by lambda = 1, whose mean is right under any
    critic. `weights` are gamma^t, t counted from the episode's start.
    """

    obs: PyTree
    action_mask: PyTree | None
    actions: PyTree
    group: Int[np.ndarray, " row"]
    weights: Float[np.ndarray, " row"]
    advantages: Float[np.ndarray, " row"]
    monte_carlo: Float[np.ndarray, " row"]
    num_groups: int


class Scores(NamedTuple):
    """One policy on the old one's episodes: sums over each episode, and what the bounds read.

    The first four are gains of discounted return over the old policy; `kl` and `mass` are sums of
    gamma^t KL and of gamma^t. `worst` are the largest KL of a row and the largest the other way.
    """

    promise: Float[np.ndarray, " episode"]
    monte_carlo: Float[np.ndarray, " episode"]
    clipped: Float[np.ndarray, " episode"]
    kl: Float[np.ndarray, " episode"]
    mass: Float[np.ndarray, " episode"]
    worst: tuple[float, float]
    rows: Float[np.ndarray, "row figure"]


def final_values(played: Played, judge: Judge) -> Float[np.ndarray, " episode"]:
    """What is still to come where an episode was cut: the critic's value, or 0 without one."""
    if judge.value is None:
        return np.zeros(len(played.lengths))
    return np.where(np.asarray(played.terminated), 0.0, judge.value(played.last_obs))


def discounted(played: Played, judge: Judge, *, gamma: float) -> Float[np.ndarray, " episode"]:
    """Discounted returns, with the critic's value of what was cut."""
    left = gamma ** np.asarray(played.lengths) * final_values(played, judge)
    return np.asarray(played.returns) + left


def old_rows(played: Played, judge: Judge, *, gamma: float, gae_lambda: float) -> OldRows:
    """The rows of the old policy's episodes, with both kinds of advantages."""
    trace, lengths = played.trace, played.lengths
    assert trace is not None
    num_steps, count = trace.rewards.shape
    inside = np.arange(num_steps)[:, None] < lengths
    time, episode = np.nonzero(inside)
    flat = lambda leaf: leaf[time, episode]  # noqa: E731
    values = np.zeros((num_steps + 1, count))
    if judge.value is not None:
        values[time, episode] = judge.value(jax.tree.map(flat, trace.obs))
    values[lengths, np.arange(count)] = final_values(played, judge)
    rewards = np.where(inside, trace.rewards, 0.0)
    advantages, monte_carlo = (
        _advantages(rewards, values, inside, gamma=gamma, decay=gamma * decay)
        for decay in (gae_lambda, 1.0)
    )
    weights = gamma ** time.astype(np.float64)
    if judge.value is None:
        base = _others_mean(monte_carlo, inside, gamma)
        advantages, monte_carlo = advantages - base, monte_carlo - base
    return OldRows(
        jax.tree.map(flat, trace.obs),
        jax.tree.map(flat, trace.action_mask),
        jax.tree.map(flat, trace.actions),
        episode,
        weights,
        flat(advantages),
        flat(monte_carlo),
        count,
    )


def _advantages(
    rewards: Float[np.ndarray, "time episode"],
    values: Float[np.ndarray, "next episode"],
    inside: Any,
    *,
    gamma: float,
    decay: float,
) -> Float[np.ndarray, "time episode"]:
    """GAE of whole episodes; `values` have one row more, and the last value where one was cut."""
    errors = np.where(inside, rewards + gamma * values[1:] - values[:-1], 0.0)
    for t in range(len(errors) - 2, -1, -1):
        errors[t] += decay * errors[t + 1]
    return errors


def _others_mean(
    returns: Float[np.ndarray, "time episode"], inside: Any, gamma: float
) -> Float[np.ndarray, " episode"]:
    """A constant for each episode in the critic's place: the other episodes' mean return ahead.

    Of the others, so that it has nothing to do with the episode's own actions.
    """
    weights = np.where(inside, gamma ** np.arange(len(returns))[:, None], 0.0)
    mean = (weights * returns).sum(axis=0) / weights.sum(axis=0)
    count = len(mean)
    return (mean.sum() - mean) / (count - 1) if count > 1 else np.zeros(1)


def score(judge: Judge, old: Any, new: Any, rows: OldRows, *, clip_eps: float) -> Scores:
    """A policy on the old one's rows."""
    found = judge.compare(old, new, rows.obs, rows.action_mask, rows.actions)
    lift = (found.ratio - 1.0) * rows.advantages
    held = np.clip(found.ratio, 1.0 - clip_eps, 1.0 + clip_eps) - 1.0
    clipped = np.minimum(lift, held * rows.advantages)

    def by_episode(values: Float[np.ndarray, " row"]) -> Float[np.ndarray, " episode"]:
        return np.bincount(rows.group, rows.weights * values, rows.num_groups)

    few = slice(BOUND_ROWS)
    return Scores(
        by_episode(lift),
        by_episode((found.ratio - 1.0) * rows.monte_carlo),
        by_episode(clipped),
        by_episode(found.kl),
        by_episode(np.ones_like(lift)),
        (float(found.kl.max()), float(found.reverse_kl.max())),
        np.stack([rows.weights, lift, np.abs(found.ratio - 1.0) / 2, np.abs(rows.advantages)], 1)[
            few
        ],
    )


def join(first: Scores, second: Scores) -> Scores:
    """The scores of two lots of episodes."""
    sums = [np.concatenate(pair) for pair in zip(first[:5], second[:5], strict=True)]
    worst = (max(first.worst[0], second.worst[0]), max(first.worst[1], second.worst[1]))
    enough = len(first.rows) >= BOUND_ROWS
    rows = first.rows if enough else np.concatenate([first.rows, second.rows])
    return Scores._make([*sums, worst, rows])


def join_rows(lots: list[OldRows]) -> OldRows:
    """The rows of several lots of episodes."""
    offsets = np.cumsum([0, *(lot.num_groups for lot in lots)])
    moved = [
        lot._replace(group=lot.group + offset, num_groups=0)
        for lot, offset in zip(lots, offsets[:-1], strict=True)
    ]
    whole = jax.tree.map(lambda *leaves: np.concatenate(leaves), *(lot[:-1] for lot in moved))
    return OldRows._make([*whole, int(offsets[-1])])


def mean_kl(scores: Scores) -> Estimate:
    """Mean KL(old || new) over states weighted by gamma^t, in nats."""
    ratio = ratio_interval(scores.kl, scores.mass)
    if ratio is None:
        return Estimate(float(scores.kl.sum() / scores.mass.sum()), None, None)
    return Estimate(*ratio)


def in_sample(scores: Scores, mass: float) -> Estimate:
    """The promise on the training batch, scaled to episodes of a mean discounted mass `mass`.

    A batch cuts episodes and holds more of some times than of others: the mean over its rows,
    weighted by gamma^t, is what compares with whole episodes. The interval is over its episodes;
    it does not know that the update was fitted to them.
    """
    ratio = ratio_interval(scores.promise, scores.mass)
    if ratio is None:
        return Estimate(mass * float(scores.promise.sum() / scores.mass.sum()), None, None)
    return Estimate(*(mass * each for each in ratio))


def certificates(scores: Scores, *, gamma: float, horizon: float) -> dict[str, float]:
    """The gain that each bound leaves over the old policy, by its name in `CERTIFICATES`.

    Estimated from the batch: maxima and log-moments of a sample are lower estimates of their
    terms, and no data of the old policy sees states that it never visited. Single rows stand for
    expected advantages, which makes the spans wider.

    Source: Schulman et al. 2015, arXiv:1502.05477, theorem 1; Donsker & Varadhan 1983.
    """
    weights, lift, half_moved, size = scores.rows.T
    promise, (kl_max, reverse_max) = float(scores.promise.mean()), scores.worst
    # In float32 the KL of a very small step may come out below 0.
    kl = max(float(scores.kl.mean()) / horizon, 0.0)
    # Episodes that ended are in a state where nothing moves and nothing is gained.
    share = weights * (float(scores.mass.mean()) / horizon / weights.sum())
    path = gamma * horizon * kl
    visits = min((path / 2) ** 0.5, float(-np.expm1(-path)) ** 0.5)
    visits = min(visits, gamma * horizon * float(share @ half_moved))
    span = max(float(lift.max()), 0.0) - min(float(lift.min()), 0.0)
    found = {
        "B6": promise - 4 * float(size.max()) * gamma * horizon**2 * min(kl_max, reverse_max),
        "B10": promise - horizon * span * visits,
        "B11": -_entropic(lift, share, gamma * horizon * reverse_max, horizon),
    }
    return {name: value for name, value in found.items() if np.isfinite(value)}


def _entropic(
    lift: Float[np.ndarray, " row"],
    share: Float[np.ndarray, " row"],
    cost: float,
    horizon: float,
) -> float:
    """Min over λ of (H / λ) (K + log E exp(-λ lift)); any λ bounds, so a grid will do."""
    scale = float(np.abs(lift).max())
    if scale == 0.0 or not np.isfinite(cost):
        return 0.0 if scale == 0.0 else np.inf
    rates = np.geomspace(1e-4, 30.0, 16) / scale
    rest = max(1.0 - float(share.sum()), 0.0)
    losses = []
    for rate in rates:
        moment: Any = special.logsumexp(
            np.append(-rate * lift, 0.0), b=np.append(share, rest + 1e-300)
        )
        losses.append(horizon / rate * (cost + moment))
    return float(min(losses))
