"""One iteration as a pure function of the loop's state and a rollout: the same for every rule."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from surefoot.diagnostics.cross_fit import CrossFit, cross_fit
from surefoot.diagnostics.gain_ratio import RatioFilter, best_radius, take_in_cross_fit
from surefoot.diagnostics.groups import groups_of
from surefoot.diagnostics.guard import is_hopeless, part_way, remember, walk_back
from surefoot.diagnostics.lens import Watch, judge, report_cross_fit, report_noise, report_shift
from surefoot.diagnostics.state_shift import States, sample_states
from surefoot.diagnostics.update_stats import diagnose
from surefoot.formulas.running_stats import RunningStats, merge_obs_stats
from surefoot.networks.spaces import obs_features
from surefoot.parallel.rows import to_rows
from surefoot.rules.critic import explained_variance, fit_critic
from surefoot.training.batch import (
    Metrics,
    episode_metrics,
    fresh_explained_variance,
    horizon_of,
    make_batch,
    normalization_kl,
    scale_rewards,
    state_values,
    td_sums,
)
from surefoot.training.rollout_jax import Purpose, run_key
from surefoot.training.state import MOST_FEATURES, LoopState, Parts
from surefoot.types import Batch, Episodes, Params, Rollout


class _Rows(NamedTuple):
    """A rollout made ready: the batch, its groups, and what scaled its rewards."""

    batch: Batch
    groups: Int[Array, "time env"]
    rewards: Float[Array, "time env"]
    values: tuple[Float[Array, "time env"], Float[Array, "time env"]]
    return_stats: RunningStats
    returns_so_far: Float[Array, " env"]


def _rows_of(parts: Parts, state: LoopState, rollout: Rollout) -> _Rows:
    rewards, return_stats, so_far, scale = scale_rewards(
        parts.settings, state.return_stats, state.returns_so_far, rollout
    )
    batch, values = make_batch(
        parts.settings, parts.actor, state.params, state.obs_stats, rollout, rewards, scale
    )
    return _Rows(batch, groups_of(rollout), rewards, values, return_stats, so_far)


class _Update(NamedTuple):
    """The rule's update: its parameters, the policy's among them, its state and its figures."""

    params: Params
    policy: Params
    rule: Any
    info: Metrics


def _step(
    parts: Parts,
    state: LoopState,
    rule_state: Any,
    batch: Batch,
    key: Key[Array, ""],
    refused: bool | Bool[Array, ""] = False,
) -> _Update:
    """The rule's update of a batch; where there is a guard, walked back or not taken at all."""
    start, train = state.params if parts.joint else state.params["policy"], parts.settings.train
    params, rule_state, info = parts.rule.update(rule_state, start, batch, key)
    if train.guard:
        inside = walk_back(
            parts.network.policy,
            state.params["policy"],
            params["policy"] if parts.joint else params,
            batch,
            max_kl=train.guard_kl,
            max_worst_kl=train.guard_worst_kl,
        )
        fraction = jnp.where(refused, 0.0, inside)
        walked = part_way(start, params, fraction)
        if parts.joint and not parts.settings.network.shared_torso:
            # Only a critic's head on a shared torso has to go back with the policy.
            walked = {**params, "policy": walked["policy"]}
        params, info = walked, info | {"guard/fraction": fraction}
    return _Update(params, params["policy"] if parts.joint else params, rule_state, info)


def _cross_fit(parts: Parts, state: LoopState, rows: _Rows) -> CrossFit:
    """The update made from halves of the data and scored across them."""
    key = run_key(state.seed, state.iteration, Purpose.LENS)
    return cross_fit(
        lambda half: _step(parts, state, state.rule, half, key).policy,
        parts.network.policy,
        state.params["policy"],
        rows.batch,
        to_rows(rows.groups, parts.blocks),
        parts.num_groups,
        envs_in_block=parts.settings.train.num_envs // parts.blocks,
        horizon=horizon_of(parts.settings, parts.spec),
    )


def _update(
    parts: Parts, state: LoopState, ratio: RatioFilter, rows: _Rows
) -> tuple[tuple[dict[str, Params], Any, Any], RatioFilter, Float[Array, " update"], Metrics]:
    """The rule's update and the critic's fit, together where the critic is joint.

    With a remedy, every update is cross-fit first: the radius follows from what the filter knows,
    and a guard that sees no hope leaves the policy as it is.
    """
    settings, batch, promises = parts.settings, rows.batch, state.promises
    rule_state, refused, found = state.rule, jnp.array(False), {}
    if parts.fits_across:
        fit = _cross_fit(parts, state, rows)
        ratio, found = (
            take_in_cross_fit(ratio, fit.insample, fit.across.mean),
            report_cross_fit(fit),
        )
        if parts.rule.steer is not None:
            rule_state = parts.rule.steer(rule_state, best_radius(ratio))
        if settings.train.guard:
            promises = remember(promises, fit.across.mean)
            refused = is_hopeless(promises)
            found = found | {"guard/refused": refused.astype(jnp.int32)}
    key = run_key(state.seed, state.iteration, Purpose.UPDATE)
    step = _step(parts, state, rule_state, batch, key, refused)
    if parts.joint:
        return (step.params, step.rule, None), ratio, promises, step.info | found
    critic, critic_state, critic_info = fit_critic(
        settings.critic,
        lambda critic, inputs: parts.network.value({"critic": critic}, inputs),
        settings.num_iterations,
        state.critic,
        state.params["critic"],
        batch,
        run_key(state.seed, state.iteration, Purpose.CRITIC),
        blocks=parts.blocks,
    )
    params = {"policy": step.policy, "critic": critic}
    return (params, step.rule, critic_state), ratio, promises, step.info | critic_info | found


