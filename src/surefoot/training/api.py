"""Train a policy, continue a run, or do whichever of the two a directory calls for."""

import contextlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from surefoot.config.differences import differences
from surefoot.config.peers import FindActions
from surefoot.config.presets import Groups, settle
from surefoot.config.presets import preset as find_preset
from surefoot.config.settings import (
    GROUPS,
    RULES,
    TRPO,
    Critic,
    Network,
    OwnNetworks,
    Parallel,
    Rule,
    Settings,
    Train,
    check_kind,
)
from surefoot.config.validation import limits_of, shown
from surefoot.envs.registry import find_env
from surefoot.envs.source import EnvSource
from surefoot.errors import CheckpointError, ConfigError
from surefoot.jax_defaults import jax_defaults
from surefoot.parallel.ray_ranks import RayRanks
from surefoot.storage.lock import lock, unlock
from surefoot.storage.recorded_spec import record_spec
from surefoot.storage.run_directory import RunDirectory
from surefoot.training.callback import Callback, as_callback
from surefoot.training.loop import versions
from surefoot.training.on_ray import RankJob, train_on_ray
from surefoot.training.run import Run, begin, open_run
from surefoot.training.trainer import Resources, Trainer, connect


def choose_groups(
    env: str,
    rule: Rule | str | None,
    train: Train | None,
    network: Network | OwnNetworks | None,
    critic: Critic | None,
    *,
    preset: str = "auto",
    actions: FindActions | None = None,
    shared_only: bool = False,
) -> Groups:
    """The settings groups of a run: those given as they stand, the others from the preset.

    `actions` finds those of the environment, where the preset depends on them.

    Raises:
        ConfigError: for an unknown rule or preset, or an object of another kind.
    """
    if not isinstance(rule, str):
        check_kind("rule", rule, TRPO, *RULES.values())
    check_kind("train", train, Train)
    check_kind("network", network, Network, OwnNetworks)
    check_kind("critic", critic, Critic)
    usual = find_preset(
        env, rule or "trpo", preset or "none", actions=actions, shared_only=shared_only
    )
    return Groups(
        usual.rule if rule is None or isinstance(rule, str) else rule,
        usual.train if train is None else train,
        network if isinstance(network, Network) else usual.network,
        usual.critic if critic is None else critic,
    )


class Job(NamedTuple):
    """A run to train: its environment, settings, own networks, and directory."""

    env: Any
    source: EnvSource
    settings: Settings
    own: OwnNetworks = OwnNetworks()
    out: Path | None = None


def train(
    env: Any,
    rule: Rule | str | None = None,
    *,
    steps: int | None = None,
    seed: int | None = None,
    out: str | Path | None = None,
    preset: str = "auto",
    train: Train | None = None,
    network: Network | OwnNetworks | None = None,
    critic: Critic | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    parallel: Parallel = Parallel(),  # noqa: B008  (immutable)
    callback: Callback | Callable[[dict[str, Any]], Any] | None = None,
    **fields: Any,
) -> Run:
    """Train a policy.

    Settings that you give are taken as they stand; the others come from the preset.

    Args:
        env: an id (`CartPole-v1`, `module:id`, `module:factory`, `gymnax:ID`), a gymnasium.Env, a
            function that makes one, a VectorEnv, or a JaxEnv.
        rule: VPG, NPG, TRPO, PPOKL or PPO, or a name, such as "ppo"; TRPO by default.
        steps: environment steps, rounded up to whole iterations.
        seed: seed of every random number of the run.
        out: a new directory for settings, metrics and checkpoints; None keeps nothing.
        preset: auto (what is known to work on the environment), none (the library's defaults),
            plain, sb3, sb3-contrib or cleanrl.
        train: settings of the run.
        network: settings of the networks, or your own networks.
        critic: settings of the critic.
        env_kwargs: arguments for an environment named by its id.
        parallel: devices, processes and machines; several processes need a shared `out`.
        callback: a `Callback`, or a function of each row of metrics that stops the run by
            returning True.
        **fields: fields of `Train` to change, such as `num_envs=16`.

    Raises:
        ConfigError: before anything is built, for settings that are wrong or do not fit.
        EnvContractError, EnvCrashError: where the environment misbehaves.
        NotFiniteError: after `max_refusals` consecutive non-finite updates.
        StorageError: where `out` cannot be written.
        WorkerLostError, ReplicaError: where a process is lost, or its state differs.
        StoppedBySignal: after SIGINT or SIGTERM, with the checkpoint written.
    """
    with connect(parallel) as resources:
        source = find_env(env, env_kwargs or {})
        groups = choose_groups(
            source.env_id, rule, train, network, critic, preset=preset, actions=source.actions
        )
        fields |= {k: v for k, v in (("steps", steps), ("seed", seed)) if v is not None}
        changes, devices = {"train": fields}, resources.num_devices
        settings = settle(
            source.env_id, groups, changes=changes, env_kwargs=env_kwargs, devices=devices
        )
        own = network if isinstance(network, OwnNetworks) else OwnNetworks()
        job = Job(env, source, settings, own, whole_path(out))
        return train_job(job, resources, as_callback(callback))


