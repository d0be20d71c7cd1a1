"""A run's pure functions, tied together from its settings, its networks and its environment.

What differs between rules is the `UpdateRule` alone; between kinds of environment, who collects.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from surefoot.config import Settings
from surefoot.envs.jax_native import JaxEnv
from surefoot.experience import Metrics
from surefoot.iteration import examine_update, learn_from
from surefoot.loop_state import LoopState, Parts, make_rule, start_loop
from surefoot.networks import ActorCritic
from surefoot.rollout import Actor, EnvLoop, collect_jax, make_actor
from surefoot.types import EnvSpec, Episodes, Rollout


class Learner(NamedTuple):
    """The pure functions of a run.

    `init(seed) -> LoopState`; `learn(state, rollout, episodes) -> (state, metrics)`;
    `iterate(state) -> (state, metrics)` collects as well, and is None in host runs.
    `examine(state, rollout) -> (state, metrics)` is the lens's dearer part, for the update that
    `learn` makes of the same rollout; it changes the state in nothing but what the lens knows.
    `foresee(state)` collects that rollout itself, and is None in host runs.
    """

    spec: EnvSpec
    actor: Actor
    init: Callable[[Any], LoopState]
    learn: Callable[[LoopState, Rollout, Episodes], tuple[LoopState, Metrics]]
    iterate: Callable[[LoopState], tuple[LoopState, Metrics]] | None
    examine: Callable[[LoopState, Rollout], tuple[LoopState, Metrics]]
    foresee: Callable[[LoopState], tuple[LoopState, Metrics]] | None


def make_learner(
    settings: Settings, spec: EnvSpec, network: ActorCritic, env: JaxEnv | None = None
) -> Learner:
    """Tie the settings, the networks and, in a JAX-native run, the environment together."""
    actor = make_actor(network, spec.action_space, settings)
    parts = Parts(settings, spec, actor, make_rule(settings, network), env)

    def learn(state, rollout, episodes):
        return learn_from(parts, state, rollout, episodes)

    def examine(state, rollout):
        return examine_update(parts, state, rollout)

    def iterate(state):
        loop, rollout, episodes = _collect(parts, state)
        return learn(state._replace(env=loop), rollout, episodes)

    def foresee(state):
        return examine(state, _collect(parts, state)[1])

    native = env is not None
    return Learner(
        spec,
        actor,
        lambda seed: start_loop(parts, seed),
        learn,
        iterate if native else None,
        examine,
        foresee if native else None,
    )


def _collect(parts: Parts, state: LoopState) -> tuple[EnvLoop, Rollout, Episodes]:
    assert parts.env is not None
    assert state.env is not None
    return collect_jax(
        parts.env,
        parts.actor,
        parts.settings,
        state.params["policy"],
        state.obs_stats,
        state.env,
        seed=state.seed,
        iteration=state.iteration,
    )
