"""From the old policy through the new one and beyond: what holds along the way."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import optimize

from surefoot.exact.families import StartingPoint, softmax
from surefoot.exact.solution import Policy, SolvedPolicy, solve
from surefoot.exact.updates import ExactRule, StepSizes

MAX_FRACTION = 100.0
"""Multiples of the update that are searched; most policies are deterministic by then."""


class Landmarks(NamedTuple):
    """Where the surrogate stops being worth following, as fractions of the update, or None.

    `half` is the edge of trust, where half the promise is kept; `broken` is break-even, where
    nothing is left of it; `best` is the largest return on the path.
    """

    half: float | None
    broken: float | None
    best: float


@dataclass(frozen=True, eq=False)
class UpdatePath:
    """Policies at fractions of an update: 0 is the old policy, 1 the new one.

    Straight in the logits, as a step of parameters is; straight in the probabilities where the new
    policy rules an action out, which no logit reaches. Such a path ends at 1.
    """

    old: SolvedPolicy
    new: SolvedPolicy

    @cached_property
    def mixture(self) -> bool:
        """Whether the path is straight in the probabilities."""
        return bool(((self.new.policy == 0) & (self.old.policy > 0)).any())

    @property
    def end(self) -> float:
        """The largest fraction on the path."""
        return 1.0 if self.mixture else MAX_FRACTION

    def at(self, fraction: float) -> Float[np.ndarray, "state action"]:
        """The policy at a fraction of the update."""
        old, new = self.old.policy, self.new.policy
        if self.mixture:
            return (1.0 - fraction) * old + fraction * new
        with np.errstate(divide="ignore"):
            logits, target = np.log(old), np.log(new)
        # An action ruled out before and after stays so; -inf minus -inf is no direction.
        direction = np.where(old > 0, target - logits, 0.0)
        return softmax(logits + fraction * direction)

    def kl(self, fraction: float) -> float:
        """Mean KL(old || policy) at a fraction, in nats."""
        return self.old.kl(self.at(fraction))

    def promised(self, fraction: float) -> float:
        """Gain in return by the surrogate at a fraction."""
        return self.old.promised_gain(self.at(fraction))

    def realised(self, fraction: float) -> float:
        """True gain in return at a fraction."""
        return solve(self.old.mdp, self.at(fraction)).eta - self.old.eta

    @cached_property
    def promises(self) -> bool:
        """Whether the update promises more than rounding."""
        return abs(self.promised(1.0)) > 1e-12 * self.old.scale

    @cached_property
    def landmarks(self) -> Landmarks:
        """Search the path on a grid, and refine to rounding.

        The first crossing counts: the return may rise again later, which no surrogate foresees.
        """
        # Every point is a dense solve, whose cost grows with the cube of the number of states.
        points = 240 if self.old.mdp.num_states <= 200 else 48
        # Equal ratios: the edge may lie far below the update or far beyond it.
        fractions = np.geomspace(1e-6, self.end, points)
        promised = np.array([self.promised(a) for a in fractions])
        realised = np.array([self.realised(a) for a in fractions])

        def crossing(share: float) -> float | None:
            below = np.flatnonzero((promised > 0) & (realised < share * promised))
            # A path that promises nothing near its start has no edge of trust.
            if len(below) == 0 or promised[0] <= 0 or not self.promises:
                return None
            first = int(below[0])
            if first == 0:
                return float(fractions[0])
            root: Any = optimize.brentq(
                lambda a: self.realised(a) - share * self.promised(a),
                *fractions[first - 1 : first + 1],
                xtol=1e-14,
            )
            return float(root)

        top = int(np.argmax(realised))
        around = fractions[max(top - 1, 0)], fractions[min(top + 1, points - 1)]
        found: Any = optimize.minimize_scalar(
            lambda a: -self.realised(a), bounds=around, method="bounded", options={"xatol": 1e-10}
        )
        # Where the return has several tops the search may end below the best point of the grid.
        best = float(found.x) if -found.fun >= realised[top] else float(fractions[top])
        if realised[top] <= 0.0:
            best = 0.0
        return Landmarks(crossing(0.5), crossing(0.0), best)


def update_path(start: StartingPoint, rule: ExactRule, sizes: StepSizes) -> UpdatePath:
    """The path along one update."""
    new = solve(start.mdp, start.family.policy(rule(start, sizes)))
    return UpdatePath(start.old, new)


class Walk(NamedTuple):
    """The truth and the promise at each of a list of policies.

    `kl` is mean KL(old || policy) in nats, `clipped` PPO's objective in units of return.
    """

    solved: list[SolvedPolicy]
    kl: Float[np.ndarray, " point"]
    eta: Float[np.ndarray, " point"]
    surrogate: Float[np.ndarray, " point"]
    clipped: Float[np.ndarray, " point"]


def walk(old: SolvedPolicy, policies: Sequence[Policy], *, clip_eps: float = 0.2) -> Walk:
    """Evaluate policies as seen from the old one."""
    solved = [solve(old.mdp, policy) for policy in policies]
    return Walk(
        solved,
        np.array([old.kl(policy) for policy in policies]),
        np.array([new.eta for new in solved]),
        np.array([old.surrogate(policy) for policy in policies]),
        np.array([old.clipped(policy, clip_eps=clip_eps) for policy in policies]),
    )
