"""Probe an update of a run, or the step between any two policies."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import gymnasium
import jax

from surefoot.analysis.probe.choose import FOLDERS, choose_update
from surefoot.analysis.probe.conclude import conclude
from surefoot.analysis.probe.measurements import NEW, Measurements
from surefoot.analysis.probe.players import HostPlayer, JaxPlayer
from surefoot.analysis.probe.policies import (
    Callables,
    PolicyFunctions,
    ProbedPolicy,
    callable_functions,
    network_functions,
)
from surefoot.analysis.probe.result import Probe
from surefoot.analysis.probe.rows import rows_of
from surefoot.analysis.probe.settings import ProbeSettings
from surefoot.analysis.probe.sweep import play_first_pairs, sweep
from surefoot.analysis.probe.updates import Rerun, find_update
from surefoot.config.settings import OwnNetworks, Train
from surefoot.envs.host import EnvLimits
from surefoot.envs.registry import find_env
from surefoot.envs.source import EnvSource
from surefoot.errors import ConfigError
from surefoot.formulas.trust_region import interpolate
from surefoot.jax_defaults import jax_defaults
from surefoot.storage.run_directory import RunDirectory
from surefoot.training.callback import Callback, Row, as_callback
from surefoot.training.run import Run, open_run
from surefoot.types import EnvSpec, Params


@jax_defaults()
def probe_run(
    path: str | Path,
    update: int | None = None,
    *,
    budget: int | None = None,
    seed: int = 0,
    replay: bool = False,
    env: Any = None,
    network: OwnNetworks | None = None,
    callback: Callback | Callable[[Row], Any] | None = None,
) -> Probe:
    """Measure one update of a run on fresh episodes: what it promised, gained, and how far is safe.

    Args:
        path: the run directory; it is only read.
        update: iteration of the update; None for that of most promise with a checkpoint next
            to it.
        budget: environment steps; None: 200,000, or 1,000,000 if the environment is JAX-native.
        seed: of the fresh episodes.
        replay: repeat iterations from the last exact checkpoint if the update has none.
        env: the environment again, if the run's is not importable by its id.
        network: your own networks again, if the run has them.
        callback: gets progress as rows of `env_steps` and `budget`, and messages.

    Raises:
        CheckpointError: if no checkpoint is next to the update; the message says what to do.
        ConfigError: for an update that the run never made, or a budget that is too small.
    """
    callback, directory = as_callback(callback), RunDirectory(path)
    chosen = choose_update(directory, update)
    # Any checkpoint will do to rebuild the run: the update's own are found later.
    folder = next((name for name in FOLDERS if directory.checkpoints(name)), FOLDERS[0])
    open_again = partial(open_run, path, env=env, own=network, folder=folder)
    rerun = Rerun(open_again, directory.history, chosen.iteration)
    try:
        _refuse_vectors(rerun.run.source)
        found = find_update(chosen, rerun, replay=replay, callback=callback)
    finally:
        # The probe plays in environments of its own.
        rerun.close()
    run = rerun.run
    train, rule = run.settings.train, run.settings.rule
    clip_eps = getattr(rule, "clip_eps", ProbeSettings.clip_eps)
    settings = ProbeSettings(
        gamma=train.gamma, gae_lambda=train.gae_lambda, clip_eps=clip_eps, budget=budget, seed=seed
    )
    frozen = found.critic, found.obs_stats, found.return_scale
    functions = network_functions(run.learner.actor, *frozen, seed=seed)
    player = _open_player(run.source, lambda spec: functions, settings, train)
    measured = Measurements(player, settings, partial(interpolate, found.old, found.new), callback)
    title = f"update {found.iteration} of {path} ({rule.name} on {run.settings.env})"
    callback.on_message(f"{title}: about {measured.budget:,} environment steps (--budget)")
    _measure(measured, old=found.old)
    if found.batch is not None:
        rows = rows_of(found.batch, settings)
        # The same places as on fresh episodes, so that their points compare.
        for place in measured.scores:
            measured.batch[place] = measured.score(measured.policy(place), rows)
    logged = _logged_promise(run, found.iteration)
    return conclude(measured, title, found.source, iteration=found.iteration, logged=logged)


def _logged_promise(run: Run, iteration: int) -> float | None:
    """The promise in the run's log; None if there is none."""
    rows = {row["iteration"]: row for row in run.directory.rows()} if run.directory else {}
    return rows.get(iteration, {}).get("surrogate/promised_gain")


