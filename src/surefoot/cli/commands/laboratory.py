"""`surefoot exact` and `surefoot essay`, from parsed options to the exit code."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from surefoot.cli.commands.common import emit, parse_env_kwargs, picture_file, require_at_least
from surefoot.config.settings import RULES
from surefoot.config.validation import limits_of
from surefoot.errors import ConfigError, StorageError

EXACT_RULES = (*RULES, "cpi", "pi")
STEP_SIZES = {
    "max_kl": "radius of npg and trpo, nats (default 0.01)",
    "clip_eps": "ppo's clip range (default 0.2)",
    "kl_coef": "ppo-kl's weight on mean KL (default 1)",
    "learning_rate": "vpg's step along the gradient (default 1)",
}
MDP_PARAMETERS = {
    "m": (int, "corridor: number of states (default 4)"),
    "B": (float, "corridor, ridge: cost of the edge (default 200, 2)"),
    "num_states": (int, "random: number of states (default 6)"),
    "num_actions": (int, "random: number of actions (default 3)"),
    "concentration": (float, "random: of the Dirichlet transitions; 0: deterministic (default 1)"),
    "reward_density": (float, "random: share of (state, action) that pay (default 1)"),
}


def add_exact_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `surefoot exact`."""
    parser.usage = "surefoot exact MDP [RULE..] [FLAGS]"
    add = parser.add_argument
    add("mdp", help="corridor, ridge, random:SEED, FILE.npz or a Gymnasium id")
    add("rules", nargs="*", metavar="RULE", help="vpg, npg, trpo (default), ppo-kl, ppo, cpi, pi")
    add("--plot", metavar="FILE", nargs="?", const="", help="draw a PNG")
    add("--iterations", type=int, help="number of updates of a learning curve")
    add("--gamma", type=float, help="discount (default: the MDP's own, or 0.99)")
    add("--policy", metavar="FILE.npy", help="start from pi(a|s) [state, action]")
    add("--p-old", type=float, help="start from P(action 1) in every state")
    add("--tabular", action="store_true", help="ridge, corridor: own parameters for each state")
    add("--env-kwargs", metavar="JSON", help="keyword arguments of the environment")
    add = parser.add_argument_group("the update").add_argument
    for name, text in STEP_SIZES.items():
        add(_flag(name), type=float, help=text)
    text = "apply the training rule instead, to the exact batch or to N sampled rows"
    add("--batch", metavar="exact|N", help=text)
    add("--seed", type=int, help="of --batch N (default 0)")
    add = parser.add_argument_group("families of MDPs").add_argument
    for name, (kind, text) in MDP_PARAMETERS.items():
        add(_flag(name), type=kind, help=text)
    add("--stay", action="store_const", const=True, help="corridor: left stays in its state")


def add_essay_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `surefoot essay`."""
    parser.add_argument("--claim", type=int, nargs="+", metavar="N", help="only these claims")
    parser.add_argument("--out", metavar="DIR", help="write one HTML page there")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _given(options: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """The options among `names` that were set."""
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


def exact_command(options: argparse.Namespace) -> int:
    """Make one update on a finite MDP, every quantity exact."""
    from surefoot import exact
    from surefoot.envs.env_id import import_own, parse_env_id

    arguments = _given(options, (*MDP_PARAMETERS, "stay")) | parse_env_kwargs(options.env_kwargs)
    own = parse_env_id(f"tabular:{options.mdp}").module
    if own:
        import_own(own, options.mdp)
    mdp = exact.find_mdp(options.mdp, arguments, gamma=options.gamma)
    policy = _policy(options)
    start = exact.starting_point(mdp, p_old=options.p_old, policy=policy, tabular=options.tabular)
    rules = options.rules or ["trpo"]
    _refuse_unused_flags(options, rules)
    sizes = exact.StepSizes(**_given(options, tuple(STEP_SIZES)))
    if options.iterations is not None:
        return _curves(options, start, rules, sizes)
    if len(rules) > 1:
        raise ConfigError("several rules need a learning curve: add --iterations N")
    return _one_update(options, start, rules[0], sizes)


USED_BY = {"max_kl": ("npg", "trpo"), "kl_coef": ("ppo-kl",), "learning_rate": ("vpg",)}
"""Exact rules that read a setting; `clip_eps` also draws ppo's objective beside any rule."""


def _refuse_unused_flags(options: argparse.Namespace, rules: Sequence[str]) -> None:
    for name, users in USED_BY.items():
        if options.batch is not None:
            users = [rule for rule, kind in RULES.items() if name in limits_of(kind)]
        if getattr(options, name) is not None and not set(users) & set(rules):
            message = f"{_flag(name)} applies to {', '.join(users)}, not {rules[0]}"
            raise ConfigError(message, name="FLAG")
    if options.seed is not None and options.batch in (None, "exact"):
        raise ConfigError("--seed needs sampled rows: add --batch N", name="FLAG")
    require_at_least(0, seed=options.seed)


