"""The command line: what each command takes, and how it ends."""

import argparse
import contextlib
import importlib
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

from surefoot.cli.commands.common import emit, env_flag, only_json
from surefoot.cli.commands.comparing import compare_command, explain_command
from surefoot.cli.commands.finished_runs import export_command, replay_command, report_command
from surefoot.cli.commands.laboratory import (
    EXACT_RULES,
    add_exact_flags,
    essay_command,
    exact_command,
)
from surefoot.cli.commands.probing import add_probe_flags, probe_command
from surefoot.cli.commands.training import evaluate_command, resume_command, train_command
from surefoot.cli.flags import Parser, add_settings, refuse_unknown, whole
from surefoot.config.presets import NAMES
from surefoot.config.settings import RULES
from surefoot.errors import StoppedBySignal, SurefootError, printable
from surefoot.storage.compilation_cache import keep_programs_of_processes

_PRESETS = (
    "A preset may change these defaults, and auto is the one that runs unless --preset names "
    "another: --preset none keeps them."
)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="surefoot",
        description="Trust-region policy optimisation that shows why an update worked or fell.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"surefoot {version('surefoot')}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)

    def command(name: str, help: str, run: Callable[..., int]) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help, allow_abbrev=False)
        sub.set_defaults(run=run, parser=sub)
        sub.add_argument("--json", action="store_true", help="JSON lines on standard output")
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        return sub

    train = command("train", "Train a policy on an environment.", train_command)
    train.usage = "surefoot train ENV [RULE] [FLAGS]"
    train.epilog = f"{_PRESETS} A run says at its start what is unlike them."
    train.add_argument("env", help="CartPole-v1, my_module:MyEnv-v0, my_module:factory, gymnax:ID")
    train.add_argument("rule", nargs="?", default=None, help=f"{', '.join(RULES)} (default trpo)")
    train.add_argument("--out", metavar="DIR", help="run directory (default runs/ENV/RULE-seedN)")
    train.add_argument("--preset", default=None, help=f"{', '.join(NAMES)} (default auto)")
    train.add_argument("--config", metavar="FILE", help="settings from a TOML or JSON file")
    train.add_argument("--env-kwargs", metavar="JSON", help="arguments of the environment")
    train.add_argument(
        "--resume", choices=["auto"], help="go on with a matching run in --out, or start one"
    )
    train.add_argument(
        "--override", nargs="+", default=(), metavar="KEY", help="with --resume: may differ there"
    )
    train.add_argument(
        "--devices", type=whole, default=1, metavar="N", help="devices of each process (default 1)"
    )
    train.add_argument(
        "--cluster",
        choices=["auto", "ray"],
        help="auto: one of several processes that a scheduler starts; ray: start them on Ray",
    )
    train.add_argument(
        "--workers", type=whole, metavar="N", help="ray: number of processes (default 2)"
    )
    _add_env_workers(train)
    _add_logging(train)
    add_settings(train)

    resume = command("resume", "Go on with a run from its last good checkpoint.", resume_command)
    resume.add_argument("path", metavar="RUN")
    resume.add_argument("--env", help="the environment again, where it is a module of your own")
    resume.add_argument("--exact", action="store_true", help="only from a scheduled checkpoint")
    resume.add_argument(
        "--devices", type=whole, metavar="N", help="devices to spread it over (as many as before)"
    )
    _add_env_workers(resume)
    _add_logging(resume)

    evaluate = command("evaluate", "Play whole episodes with a trained policy.", evaluate_command)
    evaluate.add_argument("path", metavar="RUN")
    evaluate.add_argument("--episodes", type=whole, default=20, help="how many (default 20)")
    evaluate.add_argument("--stochastic", action="store_true", help="sample actions")
    evaluate.add_argument("--best", action="store_true", help="the best evaluation's policy")
    evaluate.add_argument("--seed", type=whole, help="seed of the episodes")
    evaluate.add_argument("--env", help="the environment again, where it is a module of your own")

    replay = command("replay", "Meet the fault of an environment again.", replay_command)
    replay.add_argument("path", metavar="RUN")
    replay.add_argument("--fault", action="store_true", help="the fault that ended the run")
    replay.add_argument("--env", help="the environment again, where it is a module of your own")

    export = command("export", "Write a policy that needs NumPy alone.", export_command)
    export.add_argument("path", metavar="RUN")
    export.add_argument("file", metavar="FILE", help="what is written, such as policy.npz")
    export.add_argument("--best", action="store_true", help="the best evaluation's policy")
    export.add_argument("--env", help="the environment again, where it is a module of your own")

    probe = command("probe", "Look at one update of a run from fresh episodes.", probe_command)
    add_probe_flags(probe)

    report = command("report", "Write one page that shows how a run went.", report_command)
    report.add_argument("path", metavar="RUN")
    report.add_argument("--out", metavar="FILE", help="the page (default RUN/report.html)")

    explain = command(
        "explain", "Say what a metric or a warning is, and what to do.", explain_command
    )
    explain.add_argument("name", nargs="?", metavar="NAME")

    compare = command(
        "compare", "Train rules over seeds and compare them, or runs.", compare_command
    )
    compare.usage = "surefoot compare ENV.. [--rules RULE..] [FLAGS], or surefoot compare RUN.."
    compare.epilog = _PRESETS
    compare.add_argument(
        "what", nargs="+", metavar="ENV|RUN", help="environments, or finished runs"
    )
    compare.add_argument("--rules", nargs="+", metavar="RULE", help="(default trpo ppo)")
    compare.add_argument("--seeds", type=whole, help="seeds 0 to N - 1 (default 5)")
    compare.add_argument(
        "--out",
        metavar="DIR",
        help="where runs and tables go (default runs/compare; runs/compared for finished runs)",
    )
    compare.add_argument("--jobs", type=whole, help="runs at a time (default 1)")
    compare.add_argument(
        "--devices", type=whole, metavar="N", help="devices that share out seeds (default 1)"
    )
    compare.add_argument("--preset", choices=["auto", "tuned", "none", "plain"])
    compare.add_argument(
        "--env", nargs="+", help="environments again, where runs are on a module of your own"
    )
    compare.add_argument("--episodes", type=whole, default=20, help="episodes of the final score")
    add_settings(compare, rules=False)

    exact = command("exact", "One update on a finite MDP, every quantity exact.", exact_command)
    exact.usage = "surefoot exact MDP [RULE..] [FLAGS]"
    add_exact_flags(exact)

    essay = command("essay", "The essay, claim by claim, computed and judged.", essay_command)
    essay.add_argument("--claim", type=int, nargs="+", metavar="N", help="only these claims")
    essay.add_argument("--out", metavar="DIR", help="write one HTML page there")
    return parser


