"""Environments that one process steps one after another, with same-step autoreset."""

import copy
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate

from surefoot.envs.contract import NUMBERS, TRUTHS, ObsContract, check_info, check_outcome
from surefoot.envs.env_errors import attributed, crash_error
from surefoot.envs.global_generators import seed_generators
from surefoot.envs.step_timeout import StepTimeoutError, restart_clocks
from surefoot.envs.wrappers import notes_on, raw_return, separate_videos, unused_mask
from surefoot.errors import ConfigError, EnvContractError, EnvCrashError, SurefootError

Spaces = tuple[spaces.Space, spaces.Space]
"""Of one observation and one action."""
EnvInfos = dict[int, dict[str, Any]]
"""What steps and resets return beside arrays, by the number of the environment: `action_mask`;
`final_obs`, the scalars of `final_info` and perhaps the `raw_return` at an episode's end; `cut`
beside `final_obs` where it was cut; `restarted` and the new `seed`."""


class VectorStep(NamedTuple):
    """One step of several environments, in arrays that the next step may overwrite.

    `obs` is an array, or dicts and tuples of arrays, as in its space. `valid` is False where the
    action was ignored because the step was a reset. Ends are as the environments returned them.
    """

    obs: Any
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    valid: np.ndarray
    infos: EnvInfos


def allocate_step(space: spaces.Space, num_envs: int) -> VectorStep:
    """Arrays for a step; of a space that no network reads, whatever Gymnasium makes of it."""
    return VectorStep(
        obs=create_empty_array(space, n=num_envs),
        rewards=np.zeros(num_envs),
        terminated=np.zeros(num_envs, bool),
        truncated=np.zeros(num_envs, bool),
        valid=np.ones(num_envs, bool),
        infos={},
    )


class EnvFactory(NamedTuple):
    """Makes environments of one id: `make` returns one more, independent of the others.

    With `restart`, one that raises in a step is closed and replaced: the new one starts an episode,
    with another seed, and its info says "restarted". `seed` is that of the run.
    """

    env_id: str
    make: Callable[[], gymnasium.Env]
    restart: bool = False
    seed: int = 0

    def make_all(self, rows: range) -> list[gymnasium.Env]:
        """Environments of these numbers.

        Raises an EnvContractError if their spaces differ, an EnvCrashError if a constructor raises.
        """
        envs: list[gymnasium.Env] = []
        seed_generators(self.seed + rows.start)
        try:
            for number in rows:
                restart_clocks()
                env = self.make()
                if not isinstance(env, gymnasium.Env):
                    raise TypeError(f"a {type(env).__name__} is not a gymnasium.Env{_what(env)}")
                _refuse_no_spaces(env, number)
                _refuse_twice(env, envs)
                envs.append(env)
                separate_videos(env, number)
                self.check_spaces(env, spaces_of(envs[0]), number)
        except BaseException as error:
            close_envs(envs)
            doing = f"making environment {rows[len(envs)]}"
            if isinstance(error, StepTimeoutError):
                error.args = (doing,)
            if isinstance(error, SurefootError | StepTimeoutError | KeyboardInterrupt):
                raise
            raise crash_error(self.env_id, doing, error) from error
        return envs

    def check_spaces(self, env: gymnasium.Env, expected: Spaces, number: int) -> None:
        """Raise an `EnvContractError` for an environment with other spaces than the first."""
        if spaces_of(env) != expected:
            raise EnvContractError(
                f"{self.env_id}: environment {number} has spaces {spaces_of(env)}, "
                f"environment 0 has {expected}; all must have the same"
            )


