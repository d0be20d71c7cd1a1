"""JAX-native environments: a pure reset and step that compile into the training program."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import gymnasium.spaces as spaces
import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Key, PyTree

from surefoot.config.validation import nearest
from surefoot.errors import ConfigError
from surefoot.types import EnvSpec


class JaxStep(NamedTuple):
    """One transition with same-step autoreset.

    `obs` starts the next episode where one ended; `final_obs` is the true last observation.
    """

    state: PyTree
    obs: PyTree
    reward: Float[Array, ""]
    terminated: Bool[Array, ""]
    truncated: Bool[Array, ""]
    final_obs: PyTree


class JaxEnv(NamedTuple):
    """One environment as pure functions; surefoot vmaps it.

    `reset(key) -> (state, obs)`; `step(drawn, state, action) -> JaxStep`, where `drawn = draw(key)`
    is by default the key itself. An environment that draws there what depends on nothing but the
    key, such as the next episode's start, is faster: a rollout draws many steps' at once.
    `action_mask(state)` gives the mask of allowed actions where `spec.masked`, and is None
    otherwise.
    """

    spec: EnvSpec
    reset: Callable[[Key[Array, ""]], tuple[PyTree, PyTree]]
    step: Callable[[Any, PyTree, Any], JaxStep]
    action_mask: Callable[[PyTree], PyTree] | None = None
    draw: Callable[[Key[Array, ""]], Any] = lambda key: key


def gymnasium_space(space: Any) -> spaces.Space:
    """A gymnax space as Gymnasium's."""
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


def from_gymnax(env: Any, params: Any, env_id: str) -> JaxEnv:
    """A gymnax environment (1.0 or later) and its parameters as a `JaxEnv`."""
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
        truncated, final_obs = truncated & ~terminated, info["final_observation"]
        return JaxStep(state, obs, reward, terminated, truncated, final_obs)

    if type(env).step is not Environment.step:
        # Its next episode keeps something of the last.
        return JaxEnv(spec, reset, step)

    def draw(key):
        step_key, reset_key = jax.random.split(key)
        return step_key, env.reset_env(reset_key, params)

    def step_drawn(drawn, state, action):
        """What `env.step` does, with the keys and the reset that it would make of its key."""
        key, start = drawn
        final_obs, state, reward, terminated, _ = env.step_env(key, state, action, params)
        truncated = env.is_truncated(state, params)
        ended, after = terminated | truncated, (final_obs, state)
        obs, state = jax.tree.map(lambda a, b: jax.lax.select(ended, a, b), start, after)
        return JaxStep(state, obs, reward, terminated, truncated & ~terminated, final_obs)

    return JaxEnv(spec, reset, step_drawn, draw=draw)


def find_gymnax(name: str, env_kwargs: Mapping[str, Any]) -> JaxEnv:
    """A gymnax environment by its id.

    Raises:
        ConfigError: where gymnax is not installed or too old, or the id unknown.
    """
    try:
        import gymnax
    except ImportError as fault:
        raise ConfigError(
            f"gymnax:{name} needs gymnax: pip install 'surefoot[gymnax]'", name="EXTRA"
        ) from fault
    if name not in gymnax.registered_envs:
        raise ConfigError(
            f"unknown environment gymnax:{name}{nearest(name, gymnax.registered_envs)}",
            name="UNKNOWN-ENV",
        )
    env, params = gymnax.make(name, **env_kwargs)
    shape = jax.eval_shape(
        lambda key: env.step(key, env.reset(key, params)[1], env.action_space(params).sample(key)),
        jax.random.key(0),
    )
    if len(shape) != 6:
        raise ConfigError(
            "gymnax before 1.0 does not tell time limits from ends: pip install 'surefoot[gymnax]'",
            name="EXTRA",
        )
    return from_gymnax(env, params, f"gymnax:{name}")
