"""How a rule found its step: by conjugate gradient and line search, or by descent."""

import math

import numpy as np

from surefoot.analysis.plots.report import Panel
from surefoot.analysis.report.section import (
    Color,
    Facts,
    Section,
    left_out,
    line,
    recently,
    section,
)
from surefoot.analysis.text import figure, percent

NATURAL = ("npg", "trpo")
VANISHED = 1e-9
"""Norm of a gradient that moves nothing."""

_REJECTED = (
    "Steps are rejected: use more damping or more data where they gain nothing, more backtracks or "
    "a larger fisher_fraction where their KL is too large (`surefoot explain update/outcome`)."
)
_ROUGH = "Curvature comes from too few states: use a larger fisher_fraction."
_VANISHED = (
    "The gradient has vanished: the policy no longer varies its actions (start again with a "
    "smaller step size, or ent_coef above 0), or the reward is constant."
)
_STOPPED = "target_kl stops most of the epochs: use a smaller step size, or fewer epochs."


def solver_section(facts: Facts) -> Section:
    """Figures of the solver or of the descent, whichever the rule has."""
    return (_natural if facts.settings.rule.name in NATURAL else _descent)(facts)


def _natural(facts: Facts) -> Section:
    table = facts.table
    if absent := table.missing("update/cg_residual"):
        return left_out("solver", absent)
    # Both of the step that was taken: a step that was shortened has less of either.
    true, model = table.column("policy/kl_mean"), table.column("update/kl_quadratic")
    quotient = np.divide(true, model, out=np.full_like(true, np.nan), where=model > 0)
    table = table._replace(columns={**table.columns, "ratio": quotient})
    ratio, residual = table.recent("ratio"), table.recent("update/cg_residual")
    accepted = table.known("update/accepted")
    taken = float(np.mean(accepted)) if len(accepted) else math.nan
    finding = recently(
        (ratio, f"the true KL was {figure(ratio)} times that of the quadratic model"),
        (residual, f"conjugate gradient left {percent(residual)} unsolved"),
    )
    if len(accepted):
        count = f"{int(accepted.sum())} of {len(accepted)}"
        finding = f"The line search accepted {count} steps of the run. {finding}"
    backtracks = max(table.known("update/backtracks"), default=0.0)
    ratios = line(table, "ratio", "true KL of the step / quadratic model", Color.GOT)
    residuals = line(table, "update/cg_residual", "residual of conjugate gradient", Color.SIGNAL)
    steps = line(table, "update/backtracks", "backtracking steps", Color.PROMISED)
    return section("solver", finding).judged(
        [
            (taken < 0.9, _REJECTED),
            (ratio < 0.7 or ratio > 1.5, _ROUGH),
            (residual > 0.3, "The system is not solved: use more cg_iters, or more damping."),
        ],
        Panel("true / model", ratios, (0.7, 1.5), ((1.0, ""),)),
        Panel("relative", residuals, (0.0, 0.3), ylim=(0.0, None)),
        Panel("backtracks", steps, (0.0, 1.0), ylim=(-0.05, 1.05 if backtracks <= 1.0 else None)),
    )


def _descent(facts: Facts) -> Section:
    table = facts.table
    if absent := table.missing("update/gradient_norm"):
        return left_out("solver", absent, guide="descent")
    norm, epochs = table.recent("update/gradient_norm"), table.recent("update/epochs")
    planned = getattr(facts.settings.rule, "num_epochs", None) or math.nan
    finding = recently(
        (norm, f"the norm of the gradient is {figure(norm)}"),
        (epochs + planned, f"{figure(epochs)} of {planned} epochs run"),
    )
    lines = (
        ("norm", "update/gradient_norm", "norm of the gradient", Color.GOT),
        ("epochs", "update/epochs", "epochs that ran", Color.SIGNAL),
        ("step size", "update/learning_rate", "Adam's step size", Color.PROMISED),
    )
    return section("solver", finding, guide="descent").judged(
        [(norm < VANISHED, _VANISHED), (norm >= VANISHED and epochs < 0.5 * planned, _STOPPED)],
        *(Panel(ylabel, line(table, *what), ylim=(0.0, None)) for ylabel, *what in lines),
    )
