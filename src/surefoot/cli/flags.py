"""The command line's flags: of settings, from their dataclasses, and of devices and processes."""

import argparse
import itertools
import re
from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from inspect import cleandoc
from typing import Any, NoReturn

from surefoot.cli.commands.common import require_at_least
from surefoot.config.peers import NOTES, PEERS
from surefoot.config.settings import RULES, Critic, Network, Parallel, Train, rules_with
from surefoot.config.validation import Limits, limits_of, nearest, shown
from surefoot.errors import ConfigError

PEER_FLAGS = {
    "num-envs": ("n-envs", "num-training-envs"),
    "num-steps": ("n-steps", "steps-per-epoch", "unroll-length"),
    "steps": ("total-timesteps", "timesteps"),
    "num-epochs": ("n-epochs", "update-epochs"),
    "num-minibatches": ("nminibatches", "batch-size"),
    "clip-eps": ("clip-coef", "clip-range", "clip-ratio", "eps-clip"),
    "max-kl": ("delta", "trust-region-size"),
    "target-kl": ("desired-kl",),
    "gae-lambda": ("lam",),
    "damping": ("damping-coeff", "cg-damping"),
    "cg-iters": ("cg-max-steps",),
    "backtrack-coeff": ("line-search-shrinking-factor",),
    "max-backtracks": ("line-search-max-iter", "backtrack-iters"),
    "ent-coef": ("entropy-cost",),
    "critic-vf-coef": ("vf-coef",),
    "learning-rate": ("lr",),
    "critic-num-epochs": ("n-critic-updates",),
    "final-fraction": ("anneal-lr",),
    "hidden": ("net-arch",),
    "obs-norm": ("norm-obs",),
    "return-norm": ("norm-reward",),
}
"""Our flags, and what other libraries call them."""

_RULE = "the rule stands behind the environment, as in `surefoot train CartPole-v1 ppo`"
_POSITIONS = dict.fromkeys(("algo", "algorithm", "agent", "rule"), _RULE) | dict.fromkeys(
    ("env", "env-id", "env-name", "task"), "the environment stands behind the command"
)
"""What other programs have flags for, and where it stands here."""

PRESET_NOTE = (
    "These defaults are the library's. A preset may change them: --preset auto, the default, does "
    "where it knows the environment; --preset none does not."
)

SECTIONS = {"train": (Train, ""), "network": (Network, ""), "critic": (Critic, "critic-")}


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are `ConfigError`s, shown as one line."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing a usage text."""
        # argparse passes its errors on as text alone.
        choice = re.search(r"argument (.+): invalid choice: '(.*)' \(choose from (.*)\)", message)
        if choice:
            where, word, choices = choice.groups()
            # Some versions of Python quote the choices, and some do not.
            known = re.findall(r"[\w-]+", choices)
            listed = ", ".join(known)
            message = f"{where} must be one of {listed}, got {word!r}{nearest(word, known)}"
            if where == "COMMAND":
                message = f"no command {word}{nearest(word, known)} ({listed})"
        raise ConfigError(" ".join(message.split()), name="USAGE")


def whole(text: str) -> int:
    """A whole number, 1e6, 500k and 1M included."""
    if re.fullmatch(r"[0-9][0-9.]*[kM]", text):
        text = text[:-1] + {"k": "e3", "M": "e6"}[text[-1]]
    try:
        number = float(text)
        if number.is_integer():
            # Digits are not read through a float, which is exact up to 2^53 only.
            return int(text) if text.lstrip("+-").isdigit() else int(number)
    except (ValueError, OverflowError):
        pass
    raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}")


