"""Gymnasium's vector environments behind one contract, whatever their autoreset mode."""

from typing import Any, NamedTuple

import jax
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from jaxtyping import PyTree

from surefoot.envs import EnvSource, OwnObs, crashed
from surefoot.errors import ConfigError, EnvContractError
from surefoot.spaces import full_mask
from surefoot.types import EnvSpec


class HostStep(NamedTuple):
    """One step of every environment, in this contract's terms.

    `obs` and `action_mask` are what the next action reads. `terminated` and `truncated` are
    disjoint. `final_obs` maps the index of each truncated environment to its true last
    observation. `valid` is False where the action was ignored because the step was a reset.
    `final_infos` maps the index of each environment whose episode ended to that step's info.
    """

    obs: PyTree
    action_mask: PyTree | None
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    final_obs: dict[int, PyTree]
    valid: np.ndarray
    final_infos: dict[int, dict[str, Any]]


def make_vector(source: EnvSource, num_envs: int, *, vectorization: str) -> VectorEnv:
    """A vector environment of `num_envs`, with same-step autoreset where it is built here.

    Raises:
        ConfigError: for a ready vector environment of another size.
        EnvCrashError: where a constructor raises.
    """
    if source.kind == "vector":
        vector = source.make()
        if vector.num_envs != num_envs:
            raise ConfigError(
                f"{source.env_id} has {vector.num_envs} environments, num_envs is {num_envs}"
            )
        return vector
    try:
        if vectorization == "async":
            # Forking a process that runs XLA's threads can deadlock.
            return AsyncVectorEnv(
                [lambda: OwnObs(source.make())] * num_envs,
                context="spawn",
                autoreset_mode=AutoresetMode.SAME_STEP,
            )
        return SyncVectorEnv(
            [lambda: OwnObs(source.make())] * num_envs,
            copy=False,
            autoreset_mode=AutoresetMode.SAME_STEP,
        )
    except ConfigError:
        raise
    except Exception as fault:
        raise crashed(source.env_id, "making it", fault) from fault


def _time_limit(vector: VectorEnv) -> int | None:
    """The time limit of the environments inside, in steps."""
    if isinstance(vector, SyncVectorEnv):
        spec = vector.envs[0].spec
        return spec.max_episode_steps if spec else None
    return vector.spec.max_episode_steps if vector.spec else None


