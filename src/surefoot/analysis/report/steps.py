"""The step of each update: how the rule found it, how far it went, and what the guard cut."""

import math

import numpy as np

from surefoot.analysis.plots.grouping import newest
from surefoot.analysis.plots.report import Panel, PanelSeries
from surefoot.analysis.plots.style import GRAY
from surefoot.analysis.report.section import (
    Color,
    Facts,
    Section,
    left_out,
    line,
    recently,
    section,
    smaller_steps,
)
from surefoot.analysis.report.table import Table
from surefoot.analysis.text import figure, percent

NATURAL = ("npg", "trpo")
JUMPING, MOSTLY = 0.2, 0.5
"""Share of all KL in the worst 1 % of states, and of ratios outside 0.8 to 1.2, worth a look."""
SMALL_KL = 1e-8
"""Nats below which differences of KL are rounding."""
VANISHED = 1e-9
"""Norm of a gradient that moves nothing."""

_REJECTED = (
    "Steps are rejected: use more damping or more data where they gain nothing, more backtracks or "
    "a larger fisher_fraction where their KL is too large (`surefoot explain update/outcome`)."
)
_VANISHED = (
    "The gradient has vanished: the policy no longer varies its actions (start again with a "
    "smaller step size, or ent_coef above 0), or the reward is constant."
)
_STOPPED = "target_kl stops most of the epochs: use a smaller step size, or fewer epochs."


def distance_section(facts: Facts) -> Section:
    """KL over states, log ratios by the sign of the advantage, and the share that is clipped."""
    table = facts.table
    if absent := table.missing("policy/kl_mean"):
        return left_out("distance", absent)
    mean = table.recent("policy/kl_mean")
    share, clipped = table.recent("policy/kl_worst_share"), table.recent("policy/clip_fraction")
    good, bad = (table.recent(f"policy/log_ratio_{sign}_p50") for sign in ("good", "bad"))
    finding = recently(
        table,
        (mean, f"the mean KL of an update is {figure(mean)} nats"),
        (share, f"the worst 1 % of states hold {percent(share)} of it"),
        (clipped, f"{percent(clipped)} of the ratios are outside 0.8 to 1.2"),
        (
            # A sum is NaN where one of its parts is unknown.
            good + bad,
            f"the median log ratio is {good:z.3f} for good and {bad:z.3f} for bad actions",
        ),
    )
    smaller = smaller_steps(facts.settings)
    jumps = f"A few states move far more than the average: use {smaller}, or a wider network."
    far = f"More than half of the ratios are outside 0.8 to 1.2: use {smaller}."
    # The quantile `policy/kl_p99` would judge the same states by another bound.
    checks = ((share > JUMPING, jumps), (clipped > MOSTLY, far))
    return section("distance", finding).judged(checks, *_panels(facts))


def _panels(facts: Facts) -> list[Panel]:
    table = facts.table
    worst = "policy/kl_worst_state"
    kl = [
        *line(table, worst, "worst state", Color.PROMISED, reduction=np.maximum.reduceat),
        *line(table, "policy/kl_p99", "99 % of states below", Color.BAD),
        *line(table, "policy/kl_mean", "mean", Color.GOT),
        *line(table, "policy/kl_median", "median", Color.SIGNAL, dash=(0, (4, 2))),
        *line(table, "update/radius", "radius", GRAY, reduction=newest, dash=(0, (4, 3))),
    ]
    clipped = [
        *line(table, "policy/clip_fraction", "ratio outside 0.8 to 1.2", Color.GOT),
        *line(
            table, "policy/unprotected_fraction", "of these, in the wrong direction", Color.PROMISED
        ),
    ]
    shares = line(table, "policy/kl_worst_share", "KL held by the worst 1 %", Color.PROMISED)
    ratios = [*_log_ratio(table, "good", Color.GOOD), *_log_ratio(table, "bad", Color.PROMISED)]
    # One median of 1e-14 would flatten the rest.
    lowest = SMALL_KL if any(np.nanmin(each.values) < SMALL_KL for each in kl) else None
    return [
        Panel("KL (nats)", kl, log=True, ylim=(lowest, None), height=2.6),
        Panel("share", shares, (0.0, JUMPING), ylim=(0.0, None)),
        Panel("log ratio", ratios, levels=((0.0, ""),)),
        Panel("share", clipped, (0.0, MOSTLY), ylim=(0.0, None)),
    ]


