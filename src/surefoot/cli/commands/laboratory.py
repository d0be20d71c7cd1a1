"""`exact` and `essay`: from their parsed options to their exit code."""

import argparse
import math
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from surefoot.cli.commands.common import emit, parse_env_kwargs
from surefoot.config.settings import RULES
from surefoot.config.validation import limits_of
from surefoot.errors import ConfigError, StorageError

EXACT_RULES = (*RULES, "cpi", "pi")
FAMILY = ("m", "B", "stay", "num_states", "num_actions", "concentration", "reward_density")
"""Flags that are parameters of a family of MDPs."""


def add_exact_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `surefoot exact`."""
    parser.add_argument("mdp", help="corridor, ridge, random:SEED, FILE.npz or a Gymnasium id")
    parser.add_argument(
        "rules", nargs="*", metavar="RULE", help="vpg, npg, trpo (default), ppo-kl, ppo, cpi, pi"
    )
    parser.add_argument("--plot", metavar="FILE", nargs="?", const="", help="draw it as PNG")
    parser.add_argument("--iterations", type=int, help="a learning curve of so many updates")
    parser.add_argument("--gamma", type=float, help="discount (default: the MDP's own, or 0.99)")
    parser.add_argument("--policy", metavar="FILE.npy", help="start from pi(a|s) [state, action]")
    parser.add_argument("--p-old", type=float, help="start from P(action 1) in every state")
    parser.add_argument(
        "--tabular", action="store_true", help="ridge, corridor: every state its own parameters"
    )
    parser.add_argument("--env-kwargs", metavar="JSON", help="arguments of the environment")
    step = parser.add_argument_group("the update")
    step.add_argument("--max-kl", type=float, help="radius of npg and trpo, nats (default 0.01)")
    step.add_argument("--clip-eps", type=float, help="ppo's clip range (default 0.2)")
    step.add_argument("--kl-coef", type=float, help="ppo-kl's weight on mean KL (default 1)")
    step.add_argument(
        "--learning-rate", type=float, help="vpg: step along the gradient (default 1)"
    )
    step.add_argument(
        "--batch",
        metavar="exact|N",
        help="the rule that trains elsewhere, on the exact batch or on N sampled rows",
    )
    step.add_argument("--seed", type=int, help="of --batch N (default 0)")
    family = parser.add_argument_group("families")
    family.add_argument("--m", type=int, help="corridor: states (default 4)")
    family.add_argument("--B", type=float, help="corridor, ridge: cost of the edge (200; 2)")
    family.add_argument("--stay", action="store_const", const=True, help="corridor: left stays")
    family.add_argument("--num-states", type=int, help="random (default 6)")
    family.add_argument("--num-actions", type=int, help="random (default 3)")
    family.add_argument("--concentration", type=float, help="random: 0 is deterministic (1)")
    family.add_argument("--reward-density", type=float, help="random: share that pays (1)")


def exact_command(options: argparse.Namespace) -> int:
    """Solve an MDP, make one update or many, and show everything about it."""
    from surefoot.envs.tabular import find_mdp
    from surefoot.exact.report import start_at

    arguments = {name: getattr(options, name) for name in FAMILY}
    arguments = {name: value for name, value in arguments.items() if value is not None}
    arguments |= parse_env_kwargs(options.env_kwargs)
    mdp = find_mdp(options.mdp, arguments, gamma=options.gamma)
    start = start_at(mdp, p_old=options.p_old, policy=_policy(options), table=options.tabular)
    rules = options.rules or ["trpo"]
    _refuse_idle_flags(options, rules)
    if options.iterations is not None:
        return _curves(options, start, rules)
    if len(rules) > 1:
        raise ConfigError("several rules are compared over updates: add --iterations N")
    return _one_update(options, start, rules[0])


USED_BY = {"max_kl": ("npg", "trpo"), "kl_coef": ("ppo-kl",), "learning_rate": ("vpg",)}
"""Which exact rules read a setting; `clip_eps` also draws ppo's objective beside any rule."""


def _refuse_idle_flags(options: argparse.Namespace, rules: Sequence[str]) -> None:
    """Refuse a flag that nothing would read.

    Raises:
        ConfigError: names it, and the rules that do.
    """
    for name, users in USED_BY.items():
        if options.batch is not None:
            users = [rule for rule, kind in RULES.items() if name in limits_of(kind)]
        if getattr(options, name) is not None and not set(users) & set(rules):
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{flag} is read by {', '.join(users)}, not {rules[0]}", name="FLAG")
    if options.seed is not None and options.batch in (None, "exact"):
        raise ConfigError("--seed is of the rows that --batch N samples", name="FLAG")
    if options.seed is not None and options.seed < 0:
        raise ConfigError(f"--seed must be at least 0, got {options.seed}")


def _policy(options: argparse.Namespace) -> Any:
    import numpy as np

    if options.policy is None:
        return None
    try:
        return np.asarray(np.load(options.policy, allow_pickle=False), np.float64)
    except (OSError, ValueError) as fault:
        raise ConfigError(f"--policy {options.policy}: {fault}") from fault


