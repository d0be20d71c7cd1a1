"""Paired episodes: policies that meet the same fate, step by step, as long as they act alike.

Every random number belongs to an episode and a step of it, and to no policy. So episode 7 of the
new policy starts where episode 7 of the old one did, meets the same chances and draws its actions
from the same noise; what differs between the two is what the policies do. Differences of returns
over such pairs vary much less than differences of independent episodes.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from surefoot.envs.jax_native import JaxEnv
from surefoot.training.seeds import Purpose, run_key

MOST_JAX_EPISODES, TRACE_BYTES = 512, 64 * 2**20
"""Most JAX-native episodes at once, and most memory that their trajectories may take."""


class Trace(NamedTuple):
    """What one policy's episodes went through, `[time, episode]`; past an end it means nothing."""

    obs: PyTree
    action_mask: PyTree | None
    actions: PyTree
    rewards: Float[np.ndarray | Array, "time episode"]


class Played(NamedTuple):
    """Whole episodes under one policy.

    `returns` are discounted and count what was paid until the end, the environment's time limit or
    the horizon; an episode that did not terminate goes on from `last_obs`. `lengths` are steps.
    """

    returns: Float[np.ndarray | Array, " episode"]
    lengths: Int[np.ndarray | Array, " episode"]
    terminated: Bool[np.ndarray | Array, " episode"]
    last_obs: PyTree
    trace: Trace | None


class Player(Protocol):
    """Plays episodes, each known by its number."""

    group: int
    paired: bool

    def play(self, policy: Any, first: int, count: int, *, keep: bool) -> Played:
        """Episodes `first` to `first + count - 1`, at most `group` of them; `keep` their trace."""
        ...

    def close(self) -> None:
        """Let go of the environments."""
        ...


class JaxPlayer:
    """Episodes of a JAX-native environment, side by side in one program.

    `act(policy, obs, mask, key) -> (action, sent)` for one observation. A policy is a tree of
    parameters, or where `fixed` a pair of functions, for which a program of its own is built.
    """

    paired = True

    def __init__(
        self,
        env: JaxEnv,
        act: Callable[..., tuple[Any, Any]],
        *,
        gamma: float,
        limit: int,
        seed: int,
        fixed: bool,
    ):
        row = jax.eval_shape(env.reset, jax.random.key(0))[1]
        size = 16 + sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(row))
        self.group = int(np.clip(TRACE_BYTES // (size * limit), 16, MOST_JAX_EPISODES))
        self._key = run_key(seed, 0, Purpose.PROBE)
        static = ("keep", "policy") if fixed else ("keep",)
        play = partial(_play, env, act, gamma, limit, self.group)
        self._play = jax.jit(play, static_argnames=static)

    def play(self, policy: Any, first: int, count: int, *, keep: bool) -> Played:
        """Episodes of one policy."""
        found, time = jax.device_get(
            self._play(self._key, jnp.int32(first), jnp.int32(count), policy=policy, keep=keep)
        )
        some = jax.tree.map(lambda leaf: leaf[:count], found._replace(trace=None))
        if not keep:
            return some
        return some._replace(trace=jax.tree.map(lambda leaf: leaf[:time, :count], found.trace))

    def close(self) -> None:
        """Nothing to close."""


def _play(
    env: JaxEnv,
    act: Callable[..., tuple[Any, Any]],
    gamma: float,
    limit: int,
    group: int,
    key: Array,
    first: Int[Array, ""],
    count: Int[Array, ""],
    *,
    policy: Any,
    keep: bool,
) -> tuple[Played, Int[Array, ""]]:
    """As many steps as the longest of the episodes takes; those past `count` do not begin."""
    keys = jax.vmap(partial(jax.random.fold_in, key))(first + jnp.arange(group))
    fate = lambda t: jax.vmap(lambda k: jax.random.split(jax.random.fold_in(k, t)))(keys)  # noqa: E731

    def row(t, state, obs):
        mask = jax.vmap(env.action_mask)(state) if env.action_mask else None
        both = fate(t + 1)
        action, sent = jax.vmap(partial(act, policy))(obs, mask, both[:, 0])
        chance = jax.vmap(env.draw)(both[:, 1])
        return mask, action, jax.vmap(env.step)(chance, state, sent)

    def advance(carry):
        t, state, obs, running, played, trace = carry
        mask, action, step = row(t, state, obs)
        reward = step.reward.astype(played.returns.dtype)
        if keep:
            seen = Trace(obs, mask, action, reward)
            trace = jax.tree.map(lambda rows, new: rows.at[t].set(new), trace, seen)
        ended = step.terminated | step.truncated
        # The true last observation: after an end `obs` is of the next episode, which nobody plays.
        here = lambda new, old: _where(running, new, old)  # noqa: E731
        played = Played(
            played.returns + jnp.where(running, reward * gamma**t, 0.0),
            played.lengths + running,
            played.terminated | (running & step.terminated),
            jax.tree.map(here, step.final_obs, played.last_obs),
            None,
        )
        return t + 1, step.state, step.obs, running & ~ended, played, trace

    state, obs = jax.vmap(env.reset)(fate(0)[:, 1])
    trace = None
    if keep:
        mask, action, _ = jax.eval_shape(row, 0, state, obs)
        like = Trace(obs, mask, action, jnp.zeros(group))
        empty = lambda leaf: jnp.zeros((limit, *leaf.shape), leaf.dtype)  # noqa: E731
        trace = jax.tree.map(empty, like)
    nothing = Played(
        jnp.zeros(group), jnp.zeros(group, jnp.int32), jnp.zeros(group, bool), obs, None
    )
    start = (jnp.int32(0), state, obs, jnp.arange(group) < count, nothing, trace)
    end = jax.lax.while_loop(lambda c: jnp.any(c[3]) & (c[0] < limit), advance, start)
    return end[4]._replace(trace=end[5]), end[0]


def _where(chosen: Bool[Array, " episode"], new: Array, old: Array) -> Array:
    return jnp.where(chosen.reshape(-1, *(1,) * (new.ndim - 1)), new, old)
