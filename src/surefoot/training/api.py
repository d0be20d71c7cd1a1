"""Train a policy, go on with a run, or do whichever of the two a directory calls for."""

import contextlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from surefoot.config.presets import Groups, differing_settings, read_settings, settle
from surefoot.config.presets import preset as find_preset
from surefoot.config.settings import (
    RULES,
    TRPO,
    Critic,
    Network,
    OwnNetworks,
    Rule,
    Settings,
    Train,
    check_kind,
)
from surefoot.envs.registry import find_env
from surefoot.envs.source import EnvSource, OpenEnvs
from surefoot.errors import CheckpointError, ConfigError
from surefoot.parallel.env_actors import EnvActors, EnvWorkers
from surefoot.parallel.mesh import ONE, Placement, check_blocks, claim_devices, divide_cpu, place
from surefoot.parallel.ranks import ALONE, Alone, Ranks
from surefoot.parallel.rendezvous import join_cluster
from surefoot.storage.checkpoint import dump
from surefoot.storage.lock import lock, unlock
from surefoot.storage.run_directory import RunDirectory
from surefoot.training.env_share import open_share
from surefoot.training.loop import Listener, drive, versions
from surefoot.training.on_ray import RankJob
from surefoot.training.rollout_host import assemble
from surefoot.training.run import Run, begin, open_run, recorded_spaces


def choose_groups(
    env: str,
    rule: Rule | str | None,
    train: Train | None,
    network: Network | OwnNetworks | None,
    critic: Critic | None,
    *,
    preset: str = "auto",
    shared_only: bool = False,
) -> Groups:
    """The settings groups of a run: those given as they stand, the others from the preset.

    Raises:
        ConfigError: for an unknown rule or preset, or an object of another kind.
    """
    if not isinstance(rule, str):
        check_kind("rule", rule, TRPO, *RULES.values())
    check_kind("train", train, Train)
    check_kind("network", network, Network, OwnNetworks)
    check_kind("critic", critic, Critic)
    usual = find_preset(env, rule or "trpo", preset, shared_only=shared_only)
    return Groups(
        usual.rule if rule is None or isinstance(rule, str) else rule,
        usual.train if train is None else train,
        network if isinstance(network, Network) else usual.network,
        usual.critic if critic is None else critic,
    )


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
    changes: Mapping[str, Any] | None = None,
    devices: int = 1,
    ranks: Alone | Ranks = ALONE,
    env_workers: EnvWorkers | None = None,
    on_update: Callable[[dict[str, Any]], Any] | None = None,
    listener: Listener | None = None,
    **fields: Any,
) -> Run:
    """Train a policy.

    Args:
        env: an id (`CartPole-v1`, `module:id`, `module:factory`, `gymnax:ID`), a gymnasium.Env, a
            function that makes one, a VectorEnv, or a JaxEnv.
        rule: VPG, NPG, TRPO, PPOKL or PPO, with the settings that matter to you, or a name alone,
            such as "ppo"; TRPO by default.
        steps: environment steps, rounded up to whole iterations.
        seed: of every random number of the run.
        out: a new directory for settings, metrics and checkpoints; None keeps nothing.
        preset: where settings come from that are not given: auto (what is known to work on the
            environment), none (the library's defaults), plain, sb3, sb3-contrib or cleanrl.
        train: the run's settings, taken as they stand.
        network: the networks' settings, taken as they stand, or your own networks.
        critic: the critic's settings, taken as they stand.
        env_kwargs: arguments for an environment named by its id.
        changes: fields of settings groups to change, by group, as in a configuration file.
        devices: over which environments and rows are spread, a block of them or more on each; the
            numbers depend on `Train.blocks`, which is this where it is not set. A CPU is divided
            into as many as its cores, where JAX has not been used before.
        ranks: the processes that train it together, each with so many devices, from
            `surefoot.parallel.rendezvous.join_cluster()` before anything else; `out` is then
            needed, on files that all of them see, and `on_update` must say the same on each.
        env_workers: who steps Gymnasium's environments, named by their id, in place of this
            process: actors of Ray, from `surefoot.parallel.ray.connected`.
        on_update: called with each row of metrics; returning True stops the run.
        listener: a live display.
        **fields: fields of `Train` to change, such as `num_envs=16`.

    Returns:
        The run, with its policy and its rows of metrics.

    Raises:
        ConfigError: before anything is built, for settings that are wrong or do not fit.
        EnvContractError, EnvCrashError: where the environment misbehaves.
        NotFiniteError: after `max_refusals` updates in a row that were not finite.
        StorageError: where `out` cannot be written.
        WorkerLostError: where another rank is gone, or more actors than may be.
        ReplicaError: where ranks no longer have the same state.
        StoppedBySignal: after SIGINT or SIGTERM, with the checkpoint written.
    """
    divide_cpu(devices)
    source = find_env(env, env_kwargs or {})
    groups = choose_groups(source.env_id, rule, train, network, critic, preset=preset)
    own = network if isinstance(network, OwnNetworks) else OwnNetworks()
    fields |= {k: v for k, v in (("steps", steps), ("seed", seed)) if v is not None}
    changes = dict(changes or {})
    changes["train"] = {**changes.get("train", {}), **fields}
    settings = settle(
        source.env_id,
        groups,
        changes=changes,
        env_kwargs=env_kwargs,
        devices=devices * ranks.count,
    )
    placement = _placed(settings, devices, ranks)
    if isinstance(ranks, Ranks):
        path = _check_ranks(source, out)
        if ranks.rank:
            return _follow(ranks, settings, env, own, path, on_update, listener)
    if env_workers is not None:
        _check_env_workers(env_workers, settings, source, own, by_id=isinstance(env, str))
    with ranks.opening(settings.to_dict(), None if out is None else Path(out)):
        local = not isinstance(env, str)
        elsewhere = env_workers is not None
        run, opened = start(
            settings, source, own, out,
            env_from_python=local, placement=placement, ranks=ranks, elsewhere=elsewhere,
        )  # fmt: skip
        return _drive(run, opened, env_workers, listener, on_update)


