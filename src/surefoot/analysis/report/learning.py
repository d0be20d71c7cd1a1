"""The learning curve: the outcome of a run, before its causes."""

import math

import numpy as np

from surefoot.analysis.plots.grouping import largest, smallest, starts_of
from surefoot.analysis.plots.report import Panel, PanelSeries
from surefoot.analysis.report.returns import ReturnSummary, evaluation_intervals, has_fallen
from surefoot.analysis.report.section import Color, Facts, Section, ends_of, line, section
from surefoot.analysis.text import figure
from surefoot.formulas.intervals import Interval

LOST_A_QUARTER = 0.25


def learning_section(facts: Facts, found: ReturnSummary | None) -> Section:
    """Returns over the run, and whether the final policy kept what was learned."""
    if found is None:
        finding = "No episode has ended in this run, so there is no return to show."
        advice = (
            "Collect more steps at once (--num-steps), or give the environment a time limit; "
            "evaluations (--eval-every) always play whole episodes."
        )
        return section("learning", finding)._replace(level="amber", advice=advice)
    finding, level, advice = _judge(found, has_fallen(facts.table, found))
    series = [*_training(facts), *_evaluations(facts)]
    if found.final < found.best:
        step, best = np.array([found.best_step]), np.array([found.best])
        series.append(PanelSeries("best", step, best, Color.BAD, dash="none", mark="*"))
    panels = (Panel("return", series, height=2.9),)
    return section("learning", finding)._replace(level=level, advice=advice, panels=panels)


def _training(facts: Facts) -> list[PanelSeries]:
    """Returns of training episodes, in a band from the lowest to the highest of each group."""
    table, key = facts.table, "episode/return_mean"
    series = line(table, key, "training episodes", Color.SIGNAL)
    low, high = (table.column(f"episode/return_{end}") for end in ("min", "max"))
    here = np.isfinite(table.column(key))
    if not series or not np.isfinite(low[here] + high[here]).all():
        return series
    starts = starts_of(int(here.sum()))
    return [series[0]._replace(low=smallest(low[here], starts), high=largest(high[here], starts))]


def _evaluations(facts: Facts) -> list[PanelSeries]:
    intervals = evaluation_intervals(facts.table, facts.settings.train.eval_episodes)
    where = np.flatnonzero(np.isfinite(intervals.mean))
    if not len(where):
        return []
    # Evaluations are rare by design; of very many, every so many are shown and the last.
    where = where[np.unique(np.append(starts_of(len(where)), len(where) - 1))]
    values, low, high = (part[where] for part in intervals)
    made = PanelSeries("evaluations", facts.table.steps[where], values, Color.GOT, points=True)
    return [made._replace(low=low, high=high) if np.isfinite(low).all() else made]


def describe_end(found: ReturnSummary) -> str:
    """The return at the end, beside the best, in words."""
    if found.evaluated:
        low, high = found.interval or (math.nan, math.nan)
        text = f"the last evaluation returned {figure(found.final)}"
        text += ends_of(Interval(found.final, low, high))
    else:
        text = (
            f"the newest training episodes returned {figure(found.final)} on average (sampled "
            "actions; there was no evaluation)"
        )
    if found.final >= found.best:
        return text + ", which is the best of the run"
    what = "the best one" if found.evaluated else "the best tenth of the run"
    return (
        f"{text}, {what} {figure(found.best)} after {found.best_step:,.0f} steps (the best of "
        "several noisy values is biased upwards)"
    )


def _judge(found: ReturnSummary, fallen: bool) -> tuple[str, str, str]:
    """Finding, level and advice."""
    text = f"Training began at a return of {figure(found.start)}; {describe_end(found)}."
    if found.lost > LOST_A_QUARTER and fallen:
        share = f"{100 * found.lost:.0f} % of what" if found.lost < 1 else "all that"
        advice = (
            "Let the radius or the step size fall over the run (final_fraction) or "
            "make it smaller; the figures below show what came before the loss. "
        )
        kept = "`surefoot evaluate RUN --best` plays the best policy, which is stored."
        return f"{text} It has lost {share} it had learned.", "red", advice + kept * found.evaluated
    if found.best <= found.start and found.interval and found.interval[1] < found.start:
        advice = (
            "It has unlearned its initial behaviour: start again with a smaller step (max_kl, "
            "learning_rate), fewer epochs, or --guard."
        )
        return text + " That is below the first policy's return.", "red", advice
    if found.best <= found.start:
        advice = (
            "Nothing has been learned yet: check below whether the promises contain signal, and "
            "try more steps, more steps per batch, or another step size."
        )
        return text, "amber", advice
    return text, "green", ""
