"""Whole episodes under a frozen policy: returns as the environment gives them."""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from surefoot.envs.host import HostEnv
from surefoot.envs.jax_native import JaxEnv
from surefoot.envs.source import OpenEnvs
from surefoot.networks.actor_critic import Actor
from surefoot.networks.spaces import as_jax_dtype
from surefoot.training.random_keys import Purpose, env_seeds, run_key
from surefoot.types import Params


class Evaluation(NamedTuple):
    """Undiscounted returns and lengths of episodes, and the infos of their last steps.

    The last `cut` of them had not ended when the steps were used up.
    """

    returns: np.ndarray
    lengths: np.ndarray
    infos: list[dict[str, float]]
    cut: int


def evaluate(
    env: OpenEnvs,
    actor: Actor,
    policy: Params,
    obs_stats: Any,
    *,
    episodes: int,
    max_steps: int,
    stochastic: bool,
    seed: int,
) -> Evaluation:
    """Play whole episodes under a frozen policy, in at most `max_steps` steps of all together.

    Host environments play an equal share each; of a JAX-native one, every episode is another
    instance in one program.
    """
    play = env.visit(
        jax=lambda env: partial(_evaluate_jax, env), host=lambda env: partial(_evaluate_host, env)
    )
    return play(
        actor,
        policy,
        obs_stats,
        episodes=episodes,
        max_steps=max_steps,
        stochastic=stochastic,
        seed=seed,
    )


def _evaluate_host(
    env: HostEnv,
    actor: Actor,
    policy: Params,
    obs_stats: Any,
    *,
    episodes: int,
    max_steps: int,
    stochastic: bool,
    seed: int,
) -> Evaluation:
    act = jax.jit(actor.act)
    draw = jax.jit(lambda key: actor.network.noise(key, (env.num_envs,)))
    obs, mask = env.reset(env_seeds(seed, 0, env.num_envs, Purpose.EVALUATION))
    key = run_key(seed, 0, Purpose.EVALUATION)
    # Fixed shares: taking the first episodes to end would favour short ones.
    share = np.full(env.num_envs, episodes // env.num_envs)
    share[: episodes % env.num_envs] += 1
    totals, lengths = np.zeros(env.num_envs), np.zeros(env.num_envs, np.int64)
    results: list[tuple[float, int]] = []
    infos: list[dict[str, float]] = []
    steps = played = 0  # only environments with an episode to play count as played
    while share.sum() > 0 and played < max_steps:
        noise = draw(jax.random.fold_in(key, steps)) if stochastic else None
        obs = jax.tree.map(as_jax_dtype, obs)
        _, sent, _ = act(policy, obs_stats, obs, mask, noise)
        step = env.step(jax.tree.map(np.asarray, sent))
        played += int(np.sum(step.valid & (share > 0)))
        totals += np.where(step.valid, step.rewards, 0.0)
        lengths += step.valid
        totals[step.restarted], lengths[step.restarted] = 0.0, 0  # episodes that are lost
        for index in np.flatnonzero(step.terminated | step.truncated):
            if share[index] > 0:
                share[index] -= 1
                total = step.raw_returns.get(int(index), float(totals[index]))
                results.append((total, int(lengths[index])))
                infos.append(step.final_infos.get(int(index), {}))
            totals[index], lengths[index] = 0.0, 0
        obs, mask, steps = step.obs, step.action_mask, steps + 1
    ended = len(results)
    for index in np.flatnonzero((share > 0) & (lengths > 0)):
        results.append((float(totals[index]), int(lengths[index])))
        infos.append({})
    returns, counts = zip(*results, strict=True)
    return Evaluation(np.array(returns), np.array(counts), infos, len(results) - ended)


def _evaluate_jax(
    env: JaxEnv,
    actor: Actor,
    policy: Params,
    obs_stats: Any,
    *,
    episodes: int,
    max_steps: int,
    stochastic: bool,
    seed: int,
) -> Evaluation:
    returns, lengths, running = _play(
        policy,
        obs_stats,
        run_key(seed, 0, Purpose.EVALUATION),
        env=env._replace(spec=None),
        actor=actor,
        limit=math.ceil(max_steps / episodes),
        episodes=episodes,
        stochastic=stochastic,
    )
    order = np.argsort(np.asarray(running), stable=True)  # those that were cut come last
    cut = int(np.sum(np.asarray(running)))
    return Evaluation(np.asarray(returns)[order], np.asarray(lengths)[order], [], cut)


@partial(jax.jit, static_argnames=("env", "actor", "limit", "episodes", "stochastic"))
def _play(
    policy: Params,
    obs_stats: Any,
    key: Key[Array, ""],
    *,
    env: JaxEnv,
    actor: Actor,
    limit: int,
    episodes: int,
    stochastic: bool,
) -> tuple[Float[Array, " episode"], Int[Array, " episode"], Bool[Array, " episode"]]:
    """Returns, lengths, and whether the limit cut the episode.

    The environment comes without its spec, which has no hash.
    """
    reset_key, noise_key, step_key = jax.random.split(key, 3)

    def unfinished(carry):
        t, _, _, running, _, _ = carry
        return jnp.any(running) & (t < limit)

    def advance(carry):
        t, state, obs, running, returns, lengths = carry
        mask = jax.vmap(env.action_mask)(state) if env.action_mask else None
        noise = actor.network.noise(jax.random.fold_in(noise_key, t), (episodes,))
        _, sent, _ = actor.act(policy, obs_stats, obs, mask, noise if stochastic else None)
        keys = jax.random.split(jax.random.fold_in(step_key, t), episodes)
        step = jax.vmap(env.step)(jax.vmap(env.draw)(keys), state, sent)
        returns = returns + jnp.where(running, step.reward, 0.0)
        # Environments that are done go on stepping, and only running ones are counted.
        lengths = lengths + running
        running = running & ~(step.terminated | step.truncated)
        return t + 1, step.state, step.obs, running, returns, lengths

    state, obs = jax.vmap(env.reset)(jax.random.split(reset_key, episodes))
    start = (
        jnp.int32(0),
        state,
        obs,
        jnp.ones(episodes, bool),
        jnp.zeros(episodes),
        jnp.zeros(episodes, jnp.int32),
    )
    *_, running, returns, lengths = jax.lax.while_loop(unfinished, advance, start)
    return returns, lengths, running