class EnvGroup:
    """Environments of these `rows` among those of a run.

    Outputs that break the contract raise an EnvContractError, and exceptions of an environment,
    `SystemExit` included, an EnvCrashError; both have the environment's number.

    Attributes:
        spaces: of one observation and one action.
        time_limit: of the environments, in steps, or None.
        notes: what to tell the user about their wrappers.
        unused_mask: where masks are offered that nothing reads, or "".
        results: arrays that a step fills.
    """

    def __init__(self, factory: EnvFactory, rows: range):
        self._factory, self._rows, self.num_envs = factory, rows, len(rows)
        self.envs = factory.make_all(rows)
        self.spaces, self.time_limit = spaces_of(self.envs[0]), time_limit(self.envs[0])
        self.notes = notes_on(self.envs[0])
        self.unused_mask = unused_mask(self.envs[0], self.spaces[0])
        self._raw = [raw_return(env) for env in self.envs]
        self.results = allocate_step(self.spaces[0], self.num_envs)
        self._action_spaces = batch_space(self.spaces[1], self.num_envs)
        # Several processes step environments of one kind: one of them is enough to warn.
        self._contract = ObsContract(self.spaces[0], warn=rows.start == 0)
        self._seeds: Sequence[int] = ()
        self._left = [0] * self.num_envs
        self._restarts = 0

    def reset(self, seeds: Sequence[int], cuts: Sequence[int] = ()) -> tuple[Any, EnvInfos]:
        """Start a new episode everywhere, with a seed for each environment.

        With `cuts`, each environment's new episode is truncated after so many steps if it has not
        ended by then, or not at all after 0.
        """
        infos, observations, self._seeds = {}, [], seeds
        self._left = list(cuts) or [0] * self.num_envs
        seed_generators(seeds[0])
        for number, env, seed in zip(self._rows, self.envs, seeds, strict=True):
            try:
                obs, info = self._reset(env, seed)
            # An environment that calls `sys.exit`, or hangs, is named as well.
            except BaseException as error:
                raise attributed(error, number) from error
            observations.append(obs)
            if info:
                infos[number] = info
        # Into the same arrays each time: other processes may map them.
        concatenate(self.spaces[0], observations, self.results.obs)
        return self.results.obs, infos

    def step(self, actions: Any) -> VectorStep:
        """Step every environment, and start the next episode where one ended."""
        infos, observations = {}, []
        actions = map_arrays(np.copy, actions)  # an environment may keep its own
        for i, action in enumerate(iterate(self._action_spaces, actions)):
            try:
                obs, info = self._step(i, action)
            except BaseException as error:
                found = attributed(error, self._rows[i])
                if not (self._factory.restart and isinstance(found, EnvCrashError)):
                    raise found from error
                obs, info = self._restart(i, found)
            if info:
                infos[self._rows[i]] = info
            observations.append(obs)
        concatenate(self.spaces[0], observations, self.results.obs)
        return self.results._replace(infos=infos)

    def _step(self, i: int, action: Any) -> tuple[Any, dict[str, Any]]:
        env, results = self.envs[i], self.results
        obs, reward, terminated, truncated, info = env.step(action)
        # One that reuses its array would overwrite its last observation, which is kept.
        obs = obs.copy() if type(obs) is np.ndarray else copy.deepcopy(obs)
        plain = type(reward) in NUMBERS and type(terminated) in TRUTHS and type(truncated) in TRUTHS
        if not (plain and type(info) is dict):
            check_outcome(reward, terminated, truncated, info)
        obs = self._contract(obs)
        results.rewards[i] = reward
        self._left[i] -= 1
        ended, cut = terminated or truncated, self._left[i] == 0
        results.terminated[i], results.truncated[i] = terminated, truncated or cut
        if ended or cut:
            self._left[i] = 0
            end: dict[str, Any] = {"final_obs": obs}
            end |= {"final_info": scalars(info)} if ended else {"cut": True}
            raw = self._raw[i]
            if raw is not None:
                end["raw_return"] = raw.total
            obs, info = self._reset(env)
            return obs, end | info
        return obs, _mask_of(info)

    def _reset(self, env: gymnasium.Env, seed: int | None = None) -> tuple[Any, dict[str, Any]]:
        obs, info = env.reset(seed=seed)
        check_info(info, "reset")
        return self._contract(obs), _mask_of(info)

    def _restart(self, i: int, error: EnvCrashError) -> tuple[Any, dict[str, Any]]:
        """Replace an environment that raised by another, at the start of an episode."""
        self._restarts += 1
        self._left[i] = 0
        # Not the old seed, which may lead to the same error again; not a random one, so that a run
        # can be repeated.
        words = np.random.SeedSequence([self._seeds[i], self._restarts]).generate_state(1)
        seed = int(words[0]) & 0x7FFFFFFF
        try:
            close_envs([self.envs[i]])
            self.envs[i] = self._factory.make()
            separate_videos(self.envs[i], self._rows[i])
            self._raw[i] = raw_return(self.envs[i])
            if spaces_of(self.envs[i]) != self.spaces:
                raise EnvContractError("recreated, it has other spaces")
            obs, info = self._reset(self.envs[i], seed)
        except BaseException as again:
            raise attributed(again, self._rows[i]) from again
        # An automatic reset that raises comes after the results of its step were written.
        self.results.rewards[i] = 0.0
        self.results.terminated[i] = self.results.truncated[i] = False
        return obs, {"restarted": str(error), "seed": seed} | info

    def close(self) -> None:
        """Close the environments."""
        for raw in filter(None, self._raw):
            raw.remove()  # a user's own environment stays open
        close_envs(self.envs)