def whole_path(out: str | Path | None) -> Path | None:
    """A directory's absolute path, before an environment can change the working directory."""
    return None if out is None else RunDirectory(out).path


@jax_defaults()
def train_job(job: Job, resources: Resources, callback: Callback) -> Run:
    """Train a run from its first iteration; errors as in `train`."""
    if resources.parallel.cluster == "ray":
        return _train_on_ray(job, resources, callback)
    placement, ranks = resources.place(job.settings), resources.ranks
    if ranks.count > 1:
        path = _check_ranks(job)
        if ranks.rank:
            return _train_beside_rank_0(job, resources, path, callback)
    if resources.env_workers is not None:
        _check_env_workers(job, resources)
    elsewhere = resources.env_workers is not None
    with ranks.opening(job.settings.to_dict(), job.out):
        run, envs = begin(job.settings, job.source, job.own, elsewhere=elsewhere)
        try:
            run = keep_in_directory(run, job, devices=placement.count)
        except BaseException:
            envs.close()
            raise
        return Trainer(run, envs, callback, placement, resources).train()


def keep_in_directory(run: Run, job: Job, *, devices: int = 1) -> Run:
    """A run that has not started, kept in the new directory `job.out`, if any.

    Raises:
        ConfigError: where a run or anything else is there already.
        StorageError: where it cannot be written.
    """
    if job.out is None:
        return run
    config = run.settings.to_dict() | {
        "env_from_python": not isinstance(job.env, str),
        "own_networks": job.own != OwnNetworks(),
        "versions": versions(),
        "devices": devices,
        # A JAX-native environment is not opened, and its states are part of the run's.
        "spec": None if run.learner.spec.jax_native else record_spec(run.learner.spec),
    }
    return replace(run, directory=RunDirectory.create(job.out, config))


def _check_ranks(job: Job) -> Path:
    """The directory of several ranks, which train JAX-native environments."""
    if job.source.jax_env is None:
        raise ConfigError(
            f"{job.settings.env} is stepped by Python: several ranks train JAX-native "
            "environments (gymnax:ID, a JaxEnv); --env-workers N steps others on many machines"
        )
    if job.out is None:
        raise ConfigError("several ranks need a directory for their run: out=DIR")
    return job.out


def _check_env_workers(job: Job, resources: Resources) -> None:
    """Refuse environments that actors cannot step, before anything is kept."""
    settings, workers = job.settings, resources.env_workers
    assert workers is not None
    if job.source.jax_env is not None or not isinstance(job.env, str):
        raise ConfigError(
            f"{settings.env}: env workers step Gymnasium environments that are named by id; "
            "a JAX-native one is spread by --devices or --cluster"
        )
    if job.own != OwnNetworks():
        raise ConfigError("env workers act with built networks, not with your own")
    if settings.train.vectorization != "auto":
        raise ConfigError(
            "env workers step their environments in one process each: leave out --vectorization",
            name="FLAG",
        )
    _check_max_envs(settings)
    workers.check(settings.train.num_envs)


def _check_max_envs(settings: Settings) -> None:
    if settings.train.max_envs:
        text = "env workers open environments of their own, and the run has a max_envs"
        raise ConfigError(f"{text} of {settings.train.max_envs}: leave out one of the two")