class HostEnv:
    """A vector environment that tells truth about ends of episodes.

    Attributes:
        spec: spaces, time limit, and whether there are action masks.
        num_envs: how many environments step side by side.
    """

    def __init__(self, vector: VectorEnv, env_id: str, *, seed: int):
        mode = vector.metadata.get("autoreset_mode")
        try:
            self._mode = AutoresetMode(mode) if not isinstance(mode, AutoresetMode) else mode
        except ValueError as fault:
            raise EnvContractError(
                f"{env_id}: unknown autoreset_mode {mode!r} in its metadata; one of "
                f"{', '.join(str(m.value) for m in AutoresetMode)} is needed"
            ) from fault
        self._vector = vector
        self.num_envs = vector.num_envs
        self._resetting = np.zeros(self.num_envs, bool)
        self._steps = 0
        self.spec = EnvSpec(
            env_id=env_id,
            observation_space=vector.single_observation_space,
            action_space=vector.single_action_space,
            max_episode_steps=_time_limit(vector),
            masked=False,
            jax_native=False,
        )
        _, infos = self._reset([seed + index for index in range(self.num_envs)])
        if "action_mask" in infos:
            self.spec = EnvSpec(**{**self.spec.__dict__, "masked": True})

    def _reset(self, seeds: list[int]) -> tuple[PyTree, dict[str, Any]]:
        try:
            return self._vector.reset(seed=seeds)
        except Exception as fault:
            raise crashed(self.spec.env_id, f"reset(seed={seeds[0]}...)", fault) from fault

    def reset(self, seeds: list[int]) -> tuple[PyTree, PyTree | None]:
        """Start a new episode everywhere; the first observations and action masks."""
        obs, infos = self._reset(seeds)
        self._resetting[:] = False
        return obs, self._mask(infos)

    def step(self, actions: PyTree) -> HostStep:
        """Act everywhere at once.

        Raises:
            EnvCrashError: where an environment raises.
        """
        self._steps += 1
        try:
            obs, rewards, terminated, truncated, infos = self._vector.step(actions)
        except Exception as fault:
            raise crashed(self.spec.env_id, f"step {self._steps}", fault) from fault
        valid = ~self._resetting
        terminated, truncated = np.asarray(terminated, bool), np.asarray(truncated, bool)
        truncated = truncated & ~terminated
        done = terminated | truncated
        final_obs, final_infos = {}, {}
        if done.any():
            ended = np.flatnonzero(done)
            final_infos = {int(i): self._final_info(infos, i) for i in ended}
            final_obs = {int(i): self._final_obs(obs, infos, i) for i in ended if truncated[i]}
            if self._mode is AutoresetMode.DISABLED:
                obs, infos = self._vector.reset(options={"reset_mask": done})
            if self._mode is AutoresetMode.NEXT_STEP:
                self._resetting = done
        elif self._mode is AutoresetMode.NEXT_STEP:
            self._resetting = done
        mask = self._mask(infos)
        return HostStep(
            obs, mask, np.asarray(rewards), terminated, truncated, final_obs, valid, final_infos
        )

    def _final_obs(self, obs: PyTree, infos: dict[str, Any], index: int) -> PyTree:
        """The true last observation of one environment, in memory of its own."""
        if self._mode is AutoresetMode.SAME_STEP:
            final = infos["final_obs"]
            if isinstance(final, dict | tuple):
                return jax.tree.map(lambda leaf: np.array(leaf[index]), final)
            return jax.tree.map(np.array, final[index])
        return jax.tree.map(lambda leaf: np.array(leaf[index]), obs)

    def _final_info(self, infos: dict[str, Any], index: int) -> dict[str, Any]:
        """The scalar entries of the info of an episode's last step."""
        if self._mode is AutoresetMode.SAME_STEP:
            infos = infos.get("final_info", {})
        scalars = {}
        for key, values in infos.items():
            present = infos.get(f"_{key}")
            if key.startswith("_") or present is None or not present[index]:
                continue
            if isinstance(values, np.ndarray) and values.ndim == 1 and values.dtype.kind in "bif":
                scalars[key] = float(values[index])
        return scalars

    def _mask(self, infos: dict[str, Any]) -> PyTree | None:
        """The masks for the next actions; an environment that gave none allows everything."""
        if not self.spec.masked and "action_mask" not in infos:
            return None
        masks = jax.tree.map(np.array, full_mask(self.spec.action_space, (self.num_envs,)))
        given = infos.get("action_mask")
        present = infos.get("_action_mask", np.ones(self.num_envs, bool))
        for index in np.flatnonzero(present) if given is not None else ():
            row = jax.tree.map(lambda leaf, i=index: leaf[i], given)
            _write_mask(masks, row, int(index), self.spec.env_id)
        return masks

    def close(self) -> None:
        """Close the environments and their processes."""
        self._vector.close()


def _write_mask(masks: PyTree, row: PyTree, index: int, env_id: str) -> None:
    """Put one environment's mask in its row.

    Raises:
        EnvContractError: for a mask of another size, or one that allows nothing.
    """
    if isinstance(masks, dict | tuple):
        keys = masks.keys() if isinstance(masks, dict) else range(len(masks))
        for key in keys:
            given = row.get(key) if isinstance(row, dict) else row[key]
            if masks[key] is not None and given is not None:
                _write_mask(masks[key], given, index, env_id)
        return
    flat = np.asarray(row)
    flat = (
        np.concatenate([np.ravel(part) for part in row]) if flat.dtype == object else flat.ravel()
    )
    if flat.shape != masks[index].shape:
        raise EnvContractError(
            f"{env_id}: info['action_mask'] of environment {index} has {flat.size} entries, "
            f"its action space needs {masks[index].size}"
        )
    if not flat.any():
        raise EnvContractError(
            f"{env_id}: info['action_mask'] of environment {index} allows no action"
        )
    masks[index] = flat.astype(bool)


def open_host_env(source: EnvSource, num_envs: int, *, vectorization: str, seed: int) -> HostEnv:
    """Build and reset the environments of a source."""
    vector = make_vector(source, num_envs, vectorization=vectorization)
    return HostEnv(vector, source.env_id, seed=seed)
