"""The command line: train, resume, evaluate, explain and compare."""

import argparse
import contextlib
import json
import os
import shlex
import sys
import tomllib
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from surefoot.config import RULES, Critic, Network, Train
from surefoot.errors import ConfigError, SurefootError
from surefoot.flags import Parser, add_settings, given, refuse_unknown, rule_settings
from surefoot.presets import NAMES, known_rule


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="surefoot",
        description="Trust-region policy optimisation that shows why an update worked or fell.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)

    def command(name: str, help: str, run: Callable[..., int]) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help, allow_abbrev=False)
        sub.set_defaults(run=run, parser=sub)
        sub.add_argument("--json", action="store_true", help="JSON lines on standard output")
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        return sub

    train = command("train", "Train a policy on an environment.", _train)
    train.usage = "surefoot train ENV [RULE] [FLAGS]"
    train.add_argument("env", help="CartPole-v1, my_module:MyEnv-v0, my_module:factory, gymnax:ID")
    train.add_argument("rule", nargs="?", default=None, help=f"{', '.join(RULES)} (default trpo)")
    train.add_argument("--out", metavar="DIR", help="run directory (default runs/ENV/RULE-seedN)")
    train.add_argument("--preset", default=None, help=f"{', '.join(NAMES)} (default auto)")
    train.add_argument("--config", metavar="FILE", help="settings from a TOML or JSON file")
    train.add_argument("--env-kwargs", metavar="JSON", help="arguments of the environment")
    train.add_argument(
        "--resume", choices=["auto"], help="go on with a matching run in --out, or start one"
    )
    _add_logging(train)
    add_settings(train)

    resume = command("resume", "Go on with a run from its last good checkpoint.", _resume)
    resume.add_argument("path", metavar="RUN")
    resume.add_argument("--env", help="the environment again, where it is a module of your own")
    resume.add_argument("--exact", action="store_true", help="only from a scheduled checkpoint")
    _add_logging(resume)

    evaluate = command("evaluate", "Play whole episodes with a trained policy.", _evaluate)
    evaluate.add_argument("path", metavar="RUN")
    evaluate.add_argument("--episodes", type=int, default=20)
    evaluate.add_argument("--stochastic", action="store_true", help="sample actions")
    evaluate.add_argument("--best", action="store_true", help="the best evaluation's policy")
    evaluate.add_argument("--seed", type=int, help="seed of the episodes")
    evaluate.add_argument("--env", help="the environment again, where it is a module of your own")

    explain = command("explain", "Say what a metric is and when it is healthy.", _explain)
    explain.add_argument("name", nargs="?", metavar="METRIC")

    compare = command("compare", "Train rules over seeds and compare them, or runs.", _compare)
    compare.usage = "surefoot compare ENV.. [--rules RULE..] [FLAGS], or surefoot compare RUN.."
    compare.add_argument(
        "what", nargs="+", metavar="ENV|RUN", help="environments, or finished runs"
    )
    compare.add_argument("--rules", nargs="+", default=["trpo", "ppo"], metavar="RULE")
    compare.add_argument("--seeds", type=int, default=5, help="seeds 0 to N - 1 (default 5)")
    compare.add_argument("--out", metavar="DIR", help="where the runs go (default runs/compare)")
    compare.add_argument("--jobs", type=int, default=1, help="runs at a time (default 1)")
    compare.add_argument("--preset", choices=["auto", "tuned", "none", "plain"], default="auto")
    compare.add_argument("--episodes", type=int, default=20, help="episodes of the final score")
    add_settings(compare, rules=False)
    return parser


