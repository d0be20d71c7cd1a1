"""Rollouts of Gymnasium's environments, stepped by Python around one small compiled call."""

import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jaxtyping import PyTree

from surefoot.config.settings import Settings, Train
from surefoot.envs.host import HostEnv, HostStep
from surefoot.networks.actor_critic import Actor
from surefoot.networks.spaces import as_jax_dtype, widened_obs
from surefoot.training.random_keys import Purpose, drawn_block, env_seeds, run_key
from surefoot.types import Episodes, Params, Rollout

Pulse = Callable[[int], None]
"""Called before each step of a rollout, with the steps taken so far; what it raises drops it."""


def no_pulse(done: int) -> None:
    """The pulse of a rollout that nothing watches."""


class HostRollout(NamedTuple):
    """A rollout of Gymnasium's environments, with what only the host can see.

    `infos` are the scalar infos of the episodes' last steps; `outside` is how many observations
    lay outside their space; the seconds are wall clock.
    """

    rollout: Rollout
    episodes: Episodes
    infos: list[dict[str, float]]
    outside: int
    env_seconds: float
    policy_seconds: float


class Fragment(NamedTuple):
    """What some of a run's environments, neighbours, did in one iteration.

    `version` is the iteration of the policy that acted. `rows` lacks what `final` holds: the true
    last observation of each truncated episode, with its time and its environment's number in the
    run. `ended` holds time, number, return and length of each episode that ended. The rest as in
    `HostRollout`.
    """

    version: int
    rows: Rollout
    final: list[tuple[int, int, Any]]
    ended: list[tuple[int, int, float, int]]
    infos: list[dict[str, float]]
    outside: int
    env_seconds: float
    policy_seconds: float


def assemble(fragments: list[Fragment], train: Train) -> HostRollout:
    """Fragments of all environments, in order, as one rollout; its time is the slowest's."""
    rows = fragments[0].rows
    if len(fragments) > 1:
        # A fragment's `final_rows` has no axis of environments to be joined along.
        several = [each.rows._replace(final_rows=None) for each in fragments]
        rows = jax.tree.map(lambda *parts: np.concatenate(parts, axis=1), *several)
    final = [end for each in fragments for end in each.final]
    like = jax.tree.map(lambda row: row[0], rows.obs)
    final_obs, final_rows = _pad_final(final, like, train)
    ended = [end for each in fragments for end in each.ended]
    # Fragments are collected at the same time: the slowest decides how long a rollout takes.
    slowest = max(fragments, key=lambda each: each.env_seconds + each.policy_seconds)
    return HostRollout(
        rows._replace(final_obs=final_obs, final_rows=final_rows),
        _episodes(ended, train.num_steps, train.num_envs),
        [info for each in fragments for info in each.infos],
        sum(each.outside for each in fragments),
        slowest.env_seconds,
        slowest.policy_seconds,
    )


class Collector(Protocol):
    """Collects the rollouts of a run's Gymnasium environments, wherever they are."""

    @property
    def figures(self) -> dict[str, int]:
        """Metrics of the environments themselves."""
        ...

    def reset(self, iteration: int) -> None:
        """New episodes everywhere, seeded by the run's seed and the iteration."""
        ...

    def warm_up(self, policy: Params, obs_stats: Any) -> None:
        """Build the programs of a rollout, so that compiling them is not counted as acting."""
        ...

    def collect(
        self, policy: Params, obs_stats: Any, iteration: int, pulse: Pulse = no_pulse
    ) -> HostRollout:
        """One rollout under a policy."""
        ...


