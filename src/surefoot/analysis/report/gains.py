"""Promised against realised, and the two ways in which a promise lies: noise, and moved visits."""

import numpy as np

from surefoot.analysis.plots.report import Panel, Trace
from surefoot.analysis.report.figures import Totals, totals
from surefoot.analysis.report.section import (
    BAD,
    GOT,
    PROMISED,
    SIGNAL,
    Facts,
    Section,
    between,
    left_out,
    panels,
    percent,
    rows_without,
    told,
    trace,
    traces,
)
from surefoot.analysis.report.table import column, missing, newest, newest_tenth, recent, starts_of

MUCH_NOISE = 0.2
"""Signal share below which an update's own promise is five times too large."""
HALF_KEPT = 0.5
MOVED = 0.2
"""Lower bound on the total variation of visits, above its null, that is worth a look."""

_NOISE_REMEDY = (
    "Most of the promise is noise: more steps a batch (--num-steps, --num-envs), more damping or "
    "fewer epochs, or a better critic."
)
_SHIFT_REMEDY = (
    "A smaller step (radius, step size or clip range), for the signal itself does not come true: "
    "the new policy visits other states than the data shows."
)
_EITHER = (
    "A probe (`surefoot probe`) can tell whether noise or moved visits took more than half of the "
    "promise: for noise more steps a batch helps, for moved visits a smaller step."
)


def promise_section(facts: Facts, found: Totals | None) -> Section:
    """What all updates promised together, how much of it was signal, and what came."""
    name, title = "promise", "Promised against realised"
    keys = ("lens/promised_gain", "lens/realised_gain")
    if found is None:
        why = "the run has one row, and a gain is known one rollout later"
        one = why if len(facts.table.steps) < 2 else ""
        return left_out(name, title, facts, missing(facts.table, *keys) or keys, one)
    meaning = (
        "Before each update surefoot asks the data what the new policy will gain: the promise. The "
        "rollout after it shows what it did gain. Both are summed here over all updates. The "
        "promise is scored on the data that the update was fitted to, so it flatters; the part "
        "that holds on data the update did not see is called signal.\n\n"
        f"Why this is not the learning curve: here {_discount_said(facts.settings.train.gamma)}, "
        "and the mean is over the states that training visits, not over starts of episodes; the "
        "learning curve counts whole episodes, undiscounted.\n\n" + _interval_said(found)
    )
    starts = starts_of(len(found.steps))
    at = newest(found.steps, starts)
    realised = Trace("realised, with interval", at, newest(found.realised, starts), GOT)
    if found.half is None:
        realised = realised._replace(label="realised")
    else:
        ends = (found.realised - found.half, found.realised + found.half)
        realised = realised._replace(low=newest(ends[0], starts), high=newest(ends[1], starts))
    promised = Trace("promised, in-sample", at, newest(found.promised, starts), PROMISED)
    lines = [promised, realised]
    if found.signal is not None:
        signal = Trace("promised, signal only", at, newest(found.signal, starts), SIGNAL)
        lines.insert(1, signal._replace(dash=(0, (6, 2))))
    panel = Panel("discounted reward,\nsum over updates", lines, levels=((0.0, ""),), height=2.9)
    finding, level, advice = _judged(found)
    late, harm = _newest(facts)
    finding += late
    if harm and level == "green":
        level, advice = "amber", harm
    if found.signal is None:
        finding += " lens/signal_share is not logged in this run, so noise is not told apart."
    return Section(name, title, level, finding, advice, meaning, (panel,))


def _newest(facts: Facts) -> tuple[str, str]:
    """What the newest tenth of the updates promised and realised, and advice where it did harm."""
    late = totals(newest_tenth(facts.table), facts.settings.train.num_envs, whole=False)
    if late is None or len(late.steps) < 2:
        return "", ""
    realised = float(late.realised[-1])
    interval, harm = "", ""
    if late.half is not None:
        low, high = realised - float(late.half[-1]), realised + float(late.half[-1])
        interval = between("95 % interval", low, high)
        harm = "The newest updates did harm in sum. " + _SHIFT_REMEDY if high < 0 else ""
    promised = told(float(late.promised[-1]))
    if late.signal is not None and late.promised[-1] > 0:
        promised += f" (of it {told(float(late.signal[-1]))} signal)"
    said = f" The newest tenth of the updates promised {promised} and realised {told(realised)}"
    return f"{said}{interval}.", harm


def _discount_said(gamma: float) -> str:
    """What the discount does, by an example."""
    if gamma >= 1.0:
        return "a reward counts in full however far away it is"
    steps = max(1, round(1.0 / (1.0 - gamma)))
    return f"a reward {steps:,} steps away counts {told(gamma**steps)} (the discount is {gamma:g})"


def _interval_said(found: Totals) -> str:
    """What the band is, or why there is none."""
    if found.half is None:
        return (
            "There is no interval here: some updates have none of their own, for it compares "
            "environments, or the episodes of a rollout where there is one environment."
        )
    return (
        "The band is a 95 % interval. Successive gains share a rollout with opposite sign, so most "
        "of their noise cancels in the sum and adding it up would mislead: the interval is of the "
        "environments' own sums, or where a run did not keep them, estimated on the wide side."
    )


