"""`train`, `resume` and `evaluate`: from their parsed options to their exit code."""

import argparse
import json
import shlex
import tomllib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from surefoot.cli.commands.common import emit, env_flag, parse_env_kwargs
from surefoot.cli.commands.scaling import check_scale, env_workers, on_ray, ranks_of
from surefoot.cli.flags import given, rule_settings
from surefoot.config.presets import known_rule
from surefoot.config.settings import Train
from surefoot.config.validation import limits_of
from surefoot.errors import CheckpointError, ConfigError
from surefoot.storage.names import folder_name


def _tables(path: str | None) -> dict[str, Any]:
    """A configuration file as tables; nothing in it is evaluated or imported."""
    if path is None:
        return {}
    file = Path(path)
    try:
        data = file.read_bytes()
        tables = json.loads(data) if file.suffix == ".json" else tomllib.loads(data.decode())
    except OSError as fault:
        raise ConfigError(f"--config {path}: {fault.strerror}") from fault
    except ValueError as fault:
        raise ConfigError(f"--config {path}: {fault}") from fault
    if not isinstance(tables, dict):
        raise ConfigError(f"--config {path} is not a set of tables")
    for name in ("rule", "env_kwargs"):
        value = tables.get(name, {})
        if not isinstance(value, dict):
            hint = f"; a rule is named by rule.name = {json.dumps(value)}" * (name == "rule")
            raise ConfigError(f"--config {path}: {name} must be a table, got {value!r}{hint}")
    return tables


def _free_directory(env: str, rule: str, seed: int) -> Path:
    """`runs/ENV/RULE-seedN`, numbered on where it is used."""
    base = Path("runs") / folder_name(env) / f"{rule}-seed{seed}"
    candidate, count = base, 1
    while candidate.exists():
        count += 1
        candidate = base.with_name(f"{base.name}-{count}")
    return candidate


class _Listener:
    """The display or the JSON lines of a run, and its outside loggers."""

    def __init__(self, options: argparse.Namespace):
        from surefoot.cli.progress import Progress

        self._options = options
        self._progress = None if options.json else Progress()
        self._loggers: list[Any] = []
        self.began = False

    def started(self, run: Any, plan: Any) -> None:
        """Open the loggers and the display."""
        self.began = True
        from surefoot.storage.loggers import tensorboard_logger, wandb_logger

        if self._options.tensorboard:
            self._loggers.append(tensorboard_logger(run.directory.path))
        if self._options.wandb:
            self._loggers.append(wandb_logger(run.directory, self._options.wandb))
        if self._progress:
            self._progress.started(run, plan)
        else:
            record = {"event": "start", "run": str(run.directory.path), **plan._asdict()}
            emit(record | {"settings": run.settings.to_dict()})

    def compiling(self, what: str) -> None:
        """Show that a program is being built."""
        if self._progress:
            self._progress.compiling(what)

    def row(self, row: Mapping[str, Any]) -> None:
        """Show and log one iteration."""
        if self._progress:
            self._progress.row(row)
        else:
            emit({"event": "row", **row})
        for logger in self._loggers:
            logger.row(row)

    def finished(self, run: Any) -> None:
        """Close everything."""
        if self._progress:
            self._progress.finished(run)
        for logger in self._loggers:
            logger.close()


def train_command(options: argparse.Namespace) -> int:
    """Train a policy, then play it."""
    config = _tables(options.config)
    named = config.get("rule", {}).get("name", "trpo")
    rule_name = known_rule(options.rule or str(named))
    flags = {group: given(options, group) for group in ("train", "network", "critic")}
    flags["rule"] = rule_settings(options, rule_name)
    kwargs = parse_env_kwargs(options.env_kwargs) or config.get("env_kwargs", {})
    preset = options.preset or str(config.get("preset", "auto"))

    from surefoot.config.presets import preset as find_preset
    from surefoot.config.presets import settle
    from surefoot.training.api import train as start
    from surefoot.training.api import train_or_resume

    check_scale(options)
    ranks = ranks_of(options)
    changes = _merged({key: config[key] for key in config if key not in _FROZEN}, flags)
    settings = settle(
        options.env,
        find_preset(options.env, rule_name, preset),
        changes=changes,
        env_kwargs=kwargs,
        devices=options.devices * (options.workers or ranks.count),
    )
    if options.resume and options.out is None:
        raise ConfigError("--resume auto needs --out DIR, the directory to go on in")
    if options.override and not options.resume:
        raise ConfigError("--override goes with --resume auto")
    out = Path(options.out) if options.out else None
    out = out or _free_directory(options.env, rule_name, settings.train.seed)
    listener = _Listener(options) if ranks.rank == 0 else None

    if options.cluster == "ray":
        assert listener is not None
        return _finish(on_ray(options, settings, out, listener), options, listener)

    def begin(**how: Any) -> Any:
        return start(
            options.env,
            rule_name,
            out=out,
            preset=preset,
            env_kwargs=kwargs,
            changes=changes,
            **how,
        )

    with env_workers(options) as elsewhere:
        how = {"devices": options.devices, "ranks": ranks, "env_workers": elsewhere}
        how |= {"listener": listener}
        if options.resume:
            begin_so = partial(begin, **how)
            how |= {"override": options.override, "env": options.env}
            run = train_or_resume(out, settings, begin_so, **how)
        else:
            run = begin(**how)
    if listener is None:
        return 0  # rank 0 speaks for all
    return _finish(run, options, listener)


