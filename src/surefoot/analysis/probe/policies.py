"""The step between any two policies, whoever trained them."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import gymnasium

from surefoot.analysis.probe.contenders import (
    Callables,
    ProbedPolicy,
    callable_player,
    judge_callables,
)
from surefoot.analysis.probe.result import Origin, Probe, conclude
from surefoot.analysis.probe.sweep import FRACTIONS, Findings, Setting, first_pairs, sweep
from surefoot.analysis.probe.terms import (
    CLIP_EPS,
    Progress,
    budget_of,
    cut_at,
    quiet,
    refuse_vectors,
)
from surefoot.envs.registry import find_env
from surefoot.envs.single import time_limit
from surefoot.envs.source import EnvSource
from surefoot.errors import ConfigError
from surefoot.types import EnvSpec


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
    progress: Progress = quiet,
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
        budget: environment steps; 200,000, or 1,000,000 where the environment is JAX-native.
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
    refuse_vectors(source)
    if isinstance(env, gymnasium.Env) and source.make is not None:
        source.make()  # the instance itself, which stays its owner's
    spec = _spec_of(source)
    limit = cut_at(gamma, spec.max_episode_steps)
    ends = {0.0: _callables(old), 1.0: _callables(new)}

    @cache
    def policy(fraction: float) -> Callables:
        assert path is not None
        return _callables(path(fraction))

    setting = Setting(
        player=callable_player(source, spec, gamma=gamma, limit=limit, seed=seed),
        judge=judge_callables(value, jax_native=spec.jax_native),
        policy=lambda place: ends[place[1]] if place[1] in ends else policy(place[1]),
        gamma=gamma,
        gae_lambda=gae_lambda,
        clip_eps=clip_eps,
        horizon=1.0 / (1.0 - gamma) if gamma < 1.0 else float(limit),
        limit=limit,
        budget=budget_of(budget, spec.jax_native),
    )
    findings = Findings(setting, lambda steps: progress(steps, setting.budget))
    try:
        first_pairs(findings)
        sweep(findings, fractions if path is not None else (), random=False)
    finally:
        setting.player.close()
    title = f"two policies on {spec.env_id}"
    return conclude(findings, Origin(title, None, "given as callables", {}, None))


def _callables(policy: ProbedPolicy) -> Callables:
    return Callables(policy.sample, policy.log_prob)


def _spec_of(source: EnvSource) -> EnvSpec:
    if source.jax_env is not None:
        return source.jax_env.spec
    assert source.make is not None
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
