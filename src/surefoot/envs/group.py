"""Environments that one process steps, and the board of arrays where they read and write.

It lives here, away from JAX, because every process that steps environments imports it.
"""

import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate

from surefoot.envs.single import CopyObservations, close_envs
from surefoot.envs.step_timeout import OverdueError
from surefoot.envs.validation import (
    NUMBERS,
    TRUTHS,
    ObsContract,
    check_info,
    check_outcome,
    may_wrap,
    old_interface,
)
from surefoot.errors import EnvContractError, SurefootError

Told = list[tuple[int, dict[str, Any]]]
"""What environments tell beside the board, each with its number: masks, and ends of episodes."""


class Board(NamedTuple):
    """What environments see, do and get in one step, a row each.

    `obs` and `actions` are arrays, or dicts and tuples of them as the spaces say.
    """

    obs: Any
    actions: Any
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray

    def rows(self, first: int, count: int) -> "Board":
        """The rows of some of the environments, in the same memory."""
        return Board(*(_map(lambda leaf: leaf[first : first + count], part) for part in self))


def make_board(
    of: tuple[spaces.Space, spaces.Space],
    num_envs: int,
    allocate: Callable[..., np.ndarray],
) -> Board:
    """A board of `num_envs` rows for observations and actions of these spaces.

    `allocate(shape, dtype=)` gives its arrays, always in one order. A space that no
    network reads has no arrays here; it is refused by name where a network is built.
    """
    obs, actions = (create_empty_array(space, n=num_envs, fn=allocate) for space in of)
    rewards = allocate((num_envs,), dtype=np.float64)
    ends = (allocate((num_envs,), dtype=np.bool_) for _ in range(2))
    return Board(obs, actions, rewards, *ends)


def _map(function: Callable[[np.ndarray], Any], tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _map(function, part) for key, part in tree.items()}
    if isinstance(tree, tuple):
        return tuple(_map(function, part) for part in tree)
    return function(tree) if isinstance(tree, np.ndarray) else tree


def write_actions(board: Board, actions: Any) -> None:
    """Put an action of every environment on the board."""
    _write(board.actions, actions)


def _write(target: Any, values: Any) -> None:
    if isinstance(target, dict):
        for key, part in target.items():
            _write(part, values[key])
    elif isinstance(target, tuple):
        for part, value in zip(target, values, strict=True):
            _write(part, value)
    else:
        target[...] = values


class EnvRaisedError(Exception):
    """What one environment raised, here or in another process.

    Attributes:
        index: the environment's number.
        raised: the name of the class that it raised.
        trace: where it did.
    """

    def __init__(self, index: int, raised: str, text: str, trace: str):
        super().__init__(index, raised, text, trace)
        self.index, self.raised, self.text, self.trace = index, raised, text, trace

    def __str__(self) -> str:
        return f"{self.raised}: {self.text}\n{self.trace}"


def blamed(fault: BaseException, index: int) -> BaseException:
    """A fault with the environment that it came from; what an environment raised, as such."""
    if isinstance(fault, OverdueError):
        fault.args = (f"environment {index}",)
    elif isinstance(fault, EnvContractError):
        fault.index = index
    elif isinstance(fault, Exception | SystemExit) and not isinstance(fault, SurefootError):
        if hint := old_interface(fault):
            return EnvContractError(hint, index=index)
        text = " ".join(str(fault).split())
        trace = "".join(traceback.format_exception(fault))
        return EnvRaisedError(index, type(fault).__name__, text, trace)
    return fault


