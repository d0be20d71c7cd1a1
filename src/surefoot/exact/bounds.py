"""How far the surrogate may be from the truth: eleven guarantees, from loose to sharp.

Each bounds |eta' - L| on both sides, B11 from below only; L minus a bound is a return that the new
policy is certain to reach. All are computed from the whole table. A batch cannot give such a
guarantee: a state that the old data missed may be the one that matters. docs/theory.md states each
bound with its source.
"""

from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import special

from surefoot.exact.solution import (
    Policy,
    SolvedPolicy,
    kl_per_state,
    tv_per_state,
    visit_shift,
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


def gap_bounds(old: SolvedPolicy, new: SolvedPolicy) -> dict[str, float]:
    """B1 to B11 by name: how much L may exceed the new policy's return, in units of return.

    Terminal states are one state to all of them: there Abar is 0, and nothing is done.
    Infinite where a bound says nothing (an action ruled out has infinite KL).

    Source: `BOUNDS`; the constants as in Schulman et al. 2015, arXiv:1502.05477, theorem 1, and
    Achiam et al. 2017, arXiv:1705.10528, corollary 1, in unnormalised visits.
    """
    mdp, free = old.mdp, ~old.mdp.terminal
    gamma, H = mdp.gamma, mdp.horizon
    # No bound depends on the actions in terminal states: they count as unchanged.
    tv = np.where(free, tv_per_state(old.policy, new.policy), 0.0)
    kl = np.where(free, kl_per_state(old.policy, new.policy), 0.0)
    reverse_kl = np.where(free, kl_per_state(new.policy, old.policy), 0.0)
    lift = old.expected_advantages(new.policy)
    alpha, span, epsbar = float(tv.max()), float(np.ptp(lift)), float(np.abs(lift).max())
    eps = float(np.abs(old.advantages).max())
    widest = float(np.ptp(old.advantages, axis=1).max())
    # Means over d = (1 - gamma) rho, where an unvisited state adds nothing.
    seen = old.visits > 0
    mean_tv, mean_kl = (float((old.visits[seen] / H) @ rows[seen]) for rows in (tv, kl))
    # Total variation is the same from either side, so the smaller KL will do.
    max_kl = float(min(kl.max(), reverse_kl.max()))
    # Coupled walks are together after t steps with probability at least (1 - alpha)^t; summed over
    # all t with the discount, this is what remains below the line.
    coupled = 1.0 - gamma * (1.0 - alpha)
    path_kl = gamma * H * mean_kl
    visit_tv = min(np.sqrt(path_kl / 2), np.sqrt(-np.expm1(-path_kl)), gamma * H * mean_tv)
    entropic_loss = _entropic_loss(old, lift, gamma * H * float(reverse_kl.max()))
    with np.errstate(invalid="ignore"):
        found = {
            "B1": 0.5 * visit_shift(old, new) * span,
            "B2": 2 * gamma * H**2 * mean_tv * epsbar,
            "B3": gamma * H**2 * mean_tv * span,
            "B4": 2 * gamma * H**2 * epsbar * np.sqrt(mean_kl / 2),
            "B5": 4 * eps * gamma * H**2 * alpha**2,
            "B6": 4 * eps * gamma * H**2 * max_kl,
            "B7": 2 * eps * gamma * H**2 * max_kl,
            "B8": gamma * alpha * H * span / coupled,
            "B9": 2 * gamma * alpha**2 * H * widest / coupled,
            "B10": H * span * visit_tv,
            "B11": old.promised_gain(new.policy) + entropic_loss,
        }
    # 0 times infinity: nothing can be gained or lost, or nothing is known.
    return {
        name: float(np.nan_to_num(bound, nan=np.inf, posinf=np.inf))
        for name, bound in found.items()
    }


def guaranteed_returns(old: SolvedPolicy, new: SolvedPolicy) -> dict[str, float]:
    """The return that each bound guarantees the new policy: L minus the bound."""
    reached = old.surrogate(new.policy)
    return {name: reached - bound for name, bound in gap_bounds(old, new).items()}


def _entropic_loss(old: SolvedPolicy, lift: Float[np.ndarray, " state"], cost: float) -> float:
    """The largest loss of return by Donsker and Varadhan's formula.

    The minimum over λ of (H / λ) (cost + log E_d exp(-λ Abar)), with cost = gamma H max
    KL(new || old). The penalty is the spread of Abar over old states, not its largest value.
    """
    scale = float(np.abs(lift).max())
    if scale == 0.0:
        return 0.0
    if not np.isfinite(cost):
        return np.inf
    horizon = old.mdp.horizon
    # Every λ gives a true bound; a finer grid around the best only sharpens it.
    middle, width, found = 0.0, 14.0, np.inf
    for _ in range(3):
        rates = np.exp(middle + np.linspace(-width, width, 57)) / scale
        terms: Any = special.logsumexp(-rates[:, None] * lift, b=old.visits / horizon, axis=1)
        losses = horizon / rates * (cost + terms)
        least = int(np.argmin(losses))
        found = min(found, float(losses[least]))
        # A fourteenth of the width is two points of the grid to either side.
        middle, width = float(np.log(rates[least] * scale)), width / 14.0
    return found


def degradation_bound(old: SolvedPolicy, new: Policy, *, max_kl: float) -> float:
    """Largest loss of a policy within mean KL `max_kl` whose surrogate is at least eta.

    sqrt(2 δ) gamma epsbar / (1 - gamma)²: all that a trust region by itself guarantees.

    Source: Achiam et al. 2017, arXiv:1705.10528, proposition 1.
    """
    epsbar = float(np.abs(old.expected_advantages(new)).max())
    return float(np.sqrt(2 * max_kl) * old.mdp.gamma * epsbar * old.mdp.horizon**2)


def mixture_bound(old: SolvedPolicy, target: Policy, share: float) -> float:
    """Lower bound on the return of (1 - share) old + share target.

    Source: Kakade & Langford 2002, theorem 4.1; epsbar = max |E_target A|, not max |A|.
    """
    gamma = old.mdp.gamma
    gain = share * old.promised_gain(target)
    epsbar = float(np.abs(old.expected_advantages(target)).max())
    loss = 2 * epsbar * gamma * share**2 * old.mdp.horizon / (1 - gamma * (1 - share))
    return old.eta + gain - loss


def mixture_step(old: SolvedPolicy, target: Policy) -> float:
    """Share of `target` with the largest guaranteed gain, in [0, 1].

    Source: Kakade & Langford 2002, for the bound rounded to 2 epsbar gamma share² / (1 - gamma)².
    """
    gamma, gain = old.mdp.gamma, old.promised_gain(target)
    epsbar = float(np.abs(old.expected_advantages(target)).max())
    if gain <= 0.0:
        return 0.0
    if gamma == 0.0:
        return 1.0
    return min(1.0, gain * (1 - gamma) ** 2 / (4 * gamma * epsbar))