def _train_beside_rank_0(job: Job, resources: Resources, path: Path, callback: Callback) -> Run:
    """Train as another rank than 0, which opens the run and alone writes to it."""
    ranks, settings = resources.ranks, job.settings
    with ranks.opening(settings.to_dict(), path) as first:
        if first.get("iteration") == 0:
            run, envs = begin(settings, job.source, job.own)
        else:
            run, envs = open_run(path, env=job.env, own=job.own, settings=settings)
        if run.iteration != first.get("iteration", run.iteration):
            raise CheckpointError(
                f"rank {ranks.rank} found the run in {path} at iteration {run.iteration}, rank 0 "
                f"at {first['iteration']}: do all ranks see the same files?"
            )
        # It keeps the rows: all ranks must decide alike what is best so far, and in trouble.
        run = replace(run, directory=None)
        if "finished" in first:
            return run
        return Trainer(run, envs, callback, ranks.placement, resources).train()


@jax_defaults()
def resume(
    path: str | Path,
    *,
    env: Any = None,
    network: OwnNetworks | None = None,
    exact: bool = False,
    parallel: Parallel | None = None,
    callback: Callback | Callable[[dict[str, Any]], Any] | None = None,
) -> Run:
    """Continue a run from its newest good checkpoint.

    On the same versions it equals never having stopped, bit for bit, from any checkpoint of a
    JAX-native run and from a scheduled one of a host run.

    Args:
        path: the run's directory.
        env: the environment again, where it needs an import of your own.
        network: your own networks again, where the run has them.
        exact: refuse to continue from a checkpoint that is not exact.
        parallel: devices and processes; None takes as many devices as before.
        callback: as in `train`.

    Raises:
        CheckpointError: where there is no run, or no checkpoint to continue from.
        StorageError: where another process is writing to it.
    """
    before = RunDirectory(path).config.get("devices")
    usual = Parallel(devices=before if isinstance(before, int) and before >= 1 else 1)
    with connect(parallel or usual) as resources:
        return _resume(path, resources, as_callback(callback), env=env, own=network, exact=exact)


def _resume(
    path: str | Path,
    resources: Resources,
    callback: Callback,
    *,
    env: Any = None,
    own: OwnNetworks | None = None,
    exact: bool = False,
    settings: Settings | None = None,
) -> Run:
    """Continue a run, with `settings` in the place of its own if they are given."""
    directory = RunDirectory(path)
    config = directory.config  # raises if it is no run at all
    # Before a checkpoint is chosen: another process may still be writing newer ones.
    lock(directory.path)
    try:
        elsewhere = resources.env_workers is not None
        run, envs = open_run(
            path,
            env=env,
            own=own,
            exact=exact,
            settings=settings,
            elsewhere=elsewhere,
        )
        with contextlib.ExitStack() as undo:
            undo.callback(envs.close)
            if elsewhere:
                _check_max_envs(run.settings)
            if run.finished:
                if settings is not None:
                    rows = (row["iteration"] for row in directory.rows())
                    directory.change_settings(max([run.iteration, *rows]), settings)
                return run
            placement = resources.place(run.settings)
            _warn_of_changes(config, directory, placement.count)
            _warn_of_schedules(config.get("train"), run)
            # Rows behind the checkpoint are of iterations that are about to be done again. Only now
            # is it known that the stored arrays fit the new settings.
            run = replace(run, rows=directory.go_on(run.iteration, run.env_steps, settings))
            undo.pop_all()  # from here on the trainer closes them
        return Trainer(run, envs, callback, placement, resources).train()
    finally:
        unlock(directory.path)


def _warn_of_changes(config: Mapping[str, Any], directory: RunDirectory, devices: int) -> None:
    """Warn where a run continues with other versions, or on other devices, than it began with."""
    stored = config.get("versions")
    before = {"devices": config.get("devices")} | (stored if isinstance(stored, dict) else {})
    now = {"devices": devices, **versions()}
    changes = [f"{name} {before.get(name)} to {now[name]}" for name in now
               if before.get(name) != now[name]]  # fmt: skip
    if changes:
        warnings.warn(
            f"{directory.path} continues with other versions ({', '.join(changes)}): it need not "
            "equal a run that never stopped",
            stacklevel=2,
        )


