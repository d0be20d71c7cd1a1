"""A run's pure functions, tied together from its settings, its networks and its environment.

What differs between rules is the `UpdateRule` alone; between kinds of environment, who collects.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from surefoot.config.settings import Settings
from surefoot.envs.jax_native import JaxEnv
from surefoot.networks.actor_critic import ActorCritic
from surefoot.training.batch import Metrics
from surefoot.training.learn import learn_from
from surefoot.training.rollout_jax import Actor, EnvLoop, collect_jax, make_actor
from surefoot.training.state import LoopState, Parts, make_rule, start_loop
from surefoot.types import EnvSpec, Episodes, Rollout


class Learner(NamedTuple):
    """The pure functions of a run.

    `init(seed) -> LoopState`; `learn(state, rollout, episodes, look) -> (state, metrics)`;
    `collect(state) -> (environments, rollout, episodes)` and `iterate(state, look) -> (state,
    metrics)`, which does both, are None in host runs. `look` says whether the lens's dearer figures
    are taken (`is_due`); they are not unless it is given.
    """

    spec: EnvSpec
    actor: Actor
    init: Callable[[Any], LoopState]
    learn: Callable[..., tuple[LoopState, Metrics]]
    iterate: Callable[..., tuple[LoopState, Metrics]] | None
    collect: Callable[[LoopState], tuple[EnvLoop, Rollout, Episodes]] | None


def make_learner(
    settings: Settings, spec: EnvSpec, network: ActorCritic, env: JaxEnv | None = None
) -> Learner:
    """Tie the settings, the networks and, in a JAX-native run, the environment together."""
    actor = make_actor(network, spec.action_space, settings)
    parts = Parts(settings, spec, actor, make_rule(settings, network), env)

    def learn(state, rollout, episodes, look=False):
        return learn_from(parts, state, rollout, episodes, look)

    def collect(state):
        assert env is not None
        return collect_jax(
            env,
            actor,
            settings,
            state.params["policy"],
            state.obs_stats,
            state.env,
            seed=state.seed,
            iteration=state.iteration,
        )

    def iterate(state, look=False):
        loop, rollout, episodes = collect(state)
        return learn(state._replace(env=loop), rollout, episodes, look)

    native = env is not None
    return Learner(
        spec,
        actor,
        lambda seed: start_loop(parts, seed),
        learn,
        iterate if native else None,
        collect if native else None,
    )


def is_due(settings: Settings, iteration: Any) -> Any:
    """Whether the lens's dearer figures are taken at an iteration, counted from 0; maybe traced."""
    every = settings.train.lens_every
    return (every > 0) & (iteration % max(every, 1) == 0)
