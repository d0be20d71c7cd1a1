"""How a probe spends its budget: which policies play how many episodes."""

import itertools

import numpy as np

from surefoot.analysis.probe.measurements import NEW, OLD, Measurements, Place
from surefoot.errors import ConfigError

RANDOM_FRACTIONS = (1.0, 3.0)
"""Points played in the random direction; at 1 it has the mean KL of the update."""
BETWEEN = 3
"""Points between two neighbours that are scored on old episodes, and may be played later."""
END_SHARE, LINE_SHARE, EDGE_SHARE = 0.5, 0.7, 0.8
"""Shares of the budget spent once the two ends, the line and its edge are done."""
MAX_FIRST_STEPS = 20_000
"""Steps before the first scores; until then the rows of old episodes stay in memory."""


def play_first_pairs(found: Measurements) -> None:
    """Play a few pairs, to learn how long episodes are.

    Raises:
        ConfigError: if two pairs do not fit into the budget.
    """
    # Before any episode was played its limit is all that is known.
    pair = 2.0 * found.player.limit
    if found.budget >= 8:
        found.play([OLD, NEW], until=min(0.2 * END_SHARE * found.budget, MAX_FIRST_STEPS))
        if found.steps <= END_SHARE * found.budget:
            return
        pair = found.steps / found.count(OLD)
    raise ConfigError(
        f"--budget {found.budget} is too small: a pair of episodes takes about {pair:.0f} steps, "
        f"and two pairs must fit into half of it; set it to {int(np.ceil(4 * pair))} or more, and "
        "to a hundred times that for a clear result",
        name="BUDGET",
    )


def sweep(found: Measurements) -> None:
    """Spend the budget: half on the two ends, the rest on the line and its edge of trust."""
    budget, fractions = found.budget, found.settings.fractions
    if not fractions:
        found.score_at([NEW])
        found.play([OLD, NEW], until=budget)
        return
    line = [Place("update", each) for each in fractions]
    if "random" in found.directions:
        line += [Place("random", each) for each in RANDOM_FRACTIONS]
    found.score_at(_scored_places(found))
    found.play([OLD, NEW], until=END_SHARE * budget)
    pairs = found.count(OLD)
    # No more episodes than the ends have: others would have no pair.
    found.play(line, until=LINE_SHARE * budget, maximum=pairs)
    around = _narrow_edge(found, until=EDGE_SHARE * budget, maximum=pairs)
    if around:
        found.play([Place("update", each) for each in around if each], until=budget, maximum=pairs)
    found.play([OLD, NEW], until=budget)


def _scored_places(found: Measurements) -> list[Place]:
    """Places to score on old episodes: those played, and some between them."""
    marks = sorted({0.0, 1.0, *found.settings.fractions})
    places = [Place("update", each) for each in marks[1:]]
    for left, right in itertools.pairwise(marks):
        shares = (i / (BETWEEN + 1) for i in range(1, BETWEEN + 1))
        places += [Place("update", left + (right - left) * share) for share in shares]
    if "random" in found.directions:
        places += [Place("random", each) for each in marks[1:]]
    return places


def _narrow_edge(found: Measurements, *, until: float, maximum: int) -> tuple[float, float] | None:
    """Halve the gap around the edge of trust twice; the fractions around it, if it is in sight."""
    start = found.steps
    for i in (1, 2):
        around = _around_edge(found)
        if around is None:
            return None
        low, high = around
        # Only policies that were scored on the old episodes so far can get a surplus.
        inside = [p for p in found.scores if p.direction == "update" and low < p.fraction < high]
        if not inside:
            break
        middle = sorted(inside)[len(inside) // 2]
        found.play([middle], until=start + (until - start) * i / 2, maximum=maximum)
    return _around_edge(found)


def _around_edge(found: Measurements) -> tuple[float, float] | None:
    """The two neighbouring fractions that were played, between which the edge lies."""
    fraction = found.edge().fraction
    if fraction is None:
        return None
    marks = [0.0, *found.fractions()]
    high = min(each for each in marks if each >= fraction)
    return max(each for each in marks if each < high), high
