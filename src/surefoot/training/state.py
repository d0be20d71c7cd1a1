"""The state of a run's loop, what its functions are made of, and where it starts."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from surefoot.config.settings import Settings
from surefoot.diagnostics.groups import num_groups
from surefoot.diagnostics.guard import REMEMBERED
from surefoot.diagnostics.lens import Watch, start_watch
from surefoot.envs.jax_native import JaxEnv
from surefoot.formulas.running_stats import RunningStats, start_obs_stats, start_stats
from surefoot.networks.actor_critic import ActorCritic
from surefoot.networks.spaces import example_obs, normalised_leaves, obs_features
from surefoot.rules import UPDATE_RULES
from surefoot.rules.critic import critic_losses, start_critic
from surefoot.training.rollout_jax import Actor, EnvLoop, Purpose, run_key, start_jax_envs
from surefoot.types import EnvSpec, Params, UpdateRule

MOST_FEATURES = 256
"""Numbers of an observation by which the lens tells states apart."""


class LoopState(NamedTuple):
    """Everything that decides what comes next in a run, as one tree of arrays.

    `returns_so_far` are the discounted returns of the open episodes, for the reward scale;
    `refusals` counts the non-finite updates in a row. `watch` is what the lens keeps of the last
    update, `promises` the cross-fits that a guard remembers. `env` is None in host runs.
    """

    seed: Int[Array, ""]
    iteration: Int[Array, ""]
    params: dict[str, Params]
    rule: Any
    critic: Any
    obs_stats: tuple[RunningStats | None, ...]
    return_stats: RunningStats
    returns_so_far: Float[Array, " env"]
    refusals: Int[Array, ""]
    watch: Watch
    promises: Float[Array, " update"]
    env: EnvLoop | None


ENV_FIELDS = ("env", "returns_so_far")
"""Fields of the state with an environment axis: on several devices each has its own part."""


def replicated(state: LoopState) -> LoopState:
    """The part of a state that is the same on every device."""
    return state._replace(**dict.fromkeys(ENV_FIELDS))


class Parts(NamedTuple):
    """What the functions of a run are made of."""

    settings: Settings
    spec: EnvSpec
    actor: Actor
    rule: UpdateRule
    env: JaxEnv | None

    @property
    def network(self) -> ActorCritic:
        """The policy's and the critic's functions."""
        return self.actor.network

    @property
    def blocks(self) -> int:
        """Blocks of environments, within which rows are shuffled."""
        return self.settings.train.blocks

    @property
    def joint(self) -> bool:
        """Whether the critic is fitted inside the policy's descent."""
        return self.settings.critic.joint

    @property
    def num_groups(self) -> int:
        """Independent groups of a rollout's rows, at most."""
        return num_groups(self.settings.train.num_envs)

    @property
    def fits_across(self) -> bool:
        """Whether every update is cross-fit, because a remedy asks for it."""
        return self.settings.train.guard or self.rule.steer is not None


def make_rule(settings: Settings, network: ActorCritic) -> UpdateRule:
    """The rule of a run, with the critic's loss inside where the critic is joint."""
    make, blocks = UPDATE_RULES[settings.rule.name], settings.train.blocks
    if not settings.critic.joint:
        return make(settings.rule, network.policy, settings.num_iterations, blocks=blocks)
    weight, losses = settings.critic.vf_coef, critic_losses(settings.critic, network.value)
    return make(
        settings.rule,
        lambda params, inputs: network.policy(params["policy"], inputs),
        settings.num_iterations,
        lambda params, rows: weight * losses(params, rows),
        blocks=blocks,
    )


def start_loop(parts: Parts, seed: Any) -> LoopState:
    """The state before the first iteration."""
    settings, space = parts.settings, parts.spec.observation_space
    seed = jnp.asarray(seed, jnp.uint32)
    params = parts.network.init(run_key(seed, 0, Purpose.INIT))
    normalised = normalised_leaves(space)
    if not settings.train.obs_norm:
        normalised = (False,) * len(normalised)
    num_envs = settings.train.num_envs
    obs_stats = start_obs_stats(example_obs(space), normalised)
    features = obs_features(space, example_obs(space), most=MOST_FEATURES)
    start = run_key(seed, 0, Purpose.RESET)
    return LoopState(
        seed=seed,
        iteration=jnp.int32(0),
        params=params,
        rule=parts.rule.init(params if parts.joint else params["policy"]),
        critic=None if parts.joint else start_critic(settings.critic, params["critic"]),
        obs_stats=obs_stats,
        return_stats=start_stats(()),
        returns_so_far=jnp.zeros(num_envs),
        refusals=jnp.int32(0),
        watch=start_watch(
            params,
            obs_stats,
            num_groups=parts.num_groups,
            num_features=features.shape[-1],
        ),
        promises=jnp.full(REMEMBERED if settings.train.guard else 0, jnp.nan),
        env=None if parts.env is None else start_jax_envs(parts.env, num_envs, start),
    )
