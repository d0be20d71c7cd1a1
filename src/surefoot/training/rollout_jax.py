"""Rollouts of JAX-native environments, inside the training program."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from surefoot.config.settings import Settings
from surefoot.envs.jax_native import JaxEnv, JaxStep
from surefoot.networks.actor_critic import Actor
from surefoot.rules.rows import Rows
from surefoot.training.random_keys import drawn_block
from surefoot.types import Episodes, Params, Rollout


class Cuts(NamedTuple):
    """Where first episodes are cut, after so many more steps, 0 for nowhere; what follows them."""

    left: Int[Array, " env"]
    state: PyTree
    obs: PyTree


class EnvLoop(NamedTuple):
    """JAX-native environments between two rollouts: states, what is seen, episode totals.

    `cuts` is None where no first episode is cut.
    """

    state: PyTree
    obs: PyTree
    returns: Float[Array, " env"]
    lengths: Int[Array, " env"]
    cuts: Cuts | None = None


def start_jax_envs(
    env: JaxEnv, num_envs: int, key: Key[Array, ""], stagger: Key[Array, ""] | None = None
) -> EnvLoop:
    """New episodes everywhere.

    With a key to `stagger` them by, each is cut at a random step within the time limit, if any.
    """
    start, limit = jax.vmap(env.reset), env.spec.max_episode_steps
    cuts = None
    if stagger is not None and limit is not None:
        left_key, start_key = jax.random.split(stagger)
        left = jax.random.randint(left_key, (num_envs,), 0, limit)
        cuts = Cuts(left, *start(jax.random.split(start_key, num_envs)))
    state, obs = start(jax.random.split(key, num_envs))
    return EnvLoop(state, obs, jnp.zeros(num_envs), jnp.zeros(num_envs, jnp.int32), cuts)


def collect_jax(
    env: JaxEnv,
    actor: Actor,
    settings: Settings,
    policy: Params,
    obs_stats: Any,
    loop: EnvLoop,
    *,
    keys: tuple[Key[Array, ""], Key[Array, ""]],
    rows: Rows,
) -> tuple[EnvLoop, Rollout, Episodes]:
    """A rollout under a policy.

    Args:
        env: the environment.
        actor: the networks' acting part.
        settings: of the run.
        policy: the policy's parameters.
        obs_stats: statistics that normalise observations.
        loop: the environments as the last rollout left them.
        keys: for actions and for steps of the environments.
        rows: access to the rows.

    Returns:
        The environments after the rollout, the rollout, and the totals of its episodes.
    """
    num_envs, num_steps = settings.train.num_envs, settings.train.num_steps
    action_key, step_key = keys

    def draw(index: Int[Array, ""], steps: int):
        noise = actor.network.noise(jax.random.fold_in(action_key, index), (steps, num_envs))
        keys = jax.random.split(jax.random.fold_in(step_key, index), (steps, num_envs))
        return noise, jax.vmap(jax.vmap(env.draw))(keys)

    each_env = rows.per_env(lambda *args: _step(env, *args))

    def advance(loop: EnvLoop, drawn: tuple[Any, Any]):
        noise, chance = drawn
        mask = jax.vmap(env.action_mask)(loop.state) if env.action_mask else None
        action, sent, log_prob = actor.act(policy, obs_stats, loop.obs, mask, noise)
        step, whole, cuts = each_env(chance, loop.state, sent, loop.cuts)
        done = step.terminated | step.truncated
        returns, lengths = loop.returns + step.reward, loop.lengths + 1
        row = (loop.obs, action, mask, log_prob, step, whole, returns, lengths)
        after = jnp.where(done, 0.0, returns), jnp.where(done, 0, lengths)
        return EnvLoop(step.state, step.obs, *after, cuts), row

    block = drawn_block(jax.eval_shape(partial(draw, steps=1), jnp.int32(0)), num_steps)

    def advance_block(loop: EnvLoop, index: Int[Array, ""]):
        return jax.lax.scan(advance, loop, draw(index, block))

    last, taken = jax.lax.scan(advance_block, loop, jnp.arange(num_steps // block))
    taken = jax.tree.map(lambda leaf: leaf.reshape(num_steps, *leaf.shape[2:]), taken)
    *_, whole, returns, lengths = taken
    return last, _as_rollout(taken, last.obs, rows), Episodes(whole, returns, lengths)


def _step(
    env: JaxEnv, chance: Any, state: PyTree, sent: PyTree, cuts: Cuts | None
) -> tuple[JaxStep, Bool[Array, " env"], Cuts | None]:
    """A step of environments, the whole episodes that it ended, and the cuts that are left."""
    step = jax.vmap(env.step)(chance, state, sent)
    whole = step.terminated | step.truncated
    if cuts is None:
        return step, whole, None
    now = (cuts.left == 1) & ~whole

    def swap(leaf: Array, second: Array) -> Array:
        return jnp.where(now.reshape(-1, *[1] * (leaf.ndim - 1)), second, leaf)

    def cut() -> tuple[PyTree, PyTree]:
        return jax.tree.map(swap, (step.state, step.obs), (cuts.state, cuts.obs))

    # Once all first episodes have ended, nothing is swapped for the rest of the run.
    state, obs = jax.lax.cond(now.any(), cut, lambda: (step.state, step.obs))
    step = step._replace(state=state, obs=obs, truncated=step.truncated | now)
    left = jnp.where(whole, 0, jnp.maximum(cuts.left - 1, 0))
    return step, whole, cuts._replace(left=left)


def _as_rollout(taken: Any, last_obs: PyTree, rows: Rows) -> Rollout:
    """The steps that were taken, stacked, as a rollout."""
    obs, actions, masks, log_probs, step, *_ = taken
    # A terminal state has no value, so that termination wins where both are set.
    truncated = step.truncated & ~step.terminated
    gather = rows.per_part(_gather_final)
    final_rows, final_obs = gather(*rows.flatten((truncated, step.final_obs)))
    return Rollout(
        obs=jax.tree.map(lambda head, tail: jnp.concatenate([head, tail[None]]), obs, last_obs),
        actions=actions,
        action_mask=masks,
        log_probs=log_probs,
        rewards=step.reward.astype(jnp.zeros(()).dtype),
        terminated=step.terminated,
        truncated=truncated,
        final_obs=final_obs,
        final_rows=final_rows,
        valid=jnp.ones(truncated.shape, bool),
    )


def _gather_final(
    truncated: Bool[Array, " row"], final_obs: PyTree
) -> tuple[Int[Array, " row"], PyTree]:
    """The truncated rows of a block, numbered, in front of indices past its end; what they saw."""
    size = len(truncated)
    # Shapes are static: there is room for every row to be truncated.
    (rows,) = jnp.nonzero(truncated, size=size, fill_value=size)
    return rows, jax.tree.map(lambda leaf: leaf.at[rows].get(mode="clip"), final_obs)