def number(text: str) -> float:
    """A number."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from None


def _add(group: Any, flag: str, dest: str, kind: Any, help: str, choices: tuple[str, ...]) -> None:
    # No default for argparse: a flag that is not given leaves the value of the preset.
    add = partial(group.add_argument, f"--{flag}", dest=dest, default=None, help=help)
    if kind is bool:
        add(action=argparse.BooleanOptionalAction)
        return
    # Only the text of a tuple's type shows what its items are.
    item = str if "str" in str(kind) else number if kind is float else whole
    metavar = {str: "NAME", number: "X", whole: "N"}[item]
    many = "+" if str(kind).startswith("tuple") else None
    add(type=item, nargs=many, metavar="{" + ",".join(choices) + "}" if choices else metavar)


def add_run(parser: argparse.ArgumentParser, *, best: bool = False) -> None:
    """The run that a command reads, and its environment where loading may not import it."""
    parser.add_argument("path", metavar="RUN")
    parser.add_argument("--env", help="the environment again, if it is from your own module")
    if best:
        text = "the policy of the best evaluation, not the last"
        parser.add_argument("--best", action="store_true", help=text)


def add_settings(parser: argparse.ArgumentParser, *, rules: bool = True) -> None:
    """A flag for every setting of the run, the networks, the critic and, with `rules`, of these."""
    for section, (kind, prefix) in SECTIONS.items():
        group = parser.add_argument_group(section)
        types = {f.name: f.type for f in fields(kind)}
        for name, limits in limits_of(kind).items():
            flag = prefix + name.replace("_", "-")
            text = f"{limits.help} (default {shown(limits.default)})"
            _add(group, flag, f"{section}.{name}", types[name], text, limits.choices)
    if not rules:
        return
    group = parser.add_argument_group(
        "rule", "each applies to the rules in brackets, with its default there"
    )
    tables = {key: limits_of(rule) for key, rule in RULES.items()}
    for name in dict.fromkeys(itertools.chain(*tables.values())):
        having = {key: table[name] for key, table in tables.items() if name in table}
        kind = next(f.type for f in fields(RULES[next(iter(having))]) if f.name == name)
        # For the help alone: each rule refuses what only another one allows.
        choices = tuple(dict.fromkeys(c for limits in having.values() for c in limits.choices))
        _add(group, name.replace("_", "-"), f"rule.{name}", kind, _meanings(having), choices)


def _meanings(having: Mapping[str, Limits]) -> str:
    """What a setting means for each of the rules that have it, with its default there."""
    defaults: dict[str, list[str]] = {}
    for rule, limits in having.items():
        defaults.setdefault(limits.help, []).append(f"{rule} {shown(limits.default)}")
    return "; ".join(f"{help} ({', '.join(rules)})" for help, rules in defaults.items())


def setting_names() -> list[str]:
    """Every rule, and every setting as its flag has it."""
    owners = [(rule, "") for rule in RULES.values()] + list(SECTIONS.values())
    names = [prefix + name.replace("_", "-") for kind, prefix in owners for name in limits_of(kind)]
    return [*RULES, *dict.fromkeys(names)]


def explain_setting(name: str) -> str | None:
    """What a rule is, with its settings, or what a setting is; None for another name."""
    if name in RULES:
        lines = [f"{name}  [rule]", f"  {cleandoc(RULES[name].__doc__ or '').splitlines()[0]}"]
        for field, limits in limits_of(RULES[name]).items():
            flag = f"--{field.replace('_', '-')} {shown(limits.default)}"
            lines.append(f"  {flag:28s} {limits.help}")
        return "\n".join(lines)
    flag = name.lstrip("-").replace("_", "-")
    if flag not in setting_names():
        return None
    found = {key: limits_of(rule) for key, rule in RULES.items()}
    found |= {key: limits_of(kind) for key, (kind, prefix) in SECTIONS.items() if not prefix}
    field, prefixed = flag.replace("-", "_"), flag.removeprefix("critic-")
    if prefixed != flag:
        found, field = {"critic": limits_of(Critic)}, prefixed.replace("-", "_")
    having = {key: table[field] for key, table in found.items() if field in table}
    return f"{flag}  [setting of {', '.join(having)}]\n  --{flag}: {_meanings(having)}"


def explain_preset(name: str) -> str | None:
    """What the preset of another library is, and what still differs; None for another name."""
    if name not in NOTES:
        return None
    head = f"{name}  [preset of {', '.join(PEERS[name])}]"
    return "\n".join([head, *(f"  {note}" for note in NOTES[name])])


def given(options: argparse.Namespace, section: str) -> dict[str, Any]:
    """The settings of one section that were given as flags."""
    found = {}
    for key, value in vars(options).items():
        head, _, name = key.partition(".")
        # Only settings have a dot in their destination.
        if head == section and name and value is not None:
            found[name] = tuple(value) if isinstance(value, list) else value
    return found


def rule_settings(options: argparse.Namespace, rule: str) -> dict[str, Any]:
    """The flags given for a rule.

    Raises:
        ConfigError: for a flag that this rule does not have.
    """
    found = given(options, "rule")
    for name in found:
        if name not in limits_of(RULES[rule]):
            flag = "--" + name.replace("_", "-")
            raise ConfigError(
                f"{rule} has no {flag}: it is a setting of {', '.join(rules_with(name))}",
                name="FLAG",
            )
    return found


def add_cluster_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of devices and of the processes that train together."""
    add = parser.add_argument
    add("--devices", type=whole, default=1, metavar="N", help="devices per process (default 1)")
    text = "auto: one of several processes that a scheduler starts; ray: start them on Ray"
    add("--cluster", choices=["auto", "ray"], help=text)
    add("--workers", type=whole, metavar="N", help="ray: number of processes (default 2)")


