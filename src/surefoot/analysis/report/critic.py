"""How well the critic foresees, and whether gradients agree between batches."""

from collections.abc import Sequence

import numpy as np

from surefoot.analysis.plots.report import Panel
from surefoot.analysis.report.section import (
    BAD,
    EXTRA,
    GOT,
    Facts,
    Section,
    left_out,
    panels,
    told,
    trace,
    traces,
)
from surefoot.analysis.report.table import Table, column, missing, recent


def critic_section(facts: Facts) -> Section:
    """How well the critic foresees returns, and whether gradients agree between batches."""
    name, title, table = "critic", "Critic and gradient", facts.table
    meaning = (
        "The critic foresees what each state is worth; promises rest on it. Explained variance: 1 "
        "is perfect, 0 no better than one number for all states, below 0 worse (cut at -1). On its "
        "own targets it flatters; on fresh returns it does not. Where all returns are equal it "
        "means nothing. The expected cosine says how far the gradients of two batches would "
        "agree: below 0.1 updates are mostly noise."
    )
    keys = ("critic/explained_variance", "lens/explained_variance")
    absent = missing(table, *keys)
    if len(absent) == 2:
        return left_out(name, title, facts, absent)
    shown = panels(
        Panel(
            "explained variance",
            traces(
                trace(table, keys[0], "on its own targets", BAD),
                trace(table, keys[1], "on fresh returns", GOT),
            ),
            (0.0, 1.0),
            ((0.0, "no better than a constant"),),
            ylim=(_lowest(table, keys), 1.05),
        ),
        Panel(
            "cosine",
            traces(
                trace(
                    table,
                    "lens/expected_cosine",
                    "gradients of two batches, expected",
                    EXTRA,
                    how={"points": True},
                ),
            ),
            (0.1, 1.0),
            ylim=(-0.05, 1.05),
        ),
    )
    own, fresh = (recent(column(table, key)) for key in keys)
    judged = own if fresh is None else fresh
    said = "In the newest tenth of the run, or when last known, explained variance is "
    said += f"{told(judged or 0.0)} "
    said += "on its own targets" if fresh is None else "on fresh returns"
    advice = []
    if judged is not None and judged < 0.0:
        advice.append(
            "The critic is worse than a constant: more critic epochs, a higher critic step size, a "
            "wider critic, return_norm on."
        )
    cosine = recent(column(table, "lens/expected_cosine"))
    if cosine is not None:
        said += f", and gradients of two batches would agree to a cosine of {told(cosine)}"
        if cosine < 0.1:
            advice.append("Gradients hardly agree between batches: more steps a batch.")
    said += "." + (f" Not logged in this run: {', '.join(absent)}." if absent else "")
    level = "amber" if advice else "green"
    return Section(name, title, level, said, " ".join(advice), meaning, shown)


def _lowest(table: Table, keys: Sequence[str]) -> float:
    """Where the axis of explained variance ends: a first critic may be worse by orders."""
    values = np.concatenate([column(table, key) for key in keys])
    return max(-1.05, min(-0.1, float(np.nanmin(values)) - 0.05))
