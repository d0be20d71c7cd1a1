"""How far the surrogate may be from the truth: eleven guarantees, from loose to sharp.

Each bounds |eta' - L| on both sides, B11 only from below; L less a bound is a return that the new
policy is sure to reach. All are computed from the whole table. From a batch nothing like it can be
had: a state that old data missed may be the one that matters.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import special

from surefoot.exact.mdp import MDP
from surefoot.exact.solution import (
    Policy,
    Solution,
    expected_advantages,
    row_kl,
    row_tv,
    surrogate,
)

BOUNDS = {
    "B1": "Hölder on the true visitation shift",
    "B2": "Achiam et al. 2017, mean total variation",
    "B3": "Pirotta et al. 2013, mean total variation, by the span",
    "B4": "Achiam et al. 2017, mean KL",
    "B5": "Schulman et al. 2015, largest total variation",
    "B6": "Schulman et al. 2015, largest KL: the essay's C",
    "B7": "B6 with Pinsker's own constant",
    "B8": "coupling, by the span",
    "B9": "coupling, by the largest advantage: sharp",
    "B10": "square-root-horizon visitation lemma, mean KL",
    "B11": "entropic certificate, largest reverse KL",
}


class Pair(NamedTuple):
    """What the bounds read of an old policy and a new one; terminal states count as unchanged."""

    horizon: float
    gamma: float
    visits: Float[np.ndarray, " state"]
    shift: float
    lift: Float[np.ndarray, " state"]
    tv: Float[np.ndarray, " state"]
    kl: Float[np.ndarray, " state"]
    reverse_kl: Float[np.ndarray, " state"]
    eps: float
    widest: float

    def mean(self, rows: Float[np.ndarray, " state"]) -> float:
        """Mean over the old policy's states, d = (1 - gamma) rho; a state never seen adds 0."""
        seen = self.visits > 0
        return float((self.visits[seen] / self.horizon) @ rows[seen])


def _pair(mdp: MDP, old: Solution, new: Solution) -> Pair:
    free = ~mdp.terminal
    return Pair(
        horizon=mdp.horizon,
        gamma=mdp.gamma,
        visits=old.visits,
        shift=float(np.abs(new.visits - old.visits).sum()),
        lift=expected_advantages(old, new.policy),
        tv=np.where(free, row_tv(old.policy, new.policy), 0.0),
        kl=np.where(free, row_kl(old.policy, new.policy), 0.0),
        reverse_kl=np.where(free, row_kl(new.policy, old.policy), 0.0),
        eps=float(np.abs(old.advantages).max()),
        widest=float(np.ptp(old.advantages, axis=1).max()),
    )


def gap_bounds(mdp: MDP, old: Solution, new: Solution) -> dict[str, float]:
    """B1 to B11 by name: how much L may exceed the new policy's return, in units of return.

    Infinite where a bound says nothing (an action ruled out has infinite KL).

    Source: `BOUNDS`; the constants as in Schulman et al. 2015, arXiv:1502.05477, theorem 1, and
    Achiam et al. 2017, arXiv:1705.10528, corollary 1, in unnormalised visits.
    """
    p = _pair(mdp, old, new)
    H, gamma, alpha = p.horizon, p.gamma, float(p.tv.max())
    span, epsbar = float(np.ptp(p.lift)), float(np.abs(p.lift).max())
    mean_tv, mean_kl = p.mean(p.tv), p.mean(p.kl)
    # Total variation is the same from either side, so the smaller KL will do.
    max_kl = float(min(p.kl.max(), p.reverse_kl.max()))
    coupled = 1.0 - gamma * (1.0 - alpha)
    path_kl = gamma * H * mean_kl
    visit_tv = min(np.sqrt(path_kl / 2), np.sqrt(-np.expm1(-path_kl)), gamma * H * mean_tv)
    with np.errstate(invalid="ignore"):
        found = {
            "B1": 0.5 * p.shift * span,
            "B2": 2 * gamma * H**2 * mean_tv * epsbar,
            "B3": gamma * H**2 * mean_tv * span,
            "B4": 2 * gamma * H**2 * epsbar * np.sqrt(mean_kl / 2),
            "B5": 4 * p.eps * gamma * H**2 * alpha**2,
            "B6": 4 * p.eps * gamma * H**2 * max_kl,
            "B7": 2 * p.eps * gamma * H**2 * max_kl,
            "B8": gamma * alpha * H * span / coupled,
            "B9": 2 * gamma * alpha**2 * H * p.widest / coupled,
            "B10": H * span * visit_tv,
            "B11": surrogate(old, new.policy) - _entropic(p, old.eta),
        }
    # 0 times infinity: nothing can be gained or lost, or nothing is known.
    return {
        name: float(np.nan_to_num(bound, nan=np.inf, posinf=np.inf))
        for name, bound in found.items()
    }


