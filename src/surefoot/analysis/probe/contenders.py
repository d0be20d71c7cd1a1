"""Policies as a probe sees them: what acts, and what compares two of them on states and actions."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

import gymnasium.spaces as spaces
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree

from surefoot.analysis.probe.host import GROUP, HostPlayer
from surefoot.analysis.probe.players import JaxPlayer, Player
from surefoot.envs.source import EnvSource
from surefoot.formulas.distributions import kl
from surefoot.formulas.surrogate import likelihood_ratio
from surefoot.networks.policy import Actor
from surefoot.training.seeds import Purpose, run_key
from surefoot.types import EnvSpec

ROWS = 4096
"""Rows that are compared in one call, so that one program serves all."""


class Comparison(NamedTuple):
    """Two policies on rows that the old one collected; divergences in nats.

    Exact for distributions of ours. For callables each row is the sample's own term, r - 1 - log r
    and r log r - r + 1, which is never negative and has the right mean.
    """

    ratio: Float[np.ndarray, " row"]
    kl: Float[np.ndarray, " row"]
    reverse_kl: Float[np.ndarray, " row"]


class Judge(NamedTuple):
    """What a probe asks about policies and states.

    `compare(old, new, obs, masks, actions) -> Comparison`; `value(obs)` is the frozen critic in
    the environment's units, or None where there is none. `exact_kl` says how `Comparison` has it.
    """

    compare: Callable[[Any, Any, PyTree, PyTree | None, PyTree], Comparison]
    value: Callable[[PyTree], Float[np.ndarray, " row"]] | None
    exact_kl: bool


class ProbedPolicy(Protocol):
    """A policy of anybody's: what it does, and how likely that was.

    On Gymnasium environments both are given NumPy arrays: `sample(obs, rng)` a batch of
    observations and a NumPy generator, `log_prob(obs, actions)` both batches. On JAX-native ones
    they are pure functions of one observation: `sample(obs, key)` and `log_prob(obs, action)`.
    Actions are as sampled; where they leave a Box they are clipped into it on their way out.
    """

    @property
    def sample(self) -> Callable[[Any, Any], Any]:
        """An action, or as many as there are observations."""
        ...

    @property
    def log_prob(self) -> Callable[[Any, Any], Any]:
        """Log-probability or log-density of actions as sampled."""
        ...


class Callables(NamedTuple):
    """A policy as two functions; see `ProbedPolicy`."""

    sample: Callable[[Any, Any], Any]
    log_prob: Callable[[Any, Any], Any]


def in_blocks(function: Callable[..., Any], trees: tuple[PyTree, ...]) -> PyTree:
    """A function of rows, called on `ROWS` of them at a time; the last block is filled up."""
    count = len(jax.tree.leaves(trees)[0])
    parts = []
    for first in range(0, count, ROWS):
        places = np.minimum(np.arange(first, first + ROWS), count - 1)
        block = jax.tree.map(lambda leaf, at=places: leaf[at], trees)
        parts.append(jax.tree.map(np.asarray, function(*block)))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:count], *parts)


def from_log_probs(old: Float[np.ndarray, " row"], new: Float[np.ndarray, " row"]) -> Comparison:
    """A comparison from the log-probabilities of the old policy's own actions."""
    # As everywhere here the ratio is held where a float32 would overflow.
    log_ratio = np.clip(np.asarray(new, np.float64) - np.asarray(old, np.float64), -80.0, 80.0)
    ratio = np.exp(log_ratio)
    return Comparison(ratio, ratio - 1.0 - log_ratio, ratio * log_ratio - ratio + 1.0)


def judge_networks(actor: Actor, params: PyTree, obs_stats: Any, return_scale: float) -> Judge:
    """The judge of a run's policies: exact divergences, and the critic frozen in `params`."""

    @jax.jit
    def block(old, new, obs, masks, actions):
        inputs = actor.inputs(obs_stats, obs, masks)
        before, after = actor.network.policy(old, inputs), actor.network.policy(new, inputs)
        ratio = likelihood_ratio(after.log_prob(actions), before.log_prob(actions))
        return ratio, kl(before, after), kl(after, before)

    @jax.jit
    def critic(obs):
        return return_scale * actor.network.value(params, actor.inputs(obs_stats, obs, None))

    def compare(old, new, obs, masks, actions):
        found = in_blocks(partial(block, old, new), (obs, masks, actions))
        return Comparison(*(np.asarray(leaf, np.float64) for leaf in found))

    def value(obs):
        return np.asarray(in_blocks(critic, (obs,)), np.float64)

    return Judge(compare, value, exact_kl=True)


