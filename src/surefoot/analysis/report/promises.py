"""The promises of the updates: how much was realised, and why the rest was not.

A promise fails for two reasons, noise and visitation shift; each has its own remedy.
"""

import math

import numpy as np

from surefoot.analysis.plots.grouping import newest, starts_of
from surefoot.analysis.plots.report import Panel, PanelSeries
from surefoot.analysis.report.judgement import (
    BAND,
    FEWEST_GAINS,
    HALF_KEPT,
    MUCH_NOISE,
    NULL,
    RATIO,
    SHARE,
    SHIFT,
    SHIFTED,
    Judgement,
)
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
    smaller_steps,
)
from surefoot.analysis.report.totals import Totals
from surefoot.analysis.text import figure, percent
from surefoot.formulas.intervals import Interval

_SOME = (
    "their rollouts held no even mix of early and late parts of episodes, or too few of them, or "
    "the critic knew too little to see a gain beyond the end of a rollout"
)
_NEVER = (
    "no rollout held an even mix of early and late parts of episodes (all environments are at the "
    "same time in theirs, hardly any episode begins in a rollout, or there are fewer than three "
    "environments), or the critic knew too little to see a gain beyond the end of a rollout"
)
_NO_STAGGER = (
    "no rollout held an even mix of early and late parts of episodes, as --no-stagger leaves all "
    "environments at the same time in theirs"
)
_GUESS = (
    f" The ratio of realised gain to signal is not shown: with fewer than {FEWEST_GAINS} measured "
    "gains it is mostly the guess that it starts from."
)


def promise_section(facts: Facts, found: Totals | None, judgement: Judgement) -> Section:
    """The promise of all updates together, how much of it was signal, and the realised gain."""
    keys = ("lens/promised_gain", "lens/realised_gain")
    if found is None:
        absent = facts.table.missing(*keys)
        if len(facts.table.steps) < 2:
            why = "the run has one row, and a gain is known one rollout later"
            return left_out("promise", absent or keys, why=why)
        why = _NEVER if facts.settings.train.stagger else _NO_STAGGER
        return left_out("promise", absent or ("lens/realised_low",), why="" if absent else why)
    finding = _describe(found) + _left_out(facts, found) + _newest_updates(found, judgement.late)
    if found.signal is None:
        finding += " lens/signal_share is not logged in this run, so noise is not separated."
    ylabel = "discounted reward,\nsum over updates"
    panel = Panel(ylabel, _curves(found), levels=((0.0, ""),), height=2.9)
    made = section("promise", finding).judged([(True, judgement.promises)], panel)
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


def _left_out(facts: Facts, found: Totals) -> str:
    """How many updates are not in the sums, and what they promised."""
    promised, judged = facts.table.known("lens/promised_gain"), len(facts.table.steps) - 1
    if judged <= len(found.steps):
        return ""
    rest = figure(float(promised.sum() - found.promised[-1]))
    return (
        f" Summed are {len(found.steps):,} of {judged:,} updates: the gain of the others, which "
        f"promised {rest}, is not known, as {_SOME}."
    )


def _newest_updates(found: Totals, late: Totals | None) -> str:
    """Promise and gain of the newest updates, unless these are all."""
    if late is None or len(late.steps) == len(found.steps):
        return ""
    promised, gain = figure(float(late.promised[-1])), late.gain()
    if late.signal is not None and late.promised[-1] > 0:
        signal = float(late.signal[-1])
        promised += f" ({figure(signal) if signal else 'none'} of it signal)"
    return (
        f" The newest {len(late.steps)} of them promised {promised} and realised "
        f"{figure(gain.mean)}{ends_of(gain)}."
    )


def _discount(gamma: float) -> str:
    """The effect of the discount, by an example."""
    if gamma >= 1.0:
        return "a reward counts in full however far away it is"
    steps = max(1, round(1.0 / (1.0 - gamma)))
    worth = figure(gamma**steps)
    return f"a reward {steps:,} steps away counts {worth} (the discount is {gamma:g})"


