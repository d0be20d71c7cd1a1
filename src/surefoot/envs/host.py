"""Gymnasium's vector environments behind one contract, whatever their autoreset mode."""

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from jaxtyping import PyTree

from surefoot.envs import EnvSource, crashed, time_limit
from surefoot.envs.masks import empty_masks, write_mask
from surefoot.envs.vector import make_vector
from surefoot.errors import EnvContractError, EnvCrashError
from surefoot.spaces import own_dtype
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


def _time_limit(vector: Any, *, ours: bool) -> int | None:
    """The time limit of the environments inside, in steps."""
    if ours:
        return vector.time_limit
    inner = vector.unwrapped
    if isinstance(inner, SyncVectorEnv):
        return time_limit(inner.envs[0])
    return vector.spec.max_episode_steps if vector.spec else None


def _autoreset_mode(vector: VectorEnv, env_id: str) -> AutoresetMode:
    """The mode a vector environment steps in.

    Raises:
        EnvContractError: where it declares none that Gymnasium knows.
    """
    inner = vector.unwrapped
    # Gymnasium's own vectors note their mode in a dictionary that every environment of a class
    # shares: a vector built later, in another mode, overwrites it.
    known = isinstance(inner, SyncVectorEnv | AsyncVectorEnv)
    mode = inner.autoreset_mode if known else vector.metadata.get("autoreset_mode")
    try:
        return AutoresetMode(mode)
    except ValueError as fault:
        raise EnvContractError(
            f"{env_id}: unknown autoreset_mode {mode!r} in its metadata; one of "
            f"{', '.join(str(m.value) for m in AutoresetMode)} is needed"
        ) from fault


class HostEnv:
    """A vector environment that tells truth about ends of episodes.

    Attributes:
        spec: spaces, time limit, and whether there are action masks.
        num_envs: how many environments step side by side.
    """

    def __init__(self, vector: VectorEnv, env_id: str, *, seed: int, ours: bool = False):
        self._mode = _autoreset_mode(vector, env_id)
        self._vector: Any = vector  # the base class types neither lists of seeds nor masks
        self.num_envs = vector.num_envs
        self._resetting = np.zeros(self.num_envs, bool)
        self._steps = 0
        self.spec = EnvSpec(
            env_id=env_id,
            observation_space=vector.single_observation_space,
            action_space=vector.single_action_space,
            max_episode_steps=_time_limit(vector, ours=ours),
            masked=False,
            jax_native=False,
        )
        _, infos = self._reset([seed + index for index in range(self.num_envs)])
        if "action_mask" in infos:
            self.spec = replace(self.spec, masked=True)

    def _guarded(self, doing: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except EnvCrashError:
            raise
        except Exception as fault:
            raise crashed(self.spec.env_id, doing, fault) from fault

    def _reset(self, seeds: list[int]) -> tuple[PyTree, dict[str, Any]]:
        return self._guarded(f"reset(seed={seeds[0]}...)", lambda: self._vector.reset(seed=seeds))

    def reset(self, seeds: list[int]) -> tuple[PyTree, PyTree | None]:
        """Start a new episode everywhere; the first observations and action masks."""
        obs, infos = self._reset(seeds)
        self._resetting = np.zeros(self.num_envs, bool)
        return obs, self._mask(infos)

    def step(self, actions: PyTree) -> HostStep:
        """Act everywhere at once.

        Raises:
            EnvCrashError: where an environment raises.
            EnvContractError: for an action mask that does not fit or allows nothing.
        """
        self._steps += 1
        doing, actions = f"step {self._steps}", own_dtype(self.spec.action_space, actions)
        obs, rewards, terminated, truncated, infos = self._guarded(
            doing, lambda: self._vector.step(actions)
        )
        valid = ~self._resetting
        terminated, truncated = np.asarray(terminated, bool), np.asarray(truncated, bool)
        truncated = truncated & ~terminated
        done = terminated | truncated
        ended = np.flatnonzero(done).tolist()
        final_infos = {i: self._final_info(infos, i) for i in ended}
        final_obs = {i: self._final_obs(obs, infos, i) for i in ended if truncated[i]}
        if self._mode is AutoresetMode.SAME_STEP:
            mask = self._mask(infos)
        else:
            # Nobody acts in an episode's last state, so its mask may allow nothing.
            mask = self._mask(infos, unread=done)
        if self._mode is AutoresetMode.NEXT_STEP:
            self._resetting = done
        if self._mode is AutoresetMode.DISABLED and done.any():
            restart = {"reset_mask": done}
            obs, infos = self._guarded(doing, lambda: self._vector.reset(options=restart))
            mask = self._mask(infos, unread=~done, masks=mask)
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
            value = values[index] if isinstance(values, np.ndarray) else None
            # A NumPy bool or number stands in an array of objects; a Python one has its own kind.
            if isinstance(value, bool | int | float | np.bool_ | np.integer | np.floating):
                scalars[key] = float(value)
        return scalars

    def _mask(
        self, infos: dict[str, Any], unread: np.ndarray | None = None, masks: PyTree | None = None
    ) -> PyTree | None:
        """The masks for the next actions; an environment that gave none allows everything.

        Those in rows of `unread` are passed over; the others are written over `masks`.
        """
        given = infos.get("action_mask")
        if not self.spec.masked:
            if given is not None:
                raise EnvContractError(
                    f"{self.spec.env_id}: info['action_mask'] came at step {self._steps} and not "
                    "on reset; give one in every info"
                )
            return None
        if masks is None:
            masks = empty_masks(self.spec, self.num_envs)
        if given is not None:
            present = infos.get("_action_mask", np.ones(self.num_envs, bool))
            for row in np.flatnonzero(present if unread is None else present & ~unread):
                one = jax.tree.map(lambda leaf, i=row: leaf[i], given)
                write_mask(self.spec, masks, one, int(row))
        return masks

    def close(self) -> None:
        """Close the environments and their processes; one that fails to close stops nobody."""
        with contextlib.suppress(Exception):
            self._vector.close()


def open_host_env(source: EnvSource, num_envs: int, *, seed: int, processes: int = 1) -> HostEnv:
    """Build and reset the environments of a source, spread over `processes`."""
    vector = make_vector(source, num_envs, processes=processes)
    try:
        return HostEnv(vector, source.env_id, seed=seed, ours=source.kind == "gymnasium")
    except BaseException:
        if source.kind != "vector":
            vector.close()
        raise
