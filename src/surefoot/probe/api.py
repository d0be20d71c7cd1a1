"""Probes: of an update of a run, and of any two policies."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

from surefoot.envs import EnvSource, find_env, time_limit
from surefoot.envs.host import HostEnv
from surefoot.envs.jax_native import JaxEnv
from surefoot.errors import ConfigError
from surefoot.evaluation import LONGEST_EPISODE
from surefoot.learner import horizon_of
from surefoot.probe.contenders import (
    Callables,
    Judge,
    ProbedPolicy,
    callable_player,
    judge_callables,
    judge_networks,
    network_player,
)
from surefoot.probe.result import Origin, Probe, conclude
from surefoot.probe.scoring import OldRows, Scores, score
from surefoot.probe.sweep import (
    FRACTIONS,
    NEW,
    OLD,
    Findings,
    Place,
    Setting,
    first_pairs,
    sweep,
)
from surefoot.probe.updates import Finder, OwnBatch, Update, episode_times, td_parts
from surefoot.returns import generalized_advantage_estimation
from surefoot.trained import OwnNetworks, Run, open_run
from surefoot.types import EnvSpec, Params

HOST_BUDGET, JAX_BUDGET = 200_000, 2_000_000
"""Environment steps of a probe where nobody says how many."""
NEGLIGIBLE = 1e-3
"""Discount below which steps are cut off and left to the frozen critic."""
CLIP_EPS = 0.2

Say = Callable[[str], None]
Progress = Callable[[int, int], None]
"""Told the steps taken so far, and the budget."""


def _quiet(*_: Any) -> None:
    """Nobody listens."""


def cut_at(gamma: float, time_limit: int | None) -> int:
    """The step at which a probe's episodes are cut: the time limit, or where gamma^t is 0.001."""
    longest = time_limit or LONGEST_EPISODE
    if gamma >= 1.0:
        return longest
    return min(longest, 1 if gamma == 0.0 else math.ceil(math.log(NEGLIGIBLE) / math.log(gamma)))


def probe_run(
    path: str | Path,
    update: int | None = None,
    *,
    budget: int | None = None,
    replay: bool = False,
    seed: int = 0,
    env: Any = None,
    network: OwnNetworks | None = None,
    say: Say = _quiet,
    progress: Progress = _quiet,
) -> Probe:
    """Look at one update of a run from fresh episodes: what it promised, what it got, how far.

    Args:
        path: the run directory; it is only read.
        update: the iteration whose update is probed; the newest that can be, where it is None.
        budget: environment steps; 200,000, or 2,000,000 where the environment is JAX-native.
        replay: make iterations again, from the last exact checkpoint, where nothing is kept.
        seed: of the fresh episodes.
        env: the environment again, where it needs an import of your own.
        network: your own networks again, where the run has them.
        say: told in words what is about to be done.
        progress: told how many steps are done, of how many.

    Raises:
        CheckpointError: where the run keeps nothing to probe from; see its message.
        ConfigError: for an update that the run never made, or a budget that is too small.
    """
    folder = _a_folder(path)
    run, opened = open_run(path, env=env, own=network, folder=folder)
    try:
        _refuse_vectors(run.source)
        found = Finder(run, opened, say=say).find(update, replay=replay)
    finally:
        if isinstance(opened, HostEnv):
            opened.close()
    world: JaxEnv | EnvSource = opened if isinstance(opened, JaxEnv) else run.source
    setting = _setting_of(run, found, world, budget, seed)
    title = f"update {found.iteration} of {path} ({run.settings.rule.name} on {run.settings.env})"
    say(f"{title}: at most {setting.budget:,} environment steps (--budget)")
    return _probe_update(run, found, setting, title, seed, progress)


def _a_folder(path: str | Path) -> str:
    """A folder of the run that has checkpoints; the first where none has."""
    from surefoot.probe.updates import FOLDERS
    from surefoot.run import RunDirectory

    directory = RunDirectory(Path(path))
    return next((name for name in FOLDERS if directory.checkpoints(name)), FOLDERS[0])


def _refuse_vectors(source: EnvSource) -> None:
    if source.kind == "vector":
        raise ConfigError(
            f"{source.env_id} came as a ready vector environment: a probe plays environments one "
            "by one; give an id or a function that makes one environment",
            name="VECTOR-ENV",
        )


