"""The learning curve and the warnings: how a run went, before why."""

from collections import Counter
from html import escape

import numpy as np

from surefoot.analysis.plots.report import Panel, Trace
from surefoot.analysis.report.figures import Score, evaluation_half, has_fallen
from surefoot.analysis.report.section import (
    BAD,
    GOT,
    SIGNAL,
    Facts,
    Section,
    between,
    panels,
    raised_warnings,
    told,
    trace,
    traces,
)
from surefoot.analysis.report.table import column, largest, smallest, starts_of

LOST_A_QUARTER = 0.25

_MEANING = (
    "A return is the total reward of one episode, as the environment pays it. Training episodes "
    "are those that the policy learned from, with sampled actions; the band reaches from the "
    "lowest to the highest of them. Evaluations are fresh episodes without sampling; their bars "
    "are 95 % intervals of the mean. Marks above the picture are warnings."
)


def learning_section(facts: Facts, found: Score | None) -> Section:
    """Returns over the run, and whether the end kept what was learned."""
    title = "Learning curve"
    if found is None:
        return Section(
            "learning",
            title,
            "amber",
            "No episode has ended in this run, so there is no return to show.",
            "Collect more steps at once (--num-steps), or give the environment a time limit; "
            "evaluations (--eval-every) play whole episodes in any case.",
            _MEANING,
        )
    finding, level, advice = _judged(found, has_fallen(facts.table, found))
    training = trace(facts.table, "episode/return_mean", "training episodes", SIGNAL)
    panel = Panel(
        "return",
        traces(_with_extremes(facts, training), _evaluations(facts)),
        height=2.9,
    )
    if found.final < found.best:
        star = Trace("best", np.array([found.best_step]), np.array([found.best]), BAD)
        star = star._replace(mark="*", dash="none")
        panel = panel._replace(traces=(*panel.traces, star))
    return Section("learning", title, level, finding, advice, _MEANING, panels(panel))


def _with_extremes(facts: Facts, training: Trace | None) -> Trace | None:
    """The training curve in a band from the lowest to the highest return of each group."""
    low, high = (column(facts.table, f"episode/return_{end}") for end in ("min", "max"))
    here = np.isfinite(column(facts.table, "episode/return_mean"))
    if training is None or not np.isfinite(low[here] + high[here]).all():
        return training
    starts = starts_of(int(here.sum()))
    return training._replace(low=smallest(low[here], starts), high=largest(high[here], starts))


def _evaluations(facts: Facts) -> Trace | None:
    values = column(facts.table, "eval/return_mean")
    here = np.isfinite(values)
    if not here.any():
        return None
    episodes = facts.settings.train.eval_episodes
    half = evaluation_half(column(facts.table, "eval/return_std"), episodes)
    # Evaluations are rare by design; of very many, every so many are shown and the last.
    where = np.flatnonzero(here)
    where = where[np.unique(np.append(starts_of(len(where)), len(where) - 1))]
    made = Trace("evaluations", facts.table.steps[where], values[where], GOT)
    if half is not None and np.isfinite(half[where]).all():
        made = made._replace(low=(values - half)[where], high=(values + half)[where])
    return made._replace(points=True)


def ended_at(found: Score) -> str:
    """Where the run stands, in words."""
    if not found.evaluated:
        return (
            f"its newest training episodes return {told(found.final)} on average (actions "
            "sampled; no evaluation was made)"
        )
    interval = between("95 % interval", *(found.interval or (None, None)))
    return f"its last evaluation returned {told(found.final)}{interval}"


def beside_best(found: Score) -> str:
    """Final beside best, in words."""
    if found.final >= found.best:
        return "which is its best"
    what = "its best was" if found.evaluated else "those of its best tenth returned"
    best = f"{what} {told(found.best)} after {found.best_step:,.0f} steps"
    return best + " (the best of several noisy values flatters)"


def _judged(found: Score, fallen: bool) -> tuple[str, str, str]:
    """Finding, level and advice."""
    text = f"From {told(found.start)} at first; {ended_at(found)}, {beside_best(found)}."
    if found.lost > LOST_A_QUARTER and fallen:
        share = f"{100 * found.lost:.0f} % of what" if found.lost < 1 else "all that"
        worse = f" It has lost {share} it had learned."
        advice = (
            "Let the radius or the step size fall over the run (final_fraction) or "
            "make it smaller; the pictures below show what came before the loss. "
        )
        kept = "`surefoot evaluate RUN --best` plays the best policy, which is kept."
        return text + worse, "red", advice + kept * found.evaluated
    if found.best <= found.start and found.interval and found.interval[1] < found.start:
        advice = (
            "It has unlearned what it began with: start again with a smaller step (max_kl, "
            "learning_rate), fewer epochs, or --guard."
        )
        return text + " That is below what the first policy got.", "red", advice
    if found.best <= found.start:
        advice = (
            "Nothing has been learned yet: see below whether the promises hold signal, and give "
            "the run more steps, more steps a batch, or another step size."
        )
        return text, "amber", advice
    return text, "green", ""


def warnings_section(facts: Facts) -> Section:
    """Which warnings were raised, when, and what to do about each."""
    name, title = "warnings", "Warnings"
    meaning = (
        "A run asks itself at every update, and an older one is asked now. Each row is one "
        "warning, each tick an update at which it was raised. Red asks for action, amber for a "
        "look."
    )
    found = raised_warnings(facts)
    if not found:
        return Section(name, title, "green", "No warning was raised.", "", "")
    counts = Counter({each.name: len(each.steps) for each in found})
    most = ", ".join(f"{key} ({times} times)" for key, times in counts.most_common(3))
    finding = f"{len(found)} kinds of warnings were raised; most often {most}."
    if len(found) == 1:
        finding = f"One kind of warning was raised: {most}."
    worst = found[0]
    level = worst.level if worst.level in ("red", "amber") else ""
    advice = getattr(facts.alarms.get(worst.name), "remedy", "")
    head = "<table><tr><th>warning</th><th>level</th><th>raised</th><th>first and last at</th>"
    head += "<th>what it says</th><th>what to do</th></tr>"
    rows = (
        (
            each.name,
            each.level or "unknown here",
            f"{len(each.steps)} times",
            f"{each.steps[0]:,.0f} and {each.steps[-1]:,.0f} steps",
            getattr(facts.alarms.get(each.name), "what", "this surefoot does not know it"),
            getattr(facts.alarms.get(each.name), "remedy", ""),
        )
        for each in found
    )
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows
    )
    said = f"{worst.name}: {advice}" if advice else ""
    return Section(name, title, level, finding, said, meaning, extra=f"{head}{body}</table>")