def _check_ranks(source: EnvSource, out: str | Path | None) -> Path:
    """The directory of several ranks, which train JAX-native environments."""
    if source.jax_env is None:
        raise ConfigError(
            f"{source.env_id} is stepped by Python: several ranks train JAX-native environments "
            "(gymnax:ID, a JaxEnv); --env-workers N steps others on many machines"
        )
    if out is None:
        raise ConfigError("several ranks need a directory for their run: out=DIR")
    return Path(out)


def _check_env_workers(
    env_workers: EnvWorkers, settings: Settings, source: EnvSource, own: OwnNetworks, *, by_id: bool
) -> None:
    """Refuse what actors cannot step, before anything is kept."""
    if source.jax_env is not None or not by_id:
        raise ConfigError(
            f"{source.env_id}: env workers step Gymnasium's environments that are named by id; "
            "a JAX-native one is spread by --devices or --cluster"
        )
    if own != OwnNetworks():
        raise ConfigError("env workers act with built networks, not with your own")
    if settings.train.vectorization != "auto":
        raise ConfigError(
            "env workers step their environments in one process each: leave out --vectorization",
            name="FLAG",
        )
    env_workers.check(settings.train.num_envs)


def _drive(
    run: Run,
    opened: OpenEnvs,
    env_workers: EnvWorkers | None,
    listener: Listener | None,
    on_update: Callable[[dict[str, Any]], Any] | None,
) -> Run:
    """Run the loop, with environments that are stepped elsewhere where there are such."""
    if env_workers is None:
        return drive(run, opened, listener, on_update)
    try:
        train = run.settings.train
        share, whole = partial(open_share, run.settings), partial(assemble, train=train)
        run.actors = actors = EnvActors(env_workers, train.num_envs, share, whole)
    except BaseException:
        opened.abandon()
        raise
    try:
        return drive(run, opened, listener, on_update)
    finally:
        run.actors = None
        actors.close()


def _placed(settings: Settings, devices: int, ranks: Alone | Ranks) -> Placement:
    """The devices of a run."""
    claim_devices(devices)
    if isinstance(ranks, Ranks):
        check_blocks(settings, ranks.placement.count)
        return ranks.placement
    return place(settings, devices)


