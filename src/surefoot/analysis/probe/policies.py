"""The probe's interface to policies: actions, comparisons on rows, a frozen critic."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

import gymnasium.spaces as spaces
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree

from surefoot.formulas.distributions import kl
from surefoot.formulas.surrogate import likelihood_ratio
from surefoot.networks.actor_critic import Actor
from surefoot.networks.spaces import by_part
from surefoot.training.random_keys import Purpose, run_key
from surefoot.types import EnvSpec, Params

GROUP = 32
"""Gymnasium environments that a policy acts in at once."""
BLOCK_ROWS = 4096
"""Rows per call of a compiled comparison, so that one program serves any number of rows."""


PolicyComparison = tuple[Float[np.ndarray, " row"], ...]
"""Ratio, KL(old || new) and KL(new || old) of two policies on rows that the old one collected."""


class PolicyFunctions(NamedTuple):
    """Functions of policies, whatever represents them.

    `act(policy, obs, mask, key) -> (action, sent)` is pure, for one observation. `act_group(policy,
    obs, masks, group, t)` is for `GROUP` of them on the host; its random numbers depend on the
    group's number and the step t alone. `compare(old, new, obs, masks, actions)` gives a
    `PolicyComparison`, `value(obs)` the frozen critic in the environment's reward units, if there
    is one. If `exact`, policies are parameters, and divergences exact in each state. Otherwise they
    are `Callables`, and a row has its sample's own term of a divergence.
    """

    act: Callable[..., tuple[PyTree, PyTree]]
    act_group: Callable[..., tuple[PyTree, PyTree]]
    compare: Callable[..., PolicyComparison]
    value: Callable[[PyTree], Float[np.ndarray, " row"]] | None
    exact: bool


class ProbedPolicy(Protocol):
    """A policy from any library: it samples actions and returns their log-probabilities.

    For Gymnasium environments both methods get NumPy arrays: `sample(obs, rng)` a batch of
    observations and a NumPy generator, `log_prob(obs, actions)` two batches. For JAX-native ones
    they are pure functions of one observation: `sample(obs, key)` and `log_prob(obs, action)`.
    Actions are as sampled; they are clipped into a Box before the environment gets them.
    """

    def sample(self, obs: Any, random: Any, /) -> Any:
        """Sample an action for each observation."""

    def log_prob(self, obs: Any, actions: Any, /) -> Any:
        """Log-probability or log-density of actions as sampled."""


class Callables(NamedTuple):
    """A policy as two functions; see `ProbedPolicy`."""

    sample: Callable[[Any, Any], Any]
    log_prob: Callable[[Any, Any], Any]


def in_blocks(function: Callable[..., PyTree], *trees: PyTree) -> PyTree:
    """Call a function of rows on `BLOCK_ROWS` at a time, the last block padded; in float64."""
    count = len(jax.tree.leaves(trees)[0])
    parts = []
    for first in range(0, count, BLOCK_ROWS):
        # Padded with the last row, which every function accepts.
        places = np.minimum(np.arange(first, first + BLOCK_ROWS), count - 1)
        block = jax.tree.map(lambda leaf, at=places: leaf[at], trees)
        parts.append(jax.tree.map(partial(np.asarray, dtype=np.float64), function(*block)))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:count], *parts)


def network_functions(
    actor: Actor, critic: Params, obs_stats: Any, return_scale: float, *, seed: int
) -> PolicyFunctions:
    """Functions of a run's policies, given as parameters, and of its critic before the update."""
    base_key = run_key(seed, 0, Purpose.PROBE)

    def act(policy, obs, mask, key):
        obs, mask = jax.tree.map(lambda leaf: leaf[None], (obs, mask))
        found = actor.act(policy, obs_stats, obs, mask, actor.network.noise(key, (1,)))
        return jax.tree.map(lambda leaf: leaf[0], found[:2])

    def noise_of(episode, t):
        # By episode and step and by no policy: so all policies draw from the same noise.
        key = jax.random.fold_in(jax.random.fold_in(base_key, episode), t)
        return actor.network.noise(key, ())

    @jax.jit
    def act_group(policy, obs, masks, group, t):
        noise = jax.vmap(noise_of, (0, None))(group * GROUP + jnp.arange(GROUP), t)
        return actor.act(policy, obs_stats, obs, masks, noise)[:2]

    @jax.jit
    def compare(old, new, obs, masks, actions):
        inputs = actor.inputs(obs_stats, obs, masks)
        before, after = actor.network.policy(old, inputs), actor.network.policy(new, inputs)
        ratio = likelihood_ratio(after.log_prob(actions), before.log_prob(actions))
        return ratio, kl(before, after), kl(after, before)

    @jax.jit
    def value(obs):
        # The critic learned returns that were divided by this scale.
        return return_scale * actor.network.value(critic, actor.inputs(obs_stats, obs, None))

    return PolicyFunctions(
        act,
        act_group=lambda *given: jax.device_get(act_group(*given)),
        compare=lambda old, new, *rows: in_blocks(partial(compare, old, new), *rows),
        value=partial(in_blocks, value),
        exact=True,
    )


def callable_functions(
    spec: EnvSpec, value: Callable[[Any], Any] | None, *, seed: int
) -> PolicyFunctions:
    """Functions of policies given as `Callables`; their divergences come from the samples."""
    native = spec.jax_native
    xp: Any = jnp if native else np

    def clip(space, action):
        box = isinstance(space, spaces.Box)
        return xp.clip(action, space.low, space.high) if box else action

    def act(policy, obs, mask, noise):
        action = policy.sample(obs, noise)
        return action, by_part(clip, spec.action_space, action)

    def act_group(policy, obs, masks, group, t):
        # The same generator for every policy, as the episodes are paired.
        return act(policy, obs, masks, np.random.default_rng([seed, group, t]))

    @partial(jax.jit, static_argnums=0)
    def in_program(function, *rows):
        return jax.vmap(function)(*rows)

    def call(function, *rows):
        if native:
            return in_blocks(partial(in_program, function), *rows)
        return np.asarray(function(*rows), np.float64)

    def compare(old, new, obs, masks, actions):
        log_ratio = call(new.log_prob, obs, actions) - call(old.log_prob, obs, actions)
        log_ratio = np.clip(log_ratio, -80.0, 80.0)  # a finite ratio, as in every rule
        ratio = np.exp(log_ratio)
        # Never negative, and of the right mean under the old policy.
        return ratio, ratio - 1.0 - log_ratio, ratio * log_ratio - ratio + 1.0

    critic = None if value is None else partial(call, value)
    return PolicyFunctions(act, act_group, compare, critic, exact=False)
