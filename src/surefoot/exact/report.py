"""One exact update with every number that describes it, many updates in a row, and their text."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from surefoot.exact.bounds import BOUNDS, guaranteed_returns
from surefoot.exact.families import LinearSoftmax, StartingPoint
from surefoot.exact.mdp import MDP
from surefoot.exact.path import UpdatePath
from surefoot.exact.solution import (
    Policy,
    episode_limit,
    kl_per_state,
    optimal_policy,
    solve,
    time_limited_optimum,
    time_limited_return,
    tv_per_state,
    visitation_tv,
)
from surefoot.exact.updates import ExactRule, StepSizes

TARGET_KL = 0.01
"""Mean KL that ppo-kl's weight adapts to over a learning curve, in nats."""


@dataclass(frozen=True)
class UpdateReport:
    """One update, promised against realised. Returns are discounted, from the start; KL in nats.

    Attributes:
        surrogate_new: return of the new policy by the surrogate L.
        promised_gain: surrogate_new - eta_old.
        realised_gain: eta_new - eta_old.
        ratio: realised over promised; None where nothing was promised.
        clipped_new: PPO's objective at the new policy, in units of return.
        kl_mean: mean KL(old || new) over visited states.
        kl_max: largest KL(old || new) of any state that is not terminal; None if infinite.
        kl_reverse_max: the same of KL(new || old).
        tv_max: largest total variation of a state's actions.
        ratio_max: largest pi_new / pi_old of any action.
        visitation_tv: total variation between the two state distributions, ends as one state.
        bounds: the return that each of B1 to B11 guarantees; None where it guarantees none.
        edge_of_trust_kl: mean KL where half the promise is kept, along this update.
        break_even_kl: mean KL where nothing of it is.
        best_kl: mean KL of the best policy along this update.
        best_eta: its return.
        optimum: the largest return of any policy.
    """

    eta_old: float
    eta_new: float
    surrogate_new: float
    promised_gain: float
    realised_gain: float
    ratio: float | None
    clipped_new: float
    kl_mean: float | None
    kl_max: float | None
    kl_reverse_max: float | None
    tv_max: float
    ratio_max: float
    visitation_tv: float
    bounds: dict[str, float | None]
    edge_of_trust_kl: float | None
    break_even_kl: float | None
    best_kl: float | None
    best_eta: float
    optimum: float


def report_update(path: UpdatePath, *, clip_eps: float = 0.2) -> UpdateReport:
    """Compute the report of one update."""
    old, new, marks = path.old, path.new, path.landmarks
    free = ~old.mdp.terminal
    promised, realised = old.gains(new)
    # An action that the old policy never takes has no ratio.
    possible = free[:, None] & (old.policy > 0)

    def kl_at(fraction: float | None) -> float | None:
        return None if fraction is None else _finite(path.kl(fraction))

    return UpdateReport(
        eta_old=old.eta,
        eta_new=new.eta,
        surrogate_new=old.eta + promised,
        promised_gain=promised,
        realised_gain=realised,
        ratio=realised / promised if path.promises else None,
        clipped_new=old.clipped(new.policy, clip_eps=clip_eps),
        kl_mean=kl_at(1.0),
        kl_max=_finite(kl_per_state(old.policy, new.policy)[free].max()),
        kl_reverse_max=_finite(kl_per_state(new.policy, old.policy)[free].max()),
        tv_max=float(tv_per_state(old.policy, new.policy)[free].max()),
        ratio_max=float((new.policy[possible] / old.policy[possible]).max()),
        visitation_tv=visitation_tv(old, new),
        bounds={name: _finite(low) for name, low in guaranteed_returns(old, new).items()},
        edge_of_trust_kl=kl_at(marks.half),
        break_even_kl=kl_at(marks.broken),
        best_kl=kl_at(marks.best),
        best_eta=old.eta + path.realised(marks.best),
        optimum=solve(old.mdp, optimal_policy(old.mdp)).eta,
    )


def _finite(number: float) -> float | None:
    return float(number) if np.isfinite(number) else None


class ExactCurve(NamedTuple):
    """Exact returns over updates, the start first, with the mean KL of each and the last policy."""

    rule: str
    etas: list[float]
    kls: list[float]
    policy: Policy