def _follow(
    ranks: Ranks,
    settings: Settings,
    env: Any,
    own: OwnNetworks,
    path: Path,
    on_update: Callable[[dict[str, Any]], Any] | None,
    listener: Listener | None,
) -> Run:
    """Train with rank 0, which has opened the run and alone writes to it."""
    said = ranks.await_opening(settings.to_dict(), path)
    with contextlib.nullcontext() if "finished" in said else ranks.opening_too():
        if said.get("iteration") == 0:
            run, opened = begin(settings, find_env(env, settings.env_kwargs), own)
        else:
            how = {"env": env, "own": own, "settings": settings}
            run, opened = open_run(path, to_train=True, **how)
        if run.iteration != said.get("iteration", run.iteration):
            raise CheckpointError(
                f"rank {ranks.rank} found the run in {path} at iteration {run.iteration}, rank 0 "
                f"at {said['iteration']}: do all ranks see the same files?"
            )
    # It keeps the rows: what is the best so far, and in trouble, is to be decided alike.
    run.directory = None
    if "finished" in said:
        ranks.leave()
        return run
    run.placement, run.ranks = ranks.placement, ranks
    return drive(run, opened, listener, on_update)


def start(
    settings: Settings,
    source: EnvSource,
    own: OwnNetworks,
    out: str | Path | None,
    *,
    env_from_python: bool,
    placement: Placement = ONE,
    ranks: Alone | Ranks = ALONE,
    elsewhere: bool = False,
) -> tuple[Run, OpenEnvs]:
    """A run at its first iteration, in a new directory if one is named, and its environments."""
    run, opened = begin(settings, source, own, elsewhere=elsewhere)
    run.placement, run.ranks = placement, ranks
    if out is not None:
        try:
            keep_in(run, out, env_from_python=env_from_python, own=own)
        except BaseException:
            opened.abandon()
            raise
    return run, opened


def keep_in(run: Run, out: str | Path, *, env_from_python: bool, own: OwnNetworks) -> None:
    """Give a run that has not started a new directory.

    Raises:
        ConfigError: where a run or anything else is there already.
        StorageError: where it cannot be written.
    """
    config = run.settings.to_dict() | {
        "env_from_python": env_from_python,
        "own_networks": own != OwnNetworks(),
        "versions": versions(),
        "devices": run.placement.count,
        **recorded_spaces(run),
    }
    run.directory = RunDirectory.create(Path(out), config)


def resume(
    path: str | Path,
    *,
    env: Any = None,
    network: OwnNetworks | None = None,
    exact: bool = False,
    devices: int | None = None,
    env_workers: EnvWorkers | None = None,
    on_update: Callable[[dict[str, Any]], Any] | None = None,
    listener: Listener | None = None,
) -> Run:
    """Go on with a run from its newest good checkpoint.

    On the same versions it equals never having stopped, bit for bit, from any checkpoint of a
    JAX-native run and from a scheduled one of a host run; `exact` insists on such a one. It goes
    on on as many `devices` as before, where nothing else is said.

    Raises:
        CheckpointError: where there is no run, or no checkpoint to go on from.
        StorageError: where another process is at it.
    """
    how: dict[str, Any] = {"devices": devices, "env_workers": env_workers}
    how |= {"on_update": on_update, "listener": listener}
    return _go_on(path, None, env=env, own=network, exact=exact, **how)


