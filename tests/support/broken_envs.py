"""Environments that break in one way each, from a step of theirs on; `module:factory` ids of them.

Ten steps are an episode. Where nothing is broken an observation is two small numbers.
"""

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import time
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

AT = 35
"""The step, of all that one environment makes, at which it breaks: the fifth of an episode."""


class Sound(gymnasium.Env):
    """Breaks in no way; `broken` is asked what to give at the step where others do."""

    observation_space: Any = spaces.Box(-10.0, 10.0, (2,), np.float32)
    action_space: Any = spaces.Discrete(2)

    def __init__(self) -> None:
        self.steps = self.time = 0

    def look(self) -> Any:
        return np.float32([self.time / 10, self.np_random.uniform(-1, 1)])

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.time = 0
        return self.look(), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        self.time += 1
        given = self.look(), float(action), self.time == 10, False, {}
        return self.broken(*given) if self.steps == AT else given

    def broken(self, *given: Any) -> Any:
        return given


class Raises(Sound):
    def broken(self, *given):
        raise RuntimeError("the motor\nis \x1b[31mhot\x1b[0m")


class Exits(Sound):
    def broken(self, *given):
        sys.exit("enough")


class Leaves(Sound):
    """Ends its process without a word, and as if all were well."""

    def broken(self, *given):
        os._exit(0)


class LeavesWith3(Sound):
    def broken(self, *given):
        os._exit(3)


class LeavesInReset(Sound):
    def reset(self, **given):
        if self.steps > AT:
            os._exit(0)
        return super().reset(**given)


class LeavesAtOnce(Sound):
    def __init__(self):
        os._exit(0)


class Hangs(Sound):
    def broken(self, *given):
        try:
            time.sleep(3600)
        except Exception:  # what an environment may do to whoever interrupts it
            time.sleep(3600)


class HangsDeep(Sound):
    """In native code that no signal brings back: a lock that waits for itself."""

    def broken(self, *given):
        lock = ctypes.create_string_buffer(64)  # zeros are a lock that nobody has
        for _ in range(2):
            ctypes.CDLL(None).pthread_mutex_lock(lock)


class Killed(Sound):
    def broken(self, *given):
        os.kill(os.getpid(), signal.SIGKILL)


class Unpicklable(Sound):
    def broken(self, *given):
        class WordyError(Exception):
            def __init__(self, one, two):
                super().__init__(one)
                self.two = lambda: two

        raise WordyError("too many words", 2)


class NanObs(Sound):
    def broken(self, obs, *rest):
        return np.float32([obs[0], np.nan]), *rest


class InfReward(Sound):
    def broken(self, obs, reward, *rest):
        return obs, -np.inf, *rest


class HugeReward(Sound):
    def broken(self, obs, reward, *rest):
        return obs, 1e39, *rest


class LongObs(Sound):
    def broken(self, obs, *rest):
        return np.zeros(3, np.float32), *rest


class OneObs(Sound):
    """One number where two are needed, which NumPy would gladly broadcast."""

    def broken(self, obs, *rest):
        return np.zeros(1, np.float32), *rest


class LongReset(Sound):
    def reset(self, **given):
        return np.zeros(3, np.float32), {}


class Doubles(Sound):
    """float64 in a space of float32, at every step."""

    def look(self):
        return super().look().astype(np.float64)


class TooLarge(Doubles):
    def broken(self, obs, *rest):
        return np.array([1e300, 0.0]), *rest


class Objects(Sound):
    def broken(self, obs, *rest):
        return np.array([None, None]), *rest


class Words(Sound):
    def broken(self, obs, *rest):
        return np.array(["0", "1"]), *rest


class Wide(Sound):
    """A number that 32 bits do not hold."""

    observation_space = spaces.Dict({"place": spaces.Box(0, 2**40, (2,), np.int64)})

    def look(self):
        return {"place": np.array([1, 2])}

    def broken(self, obs, *rest):
        return {"place": np.array([1, 2**35 + 1])}, *rest


class NoChoice(Sound):
    """A choice that its Discrete has not."""

    observation_space = spaces.Discrete(3)

    def look(self):
        return 2

    def broken(self, obs, *rest):
        return 2**40, *rest


class Outside(Sound):
    def broken(self, obs, *rest):
        return np.float32([0.0, -10.5]), *rest


class FourValues(Sound):
    def step(self, action):
        obs, reward, over, _, info = super().step(action)
        return obs, reward, over, info


class ResetAlone(Sound):
    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed)[0]


class NoSeed(Sound):
    def reset(self):
        return self.look(), {}


class BothEnds(Sound):
    def step(self, action):
        obs, reward, over, _, info = super().step(action)
        return obs, reward, over, over, info


class Rewrites(Sound):
    """Gives the same array every time, and rewrites it."""

    def __init__(self):
        super().__init__()
        self.array = np.zeros(2, np.float32)

    def look(self):
        self.array[:] = super().look()
        return self.array


class ShortEpisodes(Sound):
    def step(self, action):
        obs, reward, _, _, info = super().step(action)
        return obs, reward, True, False, info


class Endless(Sound):
    def step(self, action):
        obs, reward, *_, info = super().step(action)
        return np.minimum(obs, 1.0), reward, False, False, info