def _setting_of(
    run: Run, found: Update, world: JaxEnv | EnvSource, budget: int | None, seed: int
) -> Setting:
    train, spec, actor = run.settings.train, run.learner.spec, run.learner.actor
    limit = cut_at(train.gamma, spec.max_episode_steps)
    player = network_player(
        actor, world, spec, found.obs_stats, gamma=train.gamma, limit=limit, seed=seed
    )
    return Setting(
        player=player,
        judge=judge_networks(actor, found.before, found.obs_stats, found.return_scale),
        policy=lambda place: _on_line(found.old, found.new, place[1]),
        gamma=train.gamma,
        gae_lambda=train.gae_lambda,
        clip_eps=getattr(run.settings.rule, "clip_eps", CLIP_EPS),
        horizon=horizon_of(run.settings, spec),
        limit=limit,
        budget=_budget(budget, spec.jax_native),
    )


def _budget(budget: int | None, jax_native: bool) -> int:
    return (JAX_BUDGET if jax_native else HOST_BUDGET) if budget is None else budget


def _on_line(old: Params, new: Params, fraction: float) -> Params:
    """The policy at a fraction of the way from old to new, beyond it above 1."""
    if fraction in (0.0, 1.0):
        return (old, new)[int(fraction)]
    return jax.tree.map(lambda a, b: a + fraction * (b - a), old, new)


def _probe_update(
    run: Run, found: Update, setting: Setting, title: str, seed: int, progress: Progress
) -> Probe:
    findings = Findings(setting, lambda steps: progress(steps, setting.budget))
    try:
        first_pairs(findings)
        away = random_twin(setting, findings.rows, found.old, seed)

        def policy(place: Place) -> Params:
            if place[0] == "update":
                return _on_line(found.old, found.new, place[1])
            return jax.tree.map(lambda a, d: a + place[1] * d, found.old, away)

        setting = setting._replace(policy=policy)
        findings.setting = setting
        sweep(findings, FRACTIONS, random=True)
    finally:
        setting.player.close()
    batch: dict[Place, Scores] = {}
    if found.batch is not None:
        rows = batch_rows(found.batch, setting)
        for place in findings.scores:
            batch[place] = score(
                setting.judge, found.old, policy(place), rows, clip_eps=setting.clip_eps
            )
    recorded = [row for row in run.directory.rows() if row["iteration"] == found.iteration]  # type: ignore[union-attr]
    promise = recorded[-1].get("surrogate/promised_gain") if recorded else None
    return conclude(findings, Origin(title, found.source, batch, promise))


