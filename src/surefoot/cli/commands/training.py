"""`train`, `resume` and `evaluate`: from their parsed options to their exit code."""

import argparse
import json
import shlex
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from surefoot.cli.commands.common import (
    check_seed,
    emit,
    parse_env_kwargs,
    require_at_least,
    say,
)
from surefoot.cli.flags import (
    PRESET_NOTE,
    add_cluster_flags,
    add_env_worker_flags,
    add_run,
    add_settings,
    given,
    parallel_of,
    rule_settings,
    whole,
)
from surefoot.config.peers import BY_ACTIONS
from surefoot.config.presets import NAMES, known_rule, preset, settle
from surefoot.config.settings import RULES
from surefoot.envs.env_id import env_flag
from surefoot.errors import CheckpointError, ConfigError
from surefoot.training.callback import Callback


def add_train_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `surefoot train`."""
    parser.usage = "surefoot train ENV [RULE] [FLAGS]"
    parser.epilog = f"{PRESET_NOTE} A run prints the settings that differ from them."
    add = parser.add_argument
    add("env", help="CartPole-v1, my_module:MyEnv-v0, my_module:factory, gymnax:ID")
    add("rule", nargs="?", default=None, help=f"{', '.join(RULES)} (default trpo)")
    add("--out", metavar="DIR", help="run directory (default runs/ENV/RULE-seedN)")
    add("--preset", default=None, help=f"{', '.join(NAMES)} (default auto)")
    add("--config", metavar="FILE", help="settings from a TOML or JSON file")
    add("--env-kwargs", metavar="JSON", help="arguments of the environment")
    add("--resume", choices=["auto"], help="continue a matching run in --out, or start one")
    add("--override", nargs="+", default=(), metavar="KEY", help="with --resume: may differ there")
    add_cluster_flags(parser)
    add_env_worker_flags(parser)
    _add_logging_flags(parser)
    add_settings(parser)


def add_resume_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `surefoot resume`."""
    add_run(parser)
    add = parser.add_argument
    add("--exact", action="store_true", help="only from a scheduled checkpoint")
    add("--devices", type=whole, metavar="N", help="number of devices (default: as before)")
    add_env_worker_flags(parser)
    _add_logging_flags(parser)


def add_evaluate_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `surefoot evaluate`."""
    add_run(parser, best=True)
    parser.add_argument("--episodes", type=whole, default=20, help="number (default 20)")
    parser.add_argument("--stochastic", action="store_true", help="sample actions")
    parser.add_argument("--seed", type=whole, help="seed of the episodes")
    parser.add_argument(
        "--eval-max-steps",
        type=whole,
        metavar="N",
        help="environment steps of all episodes together; those that go on are cut (default: "
        "the time limit of each, or without one 10,000 an episode)",
    )


def _add_logging_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tensorboard", action="store_true", help="event files in the run")
    parser.add_argument("--wandb", metavar="PROJECT", help="log to Weights & Biases")


def settings_file(path: str | None) -> dict[str, Any]:
    """A configuration file as tables; nothing in it is evaluated or imported."""
    if path is None:
        return {}
    file = Path(path)
    try:
        data = file.read_bytes()
        # A run's own config.json serves as well.
        text = data.decode("utf-8-sig")
        tables = json.loads(text) if file.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--config {path}: {error}") from error
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
    # Imported late: it imports JAX, for which help does not wait.
    from surefoot.storage.run_directory import folder_name

    base = Path("runs") / folder_name(env) / f"{rule}-seed{seed}"
    candidate, count = base, 1
    # A run is continued by `resume` or --resume auto only, never by accident.
    while candidate.exists():
        count += 1
        candidate = base.with_name(f"{base.name}-{count}")
    return candidate


class _Display(Callback):
    """The display or the JSON lines of a run, and its loggers."""

    def __init__(self, options: argparse.Namespace):
        from surefoot.cli.progress import Progress

        self._options = options
        self._progress = Callback() if options.json else Progress()
        self._loggers: list[Any] = []
        self.began = False

    def on_start(self, run: Any, plan: Any) -> None:
        """Open the loggers and the display."""
        self.began = True
        from surefoot.storage.loggers import tensorboard_logger, wandb_logger

        if self._options.tensorboard:
            self._loggers.append(tensorboard_logger(run.directory.path, run.env_steps))
        if self._options.wandb:
            self._loggers.append(wandb_logger(run.directory, self._options.wandb))
        self._progress.on_start(run, plan)
        if self._options.json:
            record = {"event": "start", "run": str(run.directory.path), **plan._asdict()}
            emit(record | {"settings": run.settings.to_dict()})

    def on_compile(self, what: str) -> None:
        """Show that a program is being compiled."""
        self._progress.on_compile(what)

    def on_rollout(self, done: int, steps: int) -> None:
        """Show how far a rollout is."""
        if self._progress:
            self._progress.on_rollout(done, steps)

    def on_stop(self, signal: str) -> None:
        """Answer a signal at once; what it waits for may take long."""
        say(f"surefoot: {signal}: stopping and saving; send it once more to stop at once")

    def on_row(self, run: Any, row: dict[str, Any]) -> None:
        """Show and log one iteration."""
        self._progress.on_row(run, row)
        if self._options.json:
            emit({"event": "row", **row})
        for logger in self._loggers:
            logger.row(row)

    def on_end(self, run: Any) -> None:
        """Close everything."""
        self._progress.on_end(run)
        for logger in self._loggers:
            logger.close()


def train_command(options: argparse.Namespace) -> int:
    """Train a policy on an environment."""
    config = settings_file(options.config)
    named = config.get("rule", {}).get("name", "trpo")
    rule = known_rule(options.rule or str(named))
    flags = {group: given(options, group) for group in ("train", "network", "critic")}
    flags["rule"] = rule_settings(options, rule)
    changes = _merged({key: config[key] for key in config if key not in _FROZEN}, flags)
    kwargs = parse_env_kwargs(options.env_kwargs) or config.get("env_kwargs", {})
    name = options.preset or str(config.get("preset", "auto"))
    parallel = parallel_of(options)
    # Only to refuse wrong settings before processes connect; it is done again with the devices
    # that they have. What depends on the actions has to wait for the environment.
    groups = preset(options.env, rule, name, actions=lambda: ("Box", 1))
    if name not in BY_ACTIONS:
        settle(options.env, groups, changes=changes, devices=parallel.devices)
    if options.resume and options.out is None:
        raise ConfigError("--resume auto needs --out DIR, the directory to continue in")
    if options.override and not options.resume:
        raise ConfigError("--override needs --resume auto")
    if parallel.cluster == "auto" and options.out is None:
        raise ConfigError("--cluster auto needs --out DIR, on a file system that all ranks share")

    # Imported late: help and refusals do not wait for JAX.
    from surefoot.envs.registry import find_env
    from surefoot.training.api import Job, train_job, train_or_resume, whole_path
    from surefoot.training.trainer import connect

    with connect(parallel) as resources:
        devices = resources.num_devices
        source = find_env(options.env, kwargs)
        groups = preset(options.env, rule, name, actions=source.actions)
        settings = settle(options.env, groups, changes=changes, env_kwargs=kwargs, devices=devices)
        out = Path(options.out) if options.out else None
        out = out or _free_directory(options.env, rule, settings.train.seed)
        job = Job(options.env, source, settings, out=whole_path(out))
        # The ranks train one and the same run.
        display = _Display(options) if resources.ranks.rank == 0 else Callback()
        if options.resume:
            run = train_or_resume(job, resources, display, override=options.override)
        else:
            run = train_job(job, resources, display)
    if not isinstance(display, _Display):
        return 0  # rank 0 reports for all
    return _finish(run, options, display)


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
    "spec",
    "versions",
    "devices",
    "history",
)
"""Keys of a run's `config.json` that are no settings, so that it serves as a --config too."""


