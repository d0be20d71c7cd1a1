"""Wrappers of the user's own that need care: they normalise, mask, or write videos."""

from collections.abc import Iterator
from typing import Any

import gymnasium
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv, VectorWrapper

_NORMALISERS = {
    "NormalizeReward": "NormalizeReward inside the environment scales its rewards for learning, "
    "which --return-norm does too.",
    "NormalizeObservation": "NormalizeObservation inside the environment does what --obs-norm "
    "does.",
}
"""By name, so that those of vectors, older versions and libraries like Gymnasium count too."""
_START_ANEW = (
    "The wrapper's statistics start anew in each environment, evaluation and resume; those of a "
    "run are one set, stored with it: remove the wrapper"
)
_VECTOR_RETURNS = "Returns in the log and in evaluations are of the scaled rewards."
MASK_UNUSED = (
    "it offers action masks as {where}, which are not applied: return them in every info, as "
    "info['action_mask']"
)


def notes_on(env: Any) -> tuple[str, ...]:
    """What to tell the user about the wrappers around an environment, or a vector of them."""
    found = [name for wrapper in _around(env) for name in _named(wrapper)]
    if not found:
        return ()
    texts = [_NORMALISERS[name] for name in dict.fromkeys(found)]
    if "NormalizeReward" in found and not isinstance(env, gymnasium.Env):
        texts.append(_VECTOR_RETURNS)
    return (" ".join([*texts, _START_ANEW]),)


def unused_mask(env: Any, space: spaces.Space) -> str:
    """Where an environment without `info["action_mask"]` offers masks, or ""."""
    if isinstance(space, spaces.Dict) and "action_mask" in space.spaces:
        return "obs['action_mask']"
    # The convention of sb3-contrib.
    return "action_masks()" if callable(getattr(env.unwrapped, "action_masks", None)) else ""


class RawReturn(gymnasium.Wrapper):
    """Sums the rewards of an episode beneath the wrapper that would scale them.

    Attributes:
        total: rewards since the last reset.
    """

    def __init__(self, above: gymnasium.Wrapper):
        super().__init__(above.env)
        self._above, self.total = above, 0.0
        above.env = self

    def reset(self, **arguments: Any) -> Any:
        """Reset the environment."""
        self.total = 0.0
        return self.env.reset(**arguments)

    def step(self, action: Any) -> Any:
        """Step the environment."""
        result = self.env.step(action)
        self.total += float(result[1])
        return result

    def remove(self) -> None:
        """Leave the user's wrappers as they were."""
        self._above.env = self.env


def raw_return(env: gymnasium.Env) -> RawReturn | None:
    """A new sum of the rewards beneath the innermost NormalizeReward, if there is one."""
    scaling = [wrapper for wrapper in _around(env) if "NormalizeReward" in _named(wrapper)]
    return RawReturn(scaling[-1]) if scaling else None


_written: set[tuple[str, str]] = set()


def separate_videos(env: gymnasium.Env, number: int) -> None:
    """Give the videos of environments after the first names of their own.

    Each would write `rl-video-episode-0.mp4` over those of the others.
    """
    for wrapper in _around(env):
        prefix = getattr(wrapper, "name_prefix", None)
        if not isinstance(wrapper, gymnasium.wrappers.RecordVideo) or not isinstance(prefix, str):
            continue
        folder = str(wrapper.video_folder)
        name, again = f"{prefix}-env-{number}" if number else prefix, 1
        while (folder, name) in _written:  # by those that evaluations or retries made before
            again += 1
            name = f"{prefix}-env-{number}-{again}"
        _written.add((folder, name))
        wrapper.name_prefix = name


def _around(env: Any) -> Iterator[Any]:
    """The wrappers of an environment, outermost first; of a vector, its first one's too."""
    while isinstance(env, gymnasium.Wrapper | VectorWrapper):
        yield env
        env = env.env
    if isinstance(env, SyncVectorEnv):
        yield from _around(env.envs[0])


def _named(wrapper: Any) -> list[str]:
    kinds = {kind.__name__ for kind in type(wrapper).__mro__}
    return [name for name in _NORMALISERS if name in kinds]
