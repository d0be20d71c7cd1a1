"""Environments that one process steps one after another, with same-step autoreset.

Free of JAX: every process that steps environments imports this module.
"""

import traceback
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
from surefoot.errors import EnvContractError, SurefootError

EnvInfos = dict[int, dict[str, Any]]
"""What steps and resets return beside arrays, by the number of the environment: `action_mask`;
`final_obs` and the scalars of `final_info` at an episode's end; `restarted` and the new `seed`."""


class EnvRaisedError(Exception):
    """An exception of one environment, in this process or another.

    Attributes:
        index: the environment's number.
        raised: the name of the exception's class.
        trace: its traceback.
    """

    def __init__(self, index: int, raised: str, text: str, trace: str):
        super().__init__(index, raised, text, trace)
        self.index, self.raised, self.text, self.trace = index, raised, text, trace

    def __str__(self) -> str:
        return f"{self.raised}: {self.text}\n{self.trace}"


def _attributed(error: BaseException, index: int) -> BaseException:
    """The error to raise for one that environment `index` caused."""
    if isinstance(error, StepTimeoutError):
        error.args = (f"environment {index}",)
    elif isinstance(error, EnvContractError):
        error.index = index
    elif isinstance(error, Exception | SystemExit) and not isinstance(error, SurefootError):
        if hint := old_interface(error):
            return EnvContractError(hint, index=index)
        text = " ".join(str(error).split())
        trace = "".join(traceback.format_exception(error))
        return EnvRaisedError(index, type(error).__name__, text, trace)
    return error


class EnvGroup:
    """Some of a run's environments, the first of which has the number `first`.

    An environment that raises in a step is closed and replaced if there is a way to `make_again`:
    the new one starts an episode, with another seed, and its info says "restarted".

    Raises:
        EnvContractError: for outputs that break the contract, with the environment's number.
        EnvRaisedError: for an exception of an environment, `SystemExit` included.
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
                obs, info = env.reset(seed=seeds[i])
                check_info(info, "reset")
                observations.append(self._contract(obs))
            except BaseException as error:
                raise _attributed(error, self._first + i) from error
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
                if self._make_again is None or not isinstance(found, EnvRaisedError):
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
            obs, info = env.reset()
            check_info(info, "reset")
            obs = self._contract(obs)
        if "action_mask" in info:
            kept["action_mask"] = info["action_mask"]
        return obs, kept

    def _restart(self, i: int, error: EnvRaisedError) -> tuple[Any, dict[str, Any]]:
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
            obs, info = self.envs[i].reset(seed=seed)
            check_info(info, "reset")
            obs = self._contract(obs)
        except BaseException as again:
            raise _attributed(again, self._first + i) from again
        self._buffers.rewards[i] = 0.0
        self._buffers.terminated[i] = self._buffers.truncated[i] = False
        kept = {"restarted": f"{error.raised}: {error.text}", "seed": seed}
        return obs, kept | {key: info[key] for key in ("action_mask",) if key in info}


def scalars(info: dict[str, Any]) -> dict[str, float]:
    """The scalar entries of an info, as plain numbers that any process can unpickle."""
    kinds = bool | int | float | np.bool_ | np.integer | np.floating
    values = (
        (key, value[()] if isinstance(value, np.ndarray) and value.ndim == 0 else value)
        for key, value in info.items()
    )
    return {key: float(value) for key, value in values if isinstance(value, kinds)}
