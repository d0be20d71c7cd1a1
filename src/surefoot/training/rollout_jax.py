"""What acting needs, the keys of a run, and rollouts of JAX-native environments.

Both worlds meet at `Rollout`. Every random number comes from a key that depends on the run's seed,
the iteration and a purpose, so that nothing but the counter is needed to go on.
"""

import math
from collections.abc import Callable
from enum import IntEnum
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from surefoot.config.settings import Settings
from surefoot.envs.jax_native import JaxEnv
from surefoot.formulas.running_stats import normalize_obs
from surefoot.networks.actor_critic import ActorCritic
from surefoot.networks.spaces import sent_action
from surefoot.parallel.rows import by_block, local, to_rows
from surefoot.types import Episodes, Inputs, Params, Rollout


class Purpose(IntEnum):
    """What a key is for; part of every key of a run."""

    INIT = 0
    RESET = 1
    ACTION = 2
    STEP = 3
    UPDATE = 4
    CRITIC = 5
    EVALUATION = 6
    LENS = 7
    STATES = 8
    SHIFT = 9
    PROBE = 10


def run_key(seed: Any, iteration: Any, purpose: Purpose) -> Key[Array, ""]:
    """The key of one purpose at one iteration of a run."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), purpose), iteration)


def env_seeds(seed: int, iteration: int, num_envs: int, purpose: Purpose) -> list[int]:
    """Seeds of the Gymnasium environments, from (seed, iteration, index)."""
    words = np.random.SeedSequence([seed, iteration, int(purpose)]).generate_state(num_envs)
    return [int(word) & 0x7FFFFFFF for word in words]


class Actor(NamedTuple):
    """What acting needs besides parameters: the networks and how observations and actions map.

    `act(policy, obs_stats, obs, action_mask, noise)` gives the action as sampled, as sent, and its
    log-probability; where `noise` is None the action is the policy's mode.
    """

    network: ActorCritic
    act: Callable[..., tuple[Any, Any, Any]]
    inputs: Callable[..., Inputs]


def make_actor(network: ActorCritic, action_space: Any, settings: Settings) -> Actor:
    """The actor of a run."""
    affine = settings.train.action_scale == "affine"
    tanh = settings.network.distribution == "tanh-gaussian"

    def inputs(obs_stats, obs, action_mask):
        return Inputs(normalize_obs(obs_stats, obs, clip=settings.train.obs_clip), action_mask)

    def act(policy, obs_stats, obs, action_mask, noise):
        chosen = network.policy(policy, inputs(obs_stats, obs, action_mask))
        action = chosen.mode() if noise is None else chosen.sample(noise)
        sent = sent_action(action_space, action, affine=affine, tanh=tanh)
        return action, sent, chosen.log_prob(action)

    return Actor(network, act, inputs)


DRAWN_BYTES = 64 * 2**20
"""Most memory that a rollout's random numbers take at once; they are drawn in blocks of time."""


def drawn_block(one_step: PyTree, num_steps: int) -> int:
    """Steps whose random numbers are drawn at once: all, or the largest even share that is small.

    Drawing them step by step would cost more than acting. `one_step` has the shapes of one step.
    """
    leaves = jax.tree.leaves(one_step)
    step_bytes = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
    most = max(1, DRAWN_BYTES // max(step_bytes, 1))
    return next(n for n in range(min(most, num_steps), 0, -1) if num_steps % n == 0)


class EnvLoop(NamedTuple):
    """JAX-native environments between two rollouts: states, what is seen, episode totals."""

    state: PyTree
    obs: PyTree
    returns: Float[Array, " env"]
    lengths: Int[Array, " env"]


def start_jax_envs(env: JaxEnv, num_envs: int, key: Key[Array, ""]) -> EnvLoop:
    """New episodes everywhere."""
    state, obs = jax.vmap(env.reset)(jax.random.split(key, num_envs))
    return EnvLoop(state, obs, jnp.zeros(num_envs), jnp.zeros(num_envs, jnp.int32))


def collect_jax(
    env: JaxEnv,
    actor: Actor,
    settings: Settings,
    policy: Params,
    obs_stats: Any,
    loop: EnvLoop,
    *,
    seed: Int[Array, ""],
    iteration: Int[Array, ""],
) -> tuple[EnvLoop, Rollout, Episodes]:
    """A rollout of JAX-native environments, inside the training program."""
    num_envs, num_steps = settings.train.num_envs, settings.train.num_steps
    action_key = run_key(seed, iteration, Purpose.ACTION)
    step_key = run_key(seed, iteration, Purpose.STEP)

    def draw(index: Int[Array, ""], steps: int):
        noise = actor.network.noise(jax.random.fold_in(action_key, index), (steps, num_envs))
        keys = jax.random.split(jax.random.fold_in(step_key, index), (steps, num_envs))
        return noise, jax.vmap(jax.vmap(env.draw))(keys)

    each_env = local(jax.vmap(env.step))

    def advance(loop: EnvLoop, drawn: tuple[Any, Any]):
        noise, chance = drawn
        mask = jax.vmap(env.action_mask)(loop.state) if env.action_mask else None
        action, sent, log_prob = actor.act(policy, obs_stats, loop.obs, mask, noise)
        step = each_env(chance, loop.state, sent)
        done = step.terminated | step.truncated
        returns, lengths = loop.returns + step.reward, loop.lengths + 1
        row = (loop.obs, action, mask, log_prob, step, done, returns, lengths)
        new = EnvLoop(
            step.state, step.obs, jnp.where(done, 0.0, returns), jnp.where(done, 0, lengths)
        )
        return new, row

    block = drawn_block(jax.eval_shape(partial(draw, steps=1), jnp.int32(0)), num_steps)

    def advance_block(loop: EnvLoop, index: Int[Array, ""]):
        return jax.lax.scan(advance, loop, draw(index, block))

    last, rows = jax.lax.scan(advance_block, loop, jnp.arange(num_steps // block))
    rows = jax.tree.map(lambda leaf: leaf.reshape(num_steps, *leaf.shape[2:]), rows)
    obs, actions, masks, log_probs, step, done, returns, lengths = rows
    truncated = step.truncated & ~step.terminated
    blocks = settings.train.blocks
    gather = by_block(_gather_final, blocks)
    final_rows, final_obs = gather(*to_rows((truncated, step.final_obs), blocks))
    rollout = Rollout(
        obs=jax.tree.map(lambda head, tail: jnp.concatenate([head, tail[None]]), obs, last.obs),
        actions=actions,
        action_mask=masks,
        log_probs=log_probs,
        rewards=step.reward.astype(jnp.zeros(()).dtype),
        terminated=step.terminated,
        truncated=truncated,
        final_obs=final_obs,
        final_rows=final_rows,
        valid=jnp.ones((num_steps, num_envs), bool),
    )
    return last, rollout, Episodes(done, returns, lengths)


def _gather_final(
    truncated: Bool[Array, " row"], final_obs: PyTree
) -> tuple[Int[Array, " row"], PyTree]:
    """The truncated rows of a block, numbered, in front of indices past its end; what they saw."""
    size = len(truncated)
    (rows,) = jnp.nonzero(truncated, size=size, fill_value=size)
    return rows, jax.tree.map(lambda leaf: leaf.at[rows].get(mode="clip"), final_obs)
