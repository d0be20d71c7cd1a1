"""From the old policy through the new one and beyond: what holds along the way."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import optimize, special

from surefoot import exact as t

FARTHEST = 100.0
"""Multiples of the update that are looked at; most policies are deterministic by then."""


class Ray(NamedTuple):
    """Policies at fractions of an update: 0 is the old policy, 1 the new one.

    Straight in the logits, as a step of parameters is; straight in the probabilities where the new
    policy rules an action out, which no logit reaches. Such a ray ends at 1.
    """

    mdp: t.MDP
    old: t.Solution
    new: Float[np.ndarray, "state action"]

    @property
    def mixture(self) -> bool:
        """Whether the ray is straight in the probabilities."""
        return bool(((self.new == 0) & (self.old.policy > 0)).any())

    @property
    def end(self) -> float:
        """The largest fraction on the ray."""
        return 1.0 if self.mixture else FARTHEST

    def at(self, fraction: float) -> Float[np.ndarray, "state action"]:
        """The policy at a fraction of the update."""
        old = self.old.policy
        if self.mixture:
            return (1.0 - fraction) * old + fraction * self.new
        with np.errstate(divide="ignore"):
            logits, target = np.log(old), np.log(self.new)
        # What is ruled out before and after stays so; -inf less -inf is no direction.
        direction = np.where(old > 0, target - logits, 0.0)
        return special.softmax(logits + fraction * direction, axis=1)

    def kl(self, fraction: float) -> float:
        """Mean KL(old || new) there, in nats."""
        weights = t.state_weights(self.mdp, self.old)
        rows = t.row_kl(self.old.policy, self.at(fraction))
        return float(weights[weights > 0] @ rows[weights > 0])

    def promised(self, fraction: float) -> float:
        """What L says is gained there."""
        return t.surrogate(self.old, self.at(fraction)) - self.old.eta

    def realised(self, fraction: float) -> float:
        """What is gained there."""
        return t.solve(self.mdp, self.at(fraction)).eta - self.old.eta


class Landmarks(NamedTuple):
    """Where the surrogate stops being worth following, as fractions of the update, or None.

    `half` is the edge of trust, where half the promise is kept; `broken` is break-even, where
    nothing is left of it; `best` is the largest return on the ray.
    """

    half: float | None
    broken: float | None
    best: float


def landmarks(ray: Ray) -> Landmarks:
    """Look along the ray, and refine what is found to rounding.

    The first crossing counts: what comes back later is luck.
    """
    points = 240 if ray.mdp.num_states <= 200 else 48
    fractions = np.geomspace(1e-6, ray.end, points)
    promised = np.array([ray.promised(a) for a in fractions])
    realised = np.array([ray.realised(a) for a in fractions])

    def crossing(share: float) -> float | None:
        below = np.flatnonzero((promised > 0) & (realised < share * promised))
        if len(below) == 0 or promised[0] <= 0:
            return None
        first = int(below[0])
        if first == 0:
            return float(fractions[0])
        kept = lambda a: ray.realised(a) - share * ray.promised(a)  # noqa: E731
        root: Any = optimize.brentq(kept, *fractions[first - 1 : first + 1], xtol=1e-14)
        return float(root)

    top = int(np.argmax(realised))
    around = fractions[max(top - 1, 0)], fractions[min(top + 1, points - 1)]
    found: Any = optimize.minimize_scalar(
        lambda a: -ray.realised(a), bounds=around, method="bounded", options={"xatol": 1e-10}
    )
    best = float(found.x) if -found.fun >= realised[top] else float(fractions[top])
    if realised[top] <= 0.0:
        best = 0.0
    return Landmarks(crossing(0.5), crossing(0.0), best)
