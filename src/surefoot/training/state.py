"""The state of a run, what its functions are made of, and where it starts."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from surefoot.config.settings import Settings
from surefoot.diagnostics.groups import Layout
from surefoot.diagnostics.guard import guarded
from surefoot.diagnostics.lens import LensState, start_lens
from surefoot.envs.jax_native import JaxEnv
from surefoot.formulas.running_stats import RunningStats, start_obs_stats, start_stats
from surefoot.formulas.trust_region import interpolate
from surefoot.networks.actor_critic import Actor, ActorCritic, make_actor
from surefoot.networks.spaces import example_obs, normalised_leaves, obs_features
from surefoot.parallel.mesh import rows_in
from surefoot.rules import UPDATE_RULES
from surefoot.rules.critic import critic_losses, start_critic
from surefoot.rules.rows import Rows
from surefoot.training.random_keys import Purpose, run_key
from surefoot.training.rollout_jax import EnvLoop, start_jax_envs
from surefoot.types import EnvSpec, Params, UpdateRule

MAX_FEATURES = 256
"""Maximum length of the vector by which the lens compares states."""


class LearnState(NamedTuple):
    """What learns: all that decides the next update, given a rollout.

    `returns_so_far` are the discounted returns of the open episodes, for the reward scale, and
    `ages` their steps, for the lens, which decides nothing. `refusals` counts the non-finite
    updates in a row.
    """

    seed: Int[Array, ""]
    iteration: Int[Array, ""]
    params: dict[str, Params]
    rule: Any
    critic: Any
    obs_stats: tuple[RunningStats | None, ...]
    return_stats: RunningStats
    returns_so_far: Float[Array, " env"]
    ages: Int[Array, " env"]
    refusals: Int[Array, ""]


class LoopState(NamedTuple):
    """Everything that decides what comes next in a run, as one tree of arrays.

    `lens` is what the diagnostics remember, and decides no update. `env` is None in host runs.
    """

    learn: LearnState
    lens: LensState
    env: EnvLoop | None


OF_EPISODES = ("returns_so_far", "ages")
"""What learning keeps of the open episodes, an entry for each environment."""
STATE_AXES = LoopState(
    learn=LearnState(**{name: name in OF_EPISODES for name in LearnState._fields}),  # type: ignore[arg-type]
    lens=False,  # type: ignore[arg-type]
    env=True,  # type: ignore[arg-type]
)
"""Which parts of a state have an environment axis: on several devices each has its own part."""


def replicated(state: LoopState) -> LoopState:
    """The part of a state that is the same on every device."""
    learn = state.learn._replace(**dict.fromkeys(OF_EPISODES))
    return state._replace(learn=learn, env=None)


class Parts(NamedTuple):
    """What the functions of a run are made of.

    Inside a program the settings hold arrays in the place of the numbers that are its data.
    """

    settings: Settings
    spec: EnvSpec
    actor: Actor
    rule: UpdateRule
    rows: Rows
    env: JaxEnv | None
    num_updates: float | Float[Array, ""]

    @property
    def network(self) -> ActorCritic:
        """The policy's and the critic's functions."""
        return self.actor.network

    @property
    def joint(self) -> bool:
        """Whether the critic is fitted inside the policy's descent."""
        return self.settings.critic.joint

    @property
    def layout(self) -> Layout:
        """How the rows of a rollout stand, and in which groups."""
        return Layout(self.settings.train.num_envs, self.rows.parts)


def make_parts(
    settings: Settings,
    spec: EnvSpec,
    network: ActorCritic,
    env: JaxEnv | None,
    traced: Mapping[str, Any],
) -> Parts:
    """The parts of a run; the rule is guarded if the settings ask for it.

    Args:
        settings: of the run.
        spec: of its environment.
        network: its policy and critic.
        env: the environment of a JAX-native run.
        traced: from `Settings.traced`, or arrays in their places.
    """
    actor = make_actor(network, spec.action_space, settings)
    rows, settings = rows_in(settings.train.blocks), settings.with_arrays(traced)
    num_updates = traced["num_updates"]
    rule = _make_rule(settings, network, num_updates, rows)
    parts = Parts(settings, spec, actor, rule, rows, env, num_updates)
    if not settings.train.guard:
        return parts

    def policy_of(params: Params) -> Params:
        return params["policy"] if settings.critic.joint else params

    def shorten(old: Params, new: Params, fraction: Float[Array, ""]) -> Params:
        if not settings.critic.joint or settings.network.shared_torso:
            return interpolate(old, new, fraction)
        # A critic with a torso of its own need not go back with the policy.
        return {**new, "policy": interpolate(old["policy"], new["policy"], fraction)}

    rule = guarded(
        parts.rule,
        network.policy,
        settings.train,
        layout=parts.layout,
        policy_of=policy_of,
        shorten=shorten,
    )
    return parts._replace(rule=rule)


def _make_rule(
    settings: Settings, network: ActorCritic, num_updates: float | Float[Array, ""], rows: Rows
) -> UpdateRule:
    """The rule of a run, with the critic's loss inside where the critic is joint."""
    make = UPDATE_RULES[settings.rule.name]
    if not settings.critic.joint:
        return make(settings.rule, network.policy, num_updates, rows=rows)
    weight, losses = settings.critic.vf_coef, critic_losses(settings.critic, network.value)
    return make(
        settings.rule,
        lambda params, inputs: network.policy(params["policy"], inputs),
        num_updates,
        lambda params, rows: weight * losses(params, rows),
        rows,
    )


def start_loop(parts: Parts, seed: Any) -> LoopState:
    """The state before the first iteration."""
    settings, space = parts.settings, parts.spec.observation_space
    seed = jnp.asarray(seed, jnp.uint32)
    params = parts.network.init(run_key(seed, 0, Purpose.INIT))
    images = settings.network.images
    normalised = normalised_leaves(space, images)
    if not settings.train.obs_norm:
        normalised = (False,) * len(normalised)
    num_envs = settings.train.num_envs
    obs_stats = start_obs_stats(example_obs(space), normalised)
    features = obs_features(space, example_obs(space), images, max_features=MAX_FEATURES)
    start = run_key(seed, 0, Purpose.RESET)
    learn = LearnState(
        seed=seed,
        iteration=jnp.int32(0),
        params=params,
        rule=parts.rule.init(params if parts.joint else params["policy"]),
        critic=None if parts.joint else start_critic(settings.critic, params["critic"]),
        obs_stats=obs_stats,
        return_stats=start_stats(()),
        returns_so_far=jnp.zeros(num_envs),
        ages=jnp.zeros(num_envs, jnp.int32),
        refusals=jnp.int32(0),
    )
    lens = start_lens(
        params,
        obs_stats,
        num_groups=parts.layout.num_groups,
        num_features=features.shape[-1],
    )
    stagger = run_key(seed, 0, Purpose.STAGGER) if settings.train.staggers else None
    env = None if parts.env is None else start_jax_envs(parts.env, num_envs, start, stagger)
    return LoopState(learn, lens, env)


def without_open_episodes(state: LoopState) -> LoopState:
    """The state as new episodes begin in all environments."""
    zeros = {name: jnp.zeros_like(getattr(state.learn, name)) for name in OF_EPISODES}
    return state._replace(learn=state.learn._replace(**zeros))