def _refuse_twice(env: gymnasium.Env, envs: Sequence[gymnasium.Env]) -> None:
    """Refuse an environment that is, within its wrappers, one that was made before."""
    if any(env.unwrapped is other.unwrapped for other in envs):
        raise ConfigError(
            "the function that makes environments returned the same one twice: each call must "
            "make a new one, or num_envs be 1",
            name="SAME-ENV",
        )


def spaces_of(env: gymnasium.Env) -> Spaces:
    """The spaces of an environment's observations and actions."""
    return env.observation_space, env.action_space


def time_limit(env: gymnasium.Env) -> int | None:
    """Steps after which episodes are truncated: the smallest limit of wrappers and registration."""
    limits = []
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, gymnasium.wrappers.TimeLimit):
            limits.append(env._max_episode_steps)
        env = env.env
    # Only of an environment without a wrapper that enforces it: `make` adds one.
    if env.spec and env.spec.max_episode_steps and not limits:
        limits.append(env.spec.max_episode_steps)
    return min(limits, default=None)


def close_envs(envs: Sequence[gymnasium.Env]) -> None:
    """Close environments; an error in one `close` does not stop the next, and a hang is raised."""
    hung = None
    for number, env in enumerate(envs):
        restart_clocks()
        try:
            env.close()
        except StepTimeoutError as error:
            error.args = (f"closing environment {number}",)
            hung = hung or error
        except Exception:
            pass  # it has closed as far as it could
    if hung is not None:
        raise hung


def _what(made: Any) -> str:
    """What to give instead of what a function has made."""
    if isinstance(made, VectorEnv):
        return ": give the vector environment itself, or a function that makes one environment"
    return ""


def _refuse_no_spaces(env: gymnasium.Env, number: int) -> None:
    for name in ("observation_space", "action_space"):
        space = getattr(env, name, None)
        if not isinstance(space, gymnasium.Space):
            what = f"its {name} is {space!r} and not a gymnasium.Space"
            raise EnvContractError(what, index=number)


def map_arrays(function: Callable[[np.ndarray], Any], tree: Any) -> Any:
    """A tree of dicts and tuples with its arrays mapped."""
    if isinstance(tree, dict):
        return {key: map_arrays(function, part) for key, part in tree.items()}
    if isinstance(tree, tuple):
        return tuple(map_arrays(function, part) for part in tree)
    return function(tree) if isinstance(tree, np.ndarray) else tree


def scalars(info: dict[str, Any]) -> dict[str, float]:
    """The scalar entries of an info, as plain numbers that any process can unpickle."""
    kinds = bool | int | float | np.bool_ | np.integer | np.floating
    # An index of no axes turns an array without axes into its scalar, and leaves others arrays.
    values = {key: x[()] if isinstance(x, np.ndarray) else x for key, x in info.items()}
    return {
        key: float(x)
        for key, x in values.items()
        # A whole number of 400 digits has no float, and is no figure of anybody's.
        if isinstance(x, kinds) and not (isinstance(x, int) and abs(x) > sys.float_info.max)
    }


def _mask_of(info: dict[str, Any]) -> dict[str, Any]:
    # Nothing else is read before an episode ends, and all of it would have to be pickled.
    return {"action_mask": info["action_mask"]} if "action_mask" in info else {}
