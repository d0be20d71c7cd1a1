"""Environments that one process steps one after another, with same-step autoreset."""

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector.utils import batch_space, concatenate, iterate

from surefoot.envs.buffers import StepBuffers, map_arrays
from surefoot.envs.contract import (
    NUMBERS,
    TRUTHS,
    ObsContract,
    check_info,
    check_outcome,
    old_interface,
)
from surefoot.envs.single import CopyObservations, close_envs
from surefoot.envs.step_timeout import StepTimeoutError
from surefoot.errors import EnvContractError, EnvCrashError, SurefootError

EnvInfos = dict[int, dict[str, Any]]
"""What steps and resets return beside arrays, by the number of the environment: `action_mask`;
`final_obs` and the scalars of `final_info` at an episode's end; `restarted` and the new `seed`."""


def _attributed(error: BaseException, index: int) -> BaseException:
    """The error to raise for one that environment `index` caused."""
    if isinstance(error, StepTimeoutError):
        error.args = (f"environment {index}",)
    elif isinstance(error, EnvContractError):
        error.index = index
    elif isinstance(error, Exception | SystemExit) and not isinstance(error, SurefootError):
        if hint := old_interface(error):
            return EnvContractError(hint, index=index)
        text = " ".join(str(error).split()) or "no message"
        return EnvCrashError(f"raised {type(error).__name__}: {text}", index=index)
    return error


class EnvGroup:
    """Some of a run's environments, the first of which has the number `first`.

    An environment that raises in a step is closed and replaced if there is a way to `make_again`:
    the new one starts an episode, with another seed, and its info says "restarted".

    Raises:
        EnvContractError: for outputs that break the contract, with the environment's number.
        EnvCrashError: for an exception of an environment, `SystemExit` included.
    """

    def __init__(
        self,
        envs: list[CopyObservations],
        buffers: StepBuffers,
        first: int,
        make_again: Callable[[], gymnasium.Env] | None = None,
    ):
        self.envs, self._first, self._make_again = envs, first, make_again
        self._buffers = buffers.rows(first, len(envs))
        self._obs_space = envs[0].observation_space
        self._action_spaces = batch_space(envs[0].action_space, len(envs))
        self._contract = ObsContract(self._obs_space)
        self._seeds: Sequence[int] = ()
        self._restarts = 0

    def reset(self, seeds: Sequence[int]) -> EnvInfos:
        """Start a new episode everywhere."""
        infos, observations, self._seeds = {}, [], seeds
        for i, env in enumerate(self.envs):
            try:
                obs, info = self._reset(env, seed=seeds[i])
            except BaseException as error:
                raise _attributed(error, self._first + i) from error
            observations.append(obs)
            if "action_mask" in info:
                infos[self._first + i] = {"action_mask": info["action_mask"]}
        concatenate(self._obs_space, observations, self._buffers.obs)
        return infos

    def step(self) -> EnvInfos:
        """Take the actions in the buffers; start the next episode where one ends."""
        infos, observations = {}, []
        # An environment may keep its action, and the buffers are overwritten.
        actions = map_arrays(np.copy, self._buffers.actions)
        for i, action in enumerate(iterate(self._action_spaces, actions)):
            try:
                obs, info = self._step(i, action)
            except BaseException as error:
                found = _attributed(error, self._first + i)
                if self._make_again is None or not isinstance(found, EnvCrashError):
                    raise found from error
                obs, info = self._restart(i, found)
            if info:
                infos[self._first + i] = info
            observations.append(obs)
        concatenate(self._obs_space, observations, self._buffers.obs)
        return infos

    def _step(self, i: int, action: Any) -> tuple[Any, dict[str, Any]]:
        env, buffers, kept = self.envs[i], self._buffers, {}
        obs, reward, terminated, truncated, info = env.step(action)
        plain = type(reward) in NUMBERS and type(terminated) in TRUTHS and type(truncated) in TRUTHS
        if not (plain and type(info) is dict):
            check_outcome(reward, terminated, truncated, info)
        obs = self._contract(obs)
        buffers.rewards[i] = reward
        buffers.terminated[i], buffers.truncated[i] = terminated, truncated
        if terminated or truncated:
            kept = {"final_obs": obs, "final_info": scalars(info)}
            obs, info = self._reset(env)
        if "action_mask" in info:
            kept["action_mask"] = info["action_mask"]
        return obs, kept

    def _restart(self, i: int, error: EnvCrashError) -> tuple[Any, dict[str, Any]]:
        """Replace an environment that raised by another, at the start of an episode."""
        assert self._make_again is not None
        close_envs([self.envs[i]])
        self._restarts += 1
        words = np.random.SeedSequence([self._seeds[i], self._restarts]).generate_state(1)
        seed = int(words[0]) & 0x7FFFFFFF
        try:
            self.envs[i] = CopyObservations(self._make_again())
            if self.envs[i].observation_space != self._obs_space:
                raise EnvContractError("recreated, it has another observation space")
            obs, info = self._reset(self.envs[i], seed=seed)
        except BaseException as again:
            raise _attributed(again, self._first + i) from again
        self._buffers.rewards[i] = 0.0
        self._buffers.terminated[i] = self._buffers.truncated[i] = False
        kept = {"restarted": str(error), "seed": seed}
        if "action_mask" in info:
            kept["action_mask"] = info["action_mask"]
        return obs, kept

    def _reset(self, env: gymnasium.Env, seed: int | None = None) -> tuple[Any, dict[str, Any]]:
        obs, info = env.reset(seed=seed)
        check_info(info, "reset")
        return self._contract(obs), info


def scalars(info: dict[str, Any]) -> dict[str, float]:
    """The scalar entries of an info, as plain numbers that any process can unpickle."""
    kinds = bool | int | float | np.bool_ | np.integer | np.floating
    values = {
        key: value[()] if isinstance(value, np.ndarray) and value.ndim == 0 else value
        for key, value in info.items()
    }
    return {key: float(value) for key, value in values.items() if isinstance(value, kinds)}