class Group:
    """Environments stepped one after another, with same-step autoreset.

    One that raises in a step is thrown away where there is a way to `make_again`: another one
    starts an episode in its place, with a seed of its own, and is told of as "restarted".

    Attributes:
        envs: the environments; `first` is the number of the first among all.

    Raises:
        EnvContractError: for what breaks the contract, with the environment's number.
        EnvRaisedError: for what an environment raises, an end of the process included.
    """

    def __init__(
        self,
        envs: list[CopyObservations],
        board: Board,
        first: int,
        make_again: Callable[[], gymnasium.Env] | None = None,
    ):
        self.envs, self.first, self._make_again = envs, first, make_again
        self._board = board.rows(first, len(envs))
        self._obs_space = envs[0].observation_space
        self._action_spaces = batch_space(envs[0].action_space, len(envs))
        self._contract = ObsContract(self._obs_space)
        self._seeds: Sequence[int] = ()
        self._restarts, self._may_wrap = 0, may_wrap(self._obs_space)

    def reset(self, seeds: Sequence[int]) -> Told:
        """Start a new episode everywhere."""
        told, seen, self._seeds = [], [], seeds
        for i, env in enumerate(self.envs):
            try:
                obs, info = env.reset(seed=seeds[i])
                check_info(info, "reset")
                seen.append(self._contract(obs))
            except BaseException as fault:
                raise blamed(fault, self.first + i) from fault
            if "action_mask" in info:
                told.append((self.first + i, {"action_mask": info["action_mask"]}))
        concatenate(self._obs_space, seen, self._board.obs)
        return told

    def step(self) -> Told:
        """Act as the board says, and start the next episode where one ends."""
        told, seen = [], []
        # An environment may keep its action, and the board's is overwritten.
        actions = _map(np.copy, self._board.actions)
        for i, action in enumerate(iterate(self._action_spaces, actions)):
            try:
                obs, tell = self._step(i, action)
            except BaseException as fault:
                found = blamed(fault, self.first + i)
                if self._make_again is None or not isinstance(found, EnvRaisedError):
                    raise found from fault
                obs, tell = self._restart(i, found)
            if tell:
                told.append((self.first + i, tell))
            seen.append(obs)
        # An array that does not fit is refused by NumPy, so that looks at each are for this case,
        # for what it would wrap, and for what is cast since the start.
        if self._may_wrap or self._contract.casts:
            seen = self._look_at(seen)
        try:
            concatenate(self._obs_space, seen, self._board.obs)
        except Exception:
            concatenate(self._obs_space, self._look_at(seen), self._board.obs)
        return told

    def _look_at(self, seen: list[Any]) -> list[Any]:
        """Observations that fit their space.

        Raises:
            EnvContractError: for the first that does not.
        """
        fitting = []
        for i, obs in enumerate(seen):
            try:
                fitting.append(self._contract(obs))
            except EnvContractError as breach:
                raise blamed(breach, self.first + i) from breach.__cause__
        return fitting

    def _step(self, i: int, action: Any) -> tuple[Any, dict[str, Any]]:
        env, board, tell = self.envs[i], self._board, {}
        obs, reward, terminated, truncated, info = env.step(action)
        plain = type(reward) in NUMBERS and type(terminated) in TRUTHS and type(truncated) in TRUTHS
        if not (plain and type(info) is dict):
            check_outcome(reward, terminated, truncated, info)
        board.rewards[i] = reward
        board.terminated[i], board.truncated[i] = terminated, truncated
        if terminated or truncated:
            tell = {"final_obs": self._contract(obs), "final_info": _numbers(info)}
            obs, info = env.reset()
            check_info(info, "reset")
        if "action_mask" in info:
            tell["action_mask"] = info["action_mask"]
        return obs, tell

    def _restart(self, i: int, fault: EnvRaisedError) -> tuple[Any, dict[str, Any]]:
        """Another environment in the place of one that raised, at the start of an episode."""
        assert self._make_again is not None
        close_envs([self.envs[i]])
        self._restarts += 1
        words = np.random.SeedSequence([self._seeds[i], self._restarts]).generate_state(1)
        seed = int(words[0]) & 0x7FFFFFFF
        try:
            self.envs[i] = CopyObservations(self._make_again())
            if self.envs[i].observation_space != self._obs_space:
                raise EnvContractError("made anew, it has another observation space")
            obs, info = self.envs[i].reset(seed=seed)
            check_info(info, "reset")
        except BaseException as again:
            raise blamed(again, self.first + i) from again
        self._board.rewards[i] = 0.0
        self._board.terminated[i] = self._board.truncated[i] = False
        tell = {"restarted": f"{fault.raised}: {fault.text}", "seed": seed}
        return obs, tell | {key: info[key] for key in ("action_mask",) if key in info}


def _numbers(info: dict[str, Any]) -> dict[str, float]:
    """The entries of an info that can be logged, as plain numbers, which any process knows."""
    kinds = bool | int | float | np.bool_ | np.integer | np.floating
    values = (
        (key, value[()] if isinstance(value, np.ndarray) and value.ndim == 0 else value)
        for key, value in info.items()
    )
    return {key: float(value) for key, value in values if isinstance(value, kinds)}