def _warn_of_schedules(before: Any, run: Run) -> None:
    """Warn where another number of steps moves what falls over the run, such as a step size."""
    train, rule = run.settings.train, run.settings.rule
    fraction, name = rule.final_fraction, "max_kl" if hasattr(rule, "max_kl") else "learning_rate"
    steps = before.get("steps") if isinstance(before, dict) else None
    if not isinstance(steps, int) or steps == train.steps or fraction == 1.0:
        return
    was, now = (
        getattr(rule, name) * (1 - (1 - fraction) * min(run.env_steps / end, 1.0))
        for end in (steps, train.steps)
    )
    warnings.warn(
        f"{name} falls over the whole run: as it now ends at {train.steps:,} steps and not at "
        f"{steps:,}, {name} goes on at {now:.2g} where it was {was:.2g}",
        stacklevel=2,
    )


@jax_defaults()
def train_or_resume(
    job: Job, resources: Resources, callback: Callback, *, override: Sequence[str] = ()
) -> Run:
    """Continue the run at `job.out` if it has the same settings, else train one there.

    A run that was killed before its first checkpoint starts over. Settings named in `override`, as
    `steps` or `train.steps`, may differ: the run continues with the new ones, which are written to
    its `config.json`, beside the old ones of the iterations done.

    Raises:
        ConfigError: where the run there has other settings; they are listed.
        CheckpointError: where its arrays do not fit the new ones.
    """
    if resources.parallel.cluster == "ray":
        return _train_on_ray(job, resources, callback, override)
    if resources.ranks.rank:
        return train_job(job, resources, callback)  # it follows rank 0
    assert job.out is not None
    with resources.ranks.opening(job.settings.to_dict(), job.out):
        directory = RunDirectory(job.out)
        if not directory.has("config.json"):
            return train_job(job, resources, callback)
        changed = _changed_settings(directory, job.settings, override)
        if not directory.checkpoints():
            directory.clear()
            return train_job(job, resources, callback)
        _refuse_initial(job.settings, changed)
        settings = job.settings if changed else None
        return _resume(job.out, resources, callback, env=job.env, own=job.own, settings=settings)


def _changed_settings(
    directory: RunDirectory, settings: Settings, override: Sequence[str]
) -> list[str]:
    """The fields, as `train.gamma`, in which a run has other settings; all of them may differ.

    Raises:
        ConfigError: where others differ.
    """
    stored = directory.history.now.to_dict()
    found = differences(stored, settings.to_dict())
    refused = [
        f"{name} is {shown(there)} there and {shown(here)} here"
        for name, (there, here) in found.items()
        # A key is a field, a group, or all of `env_kwargs`. The dots keep `steps` from matching
        # `num_steps`.
        if not any(f".{key}." in f".{name}." for key in override)
    ]
    if refused:
        raise ConfigError(
            f"{directory.path} holds another run: {'; '.join(refused[:5])}; name those that may "
            "differ with --override KEY.."
        )
    return list(found)


def _refuse_initial(settings: Settings, changed: Sequence[str]) -> None:
    """Refuse to change what only decides how a run begins, where one continues.

    Raises:
        ConfigError: because its checkpoint has the old effect.
    """
    for name in changed:
        group, _, key = name.partition(".")
        limits = limits_of(getattr(settings, group)).get(key) if group in GROUPS else None
        if limits is not None and limits.initial:
            raise ConfigError(
                f"--override {key}: {name} has its effect at the start of a run alone; leave it as "
                "it was, or train in another --out"
            )


def _train_on_ray(
    job: Job, resources: Resources, callback: Callback, override: Sequence[str] | None = None
) -> Run:
    """Train as several ranks on Ray."""
    parallel, out = resources.parallel, _check_ranks(job).absolute()
    if override is None and (out / "config.json").exists():
        raise ConfigError(f"{out} holds a run: continue it with --resume auto, or name another")
    assert resources.ray is not None
    ranks = RayRanks(resources.ray, parallel, out)
    rank_job = RankJob(job.env, job.settings, out, parallel.devices, tuple(override or ()))
    return train_on_ray(rank_job, ranks, train_rank, callback)


def train_rank(job: RankJob) -> None:
    """Train as one of several ranks, which connect first."""
    settings = job.settings
    with connect(Parallel(devices=job.devices, cluster="auto")) as resources:
        source = find_env(job.env, settings.env_kwargs if isinstance(job.env, str) else {})
        train_or_resume(
            Job(job.env, source, settings, out=job.out),
            resources,
            Callback(),
            override=job.override,
        )