def _add_env_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--env-workers", type=whole, metavar="N", help="Ray actors that step the environments"
    )
    parser.add_argument(
        "--address", help="address of a running Ray cluster, e.g. auto (default: start a local one)"
    )
    parser.add_argument(
        "--restarts",
        type=whole,
        metavar="N",
        help="on Ray: maximum number of restarts (default 3)",
    )


def _add_logging(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tensorboard", action="store_true", help="event files in the run")
    parser.add_argument("--wandb", metavar="PROJECT", help="log to Weights & Biases")


@contextlib.contextmanager
def _quiet_warnings() -> Iterator[None]:
    """Warnings of libraries about their own future do not belong between a user's lines."""
    # Its import puts a filter that shows them before every other: ours must come after it.
    importlib.import_module("gymnasium")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", module="gymnasium")
        yield


def _fail(fault: SurefootError, *, as_json: bool) -> int:
    text = printable(str(fault))
    if as_json:
        record = {"event": "error", "name": fault.name, "message": text, "exit_code": fault.code}
        emit(record | {"retryable": fault.retryable})
    print(f"surefoot: error[{fault.name}]: {text}", file=sys.stderr)
    return fault.code


def _ended(code: int, options: Any) -> int:
    """The code of a command that failed; a rank among others ends here."""
    if getattr(options, "cluster", None) == "auto":
        from surefoot.parallel.heartbeat import exit_rank

        exit_rank(code)
    return code


def _internal(fault: Exception) -> SurefootError:
    """A bug of ours as a fault with a name."""
    return SurefootError(
        f"{type(fault).__name__}: {fault}; this is a bug: run it again with --debug and report "
        "what it prints",
        name="INTERNAL",
    )


def _stopped(stop: StoppedBySignal, options: Any) -> int:
    text, command = str(stop), None
    if getattr(options, "cluster", None):
        # The command may be a scheduler's, which started this one on every rank.
        text += "; the same command with --resume auto goes on from there"
        words = ["surefoot", "train", *options.words]
        words += [] if options.resume else ["--resume", "auto"]
        words += [] if options.out else ["--out", str(stop.path)]
        command = shlex.join(words)
    elif stop.path:
        command = f"surefoot resume {shlex.quote(str(stop.path))}"
        command += env_flag(getattr(options, "env", None) or "")
        text += f"; go on with: {command}"
    if command and stop.path and options.json:
        emit({"event": "stopped", "signal": stop.number, "resume": command})
    print(f"surefoot: {text}", file=sys.stderr)
    return stop.code


def _fill_standard_streams() -> None:
    """A program started without some of them would take a socket or a file of ours for one."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it gets the lowest free number


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit code says how it went."""
    _fill_standard_streams()
    arguments = sys.argv[1:] if arguments is None else arguments
    sys.path.insert(0, os.getcwd())
    # Read by hand, so that they hold for a fault of the command line itself too.
    as_json, debug = "--json" in arguments, "--debug" in arguments
    options = None
    try:
        parser = _parser()
        options, extra = parser.parse_known_args(arguments)
        if options.command is None:
            refuse_unknown(parser, extra)
            parser.print_help()
            return 0
        if options.command == "train" and options.rule is None and extra[:1] and extra[0] in RULES:
            # argparse takes an optional position only where it stands beside the first one.
            options.rule = extra.pop(0)
        if options.command == "exact":
            # So too a list of positions that a flag cuts in two.
            while extra[:1] and extra[0] in EXACT_RULES:
                options.rules.append(extra.pop(0))
        refuse_unknown(options.parser, extra)
        options.words = arguments[1:]
        keep_programs_of_processes()
        with _quiet_warnings(), only_json() if as_json else contextlib.nullcontext():
            return options.run(options)
    except SurefootError as fault:
        if debug:
            raise
        return _ended(_fail(fault, as_json=as_json), options)
    except StoppedBySignal as stop:
        return _stopped(stop, options)
    except KeyboardInterrupt:
        print("surefoot: stopped at once", file=sys.stderr)
        return _ended(130, options)
    except BrokenPipeError:
        # Whoever read our output has gone; there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as fault:
        if debug:
            raise
        return _ended(_fail(_internal(fault), as_json=as_json), options)


if __name__ == "__main__":
    sys.exit(main())