def learning_curve(
    start: StartingPoint, name: str, rule: ExactRule, sizes: StepSizes, *, iterations: int
) -> ExactCurve:
    """Update after update. ppo-kl's weight adapts by the paper's rule."""
    etas, kls = [start.old.eta], []
    for _ in range(iterations):
        # Its policy is solved once, for the KL here and for the update that follows.
        after = replace(start, theta=rule(start, sizes))
        kl = start.old.kl(after.old.policy)
        if name == "ppo-kl":
            sizes = replace(sizes, kl_coef=_adapted(sizes.kl_coef, kl))
        start = after
        etas.append(start.old.eta)
        kls.append(kl)
    return ExactCurve(name, etas, kls, start.old.policy)


def _adapted(kl_coef: float, kl: float) -> float:
    """Double the weight where KL exceeded 1.5 targets, halve it below target / 1.5.

    Source: Schulman et al. 2017, arXiv:1707.06347, section 4; held within [1e-4, 1e4].
    """
    factor = 2.0 if kl > 1.5 * TARGET_KL else 0.5 if kl < TARGET_KL / 1.5 else 1.0
    return min(max(kl_coef * factor, 1e-4), 1e4)


def describe_update(start: StartingPoint, rule: str, found: UpdateReport) -> str:
    """One update: its promise, its gain, its distance, and what the bounds guarantee."""
    mdp = start.mdp
    shared = isinstance(start.family, LinearSoftmax)
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
        lines.append(f"    {name:4s}{guaranteed:>14s}   {BOUNDS[name]}")
    return "\n".join(lines)


def _kl(value: float | None, missing: str = "infinite") -> str:
    return missing if value is None else f"{value:.4g}"


def _verdict(found: UpdateReport) -> str:
    if found.ratio is None:
        return "nothing was promised: the policy stays as it was"
    if found.realised_gain < 0 < found.promised_gain:
        return "the lie broke: a gain was promised, and the return fell"
    return f"{100 * found.ratio:.0f} % of the promise was kept"


def time_limited(mdp: MDP, policy: Policy) -> dict[str, Any]:
    """The policy's return as an evaluation sees it, and the optimum; {} where episodes never end.

    An MDP whose episodes neither end nor are cut has no undiscounted return.
    """
    limit = episode_limit(mdp)
    if limit is None:
        return {}
    return {
        "time_limit": mdp.max_steps,
        "time_limited_return": time_limited_return(mdp, policy, max_steps=limit),
        "time_limited_optimum": time_limited_optimum(mdp, max_steps=limit),
    }


def describe_curves(mdp: MDP, curves: Sequence[ExactCurve], best: Policy) -> str:
    """Where each rule ended, beside the optimum, discounted and as an evaluation sees it."""
    solved, limited = solve(mdp, best), time_limited(mdp, best)
    optimum, scale = solved.eta, solved.scale

    def episodes(policy: Policy) -> str:
        return f"{time_limited(mdp, policy)['time_limited_return']:11.4f}" if limited else ""

    lines = [
        f"{mdp.name}: {mdp.num_states} states, {mdp.num_actions} actions, gamma {mdp.gamma:g}",
        f"  {'rule':10s}{'updates':>8s}{'return':>12s}{'to optimum':>13s}{'falls':>7s}"
        f"{'within 1e-8':>13s}{'episodes' if limited else '':>11s}".rstrip(),
    ]
    for rule, etas, _, policy in curves:
        # Smaller falls are rounding of two solutions.
        falls = int(np.sum(np.diff(etas) < -1e-10 * scale))
        near = next((i for i, eta in enumerate(etas) if optimum - eta <= 1e-8 * scale), "-")
        lines.append(
            f"  {rule:10s}{len(etas) - 1:8d}{etas[-1]:12.4f}{optimum - etas[-1]:13.2e}{falls:7d}"
            f"{near:>13}{episodes(policy)}"
        )
    lines += [
        f"  {'optimum':18s}{optimum:12.4f}{'':33s}{episodes(best)}".rstrip(),
        "return: discounted, exact. falls: updates that lowered the return. within 1e-8: first "
        "update this close to the optimum, relative to its largest |Q|.",
    ]
    if limited:
        limit = f"cut after {mdp.max_steps} steps" if mdp.max_steps else "run to their end"
        lines.append(
            f"episodes: mean undiscounted return, {limit}; the optimum, for policies that see the "
            f"clock, is {limited['time_limited_optimum']:.4f}."
        )
    return "\n".join(lines)