def resume_command(options: argparse.Namespace) -> int:
    """Continue a run from its newest checkpoint."""
    from surefoot.training.api import resume

    display = _Display(options)
    run = resume(
        options.path,
        env=options.env,
        exact=options.exact,
        parallel=parallel_of(options, previous=options.path),
        callback=display,
    )
    return _finish(run, options, display)


def _finish(run: Any, options: argparse.Namespace, display: _Display) -> int:
    """Evaluate the final policy, and print how to continue from here."""
    if not display.began:
        say(f"{run.directory.path} was complete already, at iteration {run.iteration}")
    result = run.evaluate(run.settings.train.eval_episodes)
    path = run.directory.path
    if options.json:
        emit({"event": "end", "run": str(path), "evaluation": result})
        return 0
    say(f"final policy: {_describe(result, 'fresh deterministic')}")
    again = f"surefoot evaluate {shlex.quote(str(path))}{env_flag(run.settings.env)}"
    say(f"kept in {path}; play it again with: {again}")
    return 0


def evaluate_command(options: argparse.Namespace) -> int:
    """Play whole episodes with a trained policy."""
    require_at_least(1, episodes=options.episodes)
    check_seed(options.seed)
    from surefoot.storage.run_directory import RunDirectory
    from surefoot.training.run import load

    path = Path(options.path)
    evaluated = bool(RunDirectory(path).checkpoints("best"))
    # Where there is no run at all, `load` has the clearer error.
    if options.best and (path / "config.json").exists() and not evaluated:
        raise CheckpointError(
            f"{options.path} was trained without evaluations, so it has no best one: leave out "
            "--best, or train with --eval-every STEPS"
        )
    run = load(options.path, env=options.env, best=options.best)
    result = run.evaluate(
        options.episodes,
        stochastic=options.stochastic,
        seed=options.seed,
        max_steps=options.eval_max_steps,
    )
    if options.json:
        emit(result)
        return 0
    print(_describe(result, "sampled" if options.stochastic else "deterministic"))
    return 0


def _describe(result: Mapping[str, Any], kind: str) -> str:
    """An evaluation in one line; a single episode has no spread and no interval."""
    mean, length = f"{result['return_mean']:.2f}", f"{result['length_mean']:.1f}"
    cut = f" ({result['cut']} of them cut before their end)" if result["cut"] else ""
    if result["return_ci95"] is None:
        return f"return {mean} in one {kind} episode{cut} of length {length}; one gives no interval"
    low, high = result["return_ci95"]
    return (
        f"return {mean} ± {result['return_std']:.2f} over {result['episodes']} {kind} episodes"
        f"{cut}, mean length {length}; 95 % interval of the mean {low:.2f} to {high:.2f}"
    )