@jax_defaults()
def probe_policies(
    env: Any,
    old: ProbedPolicy,
    new: ProbedPolicy,
    settings: ProbeSettings = ProbeSettings(),  # noqa: B008
    *,
    value: Callable[[Any], Any] | None = None,
    path: Callable[[float], ProbedPolicy] | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    callback: Callback | Callable[[Row], Any] | None = None,
) -> Probe:
    """Measure the step between any two policies, from any library, on fresh episodes.

    Args:
        env: an id, a gymnasium.Env, a function that makes one, or a JaxEnv.
        old: the policy before, as anything with `sample` and `log_prob`; see `ProbedPolicy`.
        new: the policy after.
        settings: discount, lambda, budget, seed, ...
        value: a critic of the old policy, in the environment's reward units: of a batch of
            observations (Gymnasium) or of one (JAX-native). Without one, the mean return ahead
            is the baseline, and the rest of an episode that is cut counts as 0.
        path: the policy at a fraction of the step; without it there is no sweep.
        env_kwargs: arguments of an environment given by its id.
        callback: gets progress as rows of `env_steps` and `budget`, and messages.

    Raises:
        ConfigError: for settings that do not fit, or a budget that is too small.
    """
    if value is None and settings.gae_lambda < 1.0:
        raise ConfigError(
            f"gae_lambda {settings.gae_lambda} needs a critic: give value=, or gae_lambda=1"
        )
    source = find_env(env, env_kwargs or {})
    if isinstance(env, gymnasium.Env) and source.make:
        source.make()  # the first is the instance itself, which its owner goes on using
    if path is None:
        settings = replace(settings, fractions=())

    # One object per fraction: JAX compiles a program for each policy as an object.
    @cache
    def policy(fraction: float) -> Callables:
        ends = {0.0: old, 1.0: new}
        found = ends[fraction] if fraction in ends or path is None else path(fraction)
        return Callables(found.sample, found.log_prob)

    make_functions = partial(callable_functions, value=value, seed=settings.seed)
    player = _open_player(source, make_functions, settings, Train())
    measured = Measurements(player, settings, policy, as_callback(callback))
    _measure(measured)
    return conclude(measured, f"two policies on {source.env_id}", "given as callables")


def _open_player(
    source: EnvSource,
    make_functions: Callable[[EnvSpec], PolicyFunctions],
    settings: ProbeSettings,
    train: Train,
) -> JaxPlayer | HostPlayer:
    """Open environments to play episodes in, with the validation and time-outs of `train`."""
    _refuse_vectors(source)
    if source.jax_env is not None:
        return JaxPlayer(source.jax_env, make_functions(source.jax_env.spec), settings)
    # No restarts: a recreated environment would play another episode.
    limits = EnvLimits.from_settings(train)._replace(restarts=0)
    open_env = partial(source.open, 1, seed=settings.seed, limits=limits)
    return HostPlayer(open_env, make_functions, settings, max_envs=train.max_envs)


def _refuse_vectors(source: EnvSource) -> None:
    if source.jax_env is None and source.make is None:
        raise ConfigError(
            f"{source.env_id} is a vector environment; a probe plays environments one by one: give "
            "an id of Gymnasium or a function that makes one environment",
            name="VECTOR-ENV",
        )


def _measure(found: Measurements, *, old: Params | None = None) -> None:
    """Spend the budget; with the old policy's parameters also on a random direction."""
    try:
        play_first_pairs(found)
        if old is not None:
            found.directions["random"] = random_path(found, old)
        sweep(found)
    finally:
        found.close()


def random_path(found: Measurements, old: Params) -> Callable[[float], Params]:
    """Policies in a Gaussian direction, such that at 1 the mean KL is that of the update."""
    leaves, structure = jax.tree.flatten(old)
    keys = jax.random.split(jax.random.key(found.settings.seed), len(leaves))
    drawn = [jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
    direction, rows = jax.tree.unflatten(structure, drawn), found.rows

    def kl_of(policy: Params) -> float:
        scores = found.score(policy, rows)
        return float(scores.kl.sum() / scores.mass.sum())

    def moved(fraction: float, scale: float = 1.0) -> Params:
        return jax.tree.map(lambda a, d: a + fraction * (scale * d), old, direction)

    # Through several layers KL may grow like any power of the step: bracket it, then bisect.
    wanted, low, high = kl_of(found.policy(NEW)), 0.0, 1e-3
    while kl_of(moved(high)) < wanted and high < 1e3:
        high *= 2.0
    for _ in range(10):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if kl_of(moved(middle)) < wanted else (low, middle)
    return partial(moved, scale=0.5 * (low + high))
