"""From measurements to the result of a probe: figures with intervals, and points."""

from functools import partial

import numpy as np

from surefoot.analysis.probe.measurements import NEW, OLD, Measurements
from surefoot.analysis.probe.result import Point, Probe, RequiredBudget
from surefoot.analysis.probe.rows import PolicyScores
from surefoot.analysis.probe.sweep import END_SHARE
from surefoot.formulas.edge_of_trust import Edge
from surefoot.formulas.intervals import Interval
from surefoot.formulas.ratios import (
    pairs_needed,
    ratio_interval,
    ratio_of_sums,
    sample_mean,
    without_error,
)
from surefoot.formulas.sampled_bounds import sampled_bounds


def conclude(
    found: Measurements,
    title: str,
    source: str,
    *,
    iteration: int | None = None,
    logged: float | None = None,
) -> Probe:
    """The result of a probe; `logged` is the promise in the run's log, if any."""
    scores, gains, settings = found.scores[NEW], found.gains(NEW), found.settings
    count = min(len(gains), len(scores.promise))
    gains, promise, monte_carlo = gains[:count], scores.promise[:count], scores.monte_carlo[:count]
    fresh, ratio, mass = sample_mean(promise), ratio_interval(gains, promise), scores.mass.mean()
    own = None if logged is None else without_error(logged)
    if found.batch:
        own = promise_in_sample(found.batch[NEW], mass)
    points = _points("update", found, mass)
    swept, needed = len(points) > 1, None
    # Half of a promise that is lost in noise is nowhere.
    edge = _with_kl(found.edge(), points) if ratio else Edge(None, None, None)
    if ratio is None and count > 1:
        pairs = pairs_needed(gains, promise)
        # A sweep leaves only a share of its budget to the two ends.
        steps = pairs * sum(map(found.mean_length, (OLD, NEW))) / (END_SHARE if swept else 1.0)
        needed = RequiredBudget(pairs, int(np.ceil(steps)))
    return Probe(
        title=title,
        iteration=iteration,
        source=source,
        paired=bool(found.player.paired),
        gamma=settings.gamma,
        gae_lambda=settings.gae_lambda,
        clip_eps=settings.clip_eps,
        limit=found.player.limit,
        budget=found.budget,
        steps=found.steps,
        pairs=count,
        in_sample=own,
        recorded=not found.batch and own is not None,
        fresh=fresh,
        monte_carlo=sample_mean(monte_carlo),
        realised=sample_mean(gains),
        # On its own batch the promise is a number, not an estimate.
        noise=own and Interval(*(own.mean - each for each in (fresh.mean, fresh.high, fresh.low))),
        critic=sample_mean(promise - monte_carlo),
        visitation=sample_mean(monte_carlo - gains),
        ratio=ratio,
        ratio_monte_carlo=ratio_interval(gains, monte_carlo),
        needed=needed,
        trust=edge if swept else None,
        update=points,
        random=_points("random", found, mass),
        old_return=sample_mean(found.returns[OLD]),
        exact_kl=found.player.functions.exact,
    )


def promise_in_sample(scores: PolicyScores, mass: float) -> Interval:
    """The promise on the training batch, scaled to whole episodes.

    A batch cuts episodes, and has more rows of some times than of others: comparable is the mean
    over its rows, weighted by gamma^t, times `mass`, the sum of gamma^t in a whole episode. The
    interval is over its episodes; it ignores that the update was fitted to them.
    """
    return Interval(*(mass * each for each in ratio_of_sums(scores.promise, scores.mass)))


def _points(direction: str, found: Measurements, mass: float) -> tuple[Point, ...]:
    """The points of a direction, nearest first; `mass` is an episode's sum of gamma^t."""
    points = []
    bounds = partial(sampled_bounds, gamma=found.settings.gamma, horizon=found.horizon)
    for place in sorted(place for place in found.scores if place.direction == direction):
        scores, batch, pairs = found.scores[place], found.batch.get(place), found.count(place)
        sums = scores.promise, scores.mass, scores.kl
        points.append(
            Point(
                fraction=place.fraction,
                kl=ratio_of_sums(scores.kl, scores.mass),
                fresh=sample_mean(scores.promise),
                clipped=sample_mean(scores.clipped),
                in_sample=batch and promise_in_sample(batch, mass),
                realised=found.realised(place) if pairs > 1 else None,
                pairs=pairs,
                certificates=bounds(scores.rows, *sums, worst_kl=scores.worst_kl),
            )
        )
    return tuple(points)


def _with_kl(edge: Edge, points: tuple[Point, ...]) -> Edge:
    """An edge of trust with its mean KL, interpolated between points."""
    if edge.fraction is None:
        return edge
    # Mean KL grows like the square of the step: its root is nearly straight.
    fractions = [0.0, *(point.fraction for point in points)]
    roots = [0.0, *(max(point.kl.mean, 0.0) ** 0.5 for point in points)]
    return edge._replace(kl=float(np.interp(edge.fraction, fractions, roots)) ** 2)