def learn_from(
    parts: Parts,
    state: LoopState,
    rollout: Rollout,
    episodes: Episodes,
    look: bool | Bool[Array, ""],
) -> tuple[LoopState, Metrics]:
    """Judge the last update by this rollout, make the next, and look at what it did.

    Where `look` holds, the lens's dearer figures are taken too; else they are NaN. It is no part of
    the state, so that many seeds in one program ask it once, and skip what none of them needs.
    """
    settings, horizon = parts.settings, horizon_of(parts.settings, parts.spec)
    rows = _rows_of(parts, state, rollout)
    states = _states_of(parts, state, rollout, rows)
    ratio, looked = _look(parts, state, rows, states, look)
    watch = state.watch._replace(ratio=ratio)
    batch, scale = rows.batch, rows.batch.return_scale

    def td_of(values, scale):
        return td_sums(settings, values, scale, rollout, rows.groups, parts.num_groups)

    judged_by = state_values(
        parts.actor, watch.params, watch.obs_stats, rollout, blocks=parts.blocks
    )
    ratio, gained, judged = judge(
        watch,
        td_of(judged_by, watch.return_scale),
        horizon=horizon,
        paired=settings.train.num_envs > 1,
    )
    new, ratio, promises, info = _update(parts, state, ratio, rows)
    # A refused update leaves parameters and optimisers as they were, bit for bit. Rewards are
    # asked too: an infinite one is clipped to an ordinary one.
    finite = _all_finite((new, jnp.where(rollout.valid, rollout.rewards, 0.0)))
    old = (state.params, state.rule, state.critic)
    params, rule_state, critic_state = jax.tree.map(
        lambda a, b: jnp.where(finite, a, b), tuple(new), old
    )
    diagnosis = diagnose(
        parts.network.policy, state.params["policy"], params["policy"], batch, horizon=horizon
    )
    obs = jax.tree.map(lambda leaf: leaf[:-1], rollout.obs)
    raw = to_rows((obs, rollout.action_mask, rollout.valid), parts.blocks)
    obs_stats = merge_obs_stats(state.obs_stats, raw[0], raw[2])
    drift = normalization_kl(parts.actor, params["policy"], state.obs_stats, obs_stats, raw)
    refusals = jnp.where(finite, 0, state.refusals + 1)
    metrics = info | looked | diagnosis | judged | episode_metrics(episodes)
    metrics |= {
        "critic/explained_variance": explained_variance(
            batch.values, batch.value_targets, batch.weights
        ),
        "lens/explained_variance": fresh_explained_variance(
            settings, rollout, rows.rewards, rows.values
        ),
        "normalize/return_scale": scale,
        "normalize/kl": drift,
        "update/finite": finite.astype(jnp.int32),
        "update/refusals": refusals,
        "env_steps": jnp.sum(rollout.valid),
    }
    state = state._replace(
        iteration=state.iteration + 1,
        params=params,
        rule=rule_state,
        critic=critic_state,
        obs_stats=obs_stats,
        return_stats=rows.return_stats,
        returns_so_far=rows.returns_so_far,
        refusals=refusals,
        watch=Watch(
            params=state.params,
            obs_stats=state.obs_stats,
            return_scale=scale,
            td=td_of(rows.values, scale),
            promised=diagnosis["surrogate/promised_gain"],
            kl=diagnosis["policy/kl_mean"],
            states=states,
            ratio=ratio,
            gained=gained,
            ready=jnp.array(True),
        ),
        promises=promises,
    )
    return state, metrics


def _states_of(parts: Parts, state: LoopState, rollout: Rollout, rows: _Rows) -> States:
    """Some of the rollout's states."""
    obs = jax.tree.map(lambda leaf: leaf[:-1], rollout.obs)
    features = obs_features(parts.spec.observation_space, obs, most=MOST_FEATURES)
    key = run_key(state.seed, state.iteration, Purpose.STATES)
    return sample_states(features, rows.groups, rollout.valid, key, blocks=parts.blocks)


def _look(
    parts: Parts, state: LoopState, rows: _Rows, states: States, look: bool | Bool[Array, ""]
) -> tuple[RatioFilter, Metrics]:
    """The lens's dearer figures of the update that is about to be made, and what they teach it.

    They come from the keys of that update and change nothing that learns.
    """
    watch = state.watch

    def taken() -> tuple[RatioFilter, Metrics]:
        found = report_shift(watch, states, run_key(state.seed, state.iteration, Purpose.SHIFT))
        found |= report_noise(
            parts.network.policy,
            state.params["policy"],
            rows.batch,
            rows.groups,
            parts.num_groups,
            blocks=parts.blocks,
        )
        if parts.fits_across:
            return watch.ratio, found
        fit = _cross_fit(parts, state, rows)
        ratio = take_in_cross_fit(watch.ratio, fit.insample, fit.across.mean)
        return ratio, found | report_cross_fit(fit)

    def passed_over() -> tuple[RatioFilter, Metrics]:
        shapes = jax.eval_shape(taken)[1]
        return watch.ratio, {k: jnp.full(v.shape, jnp.nan, v.dtype) for k, v in shapes.items()}

    return jax.lax.cond(look, taken, passed_over)


def _all_finite(tree: PyTree) -> Bool[Array, ""]:
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))