def add_env_worker_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of actors that step environments, and of Ray."""
    add = parser.add_argument
    add("--env-workers", type=whole, metavar="N", help="Ray actors that step the environments")
    add("--address", help="of a running Ray cluster, such as auto (default: start a local one)")
    add("--restarts", type=whole, metavar="N", help="on Ray: maximum restarts (default 3)")


def parallel_of(options: argparse.Namespace, *, previous: str | None = None) -> Parallel:
    """The devices, processes and machines that flags ask for.

    Args:
        options: parsed flags.
        previous: the directory of a run to continue, on as many devices as before by default.

    Raises:
        ConfigError: for a value that is not allowed, or a flag that would be ignored.
    """
    cluster = getattr(options, "cluster", None)
    if options.env_workers is not None and cluster:
        raise ConfigError("--env-workers and --cluster are for different environments", name="FLAG")
    on_ray = {name: getattr(options, name, None) for name in ("workers", "restarts", "address")}
    require_at_least(1, env_workers=options.env_workers, workers=on_ray["workers"])
    require_at_least(0, restarts=on_ray["restarts"])
    # A flag without effect would let the user believe that it had one.
    for name, value in on_ray.items():
        if value is None or cluster == "ray" or (name != "workers" and options.env_workers):
            continue
        other = " or --env-workers" * (name != "workers")
        raise ConfigError(f"--{name} needs --cluster ray{other}", name="FLAG")
    devices = options.devices
    if devices is None and previous is not None:
        from surefoot.storage.run_directory import RunDirectory

        stored = RunDirectory(previous).config.get("devices")
        # A `config.json` may hold anything.
        devices = stored if isinstance(stored, int) and stored >= 1 else None
    # What is not given keeps the default of `Parallel`.
    given = {"devices": devices, "cluster": cluster, "env_workers": options.env_workers} | on_ray
    return Parallel(**{name: value for name, value in given.items() if value is not None})


def refuse_unknown(parser: argparse.ArgumentParser, extra: list[str]) -> None:
    """Complain about what no flag or position took.

    Raises:
        ConfigError: with our name for a peer's flag, or the nearest flag.
    """
    if not extra:
        return
    # argparse has no public list of the flags.
    flags = [s for action in parser._actions for s in action.option_strings if s.startswith("--")]
    word = extra[0]
    if not word.startswith("-"):
        raise ConfigError(f"unexpected argument {word!r} (`{parser.prog} --help`)", name="USAGE")
    name = word.lstrip("-").partition("=")[0].replace("_", "-")
    if f"--{name}" in flags:
        raise ConfigError(f"{word} goes behind the command: {parser.prog} {word}", name="FLAG")
    if name in _POSITIONS:
        raise ConfigError(f"unknown flag {word}; {_POSITIONS[name]}", name="FLAG")
    ours = next((flag for flag, theirs in PEER_FLAGS.items() if name in theirs), None)
    if ours:
        # The one peer's flag whose number means something else.
        note = ", a count of parts and not a size" if name == "batch-size" else ""
        raise ConfigError(f"unknown flag {word}; here it is --{ours}{note}", name="FLAG")
    raise ConfigError(f"unknown flag {word}{nearest('--' + name, flags)}", name="FLAG")
