"""The command line: what each command takes, and how it ends."""

import argparse
import contextlib
import errno
import importlib
import io
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

from surefoot.cli.commands import comparing, finished_runs, laboratory, training
from surefoot.cli.commands.common import emit, only_json, shorten_below, shortened
from surefoot.cli.flags import Parser, add_run, refuse_unknown
from surefoot.config.settings import RULES
from surefoot.envs.env_id import env_flag
from surefoot.errors import (
    ConfigError,
    StoppedAtOnce,
    StoppedBySignal,
    StorageError,
    SurefootError,
    printable,
)
from surefoot.storage.compilation_cache import keep_programs_of_processes


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        # No abbreviations: one would change its meaning, or lose it, when a flag is added.
        prog="surefoot",
        description="Trust-region policy optimisation that shows why an update worked or failed.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"surefoot {version('surefoot')}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for name, add_flags, run in COMMANDS:
        text = run.__doc__
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(run=run, parser=sub)
        sub.add_argument("--json", action="store_true", help="JSON lines on standard output")
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        add_flags(sub)
    return parser


COMMANDS: tuple[tuple[str, Callable[..., None], Callable[..., int]], ...] = (
    ("train", training.add_train_flags, training.train_command),
    ("resume", training.add_resume_flags, training.resume_command),
    ("evaluate", training.add_evaluate_flags, training.evaluate_command),
    ("replay", add_run, finished_runs.replay_command),
    ("export", finished_runs.add_export_flags, finished_runs.export_command),
    ("probe", finished_runs.add_probe_flags, finished_runs.probe_command),
    ("report", finished_runs.add_report_flags, finished_runs.report_command),
    ("explain", comparing.add_explain_flags, comparing.explain_command),
    ("compare", comparing.add_compare_flags, comparing.compare_command),
    ("exact", laboratory.add_exact_flags, laboratory.exact_command),
    ("essay", laboratory.add_essay_flags, laboratory.essay_command),
)
"""Every command: its name, what adds its flags, and what runs it; whose docstring is its help."""


@contextlib.contextmanager
def _quiet_warnings() -> Iterator[None]:
    """Context manager that hides libraries' warnings about their own future."""
    # Importing it installs a filter that shows them: ours must come after it.
    importlib.import_module("gymnasium")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", module="gymnasium")
        before, warnings.formatwarning = warnings.formatwarning, _format_warning
        try:
            yield
        finally:
            warnings.formatwarning = before


def _format_warning(message: Warning | str, *_: Any, **__: Any) -> str:
    """A warning as a line for people, without the place in our code that raised it."""
    return f"surefoot: warning: {shortened(printable(str(message)))}\n"


def _wrong_variable(text: str) -> str | None:
    """The environment variable that JAX or Matplotlib refuses in an error, as NAME=VALUE.

    They read theirs when they are first used, and raise what they raise for bugs.
    """
    for name, value in os.environ.items():
        option = name.removeprefix("MPL") if name.startswith("MPL") else name
        known = name.startswith(("JAX_", "MPL")) and value and option.lower() in text.lower()
        if known and (repr(value) in text or f'"{value}"' in text):
            return f"{name}={value}"
    return None


def _fail(error: SurefootError, *, as_json: bool) -> int:
    """Print an error; its exit code."""
    text = shortened(printable(str(error)))
    if as_json:
        record = {"event": "error", "name": error.name, "message": text, "exit_code": error.code}
        emit(record | {"retryable": error.retryable})
    print(f"surefoot: error[{error.name}]: {text}", file=sys.stderr)
    return error.code


def _stopped(stop: StoppedBySignal, options: Any) -> int:
    text, command = str(stop), None
    if getattr(options, "cluster", None):
        # The command may be a scheduler's, which started this one on every rank.
        text += "; the same command with --resume auto continues from there"
        words = ["surefoot", "train", *options.words]
        # What the first start may leave out, the next one needs.
        words += [] if options.resume else ["--resume", "auto"]
        words += [] if options.out else ["--out", str(stop.path)]
        command = shlex.join(words)
    elif stop.path:
        command = f"surefoot resume {shlex.quote(str(stop.path))}"
        command += env_flag(getattr(options, "env", None) or "")
        text += f"; continue with: {command}"
    if command and stop.path and options.json:
        emit({"event": "stopped", "signal": stop.number, "resume": command})
    print(f"surefoot: {shortened(text)}", file=sys.stderr)
    return stop.code


def _fill_standard_streams() -> None:
    """Open those that are closed, whose numbers a socket or a file of ours would take."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it gets the lowest free number


def _read(arguments: list[str]) -> argparse.Namespace:
    """The options of a command line; without a command, its help is printed."""
    parser = _parser()
    options, extra = parser.parse_known_args(arguments)
    if options.command is None:
        refuse_unknown(parser, extra)
        parser.print_help()
        return options
    if options.command == "train" and options.rule is None and extra[:1] and extra[0] in RULES:
        # argparse takes an optional position only where it stands beside the first one.
        options.rule = extra.pop(0)
    if options.command == "exact":
        # So too a list of positions that a flag cuts in two.
        while extra[:1] and extra[0] in laboratory.EXACT_RULES:
            options.rules.append(extra.pop(0))
    refuse_unknown(options.parser, extra)
    options.words = arguments[1:]
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit code says how it went."""
    _fill_standard_streams()
    shorten_below(os.getcwd())
    for stream in (sys.stdout, sys.stderr):
        # A terminal that has ASCII alone shows ? for ±, and nothing ends for that.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    arguments = sys.argv[1:] if arguments is None else arguments
    # Read by hand, so that they apply to errors of the command line itself too.
    as_json, debug = "--json" in arguments, "--debug" in arguments
    options = None
    try:
        options = _read(arguments)
        if options.command is None:
            return 0
        keep_programs_of_processes()
        with _quiet_warnings(), only_json() if as_json else contextlib.nullcontext():
            code = options.run(options)
        if sys.stdout is not None:
            sys.stdout.flush()  # a full device is noticed here and not at exit
        return code
    except SurefootError as error:
        if debug:
            raise
        code = _fail(error, as_json=as_json)
    except StoppedBySignal as stop:
        return _stopped(stop, options)
    except StoppedAtOnce as stop:
        code = stop.code  # its handler has printed the line
    except KeyboardInterrupt:
        print("surefoot: stopped at once", file=sys.stderr)
        # 128 + SIGINT, as a shell reports it.
        code = 130
    except BrokenPipeError:
        # The reader of our output has closed it, as `head` does.
        # Python flushes standard output once more at exit, which would raise again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except Exception as error:
        if debug:
            raise
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            text = f"standard output: {error.strerror}; the command's own files are whole"
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (until exit, which flushes it)
            return _fail(StorageError(text), as_json=False)
        if variable := _wrong_variable(str(error)):
            text = f"the environment variable {variable}: {error}"
            return _fail(ConfigError(text, name="VARIABLE"), as_json=as_json)
        text = (
            f"{type(error).__name__}: {error}; this is a bug: run it again with --debug and report "
            "what it prints"
        )
        code = _fail(SurefootError(text, name="INTERNAL"), as_json=as_json)
    if getattr(options, "cluster", None) == "auto":
        from surefoot.parallel.heartbeat import exit_rank

        # An orderly shutdown would wait for the other ranks.
        exit_rank(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
