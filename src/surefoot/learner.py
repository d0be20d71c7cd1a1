"""One iteration of learning as a pure function, and whole JAX-native runs as one program.

`learn` turns a rollout into the next state of the loop. It is the same for every rule and for
both kinds of environment; what differs between rules is the `UpdateRule` it calls.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from surefoot.config import Settings
from surefoot.critic import critic_loss, explained_variance, fit_critic, start_critic
from surefoot.diagnostics import diagnose
from surefoot.distributions import kl
from surefoot.envs.jax_native import JaxEnv
from surefoot.lens import Watch, cross_fit, judge, mean_by_env, start_watch
from surefoot.networks import ActorCritic
from surefoot.normalize import (
    RunningStats,
    merge_obs_stats,
    merge_stats,
    standard_deviation,
    start_obs_stats,
    start_stats,
)
from surefoot.returns import discounted_returns, generalized_advantage_estimation, td_errors
from surefoot.rollout import (
    Actor,
    EnvLoop,
    Purpose,
    collect_jax,
    make_actor,
    run_key,
    start_jax_envs,
)
from surefoot.spaces import example_obs, normalised_leaves
from surefoot.surrogate import weighted_mean
from surefoot.types import Batch, EnvSpec, Episodes, Inputs, Params, Rollout
from surefoot.update import UPDATE_RULES

Metrics = dict[str, Array]


class LoopState(NamedTuple):
    """Everything that decides what comes next in a run, as one tree of arrays.

    `returns_so_far` are the discounted returns of the open episodes, for the reward scale;
    `refusals` counts the non-finite updates in a row. `watch` is what the lens keeps of the last
    update. `env` is None in host runs.
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
    env: EnvLoop | None


class Learner(NamedTuple):
    """The pure functions of a run.

    `init(seed) -> LoopState`; `learn(state, rollout, episodes) -> (state, metrics)`;
    `iterate(state) -> (state, metrics)` collects as well, and is None in host runs.
    `examine(state, rollout) -> metrics` is the lens's dearer part, for the update that `learn`
    makes of the same state and rollout; `foresee(state)` collects that rollout itself, and is None
    in host runs.
    """

    spec: EnvSpec
    actor: Actor
    init: Callable[[Any], LoopState]
    learn: Callable[[LoopState, Rollout, Episodes], tuple[LoopState, Metrics]]
    iterate: Callable[[LoopState], tuple[LoopState, Metrics]] | None
    examine: Callable[[LoopState, Rollout], Metrics]
    foresee: Callable[[LoopState], Metrics] | None


def horizon_of(settings: Settings, spec: EnvSpec) -> float:
    """Steps over which a gain per step adds up: 1 / (1 - gamma), or the time limit at gamma 1."""
    gamma = settings.train.gamma
    if gamma < 1.0:
        return 1.0 / (1.0 - gamma)
    return float(spec.max_episode_steps or 1)


def _scale_rewards(
    settings: Settings, stats: RunningStats, so_far: Float[Array, " env"], rollout: Rollout
) -> tuple[Float[Array, "time env"], RunningStats, Float[Array, " env"], Float[Array, ""]]:
    """Rewards over the running std of the discounted return, this rollout's rewards included."""
    rewards = jnp.where(rollout.valid, rollout.rewards, 0.0)
    ended = rollout.terminated | rollout.truncated
    totals, so_far = discounted_returns(rewards, so_far, ended, gamma=settings.train.gamma)
    stats = merge_stats(stats, totals.reshape(-1), rollout.valid.reshape(-1).astype(totals.dtype))
    if not settings.train.return_norm:
        return rewards, stats, so_far, jnp.ones(())
    scale = standard_deviation(stats)
    bound = settings.train.reward_clip
    return jnp.clip(rewards / scale, -bound, bound), stats, so_far, scale


def state_values(
    actor: Actor, params: dict[str, Params], obs_stats: Any, rollout: Rollout
) -> tuple[Float[Array, "time env"], Float[Array, "time env"]]:
    """The critic's V of each row's state and of its true successor, read before any reset."""
    # The value of an unmasked observation: a mask belongs to the action, not to the state.
    values = actor.network.value(params, actor.inputs(obs_stats, rollout.obs, None))
    final = actor.network.value(params, actor.inputs(obs_stats, rollout.final_obs, None))
    successors = values[1:].reshape(-1).at[rollout.final_rows].set(final, mode="drop")
    next_values = jnp.where(rollout.truncated, successors.reshape(values[1:].shape), values[1:])
    return values[:-1], next_values