class HostCollector:
    """Steps Gymnasium's environments around one small compiled call.

    The noise of a rollout is drawn at once, arrays are allocated once, log-probabilities are
    computed for the whole rollout in one call at its end. Where `env` has only some of the run's
    environments, the first of them has the number `first`; seeds and noise are those of the run.
    """

    def __init__(self, env: HostEnv, actor: Actor, settings: Settings, *, first: int = 0):
        self._env, self._settings, self._actor, self._first = env, settings, actor, first
        steps, envs = settings.train.num_steps, settings.train.num_envs
        self._mine = slice(first, first + env.num_envs)

        def noise(key: Any, steps: int) -> PyTree:
            # Drawn for the whole run and cut, so that no number depends on how environments are
            # shared out.
            drawn = actor.network.noise(key, (steps, envs))
            return jax.tree.map(lambda leaf: leaf[:, self._mine], drawn)

        self._block = drawn_block(jax.eval_shape(partial(noise, steps=1), jax.random.key(0)), steps)
        self._draw = jax.jit(partial(noise, steps=self._block))
        self._log_probs = jax.jit(self._compute_log_probs)
        # At every step trees pass in and out as lists of arrays, which Python and JAX take apart
        # several times faster than modules and mappings.
        self._act = jax.jit(self._compute_actions)
        self._noise = jax.eval_shape(self._draw, jax.random.key(0))
        self._shapes: tuple[PyTree, PyTree] | None = None
        self._told_outside = False

    def _compute_actions(self, policy, obs_stats, obs, mask, noise):
        policy = jax.tree.unflatten(self._policy_tree, policy)
        obs = jax.tree.unflatten(jax.tree.structure(self._obs), obs)
        noise = jax.tree.unflatten(jax.tree.structure(self._noise), noise)
        action, sent, _ = self._actor.act(policy, obs_stats, obs, mask, noise)
        return jax.tree.leaves(action), jax.tree.leaves(sent)

    def _compute_log_probs(self, policy, obs_stats, obs, masks, actions):
        obs = jax.tree.map(lambda leaf: leaf[:-1], obs)
        chosen = self._actor.network.policy(policy, self._actor.inputs(obs_stats, obs, masks))
        return chosen.log_prob(actions)

    def reset(self, iteration: int) -> None:
        """New episodes everywhere, seeded by the run's seed and the iteration."""
        train = self._settings.train
        seeds = env_seeds(train.seed, iteration, train.num_envs, Purpose.RESET)
        cuts = self._cuts(iteration)
        obs, self._mask = self._env.reset(seeds[self._mine], cuts[self._mine])
        self._obs = widened_obs(self._env.spec.observation_space, obs)
        self._returns = np.zeros(self._env.num_envs)
        self._lengths = np.zeros(self._env.num_envs, np.int64)

    def _cuts(self, iteration: int) -> list[int]:
        """Steps after which first episodes are cut, at random for each of the run's environments.

        Drawn on their own: of evenly spread ones the spread between environments, which intervals
        are made of, would be wider than that of their mean.
        """
        train, limit = self._settings.train, self._env.spec.max_episode_steps
        if not train.staggers or limit is None:
            return [0] * train.num_envs
        words = env_seeds(train.seed, iteration, train.num_envs, Purpose.STAGGER)
        return [word % limit for word in words]

    def warm_up(self, policy: Params, obs_stats: Any) -> None:
        """Build the programs of a rollout, so that their compilation is not counted as acting."""
        noise = [np.asarray(leaf)[0] for leaf in jax.tree.leaves(self._draw(jax.random.key(0)))]
        seen = jax.tree.leaves(self._obs)
        leaves, self._policy_tree = jax.tree.flatten(policy)
        self._act(leaves, obs_stats, seen, self._mask, noise)
        rows = jax.tree.map(
            np.zeros_like, self._allocate(self._action_shapes(policy, obs_stats)[0])
        )
        self._log_probs(policy, obs_stats, rows.obs, rows.action_mask, rows.actions)

    @property
    def figures(self) -> dict[str, int]:
        """Metrics of the environments themselves."""
        return {"env/restarts": self._env.restarts}

    def collect(
        self, policy: Params, obs_stats: Any, iteration: int, pulse: Pulse = no_pulse
    ) -> HostRollout:
        """One rollout under a policy."""
        return assemble([self.gather(policy, obs_stats, iteration, pulse)], self._settings.train)

    def gather(
        self, policy: Params, obs_stats: Any, iteration: int, pulse: Pulse = no_pulse
    ) -> Fragment:
        """What these environments do under a policy."""
        steps = self._settings.train.num_steps
        key = run_key(self._settings.train.seed, iteration, Purpose.ACTION)
        self._ended: list[tuple[int, int, float, int]] = []
        final: list[tuple[int, int, Any]] = []
        infos: list[dict[str, float]] = []
        noise: list[np.ndarray] = []
        action_like, sent_like = self._action_shapes(policy, obs_stats)
        leaves, self._policy_tree = jax.tree.flatten(policy)
        rows = self._allocate(action_like)
        sent_tree = jax.tree.structure(sent_like)
        obs_rows, action_rows, mask_rows = (jax.tree.leaves(part) for part in rows[:3])
        env_seconds, started = 0.0, time.monotonic()
        _write(obs_rows, 0, self._obs)
        for t in range(steps):
            pulse(t)
            if t % self._block == 0:
                drawn = self._draw(jax.random.fold_in(key, t))
                # To the host once a block: indexing a JAX array at every step would be a dispatch
                # each.
                noise = [np.asarray(leaf) for leaf in jax.tree.leaves(drawn)]
            seen = [row[t] for row in obs_rows]
            now = [leaf[t % self._block] for leaf in noise]
            action, sent = self._act(leaves, obs_stats, seen, self._mask, now)
            _write(action_rows, t, action)
            _write(mask_rows, t, self._mask)
            # This waits for the device, before the environments' clock starts: the wait is the
            # policy's.
            sent = jax.tree.unflatten(sent_tree, [np.asarray(leaf) for leaf in sent])
            before = time.monotonic()
            step = self._env.step(sent)
            env_seconds += time.monotonic() - before
            _write(obs_rows, t + 1, step.obs)
            self._mask = step.action_mask
            rows.rewards[t], rows.terminated[t] = step.rewards, step.terminated
            rows.truncated[t], rows.valid[t] = step.truncated, step.valid
            self._count_episodes(t, step)
            for index in step.restarted:
                self._drop_episode(rows, t, index)
            for index, obs in step.final_obs.items():
                final.append((t, self._first + index, jax.tree.map(as_jax_dtype, obs)))
            infos.extend(step.final_infos.values())
        # A copy, because a view would keep the whole rollout in memory.
        self._obs = jax.tree.map(lambda row: row[steps].copy(), rows.obs)
        log_probs = self._log_probs(policy, obs_stats, rows.obs, rows.action_mask, rows.actions)
        outside = self._count_outside(rows.obs)
        seconds = time.monotonic() - started
        return Fragment(
            iteration,
            rows._replace(log_probs=log_probs),
            final,
            self._ended,
            infos,
            outside,
            env_seconds,
            seconds - env_seconds,
        )

    def _count_episodes(self, t: int, step: HostStep) -> None:
        np.add(self._returns, step.rewards, out=self._returns, where=step.valid)
        self._lengths += step.valid
        for index in step.final_infos:
            number = self._first + index
            total = step.raw_returns.get(index, float(self._returns[index]))
            row = (t, number, total, int(self._lengths[index]))
            self._ended.append(row)
            self._returns[index], self._lengths[index] = 0.0, 0
        self._returns[step.cut], self._lengths[step.cut] = 0.0, 0

    def _drop_episode(self, rows: Rollout, t: int, index: int) -> None:
        """Nothing of an episode whose environment raised at a step counts, or is learned from."""
        done = rows.terminated[:t, index] | rows.truncated[:t, index]
        begun = int(np.flatnonzero(done)[-1]) + 1 if np.any(done) else 0
        # These are the host's arrays, of which `asarray` makes no copy: the rollout itself is
        # changed.
        valid, ended = np.asarray(rows.valid), np.asarray(rows.terminated)
        # Terminated, so that no advantage crosses into the episode that follows.
        valid[begun : t + 1, index], ended[t, index] = False, True
        self._returns[index], self._lengths[index] = 0.0, 0

    def _count_outside(self, obs: PyTree) -> int:
        # But for a reset, row 0 is the last row of the rollout before, where it was counted.
        count, first = self._env.count_outside(jax.tree.map(lambda leaf: leaf[1:], obs))
        if count and not self._told_outside:
            self._told_outside = True
            warnings.warn(
                f"{self._env.spec.env_id}: {first}; such rows are counted as env/outside, and "
                "--strict-env stops at the first",
                stacklevel=2,
            )
        return count

    def _action_shapes(self, policy: Params, obs_stats: Any) -> tuple[PyTree, PyTree]:
        """Shapes of an action as it is sampled, and as it is sent."""
        if self._shapes is None:

            def act(noise):
                drawn = jax.tree.map(lambda leaf: leaf[0], noise)
                return self._actor.act(policy, obs_stats, self._obs, self._mask, drawn)[:2]

            self._shapes = jax.eval_shape(act, self._noise)
        assert self._shapes is not None
        return self._shapes

    def _allocate(self, action: PyTree) -> Rollout:
        """Empty arrays for a rollout."""
        steps, envs = self._settings.train.num_steps, self._env.num_envs
        return _empty_rollout(steps, envs, self._obs, action, self._mask)