def _log_ratio(table: Table, sign: str, color: str) -> list[PanelSeries]:
    """The median log ratio of rows with one sign of the advantage, in its 10 to 90 % band."""
    key, label = f"policy/log_ratio_{sign}", f"{sign} actions, median and 80 % band"
    return line(table, f"{key}_p50", label, color, band=(f"{key}_p10", f"{key}_p90"))


def guard_section(facts: Facts) -> list[Section]:
    """The share of each step that the guard kept; empty for a run without a guard."""
    table = facts.table
    kept = table.known("guard/fraction")
    if not len(kept):
        return []
    whole, refused = float((kept >= 1.0).mean()), table.known("guard/refused").sum()
    finding = (
        f"The guard left {percent(whole)} of {len(kept)} updates whole, kept "
        f"{percent(float(kept.mean()))} of a step on average, and refused {int(refused)}."
    )
    advice = (
        "The guard cuts more than half of the updates, so the rule's own step is too large: use "
        f"{smaller_steps(facts.settings)}."
    )
    fractions = line(table, "guard/fraction", "share of the step that was kept", Color.GOT)
    refusals = line(table, "guard/refused", "updates refused", Color.PROMISED)
    made = section("guard", finding).judged(
        [(whole < 0.5, advice)],
        Panel("share", fractions, levels=((1.0, "the whole step"),), ylim=(-0.02, 1.1)),
        Panel("0 or 1", refusals, ylim=(-0.05, 1.05)),
    )
    return [made]


def solver_section(facts: Facts) -> Section:
    """Figures of the solver or of the descent, whichever the rule has."""
    return (_natural if facts.settings.rule.name in NATURAL else _descent)(facts)


def _natural(facts: Facts) -> Section:
    table = facts.table
    if absent := table.missing("update/cg_residual"):
        return left_out("solver", absent)
    # Both of the step that was taken: a step that was shortened has less of either.
    true, model = table.column("policy/kl_mean"), table.column("update/kl_quadratic")
    # A refused step has length 0 in the model too, and no quotient.
    quotient = np.divide(true, model, out=np.full_like(true, np.nan), where=model > 0)
    table = table._replace(columns={**table.columns, "ratio": quotient})
    ratio, residual = table.recent("ratio"), table.recent("update/cg_residual")
    accepted = table.known("update/accepted")
    taken = float(np.mean(accepted)) if len(accepted) else math.nan
    finding = recently(
        table,
        (ratio, f"the true KL was {ratio:.2f} times that of the quadratic model"),
        (residual, f"conjugate gradient left {percent(residual)} unsolved"),
    )
    if len(accepted):
        count = f"{int(accepted.sum())} of {len(accepted)}"
        finding = f"The line search accepted {count} steps of the run. {finding}"
    rough = "Curvature comes from too few states: use more steps per batch."
    if facts.settings.rule.fisher_fraction < 1.0:
        rough = "Curvature comes from too few states: use a larger fisher_fraction."
    # Without any the axis would have no height.
    backtracks = max(table.known("update/backtracks"), default=0.0)
    ratios = line(table, "ratio", "true KL of the step / quadratic model", Color.GOT)
    residuals = line(table, "update/cg_residual", "residual of conjugate gradient", Color.SIGNAL)
    steps = line(table, "update/backtracks", "backtracking steps", Color.PROMISED)
    return section("solver", finding).judged(
        [
            (taken < 0.9, _REJECTED),
            (ratio < 0.7 or ratio > 1.5, rough),
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
    epochs_of = facts.of_rows(lambda settings: getattr(settings.rule, "num_epochs", math.nan))
    planned = table._replace(columns={"planned": epochs_of}).recent("planned")
    finding = recently(
        table,
        (norm, f"the norm of the gradient is {figure(norm)}"),
        (epochs + planned, f"{figure(epochs)} of {figure(planned)} epochs run"),
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
