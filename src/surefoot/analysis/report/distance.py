"""How far each update went, and what the guard took back."""

import numpy as np

from surefoot.analysis.plots.report import Panel
from surefoot.analysis.report.section import (
    BAD,
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
from surefoot.analysis.report.table import Table, column, largest, missing, recent


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
    radius = getattr(rule, "max_kl", None)
    return radius if radius is not None and rule.final_fraction == 1.0 else None


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