def _judged(found: Totals) -> tuple[str, str, str]:
    """Finding, level and advice."""
    share, true = found.signal_share, found.came_true()
    if true is None:
        said = f"The updates promised {told(float(found.promised[-1]))} in all, "
        said += "" if share is None else "none of it is signal, "
        said += f"and {told(float(found.realised[-1]))} was realised."
        advice = "Is the step size 0, or the reward constant? Nothing was promised."
        return said, "amber", advice if share is None else _NOISE_REMEDY
    ratio, low, high = true
    interval = ""
    if low is not None and high is not None:
        interval = f" (95 % interval {percent(low)} to {percent(high)})"
    whole = "" if share is None else f", {percent(share)} is signal; of the signal"
    said = (
        f"Of what the updates promised on their own batch{whole} {percent(ratio)} came "
        f"true{interval}."
    )
    if low is not None and high is not None and low <= 0 <= high:
        said += " The interval holds 0: this run alone cannot tell its gain from none."
    if high is not None and high < 0:
        return said, "amber", "Updates did more harm than good. " + _SHIFT_REMEDY
    if share is not None and share < MUCH_NOISE:
        return said, "amber", _NOISE_REMEDY
    if ratio < HALF_KEPT and (high is None or high < 1.0):
        return said, "amber", _SHIFT_REMEDY if share is not None else _EITHER
    return said, "green", ""


def lies_section(facts: Facts) -> Section:
    """Noise and moved visits over the run: they need different remedies."""
    name, title = "lies", "The two lies of a promise"
    keys = ("lens/signal_share", "lens/filtered_ratio", "lens/visitation_shift")
    absent = missing(facts.table, *keys)
    if len(absent) == len(keys):
        return left_out(name, title, facts, absent)
    meaning = (
        "A promise can be wrong in two ways. Noise: the update followed luck in its batch; the "
        "signal share is what is left of the promise on data it did not see, 1 is all. Moved "
        "visits: the new policy reaches states that the old data weighs wrongly; the ratio of "
        "realised to signal tells, 1 is all and below one half the step is too long. It is "
        "filtered over many updates, for one update alone is too noisy (cut at -0.6 and 1.6). "
        "Below, how far the visited states moved from one rollout to the next, by what a "
        "classifier can tell at least, beside what it tells of data that did not move."
    )
    table = facts.table
    share = trace(table, keys[0], "signal share (noise takes the rest)", SIGNAL)
    ratio = trace(table, keys[1], "realised / signal, filtered, 95 % band", GOT,
                  low="lens/filtered_low", high="lens/filtered_high")  # fmt: skip
    dots = {"points": True}
    shift = trace(table, keys[2], "visits moved, at least", PROMISED, how=dots)
    null = trace(table, "lens/visitation_null", "the same, old against old", BAD,
                 how={**dots, "dash": (0, (2, 2))})  # fmt: skip
    highest = max((float(np.max(each.values)) for each in traces(shift, null)), default=0.0)
    shown = panels(
        Panel("share of the promise", traces(share), (MUCH_NOISE, 1.0), ylim=(-0.02, 1.05)),
        Panel(
            "ratio",
            traces(ratio),
            (HALF_KEPT, 1.5),
            ((1.0, "all came true"), (0.0, "nothing")),
            ylim=(-0.6, 1.6),
        ),
        Panel(
            "total variation",
            traces(shift, null),
            (0.0, MOVED),
            ylim=(-0.02, None if highest > MOVED else 0.3),
        ),
    )
    finding, advice = _lies_told(facts)
    if absent:
        finding += f" Not logged in this run: {', '.join(absent)}."
    finding += rows_without(table, keys[0])
    return Section(name, title, "amber" if advice else "green", finding, advice, meaning, shown)


def _lies_told(facts: Facts) -> tuple[str, str]:
    """The newest tenth of the run in words, and advice where it is unhealthy."""
    table, said, advice = facts.table, [], []
    share = recent(column(table, "lens/signal_share"))
    ratio = recent(column(table, "lens/filtered_ratio"))
    if share is not None:
        said.append(f"{percent(share)} of a promise is signal")
        if share < MUCH_NOISE:
            advice.append(_NOISE_REMEDY)
    if ratio is not None:
        low = recent(column(table, "lens/filtered_low"))
        high = recent(column(table, "lens/filtered_high"))
        band = between("95 % band", low, high)
        said.append(f"the signal comes true at a ratio of {told(ratio)}{band}")
        if ratio < HALF_KEPT:
            advice.append(_SHIFT_REMEDY)
    shift = recent(column(table, "lens/visitation_shift"))
    null = recent(column(table, "lens/visitation_null"))
    if shift is not None:
        beside = "" if null is None else f" (data that did not move: {told(null)})"
        moved = f"by at least {told(shift)}" if shift > 0 else "by too little to be told"
        said.append(f"visits moved {moved} in one update{beside}")
        if shift - (null or 0.0) > MOVED and not advice:
            advice.append("The visits move far in one update. A smaller radius would keep closer.")
    return "In the newest tenth of the run, or when last known, " + ", ".join(said) + ".", " ".join(
        advice
    )


def cumulative(found: Totals) -> dict[str, float | None]:
    """The sums at the end, for programs."""
    end = lambda values: None if values is None else float(np.asarray(values)[-1])  # noqa: E731
    return {
        "promised": end(found.promised),
        "signal": end(found.signal),
        "realised": end(found.realised),
        "realised_half": end(found.half),
        "signal_share": found.signal_share,
    }