def random_twin(setting: Setting, rows: OldRows, old: Params, seed: int) -> Params:
    """A random direction in the parameters, Gaussian, of the update's mean KL on these rows."""
    leaves, structure = jax.tree.flatten(old)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    drawn = [jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
    away = jax.tree.unflatten(structure, drawn)

    def kl_of(new: Params) -> float:
        found = score(setting.judge, old, new, rows, clip_eps=setting.clip_eps)
        return float(found.kl.sum() / found.mass.sum())

    wanted, scale = kl_of(setting.policy(NEW)), 1e-3
    for _ in range(12):
        reached = kl_of(jax.tree.map(lambda a, d, s=scale: a + s * d, old, away))
        # KL grows like the square of a small step; held back, as far off it does not.
        scale *= float(np.clip((wanted / max(reached, 1e-12)) ** 0.5, 0.1, 10.0))
    return jax.tree.map(lambda d: scale * d, away)


def batch_rows(batch: OwnBatch, setting: Setting) -> OldRows:
    """The training batch as rows to be scored: raw rewards, the critic in their units."""
    rollout, value = batch.rollout, setting.judge.value
    assert value is not None
    times, episodes = episode_times(rollout, batch.ages)
    values, next_values = td_parts(rollout, value)
    advantages = generalized_advantage_estimation(
        jnp.where(rollout.valid, rollout.rewards, 0.0),
        jnp.asarray(values, jnp.float32),
        jnp.asarray(next_values, jnp.float32),
        jnp.asarray(rollout.terminated),
        jnp.asarray(rollout.truncated),
        gamma=setting.gamma,
        gae_lambda=setting.gae_lambda,
    )
    chosen = np.nonzero(np.asarray(rollout.valid))
    flat = lambda leaf: np.asarray(leaf)[chosen]  # noqa: E731
    _, group = np.unique(episodes[chosen], return_inverse=True)
    size = flat(advantages).astype(np.float64)
    return OldRows(
        jax.tree.map(lambda leaf: flat(leaf[:-1]), rollout.obs),
        jax.tree.map(flat, rollout.action_mask),
        jax.tree.map(flat, rollout.actions),
        group,
        setting.gamma ** times[chosen].astype(np.float64),
        size,
        size,
        int(group.max()) + 1,
    )


def probe_policies(
    env: Any,
    old: ProbedPolicy,
    new: ProbedPolicy,
    *,
    gamma: float = 0.99,
    gae_lambda: float = 1.0,
    value: Callable[[Any], Any] | None = None,
    path: Callable[[float], ProbedPolicy] | None = None,
    fractions: Sequence[float] = FRACTIONS,
    clip_eps: float = CLIP_EPS,
    budget: int | None = None,
    seed: int = 0,
    env_kwargs: Mapping[str, Any] | None = None,
    progress: Progress = _quiet,
) -> Probe:
    """Look at the step between any two policies, whoever trained them.

    Args:
        env: an id, a gymnasium.Env, a function that makes one, or a JaxEnv.
        old: the policy before, as anything with `sample` and `log_prob`; see `ProbedPolicy`.
        new: the policy after.
        gamma: discount per step.
        gae_lambda: of the promise; 1, Monte Carlo, is right under any critic.
        value: a critic of the old policy, in the environment's reward units: of a batch of
            observations (Gymnasium) or of one (JAX-native). Without one the mean return ahead
            stands in, and what is cut off counts as nothing.
        path: the policy at a fraction of the step, for the sweep; without it there is none.
        fractions: where along the path, besides 0 and 1.
        clip_eps: of ppo's clipped objective.
        budget: environment steps; 200,000, or 2,000,000 where the environment is JAX-native.
        seed: of the episodes.
        env_kwargs: arguments for an environment named by its id.
        progress: told how many steps are done, of how many.

    Raises:
        ConfigError: for settings that do not fit, or a budget that is too small.
    """
    if not 0.0 <= gamma <= 1.0 or not 0.0 <= gae_lambda <= 1.0:
        raise ConfigError(f"gamma {gamma} and gae_lambda {gae_lambda} must be in [0, 1]")
    if value is None and gae_lambda < 1.0:
        raise ConfigError(f"gae_lambda {gae_lambda} needs a critic: give value=, or gae_lambda=1")
    source = find_env(env, env_kwargs or {})
    _refuse_vectors(source)
    if isinstance(env, gymnasium.Env):
        source.make()  # the instance itself, which stays its owner's
    world: JaxEnv | EnvSource = source.make() if source.kind == "jax" else source
    spec = world.spec if isinstance(world, JaxEnv) else _spec_of(source)
    limit = cut_at(gamma, spec.max_episode_steps)
    ends = {0.0: _callables(old), 1.0: _callables(new)}

    @cache
    def policy(fraction: float) -> Callables:
        assert path is not None
        return _callables(path(fraction))

    judge: Judge = judge_callables(value, jax_native=spec.jax_native)
    setting = Setting(
        player=callable_player(world, spec, gamma=gamma, limit=limit, seed=seed),
        judge=judge,
        policy=lambda place: ends[place[1]] if place[1] in ends else policy(place[1]),
        gamma=gamma,
        gae_lambda=gae_lambda,
        clip_eps=clip_eps,
        horizon=1.0 / (1.0 - gamma) if gamma < 1.0 else float(limit),
        limit=limit,
        budget=_budget(budget, spec.jax_native),
    )
    findings = Findings(setting, lambda steps: progress(steps, setting.budget))
    try:
        first_pairs(findings)
        sweep(findings, fractions if path is not None else (), random=False)
    finally:
        setting.player.close()
    title = f"two policies on {spec.env_id}"
    return conclude(findings, Origin(title, "given as callables", {}, None))


def _callables(policy: ProbedPolicy) -> Callables:
    return Callables(policy.sample, policy.log_prob)


def _spec_of(source: EnvSource) -> EnvSpec:
    env = source.make()
    spec = EnvSpec(
        env_id=source.env_id,
        observation_space=env.observation_space,
        action_space=env.action_space,
        max_episode_steps=time_limit(env),
        masked=False,
        jax_native=False,
    )
    env.close()
    return spec
