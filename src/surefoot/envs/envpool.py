"""The adaptor of EnvPool: vector environments stepped by C++ threads."""

import os
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from jaxtyping import PyTree

from surefoot.config.validation import nearest
from surefoot.envs.processes import usable_cores
from surefoot.envs.source import EnvSource
from surefoot.errors import ConfigError

_OURS = ("num_envs", "batch_size", "env_type", "seed", "env_seed", "gym_reset_return_info")


class EnvPoolVector(VectorEnv):
    """Environments of one EnvPool id, recreated by a seeded reset.

    EnvPool takes seeds when it makes environments and ignores those of `reset`.
    """

    def __init__(self, name: str, num_envs: int, kwargs: Mapping[str, Any]):
        self._name, self._kwargs, self._pool = name, dict(kwargs), None
        self.num_envs = num_envs
        # Only to read the spaces: the first seeded reset makes another one.
        pool = self._make(range(num_envs))
        self.single_observation_space = unbounded_below(pool.single_observation_space)
        self.single_action_space = pool.single_action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self.spec = EnvSpec(id=name, max_episode_steps=pool.spec.config.max_episode_steps)

    def _make(self, seeds: Sequence[int]) -> Any:
        import envpool

        # The threads of the old pool would compete with those of the new one.
        self.close_extras()
        threads = _threads(self.num_envs, self._kwargs.get("num_threads", 0))
        with warnings.catch_warnings():
            # About bounds that float32 cannot hold exactly, which is nothing to act on.
            warnings.filterwarnings("ignore", ".*precision lowered by casting")
            self._pool = pool = envpool.make(
                self._name,
                env_type="gymnasium",
                num_envs=self.num_envs,
                env_seed=list(seeds),
                **threads | self._kwargs,
            )
            # Their spaces are made, with that warning, when first read.
            _ = pool.observation_space, pool.action_space
        return pool

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[PyTree, dict[str, Any]]:
        """Start an episode in every environment."""
        assert isinstance(seed, Sequence)
        obs, infos = self._make(seed).reset()
        return obs, _with_presence(infos)

    def step(
        self, actions: PyTree
    ) -> tuple[PyTree, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Step every environment; infos are returned where an episode ends."""
        assert self._pool is not None
        obs, rewards, terminated, truncated, infos = self._pool.step(actions)
        ended = terminated.any() or truncated.any()
        return obs, rewards, terminated, truncated, _with_presence(infos) if ended else {}

    def close_extras(self, **_: Any) -> None:
        """End the threads of the environments."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None


def unbounded_below(space: spaces.Space) -> spaces.Space:
    """A space with -inf in the place of the smallest positive float as a lower bound.

    C++ calls that one `numeric_limits::min()`, and many environments take it for the lowest.
    """
    if isinstance(space, spaces.Dict):
        return spaces.Dict({key: unbounded_below(part) for key, part in space.spaces.items()})
    if not (isinstance(space, spaces.Box) and space.dtype.kind == "f"):
        return space
    dtype: Any = space.dtype
    low = np.where(space.low == np.finfo(dtype).tiny, -np.inf, space.low)
    return spaces.Box(low.astype(dtype), space.high, dtype=dtype)


def _threads(num_envs: int, num_threads: int) -> dict[str, int]:
    """One thread per core, each kept to its core if they fill the machine.

    On two cores that saved a tenth to a fifth of an iteration with MuJoCo. Pinned threads that
    leave cores free would crowd the same ones in every run on the machine.
    """
    cores, usable = os.cpu_count() or 1, usable_cores()
    count = num_threads or min(num_envs, usable)
    offset = 0 if count >= cores == usable else -1
    return {"num_threads": count, "thread_affinity_offset": offset}


def _with_presence(infos: dict[str, Any]) -> dict[str, Any]:
    """Numbers of an info in Gymnasium's form: each beside the environments that have it, all."""
    rows = {k: v for k, v in infos.items() if isinstance(v, np.ndarray) and v.ndim == 1}
    return rows | {f"_{key}": np.ones(len(row), bool) for key, row in rows.items()}


def find_envpool(name: str, env_kwargs: Mapping[str, Any]) -> EnvSource:
    """The source of an EnvPool id; ConfigError without EnvPool, or for an unknown id."""
    env_id = f"envpool:{name}"
    try:
        import envpool
    except ImportError as error:
        fix = "pip install 'surefoot[envpool]'"
        raise ConfigError(f"{env_id} needs EnvPool: {fix}", name="EXTRA") from error
    known = envpool.list_all_envs()
    if name not in known:
        raise ConfigError(f"unknown environment {env_id}{nearest(name, known)}", name="UNKNOWN-ENV")
    for key in env_kwargs:
        if key in _OURS:
            text = f"{env_id}: env_kwargs cannot hold {key}, which follows from the run's settings"
            raise ConfigError(text, name="ENV-KWARGS")
    try:
        envpool.make_spec(name, **env_kwargs)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        text = f"{env_id}: env_kwargs {dict(env_kwargs)}: {error}"
        raise ConfigError(text, name="ENV-KWARGS") from error
    return EnvSource(env_id=env_id, make_vector=partial(EnvPoolVector, name, kwargs=env_kwargs))
