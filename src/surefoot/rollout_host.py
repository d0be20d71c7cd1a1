"""Rollouts of Gymnasium's environments, stepped by Python around one small compiled call."""

import time
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from surefoot.config import Settings
from surefoot.envs.group import HostStep
from surefoot.envs.host import HostEnv
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
    computed for the whole rollout in one call at its end. While one group of environments steps by
    itself, the policy acts for the other.
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
        starts = [group.reset(seeds[rows]) for group, rows in self._env.pairs]
        self._seen = [(jax.tree.map(as_jax_dtype, obs), mask) for obs, mask in starts]
        self._returns = np.zeros(self._env.num_envs)
        self._lengths = np.zeros(self._env.num_envs, np.int64)

    def warm_up(self, policy: Params, obs_stats: Any) -> None:
        """Build the programs of a rollout, so that their compilation is not counted as acting."""
        noise = jax.tree.map(np.asarray, self._draw(jax.random.key(0)))
        leaves, action = jax.tree.leaves(policy), None
        for (_, rows), seen in zip(self._env.pairs, self._seen, strict=True):
            drawn = jax.tree.map(lambda leaf, rows=rows: leaf[0, rows], noise)
            action, _ = self._act(leaves, obs_stats, *seen, drawn)
        rollout = self._allocate(jax.tree.map(np.asarray, action))
        rollout = jax.tree.map(np.zeros_like, rollout)
        self._log_probs(policy, obs_stats, rollout.obs, rollout.action_mask, rollout.actions)

    def collect(self, policy: Params, obs_stats: Any, iteration: int) -> HostRollout:
        """One rollout under a policy."""
        steps = self._settings.train.num_steps
        key = run_key(self._settings.train.seed, iteration, Purpose.ACTION)
        self._ended: list[tuple[int, int, float, int]] = []
        self._final_obs: list[Any] = []
        self._final_rows: list[int] = []
        self._infos: list[dict[str, float]] = []
        self._rollout: Any = None
        leaves = jax.tree.leaves(policy)
        self._env_seconds, started = 0.0, time.monotonic()
        for t in range(steps):
            if t % self._block == 0:
                noise = jax.tree.map(np.asarray, self._draw(jax.random.fold_in(key, t)))
            for position, (group, rows) in enumerate(self._env.pairs):
                if t > 0:
                    self._receive(t - 1, position)
                obs, mask = self._seen[position]
                drawn = jax.tree.map(
                    lambda leaf, t=t % self._block, rows=rows: leaf[t, rows], noise
                )
                action, sent = self._act(leaves, obs_stats, obs, mask, drawn)
                action, sent = jax.tree.map(np.asarray, (action, sent))
                if self._rollout is None:
                    self._rollout = self._allocate(action)
                _write(self._rollout.obs, t, rows, obs)
                _write(self._rollout.actions, t, rows, action)
                _write(self._rollout.action_mask, t, rows, mask)
                before = time.monotonic()
                group.send(sent)
                self._env_seconds += time.monotonic() - before
        for position, (_, rows) in enumerate(self._env.pairs):
            self._receive(steps - 1, position)
            _write(self._rollout.obs, steps, rows, self._seen[position][0])
        rollout = self._rollout
        log_probs = self._log_probs(
            policy, obs_stats, rollout.obs, rollout.action_mask, rollout.actions
        )
        final_obs, final_rows = self._padded_ends()
        rollout = rollout._replace(log_probs=log_probs, final_obs=final_obs, final_rows=final_rows)
        seconds = time.monotonic() - started
        return HostRollout(
            rollout,
            self._episodes(),
            self._infos,
            self._env_seconds,
            seconds - self._env_seconds,
        )

    def _receive(self, t: int, position: int) -> None:
        """Take in the step that one group began at time `t`."""
        group, rows = self._env.pairs[position]
        before = time.monotonic()
        step = group.receive()
        self._env_seconds += time.monotonic() - before
        rollout, size = self._rollout, self._env.num_envs
        rollout.rewards[t, rows], rollout.terminated[t, rows] = step.rewards, step.terminated
        rollout.truncated[t, rows], rollout.valid[t, rows] = step.truncated, step.valid
        self._count_episodes(t, rows, step)
        for index, obs in step.final_obs.items():
            self._final_obs.append(jax.tree.map(as_jax_dtype, obs))
            self._final_rows.append(t * size + rows.start + index)
        self._infos.extend(step.final_infos.values())
        self._seen[position] = jax.tree.map(as_jax_dtype, step.obs), step.action_mask

    def _count_episodes(self, t: int, rows: slice, step: HostStep) -> None:
        self._returns[rows] += np.where(step.valid, step.rewards, 0.0)
        self._lengths[rows] += step.valid
        for index in np.flatnonzero(step.terminated | step.truncated) + rows.start:
            row = (t, int(index), float(self._returns[index]), int(self._lengths[index]))
            self._ended.append(row)
            self._returns[index], self._lengths[index] = 0.0, 0

    def _episodes(self) -> Episodes:
        shape = self._settings.train.num_steps, self._env.num_envs
        ended, returns, lengths = (_zeros(shape, dtype) for dtype in (bool, np.float32, np.int32))
        for t, index, total, length in self._ended:
            ended[t, index], returns[t, index], lengths[t, index] = True, total, length
        return Episodes(ended, returns, lengths)

    def _allocate(self, action: PyTree) -> Rollout:
        """Empty arrays for a rollout of what one group sees and does."""
        steps, envs = self._settings.train.num_steps, self._env.num_envs
        obs, mask = self._seen[0]

        def rows_of(count: int, tree: PyTree) -> PyTree:
            return jax.tree.map(
                lambda leaf: np.empty((count, envs, *leaf.shape[1:]), leaf.dtype), tree
            )

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

    def _padded_ends(self) -> tuple[PyTree, np.ndarray]:
        """True last observations, padded to one of a few sizes: few programs are compiled."""
        size, count = self._settings.train.num_steps * self._env.num_envs, len(self._final_rows)
        capacity = next(n for n in (8, 64, 512, 4096, size, count) if n >= count)
        rows = np.full(capacity, size, np.int32)
        rows[:count] = self._final_rows
        padded = jax.tree.map(
            lambda leaf: np.zeros((capacity, *leaf.shape[1:]), leaf.dtype), self._seen[0][0]
        )
        for position, obs in enumerate(self._final_obs):
            for target, leaf in zip(jax.tree.leaves(padded), jax.tree.leaves(obs), strict=True):
                target[position] = leaf
        return padded, rows


def as_jax_dtype(leaf: Any) -> np.ndarray:
    """A copy in memory of our own, of the dtype that JAX computes with."""
    array = np.array(leaf)
    return array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)


def _zeros(shape: tuple[int, ...], dtype: Any) -> Any:
    """NumPy's zeros where a JAX array is announced: the host fills it before handing it over."""
    return np.zeros(shape, dtype)


def _write(rows: PyTree, t: int, envs: slice, values: PyTree) -> None:
    for row, value in zip(jax.tree.leaves(rows), jax.tree.leaves(values), strict=True):
        row[t, envs] = value
