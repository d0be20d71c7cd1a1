"""The result of a probe: for people as text and a picture, for programs as JSON."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from surefoot.analysis.text import percent
from surefoot.formulas.edge_of_trust import Edge
from surefoot.formulas.intervals import Interval, Value
from surefoot.storage.files import replace_file

REMEDIES = {
    "noise": "the update fits its own batch; use more samples, smaller steps, more damping "
    "(npg, trpo) or a better critic",
    "the critic": "lambda and the critic's errors promise too much; fit the critic better, or "
    "raise gae_lambda",
    "visitation": "the new policy visits states that the old one did not; reduce the radius "
    "(max_kl, clip_eps or learning rate)",
}
NEGLIGIBLE = 0.01
"""Share of the old policy's return below which a promise or a loss does not matter."""
_NEGLIGIBLE = f"{100 * NEGLIGIBLE:.0f} % of the old policy's return"


class Point(NamedTuple):
    """One policy of a probe, at a fraction of the update or of a random direction.

    `kl` is mean KL(old || new) in nats. Gains are of discounted return over the old policy:
    promised on `fresh` episodes by the run's lambda, the same `clipped` as by PPO, promised on the
    training batch (`in_sample`), `realised` by so many `pairs` of episodes, and at least by each
    of the `certificates`, which are estimated from the rows.
    """

    fraction: float
    kl: Interval
    fresh: Interval
    clipped: Interval
    in_sample: Interval | None
    realised: Interval | None
    pairs: int
    certificates: dict[str, float]


class RequiredBudget(NamedTuple):
    """Pairs of episodes, and environment steps, at which a ratio becomes measurable."""

    pairs: int
    steps: int


@dataclass(frozen=True)
class Probe:
    """One policy update, measured on fresh episodes; gains are of discounted return.

    Attributes:
        source: where the two policies and the batch of `iteration` come from, in a sentence.
        paired: whether both policies had common random numbers.
        limit: step at which episodes are cut; the frozen critic stands for the rest.
        in_sample: gain promised on the update's own batch; if `recorded`, as in the run's log,
            scaled to the discounted length of an episode.
        fresh: gain promised on fresh episodes of the old policy, by the same formula.
        monte_carlo: the same with lambda = 1, unbiased under any critic.
        realised: gain of the new policy's episodes over the old one's.
        noise: in_sample - fresh, the estimation error.
        critic: fresh - monte_carlo, the bias of the critic and of lambda.
        visitation: monte_carlo - realised, the effect of moved state visits.
        ratio: realised over fresh; None if not measurable, which takes a budget as `needed`.
        ratio_monte_carlo: realised over monte_carlo, likewise.
        trust: the edge of trust; None without a sweep.
        update: points along the update.
        random: points along a random direction of equal mean KL.
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
    in_sample: Interval | None
    recorded: bool
    fresh: Interval
    monte_carlo: Interval
    realised: Interval
    noise: Interval | None
    critic: Interval
    visitation: Interval
    ratio: Interval | None
    ratio_monte_carlo: Interval | None
    needed: RequiredBudget | None
    trust: Edge | None
    update: tuple[Point, ...]
    random: tuple[Point, ...]
    old_return: Interval
    exact_kl: bool

    @property
    def negligible(self) -> float:
        """The discounted return below which a promise or a loss does not matter."""
        return NEGLIGIBLE * abs(self.old_return.mean)

    @property
    def worthwhile(self) -> RequiredBudget | None:
        """What a larger budget takes, where the promise is worth it."""
        return None if abs(self.fresh.mean) < self.negligible else self.needed

    def verdict(self) -> list[str]:
        """The findings, one sentence each, with the largest loss and its remedy."""
        unpaired = "episodes cannot be seeded: old and new policy played different ones"
        sentences = [] if self.paired else [unpaired]
        sentences += [_kept(self), *_losses(self), *_reach(self)]
        for point in self.random:
            if point.fraction == 1.0 and point.realised:
                gain = with_interval(point.realised)
                sentences.append(f"a random direction of the same mean KL gains {gain}")
        return sentences

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; an interval is `{mean, low, high}`."""
        return _plain(vars(self) | {"verdict": self.verdict()})

    def plot(self, path: str | Path) -> None:
        """Draw the waterfall and the sweep as PNG.

        Raises:
            StorageError: if the file cannot be written.
        """
        replace_file(Path(path), self.picture())

    def picture(self) -> bytes:
        """The waterfall and the sweep as PNG."""
        from surefoot.analysis.plots.probe import plot_probe

        return plot_probe(self.to_dict())


def _plain(value: Any) -> Any:
    """Named tuples and NumPy's numbers as JSON has them; what is not finite is null."""
    if isinstance(value, Interval | Edge | RequiredBudget | Point):
        value = value._asdict()
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value


def signed(value: Value) -> str:
    """Three digits, with a sign."""
    return f"{value:+.3g}"


def with_interval(interval: Interval) -> str:
    """A mean with its interval, where that is known."""
    mean, low, high = map(signed, interval)
    return mean if np.isnan(interval.low) else f"{mean} ({low} to {high})"


