"""The adaptor of gymnax (1.0 or later): JAX-native environments by id."""

from collections.abc import Mapping
from typing import Any

import gymnasium.spaces as spaces
import jax
import numpy as np

from surefoot.config.validation import nearest
from surefoot.envs.jax_native import JaxEnv, JaxStep
from surefoot.envs.source import EnvSource, jax_source
from surefoot.errors import ConfigError
from surefoot.types import EnvSpec


def find_gymnax(name: str, env_kwargs: Mapping[str, Any]) -> EnvSource:
    """The source of a gymnax id; ConfigError without gymnax 1.0, or for an unknown id."""
    try:
        import gymnax
    except ImportError as error:
        raise ConfigError(
            f"gymnax:{name} needs gymnax: pip install 'surefoot[gymnax]'", name="EXTRA"
        ) from error
    if name not in gymnax.registered_envs:
        raise ConfigError(
            f"unknown environment gymnax:{name}{nearest(name, gymnax.registered_envs)}",
            name="UNKNOWN-ENV",
        )
    try:
        env, params = gymnax.make(name, **env_kwargs)
    except TypeError as error:
        given = f"env_kwargs {dict(env_kwargs)}"
        raise ConfigError(f"gymnax:{name}: {given}: {error}", name="ENV-KWARGS") from error
    # The number of values that a step returns shows the version; only traced, at no cost.
    shape = jax.eval_shape(
        lambda key: env.step(key, env.reset(key, params)[1], env.action_space(params).sample(key)),
        jax.random.key(0),
    )
    if len(shape) != 6:
        why = "gymnax before 1.0 does not distinguish time limits from ends"
        raise ConfigError(f"{why}: pip install 'surefoot[gymnax]'", name="EXTRA")
    return jax_source(from_gymnax(env, params, f"gymnax:{name}"))


def from_gymnax(env: Any, params: Any, env_id: str) -> JaxEnv:
    """A gymnax environment and its parameters as a `JaxEnv`."""
    from gymnax.environments.environment import Environment

    spec = EnvSpec(
        env_id=env_id,
        observation_space=gymnasium_space(env.observation_space(params)),
        action_space=gymnasium_space(env.action_space(params)),
        max_episode_steps=getattr(params, "max_steps_in_episode", None),
        masked=False,
        jax_native=True,
    )

    def reset(key):
        obs, state = env.reset(key, params)
        return state, obs

    def step(key, state, action):
        obs, state, reward, terminated, truncated, info = env.step(key, state, action, params)
        # A true end at the time limit is an end: no value follows it.
        truncated, final_obs = truncated & ~terminated, info["final_observation"]
        return JaxStep(state, obs, reward, terminated, truncated, final_obs)

    if type(env).step is not Environment.step:
        # Its next episode depends on the last one, so the reset cannot be drawn beforehand.
        return JaxEnv(spec, reset, step)

    def draw(key):
        step_key, reset_key = jax.random.split(key)
        return step_key, env.reset_env(reset_key, params)

    def step_drawn(drawn, state, action):
        # The same as `env.step`, given the keys and the reset that it would make of its key.
        key, start = drawn
        final_obs, state, reward, terminated, _ = env.step_env(key, state, action, params)
        truncated = env.is_truncated(state, params)
        ended, after = terminated | truncated, (final_obs, state)
        obs, state = jax.tree.map(lambda a, b: jax.lax.select(ended, a, b), start, after)
        return JaxStep(state, obs, reward, terminated, truncated & ~terminated, final_obs)

    return JaxEnv(spec, reset, step_drawn, draw=draw)


def gymnasium_space(space: Any) -> spaces.Space:
    """A gymnax space as a Gymnasium space."""
    kind = type(space).__name__
    if kind == "Discrete":
        return spaces.Discrete(int(space.n))
    if kind == "Box":
        low = np.broadcast_to(np.asarray(space.low, np.float32), space.shape)
        high = np.broadcast_to(np.asarray(space.high, np.float32), space.shape)
        return spaces.Box(low, high, dtype=np.float32)
    if kind == "Dict":
        return spaces.Dict({key: gymnasium_space(part) for key, part in space.spaces.items()})
    if kind == "Tuple":
        return spaces.Tuple([gymnasium_space(part) for part in space.spaces])
    raise ConfigError(f"a gymnax space of kind {kind} is not supported")