def _add_logging(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tensorboard", action="store_true", help="event files in the run")
    parser.add_argument("--wandb", metavar="PROJECT", help="log to Weights & Biases")


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
    return tables


def _env_kwargs(text: str | None) -> dict[str, Any]:
    try:
        value = json.loads(text) if text else {}
    except ValueError as fault:
        raise ConfigError(f"--env-kwargs is not JSON: {fault}") from fault
    if not isinstance(value, dict):
        raise ConfigError("--env-kwargs must be a JSON object, such as '{\"render_mode\": null}'")
    return value


def _free_directory(env: str, rule: str, seed: int) -> Path:
    """`runs/ENV/RULE-seedN`, numbered on where it is used."""
    base = Path("runs") / env.replace(":", "_").replace("/", "_") / f"{rule}-seed{seed}"
    candidate, count = base, 1
    while candidate.exists():
        count += 1
        candidate = base.with_name(f"{base.name}-{count}")
    return candidate


def _emit(record: Mapping[str, Any]) -> None:
    print(json.dumps(record, allow_nan=False), flush=True)


class _Listener:
    """The display or the JSON lines of a run, and its outside loggers."""

    def __init__(self, options: argparse.Namespace):
        from surefoot.progress import Progress

        self._options = options
        self._progress = None if options.json else Progress()
        self._loggers: list[Any] = []

    def started(self, run: Any, plan: Any) -> None:
        """Open the loggers and the display."""
        from surefoot.loggers import tensorboard_logger, wandb_logger

        if self._options.tensorboard:
            self._loggers.append(tensorboard_logger(run.directory.path))
        if self._options.wandb:
            self._loggers.append(wandb_logger(run.directory, self._options.wandb))
        if self._progress:
            self._progress.started(run, plan)
        else:
            record = {"event": "start", "run": str(run.directory.path), **plan._asdict()}
            _emit(record | {"settings": run.settings.to_dict()})

    def compiling(self, what: str) -> None:
        """Show that a program is being built."""
        if self._progress:
            self._progress.compiling(what)

    def row(self, row: Mapping[str, Any]) -> None:
        """Show and log one iteration."""
        if self._progress:
            self._progress.row(row)
        else:
            _emit({"event": "row", **row})
        for logger in self._loggers:
            logger.row(row)

    def finished(self, run: Any) -> None:
        """Close everything."""
        if self._progress:
            self._progress.finished(run)
        for logger in self._loggers:
            logger.close()


def _train(options: argparse.Namespace) -> int:
    tables = _tables(options.config)
    named = dict(tables.get("rule", {})) if isinstance(tables.get("rule", {}), dict) else {}
    rule_name = known_rule(options.rule or str(named.get("name", "trpo")))
    rule = RULES[rule_name](**rule_settings(options, rule_name))
    train = Train(**given(options, "train"))
    network, critic = Network(**given(options, "network")), Critic(**given(options, "critic"))
    kwargs = _env_kwargs(options.env_kwargs) or dict(tables.get("env_kwargs", {}))
    preset = options.preset or str(tables.get("preset", "auto"))

    from surefoot.presets import settle
    from surefoot.train import train as start
    from surefoot.train import train_or_resume

    tables = {k: v for k, v in tables.items() if k in ("rule", "train", "network", "critic")} | {
        k: v for k, v in tables.items() if k not in _FROZEN
    }
    settings = settle(
        options.env,
        rule,
        train,
        network,
        critic,
        preset=preset,
        tables=tables,
        env_kwargs=kwargs,
    )
    if options.resume and options.out is None:
        raise ConfigError("--resume auto needs --out DIR, the directory to go on in")
    out = Path(options.out) if options.out else None
    out = out or _free_directory(options.env, rule_name, settings.train.seed)
    listener = _Listener(options)

    def begin() -> Any:
        return start(
            options.env,
            rule,
            out=out,
            preset=preset,
            train=train,
            network=network,
            critic=critic,
            env_kwargs=kwargs,
            tables=tables,
            listener=listener,
        )

    if options.resume:
        run = train_or_resume(out, settings, begin, env=options.env, listener=listener)
    else:
        run = begin()
    return _finish(run, options)


_FROZEN = (
    "env",
    "env_kwargs",
    "preset",
    "env_from_python",
    "own_networks",
    "observation_space",
    "action_space",
    "versions",
)
"""Keys of a run's `config.json` that are no settings, so that it serves as a --config too."""


def _resume(options: argparse.Namespace) -> int:
    from surefoot.train import resume

    run = resume(options.path, env=options.env, exact=options.exact, listener=_Listener(options))
    return _finish(run, options)


def _env_flag(run: Any) -> str:
    env = run.settings.env
    return f" --env {shlex.quote(env)}" if ":" in env and not env.startswith("gymnax:") else ""


def _finish(run: Any, options: argparse.Namespace) -> int:
    """Evaluate what was learned, and say how to go on from here."""
    from surefoot.progress import say

    result = run.evaluate(run.settings.train.eval_episodes)
    path = run.directory.path
    if options.json:
        _emit({"event": "end", "run": str(path), "evaluation": result})
        return 0
    low, high = result["return_ci95"]
    say(
        f"final policy: return {result['return_mean']:.1f} (95 % interval {low:.1f} to {high:.1f}, "
        f"{result['episodes']} fresh episodes, deterministic)"
    )
    again = f"surefoot evaluate {shlex.quote(str(path))}{_env_flag(run)}"
    say(f"kept in {path}; play it again with: {again}")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    if options.episodes < 1:
        raise ConfigError(f"--episodes must be at least 1, got {options.episodes}")
    from surefoot.trained import load

    run = load(options.path, env=options.env, best=options.best)
    result = run.evaluate(options.episodes, stochastic=options.stochastic, seed=options.seed)
    if options.json:
        _emit(result)
        return 0
    low, high = result["return_ci95"]
    kind = "sampled" if options.stochastic else "deterministic"
    print(
        f"return {result['return_mean']:.2f} ± {result['return_std']:.2f} over "
        f"{result['episodes']} {kind} episodes, mean length {result['length_mean']:.1f}; "
        f"95 % interval of the mean {low:.2f} to {high:.2f}"
    )
    return 0


def _explain(options: argparse.Namespace) -> int:
    from surefoot.metrics import METRICS, explain

    if options.name is None:
        if options.json:
            _emit({name: metric._asdict() for name, metric in METRICS.items()})
        else:
            print("\n".join(f"{name:28s} {metric.what}" for name, metric in METRICS.items()))
        return 0
    text = explain(options.name)
    if options.json:
        _emit({"name": options.name, "text": text})
    else:
        print(text)
    return 0


def _compare(options: argparse.Namespace) -> int:
    from surefoot.compare import compare, read_runs, table, to_dict, write_outputs
    from surefoot.progress import say

    if options.seeds < 1 or options.jobs < 1 or options.episodes < 1:
        raise ConfigError("--seeds, --jobs and --episodes must be at least 1")
    out = Path(options.out or "runs/compare")
    if all((Path(name) / "config.json").is_file() for name in options.what):
        comparison = read_runs([Path(name) for name in options.what], episodes=options.episodes)
    else:
        comparison = compare(
            options.what,
            [known_rule(name) for name in options.rules],
            seeds=options.seeds,
            out=out,
            jobs=options.jobs,
            preset=options.preset,
            train=Train(**given(options, "train")),
            network=Network(**given(options, "network")),
            critic=Critic(**given(options, "critic")),
            episodes=options.episodes,
            tell=say,
        )
    files = write_outputs(comparison, out)
    if options.json:
        _emit(to_dict(comparison))
    else:
        print(table(comparison))
        say("written: " + ", ".join(str(file) for file in files))
    return 0


@contextlib.contextmanager
def _quiet_warnings() -> Iterator[None]:
    """Warnings of libraries about their own future do not belong between a user's lines."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", module="gymnasium")
        yield


def _fail(fault: SurefootError, options: argparse.Namespace | None) -> int:
    text = " ".join("".join(c if c.isprintable() else " " for c in str(fault)).split())
    if options is not None and options.json:
        record = {"event": "error", "name": fault.name, "message": text, "exit_code": fault.code}
        _emit(record | {"retryable": fault.retryable})
    print(f"surefoot: error[{fault.name}]: {text}", file=sys.stderr)
    return fault.code


def _stopped(stop: Any, options: argparse.Namespace) -> int:
    from surefoot.progress import say

    path = stop.run.directory.path
    command = f"surefoot resume {shlex.quote(str(path))}{_env_flag(stop.run)}"
    if options.json:
        _emit({"event": "stopped", "signal": int(stop.number), "resume": command})
    say(f"stopped at iteration {stop.run.iteration}; go on with: {command}")
    return 128 + stop.number


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit code says how it went."""
    arguments = sys.argv[1:] if arguments is None else arguments
    sys.path.insert(0, os.getcwd())
    options = None
    try:
        parser = _parser()
        options, extra = parser.parse_known_args(arguments)
        if options.command is None:
            parser.print_help()
            return 0
        if options.command == "train" and options.rule is None and extra[:1] and extra[0] in RULES:
            # argparse takes an optional position only where it stands beside the first one.
            options.rule = extra.pop(0)
        refuse_unknown(options.parser, extra)
        with _quiet_warnings():
            return options.run(options)
    except SurefootError as fault:
        if options is not None and options.debug:
            raise
        return _fail(fault, options)
    except KeyboardInterrupt:
        print("surefoot: stopped at once", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read our output has gone; there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as fault:
        if type(fault).__name__ == "StoppedBySignal" and options is not None:
            return _stopped(fault, options)
        if options is None or options.debug:
            raise
        text = " ".join(str(fault).split())
        print(
            f"surefoot: error[INTERNAL]: {type(fault).__name__}: {text}; this is a bug: "
            "run it again with --debug and report what it prints",
            file=sys.stderr,
        )
        return 1


if __name__ == "__main__":
    sys.exit(main())
