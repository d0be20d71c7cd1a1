"""Whether the step that was wanted is the step that was found."""

import numpy as np

from surefoot.analysis.plots.report import Panel
from surefoot.analysis.report.section import (
    GOT,
    PROMISED,
    SIGNAL,
    Facts,
    Section,
    left_out,
    panels,
    percent,
    told,
    trace,
    traces,
)
from surefoot.analysis.report.table import Table, column, missing, recent

NATURAL = ("npg", "trpo")
VANISHED = 1e-9
"""Norm of a gradient that moves nothing."""


def solver_section(facts: Facts) -> Section:
    """Whether the step that was wanted is the step that was found."""
    if facts.settings.rule.name in NATURAL:
        return _natural(facts)
    return _descent(facts)


def _natural(facts: Facts) -> Section:
    name, title, table = "solver", "Solver", facts.table
    meaning = (
        "npg and trpo solve a linear system for their step (conjugate gradient; its residual is "
        "what is left unsolved), scale it by a quadratic model of KL, and trpo then shortens it "
        "until the true KL and the promise allow it. The model is good where the true KL is 0.7 to "
        "1.5 times what it says."
    )
    absent = missing(table, "update/cg_residual")
    if absent:
        return left_out(name, title, facts, absent)
    # Both of the step that was taken: a step that was shortened has less of either.
    true = column(table, "policy/kl_mean")
    model = column(table, "update/kl_quadratic")
    ratio = np.divide(true, model, out=np.full_like(true, np.nan), where=model > 0)
    most = np.nanmax(np.append(column(table, "update/backtracks"), 0.0))
    more = table._replace(columns={**table.columns, "ratio": ratio})
    shown = panels(
        Panel(
            "true / model",
            traces(trace(more, "ratio", "true KL of the step / quadratic model", GOT)),
            (0.7, 1.5),
            ((1.0, ""),),
        ),
        Panel(
            "relative",
            traces(trace(table, "update/cg_residual", "residual of conjugate gradient", SIGNAL)),
            (0.0, 0.3),
            ylim=(0.0, None),
        ),
        Panel(
            "tries",
            traces(trace(table, "update/backtracks", "times the step was shortened", PROMISED)),
            (0.0, 1.0),
            ylim=(-0.05, 1.05 if most <= 1.0 else None),
        ),
    )
    said, advice = _natural_told(more)
    level = "amber" if advice else "green"
    return Section(name, title, level, said, " ".join(advice), meaning, shown)


def _natural_told(table: Table) -> tuple[str, list[str]]:
    said, advice = [], []
    accepted = column(table, "update/accepted")
    accepted = accepted[np.isfinite(accepted)]
    if len(accepted):
        said.append(f"The line search took {int(accepted.sum())} of {len(accepted)} steps")
        if np.mean(accepted) < 0.9:
            advice.append(
                "Steps are refused: more damping or more data where they gain nothing, more "
                "backtracks or a larger fisher_fraction where their KL is too large "
                "(`surefoot explain update/outcome`)."
            )
    ratio, residual = recent(column(table, "ratio")), recent(column(table, "update/cg_residual"))
    if ratio is not None:
        said.append(
            f"in the newest tenth the true KL was {told(ratio)} times the quadratic model's"
        )
        if not 0.7 <= ratio <= 1.5:
            advice.append("Curvature comes from too few states: a larger fisher_fraction.")
    if residual is not None:
        said.append(f"conjugate gradient left {percent(residual)} unsolved")
        if residual > 0.3:
            advice.append("The system is not solved: more cg_iters, or more damping.")
    text = "; ".join(said) + "."
    return text[0].upper() + text[1:], advice


def _descent(facts: Facts) -> Section:
    name, title, table = "solver", "Descent", facts.table
    meaning = (
        "This rule follows the gradient of its loss by minibatches, for some passes (epochs) over "
        "each batch. Fewer epochs than planned mean that a target_kl stopped them."
    )
    absent = missing(table, "update/gradient_norm")
    if absent:
        return left_out(name, title, facts, absent)
    shown = panels(
        Panel(
            "norm", traces(trace(table, "update/gradient_norm", "norm of the gradient", GOT)),
            ylim=(0.0, None),
        ),
        Panel(
            "passes", traces(trace(table, "update/epochs", "epochs that ran", SIGNAL)),
            ylim=(0.0, None),
        ),
        Panel(
            "step size", traces(trace(table, "update/learning_rate", "Adam's step size", PROMISED)),
            ylim=(0.0, None),
        ),
    )  # fmt: skip
    norm, epochs = recent(column(table, "update/gradient_norm")), column(table, "update/epochs")
    said = f"In the newest tenth of the run the gradient's norm is {told(norm or 0.0)}"
    ran, advice = recent(epochs), ""
    planned = getattr(facts.settings.rule, "num_epochs", None)
    if ran is not None and planned:
        said += f" and {told(ran)} of {planned} epochs run"
        if ran < 0.5 * planned:
            advice = "target_kl stops most of the epochs: a smaller step size, or fewer epochs."
    if norm is not None and norm < VANISHED:
        advice = (
            "The gradient has vanished: the policy no longer varies its actions (start again with "
            "a smaller step size, or ent_coef above 0), or the reward is constant."
        )
    return Section(name, title, "amber" if advice else "green", said + ".", advice, meaning, shown)
