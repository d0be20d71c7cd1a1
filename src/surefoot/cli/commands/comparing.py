"""The commands `compare` and `explain`."""

import argparse
from pathlib import Path

from surefoot.cli.commands.common import emit, require_at_least, say
from surefoot.cli.flags import (
    PRESET_NOTE,
    add_settings,
    explain_preset,
    explain_setting,
    given,
    setting_names,
    whole,
)
from surefoot.config.peers import PEERS
from surefoot.config.presets import known_rule
from surefoot.errors import ConfigError, EnvCrashError


def add_compare_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `surefoot compare`."""
    parser.usage = "surefoot compare ENV.. [--rules RULE..] [FLAGS], or surefoot compare RUN.."
    parser.epilog = PRESET_NOTE
    add = parser.add_argument
    add("what", nargs="+", metavar="ENV|RUN", help="environments, or finished runs")
    add("--rules", nargs="+", metavar="RULE", help="(default trpo ppo)")
    add("--seeds", type=whole, help="seeds 0 to N - 1 (default 5)")
    text = "directory of runs and tables (default runs/compare; runs/compared for finished runs)"
    add("--out", metavar="DIR", help=text)
    add("--jobs", type=whole, help="runs at a time (default 1)")
    add("--devices", type=whole, metavar="N", help="devices that share out seeds (default 1)")
    add("--preset", choices=["auto", "tuned", "none", "plain"])
    add("--env", nargs="+", help="environments again, if runs are on one from your own module")
    add("--episodes", type=whole, default=20, help="episodes of the final score (default 20)")
    add_settings(parser, rules=False)


def add_explain_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `surefoot explain`."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="all of them by default")


def explain_command(options: argparse.Namespace) -> int:
    """Explain a metric, a warning, a rule, a setting or a preset, and what to do."""
    from surefoot.diagnostics.catalogue import METRICS, explain
    from surefoot.diagnostics.warnings import ALARMS, explain_alarm

    if options.name is None:
        if options.json:
            alarms = {name: alarm.to_dict() for name, alarm in ALARMS.items()}
            emit({name: metric._asdict() for name, metric in METRICS.items()} | alarms)
        else:
            lines = [f"{name:28s} {metric.what}" for name, metric in METRICS.items()]
            lines += [f"{name:28s} {alarm.level}: {alarm.what}" for name, alarm in ALARMS.items()]
            print("\n".join(lines))
        return 0
    if options.name in ALARMS:
        text = explain_alarm(options.name)
    else:
        text = explain_setting(options.name) or explain_preset(options.name)
        text = text or explain(options.name, [*ALARMS, *setting_names(), *PEERS])
    if options.json:
        emit({"name": options.name, "text": text})
    else:
        print(text)
    return 0


def compare_command(options: argparse.Namespace) -> int:
    """Train rules over seeds and compare them, or compare finished runs."""
    from surefoot.analysis import compare as comparing

    reading = _reads_runs(options)
    out = Path(options.out or ("runs/compared" if reading else "runs/compare"))
    if reading:
        comparison = comparing.read_runs(options.what, options.episodes, envs=options.env or ())
    else:
        shared = comparing.SharedSettings(
            preset=options.preset or "auto",
            changes={group: given(options, group) for group in ("train", "network", "critic")},
        )
        # None, and not 1, where it is not given: reading finished runs refuses the flag.
        devices = 1 if options.devices is None else options.devices
        names = [known_rule(name) for name in options.rules or ("trpo", "ppo")]
        try:
            comparison = comparing.compare(
                options.what,
                names,
                seeds=options.seeds or 5,
                out=out,
                shared=shared,
                episodes=options.episodes,
                workers=comparing.Workers(options.jobs or 1, devices),
                progress=say,
            )
        except comparing.ComparisonStopped as stop:
            say(f"surefoot: {stop}")
            return stop.code
    files = comparing.write_outputs(comparison, out)
    if options.json:
        emit(comparing.to_dict(comparison))
    else:
        print(comparing.table(comparison))
        say("written: " + ", ".join(map(str, files)))
    # The table is complete without them, but a script must notice cells that failed.
    return EnvCrashError.code if comparison.failures else 0


def _reads_runs(options: argparse.Namespace) -> bool:
    """Whether to read finished runs instead of training.

    Raises:
        ConfigError: where runs and environments are mixed, or a flag would be ignored.
    """
    require_at_least(1, seeds=options.seeds, jobs=options.jobs, episodes=options.episodes)
    if "seed" in given(options, "train"):
        raise ConfigError(
            "compare trains seeds 0 to N - 1; choose how many with --seeds N, not --seed",
            name="FLAG",
        )
    # An id may contain a slash too, so only what exists as a directory is a run.
    runs = [name for name in options.what if Path(name).is_dir()]
    if not runs:
        return False
    others = [name for name in options.what if name not in runs]
    if others:
        raise ConfigError(
            f"compare reads finished runs ({runs[0]}) or trains on environments ({others[0]}), "
            "not both at once"
        )
    names = ("rules", "seeds", "jobs", "devices", "preset")
    training = [name for name in names if getattr(options, name) is not None]
    for section in ("train", "network", "critic"):
        training += [name.replace("_", "-") for name in given(options, section)]
    if training:
        raise ConfigError(
            f"--{training[0]} applies to training; finished runs are only read", name="FLAG"
        )
    return True