def _policy(options: argparse.Namespace) -> Any:
    import numpy as np

    if options.policy is None:
        return None
    try:
        # No pickles: a file from elsewhere must not be able to run code.
        return np.asarray(np.load(options.policy, allow_pickle=False), np.float64)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--policy {options.policy}: {error}") from error


def _update(options: argparse.Namespace, rule: str) -> Any:
    """The exact form of a rule, or with --batch the training rule."""
    from surefoot.exact import find_rule

    if options.batch is None:
        return find_rule(rule)
    # It imports JAX, which exact updates do without.
    from surefoot.exact.practice import training_update

    if rule not in RULES:
        raise ConfigError(f"--batch needs a training rule ({', '.join(RULES)}), got {rule}")
    if options.batch != "exact" and not (options.batch.isdigit() and int(options.batch) > 0):
        raise ConfigError(f"--batch must be `exact` or a number of rows, got {options.batch}")
    known = {field.name for field in fields(RULES[rule])}
    # The training rule keeps its own defaults, not those of the exact one.
    given = _given(options, [name for name in STEP_SIZES if name in known])
    # These rows can be of any number, which the default need not divide.
    if "num_minibatches" in known:
        given["num_minibatches"] = 1
    return training_update(
        RULES[rule](**given),
        rows=None if options.batch == "exact" else int(options.batch),
        seed=options.seed or 0,
        num_updates=options.iterations or 1,
    )


def _one_update(options: argparse.Namespace, start: Any, rule: str, sizes: Any) -> int:
    from surefoot import exact
    from surefoot.exact.report import describe_update

    file = _plot_file(options, f"exact-{start.mdp.name}-{rule}")
    path = exact.update_path(start, _update(options, rule), sizes)
    found = exact.report_update(path, clip_eps=sizes.clip_eps)
    if file:
        from surefoot.analysis.plots.exact import plot_update
        from surefoot.exact.picture import update_picture

        shared = isinstance(start.family, exact.LinearSoftmax)
        picture = update_picture(path, rule=rule, shared=shared, clip_eps=sizes.clip_eps)
        plot_update(picture, file)
    if options.json:
        drawn = file and str(file)
        emit({"mdp": start.mdp.name, "rule": rule, **asdict(found), "plot": drawn})
    else:
        _print(describe_update(start, rule, found), file)
    return 0


def _curves(options: argparse.Namespace, start: Any, rules: Sequence[str], sizes: Any) -> int:
    from surefoot import exact
    from surefoot.exact.report import describe_curves, time_limited

    count, mdp = options.iterations, start.mdp
    require_at_least(1, iterations=count)
    file = _plot_file(options, f"exact-{mdp.name}-curves")
    curves = [
        exact.learning_curve(start, rule, _update(options, rule), sizes, iterations=count)
        for rule in rules
    ]
    best = exact.optimal_policy(mdp)
    optimum = exact.solve(mdp, best).eta
    if file:
        from surefoot.analysis.plots.exact import plot_exact_curves

        plot_exact_curves(curves, file, title=f"{mdp.name}, exact updates", optimum=optimum)
    if options.json:
        for curve in curves:
            emit({"rule": curve.rule, "etas": curve.etas, **time_limited(mdp, curve.policy)})
        emit({"rule": "optimum", "eta": optimum, **time_limited(mdp, best)})
    else:
        _print(describe_curves(mdp, curves, best), file)
    return 0


def _print(text: str, picture: Path | None) -> None:
    print(text)
    if picture:
        print(f"picture: {picture}")


def _plot_file(options: argparse.Namespace, name: str) -> Path | None:
    if options.plot is None:
        return None
    return picture_file(options.plot or f"{name.replace(':', '-').replace('/', '-')}.png")


def essay_command(options: argparse.Namespace) -> int:
    """Compute and judge the essay, claim by claim."""
    from surefoot.analysis.essay import CLAIMS, as_html, as_record, as_text, judge_claims

    for number in options.claim or ():
        if not 1 <= number <= len(CLAIMS):
            raise ConfigError(f"--claim {number}: the claims are numbered 1 to {len(CLAIMS)}")
    out = Path(options.out) if options.out else None
    # Refused now, and not after all claims were computed.
    if out and out.exists() and not out.is_dir():
        raise StorageError(f"--out {out} is not a directory")
    judged = []
    # Some claims take long: each is shown as soon as it is judged.
    for claim in judge_claims(options.claim):
        judged.append(claim)
        if options.json:
            emit(as_record(claim))
        elif out:
            print(f"{claim.number}. {claim.title}: {claim.verdict}", flush=True)
        else:
            print(as_text(claim) + "\n", flush=True)
    if out:
        from surefoot.storage.files import replace_file, storage

        page = out / "essay.html"
        with storage(out, "making"):
            out.mkdir(parents=True, exist_ok=True)
        replace_file(page, as_html(judged).encode())
        if not options.json:
            print(f"page: {page}")
    return 0