def td_means(
    settings: Settings,
    actor: Actor,
    params: dict[str, Params],
    obs_stats: Any,
    return_scale: Float[Array, ""],
    rollout: Rollout,
) -> Float[Array, " env"]:
    """Mean TD error of each environment's rows under a critic, in the environment's own units."""
    values, next_values = state_values(actor, params, obs_stats, rollout)
    errors = td_errors(
        rollout.rewards,
        return_scale * values,
        return_scale * next_values,
        rollout.terminated,
        gamma=settings.train.gamma,
    )
    return mean_by_env(errors, rollout.valid)


def make_batch(
    settings: Settings,
    actor: Actor,
    params: dict[str, Params],
    obs_stats: Any,
    rollout: Rollout,
    rewards: Float[Array, "time env"],
    return_scale: Float[Array, ""],
) -> Batch:
    """Rows with advantages and value targets, true successors behind every time limit."""
    values, next_values = state_values(actor, params, obs_stats, rollout)
    advantages = generalized_advantage_estimation(
        rewards,
        values,
        next_values,
        rollout.terminated,
        rollout.truncated,
        gamma=settings.train.gamma,
        gae_lambda=settings.train.gae_lambda,
    )
    flatten = lambda leaf: leaf.reshape(-1, *leaf.shape[2:])  # noqa: E731
    obs = jax.tree.map(lambda leaf: leaf[:-1], rollout.obs)
    inputs = actor.inputs(obs_stats, obs, rollout.action_mask)
    return Batch(
        inputs=Inputs(*jax.tree.map(flatten, tuple(inputs))),
        actions=jax.tree.map(flatten, rollout.actions),
        old_log_probs=flatten(rollout.log_probs),
        advantages=flatten(advantages),
        values=flatten(values),
        value_targets=flatten(values + advantages),
        weights=flatten(rollout.valid).astype(advantages.dtype),
        return_scale=return_scale,
    )


def _all_finite(tree: PyTree) -> Bool[Array, ""]:
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))


def episode_metrics(episodes: Episodes) -> Metrics:
    """Count, mean, least and greatest return, mean length of the episodes that ended."""
    count = jnp.sum(episodes.ended)
    share = episodes.ended / jnp.maximum(count, 1)
    nothing = jnp.where(count > 0, 0.0, jnp.nan)
    return {
        "episode/count": count,
        "episode/return_mean": jnp.sum(episodes.returns * share) + nothing,
        "episode/return_min": jnp.min(jnp.where(episodes.ended, episodes.returns, jnp.inf))
        + nothing,
        "episode/return_max": jnp.max(jnp.where(episodes.ended, episodes.returns, -jnp.inf))
        + nothing,
        "episode/length_mean": jnp.sum(episodes.lengths * share) + nothing,
    }


