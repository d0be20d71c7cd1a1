"""What the claims share: their result, and the environments that they are tried on."""

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from surefoot.exact.bounds import guaranteed_returns
from surefoot.exact.families import StartingPoint, TabularSoftmax, starting_point
from surefoot.exact.mdp import MDP, corridor, random_mdp
from surefoot.exact.picture import LinePicture, UpdatePicture
from surefoot.exact.solution import SolvedPolicy, promised_gain, solve, visited_kl
from surefoot.exact.updates import StepSizes, updated


class Finding(NamedTuple):
    """What a claim's trial found; `analysis/essay.md` says what the numbers mean.

    Attributes:
        numbers: by name, as the essay's text refers to them.
        picture: what to draw, where a picture helps.
    """

    numbers: Mapping[str, float]
    picture: LinePicture | UpdatePicture | None = None


class RandomPair(NamedTuple):
    """Two policies on one random MDP."""

    old: SolvedPolicy
    new: SolvedPolicy

    @property
    def promised(self) -> float:
        """Gain in return by the surrogate."""
        return promised_gain(self.old, self.new.policy)

    @property
    def realised(self) -> float:
        """True gain in return."""
        return self.new.eta - self.old.eta


def random_pairs(count: int, *, gamma: float, seed: int = 0) -> Iterator[RandomPair]:
    """Random MDPs with pairs of policies from almost equal to unrelated."""
    rng, family = np.random.default_rng(seed), TabularSoftmax()
    for index in range(count):
        concentration = (1.0, 0.15, 0.0)[index % 3]
        mdp = random_mdp(
            int(rng.integers(2**31)), gamma=gamma, concentration=concentration, num_states=5
        )
        logits = rng.normal(size=(5, 3)) * rng.choice([0.3, 1.0, 3.0])
        moved = logits + rng.normal(size=(5, 3)) * rng.choice([0.05, 0.5, 2.0])
        yield RandomPair(solve(mdp, family.policy(logits)), solve(mdp, family.policy(moved)))


def certified_steps(pairs: Iterable[tuple[SolvedPolicy, SolvedPolicy]]) -> tuple[int, int]:
    """How many steps have a bound L - C max KL above the old return, and how many of those gain."""
    certain = [
        new.eta > old.eta for old, new in pairs if guaranteed_returns(old, new)["B6"] > old.eta
    ]
    return len(certain), sum(certain)


def going_right(mdp: MDP, p: float) -> Float[np.ndarray, "state action"]:
    """The policy that goes right with probability p in every state."""
    return np.tile([1.0 - p, p], (mdp.num_states, 1))


def corridor_family() -> Iterator[StartingPoint]:
    """Corridors of many lengths, costs, discounts and starts whose old policy earns something.

    The grid is fixed, so that no case was selected to make a point.
    """
    for stay in (False, True):
        for m in (2, 3, 4, 5, 7):
            for B in (1.0, 10.0, 50.0, 200.0, 1000.0):
                for gamma in (0.9, 0.95, 0.99):
                    for p_old in (0.02, 0.05, 0.1, 0.2, 0.4, 0.6):
                        mdp = corridor(m=m, B=B, gamma=gamma, stay=stay)
                        start = starting_point(mdp, p_old=p_old)
                        if start.old.eta > 0:
                            yield start


class Falls(NamedTuple):
    """Outcome of one exact update on each of `count` corridors.

    `share` is the share of them whose return fell, `median_kl` the median of the mean KL.
    """

    count: int
    share: float
    median_kl: float


@cache
def corridor_falls(rule: str) -> Falls:
    """How often one exact update, of radius 0.01 or clip 0.2, lowers the corridors' return."""
    fell, kls = 0, []
    for start in corridor_family():
        new = updated(start, rule, StepSizes(max_kl=0.01))
        fell += new.eta < start.old.eta - 1e-9
        kls.append(visited_kl(start.old, new.policy))
    return Falls(len(kls), fell / len(kls), float(np.median(kls)))
