"""What an update really gained, from the rollout that follows it, and how much was ever there.

The critic of before the update stays frozen as a yardstick. Under any function B of the state the
mean of r + gamma B(s') - B(s) over a policy's states, times the horizon, is its return less B at
the start; so the difference of two such means, before and after an update, is what the update
gained, whatever B is. A B near the values only makes it less noisy.

How much of a promise is signal is asked of halves of the data: an update made from one half is
scored on the other.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
from scipy import stats

from surefoot.surrogate import promised_gain
from surefoot.types import Batch, Inputs, Params


class Watch(NamedTuple):
    """What is kept of one update until the next rollout can judge it.

    `params`, `obs_stats` and `return_scale` are those under which the critic's values were read
    before the update. `td_means` is the mean TD error of each environment's rows then, and
    `promised` the gain that the surrogate promised, both in the environment's units. `ready` is
    False before the first update.
    """

    params: Params
    obs_stats: Any
    return_scale: Float[Array, ""]
    td_means: Float[Array, " env"]
    promised: Float[Array, ""]
    ready: Bool[Array, ""]


def start_watch(params: Params, obs_stats: Any, num_envs: int) -> Watch:
    """Nothing to judge yet."""
    zero = jnp.zeros(())
    return Watch(params, obs_stats, jnp.ones(()), jnp.zeros(num_envs), zero, jnp.array(False))


def mean_by_env(
    rows: Float[Array, "time env"], valid: Bool[Array, "time env"]
) -> Float[Array, " env"]:
    """Mean of each environment's valid rows; 0 where it has none."""
    count = jnp.sum(valid, axis=0)
    return jnp.sum(jnp.where(valid, rows, 0.0), axis=0) / jnp.maximum(count, 1)


class Gain(NamedTuple):
    """A gain of discounted return, and its 95 % interval; NaN where there is none."""

    mean: Float[Array, ""]
    low: Float[Array, ""]
    high: Float[Array, ""]


def realised_gain(
    before: Float[Array, " env"], after: Float[Array, " env"], *, horizon: float
) -> Gain:
    """What an update gained: horizon x (mean TD error after - before), both under one critic.

    Environments are the independent units: the interval is Student's over their differences. One
    environment has no interval.

    Args:
        before: mean TD error of each environment's rows under the old policy.
        after: the same under the new policy and the same critic.
        horizon: 1 / (1 - gamma).

    Source: Kakade & Langford 2002, lemma 6.1, for any function in the place of V.
    """
    differences, num_envs = horizon * (after - before), before.shape[0]
    mean = jnp.mean(differences)
    if num_envs < 2:
        return Gain(mean, jnp.full((), jnp.nan), jnp.full((), jnp.nan))
    error = jnp.std(differences, ddof=1) / num_envs**0.5
    half = float(stats.t.ppf(0.975, num_envs - 1)) * error
    return Gain(mean, mean - half, mean + half)


def cross_fit(
    update: Callable[[Batch], Params],
    policy_fn: Callable[[Params, Inputs], Any],
    old_params: Params,
    batch: Batch,
    first: Bool[Array, " batch"],
    *,
    horizon: float,
) -> dict[str, Array]:
    """The promise of an update made from half of the data, scored on both halves; means of two.

    Scored on the half that it was fitted to, a promise holds noise; on the other half it holds
    only what is there in both. The halves must not share an episode.

    Args:
        update: the rule's update of `old_params` on a batch, as new policy parameters.
        policy_fn: the policy.
        old_params: the policy that collected the batch.
        batch: rows with raw advantages.
        first: which rows are in the first half.
        horizon: 1 / (1 - gamma).

    Source: the sample splitting of Chernozhukov et al. 2018, arXiv:1608.00060, section 1.
    """
    old = policy_fn(old_params, batch.inputs).log_prob(batch.actions)
    halves = [jnp.where(rows, batch.weights, 0.0) for rows in (first, ~first)]

    def scored(fitted: Float[Array, " batch"], other: Float[Array, " batch"]):
        new_params = update(batch._replace(weights=fitted))
        new = policy_fn(new_params, batch.inputs).log_prob(batch.actions)
        scale = horizon * batch.return_scale
        return tuple(
            scale * promised_gain(new, old, batch.advantages, weights)
            for weights in (fitted, other)
        )

    (own_a, other_a), (own_b, other_b) = scored(*halves), scored(*reversed(halves))
    return {
        "lens/insample_promise": 0.5 * (own_a + own_b),
        "lens/crossfit_promise": 0.5 * (other_a + other_b),
    }


def judge(watch: Watch, after: Float[Array, " env"], *, horizon: float) -> dict[str, Array]:
    """Promise and realised gain of the update before this rollout, by metric name."""
    gain = realised_gain(watch.td_means, after, horizon=horizon)
    unknown = jnp.where(watch.ready, 0.0, jnp.nan)
    return {
        "lens/promised_gain": watch.promised + unknown,
        "lens/realised_gain": gain.mean + unknown,
        "lens/realised_low": gain.low + unknown,
        "lens/realised_high": gain.high + unknown,
    }