def _episodes(ends: list[tuple[int, int, float, int]], steps: int, envs: int) -> Episodes:
    ended, returns, lengths = (
        _zeros((steps, envs), dtype) for dtype in (bool, np.float32, np.int32)
    )
    for t, index, total, length in ends:
        ended[t, index], returns[t, index], lengths[t, index] = True, total, length
    return Episodes(ended, returns, lengths)


def _zeros(shape: tuple[int, ...], dtype: Any) -> Any:
    """NumPy's zeros where a JAX array is announced: the host fills it before handing it over."""
    return np.zeros(shape, dtype)


def _empty_rollout(steps: int, envs: int, obs: PyTree, action: PyTree, mask: PyTree) -> Rollout:
    """Empty arrays for a rollout, shaped like one step's."""

    def rows_of(count: int, tree: PyTree) -> PyTree:
        # Not zeros: every row is written before it is read.
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


def _write(rows: list[np.ndarray], t: int, values: PyTree) -> None:
    for row, value in zip(rows, jax.tree.leaves(values), strict=True):
        row[t] = value


def _pad_final(
    final: list[tuple[int, int, Any]], like: PyTree, train: Train
) -> tuple[PyTree, np.ndarray]:
    """True last observations of (time, environment), block by block.

    Each block's are padded to one of a few sizes, so that few programs are compiled.
    """
    width = train.num_envs // train.blocks
    size = train.num_steps * width
    counts = np.bincount([index // width for _, index, _ in final], minlength=train.blocks)
    most = int(counts.max())
    capacity = next(n for n in (8, 64, 512, 4096, size, most) if n >= most)
    rows = np.full((train.blocks, capacity), size, np.int32)
    padded = jax.tree.map(
        lambda leaf: np.zeros((train.blocks * capacity, *leaf.shape[1:]), leaf.dtype), like
    )
    filled = np.zeros(train.blocks, int)
    for t, index, obs in final:
        block, column = divmod(index, width)
        position = filled[block]
        filled[block] += 1
        rows[block, position] = t * width + column
        for target, leaf in zip(jax.tree.leaves(padded), jax.tree.leaves(obs), strict=True):
            target[block * capacity + position] = leaf
    return padded, rows.reshape(-1)
