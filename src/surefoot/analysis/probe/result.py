"""What a probe found, as data: for people by `verdict`, for programs by `to_dict`."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from surefoot.analysis.probe.estimates import (
    Edge,
    Estimate,
    Ratio,
    mean_interval,
    pairs_needed,
    ratio_interval,
)
from surefoot.analysis.probe.scoring import Scores, certificates, in_sample, mean_kl
from surefoot.analysis.probe.sweep import NEW, OLD, SHARES, Findings, Place


@dataclass(frozen=True)
class Point:
    """One policy of a probe; gains are of discounted return over the old policy.

    Attributes:
        fraction: of the update, or of a random direction of the update's mean KL.
        kl: mean KL(old || new), in nats.
        fresh: promised gain on fresh episodes of the old policy, by the run's lambda.
        clipped: the same under ppo's clip.
        in_sample: the promise on the training batch, or None where it is gone.
        realised: the gain of paired episodes, or None where none were played.
        pairs: episodes behind `realised`.
        certificates: the gain that each bound leaves, estimated from the batch.
    """

    fraction: float
    kl: Estimate
    fresh: Estimate
    clipped: Estimate
    in_sample: Estimate | None
    realised: Estimate | None
    pairs: int
    certificates: dict[str, float]


@dataclass(frozen=True)
class Trust:
    """The edge of trust: where half of the fresh promise is kept; see `Edge` for the fractions."""

    fraction: float | None
    sure: float | None
    gone: float | None
    kl: float | None


@dataclass(frozen=True)
class Needed:
    """What a ratio would take where none can be told."""

    pairs: int
    steps: int


@dataclass(frozen=True)
class Probe:
    """One update, looked at from fresh episodes.

    Attributes:
        title: what was probed.
        iteration: whose update, or None for policies given as callables.
        source: where the two policies and the batch come from, in a sentence.
        paired: whether both policies met the same episodes.
        gamma: discount per step.
        gae_lambda: of `fresh` and `in_sample`.
        limit: the step at which episodes are cut; what is left is the frozen critic's value.
        budget: environment steps that were asked for.
        steps: those that were taken.
        pairs: episodes of the old and of the new policy.
        in_sample: what the update promised on its own batch.
        recorded: whether `in_sample` is the run's own figure, scaled to the discounted length of
            an episode; it counts states undiscounted.
        fresh: what it promises on fresh episodes of the old policy, by the same formula.
        monte_carlo: the same with lambda = 1, right under any critic.
        realised: what it gained.
        noise: in_sample - fresh, the estimation lie.
        critic: fresh - monte_carlo, what the critic's errors and lambda add.
        visitation: monte_carlo - realised, the visitation lie.
        ratio: realised over fresh, or None where it is not measurable at this budget.
        ratio_monte_carlo: realised over monte_carlo, likewise.
        needed: the budget that would do, where `ratio` is None.
        trust: the edge of trust, or None without a sweep.
        update: the points along the update.
        random: the points along a random direction of equal mean KL.
        old_return: mean discounted return of the old policy.
        exact_kl: whether divergences are exact in each state.
    """

    title: str
    iteration: int | None
    source: str
    paired: bool
    gamma: float
    gae_lambda: float
    clip_eps: float
    limit: int
    budget: int
    steps: int
    pairs: int
    in_sample: Estimate | None
    recorded: bool
    fresh: Estimate
    monte_carlo: Estimate
    realised: Estimate
    noise: Estimate | None
    critic: Estimate
    visitation: Estimate
    ratio: Ratio | None
    ratio_monte_carlo: Ratio | None
    needed: Needed | None
    trust: Trust | None
    update: tuple[Point, ...]
    random: tuple[Point, ...]
    old_return: Estimate
    exact_kl: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; an interval is `{mean, low, high}`."""
        return _plain(asdict(self) | {"verdict": self.verdict()})

    def verdict(self) -> list[str]:
        """The findings in a few sentences."""
        from surefoot.analysis.probe.text import verdict

        return verdict(self)

    def plot(self, path: str | Path) -> None:
        """Draw the waterfall and the sweep as PNG."""
        from surefoot.analysis.plots import plot_probe
        from surefoot.analysis.probe.picture import picture

        plot_probe(picture(self), Path(path))


def _plain(value: Any) -> Any:
    """NumPy's numbers and named tuples as JSON has them; what is not finite is null."""
    if isinstance(value, Estimate | Ratio | Edge):
        return _plain(value._asdict())
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value