class Prints(Sound):
    def step(self, action):
        print('{"event": "row"}\nnoise')
        sys.stdout.write("no line")
        return super().step(action)


class NoTruth(Sound):
    def broken(self, obs, reward, over, cut, info):
        return obs, reward, "over", cut, info


class NoNumber(Sound):
    def broken(self, obs, reward, *rest):
        return obs, np.zeros(1), *rest


class NoInfo(Sound):
    def broken(self, *given):
        return *given[:4], None


class ThirdOf:
    """A factory whose third environment is another one, or none."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self) -> gymnasium.Env:
        self.made += 1
        return self.third() if self.made == 3 else Sound()

    def third(self) -> gymnasium.Env:
        raise ValueError("no licence for a third")


third_raises = ThirdOf()


class ThirdUnlike(ThirdOf):
    def third(self):
        env = Sound()
        env.observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        return env


class Flaky(Sound):
    """Raises at its own `AT`-th step, and is well again when it is made anew."""

    def broken(self, *given):
        raise RuntimeError("the cable is loose")


class Constant(Sound):
    """Shows, pays and ends always the same: no action is better than another."""

    def look(self):
        return np.zeros(2, np.float32)

    def step(self, action):
        super().step(action)
        return self.look(), 1.0, True, False, {}


class OneAction(Sound):
    action_space = spaces.Discrete(1)


class ManyActions(Sound):
    action_space = spaces.Discrete(100_000)

    def step(self, action):
        obs, _, *rest = super().step(action)
        return obs, float(action % 2), *rest


class LongActions(Sound):
    action_space = spaces.Box(-1.0, 1.0, (1000,), np.float32)

    def step(self, action):
        obs, _, *rest = super().step(0)
        return obs, float(np.mean(action)), *rest


class HalfBounded(LongActions):
    """Bounds on one side, on none, and so far apart that their difference is infinite."""

    action_space = spaces.Box(
        np.float32([0.0, -np.inf, -np.inf, -3e38]), np.float32([np.inf, 1.0, np.inf, 3e38])
    )

    def step(self, action):
        assert self.action_space.contains(action), action
        obs, _, *rest = Sound.step(self, 0)
        return obs, float(np.tanh(action[0])), *rest


class Scaled(Sound):
    """Pays in other units."""

    def __init__(self, scale: float = 1.0):
        super().__init__()
        self.scale = scale

    def step(self, action):
        obs, reward, *rest = super().step(action)
        return obs, self.scale * reward, *rest


class HangsIn(Sound):
    """Never returns from one call, here or in another process than the one that trains.

    It is asleep, also with the alarm set back, waits in native code for itself, keeps Python's
    lock, or leaves a process behind.
    """

    def __init__(self, when: str = "made", how: str = "asleep", where: str = "here"):
        super().__init__()
        self.when, self.how = when, how
        self.hangs = ("jax" in sys.modules) == (where == "here")
        self.hang("made")

    def hang(self, when):
        if when != self.when or not self.hangs:
            return
        if self.how == "leaves":
            subprocess.Popen(["sleep", "60"])
        elif self.how == "native":
            HangsDeep.broken(self)
        else:
            if self.how == "alarm":
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
            (ctypes.PyDLL(None).sleep if self.how == "lock" else time.sleep)(60)

    def reset(self, **given):
        self.hang("reset")
        return super().reset(**given)

    def broken(self, *given):
        self.hang("step")
        return given

    def close(self):
        self.hang("close")


class Level(Sound):
    """Pays its level at every step, whatever the action."""

    def __init__(self, level: int = 0):
        super().__init__()
        self.level = level

    def step(self, action):
        obs, _, *rest = super().step(action)
        return obs, float(self.level), *rest


def __getattr__(name: str) -> Any:
    """`RaisesElsewhere` is sound where the trainer steps it, and `Raises` in another process."""
    kind = globals().get(name.removesuffix("Elsewhere"))
    if kind is None or not name.endswith("Elsewhere"):
        raise AttributeError(name)
    return lambda: Sound() if "jax" in sys.modules else kind()


class Mine(BaseException):
    """An exception of an environment's that `except Exception` does not catch."""


class RaisesGeneratorExit(Sound):
    raised: type[BaseException] = GeneratorExit

    def broken(self, *given):
        raise self.raised


class RaisesCancelled(RaisesGeneratorExit):
    raised = asyncio.CancelledError


class RaisesOwn(RaisesGeneratorExit):
    raised = Mine


class OddInfos(Sound):
    """Infos of what no figure is made of, to be passed over."""

    def step(self, action):
        obs, reward, terminated, truncated, _ = super().step(action)
        info = {1: 2, ("a", 1): 3, "big": 10**400, "time": np.timedelta64(3)}
        return obs, reward, terminated, truncated, info | {"any": np.array([object()], object)}


class NoActions(Sound):
    action_space = None


class NoObservations(Sound):
    observation_space = None


class Leveled(Sound):
    def __init__(self, level):
        super().__init__()
        self.level = level


def vector():
    """Not one environment but two."""
    return gymnasium.make_vec("CartPole-v1", num_envs=2)
