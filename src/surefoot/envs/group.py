"""Environments that one process steps, and the board of arrays where they read and write.

It lives here, away from JAX, because every process that steps environments imports it.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate

from surefoot.envs import EnvSource, OwnObs, crashed
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


class Group:
    """Environments stepped one after another, with same-step autoreset.

    Attributes:
        envs: the environments; `first` is the number of the first among all.
    """

    def __init__(self, envs: Sequence[OwnObs], board: Board, first: int):
        self.envs, self.first = envs, first
        self._board = board.rows(first, len(envs))
        self._obs_space = envs[0].observation_space
        self._action_spaces = batch_space(envs[0].action_space, len(envs))

    def reset(self, seeds: Sequence[int]) -> Told:
        """Start a new episode everywhere."""
        told, seen = [], []
        for i, env in enumerate(self.envs):
            obs, info = env.reset(seed=seeds[i])
            seen.append(obs)
            if "action_mask" in info:
                told.append((self.first + i, {"action_mask": info["action_mask"]}))
        concatenate(self._obs_space, seen, self._board.obs)
        return told

    def step(self) -> Told:
        """Act as the board says, and start the next episode where one ends."""
        told, seen, board = [], [], self._board
        # An environment may keep its action, and the board's is overwritten.
        actions = _map(np.copy, board.actions)
        for i, action in enumerate(iterate(self._action_spaces, actions)):
            env, tell = self.envs[i], {}
            obs, board.rewards[i], terminated, truncated, info = env.step(action)
            board.terminated[i], board.truncated[i] = terminated, truncated
            if terminated or truncated:
                tell = {"final_obs": obs, "final_info": _numbers(info)}
                obs, info = env.reset()
            if "action_mask" in info:
                tell["action_mask"] = info["action_mask"]
            if tell:
                told.append((self.first + i, tell))
            seen.append(obs)
        concatenate(self._obs_space, seen, board.obs)
        return told


def _numbers(info: dict[str, Any]) -> dict[str, float]:
    """The entries of an info that can be logged, as plain numbers, which any process knows."""
    kinds = bool | int | float | np.bool_ | np.integer | np.floating
    values = (
        (key, value[()] if isinstance(value, np.ndarray) and value.ndim == 0 else value)
        for key, value in info.items()
    )
    return {key: float(value) for key, value in values if isinstance(value, kinds)}


def close_envs(envs: Sequence[gymnasium.Env]) -> None:
    """Close environments; one that fails to close stops no other."""
    for env in envs:
        with contextlib.suppress(Exception):
            env.close()


def make_envs(source: EnvSource, count: int, first: int = 0) -> list[OwnObs]:
    """Environments of one source, which must have the same spaces.

    Raises:
        EnvContractError: for environments whose spaces differ.
        EnvCrashError: where a constructor raises.
    """
    envs: list[OwnObs] = []
    try:
        for index in range(first, first + count):
            envs.append(OwnObs(source.make()))
            expected = envs[0].observation_space, envs[0].action_space
            check_spaces(source.env_id, envs[-1], expected, index)
    except Exception as fault:
        close_envs(envs)
        if isinstance(fault, SurefootError):
            raise
        raise crashed(source.env_id, f"making environment {first + len(envs)}", fault) from fault
    return envs


def check_spaces(
    env_id: str, env: gymnasium.Env, expected: tuple[spaces.Space, spaces.Space], index: int
) -> None:
    """Refuse an environment with other spaces than the first."""
    own = env.observation_space, env.action_space
    if own != expected:
        raise EnvContractError(
            f"{env_id}: environment {index} has spaces {own}, "
            f"environment 0 has {expected}; all must have the same"
        )
