"""A claim of the essay on trial: what it says, what was computed, what came out."""

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from surefoot import exact as t
from surefoot.exact.report import Start, start_at

Draw = Callable[[Path], None]


class Claim(NamedTuple):
    """One sentence of the essay, judged.

    Attributes:
        title: a few words.
        says: the claim, in our words.
        experiment: what was computed, and what one has to know to follow.
        numbers: what came out, by name.
        finding: the numbers in a sentence.
        verdict: starts with `holds`, `holds when` or `fails`.
        draw: draws a picture into a PNG file, where one helps.
        caption: what the picture shows.
        command: recomputes the heart of it, where there is more than `essay --claim N`.
    """

    title: str
    says: str
    experiment: str
    numbers: Mapping[str, float]
    finding: str
    verdict: str
    draw: Draw | None = None
    caption: str = ""
    command: str = ""


class Solved(NamedTuple):
    """A start and its solution."""

    start: Start
    old: t.Solution

    @property
    def mdp(self) -> t.MDP:
        """The MDP."""
        return self.start.mdp

    def policy(self, theta: np.ndarray) -> Float[np.ndarray, "state action"]:
        """The family's policy at theta."""
        return self.start.family.policy(theta)

    def after(self, rule: str, **step: float) -> t.Solution:
        """The solved policy after one exact update."""
        theta = t.EXACT[rule](*self.start, self.old, t.Step(**step))
        return t.solve(self.mdp, self.policy(theta))


def solved(mdp: t.MDP, *, p_old: float | None = None) -> Solved:
    """The usual start of an MDP, solved."""
    start = start_at(mdp, p_old=p_old)
    return Solved(start, t.solve(mdp, start.family.policy(start.theta)))


def right(p: float, num_states: int) -> Float[np.ndarray, "state action"]:
    """The policy that goes right with probability p in every state."""
    return np.tile([1.0 - p, p], (num_states, 1))


class RandomPair(NamedTuple):
    """A random MDP, a policy on it, and another one."""

    mdp: t.MDP
    old: t.Solution
    new: Float[np.ndarray, "state action"]


def random_pairs(count: int, *, gamma: float, seed: int = 0) -> Iterator[RandomPair]:
    """Random MDPs with pairs of policies from almost equal to unrelated."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        concentration = (1.0, 0.15, 0.0)[index % 3]
        mdp = t.random_mdp(
            int(rng.integers(2**31)), gamma=gamma, concentration=concentration, num_states=5
        )
        logits = rng.normal(size=(5, 3)) * rng.choice([0.3, 1.0, 3.0])
        moved = logits + rng.normal(size=(5, 3)) * rng.choice([0.05, 0.5, 2.0])
        family = t.Tabular()
        yield RandomPair(mdp, t.solve(mdp, family.policy(logits)), family.policy(moved))


def corridor_family() -> Iterator[Solved]:
    """Corridors of many lengths, costs, discounts and starts, those whose policy earns something.

    The grid is fixed, so that nobody chose the ones that make a point.
    """
    for stay in (False, True):
        for m in (2, 3, 4, 5, 7):
            for B in (1.0, 10.0, 50.0, 200.0, 1000.0):
                for gamma in (0.9, 0.95, 0.99):
                    for p_old in (0.02, 0.05, 0.1, 0.2, 0.4, 0.6):
                        start = solved(t.corridor(m=m, B=B, gamma=gamma, stay=stay), p_old=p_old)
                        if start.old.eta > 0:
                            yield start


@cache
def corridors_that_fell() -> tuple[int, dict[str, int], dict[str, float]]:
    """How many corridors there are, in how many one exact update lowered the return, median KL."""
    fell: dict[str, int] = {"trpo": 0, "ppo": 0}
    kls: dict[str, list[float]] = {"trpo": [], "ppo": []}
    for case in corridor_family():
        weights = t.state_weights(case.mdp, case.old)
        for rule in fell:
            new = case.after(rule, max_kl=0.01)
            fell[rule] += new.eta < case.old.eta - 1e-9
            kls[rule].append(float(weights @ t.row_kl(case.old.policy, new.policy)))
    middle = {rule: float(np.median(found)) for rule, found in kls.items()}
    return len(kls["ppo"]), fell, middle
