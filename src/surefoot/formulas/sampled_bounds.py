"""Lower bounds of a step's gain, estimated from rows of the old policy."""

from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import special


def sampled_bounds(
    rows: Float[np.ndarray, "row 4"],
    promise: Float[np.ndarray, " episode"],
    mass: Float[np.ndarray, " episode"],
    kl: Float[np.ndarray, " episode"],
    *,
    worst_kl: tuple[float, float],
    gamma: float,
    horizon: float,
) -> dict[str, float]:
    """Lower bounds of the gain of discounted return over the old policy, by name.

    B6 has the largest KL of a state, B10 the square root of the horizon and the mean KL, B11 the
    entropic spread of advantages. None is a guarantee: maxima and log-moments of a sample are
    lower estimates, and no row is of a state that the old policy never visited. Single rows stand
    for expected advantages, which makes spans wider. What is not finite is left out.

    Args:
        rows: gamma^t, (r - 1) A, |r - 1| / 2 and |A| of each row; r is the likelihood ratio.
        promise: sum of gamma^t (r - 1) A in each episode.
        mass: sum of gamma^t in each episode.
        kl: sum of gamma^t KL(old || new) in each episode, in nats.
        worst_kl: the largest KL of a row, and the largest in the other direction.
        gamma: discount per step.
        horizon: 1 / (1 - gamma).

    Source: Schulman et al. 2015, arXiv:1502.05477, theorem 1; Donsker & Varadhan 1983.
    """
    weights, lift, half_moved, size = rows.T
    gain = float(promise.mean())
    # In float32 the KL of a very small step may come out below 0.
    path = gamma * max(float(kl.mean()), 0.0)
    # Episodes that ended are in a state where nothing moves and nothing is gained.
    share = weights * (float(mass.mean()) / horizon / weights.sum())
    visits = min((path / 2) ** 0.5, float(-np.expm1(-path)) ** 0.5)
    visits = min(visits, gamma * horizon * float(share @ half_moved))
    span = max(float(lift.max()), 0.0) - min(float(lift.min()), 0.0)
    found = {
        # B6 needs total variation, the same from either side: the smaller KL will do.
        "B6": gain - 4 * float(size.max()) * gamma * horizon**2 * min(worst_kl),
        "B10": gain - horizon * span * visits,
        "B11": -_entropic_loss(lift, share, gamma * horizon * worst_kl[1], horizon),
    }
    return {name: value for name, value in found.items() if np.isfinite(value)}


def _entropic_loss(
    lift: Float[np.ndarray, " row"],
    share: Float[np.ndarray, " row"],
    cost: float,
    horizon: float,
) -> float:
    """Min over λ of (H / λ) (K + log E exp(-λ lift)); any λ is a bound, so a grid will do."""
    scale = float(np.abs(lift).max())
    if scale == 0.0 or not np.isfinite(cost):
        return 0.0 if scale == 0.0 else np.inf
    rest = max(1.0 - float(share.sum()), 0.0) + 1e-300
    losses = []
    for rate in np.geomspace(1e-4, 30.0, 16) / scale:
        # The rest of the mass is in states of ended episodes, where the lift is 0.
        moment: Any = special.logsumexp(np.append(-rate * lift, 0.0), b=np.append(share, rest))
        losses.append(horizon / rate * (cost + moment))
    return float(min(losses))
