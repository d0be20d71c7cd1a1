"""A probe in words: what was promised, what came, which lie is the larger and what to do."""

from typing import TYPE_CHECKING

from surefoot.analysis.probe.estimates import Estimate, Ratio

if TYPE_CHECKING:
    from surefoot.analysis.probe.result import Point, Probe

NO_CERTIFICATE = (
    "bounds are estimated from the batch: maxima and log-moments of a sample are lower estimates, "
    "and no certificate from old data sees states it never visited"
)


def number(value: float) -> str:
    """Three digits, with a sign."""
    return f"{value:+.3g}"


def told(estimate: Estimate) -> str:
    """A figure with its interval."""
    if estimate.low is None or estimate.high is None:
        return number(estimate.mean)
    return f"{number(estimate.mean)} ({number(estimate.low)} to {number(estimate.high)})"


def describe(probe: "Probe") -> str:
    """The whole finding as lines for a person."""
    count = f"{probe.pairs} pairs" if probe.paired else f"{probe.pairs} episodes each, not paired"
    lines = [
        probe.title,
        f"  {probe.source}",
        f"  {probe.steps:,} steps of a budget of {probe.budget:,}: {count} of old and new policy",
        "",
        f"  gain of discounted return (gamma {probe.gamma:g}) over the old policy's "
        f"{probe.old_return.mean:.4g}, with 95 % intervals",
    ]
    if probe.in_sample is not None:
        note = "as recorded, states undiscounted" if probe.recorded else ""
        lines.append(_line("promised on its own batch", probe.in_sample, note))
    formula = f"lambda {probe.gae_lambda:g}" + ("" if probe.gae_lambda < 1 else ", Monte Carlo")
    lines.append(_line("promised on fresh data", probe.fresh, formula))
    if probe.gae_lambda < 1:
        lines.append(_line("  with Monte Carlo advantages", probe.monte_carlo, "lambda 1"))
    lines += [_line("realised", probe.realised), ""]
    lines += [f"  {sentence}" for sentence in probe.verdict()]
    if len(probe.update) > 1:
        lines += ["", *_table(probe), f"  {NO_CERTIFICATE}"]
    return "\n".join(lines)


def _line(what: str, estimate: Estimate, note: str = "") -> str:
    return f"    {what:30s}{told(estimate)}  {note}".rstrip()


def _table(probe: "Probe") -> list[str]:
    """The points that were played, a line each."""
    head = "  fraction   mean KL   L, fresh   realised                     pairs"
    rows = [_row(f"{point.fraction:9.3g}", point) for point in probe.update if point.realised]
    rows += [_row(f"random {point.fraction:g}", point) for point in probe.random if point.realised]
    return [head, *rows]


def _row(name: str, point: "Point") -> str:
    assert point.realised is not None
    return (
        f"  {name:9s}{point.kl.mean:10.3g}{number(point.fresh.mean):>11s}   "
        f"{told(point.realised):28s} {point.pairs}"
    )


def verdict(probe: "Probe") -> list[str]:
    """What the figures say, one sentence a finding; the larger lie and its remedy among them."""
    if not probe.paired:
        start = ["the environment cannot be seeded: old and new policy met different episodes"]
    else:
        start = []
    return [*start, _kept(probe), *_lies(probe), *_reach(probe), *_direction(probe)]


def _kept(probe: "Probe") -> str:
    if probe.ratio is None:
        needed = ""
        if probe.needed is not None:
            needed = (
                f"; about {probe.needed.steps:,} steps ({probe.needed.pairs:,} pairs) would do, "
                "if the promise is what it seems"
            )
        return (
            "realised / promised is not measurable at this budget: the fresh promise is within two "
            f"standard errors of 0{needed}"
        )
    return f"of the fresh promise {_share(probe.ratio)} came true{_unbiased(probe)}"


def _share(ratio: Ratio) -> str:
    return f"{ratio.mean:.0%} ({ratio.low:.0%} to {ratio.high:.0%})"


def _unbiased(probe: "Probe") -> str:
    if probe.gae_lambda == 1.0:
        return ""
    if probe.ratio_monte_carlo is None:
        return "; against the Monte Carlo promise it is not measurable at this budget"
    return f"; of the Monte Carlo promise {_share(probe.ratio_monte_carlo)}"


def _lies(probe: "Probe") -> list[str]:
    """The gaps between the bars, and what to do about the largest that is beyond doubt."""
    gaps = [
        (
            "noise", probe.noise,
            "the update was fitted to its own batch: more samples, a smaller step, more damping, "
            "or a better critic",
        ),
        (
            "the critic", probe.critic,
            "lambda and the critic's errors promise too much: fit the critic better, or raise "
            "gae_lambda",
        ),
        (
            "visitation", probe.visitation,
            "the new policy goes where the old one did not: a smaller radius (max_kl, clip_eps or "
            "learning rate)",
        ),
    ]  # fmt: skip
    found = [(what, gap, remedy) for what, gap, remedy in gaps if gap is not None]
    if probe.gae_lambda == 1.0:
        found = [each for each in found if each[0] != "the critic"]
    parts = [f"{what} {told(gap)}" for what, gap, _ in found]
    lines = [f"lost on the way (below 0: gained): {'; '.join(parts)}"]
    sure = [(gap.mean, what, remedy) for what, gap, remedy in found if gap.above]
    if sure:
        _, what, remedy = max(sure)
        lines.append(f"the larger lie is {what}: {remedy}")
    else:
        lines.append("no loss is beyond doubt at this budget")
    if probe.critic.below and probe.gae_lambda < 1.0:
        lines.append("lambda and the critic's errors promise too little, which costs speed alone")
    return lines


def _reach(probe: "Probe") -> list[str]:
    trust = probe.trust
    if trust is None:
        return []
    if trust.fraction is None or trust.kl is None:
        if trust.sure is not None:
            kl = next(p.kl.mean for p in probe.update if p.fraction == trust.sure)
            return [
                "the edge of trust lies farther than was looked: more than half the promise is "
                f"kept up to {trust.sure:g} times the update (mean KL {kl:.3g})"
            ]
        return ["where half the promise is kept cannot be told at this budget"]
    between = "" if trust.sure is None else f"; more than half is sure up to {trust.sure:.3g}"
    gone = "" if trust.gone is None else f", less than half from {trust.gone:.3g} on"
    place = "within" if trust.fraction > 1.0 else "beyond"
    return [
        f"edge of trust: half the promise is kept at {trust.fraction:.3g} times the update, mean "
        f"KL {trust.kl:.3g}{between}{gone}; the step taken is {place} it"
    ]


def _direction(probe: "Probe") -> list[str]:
    """Whether the update's direction beats a random one."""
    twin = next((p for p in probe.random if p.fraction == 1.0 and p.realised), None)
    if twin is None or twin.realised is None:
        return []
    return [f"a random direction of the same mean KL gains {told(twin.realised)}"]
