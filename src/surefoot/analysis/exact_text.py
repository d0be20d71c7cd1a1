"""Exact updates and learning curves as text for a terminal."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from surefoot import exact


def describe_update(start: exact.StartingPoint, rule: str, found: exact.UpdateReport) -> str:
    """One update: its promise, its gain, its distance, and what the bounds guarantee."""
    mdp = start.mdp
    shared = isinstance(start.family, exact.LinearSoftmax)
    rows = [
        ("return of the old policy", f"{found.eta_old:.4f}", ""),
        ("promised by L", f"{found.surrogate_new:.4f}", f"gain {found.promised_gain:+.4f}"),
        ("return of the new policy", f"{found.eta_new:.4f}", f"gain {found.realised_gain:+.4f}"),
        (_verdict(found), "", ""),
        ("best return along the update", f"{found.best_eta:.4f}", f"at KL {_kl(found.best_kl)}"),
        ("optimum of any policy", f"{found.optimum:.4f}", ""),
        ("", "", ""),
        ("mean KL(old || new)", _kl(found.kl_mean), "nats over visited states"),
        ("largest KL of a state", _kl(found.kl_max), f"(reverse KL {_kl(found.kl_reverse_max)})"),
        ("largest total variation", f"{found.tv_max:.4f}", ""),
        ("largest ratio of an action", f"{found.ratio_max:.4f}", ""),
        ("share of visits that moved", f"{found.visitation_tv:.4f}", ""),
        ("edge of trust", _kl(found.edge_of_trust_kl, "none"), "KL where half the promise is kept"),
        ("break-even", _kl(found.break_even_kl, "none"), "KL where nothing of it is kept"),
    ]
    lines = [
        f"{mdp.name}: {mdp.num_states} states ({int(mdp.terminal.sum())} terminal), "
        f"{mdp.num_actions} actions, gamma {mdp.gamma:g}; policy: "
        f"{'one parameter for all states' if shared else 'tabular'}; rule: {rule}",
        "",
        *(f"  {what:32s}{value:>12s} {note}".rstrip() for what, value, note in rows),
        "",
        "  guaranteed return of the new policy (needs the whole table: old data cannot show a",
        "  state that it missed; only fresh rollouts of the new policy can)",
    ]
    for name, low in found.bounds.items():
        guaranteed = "nothing" if low is None else f"{low:.4g}"
        lines.append(f"    {name:4s}{guaranteed:>14s}   {exact.BOUNDS[name]}")
    return "\n".join(lines)


def _kl(value: float | None, missing: str = "infinite") -> str:
    return missing if value is None else f"{value:.4g}"


def _verdict(found: exact.UpdateReport) -> str:
    if found.ratio is None:
        return "nothing was promised: the policy stays as it was"
    if found.realised_gain < 0 < found.promised_gain:
        return "the lie broke: a gain was promised, and the return fell"
    return f"{100 * found.ratio:.0f} % of the promise was kept"


def time_limited(mdp: exact.MDP, policy: exact.Policy) -> dict[str, Any]:
    """The policy's return as an evaluation sees it, and the optimum; {} where episodes never end.

    An MDP whose episodes neither end nor are cut has no undiscounted return.
    """
    limit = exact.episode_limit(mdp)
    if limit is None:
        return {}
    return {
        "time_limit": mdp.max_steps,
        "time_limited_return": exact.time_limited_return(mdp, policy, max_steps=limit),
        "time_limited_optimum": exact.time_limited_optimum(mdp, max_steps=limit),
    }


def describe_curves(mdp: exact.MDP, curves: Sequence[exact.ExactCurve], best: exact.Policy) -> str:
    """Where each rule ended, beside the optimum, discounted and as an evaluation sees it."""
    optimum, limited = exact.solve(mdp, best).eta, time_limited(mdp, best)

    def episodes(policy: exact.Policy) -> str:
        return f"{time_limited(mdp, policy)['time_limited_return']:11.4f}" if limited else ""

    lines = [
        f"{mdp.name}: {mdp.num_states} states, {mdp.num_actions} actions, gamma {mdp.gamma:g}",
        f"  {'rule':10s}{'updates':>8s}{'return':>12s}{'to optimum':>13s}{'falls':>7s}"
        f"{'within 1e-8':>13s}{'episodes' if limited else '':>11s}".rstrip(),
    ]
    for rule, etas, _, policy in curves:
        falls = int(np.sum(np.diff(etas) < -1e-10 * (1 + abs(optimum))))
        near = next((i for i, eta in enumerate(etas) if optimum - eta <= 1e-8), "-")
        lines.append(
            f"  {rule:10s}{len(etas) - 1:8d}{etas[-1]:12.4f}{optimum - etas[-1]:13.2e}{falls:7d}"
            f"{near:>13}{episodes(policy)}"
        )
    lines += [
        f"  {'optimum':18s}{optimum:12.4f}{'':33s}{episodes(best)}".rstrip(),
        "return: discounted, exact. falls: updates that lowered "
        "the return. within 1e-8: first update this close to the optimum.",
    ]
    if limited:
        limit = f"cut after {mdp.max_steps} steps" if mdp.max_steps else "run to their end"
        lines.append(
            f"episodes: mean undiscounted return, {limit}; the optimum, for policies that see the "
            f"clock, is {limited['time_limited_optimum']:.4f}."
        )
    return "\n".join(lines)
