"""A scripted environment: what it shows, pays and when it ends are known in closed form.

Observations tell (episode, time). Episode e terminates after `ENDS[e % 4]` steps or never, and
the time limit is `LIMIT`: so one kind of episode ends each way, one of them both at once. JAX is
imported only by the twin, because every process of an async vector imports this module.
"""

import sys
from functools import partial
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

LIMIT = 5
ENDS = (3, None, LIMIT, 1)

OBS_SPACES = {
    "box": spaces.Box(-np.inf, np.inf, (2,), np.float32),
    "double": spaces.Box(-np.inf, np.inf, (2,), np.float64),
    "discrete": spaces.Discrete(len(ENDS) * (LIMIT + 1), start=3),
    # Keys in no alphabetical order, parts of unequal kinds: mistakes of order show.
    "dict": spaces.Dict(
        {
            "time": spaces.Discrete(LIMIT + 1),
            "episode": spaces.Box(0, np.inf, (1,), np.float32),
        }
    ),
    "tuple": spaces.Tuple(
        [
            spaces.MultiDiscrete([len(ENDS), LIMIT + 1]),
            spaces.Box(0, np.inf, (1, 1), np.float32),
            spaces.MultiBinary(3),
        ]
    ),
}

ACTION_SPACES = {
    "discrete": spaces.Discrete(3),
    "box": spaces.Box(np.float32([-2.0, 0.0]), np.float32([4.0, 1.0])),
    "double": spaces.Box(-0.5, 3.0, (2, 2), np.float64),
    "unbounded": spaces.Box(np.float32([-np.inf, -1.0]), np.float32([0.25, np.inf])),
    "multi-discrete": spaces.MultiDiscrete([2, 3]),
    "multi-binary": spaces.MultiBinary(4),
    "dict": spaces.Dict(
        {
            "turn": spaces.Discrete(3, start=-1),
            "push": spaces.Box(-2.0, 2.0, (2,), np.float32),
        }
    ),
    "tuple": spaces.Tuple([spaces.MultiBinary(2), spaces.MultiDiscrete([3, 2])]),
}


class Row(NamedTuple):
    """One transition of the script."""

    episode: int
    time: int
    reward: float
    terminated: bool
    truncated: bool


def reward_of(episode: int, time: int) -> float:
    return 1.0 + 0.5 * (episode % len(ENDS)) - 0.25 * time


def length_of(episode: int) -> int:
    return ENDS[episode % len(ENDS)] or LIMIT


def return_of(episode: int) -> float:
    return sum(reward_of(episode, time) for time in range(length_of(episode)))


def script(episode: int, count: int) -> list[Row]:
    """The first `count` transitions from the start of an episode on."""
    rows: list[Row] = []
    while len(rows) < count:
        length, ends = length_of(episode), ENDS[episode % len(ENDS)] is not None
        for time in range(length):
            last = time == length - 1
            rows.append(
                Row(episode, time, reward_of(episode, time), last and ends, last and not ends)
            )
        episode += 1
    return rows[:count]


def first_episode(seed: int) -> int:
    return seed % len(ENDS)


def shown(kind: str, episode: int, time: int) -> Any:
    """The observation of one moment, in the space of that name."""
    both = np.array([episode, time])
    if kind in ("box", "double"):
        return both.astype(OBS_SPACES[kind].dtype)
    if kind == "discrete":
        return np.int64(3 + (episode % len(ENDS)) * (LIMIT + 1) + time)
    if kind == "dict":
        return {"time": np.int64(time), "episode": np.array([episode], np.float32)}
    bits = np.array([time >> bit & 1 for bit in range(3)], np.int8)
    return np.array([episode % len(ENDS), time]), np.full((1, 1), episode, np.float32), bits


def mask_of(time: int, size: int = 3) -> np.ndarray:
    """All actions but one, another one at each moment."""
    return (np.arange(size) != time % size).astype(np.int8)


