"""The laboratory's findings as text for people."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from surefoot import exact as t
from surefoot.exact.report import Curve, Report, Start


def describe(start: Start, rule: str, found: Report) -> str:
    """One update: what it promised, what it got, how far it went, and what was sure."""
    mdp = start.mdp
    shared = "one parameter for all states" if isinstance(start.family, t.Shared) else "tabular"
    lines = [
        f"{mdp.name}: {mdp.num_states} states ({int(mdp.terminal.sum())} terminal), "
        f"{mdp.num_actions} actions, gamma {mdp.gamma:g}; policy: {shared}; rule: {rule}",
        "",
        _line("return of the old policy", found.eta_old),
        _line("promised by L", found.surrogate_new, f"gain {found.promised_gain:+.4f}"),
        _line("return of the new policy", found.eta_new, f"gain {found.realised_gain:+.4f}"),
        f"  {_verdict(found)}",
        _line(
            "best return on the way", found.best_eta, f"at mean KL {_kl(found.best_kl, 'infinite')}"
        ),
        _line("optimum of any policy", found.optimum),
        "",
        f"  {'mean KL(old || new)':32s}{_kl(found.kl_mean, 'infinite'):>12s} nats over visited "
        "states",
        f"  {'largest KL of a state':32s}{_kl(found.kl_max, 'infinite'):>12s} "
        f"(the other way {_kl(found.kl_reverse_max, 'infinite')})",
        _line("largest total variation", found.tv_max),
        _line("largest ratio of an action", found.ratio_max),
        _line("visits that moved (TV)", found.visitation_tv),
        f"  {'edge of trust':32s}{_kl(found.edge_of_trust_kl):>12s} mean KL where half the promise "
        "is kept",
        f"  {'break-even':32s}{_kl(found.break_even_kl):>12s} mean KL where nothing of it is",
        "",
        "  the new policy's return is at least (from the whole table; old data alone cannot see",
        "  a state that it missed, and only fresh rollouts of the new policy can)",
    ]
    for name, low in found.bounds.items():
        sure = "nothing" if low is None else f"{low:.4g}"
        lines.append(f"    {name:4s}{sure:>14s}   {t.BOUNDS[name]}")
    return "\n".join(lines)


def _line(what: str, value: float, note: str = "") -> str:
    return f"  {what:32s}{value:12.4f} {note}".rstrip()


def _kl(value: float | None, missing: str = "none") -> str:
    return missing if value is None else f"{value:.4g}"


def _verdict(found: Report) -> str:
    if found.ratio is None:
        return "nothing was promised: the policy stays as it was"
    share = f"{100 * found.ratio:.0f} % of the promise was kept"
    if found.realised_gain < 0 < found.promised_gain:
        return "the lie broke: a gain was promised, and the return fell"
    return share


def time_limited(mdp: t.MDP, policy: Float[np.ndarray, "state action"]) -> dict[str, Any]:
    """What an evaluation of the policy would see, and the most that any could; {} without an end.

    An MDP whose episodes neither end nor are cut has no undiscounted return.
    """
    if mdp.max_steps is None and not mdp.terminal.any():
        return {}
    steps = mdp.max_steps or t.LONG_ENOUGH
    return {
        "time_limit": mdp.max_steps,
        "time_limited_return": t.time_limited_return(mdp, policy, max_steps=steps),
        "time_limited_optimum": t.time_limited_optimum(mdp, max_steps=steps),
    }


def describe_curves(
    mdp: t.MDP, found: Sequence[Curve], best: Float[np.ndarray, "state action"]
) -> str:
    """Where each rule ended, beside the optimum, discounted and as an evaluation would see it."""
    optimum, top = t.solve(mdp, best).eta, time_limited(mdp, best)
    lines = [
        f"{mdp.name}: {mdp.num_states} states, {mdp.num_actions} actions, gamma {mdp.gamma:g}",
        f"  {'rule':10s}{'updates':>8s}{'return':>12s}{'short of it':>13s}{'falls':>7s}"
        f"{'within 1e-8':>13s}{'episodes' if top else '':>11s}",
    ]
    for each in found:
        falls = int(np.sum(np.diff(each.etas) < -1e-10 * (1 + abs(optimum))))
        near = [i for i, eta in enumerate(each.etas) if optimum - eta <= 1e-8]
        lines.append(
            f"  {each.rule:10s}{len(each.etas) - 1:8d}{each.etas[-1]:12.4f}"
            f"{optimum - each.etas[-1]:13.2e}{falls:7d}{near[0] if near else '-':>13}"
            f"{_episodes(mdp, each.policy)}"
        )
    lines += [
        f"  {'optimum':10s}{'':8s}{optimum:12.4f}{'':33s}{_episodes(mdp, best)}".rstrip(),
        "return: discounted, exact. falls: updates after which it was lower.",
    ]
    if top:
        limit = f"cut after {mdp.max_steps} steps" if mdp.max_steps else "played to their end"
        lines.append(
            f"episodes: mean undiscounted return, {limit}; no policy, even one that watches the "
            f"clock, has more than {top['time_limited_optimum']:.4f}."
        )
    return "\n".join(lines)


def _episodes(mdp: t.MDP, policy: Float[np.ndarray, "state action"]) -> str:
    seen = time_limited(mdp, policy)
    return f"{seen['time_limited_return']:11.4f}" if seen else ""