def _go_on(
    path: str | Path,
    settings: Settings | None,
    *,
    env: Any = None,
    own: OwnNetworks | None = None,
    exact: bool = False,
    devices: int | None = None,
    ranks: Alone | Ranks = ALONE,
    env_workers: EnvWorkers | None = None,
    on_update: Callable[[dict[str, Any]], Any] | None = None,
    listener: Listener | None = None,
) -> Run:
    """Go on with a run, with settings in the place of its own if they are given."""
    directory = RunDirectory(Path(path))
    config = directory.config  # which says whether it is a run at all
    before = _whole_number(config.get("devices"))
    devices = before if devices is None else devices
    divide_cpu(devices)
    lock(directory.path)
    try:
        how = {"env": env, "own": own, "exact": exact, "settings": settings}
        elsewhere = env_workers is not None
        run, opened = open_run(path, to_train=True, elsewhere=elsewhere, **how)
        with contextlib.ExitStack() as undo:
            undo.callback(opened.close)
            if settings is not None:
                directory.write("config.json", dump(config | settings.to_dict()))
            if run.finished:
                return run
            run.placement, run.ranks = _placed(run.settings, devices, ranks), ranks
            _tell_changes(directory, {"devices": before}, {"devices": run.placement.count})
            run.rows = directory.trim(run.iteration, run.env_steps)
            undo.pop_all()  # from here on they are closed by the loop
        return _drive(run, opened, env_workers, listener, on_update)
    finally:
        unlock(directory.path)


def _whole_number(value: Any) -> int:
    """A number of devices, out of a file that may hold anything."""
    return value if isinstance(value, int) and value >= 1 else 1


def _tell_changes(directory: RunDirectory, began: Any, now: dict[str, Any]) -> None:
    """Warn where a run goes on under other versions, or on other devices, than it began with."""
    before = directory.config.get("versions")
    began = began | (before if isinstance(before, dict) else {})
    now = now | versions()
    others = [
        f"{name} {began.get(name)} to {now[name]}" for name in now if began.get(name) != now[name]
    ]
    if others:
        warnings.warn(
            f"{directory.path} goes on under other versions ({', '.join(others)}): it need not "
            "equal a run that never stopped",
            stacklevel=2,
        )


def train_or_resume(
    path: str | Path,
    settings: Settings,
    start: Callable[[], Run],
    *,
    env: Any = None,
    override: Sequence[str] = (),
    devices: int = 1,
    ranks: Alone | Ranks = ALONE,
    env_workers: EnvWorkers | None = None,
    listener: Listener | None = None,
) -> Run:
    """Go on with the run at `path` where it matches `settings`, else `start` one there.

    A matching run that was killed before its first checkpoint starts over. Settings named in
    `override`, as `steps` or `train.steps`, may differ: the run goes on with the new ones, which
    its `config.json` has from then on.

    Raises:
        ConfigError: where the run there has other settings; they are listed.
        CheckpointError: where its arrays do not fit the new ones.
    """
    if isinstance(ranks, Ranks) and ranks.rank:
        return start()  # it follows rank 0, whatever that finds there
    with ranks.opening(settings.to_dict(), Path(path)):
        how: dict[str, Any] = {"env": env, "devices": devices, "listener": listener}
        how |= {"ranks": ranks, "env_workers": env_workers}
        return _match(RunDirectory(Path(path)), settings, start, override, how)


def train_rank(job: RankJob) -> None:
    """Train as one of several ranks, which connect first."""
    settings = job.settings
    ranks = join_cluster(job.devices)
    start = partial(
        train,
        job.env,
        settings.rule,
        out=job.out,
        train=settings.train,
        network=settings.network,
        critic=settings.critic,
        env_kwargs=settings.env_kwargs,
        devices=job.devices,
        ranks=ranks,
    )
    how: dict[str, Any] = {"env": job.env, "devices": job.devices, "ranks": ranks}
    train_or_resume(job.out, settings, start, override=job.override, **how)


def _match(
    directory: RunDirectory,
    settings: Settings,
    start: Callable[[], Run],
    override: Sequence[str],
    how: dict[str, Any],
) -> Run:
    """Go on with the run in a directory where it matches, else `start` one."""
    path, file = directory.path, directory.path / "config.json"
    if not file.exists():
        return start()
    # With its defaults filled in, which a version before this one may not have had.
    there = read_settings(directory.config, file).to_dict()
    differences = differing_settings(there, settings)
    allowed = {name for name in differences for key in override if f".{name}".endswith(f".{key}")}
    if refused := [said for name, said in differences.items() if name not in allowed]:
        raise ConfigError(
            f"{path} holds another run: {'; '.join(refused[:5])}; those that may differ are named "
            "by --override KEY.."
        )
    if not directory.checkpoints():
        directory.clear()
        return start()
    changed = settings if differences else None
    return _go_on(path, changed, **how)