def _merged(tables: dict[str, Any], flags: dict[str, Any]) -> dict[str, Any]:
    """Fields to change by group: flags over those of a configuration file."""
    for group, given_flags in flags.items():
        there = tables.get(group, {})
        if given_flags and isinstance(there, dict):  # anything else is refused by `settle`
            tables[group] = {**there, **given_flags}
    return tables


_FROZEN = (
    "env",
    "env_kwargs",
    "preset",
    "env_from_python",
    "own_networks",
    "observation_space",
    "action_space",
    "versions",
    "devices",
)
"""Keys of a run's `config.json` that are no settings, so that it serves as a --config too."""


def resume_command(options: argparse.Namespace) -> int:
    """Go on with a run, then play it."""
    from surefoot.training.api import resume

    check_scale(options)
    listener = _Listener(options)
    how = {"env": options.env, "exact": options.exact, "devices": options.devices}
    with env_workers(options) as elsewhere:
        run = resume(options.path, env_workers=elsewhere, listener=listener, **how)
    return _finish(run, options, listener)


def _finish(run: Any, options: argparse.Namespace, listener: _Listener) -> int:
    """Evaluate what was learned, and say how to go on from here."""
    from surefoot.cli.progress import say

    if not listener.began:
        say(f"{run.directory.path} was complete already, at iteration {run.iteration}")
    result = run.evaluate(run.settings.train.eval_episodes)
    path = run.directory.path
    if options.json:
        emit({"event": "end", "run": str(path), "evaluation": result})
        return 0
    say(f"final policy: {_told(result, 'fresh deterministic')}")
    again = f"surefoot evaluate {shlex.quote(str(path))}{env_flag(run.settings.env)}"
    say(f"kept in {path}; play it again with: {again}")
    return 0


def evaluate_command(options: argparse.Namespace) -> int:
    """Play whole episodes with a trained policy."""
    if options.episodes < 1:
        raise ConfigError(f"--episodes must be at least 1, got {options.episodes}")
    seeds = limits_of(Train)["seed"]
    if options.seed is not None and not seeds.allow(options.seed):
        raise ConfigError(f"--seed must be {seeds.describe()}, got {options.seed}")
    from surefoot.storage.run_directory import RunDirectory
    from surefoot.training.run import load

    path = Path(options.path)
    evaluated = bool(RunDirectory(path).checkpoints("best"))
    if options.best and (path / "config.json").exists() and not evaluated:
        raise CheckpointError(
            f"{options.path} was trained without evaluations, so it has no best one: leave out "
            "--best, or train with --eval-every STEPS"
        )
    run = load(options.path, env=options.env, best=options.best)
    result = run.evaluate(options.episodes, stochastic=options.stochastic, seed=options.seed)
    if options.json:
        emit(result)
        return 0
    print(_told(result, "sampled" if options.stochastic else "deterministic"))
    return 0


def _told(result: Mapping[str, Any], kind: str) -> str:
    """An evaluation in one line; a single episode has no spread and no interval."""
    mean, length = f"{result['return_mean']:.2f}", f"{result['length_mean']:.1f}"
    if result["return_ci95"] is None:
        return f"return {mean} in one {kind} episode of length {length}; one gives no interval"
    low, high = result["return_ci95"]
    return (
        f"return {mean} ± {result['return_std']:.2f} over {result['episodes']} {kind} episodes, "
        f"mean length {length}; 95 % interval of the mean {low:.2f} to {high:.2f}"
    )
