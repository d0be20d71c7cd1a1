"""The promises of the updates: how much was realised, and why the rest was not.

A promise fails for two reasons, noise and visitation shift; each has its own remedy.
"""

import math

import numpy as np

from surefoot.analysis.plots.grouping import newest, starts_of
from surefoot.analysis.plots.report import Panel, PanelSeries
from surefoot.analysis.report.section import (
    Color,
    Facts,
    Section,
    ends_of,
    left_out,
    line,
    not_logged,
    recently,
    section,
)
from surefoot.analysis.report.totals import Totals, totals
from surefoot.analysis.text import figure, percent
from surefoot.formulas.intervals import Interval

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
_IN_STEP = (
    "no gain can be told from the time in the episode: all environments are at the same time in "
    "theirs, or hardly any episode begins in a rollout, or there are fewer than three environments"
)
_NOTHING = "Nothing was promised. Is the step size 0, or the reward constant?"
SHARE, RATIO, SHIFT = "lens/signal_share", "lens/filtered_ratio", "lens/visitation_shift"
NULL, BAND = "lens/visitation_null", ("lens/filtered_low", "lens/filtered_high")
SHIFTED = 0.2
"""Lower bound on the total variation of visits, above its null, that is worth a look."""

_FAR = "One update shifts the visits far: a smaller radius keeps them closer."


def promise_section(facts: Facts, found: Totals | None) -> Section:
    """The promise of all updates together, how much of it was signal, and the realised gain."""
    keys = ("lens/promised_gain", "lens/realised_gain")
    if found is None:
        absent = facts.table.missing(*keys)
        if len(facts.table.steps) < 2:
            why = "the run has one row, and a gain is known one rollout later"
            return left_out("promise", absent or keys, why=why)
        return left_out("promise", absent or ("lens/realised_low",), why="" if absent else _IN_STEP)
    finding, advice = _judge(found)
    late, harm = _newest_updates(facts)
    told, judged = len(found.steps), len(facts.table.steps) - 1
    if told < judged:
        finding += f" The gain can be told of {told:,} of {judged:,} updates, which are summed."
    finding += late
    if found.signal is None:
        finding += " lens/signal_share is not logged in this run, so noise is not separated."
    ylabel = "discounted reward,\nsum over updates"
    panel = Panel(ylabel, _curves(found), levels=((0.0, ""),), height=2.9)
    made = section("promise", finding).judged([(True, advice or harm)], panel)
    discounts = dict.fromkeys(facts.of_rows(lambda settings: settings.train.gamma))
    text = ", and later ".join(map(_discount, discounts))
    return made._replace(meaning=made.meaning.format(discount=text))


def _curves(found: Totals) -> list[PanelSeries]:
    """The sums over the run."""
    starts = starts_of(len(found.steps))
    # A sum is drawn by the newest of a group: a mean would lag behind.
    at = newest(found.steps, starts)
    series = [
        PanelSeries("promised, in-sample", at, newest(found.promised, starts), Color.PROMISED)
    ]
    if found.signal is not None:
        values, dash = newest(found.signal, starts), (0, (6, 2))
        series.append(PanelSeries("promised, signal only", at, values, Color.SIGNAL, dash=dash))
    values, half = newest(found.realised, starts), newest(found.realised_half, starts)
    band = values - half, values + half
    return [*series, PanelSeries("realised, with interval", at, values, Color.GOT, band=band)]


def _newest_updates(facts: Facts) -> tuple[str, str]:
    """Promise and gain of the newest tenth of the updates, and advice where they did harm."""
    late = totals(facts.table.newest_tenth(), facts.settings.train.num_envs, whole=False)
    # One gain alone is too noisy for a sentence.
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


def lies_section(facts: Facts) -> Section:
    """Noise and visitation shift over the run; each has its own remedy."""
    table = facts.table
    absent = table.missing(SHARE, RATIO, SHIFT)
    if len(absent) == 3:
        return left_out("lies", absent)
    share, ratio, shift, null = (table.recent(key) for key in (SHARE, RATIO, SHIFT, NULL))
    band = Interval(ratio, *(table.recent(key) for key in BAND))
    moved = f"at least {figure(shift)}" if shift > 0 else "too small to be detected"
    moved += "" if np.isnan(null) else f" (for data that did not move: {figure(null)})"
    followed = f"the ratio of realised gain to signal is {figure(ratio)}"
    finding = recently(
        (share, f"{percent(share)} of a promise is signal{table.when(SHARE)}"),
        (ratio, followed + ends_of(band, what="95 % band") + table.when(RATIO)),
        (shift, f"the visitation shift of one update is {moved}{table.when(SHIFT)}"),
    )
    noisy, short = share < MUCH_NOISE, ratio < HALF_KEPT
    # Where noise or the ratio is named already, one remedy is enough.
    far = shift - np.nan_to_num(null) > SHIFTED and not noisy and not short
    shares = line(table, SHARE, "signal share (the rest is noise)", Color.SIGNAL)
    ratios = line(table, RATIO, "realised / signal, filtered, 95 % band", Color.GOT, band=BAND)
    shifts = [
        *line(table, SHIFT, "visitation shift, at least", Color.PROMISED, points=True),
        *line(table, NULL, "the same, old against old", Color.BAD, points=True, dash=(0, (2, 2))),
    ]
    # The axis ends at 0.3 unless a shift is large, so that a small one looks small.
    highest = max((float(each.values.max()) for each in shifts), default=0.0)
    top = None if highest > SHIFTED else 0.3
    levels = ((1.0, "fully realised"), (0.0, "nothing"))
    return section("lies", finding + not_logged(absent)).judged(
        [(noisy, NOISE_REMEDY), (short, SHIFT_REMEDY), (far, _FAR)],
        Panel("share of the promise", shares, (MUCH_NOISE, 1.0), ylim=(-0.02, 1.05)),
        Panel("ratio", ratios, (HALF_KEPT, 1.5), levels, ylim=(-0.6, 1.6)),
        Panel("total variation", shifts, (0.0, SHIFTED), ylim=(-0.02, top)),
    )
