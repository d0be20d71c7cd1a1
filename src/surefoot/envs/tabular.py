"""A finite MDP as a JAX environment to be sampled."""

from collections.abc import Mapping
from typing import Any

import gymnasium.spaces as spaces
import jax
import jax.numpy as jnp
import numpy as np

from surefoot.envs.jax_native import JaxEnv, JaxStep
from surefoot.envs.source import EnvSource, jax_source
from surefoot.exact.mdp import MDP
from surefoot.exact.registry import find_mdp
from surefoot.types import EnvSpec


def find_tabular(name: str, env_kwargs: Mapping[str, Any]) -> EnvSource:
    """The source of `tabular:NAME`."""
    return jax_source(tabular_env(find_mdp(name, env_kwargs), f"tabular:{name}"))


def tabular_env(mdp: MDP, env_id: str) -> JaxEnv:
    """An environment that samples an MDP.

    A step pays the expected reward of (s, a); the MDP's time limit truncates.
    """
    laws = jnp.asarray(np.cumsum(mdp.transitions, axis=-1))
    rewards, terminal = jnp.asarray(mdp.rewards), jnp.asarray(mdp.terminal)
    first = jnp.asarray(np.cumsum(mdp.start))
    spec = EnvSpec(
        env_id=env_id,
        observation_space=spaces.Discrete(mdp.num_states),
        action_space=spaces.Discrete(mdp.num_actions),
        max_episode_steps=mdp.max_steps,
        masked=False,
        jax_native=True,
    )

    def outcome(point, law):
        # Scaled by the last sum, which rounding may leave below 1.
        return jnp.sum(point * law[-1] >= law).astype(jnp.int32)

    def reset(key):
        state = outcome(jax.random.uniform(key, dtype=first.dtype), first)
        return (state, jnp.int32(0)), state

    def draw(key):
        step_key, reset_key = jax.random.split(key)
        return jax.random.uniform(step_key, dtype=laws.dtype), reset(reset_key)[0]

    def step(drawn, state, action):
        point, fresh = drawn
        here, time = state
        after, time = outcome(point, laws[here, action]), time + 1
        terminated = terminal[after]
        late = jnp.array(False) if mdp.max_steps is None else time >= mdp.max_steps
        truncated = late & ~terminated
        ended = terminated | truncated
        start = jax.tree.map(lambda a, b: jnp.where(ended, a, b), fresh, (after, time))
        reward = rewards[here, action].astype(jnp.zeros(()).dtype)
        return JaxStep(start, start[0], reward, terminated, truncated, after)

    return JaxEnv(spec, reset, step, draw=draw)