def _describe(found: Totals) -> str:
    """Promise, signal and gain of all updates."""
    share, kept, gain = found.signal_share, found.realised_share(), found.gain()
    text = f"On their own batches the updates promised {figure(float(found.promised[-1]))}"
    if found.signal is not None:
        signal = figure(float(found.signal[-1]))
        losses = int(np.sum(np.diff(found.promised, prepend=0.0) < 0))
        less = f", or without noise {signal}, as {losses} promised losses"
        of_it = f", of which {signal} ({percent(share)}) is signal"
        of_it = of_it if share > 0 else ", none of which is signal"
        text += less if found.signal[-1] < 0 else of_it
    text += f", and {figure(gain.mean)} was realised"
    if kept is None:
        return f"{text}{ends_of(gain)}."
    text += f": {percent(kept.mean)} of the "
    text += "promise" if found.signal is None else "signal"
    text += f"{ends_of(kept, show=percent)}."
    if found.signal is not None and kept.low > 1.0:
        text += " So the signal is a low estimate: it is what halves of a batch have in common."
    if kept.low <= 0 <= kept.high:
        text += " The interval contains 0: this run alone cannot tell its gain from none."
    return text


def lies_section(facts: Facts, judgement: Judgement) -> Section:
    """Noise and visitation shift over the run; each has its own remedy."""
    table = facts.table
    absent = table.missing(SHARE, RATIO, SHIFT)
    if len(absent) == 3:
        return left_out("lies", absent)
    share, shift, null = (table.recent(key) for key in (SHARE, SHIFT, NULL))
    band = Interval(*(judgement.ratios.recent(key) for key in (RATIO, *BAND)))
    moved = f"at least {figure(shift)}" if shift > 0 else "too small to be detected"
    moved += table.when(SHIFT)
    moved += "" if np.isnan(null) else f" (for data that did not move: {figure(null)})"
    signal = "promise" if math.isnan(share) else "signal"
    followed = f"{percent(band.mean)} of the {signal} is realised"
    whole = f"; {percent(judgement.kept.mean)} over the whole run" if judgement.kept else ""
    ends = ends_of(band, show=percent, what="95 % band")
    followed += f"{ends[:-1]}{whole})" if ends else judgement.ratios.when(RATIO)
    finding = recently(
        table,
        (share, f"{percent(share)} of a promise is signal{table.when(SHARE)}"),
        (band.mean, followed),
        (shift, f"the visitation shift of one update is {moved}"),
    )
    if RATIO not in absent and math.isnan(band.mean):
        finding += _GUESS
    # Where something is named already, one remedy is enough.
    closer = f"One update shifts the visits far: {smaller_steps(facts.settings)} keeps them closer."
    far = shift - np.nan_to_num(null) > SHIFTED and not judgement.promises
    shares = line(table, SHARE, "signal share (the rest is noise)", Color.SIGNAL)
    label = f"realised / {signal}, filtered, 95 % band"
    ratios = line(judgement.ratios, RATIO, label, Color.GOT, band=BAND)
    shifts = [
        *line(table, SHIFT, "visitation shift, at least", Color.PROMISED, points=True),
        *line(table, NULL, "the same, old against old", Color.BAD, points=True, dash=(0, (2, 2))),
    ]
    # The axis ends at 0.3 unless a shift is large, so that a small one looks small.
    highest = max((float(each.values.max()) for each in shifts), default=0.0)
    top = None if highest > SHIFTED else 0.3
    levels = ((1.0, "fully realised"), (0.0, "nothing"))
    return section("lies", f"{finding}{not_logged(absent)}".strip()).judged(
        [
            (True, judgement.promises),
            (far, closer),
        ],
        Panel("share of the promise", shares, (MUCH_NOISE, 1.0), ylim=(-0.02, 1.05)),
        Panel("ratio", ratios, (HALF_KEPT, 1.5), levels, ylim=(-0.6, 1.6)),
        Panel("total variation", shifts, (0.0, SHIFTED), ylim=(-0.02, top)),
    )
