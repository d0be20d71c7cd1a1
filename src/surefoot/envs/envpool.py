"""EnvPool's vector environments: stepped by threads of C++, and seeded only when they are made."""

import os
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from jaxtyping import PyTree

from surefoot.config.validation import nearest
from surefoot.envs.processes import usable_cores
from surefoot.envs.source import EnvSource
from surefoot.errors import ConfigError


class EnvPoolVector(VectorEnv):
    """Environments of one EnvPool id, which a reset makes anew.

    EnvPool takes its seeds at construction and passes over those of `reset`. A step after an
    episode's end ignores its action and starts the next episode.
    """

    def __init__(self, name: str, num_envs: int, kwargs: Mapping[str, Any]):
        self._name, self._kwargs = name, dict(kwargs)
        self.num_envs = num_envs
        self._pool: Any = None
        self._make(range(num_envs))
        self.single_observation_space = self._pool.single_observation_space
        self.single_action_space = self._pool.single_action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        limit = self._pool.spec.config.max_episode_steps
        self.spec = EnvSpec(id=name, max_episode_steps=limit)

    def _make(self, seeds: Sequence[int]) -> None:
        import envpool

        self.close_extras()
        with warnings.catch_warnings():
            # Nobody can do anything about bounds that float32 cannot tell exactly.
            warnings.filterwarnings("ignore", ".*precision lowered by casting")
            self._pool = envpool.make(
                self._name,
                env_type="gymnasium",
                num_envs=self.num_envs,
                env_seed=list(seeds),
                **_threads(self.num_envs, **self._kwargs) | self._kwargs,
            )
            _ = self._pool.observation_space, self._pool.action_space  # made once, when first read

    def reset(
        self,
        *,
        seed: int | Sequence[int] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[PyTree, dict[str, Any]]:
        """New environments with these seeds, each at the start of an episode."""
        if seed is not None:
            seeds = range(seed, seed + self.num_envs) if isinstance(seed, int) else seed
            self._make(seeds)
        obs, infos = self._pool.reset()
        return obs, _with_presence(infos)

    def step(
        self, actions: PyTree
    ) -> tuple[PyTree, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Step every environment; infos are told where an episode ends."""
        obs, rewards, terminated, truncated, infos = self._pool.step(actions)
        ended = terminated.any() or truncated.any()
        return obs, rewards, terminated, truncated, _with_presence(infos) if ended else {}

    def close_extras(self, **_: Any) -> None:
        """Let the threads of the environments go."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None


def _threads(num_envs: int, *, num_threads: int = 0, **_: Any) -> dict[str, int]:
    """A thread a core; where they fill the machine, each keeps to its core.

    On two cores that took a tenth to a fifth off an iteration with MuJoCo. Pinned threads that
    leave cores free would crowd the same ones in every run on the machine.
    """
    cores, usable = os.cpu_count() or 1, usable_cores()
    count = num_threads or min(num_envs, usable)
    return {
        "num_threads": count,
        "thread_affinity_offset": 0 if count >= cores == usable else -1,
    }


def _with_presence(infos: dict[str, Any]) -> dict[str, Any]:
    """Numbers of an info as Gymnasium's vectors give them: each beside who has it, here all."""
    rows = {k: v for k, v in infos.items() if isinstance(v, np.ndarray) and v.ndim == 1}
    return rows | {f"_{key}": np.ones(len(row), bool) for key, row in rows.items()}


def find(name: str, env_kwargs: Mapping[str, Any]) -> EnvSource:
    """The source of an EnvPool id.

    Raises:
        ConfigError: where EnvPool is missing, does not know the id or refuses its arguments.
    """
    env_id = f"envpool:{name}"
    try:
        import envpool
    except ImportError as fault:
        raise ConfigError(
            f"{env_id} needs a package that is not installed: pip install 'surefoot[envpool]'",
            name="EXTRA",
        ) from fault
    known = envpool.list_all_envs()
    if name not in known:
        raise ConfigError(f"unknown environment {env_id}{nearest(name, known)}", name="UNKNOWN-ENV")
    try:
        envpool.make_spec(name, **env_kwargs)
    except (TypeError, ValueError, AssertionError) as fault:
        raise ConfigError(f"{env_id}: env_kwargs {dict(env_kwargs)}: {fault}") from fault
    return EnvSource(env_id=env_id, make_vector=partial(EnvPoolVector, name, kwargs=env_kwargs))