def network_player(
    actor: Actor,
    source: EnvSource,
    spec: EnvSpec,
    obs_stats: Any,
    *,
    gamma: float,
    limit: int,
    seed: int,
) -> Player:
    """Plays a run's policies, given as their parameters."""
    if source.jax_env is not None:

        def act(policy, obs, mask, key):
            one = lambda tree: jax.tree.map(lambda leaf: leaf[None], tree)  # noqa: E731
            noise = actor.network.noise(key, (1,))
            action, sent, _ = actor.act(policy, obs_stats, one(obs), one(mask), noise)
            return jax.tree.map(lambda leaf: leaf[0], (action, sent))

        return JaxPlayer(source.jax_env, act, gamma=gamma, limit=limit, seed=seed, fixed=False)
    key = run_key(seed, 0, Purpose.PROBE)

    @jax.jit
    def act_all(policy, obs, masks, group, t):
        def noise_of(row):
            episode = jax.random.fold_in(key, group * GROUP + row)
            return actor.network.noise(jax.random.fold_in(episode, t), ())

        noise = jax.vmap(noise_of)(jnp.arange(GROUP))
        return actor.act(policy, obs_stats, obs, masks, noise)[:2]

    def act_host(policy, obs, masks, group, t):
        return jax.device_get(act_all(policy, obs, masks, np.int32(group), np.int32(t)))

    return HostPlayer(source, spec, act_host, gamma=gamma, limit=limit, seed=seed)


def judge_callables(value: Callable[[Any], Any] | None, *, jax_native: bool) -> Judge:
    """The judge of anybody's policies: divergences from the samples."""
    if not jax_native:
        return Judge(
            lambda old, new, obs, _, actions: from_log_probs(
                old.log_prob(obs, actions), new.log_prob(obs, actions)
            ),
            value and (lambda obs: np.asarray(value(obs), np.float64)),
            exact_kl=False,
        )
    log_probs = jax.jit(
        lambda policy, obs, actions: jax.vmap(policy.log_prob)(obs, actions), static_argnums=0
    )

    def compare(old, new, obs, masks, actions):
        before, after = (
            in_blocks(partial(log_probs, policy), (obs, actions)) for policy in (old, new)
        )
        return from_log_probs(before, after)

    values = value and jax.jit(jax.vmap(value))
    return Judge(
        compare,
        values and (lambda obs: np.asarray(in_blocks(values, (obs,)), np.float64)),
        exact_kl=False,
    )


def callable_player(
    source: EnvSource, spec: EnvSpec, *, gamma: float, limit: int, seed: int
) -> Player:
    """Plays policies given as `Callables`."""
    if source.jax_env is not None:

        def act(policy: Callables, obs, mask, key):
            action = policy.sample(obs, key)
            return action, clip_action(spec.action_space, action, jnp.clip)

        return JaxPlayer(source.jax_env, act, gamma=gamma, limit=limit, seed=seed, fixed=True)

    def act_host(policy: Callables, obs, masks, group, t):
        actions = policy.sample(obs, np.random.default_rng([seed, group, t]))
        return actions, clip_action(spec.action_space, actions, np.clip)

    return HostPlayer(source, spec, act_host, gamma=gamma, limit=limit, seed=seed)


def clip_action(space: spaces.Space, action: PyTree, clip: Callable[..., Any]) -> PyTree:
    """An action with every Box part clipped into its bounds."""
    if isinstance(space, spaces.Dict):
        return {key: clip_action(space[key], action[key], clip) for key in space.spaces}
    if isinstance(space, spaces.Tuple):
        pairs = zip(space.spaces, action, strict=True)
        return tuple(clip_action(part, one, clip) for part, one in pairs)
    return clip(action, space.low, space.high) if isinstance(space, spaces.Box) else action
