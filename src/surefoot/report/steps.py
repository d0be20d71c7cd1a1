"""How far each update went, how its solver and its critic fared, and what the guard did."""

from collections.abc import Sequence

import numpy as np

from surefoot.plots.report import Panel
from surefoot.report.section import (
    BAD,
    EXTRA,
    GOOD,
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
from surefoot.report.table import Table, column, largest, missing, recent

NATURAL = ("npg", "trpo")


def distance_section(facts: Facts) -> Section:
    """KL over states, log ratios by the sign of the advantage, and what the clip would cut."""
    name, title, table = "distance", "How far each update went", facts.table
    meaning = (
        "KL says how unlike the old and the new policy are in a state: 0 is equal, 0.01 very "
        "similar, 1 quite different. A mean can be small while single states jump; the worst state "
        "and the share of all KL that the worst 1 % of states hold show it. A log ratio is how "
        "much likelier an action became: good actions (positive advantage) belong above 0, bad "
        "ones below; the bands hold 80 % of each. Outside 0.8 to 1.2 a ratio counts as clipped. "
        "Where several updates are one point of a curve, the worst state is the worst of them."
    )
    absent = missing(table, "policy/kl_mean")
    if absent:
        return left_out(name, title, facts, absent)
    dash = {"dash": (0, (4, 2))}
    radius = _settings_radius(facts)
    good, bad = (_log_ratios(table, *of) for of in (("good", GOOD), ("bad", PROMISED)))
    shown = panels(
        Panel(
            "KL (nats)",
            traces(
                trace(table, "policy/kl_worst_state", "worst state", PROMISED, reduction=largest),
                trace(table, "policy/kl_p99", "99 % of states below", BAD),
                trace(table, "policy/kl_mean", "mean", GOT),
                trace(table, "policy/kl_median", "median", SIGNAL, how=dash),
            ),
            levels=((radius, "radius"),) if radius else (),
            log=True,
            height=2.6,
        ),
        Panel(
            "share",
            traces(trace(table, "policy/kl_worst_share", "KL held by the worst 1 %", PROMISED)),
            (0.0, 0.2),
            ylim=(0.0, None),
        ),
        Panel("log ratio", traces(good, bad), levels=((0.0, ""),)),
        Panel(
            "share",
            traces(
                trace(table, "policy/clip_fraction", "ratio outside 0.8 to 1.2", GOT),
                trace(table, "policy/unprotected_fraction", "of these, the wrong way", PROMISED),
            ),
            (0.0, 0.3),
            ylim=(0.0, None),
        ),
    )
    finding, advice = _distance_told(table)
    level = "amber" if advice else "green"
    return Section(name, title, level, finding, " ".join(advice), meaning, shown)


def _settings_radius(facts: Facts) -> float | None:
    """The radius that mean KL is held to or aims at, where it is constant."""
    rule = facts.settings.rule
    start, end = getattr(rule, "max_kl", None), getattr(rule, "max_kl_end", None)
    return float(start) if start is not None and start == end else None


def _log_ratios(table: Table, sign: str, color: str):
    """The median log ratio of rows with one sign of the advantage, in its 10 to 90 % band."""
    key = f"policy/log_ratio_{sign}"
    label = f"{sign} actions, median and 80 % band"
    return trace(table, f"{key}_p50", label, color, low=f"{key}_p10", high=f"{key}_p90")


def _distance_told(table: Table) -> tuple[str, list[str]]:
    mean, tail = (recent(column(table, f"policy/{key}")) for key in ("kl_mean", "kl_p99"))
    share, clipped = (
        recent(column(table, f"policy/{key}")) for key in ("kl_worst_share", "clip_fraction")
    )
    said, advice = [f"the mean KL of an update is {told(mean or 0.0)} nats"], []
    if share is not None:
        said.append(f"the worst 1 % of states hold {percent(share)} of it")
    if clipped is not None:
        said.append(f"{percent(clipped)} of ratios leave 0.8 to 1.2")
    if (tail and mean and tail > 20 * mean) or (share or 0.0) > 0.2:
        advice.append(
            "A few states jump under cover of the average: a smaller radius, step size or clip "
            "range, fewer epochs, or a wider network."
        )
    if (clipped or 0.0) > 0.5:
        advice.append("More than half is clipped: later epochs do nothing; fewer of them.")
    good = recent(column(table, "policy/log_ratio_good_p50"))
    bad = recent(column(table, "policy/log_ratio_bad_p50"))
    if good is not None and bad is not None:
        said.append(f"the median log ratio is {told(good)} of good and {told(bad)} of bad actions")
    return "In the newest tenth of the run " + ", ".join(said) + ".", advice


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
    true = column(table, "update/kl_full_step")
    true = np.where(np.isfinite(true), true, column(table, "policy/kl_mean"))
    model = column(table, "update/kl_quadratic")
    ratio = np.divide(true, model, out=np.full_like(true, np.nan), where=model > 0)
    more = table._replace(columns={**table.columns, "ratio": ratio})
    shown = panels(
        Panel(
            "true / model",
            traces(trace(more, "ratio", "true KL of the full step / quadratic model", GOT)),
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
            ylim=(-0.05, None),
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
    text = ", ".join(said) + "."
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
    if norm == 0.0:
        advice = "The gradient is 0: advantages do not vary. Is the reward constant?"
    return Section(name, title, "amber" if advice else "green", said + ".", advice, meaning, shown)


def critic_section(facts: Facts) -> Section:
    """How well the critic foresees returns, and whether gradients agree between batches."""
    name, title, table = "critic", "Critic and gradient", facts.table
    meaning = (
        "The critic foresees what each state is worth; promises rest on it. Explained variance: 1 "
        "is perfect, 0 no better than one number for all states, below 0 worse. On its own "
        "targets it flatters; on fresh returns it does not. Where all returns are equal it means "
        "nothing. The expected cosine says how far the gradients of two batches would agree: below "
        "0.1 updates are mostly noise."
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
            (0.5, 1.0),
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
    said = f"In the newest tenth of the run the critic explains {percent(judged or 0.0)} of the "
    said += "variance of " + ("its own targets" if fresh is None else "fresh returns")
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


def guard_section(facts: Facts) -> Section | None:
    """What the guard cut from the steps; None for a run without it."""
    table = facts.table
    if missing(table, "guard/fraction"):
        return None
    kept = column(table, "guard/fraction")
    kept = kept[np.isfinite(kept)]
    refused = np.nan_to_num(column(table, "guard/refused"))
    shown = panels(
        Panel(
            "share",
            traces(trace(table, "guard/fraction", "share of the step that was kept", GOT)),
            levels=((1.0, "the whole step"),),
            ylim=(-0.02, 1.1),
        ),
        Panel(
            "0 or 1", traces(trace(table, "guard/refused", "updates refused", PROMISED)),
            ylim=(-0.05, 1.05),
        ),
    )  # fmt: skip
    whole = float(np.mean(kept >= 1.0))
    finding = (
        f"The guard left {percent(whole)} of {len(kept)} updates whole, kept "
        f"{percent(float(np.mean(kept)))} of a step on average, and refused {int(refused.sum())}."
    )
    advice = ""
    if whole < 0.5:
        advice = "It cuts more than half of the updates: the rule's own step is too large."
    meaning = (
        "--guard walks a step back along its own path until mean and worst-state KL are inside "
        "their radii, and refuses it while its recent promises do not hold on unseen data."
    )
    level = "amber" if advice else "green"
    return Section("guard", "Guard", level, finding, advice, meaning, shown)
