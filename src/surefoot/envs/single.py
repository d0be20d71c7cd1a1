"""Single Gymnasium environments: made, compared, closed, and named when they fail."""

import contextlib
import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces

from surefoot.errors import EnvContractError, EnvCrashError, SurefootError


def time_limit(env: gymnasium.Env) -> int | None:
    """Steps after which episodes are truncated, from a wrapper or the registration."""
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, gymnasium.wrappers.TimeLimit):
            return env._max_episode_steps
        env = env.env
    return env.spec.max_episode_steps if env.spec else None


class CopyObservations(gymnasium.Wrapper):
    """Copy each observation: an environment that reuses its array would overwrite `final_obs`."""

    def step(self, action: Any) -> Any:
        """Step, and copy the observation."""
        obs, *rest = self.env.step(action)
        return obs.copy() if type(obs) is np.ndarray else copy.deepcopy(obs), *rest


class EnvFactory(NamedTuple):
    """Makes environments of one id; `make` returns one more, independent of the others."""

    env_id: str
    make: Callable[[], gymnasium.Env]

    def make_all(self, count: int, first: int = 0) -> list[CopyObservations]:
        """Environments `first` to `first + count`, which must have the same spaces.

        Raises:
            EnvContractError: for environments whose spaces differ.
            EnvCrashError: if a constructor raises.
        """
        envs: list[CopyObservations] = []
        try:
            for index in range(first, first + count):
                envs.append(CopyObservations(self.make()))
                expected = envs[0].observation_space, envs[0].action_space
                check_spaces(self.env_id, envs[-1], expected, index)
        except (Exception, SystemExit) as error:
            close_envs(envs)
            if isinstance(error, SurefootError):
                raise
            doing = f"making environment {first + len(envs)}"
            raise crash_error(self.env_id, doing, error) from error
        return envs


def check_spaces(
    env_id: str, env: gymnasium.Env, expected: tuple[spaces.Space, spaces.Space], index: int
) -> None:
    """Raise an `EnvContractError` for an environment with other spaces than the first."""
    own = env.observation_space, env.action_space
    if own != expected:
        raise EnvContractError(
            f"{env_id}: environment {index} has spaces {own}, "
            f"environment 0 has {expected}; all must have the same"
        )


def close_envs(envs: Sequence[gymnasium.Env]) -> None:
    """Close environments; an error in one `close` does not stop the next."""
    for env in envs:
        with contextlib.suppress(Exception):
            env.close()


def crash_error(env_id: str, doing: str, error: BaseException) -> EnvCrashError:
    """The error to raise for an exception out of an environment."""
    text = " ".join(str(error).split()) or "no message"
    return EnvCrashError(
        f"{env_id}: {doing} raised {type(error).__name__}: {text}; run it alone with the same seed "
        "to see it"
    )
