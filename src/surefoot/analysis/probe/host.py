"""Paired episodes of Gymnasium's environments, stepped by hand around one call of the policy."""

from collections.abc import Callable
from typing import Any

import gymnasium
import jax
import numpy as np
from jaxtyping import PyTree

from surefoot.analysis.probe.players import Played, Trace
from surefoot.envs.single import crash_error
from surefoot.envs.source import EnvSource
from surefoot.networks.masks import empty_masks, write_mask
from surefoot.networks.spaces import obs_arrays, own_dtype
from surefoot.training.seeds import Purpose, env_seeds
from surefoot.types import EnvSpec

GROUP = 32
"""Environments that step side by side around one call of the policy."""
SEED_CHECK_STEPS = 10


class HostPlayer:
    """Episodes of a Gymnasium environment, a group at a time around one call of the policy.

    `act(policy, obs, masks, group, t) -> (actions, sent)` for a batch; what it draws must follow
    from the group's number and the step alone. A group's row keeps its place, finished or not.
    """

    group = GROUP

    def __init__(
        self,
        source: EnvSource,
        spec: EnvSpec,
        act: Callable[..., tuple[Any, Any]],
        *,
        gamma: float,
        limit: int,
        seed: int,
    ):
        assert source.make is not None  # see `refuse_vectors`
        self._envs: list[gymnasium.Env] = [source.make() for _ in range(self.group)]
        self._spec, self._act, self._seed = spec, act, seed
        self._gamma, self._limit = gamma, limit
        self.paired = all(can_be_seeded(env, seed) for env in self._envs[:1])

    def play(self, policy: Any, first: int, count: int, *, keep: bool) -> Played:
        """Episodes of one policy; they must belong to one group."""
        group, offset = divmod(first, self.group)
        rows = range(offset, offset + count)
        seeds = env_seeds(self._seed, group, self.group, Purpose.PROBE)
        running = np.zeros(self.group, bool)
        running[offset : offset + count] = True
        obs, masks = self._reset(rows, seeds)
        returns, lengths = np.zeros(self.group), np.zeros(self.group, np.int64)
        terminated = np.zeros(self.group, bool)
        kept: list[Trace] = []
        for t in range(self._limit):
            if not running.any():
                break
            actions, sent = self._act(policy, obs, masks, group, t)
            sent = own_dtype(self._spec.action_space, sent)
            if keep:
                past = jax.tree.map(np.copy, (obs, masks))
                taken = jax.tree.map(np.asarray, actions)
                kept.append(Trace(past[0], past[1], taken, np.zeros(self.group)))
            for row in np.flatnonzero(running):
                reward, done, cut = self._step(int(row), sent, obs, masks, t)
                returns[row] += self._gamma**t * reward
                lengths[row] += 1
                terminated[row], running[row] = done, not (done or cut)
                if keep:
                    kept[-1].rewards[row] = reward
        mine = lambda leaf: leaf[offset : offset + count]  # noqa: E731
        trace = None
        if keep:
            trace = jax.tree.map(lambda *steps: np.stack(steps)[:, offset : offset + count], *kept)
        found = Played(returns, lengths, terminated, obs, None)
        return jax.tree.map(mine, found)._replace(trace=trace)

    def _reset(self, rows: range, seeds: list[int]) -> tuple[PyTree, PyTree | None]:
        """First observations of the episodes of these rows, zeros elsewhere; and their masks."""
        space, obs = self._spec.observation_space, None
        masks = empty_masks(self._spec, self.group) if self._spec.masked else None
        for row in rows:
            seed = seeds[row] if self.paired else None
            try:
                first, info = _seeded_reset(self._envs[row], seed)
            except Exception as fault:
                raise crash_error(self._spec.env_id, f"reset(seed={seed})", fault) from fault
            seen = obs_arrays(space, first)
            if obs is None:
                obs = jax.tree.map(self._empty, seen)
            self._note(row, obs, masks, seen, info)
        return obs, masks

    def _empty(self, leaf: np.ndarray) -> np.ndarray:
        return np.zeros((self.group, *leaf.shape), leaf.dtype)

    def _step(
        self, row: int, sent: PyTree, obs: PyTree, masks: PyTree | None, t: int
    ) -> tuple[float, bool, bool]:
        action = jax.tree.map(lambda leaf: leaf[row], sent)
        try:
            seen, reward, done, cut, info = self._envs[row].step(action)
        except Exception as fault:
            raise crash_error(self._spec.env_id, f"step {t}", fault) from fault
        over = bool(done or cut)
        seen = obs_arrays(self._spec.observation_space, seen)
        self._note(row, obs, None if over else masks, seen, info)
        return float(reward), bool(done), bool(cut)

    def _note(
        self, row: int, obs: PyTree, masks: PyTree | None, seen: PyTree, info: dict[str, Any]
    ) -> None:
        for rows, leaf in zip(jax.tree.leaves(obs), jax.tree.leaves(seen), strict=True):
            rows[row] = leaf
        if masks is not None and "action_mask" in info:
            write_mask(self._spec, masks, info["action_mask"], row)

    def close(self) -> None:
        """Close the environments."""
        for env in self._envs:
            env.close()


def _seeded_reset(env: gymnasium.Env, seed: int | None) -> tuple[Any, dict[str, Any]]:
    return env.reset() if seed is None else env.reset(seed=seed)


def can_be_seeded(env: gymnasium.Env, seed: int) -> bool:
    """Whether two episodes with one seed and the same actions are one and the same."""

    def episode() -> list[Any]:
        seen = [env.reset(seed=seed)[0]]
        env.action_space.seed(seed)
        for _ in range(SEED_CHECK_STEPS):
            obs, reward, done, cut, _ = env.step(env.action_space.sample())
            seen += [obs, reward]
            if done or cut:
                break
        return [np.asarray(leaf) for leaf in jax.tree.leaves(seen)]

    try:
        first, second = episode(), episode()
    except TypeError:
        return False
    same = len(first) == len(second)
    return same and all(
        np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
        for a, b in zip(first, second, strict=True)
    )
