"""The two reasons why a promise fails: noise, and visitation shift."""

import numpy as np

from surefoot.analysis.plots.report import Panel
from surefoot.analysis.report.gains import HALF_KEPT, MUCH_NOISE, NOISE_REMEDY, SHIFT_REMEDY
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
from surefoot.analysis.text import figure, percent
from surefoot.formulas.intervals import Interval

SHARE, RATIO, SHIFT = "lens/signal_share", "lens/filtered_ratio", "lens/visitation_shift"
NULL, BAND = "lens/visitation_null", ("lens/filtered_low", "lens/filtered_high")
SHIFTED = 0.2
"""Lower bound on the total variation of visits, above its null, that is worth a look."""

_FAR = "One update shifts the visits far: a smaller radius keeps them closer."


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
        (share, f"{percent(share)} of a promise is signal"),
        (ratio, followed + ends_of(band, what="95 % band")),
        (shift, f"the visitation shift of one update is {moved}"),
        known=True,
    )
    noisy, short = share < MUCH_NOISE, ratio < HALF_KEPT
    far = shift - np.nan_to_num(null) > SHIFTED and not noisy and not short
    shares = line(table, SHARE, "signal share (the rest is noise)", Color.SIGNAL)
    ratios = line(table, RATIO, "realised / signal, filtered, 95 % band", Color.GOT, band=BAND)
    shifts = [
        *line(table, SHIFT, "visitation shift, at least", Color.PROMISED, points=True),
        *line(table, NULL, "the same, old against old", Color.BAD, points=True, dash=(0, (2, 2))),
    ]
    highest = max((float(each.values.max()) for each in shifts), default=0.0)
    top = None if highest > SHIFTED else 0.3
    levels = ((1.0, "fully realised"), (0.0, "nothing"))
    return section("lies", finding + not_logged(absent)).judged(
        [(noisy, NOISE_REMEDY), (short, SHIFT_REMEDY), (far, _FAR)],
        Panel("share of the promise", shares, (MUCH_NOISE, 1.0), ylim=(-0.02, 1.05)),
        Panel("ratio", ratios, (HALF_KEPT, 1.5), levels, ylim=(-0.6, 1.6)),
        Panel("total variation", shifts, (0.0, SHIFTED), ylim=(-0.02, top)),
    )
