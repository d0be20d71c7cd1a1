"""The plan of a probe: which policies play how many episodes, within a budget of steps."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from surefoot.analysis.probe.contenders import ROWS, Judge
from surefoot.analysis.probe.estimates import Edge, Estimate, double_sample, find_edge
from surefoot.analysis.probe.players import Player
from surefoot.analysis.probe.scoring import (
    OldRows,
    Scores,
    discounted,
    join,
    join_rows,
    old_rows,
    score,
)
from surefoot.errors import ConfigError

FRACTIONS = (0.25, 0.5, 1.5, 2.0, 3.0, 5.0)
"""Where along the update policies are played besides its two ends."""
RANDOM_FRACTIONS = (1.0, 3.0)
"""Where along the random direction, in multiples of what has the update's mean KL."""
BETWEEN = 3
"""Fractions between two neighbours that are scored on old data, for free, and may be refined."""
SHARES = {"ends": 0.5, "line": 0.7, "edge": 0.8}
"""Shares of the budget that are spent when the two ends, the line and its edge are done."""

FIRST_STEPS = 20_000
"""Most steps before old data is scored, whose rows are held in memory until then."""

Place = tuple[str, float]
"""A policy of the probe: `update` or `random`, and a fraction of that direction."""
OLD, NEW = ("update", 0.0), ("update", 1.0)


class Setting(NamedTuple):
    """What a probe is made of.

    `policy(place)` gives the policy there. `limit` is the step at which episodes are cut, and
    `horizon` the total weight of all steps, 1 / (1 - gamma).
    """

    player: Player
    judge: Judge
    policy: Callable[[Place], Any]
    gamma: float
    gae_lambda: float
    clip_eps: float
    horizon: float
    limit: int
    budget: int