def probe_report(probe: Probe) -> str:
    """The whole result as lines for people."""
    count = f"{probe.pairs} pairs" if probe.paired else f"{probe.pairs} episodes each, not paired"
    biased = probe.gae_lambda < 1.0
    rows = [
        ("promised on its own batch", probe.in_sample, "as logged" if probe.recorded else ""),
        ("promised on fresh data", probe.fresh, f"lambda {probe.gae_lambda:g}"),
        ("promised, Monte Carlo", probe.monte_carlo if biased else None, "lambda 1"),
        ("realised", probe.realised, ""),
    ]
    lines = [
        probe.title,
        f"  {probe.source}",
        f"  {probe.steps:,} steps of a budget of {probe.budget:,}: {count} of old and new policy",
        "",
        f"  gain of discounted return (gamma {probe.gamma:g}) over the old policy's "
        f"{probe.old_return.mean:.4g}, with 95 % intervals",
    ]
    lines += [f"    {what:30s}{with_interval(x)}  {note}".rstrip() for what, x, note in rows if x]
    lines += ["", *(f"  {sentence}" for sentence in probe.verdict())]
    if len(probe.update) > 1:
        head = "  fraction   mean KL   L, fresh   realised                     pairs"
        named = [(f"{point.fraction:9.3g}", point) for point in probe.update]
        named += [(f"random {point.fraction:g}", point) for point in probe.random]
        table = [_row(name, point) for name, point in named if point.realised]
        lines += ["", head, *table]
    return "\n".join(lines)


def _row(name: str, point: Point) -> str:
    gain = with_interval(point.realised) if point.realised else ""
    promise = signed(point.fresh.mean)
    return f"  {name:9s}{point.kl.mean:10.3g}{promise:>11s}   {gain:28s} {point.pairs}"


def _kept(probe: Probe) -> str:
    """The share of the promise that was realised."""
    if probe.ratio is None:
        needed = ""
        if (wanted := probe.worthwhile) is not None:
            needed = (
                f"; it takes about {wanted.steps:,} steps ({wanted.pairs:,} pairs), if the promise "
                "is as large as it seems"
            )
        elif probe.needed is not None:
            needed = f", and below {_NEGLIGIBLE}: there is hardly a gain to measure"
        return (
            "realised / promised is not measurable at this budget: the fresh promise is within two "
            f"standard errors of 0{needed}"
        )
    # With lambda 1 the promise is Monte Carlo's own already.
    unbiased = ""
    if probe.gae_lambda < 1.0:
        ratio = probe.ratio_monte_carlo
        unbiased = "; of the Monte Carlo promise " + (_share(ratio) if ratio else "not measurable")
    return f"of the fresh promise {_share(probe.ratio)} was realised{unbiased}"


def _share(ratio: Interval) -> str:
    return f"{percent(ratio.mean)} ({percent(ratio.low)} to {percent(ratio.high)})"


def _losses(probe: Probe) -> list[str]:
    """The gaps between the bars, and the remedy of the largest that is significant."""
    critic = probe.critic if probe.gae_lambda < 1.0 else None
    gaps = {"noise": probe.noise, "the critic": critic, "visitation": probe.visitation}
    known = {what: gap for what, gap in gaps.items() if gap is not None}
    changes = {what: Interval(-gap.mean, -gap.high, -gap.low) for what, gap in known.items()}
    parts = "; ".join(f"{what} {with_interval(change)}" for what, change in changes.items())
    # A loss whose interval contains 0 may be none, and gets no remedy.
    significant = [(gap.mean, what) for what, gap in known.items() if gap.low > 0.0]
    largest = "no loss is significant at this budget"
    if probe.realised.mean >= (probe.in_sample or probe.fresh).mean:
        largest = "nothing was lost in sum: no less was realised than promised"
    elif significant:
        loss, what = max(significant)
        remedy = f": {REMEDIES[what]}"
        if loss < probe.negligible:
            remedy = f", below {_NEGLIGIBLE}: too small to act on"
        largest = f"the largest significant loss is {what}{remedy}"
    lines = [f"from promise to gain: {parts}", largest]
    if critic and critic.high < 0.0:
        lines.append("lambda and the critic's errors promise too little, which only costs speed")
    return lines


def _reach(probe: Probe) -> list[str]:
    """How far along the update half of the promise is kept."""
    trust = probe.trust
    if trust is None:
        return []
    if trust.fraction is None and trust.sure is None:
        return ["the edge of trust (half the promise is kept) is not measurable at this budget"]
    if trust.fraction is None:
        kl = next(point.kl.mean for point in probe.update if point.fraction == trust.sure)
        farthest = max(point.fraction for point in probe.update if point.realised)
        return [
            f"no edge of trust was found up to the largest step played, {farthest:g} times the "
            "update; more than half the promise is surely kept up to "
            f"{trust.sure:g} times the update (mean KL {kl:.3g})"
        ]
    if trust.before:
        return [
            "the edge of trust (half the promise is kept) is before the smallest step played: "
            f"significantly less than half is kept at {trust.gone:.3g} times the update"
        ]
    sure = "" if trust.sure is None else f"; significantly more up to {trust.sure:.3g}"
    gone = "" if trust.gone is None else f", significantly less from {trust.gone:.3g} on"
    place = "within" if trust.fraction > 1.0 else "beyond"
    return [
        f"edge of trust: half the promise is kept at {trust.fraction:.3g} times the update, mean "
        f"KL {trust.kl:.3g}{sure}{gone}; the step taken is {place} it"
    ]