def make_learner(
    settings: Settings, spec: EnvSpec, network: ActorCritic, env: JaxEnv | None = None
) -> Learner:
    """Tie the settings, the networks and, in a JAX-native run, the environment together."""
    num_updates, joint = settings.num_iterations, settings.critic.joint
    actor = make_actor(network, spec.action_space, settings)
    make_rule = UPDATE_RULES[settings.rule.name]
    joint_loss = critic_loss(settings.critic, network.value)
    if joint:
        weight = settings.critic.vf_coef
        rule = make_rule(
            settings.rule,
            lambda params, inputs: network.policy(params["policy"], inputs),
            num_updates,
            lambda params, rows: weight * joint_loss(params, rows),
        )
    else:
        rule = make_rule(settings.rule, network.policy, num_updates)

    def init(seed):
        seed = jnp.asarray(seed, jnp.uint32)
        params = network.init(run_key(seed, 0, Purpose.INIT))
        normalised = normalised_leaves(spec.observation_space)
        if not settings.train.obs_norm:
            normalised = (False,) * len(normalised)
        num_envs = settings.train.num_envs
        start = run_key(seed, 0, Purpose.RESET)
        obs_stats = start_obs_stats(example_obs(spec.observation_space), normalised)
        return LoopState(
            seed=seed,
            iteration=jnp.int32(0),
            params=params,
            rule=rule.init(params if joint else params["policy"]),
            critic=None if joint else start_critic(settings.critic, params["critic"]),
            obs_stats=obs_stats,
            return_stats=start_stats(()),
            returns_so_far=jnp.zeros(num_envs),
            refusals=jnp.int32(0),
            watch=start_watch(params, obs_stats, num_envs),
            env=None if env is None else start_jax_envs(env, num_envs, start),
        )

    def update(state: LoopState, batch: Batch) -> tuple[dict[str, Params], Any, Any, Metrics]:
        """The rule's update and the critic's fit, together where the critic is joint."""
        update_key = run_key(state.seed, state.iteration, Purpose.UPDATE)
        if joint:
            params, rule_state, info = rule.update(state.rule, state.params, batch, update_key)
            return params, rule_state, None, info
        policy, rule_state, info = rule.update(
            state.rule, state.params["policy"], batch, update_key
        )
        critic, critic_state, critic_info = fit_critic(
            settings.critic,
            lambda critic, inputs: network.value({"critic": critic}, inputs),
            num_updates,
            state.critic,
            state.params["critic"],
            batch,
            run_key(state.seed, state.iteration, Purpose.CRITIC),
        )
        params = {"policy": policy, "critic": critic}
        return params, rule_state, critic_state, info | critic_info

    def rows_of(state: LoopState, rollout: Rollout):
        """The batch, and the statistics of returns that scaled its rewards."""
        rewards, return_stats, so_far, scale = _scale_rewards(
            settings, state.return_stats, state.returns_so_far, rollout
        )
        batch = make_batch(settings, actor, state.params, state.obs_stats, rollout, rewards, scale)
        return batch, return_stats, so_far

    def learn(state: LoopState, rollout: Rollout, episodes: Episodes):
        batch, return_stats, so_far = rows_of(state, rollout)
        scale = batch.return_scale
        *new, info = update(state, batch)
        # A refused update leaves parameters and optimisers as they were, bit for bit. Rewards
        # are asked too: an infinite one is clipped to an ordinary one.
        finite = _all_finite((new, jnp.where(rollout.valid, rollout.rewards, 0.0)))
        old = (state.params, state.rule, state.critic)
        params, rule_state, critic_state = jax.tree.map(
            lambda a, b: jnp.where(finite, a, b), tuple(new), old
        )
        obs_stats = merge_obs_stats(
            state.obs_stats, jax.tree.map(lambda leaf: leaf[:-1], rollout.obs), rollout.valid
        )
        horizon, watch = horizon_of(settings, spec), state.watch
        diagnosis = diagnose(
            network.policy, state.params["policy"], params["policy"], batch, horizon=horizon
        )
        after = td_means(
            settings, actor, watch.params, watch.obs_stats, watch.return_scale, rollout
        )
        before = td_means(settings, actor, state.params, state.obs_stats, scale, rollout)
        metrics = (
            info
            | diagnosis
            | judge(watch, after, horizon=horizon)
            | episode_metrics(episodes)
            | {
                "critic/explained_variance": explained_variance(
                    batch.values, batch.value_targets, batch.weights
                ),
                "normalize/return_scale": scale,
                "normalize/kl": _normalization_kl(actor, params, state, obs_stats, rollout),
                "update/finite": finite.astype(jnp.int32),
                "update/refusals": jnp.where(finite, 0, state.refusals + 1),
                "env_steps": jnp.sum(rollout.valid),
            }
        )
        state = state._replace(
            iteration=state.iteration + 1,
            params=params,
            rule=rule_state,
            critic=critic_state,
            obs_stats=obs_stats,
            return_stats=return_stats,
            returns_so_far=so_far,
            refusals=metrics["update/refusals"],
            watch=Watch(
                state.params,
                state.obs_stats,
                scale,
                before,
                diagnosis["surrogate/promised_gain"],
                jnp.array(True),
            ),
        )
        return state, metrics

    def examine(state: LoopState, rollout: Rollout) -> Metrics:
        batch, *_ = rows_of(state, rollout)
        key = run_key(state.seed, state.iteration, Purpose.LENS)

        def updated(batch: Batch) -> Params:
            params = state.params if joint else state.params["policy"]
            new, *_ = rule.update(state.rule, params, batch, key)
            return new["policy"] if joint else new

        envs = jnp.broadcast_to(jnp.arange(settings.train.num_envs), rollout.valid.shape)
        return cross_fit(
            updated,
            network.policy,
            state.params["policy"],
            batch,
            envs.reshape(-1) % 2 == 0,
            horizon=horizon_of(settings, spec),
        )

    if env is None:
        return Learner(spec, actor, init, learn, None, examine, None)

    def collect(state: LoopState) -> tuple[EnvLoop, Rollout, Episodes]:
        assert state.env is not None
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

    def iterate(state: LoopState) -> tuple[LoopState, Metrics]:
        loop, rollout, episodes = collect(state)
        return learn(state._replace(env=loop), rollout, episodes)

    return Learner(
        spec, actor, init, learn, iterate, examine, lambda state: examine(state, collect(state)[1])
    )


def _normalization_kl(
    actor: Actor, params: dict[str, Params], state: LoopState, obs_stats: Any, rollout: Rollout
) -> Float[Array, ""]:
    """Mean KL of the new policy that the next statistics alone cause, in nats."""
    obs = jax.tree.map(lambda leaf: leaf[:-1], rollout.obs)
    before, after = (
        actor.network.policy(params["policy"], actor.inputs(stats, obs, rollout.action_mask))
        for stats in (state.obs_stats, obs_stats)
    )
    return weighted_mean(
        kl(before, after).reshape(-1), rollout.valid.reshape(-1).astype(jnp.zeros(()).dtype)
    )