class Findings:
    """What has been played and scored so far.

    Attributes:
        returns: discounted returns of each place's episodes, by their number.
        scores: of each place on the old policy's episodes.
        steps: environment steps so far.
    """

    def __init__(self, setting: Setting, say: Callable[[int], None]):
        self.setting, self._say = setting, say
        self.returns: dict[Place, Float[np.ndarray, " episode"]] = {}
        self.scores: dict[Place, Scores] = {}
        self.steps = 0
        self._lengths: dict[Place, tuple[int, int]] = {}
        self._scored: tuple[Place, ...] = ()
        self._rows: list[OldRows] = []

    def play(self, places: Sequence[Place], *, until: float, most: int | None = None) -> None:
        """The next episodes of these places, side by side, up to a number of steps in all."""
        while (count := self._next_count(places, until, most)) > 0:
            for place in places:
                self._play(place, self.count(place), count)
            self._say(self.steps)
        if self._scored:
            self._score_rows()

    def count(self, place: Place) -> int:
        """Episodes played there."""
        return len(self.returns.get(place, ()))

    def score_at(self, places: Sequence[Place]) -> None:
        """From here on old episodes are scored at these places, those in memory at once."""
        self._scored = tuple(places)
        self._score_rows()

    @property
    def rows(self) -> OldRows:
        """The rows of the first old episodes, while they are in memory."""
        return join_rows(self._rows)

    def _next_count(self, places: Sequence[Place], until: float, most: int | None) -> int:
        known = [steps / count for steps, count in self._lengths.values()]
        guess = max(known, default=float(self.setting.limit))
        cost, unknown = 0.0, False
        for place in places:
            steps, count = self._lengths.get(place, (0, 0))
            cost += steps / count if count else guess
            unknown = unknown or not count
        room = int((until - self.steps) / cost)
        if unknown:
            # How long they are is not known yet: a few first.
            room = max(room // 8, min(room, 2))
            if not known:
                room = max(room, 2)
        group = self.setting.player.group
        for first in map(self.count, places):
            # A host group keeps its rows' places, so that twins meet the same noise.
            left = group - first % group
            room = min(room, left if most is None else min(left, most - first))
        return room

    def _play(self, place: Place, first: int, count: int) -> None:
        setting, old = self.setting, place == OLD
        played = setting.player.play(setting.policy(place), first, count, keep=old)
        returns = discounted(played, setting.judge, gamma=setting.gamma)
        before = self.returns.get(place, np.zeros(0))
        self.returns[place] = np.concatenate([before, returns])
        steps, episodes = self._lengths.get(place, (0, 0))
        self._lengths[place] = (steps + int(played.lengths.sum()), episodes + count)
        self.steps += int(played.lengths.sum())
        if not old:
            return
        rows = old_rows(played, setting.judge, gamma=setting.gamma, gae_lambda=setting.gae_lambda)
        self._rows.append(rows)
        if self._scored and sum(len(lot.group) for lot in self._rows) >= ROWS:
            self._score_rows()

    def _score_rows(self) -> None:
        """Score the old episodes in memory, and drop them."""
        if not self._rows:
            return
        rows, self._rows = self.rows, []
        setting, old = self.setting, self.setting.policy(OLD)
        for place in self._scored:
            new = setting.policy(place)
            found = score(setting.judge, old, new, rows, clip_eps=setting.clip_eps)
            before = self.scores.get(place)
            self.scores[place] = found if before is None else join(before, found)

    @property
    def steps_per_pair(self) -> float:
        """Mean steps of an episode of the old and one of the new policy, together."""
        return sum(self._lengths[end][0] / self._lengths[end][1] for end in (OLD, NEW))

    def gains(self, place: Place) -> Float[np.ndarray, " episode"]:
        """What each episode gained over its twin under the old policy."""
        returns = self.returns[place]
        return returns - self.returns[OLD][: len(returns)]

    def along(self, direction: str) -> list[Place]:
        """The places of a direction that were played, the old policy left out."""
        return sorted(p for p in self.returns if p[0] == direction and p != OLD)

    def edge(self) -> Edge:
        """The edge of trust along the update, from what is there so far."""
        places = self.along("update")
        kept = [self._kept(place) for place in places]
        return find_edge(np.array([fraction for _, fraction in places]), kept)

    def realised(self, place: Place) -> Estimate:
        """The gain there, by its own episodes and by what the new policy did on the others."""
        return double_sample(self.gains(place), self.gains(NEW)[:, None])

    def _kept(self, place: Place) -> Estimate:
        """The gain less half the promise."""
        promise, gains = self.scores[place].promise, self.gains(place)
        less = gains - 0.5 * promise[: len(gains)]
        known = (self.gains(NEW), promise)
        count = min(map(len, known))
        return double_sample(less, np.stack([each[:count] for each in known], axis=1))


def first_pairs(findings: Findings) -> None:
    """Two pairs or a few: how long episodes are, and rows to measure a random direction on.

    Raises:
        ConfigError: where the budget does not hold them.
    """
    setting = findings.setting
    if setting.budget < 8:
        raise _too_small(setting.budget, 2 * setting.limit)
    findings.play([OLD, NEW], until=min(0.2 * SHARES["ends"] * setting.budget, FIRST_STEPS))
    pair = findings.steps / findings.count(OLD)
    if findings.steps > SHARES["ends"] * setting.budget:
        raise _too_small(setting.budget, pair)


def _too_small(budget: int, pair: float) -> ConfigError:
    return ConfigError(
        f"--budget {budget} is too small: a pair of episodes takes about {pair:.0f} steps, and "
        f"two pairs must fit into half of it; give {int(np.ceil(4 * pair)):d} or more, a hundred "
        "times that for an answer",
        name="BUDGET",
    )


def scored_places(fractions: Sequence[float], random: bool) -> list[Place]:
    """All places that old data is asked about: those played, and some between them."""
    marks = sorted({0.0, 1.0, *fractions})
    fine = [
        left + (right - left) * i / (BETWEEN + 1)
        for left, right in itertools.pairwise(marks)
        for i in range(BETWEEN + 1)
    ] + marks[-1:]
    return [("update", each) for each in fine if each > 0.0] + [
        ("random", each) for each in marks if each > 0.0 and random
    ]


def sweep(findings: Findings, fractions: Sequence[float], *, random: bool) -> None:
    """Spend the budget: half on the update's ends, the rest on its line and its edge of trust."""
    budget = findings.setting.budget
    line: list[Place] = [("update", each) for each in fractions]
    others = line + [("random", each) for each in RANDOM_FRACTIONS if random]
    if not fractions:
        findings.score_at([NEW])
        findings.play([OLD, NEW], until=budget)
        return
    findings.score_at(scored_places(fractions, random))
    findings.play([OLD, NEW], until=SHARES["ends"] * budget)
    pairs = findings.count(OLD)
    findings.play(others, until=SHARES["line"] * budget, most=pairs)
    bracket = refine(findings, until=SHARES["edge"] * budget, most=pairs)
    findings.play(bracket, until=budget, most=pairs)
    findings.play([OLD, NEW], until=budget)


def refine(findings: Findings, *, until: float, most: int) -> list[Place]:
    """Halve twice the gap in which the edge of trust lies; the two places around it then.

    Without an edge in sight the budget goes to the old and the new policy.
    """
    start = findings.steps
    for i in (1, 2):
        around = _around_edge(findings)
        if around is None:
            return [OLD, NEW]
        low, high = around
        inside = [p for p in findings.scores if p[0] == "update" and low < p[1] < high]
        if not inside:
            break
        middle = sorted(inside)[len(inside) // 2]
        findings.play([middle], until=start + (until - start) * i / 2, most=most)
    around = _around_edge(findings)
    return [OLD, NEW] if around is None else [("update", each) for each in around if each > 0.0]


def _around_edge(findings: Findings) -> tuple[float, float] | None:
    """The played fractions between which the edge lies."""
    fraction = findings.edge().fraction
    if fraction is None:
        return None
    marks = [0.0, *(each for _, each in findings.along("update"))]
    high = min(each for each in marks if each >= fraction)
    return max(each for each in marks if each < high), high