def guaranteed(mdp: MDP, old: Solution, new: Solution) -> dict[str, float]:
    """The return that each bound promises the new policy at the least: L less the bound."""
    reached = surrogate(old, new.policy)
    return {name: reached - bound for name, bound in gap_bounds(mdp, old, new).items()}


def _entropic(p: Pair, eta: float) -> float:
    """The return that is sure by Donsker and Varadhan's formula.

    eta - min over λ of (H / λ) (K + log E_d exp(-λ Abar)), with K = gamma H max KL(new || old).
    The penalty is the spread of Abar over old states, not its largest value.
    """
    cost = p.gamma * p.horizon * float(p.reverse_kl.max())
    scale = float(np.abs(p.lift).max())
    if scale == 0.0:
        return eta
    if not np.isfinite(cost):
        return -np.inf
    share = p.visits / p.horizon
    # Every λ gives a true bound; a finer grid around the best only sharpens it.
    middle, width, found = 0.0, 14.0, np.inf
    for _ in range(3):
        rates = np.exp(middle + np.linspace(-width, width, 57)) / scale
        terms: Any = special.logsumexp(-rates[:, None] * p.lift, b=share, axis=1)
        losses = p.horizon / rates * (cost + terms)
        least = int(np.argmin(losses))
        found = min(found, float(losses[least]))
        middle, width = float(np.log(rates[least] * scale)), width / 14.0
    return eta - found


def degradation_bound(mdp: MDP, old: Solution, new: Policy, *, max_kl: float) -> float:
    """The most that a policy within mean KL `max_kl`, with L >= eta, can lose.

    sqrt(2 δ) gamma epsbar / (1 - gamma)²: what a trust region by itself promises.

    Source: Achiam et al. 2017, arXiv:1705.10528, proposition 1.
    """
    epsbar = float(np.abs(expected_advantages(old, new)).max())
    return float(np.sqrt(2 * max_kl) * mdp.gamma * epsbar * mdp.horizon**2)


def mixture_bound(mdp: MDP, old: Solution, target: Policy, share: float) -> float:
    """The return that (1 - share) old + share target reaches at the least.

    Source: Kakade & Langford 2002, theorem 4.1; epsbar = max |E_target A|, not max |A|.
    """
    gamma, lift = mdp.gamma, expected_advantages(old, target)
    gain = share * float(old.visits @ lift)
    epsbar = float(np.abs(lift).max())
    loss = 2 * epsbar * gamma * share**2 * mdp.horizon / (1 - gamma * (1 - share))
    return old.eta + gain - loss


def mixture_step(mdp: MDP, old: Solution, target: Policy) -> float:
    """The share of `target` with the largest guaranteed gain, in [0, 1].

    Source: Kakade & Langford 2002, for the bound rounded to 2 epsbar gamma share² / (1 - gamma)².
    """
    lift = expected_advantages(old, target)
    gain, epsbar = float(old.visits @ lift), float(np.abs(lift).max())
    if gain <= 0.0:
        return 0.0
    if mdp.gamma == 0.0:
        return 1.0
    return min(1.0, gain * (1 - mdp.gamma) ** 2 / (4 * mdp.gamma * epsbar))
