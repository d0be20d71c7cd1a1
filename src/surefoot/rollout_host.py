"""Rollouts of Gymnasium's environments, stepped by Python around one small compiled call."""

import time
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from surefoot.config import Settings
from surefoot.envs.host import HostEnv, HostStep
from surefoot.rollout import Actor, Purpose, env_seeds, noise_block, run_key
from surefoot.types import Episodes, Params, Rollout


class HostRollout(NamedTuple):
    """A rollout of Gymnasium's environments, with what only the host can see.

    `infos` are the scalar infos of the episodes' last steps; the seconds are wall clock.
    """

    rollout: Rollout
    episodes: Episodes
    infos: list[dict[str, float]]
    env_seconds: float
    policy_seconds: float


class HostCollector:
    """Steps Gymnasium's environments around one small compiled call.

    The noise of a rollout is drawn at once, arrays are allocated once, log-probabilities are
    computed for the whole rollout in one call at its end.
    """

    def __init__(self, env: HostEnv, actor: Actor, settings: Settings):
        self._env, self._settings, self._actor = env, settings, actor
        # JAX takes a list of arrays apart several times faster than a tree of modules.
        shapes = jax.eval_shape(actor.network.init, jax.random.key(0))["policy"]
        structure = jax.tree.structure(shapes)
        self._act = jax.jit(
            lambda leaves, *reads: actor.act(jax.tree.unflatten(structure, leaves), *reads)[:2]
        )
        steps, envs = settings.train.num_steps, settings.train.num_envs
        self._block = noise_block(actor.network, steps, envs)
        self._draw = jax.jit(lambda key: actor.network.noise(key, (self._block, envs)))
        self._log_probs = jax.jit(self._compute_log_probs)

    def _compute_log_probs(self, policy, obs_stats, obs, masks, actions):
        obs = jax.tree.map(lambda leaf: leaf[:-1], obs)
        chosen = self._actor.network.policy(policy, self._actor.inputs(obs_stats, obs, masks))
        return chosen.log_prob(actions)

    def reset(self, iteration: int) -> None:
        """New episodes everywhere, seeded by the run's seed and the iteration."""
        seeds = env_seeds(self._settings.train.seed, iteration, self._env.num_envs, Purpose.RESET)
        self._obs, self._mask = self._env.reset(seeds)
        self._obs = jax.tree.map(as_jax_dtype, self._obs)
        self._returns = np.zeros(self._env.num_envs)
        self._lengths = np.zeros(self._env.num_envs, np.int64)

    def warm_up(self, policy: Params, obs_stats: Any) -> None:
        """Build the programs of a rollout, so that their compilation is not counted as acting."""
        noise = self._draw(jax.random.key(0))
        drawn = jax.tree.map(lambda leaf: np.asarray(leaf)[0], noise)
        action, _ = self._act(jax.tree.leaves(policy), obs_stats, self._obs, self._mask, drawn)
        steps, envs = self._settings.train.num_steps, self._env.num_envs
        rows = _allocate(steps, envs, self._obs, jax.tree.map(np.asarray, action), self._mask)
        rows = jax.tree.map(np.zeros_like, rows)
        self._log_probs(policy, obs_stats, rows.obs, rows.action_mask, rows.actions)

    def collect(self, policy: Params, obs_stats: Any, iteration: int) -> HostRollout:
        """One rollout under a policy."""
        steps, envs = self._settings.train.num_steps, self._env.num_envs
        key = run_key(self._settings.train.seed, iteration, Purpose.ACTION)
        self._ended: list[tuple[int, int, float, int]] = []
        final_obs: list[Any] = []
        final_rows: list[int] = []
        infos: list[dict[str, float]] = []
        rows: Any = None
        leaves = jax.tree.leaves(policy)
        env_seconds, started = 0.0, time.monotonic()
        for t in range(steps):
            if t % self._block == 0:
                noise = jax.tree.map(np.asarray, self._draw(jax.random.fold_in(key, t)))
            drawn = jax.tree.map(lambda leaf, i=t % self._block: leaf[i], noise)
            action, sent = self._act(leaves, obs_stats, self._obs, self._mask, drawn)
            action, sent = jax.tree.map(np.asarray, (action, sent))
            if rows is None:
                rows = _allocate(steps, envs, self._obs, action, self._mask)
            _write(rows.obs, t, self._obs)
            _write(rows.actions, t, action)
            _write(rows.action_mask, t, self._mask)
            before = time.monotonic()
            step = self._env.step(sent)
            env_seconds += time.monotonic() - before
            rows.rewards[t], rows.terminated[t] = step.rewards, step.terminated
            rows.truncated[t], rows.valid[t] = step.truncated, step.valid
            self._count_episodes(t, step)
            for index, obs in step.final_obs.items():
                final_obs.append(jax.tree.map(as_jax_dtype, obs))
                final_rows.append(t * envs + index)
            infos.extend(step.final_infos.values())
            self._obs, self._mask = jax.tree.map(as_jax_dtype, step.obs), step.action_mask
        _write(rows.obs, steps, self._obs)
        log_probs = self._log_probs(policy, obs_stats, rows.obs, rows.action_mask, rows.actions)
        padded, padded_rows = _pad_final(final_obs, final_rows, self._obs, steps * envs)
        rollout = rows._replace(log_probs=log_probs, final_obs=padded, final_rows=padded_rows)
        seconds = time.monotonic() - started
        return HostRollout(
            rollout, self._episodes(steps, envs), infos, env_seconds, seconds - env_seconds
        )

    def _count_episodes(self, t: int, step: HostStep) -> None:
        self._returns += np.where(step.valid, step.rewards, 0.0)
        self._lengths += step.valid
        for index in np.flatnonzero(step.terminated | step.truncated):
            row = (t, int(index), float(self._returns[index]), int(self._lengths[index]))
            self._ended.append(row)
            self._returns[index], self._lengths[index] = 0.0, 0

    def _episodes(self, steps: int, envs: int) -> Episodes:
        ended, returns, lengths = (
            _zeros((steps, envs), dtype) for dtype in (bool, np.float32, np.int32)
        )
        for t, index, total, length in self._ended:
            ended[t, index], returns[t, index], lengths[t, index] = True, total, length
        return Episodes(ended, returns, lengths)


