"""Vector environments of Gymnasium, built from a source of single ones."""

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import concatenate, iterate

from surefoot.envs import EnvSource, OwnObs, crashed, make_in_worker
from surefoot.errors import ConfigError, EnvContractError, SurefootError


class SameStepVector(SyncVectorEnv):
    """Gymnasium's vector in this process with same-step autoreset, and of infos what is read here.

    Gathering every info of every step costs a twentieth of a MuJoCo run, and only masks and what an
    episode ends with are ever looked at.
    """

    def __init__(self, env_fns: Sequence[Callable[[], gymnasium.Env]]):
        super().__init__(env_fns, copy=False, autoreset_mode=AutoresetMode.SAME_STEP)

    def step(self, actions: Any) -> Any:
        """Step every environment, and start the next episode where one ended."""
        infos: dict[str, Any] = {}
        seen: list[Any] = []
        for i, action in enumerate(iterate(self.action_space, actions)):
            env = self.envs[i]
            obs, self._rewards[i], terminated, truncated, info = env.step(action)
            self._terminations[i], self._truncations[i] = terminated, truncated
            if terminated or truncated:
                last = {"final_obs": obs, "final_info": info}
                infos = self._add_info(infos, last, i)
                obs, info = env.reset()
            if "action_mask" in info:
                infos = self._add_info(infos, {"action_mask": info["action_mask"]}, i)
            seen.append(obs)
        self._observations = concatenate(self.single_observation_space, seen, self._observations)
        ends = np.copy(self._terminations), np.copy(self._truncations)
        return self._observations, np.copy(self._rewards), *ends, infos


def make_vector(source: EnvSource, num_envs: int, *, vectorization: str) -> VectorEnv:
    """A vector environment of `num_envs`, with same-step autoreset where it is built here.

    Raises:
        ConfigError: for a ready vector environment of another size.
        EnvContractError: for environments whose spaces differ.
        EnvCrashError: where a constructor raises.
    """
    if source.kind == "vector":
        vector = source.make()
        if vector.num_envs != num_envs:
            raise ConfigError(
                f"{source.env_id} has {vector.num_envs} environments, num_envs is {num_envs}"
            )
        return vector
    if vectorization == "sync" and source.kind != "pool":
        envs = _make_envs(source, num_envs)
        return SameStepVector([lambda env=env: env for env in envs])
    try:
        if source.kind == "pool":
            return source.make(num_envs)
        # Forking a process that runs XLA's threads can deadlock.
        return AsyncVectorEnv(
            [lambda: make_in_worker(source)] * num_envs,
            context="spawn",
            autoreset_mode=AutoresetMode.SAME_STEP,
        )
    except ConfigError:
        raise
    except Exception as fault:
        raise crashed(source.env_id, "making it", fault) from fault


def _make_envs(source: EnvSource, num_envs: int) -> list[OwnObs]:
    """Environments of one source, which must have the same spaces."""
    envs: list[OwnObs] = []
    try:
        for index in range(num_envs):
            envs.append(OwnObs(source.make()))
            spaces_of = [(e.observation_space, e.action_space) for e in (envs[0], envs[-1])]
            if spaces_of[0] != spaces_of[1]:
                raise EnvContractError(
                    f"{source.env_id}: environment {index} has spaces {spaces_of[1]}, "
                    f"environment 0 has {spaces_of[0]}; all must have the same"
                )
    except Exception as fault:
        for env in envs:
            env.close()
        if isinstance(fault, SurefootError):
            raise
        raise crashed(source.env_id, f"making environment {len(envs)}", fault) from fault
    return envs
