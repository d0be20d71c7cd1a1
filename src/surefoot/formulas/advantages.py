"""Discounted returns, TD errors, generalised advantages and the critic's targets."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def discounted_returns(
    rewards: Float[Array, "time env"],
    start: Float[Array, " env"],
    ended: Bool[Array, "time env"],
    *,
    gamma: float | Float[Array, ""],
) -> tuple[Float[Array, "time env"], Float[Array, " env"]]:
    """Discounted sum of the rewards so far in each episode, and where it stands at the end.

    This looks back, not ahead: G_t = r_t + gamma G_{t-1}, restarted after an episode's end. Its
    spread is the scale by which rewards are divided.

    Args:
        rewards: reward of each transition; 0 where the row is a dummy.
        start: G carried over from the rollout before.
        ended: the episode ended with this transition.
        gamma: discount per step, in [0, 1].
    """

    def forwards(total, step):
        reward, ended = step
        total = reward + gamma * total
        return jnp.where(ended, 0.0, total), total

    last, totals = jax.lax.scan(forwards, start, (rewards, ended))
    return totals, last


def td_errors(
    rewards: Float[Array, "time env"],
    values: Float[Array, "time env"],
    next_values: Float[Array, "time env"],
    terminated: Bool[Array, "time env"],
    *,
    gamma: float | Float[Array, ""],
) -> Float[Array, "time env"]:
    """The TD error r + gamma V(s') - V(s); a terminated transition has no successor.

    Args:
        rewards: reward of the transition.
        values: V(s_t), in units of discounted reward.
        next_values: V of the true successor, read before any reset.
        terminated: the MDP ended with this transition.
        gamma: discount per step, in [0, 1].
    """
    # Not a product with `~terminated`: a value that is not finite would survive it.
    return rewards + gamma * jnp.where(terminated, 0.0, next_values) - values


def generalized_advantage_estimation(
    rewards: Float[Array, "time env"],
    values: Float[Array, "time env"],
    next_values: Float[Array, "time env"],
    terminated: Bool[Array, "time env"],
    truncated: Bool[Array, "time env"],
    *,
    gamma: float | Float[Array, ""],
    gae_lambda: float | Float[Array, ""],
) -> Float[Array, "time env"]:
    """Advantage of each action: a λ-weighted sum of TD errors up to the episode's end.

    Row t of every argument describes the transition out of state t. A terminated transition is
    worth its reward and no more. A truncated one still earns the value of its true successor,
    but the sum stops there, as it does at the rollout's last row.

    Args:
        rewards: reward of the transition.
        values: V(s_t), in units of discounted reward.
        next_values: V of the true successor, read before any reset.
        terminated: the MDP ended with this transition.
        truncated: time ran out with this transition; the MDP did not end.
        gamma: discount per step, in [0, 1].
        gae_lambda: 0 gives the one-step TD error, 1 the Monte Carlo advantage.

    Returns:
        Advantages, in the units of `values`; `values + advantages` is the critic's target.

    Source: Schulman et al. 2016, arXiv:1506.02438, eq. 16.
    """
    errors = td_errors(rewards, values, next_values, terminated, gamma=gamma)
    decay = gamma * gae_lambda * ~(terminated | truncated)

    def backwards(advantage, step):
        error, decay = step
        advantage = error + decay * advantage
        return advantage, advantage

    # It starts from 0: the last row's own error already holds the value of its successor.
    _, advantages = jax.lax.scan(
        backwards, jnp.zeros_like(errors[0]), (errors, decay), reverse=True
    )
    return advantages