@dataclass(frozen=True)
class Origin:
    """What a probe is told of the update: its names, and the promise of its own batch.

    `batch` are the scores of each place on the training batch; `recorded` is the promise that the
    run wrote down, where the batch is gone.
    """

    title: str
    iteration: int | None
    source: str
    batch: dict[Place, Scores]
    recorded: float | None


def conclude(findings: Findings, origin: Origin) -> Probe:
    """Everything that was played and scored, as figures with intervals."""
    setting = findings.setting
    scores, gains = findings.scores[NEW], findings.gains(NEW)
    count = min(len(gains), len(scores.promise))
    gains, promise = gains[:count], scores.promise[:count]
    unbiased, mass = scores.monte_carlo[:count], float(scores.mass.mean())
    fresh = mean_interval(promise)
    own = _own_promise(origin, mass, setting.horizon)
    ratio = ratio_interval(gains, promise)
    needed = None
    if ratio is None and count > 1:
        pairs = pairs_needed(gains, promise)
        steps = pairs * findings.steps_per_pair / _ends_share(findings)
        needed = Needed(pairs, int(np.ceil(steps)))
    points = _points(findings, "update", origin, mass)
    return Probe(
        title=origin.title,
        iteration=origin.iteration,
        source=origin.source,
        paired=setting.player.paired,
        gamma=setting.gamma,
        gae_lambda=setting.gae_lambda,
        clip_eps=setting.clip_eps,
        limit=setting.limit,
        budget=setting.budget,
        steps=findings.steps,
        pairs=count,
        in_sample=own,
        recorded=not origin.batch and own is not None,
        fresh=fresh,
        monte_carlo=mean_interval(unbiased),
        realised=mean_interval(gains),
        noise=None if own is None else _from(own.mean, fresh),
        critic=mean_interval(promise - unbiased),
        visitation=mean_interval(unbiased - gains),
        ratio=ratio,
        ratio_monte_carlo=ratio_interval(gains, unbiased),
        needed=needed,
        trust=_trust(findings, points) if len(points) > 1 else None,
        update=points,
        random=_points(findings, "random", origin, mass),
        old_return=mean_interval(findings.returns[OLD]),
        exact_kl=setting.judge.exact_kl,
    )


def _own_promise(origin: Origin, mass: float, horizon: float) -> Estimate | None:
    if origin.batch:
        return in_sample(origin.batch[NEW], mass)
    if origin.recorded is None:
        return None
    # It was recorded for `horizon` steps; an episode that ends has fewer.
    return Estimate(origin.recorded * mass / horizon, None, None)


def _from(number: float, estimate: Estimate) -> Estimate:
    """A number less an estimate; on its own batch a promise is a number and no estimate."""
    if estimate.low is None or estimate.high is None:
        return Estimate(number - estimate.mean, None, None)
    return Estimate(number - estimate.mean, number - estimate.high, number - estimate.low)


def _ends_share(findings: Findings) -> float:
    return SHARES["ends"] if len(findings.along("update")) > 1 else 1.0


def _points(findings: Findings, direction: str, origin: Origin, mass: float) -> tuple[Point, ...]:
    setting = findings.setting
    points = []
    for place in sorted(p for p in findings.scores if p[0] == direction):
        scores, played = findings.scores[place], findings.count(place)
        batch = origin.batch.get(place)
        points.append(
            Point(
                fraction=place[1],
                kl=mean_kl(scores),
                fresh=mean_interval(scores.promise),
                clipped=mean_interval(scores.clipped),
                in_sample=None if batch is None else in_sample(batch, mass),
                realised=findings.realised(place) if played > 1 else None,
                pairs=played,
                certificates=certificates(scores, gamma=setting.gamma, horizon=setting.horizon),
            )
        )
    return tuple(points)


def _trust(findings: Findings, points: tuple[Point, ...]) -> Trust:
    edge = findings.edge()
    kl = None
    if edge.fraction is not None:
        # Mean KL grows like the square of the step: its root is nearly straight.
        marks = [0.0, *(point.fraction for point in points)]
        roots = [0.0, *(max(point.kl.mean, 0.0) ** 0.5 for point in points)]
        kl = float(np.interp(edge.fraction, marks, roots)) ** 2
    return Trust(*edge, kl)
