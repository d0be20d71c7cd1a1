"""Look at what an iteration did: the figures of every row, and the expensive ones of the lens."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from surefoot.diagnostics.cross_fit import cross_fit, cross_fit_metrics
from surefoot.diagnostics.gradient_noise import noise_metrics
from surefoot.diagnostics.lens import LensState, judge_update, shows_gain, take_in_cross_fit
from surefoot.diagnostics.state_shift import States, sample_states, shift_metrics
from surefoot.diagnostics.update_stats import diagnose
from surefoot.networks.spaces import obs_features
from surefoot.rules.critic import explained_variance
from surefoot.training.batch import (
    Metrics,
    episode_metrics,
    fresh_explained_variance,
    normalization_kl,
    state_values,
    td_sums,
)
from surefoot.training.learn import Learned, all_finite, read_rollout
from surefoot.training.random_keys import Purpose, run_key
from surefoot.training.state import MAX_FEATURES, LearnState, Parts
from surefoot.types import Episodes, Rollout


def inspect(
    parts: Parts,
    lens: LensState,
    before: LearnState,
    after: LearnState,
    learned: Learned,
    experience: tuple[Rollout, Episodes],
) -> tuple[LensState, Metrics]:
    """The metrics of one iteration, and what the lens keeps of it for the next.

    `before` collected the rollout in `experience`, `after` learned from it, and `learned` is what
    came with it. The rollout judges the update before it, of which `lens` is what was kept.
    """
    settings, rows, (rollout, episodes) = parts.settings, parts.rows, experience
    batch, scale = learned.batch, learned.batch.return_scale

    def td_of(values, scale):
        return td_sums(settings, values, scale, rollout, learned.episodes, batch.groups, rows)

    frozen = state_values(parts.actor, lens.params, lens.obs_stats, rollout, rows)
    lens, judged = judge_update(
        lens,
        td_of(frozen, lens.return_scale),
        paired=settings.train.num_envs > 1,
    )
    if "lens/crossfit_promise" in learned.info:  # a guard cross-fits every update
        found = (learned.info["lens/insample_promise"], learned.info["lens/crossfit_promise"])
        lens = lens._replace(ratio=take_in_cross_fit(lens.ratio, *found))
    old, new = before.params["policy"], after.params["policy"]
    update = diagnose(parts.network.policy, old, new, batch)
    obs = jax.tree.map(lambda leaf: leaf[:-1], rollout.obs)
    raw = rows.flatten((obs, rollout.action_mask, rollout.valid))
    metrics = learned.info | update | judged | episode_metrics(episodes)
    metrics |= {
        "critic/explained_variance": explained_variance(
            batch.values, batch.value_targets, batch.weights
        ),
        "lens/explained_variance": fresh_explained_variance(
            settings, rollout, learned.rewards, learned.values, rows
        ),
        "normalize/return_scale": scale,
        "normalize/kl": normalization_kl(parts.actor, new, before.obs_stats, after.obs_stats, raw),
        "update/finite": learned.finite.astype(jnp.int32),
        "update/refusals": after.refusals,
        "env_steps": jnp.sum(rollout.valid),
    }
    lens = lens._replace(
        params=before.params,
        obs_stats=before.obs_stats,
        return_scale=scale,
        td=td_of(learned.values, scale),
        promised=update["surrogate/promised_gain"],
        kl=update["policy/kl_mean"],
        shows_gain=shows_gain(metrics["lens/explained_variance"], learned.episodes.carried_share),
        states=_some_states(parts, before, rollout),
    )
    # What a refused update promised may be NaN. It is not judged, and nothing of it is stored.
    finite = all_finite((lens.td, lens.promised, lens.kl))
    return jax.tree.map(_or_zero, lens)._replace(ready=finite), metrics


def look(
    parts: Parts, lens: LensState, state: LearnState, rollout: Rollout
) -> tuple[LensState, Metrics]:
    """The expensive figures of the update that `state` makes of a rollout, and what they teach.

    Cross-fit, shift of the visited states, gradient noise. They use the keys of that update and
    change nothing that learns.
    """
    batch, *_ = read_rollout(parts, state, rollout)
    policy, policy_fn = state.params["policy"], parts.network.policy
    states = _some_states(parts, state, rollout)
    shift_key = run_key(state.seed, state.iteration, Purpose.SHIFT)
    metrics = shift_metrics(lens.states, states, shift_key, known=lens.ready)
    metrics |= noise_metrics(policy_fn, policy, batch, parts.layout, parts.rows)
    if parts.settings.train.guard:  # which cross-fits every update by itself
        return lens, metrics
    key = run_key(state.seed, state.iteration, Purpose.LENS)

    def update(half):
        start = state.params if parts.joint else policy
        new, _, _ = parts.rule.update(state.rule, start, half, key)
        return new["policy"] if parts.joint else new

    fit = cross_fit(update, policy_fn, policy, batch, parts.layout)
    ratio = take_in_cross_fit(lens.ratio, fit.insample, fit.across.mean)
    return lens._replace(ratio=ratio), metrics | cross_fit_metrics(fit)


def _some_states(parts: Parts, state: LearnState, rollout: Rollout) -> States:
    obs = jax.tree.map(lambda leaf: leaf[:-1], rollout.obs)
    features = obs_features(
        parts.spec.observation_space,
        obs,
        parts.settings.network.images,
        max_features=MAX_FEATURES,
    )
    key = run_key(state.seed, state.iteration, Purpose.STATES)
    return sample_states(features, rollout, key, parts.rows)


def _or_zero(leaf: Array) -> Array:
    return jnp.where(jnp.isfinite(leaf), leaf, jnp.zeros_like(leaf))
