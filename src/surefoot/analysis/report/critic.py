"""The critic's accuracy, and whether gradients agree between batches."""

from surefoot.analysis.plots.report import Panel
from surefoot.analysis.report.judgement import (
    AGREEING,
    COSINE,
    FRESH,
    OWN,
    SHARE,
    Judgement,
    accuracy_of_critic,
)
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
from surefoot.analysis.text import figure, percent

_WORSE = (
    "The critic is worse than a constant: use more critic epochs, a higher critic step size, a "
    "wider critic, or return_norm."
)
_DISAGREE = "Gradients hardly agree between batches: use more steps per batch."


def critic_section(facts: Facts, judgement: Judgement) -> Section:
    """Explained variance of the critic, and the expected cosine between gradients."""
    table = facts.table
    absent = table.missing(OWN, FRESH)
    if len(absent) == 2:
        return left_out("critic", absent)
    explained, on = accuracy_of_critic(table)
    key = FRESH if on == "fresh returns" else OWN
    cosine, share = table.recent(COSINE), table.recent(SHARE)
    finding = recently(
        table,
        (explained, f"explained variance is {figure(explained)} on {on}{table.when(key)}"),
        (
            cosine,
            f"the expected cosine of two batches' gradients is {figure(cosine)}"
            + table.when(COSINE),
        ),
    )
    equal = judgement.equal_returns
    if equal is not None:
        finding += (
            f" All their episodes returned {figure(equal)}: explained variance means nothing."
        )
    if cosine < AGREEING and not judgement.noisy:
        finding += f" One gradient says little, but {percent(share)} of a promise is signal."
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
        [
            (explained < 0.0 and equal is None, _WORSE),
            (cosine < AGREEING and judgement.noisy, _DISAGREE),
        ],
        Panel("explained variance", variances, (0.0, 1.0), levels, ylim=ylim),
        Panel("cosine", cosines, (AGREEING, 1.0), ylim=(-0.05, 1.05)),
    )