def as_jax_dtype(leaf: Any) -> np.ndarray:
    """A copy in memory of our own, of the dtype that JAX computes with."""
    array = np.array(leaf)
    return array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)


def _zeros(shape: tuple[int, ...], dtype: Any) -> Any:
    """NumPy's zeros where a JAX array is announced: the host fills it before handing it over."""
    return np.zeros(shape, dtype)


def _allocate(steps: int, envs: int, obs: PyTree, action: PyTree, mask: PyTree) -> Rollout:
    """Empty arrays for a rollout, shaped like one step's."""

    def rows_of(count: int, tree: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: np.empty((count, *leaf.shape), leaf.dtype), tree)

    return Rollout(
        obs=rows_of(steps + 1, obs),
        actions=rows_of(steps, action),
        action_mask=rows_of(steps, mask),
        log_probs=_zeros((steps, envs), np.float32),
        rewards=_zeros((steps, envs), np.float32),
        terminated=_zeros((steps, envs), bool),
        truncated=_zeros((steps, envs), bool),
        final_obs=(),
        final_rows=_zeros((0,), np.int32),
        valid=_zeros((steps, envs), bool),
    )


def _write(rows: PyTree, t: int, values: PyTree) -> None:
    for row, value in zip(jax.tree.leaves(rows), jax.tree.leaves(values), strict=True):
        row[t] = value


def _pad_final(
    final_obs: list[Any], final_rows: list[int], like: PyTree, size: int
) -> tuple[PyTree, np.ndarray]:
    """True last observations, padded to one of a few sizes so that few programs are compiled."""
    capacity = next(n for n in (8, 64, 512, 4096, size, len(final_rows)) if n >= len(final_rows))
    rows = np.full(capacity, size, np.int32)
    rows[: len(final_rows)] = final_rows
    padded = jax.tree.map(lambda leaf: np.zeros((capacity, *leaf.shape[1:]), leaf.dtype), like)
    for position, obs in enumerate(final_obs):
        for target, leaf in zip(jax.tree.leaves(padded), jax.tree.leaves(obs), strict=True):
            target[position] = leaf
    return padded, rows
