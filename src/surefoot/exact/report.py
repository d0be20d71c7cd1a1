"""One exact update with every number that describes it; and many updates in a row."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from surefoot.exact.bounds import guaranteed_returns
from surefoot.exact.families import StartingPoint
from surefoot.exact.path import UpdatePath
from surefoot.exact.solution import (
    kl_per_state,
    optimal_policy,
    solve,
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
        eta_old: return of the old policy.
        eta_new: return of the new one.
        surrogate_new: return of the new one by the surrogate L.
        promised_gain: surrogate_new - eta_old.
        realised_gain: eta_new - eta_old.
        ratio: realised over promised; None where nothing was promised.
        clipped_new: PPO's objective at the new policy, in units of return.
        kl_mean: mean KL(old || new) over visited states.
        kl_max: largest KL(old || new) of any state that is not terminal; None if infinite.
        kl_reverse_max: the same of KL(new || old).
        tv_max: largest total variation of a state's actions.
        ratio_max: largest pi_new / pi_old of any action.
        visitation_tv: total variation between the two state distributions.
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
    promised, realised = old.promised_gain(new.policy), new.eta - old.eta
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
    policy: Float[np.ndarray, "state action"]


def learning_curve(
    start: StartingPoint, name: str, rule: ExactRule, sizes: StepSizes, *, iterations: int
) -> ExactCurve:
    """Update after update. ppo-kl's weight adapts by the paper's rule."""
    etas, kls = [start.old.eta], []
    for _ in range(iterations):
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
