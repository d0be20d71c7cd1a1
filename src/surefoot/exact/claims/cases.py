"""Shared by the claims: their result, and the environments that test them."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import NamedTuple, SupportsFloat

import numpy as np
from jaxtyping import Float

from surefoot import exact
from surefoot.exact.picture import LinePicture, UpdatePicture


class Finding(NamedTuple):
    """Result of testing a claim; `analysis/essay.md` explains the numbers, by their names."""

    numbers: Mapping[str, float]
    picture: LinePicture | UpdatePicture | None = None


def finding(
    picture: LinePicture | UpdatePicture | None = None, /, **numbers: SupportsFloat
) -> Finding:
    """A finding with these numbers as floats."""
    return Finding({name: float(number) for name, number in numbers.items()}, picture)


Pair = tuple[exact.SolvedPolicy, exact.SolvedPolicy]
"""An old and a new policy on one MDP."""


def random_pairs(count: int, *, gamma: float, seed: int = 0) -> Iterator[Pair]:
    """Random MDPs with pairs of policies from almost equal to unrelated."""
    rng, family = np.random.default_rng(seed), exact.TabularSoftmax()
    for index in range(count):
        concentration = (1.0, 0.15, 0.0)[index % 3]
        mdp = exact.random_mdp(
            int(rng.integers(2**31)), gamma=gamma, concentration=concentration, num_states=5
        )
        logits = rng.normal(size=(5, 3)) * rng.choice([0.3, 1.0, 3.0])
        moved = logits + rng.normal(size=(5, 3)) * rng.choice([0.05, 0.5, 2.0])
        yield exact.solve(mdp, family.policy(logits)), exact.solve(mdp, family.policy(moved))


def certified_steps(pairs: Iterable[Pair]) -> tuple[int, int]:
    """How many steps have a bound L - C max KL above the old return, and how many of those gain."""
    certain = [
        new.eta > old.eta
        for old, new in pairs
        if exact.guaranteed_returns(old, new)["B6"] > old.eta
    ]
    return len(certain), sum(certain)


def going_right(mdp: exact.MDP, p: float) -> Float[np.ndarray, "state action"]:
    """The policy that goes right with probability p in every state."""
    return np.tile([1.0 - p, p], (mdp.num_states, 1))


def corridor_family() -> Iterator[exact.StartingPoint]:
    """Corridors of many lengths, costs and discounts with old policies of positive return.

    The grid is fixed, so that no case was selected to make a point.
    """
    costs, starts = (1.0, 10.0, 50.0, 200.0, 1000.0), (0.02, 0.05, 0.1, 0.2, 0.4, 0.6)
    grid = itertools.product((False, True), (2, 3, 4, 5, 7), costs, (0.9, 0.95, 0.99), starts)
    for stay, m, B, gamma, p_old in grid:
        mdp = exact.corridor(m=m, B=B, gamma=gamma, stay=stay)
        start = exact.starting_point(mdp, p_old=p_old)
        if start.old.eta > 0:
            yield start


@cache
def corridor_falls(rule: str) -> tuple[int, float, float]:
    """One exact update, of radius 0.01 or clip 0.2, on each of the corridors.

    Their number, the share of them that lost return, and the median of the mean KL.
    """
    fell, kls = 0, []
    for start in corridor_family():
        new = exact.updated(start, rule, exact.StepSizes(max_kl=0.01))
        fell += new.eta < start.old.eta - 1e-9
        kls.append(start.old.kl(new.policy))
    return len(kls), fell / len(kls), float(np.median(kls))
