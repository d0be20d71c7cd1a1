"""The critic's accuracy, and whether gradients agree between batches."""

import math

from surefoot.analysis.plots.report import Panel
from surefoot.analysis.report.section import (
    Color,
    Facts,
    Section,
    left_out,
    line,
    not_logged,
    recently,
    section,
)
from surefoot.analysis.text import figure

OWN, FRESH = "critic/explained_variance", "lens/explained_variance"
COSINE = "lens/expected_cosine"

_WORSE = (
    "The critic is worse than a constant: use more critic epochs, a higher critic step size, a "
    "wider critic, or return_norm."
)
_DISAGREE = "Gradients hardly agree between batches: use more steps per batch."


def critic_section(facts: Facts) -> Section:
    """Explained variance of the critic, and the expected cosine between gradients."""
    table = facts.table
    absent = table.missing(OWN, FRESH)
    if len(absent) == 2:
        return left_out("critic", absent)
    # Fresh returns judge the critic better, but few runs and rows have them.
    explained, on = table.recent(FRESH), "fresh returns"
    if math.isnan(explained):
        explained, on = table.recent(OWN), "its own targets"
    cosine = table.recent(COSINE)
    finding = recently(
        (explained, f"explained variance is {figure(explained)} on {on}"),
        (
            cosine,
            f"the expected cosine of two batches' gradients is {figure(cosine)}"
            + table.when(COSINE),
        ),
    )
    variances = [
        *line(table, OWN, "on its own targets", Color.BAD),
        *line(table, FRESH, "on fresh returns", Color.GOT),
    ]
    # A first critic may be worse by orders of magnitude.
    lowest = min(min(table.known(key), default=0.0) for key in (OWN, FRESH))
    ylim = (max(-1.05, min(-0.1, float(lowest) - 0.05)), 1.05)
    levels = ((0.0, "no better than a constant"),)
    cosines = line(table, COSINE, "gradients of two batches, expected", Color.EXTRA, points=True)
    return section("critic", finding + not_logged(absent)).judged(
        [(explained < 0.0, _WORSE), (cosine < 0.1, _DISAGREE)],
        Panel("explained variance", variances, (0.0, 1.0), levels, ylim=ylim),
        Panel("cosine", cosines, (0.1, 1.0), ylim=(-0.05, 1.05)),
    )
