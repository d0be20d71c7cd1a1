"""Promised and realised gains of the updates, summed over a run."""

import math

from surefoot.analysis.plots.grouping import newest, starts_of
from surefoot.analysis.plots.report import Panel, PanelSeries
from surefoot.analysis.report.section import (
    GUIDE,
    Color,
    Facts,
    Section,
    ends_of,
    left_out,
    section,
)
from surefoot.analysis.report.totals import Totals, totals
from surefoot.analysis.text import figure, percent

MUCH_NOISE = 0.2
"""Signal share below which an update's own promise is five times too large."""
HALF_KEPT = 0.5
NOISE_REMEDY = (
    "Most of the promise is noise: use more steps per batch (--num-steps, --num-envs), more "
    "damping or fewer epochs, or a better critic."
)
SHIFT_REMEDY = (
    "Take smaller steps (radius, step size or clip range): even the signal is not realised, "
    "because the new policy visits other states than the data shows."
)
_EITHER = (
    "A probe (`surefoot probe`) can tell whether noise or visitation shift took more than half of "
    "the promise: against noise use more steps per batch, against shift a smaller step."
)
_NOTHING = "Nothing was promised. Is the step size 0, or the reward constant?"


def promise_section(facts: Facts, found: Totals | None) -> Section:
    """The promise of all updates together, how much of it was signal, and the realised gain."""
    keys = ("lens/promised_gain", "lens/realised_gain")
    if found is None:
        why = "the run has one row, and a gain is known one rollout later"
        one = why if len(facts.table.steps) < 2 else ""
        return left_out("promise", facts.table.missing(*keys) or keys, why=one)
    finding, advice = _judge(found)
    late, harm = _newest_updates(facts)
    finding += late
    if found.signal is None:
        finding += " lens/signal_share is not logged in this run, so noise is not separated."
    ylabel = "discounted reward,\nsum over updates"
    panel = Panel(ylabel, _curves(found), levels=((0.0, ""),), height=2.9)
    made = section("promise", finding).judged([(True, advice or harm)], panel)
    interval = GUIDE["promise"]["no_interval" if found.realised_half is None else "interval"]
    discount = _discount(facts.settings.train.gamma)
    return made._replace(meaning=made.meaning.format(discount=discount, interval=interval))


def _curves(found: Totals) -> list[PanelSeries]:
    """The sums over the run."""
    starts = starts_of(len(found.steps))
    at = newest(found.steps, starts)
    series = [
        PanelSeries("promised, in-sample", at, newest(found.promised, starts), Color.PROMISED)
    ]
    if found.signal is not None:
        values, dash = newest(found.signal, starts), (0, (6, 2))
        series.append(PanelSeries("promised, signal only", at, values, Color.SIGNAL, dash=dash))
    realised = PanelSeries("realised", at, newest(found.realised, starts), Color.GOT)
    if found.realised_half is not None:
        half = newest(found.realised_half, starts)
        low, high = realised.values - half, realised.values + half
        realised = realised._replace(label="realised, with interval", low=low, high=high)
    return [*series, realised]


def _newest_updates(facts: Facts) -> tuple[str, str]:
    """Promise and gain of the newest tenth of the updates, and advice where they did harm."""
    late = totals(facts.table.newest_tenth(), facts.settings.train.num_envs, whole=False)
    if late is None or len(late.steps) < 2:
        return "", ""
    promised, gain = figure(float(late.promised[-1])), late.gain()
    if late.signal is not None and late.promised[-1] > 0:
        promised += f" ({figure(float(late.signal[-1]))} of it signal)"
    text = f" The newest tenth of the updates promised {promised} and realised "
    harm = "The newest updates did harm in sum. " + SHIFT_REMEDY if gain.high < 0 else ""
    return f"{text}{figure(gain.mean)}{ends_of(gain)}.", harm


def _discount(gamma: float) -> str:
    """The effect of the discount, by an example."""
    if gamma >= 1.0:
        return "a reward counts in full however far away it is"
    steps = max(1, round(1.0 / (1.0 - gamma)))
    worth = figure(gamma**steps)
    return f"a reward {steps:,} steps away counts {worth} (the discount is {gamma:g})"


def _judge(found: Totals) -> tuple[str, str]:
    """Finding and advice."""
    share, kept = found.signal_share, found.realised_share()
    if kept is None:
        text = f"The updates promised {figure(float(found.promised[-1]))} in all, "
        text += "" if math.isnan(share) else "none of it is signal, "
        text += f"and {figure(float(found.realised[-1]))} was realised."
        return text, _NOTHING if math.isnan(share) else NOISE_REMEDY
    signal = "" if math.isnan(share) else f" {percent(share)} is signal, and of the signal"
    text = (
        f"Of the gain that the updates promised on their own batches,{signal} "
        f"{percent(kept.mean)} was realised{ends_of(kept, show=percent)}."
    )
    if kept.low <= 0 <= kept.high:
        text += " The interval contains 0: this run alone cannot tell its gain from none."
    if kept.high < 0:
        return text, "The updates did more harm than good. " + SHIFT_REMEDY
    if share < MUCH_NOISE:
        return text, NOISE_REMEDY
    if kept.mean < HALF_KEPT and not kept.high >= 1.0:  # no interval has NaN for its ends
        return text, _EITHER if math.isnan(share) else SHIFT_REMEDY
    return text, ""
