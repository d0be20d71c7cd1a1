"""Episodes of policies along an update, and their scores on the old policy's episodes."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from surefoot.analysis.probe.players import HostPlayer, JaxPlayer
from surefoot.analysis.probe.policies import BLOCK_ROWS
from surefoot.analysis.probe.rows import (
    OldRows,
    PolicyScores,
    join_rows,
    join_scores,
    rows_of_episodes,
    score_rows,
)
from surefoot.analysis.probe.settings import ProbeSettings
from surefoot.formulas.edge_of_trust import Edge, find_edge
from surefoot.formulas.intervals import Interval
from surefoot.formulas.ratios import double_sample
from surefoot.training.callback import Callback


class Place(NamedTuple):
    """A policy of the probe: at a fraction of a direction, `update` or `random`."""

    direction: str
    fraction: float


OLD, NEW = Place("update", 0.0), Place("update", 1.0)


class Measurements:
    """Episodes played and policies scored so far, in `steps` of a `budget`.

    `directions` give the policy at a fraction. Of each place there are the discounted `returns`, by
    the number of the episode, its `scores` on the old policy's episodes, and perhaps on the
    training `batch`. `horizon` is the discounted steps of an episode that never ends.
    """

    def __init__(
        self,
        player: JaxPlayer | HostPlayer,
        settings: ProbeSettings,
        path: Callable[[float], Any],
        callback: Callback,
    ):
        self.player, self.settings, self._callback = player, settings, callback
        self.directions = {"update": path}
        self.budget, gamma = settings.budget or player.default_budget, settings.gamma
        # Without a discount every step weighs the same, and the limit is all there is.
        self.horizon = 1.0 / (1.0 - gamma) if gamma < 1.0 else float(player.limit)
        self.returns: dict[Place, Float[np.ndarray, " episode"]] = {}
        self.scores: dict[Place, PolicyScores] = {}
        self.batch: dict[Place, PolicyScores] = {}
        self.steps = 0
        self._steps_at: dict[Place, int] = {}
        self._scored: list[Place] = []
        self._waiting: list[OldRows] = []

    def policy(self, place: Place) -> Any:
        """The policy at a place."""
        return self.directions[place.direction](place.fraction)

    def count(self, place: Place) -> int:
        """Episodes played at a place."""
        return len(self.returns.get(place, ()))

    def play(self, places: Sequence[Place], *, until: float, maximum: int | None = None) -> None:
        """Play the next episodes of these places, until so many steps have been taken in all."""
        while (count := self._next_count(places, until, maximum)) > 0:
            for place in places:
                self._play(place, self.count(place), count)
            self._callback.on_row(None, {"env_steps": self.steps, "budget": self.budget})
        self._score_waiting()

    def score_at(self, places: list[Place]) -> None:
        """Score these places on old episodes from now on, and on those in memory."""
        self._scored = places
        self._score_waiting()

    def score(self, policy: Any, rows: OldRows) -> PolicyScores:
        """Score any policy on rows of the old one."""
        clip_eps, functions = self.settings.clip_eps, self.player.functions
        return score_rows(functions, self.policy(OLD), policy, rows, clip_eps=clip_eps)

    @property
    def rows(self) -> OldRows:
        """Rows of old episodes that are not scored yet."""
        return join_rows(self._waiting)

    def _next_count(self, places: Sequence[Place], until: float, maximum: int | None) -> int:
        """How many episodes of each place to play next; 0 when the steps are spent."""
        known = {place: self.mean_length(place) for place in self.returns}
        guess = max(known.values(), default=float(self.player.limit))
        # Places that were not played yet are assumed to be as long as the longest.
        room = int((until - self.steps) / sum(known.get(place, guess) for place in places))
        if any(place not in known for place in places):
            # Their lengths are not known yet: a few first.
            room = max(room // 8, min(room, 2), 0 if known else 2)
        for first in map(self.count, places):
            # A lot stays within a group, in which a host episode has its place.
            room = min(room, self.player.group - first % self.player.group)
            room = room if maximum is None else min(room, maximum - first)
        return room

    def _play(self, place: Place, first: int, count: int) -> None:
        functions, gamma = self.player.functions, self.settings.gamma
        played = self.player.play(self.policy(place), first, count, keep=place == OLD)
        lengths = np.asarray(played.lengths)
        # The critic stands for the rest of an episode that was cut.
        returns = played.returns + gamma**lengths * played.values_ahead(functions)
        self.returns[place] = np.concatenate([self.returns.get(place, np.zeros(0)), returns])
        self._steps_at[place] = self._steps_at.get(place, 0) + int(lengths.sum())
        self.steps += int(lengths.sum())
        if place == OLD:
            self._waiting.append(rows_of_episodes(played, functions, self.settings))
            # In whole blocks, and dropped then: a long probe must not fill the memory.
            if sum(len(lot.episode) for lot in self._waiting) >= BLOCK_ROWS:
                self._score_waiting()

    def _score_waiting(self) -> None:
        """Score the old episodes in memory, and drop them; a no-op before `score_at`."""
        if not (self._scored and self._waiting):
            return
        rows, self._waiting = self.rows, []
        for place in self._scored:
            found = self.score(self.policy(place), rows)
            before = self.scores.get(place)
            self.scores[place] = join_scores(before, found) if before else found

    def close(self) -> None:
        """Close the environments and the display."""
        self.player.close()
        self._callback.on_end(None)

    def mean_length(self, place: Place) -> float:
        """Mean steps of an episode at a place that was played."""
        return self._steps_at[place] / self.count(place)

    def gains(self, place: Place) -> Float[np.ndarray, " episode"]:
        """Gain of each episode over its pair under the old policy."""
        returns = self.returns[place]
        return returns - self.returns[OLD][: len(returns)]

    def realised(self, place: Place) -> Interval:
        """Gain of a place: by its own episodes, and by the new policy's other ones."""
        return double_sample(self.gains(place), self.gains(NEW)[:, None])

    def fractions(self) -> list[float]:
        """Fractions of the update that were played, ascending, without the old policy."""
        return sorted(p.fraction for p in self.returns if p.direction == "update" and p != OLD)

    def edge(self) -> Edge:
        """The edge of trust, from what was played so far."""
        fractions = self.fractions()
        surplus = [self._surplus(Place("update", fraction)) for fraction in fractions]
        return find_edge(np.array(fractions), surplus)

    def _surplus(self, place: Place) -> Interval:
        """Gain less half the promise."""
        promise, gains = self.scores[place].promise, self.gains(place)
        known = self.gains(NEW), promise
        count = min(map(len, known))
        both = np.stack([each[:count] for each in known], axis=1)
        return double_sample(gains - 0.5 * promise[: len(gains)], both)