def _step(options: argparse.Namespace) -> Any:
    from surefoot.exact import Step

    names = [field.name for field in fields(Step)]
    given = {name: getattr(options, name) for name in names}
    for name, value in given.items():
        if value is not None and not (value > 0 and math.isfinite(value)):
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{flag} must be above 0 and finite, got {value}")
    return Step(**{name: value for name, value in given.items() if value is not None})


def _update(options: argparse.Namespace, rule: str, step: Any) -> Any:
    """The exact form of a rule, or with --batch the rule that trains elsewhere."""
    from surefoot.exact.report import exact_update

    if options.batch is None:
        return exact_update(rule)
    from surefoot.exact.practice import training_update

    if rule not in RULES:
        raise ConfigError(f"--batch is for the rules that train: {', '.join(RULES)}; {rule} is not")
    if options.batch != "exact" and not (options.batch.isdigit() and int(options.batch) > 0):
        raise ConfigError(f"--batch is `exact` or a number of rows, got {options.batch}")
    kind = RULES[rule]
    known = {field.name for field in fields(kind)}
    # The rule's own defaults but for what was asked for: they are what is looked at.
    given = {field.name: getattr(options, field.name) for field in fields(step)}
    given = {name: value for name, value in given.items() if name in known and value is not None}
    if "num_minibatches" in known:
        given["num_minibatches"] = 1
    rows = None if options.batch == "exact" else int(options.batch)
    count = options.iterations or 1
    return training_update(kind(**given), rows=rows, seed=options.seed or 0, num_updates=count)


def _one_update(options: argparse.Namespace, start: Any, rule: str) -> int:
    from surefoot.analysis.exact_picture import plane
    from surefoot.analysis.exact_text import describe
    from surefoot.exact.report import report

    step = _step(options)
    found, ray, marks = report(start, _update(options, rule, step), step)
    file = _plot_file(options, f"exact-{start.mdp.name}-{rule}")
    if file:
        from surefoot.analysis.plots import plot_plane

        shown = plane(start, found, ray, marks, rule=rule, clip_eps=step.clip_eps)
        plot_plane(shown, file)
    if options.json:
        emit({"mdp": start.mdp.name, "rule": rule, **found.to_dict(), "plot": file and str(file)})
    else:
        print(describe(start, rule, found))
        if file:
            print(f"picture: {file}")
    return 0


def _curves(options: argparse.Namespace, start: Any, rules: Sequence[str]) -> int:
    from surefoot import exact as t
    from surefoot.analysis.exact_text import describe_curves, time_limited
    from surefoot.exact.report import curve

    if options.iterations < 1:
        raise ConfigError(f"--iterations must be at least 1, got {options.iterations}")
    step, mdp = _step(options), start.mdp
    found = [
        curve(start, rule, _update(options, rule, step), step, iterations=options.iterations)
        for rule in rules
    ]
    best = t.best_policy(mdp)
    optimum = t.solve(mdp, best).eta
    file = _plot_file(options, f"exact-{mdp.name}-curves")
    if file:
        from surefoot.analysis.plots import ExactCurve, plot_exact_curves

        drawn = [ExactCurve(each.rule, each.etas) for each in found]
        plot_exact_curves(drawn, file, title=f"{mdp.name}, exact updates", optimum=optimum)
    if options.json:
        for each in found:
            emit({"rule": each.rule, "etas": each.etas, **time_limited(mdp, each.policy)})
        emit({"rule": "optimum", "eta": optimum, **time_limited(mdp, best)})
    else:
        print(describe_curves(mdp, found, best))
        if file:
            print(f"picture: {file}")
    return 0


def _plot_file(options: argparse.Namespace, name: str) -> Path | None:
    if options.plot is None:
        return None
    file = Path(options.plot or f"{name.replace(':', '-').replace('/', '-')}.png")
    if file.parent != Path() and not file.parent.is_dir():
        raise StorageError(f"--plot {file}: no directory {file.parent}")
    return file


def essay_command(options: argparse.Namespace) -> int:
    """Judge the essay's claims, and write the page."""
    from surefoot.analysis.essay import CLAIMS, as_page, as_record, as_text, judge

    numbers = options.claim
    for number in numbers or ():
        if not 1 <= number <= len(CLAIMS):
            raise ConfigError(f"--claim {number}: the claims are numbered 1 to {len(CLAIMS)}")
    out = Path(options.out) if options.out else None
    if out and out.exists() and not out.is_dir():
        raise StorageError(f"--out {out} is not a directory")
    judged = []
    for each in judge(numbers):
        judged.append(each)
        if options.json:
            emit(as_record(each))
        elif out:
            print(f"{each.number}. {each.claim.title}: {each.claim.verdict}", flush=True)
        else:
            print(as_text(each) + "\n", flush=True)
    if out:
        try:
            out.mkdir(parents=True, exist_ok=True)
            (out / "essay.html").write_text(as_page(judged), encoding="utf-8")
        except OSError as fault:
            raise StorageError(f"writing {out / 'essay.html'}: {fault.strerror}") from fault
        if not options.json:
            print(f"page: {out / 'essay.html'}")
    return 0