class Scripted(gymnasium.Env):
    """The script, told through any space; its actions are noted and change nothing.

    Args:
        obs: which of `OBS_SPACES`.
        action: which of `ACTION_SPACES`.
        masks: a function of time that gives `info["action_mask"]`, or None.
        reuse: return the same array at every step, rewritten.
        fail_at: the call of `step`, counted from 1, that raises.
        step_masks_only: give no mask on reset.
    """

    def __init__(
        self,
        obs: str = "box",
        action: str = "discrete",
        masks: Any = None,
        reuse: bool = False,
        fail_at: int | None = None,
        step_masks_only: bool = False,
    ):
        self.kind, self.masks, self.fail_at = obs, masks, fail_at
        self.observation_space, self.action_space = OBS_SPACES[obs], ACTION_SPACES[action]
        self.buffer = np.zeros(2, np.float32) if reuse else None
        self.step_masks_only = step_masks_only
        self.episode, self.time, self.calls, self.received = -1, 0, 0, []

    def _look(self) -> Any:
        if self.buffer is None:
            return shown(self.kind, self.episode, self.time)
        self.buffer[:] = self.episode, self.time
        return self.buffer

    def _info(self, ended: bool) -> dict[str, Any]:
        info = {"clock": self.time, "jax_loaded": "jax" in sys.modules}
        if self.masks is not None:
            info["action_mask"] = self.masks(self.time)
        if ended:
            info["is_success"] = np.bool_(self.episode % 2)
        return info

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode = self.episode + 1 if seed is None else first_episode(seed)
        self.time = 0
        info = self._info(False)
        if self.step_masks_only:
            info.pop("action_mask", None)
        return self._look(), info

    def step(self, action):
        self.calls += 1
        if self.calls == self.fail_at:
            raise RuntimeError("the script\nsays so")
        self.received.append(action)
        reward = reward_of(self.episode, self.time)
        self.time += 1
        terminated = self.time == ENDS[self.episode % len(ENDS)]
        ended = self.time == length_of(self.episode)
        return self._look(), reward, terminated, False, self._info(ended)


gymnasium.register("Scripted-v0", entry_point=Scripted, max_episode_steps=LIMIT)


def make_scripted(**options: Any) -> gymnasium.Env:
    """The environment under its time limit."""
    return gymnasium.make("Scripted-v0", disable_env_checker=True, **options)


def scripted_vector(mode: AutoresetMode, num_envs: int, **options: Any) -> SyncVectorEnv:
    """A ready vector environment in one of Gymnasium's autoreset modes."""
    return SyncVectorEnv([partial(make_scripted, **options)] * num_envs, autoreset_mode=mode)


def host_env(vector: Any, env_id: str = "Scripted", seed: int = 0) -> Any:
    """A ready vector environment, opened as training opens it."""
    from surefoot.envs.host import HostEnv
    from surefoot.envs.ready_vector import ReadyVector

    return HostEnv(ReadyVector(vector, env_id, vector.num_envs), env_id, seed=seed)


def scripted_jax(action: str = "discrete") -> Any:
    """The JAX-native twin: the same script, from an episode that the key chooses."""
    import jax
    import jax.numpy as jnp

    from surefoot.envs.jax_native import JaxEnv, JaxStep
    from surefoot.types import EnvSpec

    spec = EnvSpec("Scripted", OBS_SPACES["box"], ACTION_SPACES[action], LIMIT, False, True)
    ends = jnp.array([end or LIMIT + 1 for end in ENDS])
    look = lambda state: jnp.stack(state).astype(jnp.float32)  # noqa: E731

    def reset(key):
        state = (jax.random.randint(key, (), 0, len(ENDS)), jnp.int32(0))
        return state, look(state)

    def step(key, state, action):
        episode, time = state
        after = (episode, time + 1)
        terminated = after[1] == ends[episode % len(ENDS)]
        truncated = after[1] == LIMIT
        done = terminated | truncated
        state = (jnp.where(done, episode + 1, episode), jnp.where(done, 0, time + 1))
        reward = 1.0 + 0.5 * (episode % len(ENDS)) - 0.25 * time
        return JaxStep(state, look(state), reward, terminated, truncated, look(after))

    return JaxEnv(spec, reset, step)
