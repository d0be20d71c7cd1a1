"""Gymnasium's vector environments, read in any of their autoreset modes."""

import contextlib
from collections.abc import Sequence
from typing import Any

import gymnasium
import jax
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from surefoot.envs.contract import ObsContract
from surefoot.envs.global_generators import seed_generators
from surefoot.envs.group import EnvInfos, VectorStep, scalars, time_limit
from surefoot.envs.own_instance import LentVector
from surefoot.envs.wrappers import notes_on, unused_mask
from surefoot.errors import ConfigError, EnvContractError

_RESETS_COST = (
    "a step of this vector environment after an episode's end is a reset: no action counts in it, "
    "and it comes off the budget of steps; autoreset_mode=AutoresetMode.SAME_STEP loses none"
)


class ReadyVector:
    """A vector environment with the interface of an `EnvGroup`."""

    def __init__(self, vector: VectorEnv, env_id: str, num_envs: int):
        self._vector: Any = vector  # the base class types neither lists of seeds nor masks
        self._mode = _autoreset_mode(vector, env_id)
        if vector.num_envs != num_envs:
            raise ConfigError(
                f"{env_id} has {vector.num_envs} environments, num_envs is {num_envs}"
            )
        self.num_envs = num_envs
        self.spaces = vector.single_observation_space, vector.single_action_space
        own = isinstance(vector, LentVector)
        inner = vector.vector if own else vector
        self.notes, self.unused_mask = notes_on(inner), unused_mask(inner, self.spaces[0])
        if own and self._mode is AutoresetMode.NEXT_STEP:
            self.notes += (_RESETS_COST,)
        self._contract = ObsContract(self.spaces[0], self.num_envs)
        self._resetting = np.zeros(self.num_envs, bool)
        self._one_seed = False

    @property
    def time_limit(self) -> int | None:
        """Time limit of the environments, in steps."""
        inner = self._vector.unwrapped
        if isinstance(inner, SyncVectorEnv):
            return time_limit(inner.envs[0])
        return self._vector.spec.max_episode_steps if self._vector.spec else None

    def reset(self, seeds: Sequence[int], cuts: Sequence[int] = ()) -> tuple[Any, EnvInfos]:
        """Start a new episode everywhere, with a seed for each environment.

        `cuts` are ignored: a vector need not be able to reset one environment in an episode.
        """
        seeds = list(seeds)
        seed_generators(seeds[0])
        obs, infos = self._seeded_reset(seeds)
        self._resetting = np.zeros(self.num_envs, bool)
        return self._contract(obs), _masks(infos, np.ones(self.num_envs, bool))

    def _seeded_reset(self, seeds: list[int]) -> tuple[Any, dict[str, Any]]:
        """Some vectors take a seed for each environment, and some one for all of them."""
        if not self._one_seed:
            try:
                return self._vector.reset(seed=seeds)
            except (gymnasium.error.Error, TypeError) as error:
                with contextlib.suppress(Exception):
                    found = self._vector.reset(seed=seeds[0])
                    self._one_seed = True
                    return found
                raise error
        return self._vector.reset(seed=seeds[0])

    def step(self, actions: Any) -> VectorStep:
        """Step every environment; with autoreset disabled, reset those whose episode ended."""
        obs, rewards, terminated, truncated, infos = self._vector.step(actions)
        obs, rewards = self._contract(obs), np.asarray(rewards)
        terminated, truncated = np.asarray(terminated), np.asarray(truncated)
        for name, values in (
            ("rewards", rewards),
            ("terminated", terminated),
            ("truncated", truncated),
        ):
            if values.shape != (self.num_envs,):
                raise EnvContractError(f"{name} have shape {values.shape}, not {(self.num_envs,)}")
        terminated, truncated = terminated.astype(bool), truncated.astype(bool)
        done, valid = terminated | truncated, ~self._resetting
        same_step = self._mode is AutoresetMode.SAME_STEP
        # In the other modes `obs` at an end is the episode's last, in which nothing acts: its mask
        # may allow nothing.
        found = _masks(infos, np.ones_like(done) if same_step else ~done)
        if same_step and done.any() and "final_obs" not in infos:
            what = "infos lack final_obs where an episode ends, which same-step autoreset needs"
            raise EnvContractError(what)
        for row in np.flatnonzero(done).tolist():
            final_obs = _row(infos["final_obs"] if same_step else obs, row)
            final_info = _scalars_of(infos.get("final_info", {}) if same_step else infos, row)
            found[row] = found.get(row, {}) | {"final_obs": final_obs, "final_info": final_info}
        if self._mode is AutoresetMode.NEXT_STEP:
            self._resetting = done
        # After the last observations were copied: the reset may write into the same arrays.
        if self._mode is AutoresetMode.DISABLED and done.any():
            obs, infos = self._vector.reset(options={"reset_mask": done})
            obs = self._contract(obs)
            for row, info in _masks(infos, done).items():
                found[row] |= info
        return VectorStep(obs, rewards, terminated, truncated, valid, found)

    def close(self) -> None:
        """Close the environments."""
        self._vector.close()


def _autoreset_mode(vector: VectorEnv, env_id: str) -> AutoresetMode:
    inner = vector.unwrapped
    # Gymnasium's own vectors declare their mode in a dictionary that every environment of a class
    # shares: a vector built later, in another mode, overwrites it.
    known = isinstance(inner, SyncVectorEnv | AsyncVectorEnv)
    mode = inner.autoreset_mode if known else vector.metadata.get("autoreset_mode")
    try:
        return AutoresetMode(mode)
    except ValueError as error:
        raise EnvContractError(
            f"{env_id}: unknown autoreset_mode {mode!r} in its metadata; it must be one of "
            f"{', '.join(str(each.value) for each in AutoresetMode)}"
        ) from error


def _row(values: Any, row: int) -> Any:
    """One environment's part of batched values, or of an array of objects, copied."""
    if isinstance(values, np.ndarray) and values.dtype == object:
        values = values[row]
        return jax.tree.map(np.array, values)
    return jax.tree.map(lambda leaf: np.array(leaf[row]), values)


def _masks(infos: dict[str, Any], rows: np.ndarray) -> EnvInfos:
    given = infos.get("action_mask")
    if given is None:
        return {}
    present = np.flatnonzero(rows & infos.get("_action_mask", True)).tolist()
    return {
        row: {"action_mask": jax.tree.map(lambda leaf, i=row: leaf[i], given)} for row in present
    }


def _scalars_of(infos: dict[str, Any], row: int) -> dict[str, float]:
    """The scalars that one environment has, out of arrays beside their presence `_key`."""
    own = {
        key: values[row]
        for key, values in infos.items()
        if isinstance(values, np.ndarray) and f"_{key}" in infos and infos[f"_{key}"][row]
    }
    return scalars(own)
