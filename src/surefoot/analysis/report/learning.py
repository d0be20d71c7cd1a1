"""The learning curve: the returns of a run at its start, its end and its best."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from surefoot.analysis.plots.grouping import starts_of
from surefoot.analysis.plots.report import Panel, PanelSeries
from surefoot.analysis.report.section import (
    Color,
    Facts,
    Section,
    ends_of,
    line,
    section,
    smaller_steps,
)
from surefoot.analysis.report.table import Table
from surefoot.analysis.text import figure
from surefoot.diagnostics.warnings import LossOfReturn
from surefoot.formulas.intervals import Interval, t_interval

LOST_A_QUARTER = 0.25
SETTLED = 0.05
"""Share of what was learned by which the returns of a run that stands at its best still move."""
NUM_WINDOWS = 10
"""A run without evaluations is judged by means over a tenth of its updates."""
ROUNDING = 1e-6
"""Relative difference of two means of equal returns."""
Windows = Float[np.ndarray, " window"]


class ReturnSummary(NamedTuple):
    """Undiscounted returns of whole episodes over a run: at its start, at its end and at its best.

    They are of evaluations where `evaluated`, or else of training episodes, with sampled actions,
    in windows of so many `updates`; `start` is that of the first row in both cases, unless no
    training episode ended. `interval` has the ends of the final one's 95 % interval, or is None
    where the spread of its episodes is unknown. `best` is biased upwards, as the maximum of several
    noisy values.
    """

    evaluated: bool
    start: float
    final: float
    interval: tuple[float, float] | None
    best: float
    best_step: float
    final_step: float
    updates: int

    @property
    def lost(self) -> float:
        """Share of what was learned that the end has lost again; 0 where nothing was learned."""
        learned = self.best - self.start
        return (self.best - self.final) / learned if learned > 0 else 0.0


def evaluation_intervals(facts: Facts) -> Interval:
    """95 % t intervals of the evaluations' means; the ends are NaN for one episode."""
    table, episodes = facts.table, facts.of_rows(lambda settings: settings.train.eval_episodes)
    error = table.column("eval/return_std") / np.where(episodes > 1, episodes, np.nan) ** 0.5
    return t_interval(table.column("eval/return_mean"), error, episodes - 1)


def summarize_returns(facts: Facts) -> ReturnSummary | None:
    """Start, end and best, of evaluations if there are any, else of training episodes.

    None where no episode has ended.
    """
    table, (values, low, high) = facts.table, evaluation_intervals(facts)
    where = np.flatnonzero(np.isfinite(values))
    evaluated, interval, updates = len(where) > 0, None, 1
    if evaluated:
        returns, steps = values[where], table.steps[where]
        if math.isfinite(low[where[-1]]):
            interval = float(low[where[-1]]), float(high[where[-1]])
    else:
        returns, steps, updates = _training_returns(table)
    if not len(returns):
        return None
    # The first row is the first policy's, before an evaluation or a window has learned anything.
    start = float(np.append(table.known("episode/return_mean"), returns)[0])
    final, best = float(returns[-1]), int(np.argmax(returns))
    if returns[best] - final <= ROUNDING * abs(final):
        best = len(returns) - 1
    value, step, last = float(returns[best]), float(steps[best]), float(steps[-1])
    return ReturnSummary(evaluated, start, final, interval, value, step, last, updates)


def _training_returns(table: Table) -> tuple[Windows, Windows, int]:
    """Mean return of training episodes in windows of a tenth of the rows; their ends and size."""
    where = np.flatnonzero(np.isfinite(table.column("episode/return_mean")))
    returns, counts = table.column("episode/return_mean")[where], table.column("episode/count")
    # Rows without a count weigh alike, and no window may weigh nothing.
    counts = np.maximum(np.nan_to_num(counts[where], nan=1.0), 1e-9)
    if not len(where):
        return returns, returns, 1
    ones = np.ones(math.ceil(len(returns) / NUM_WINDOWS))
    # Weighted by episodes, as rows have different numbers of them.
    smooth = np.convolve(returns * counts, ones, "valid") / np.convolve(counts, ones, "valid")
    return smooth, table.steps[where[len(ones) - 1 :]], len(ones)


def has_fallen(table: Table, found: ReturnSummary) -> bool:
    """Whether the end is below the best beyond noise: its interval, or how rows differ."""
    if found.evaluated:
        # Evaluations of one episode have no interval: then every fall counts.
        return found.interval is None or found.interval[1] < found.best
    loss = LossOfReturn()
    for value in table.known("episode/return_mean"):
        loss.see(float(value))
    return loss.is_lost


def is_settled(table: Table, found: ReturnSummary | None) -> bool:
    """Whether the run stands at its best: it has learned, lost nothing, and gains no more.

    Its returns of the newest fifth are as those of the fifth before, by a twentieth of what it
    learned, and so is its end to its best.
    """
    if found is None or found.best <= found.start or has_fallen(table, found):
        return False
    returns = table.known("episode/return_mean")
    fifth = len(returns) // 5
    if fifth < 3:
        return False
    before, late = returns[-2 * fifth : -fifth].mean(), returns[-fifth:].mean()
    learned = found.best - found.start
    return bool(abs(late - before) <= SETTLED * learned and found.lost <= SETTLED)


def learning_section(facts: Facts, found: ReturnSummary | None) -> Section:
    """Returns over the run, and whether the final policy kept what was learned."""
    if found is None:
        finding = "No episode has ended in this run, so there is no return to show."
        advice = (
            "Collect more steps at once (--num-steps), or give the environment a time limit; "
            "evaluations (--eval-every) always play whole episodes."
        )
        return section("learning", finding)._replace(level="amber", advice=advice)
    finding, level, advice = _judge(facts, found, has_fallen(facts.table, found))
    series = [*_training(facts), *_evaluations(facts)]
    # A star on the last point would hide it.
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
    ends = np.minimum.reduceat(low[here], starts), np.maximum.reduceat(high[here], starts)
    return [series[0]._replace(band=ends)]


def _evaluations(facts: Facts) -> list[PanelSeries]:
    intervals = evaluation_intervals(facts)
    where = np.flatnonzero(np.isfinite(intervals.mean))
    if not len(where):
        return []
    # Evaluations are rare by design; of very many, every so many are shown and the last.
    where = where[np.unique(np.append(starts_of(len(where)), len(where) - 1))]
    values, low, high = (part[where] for part in intervals)
    made = PanelSeries("evaluations", facts.table.steps[where], values, Color.GOT, points=True)
    return [made._replace(band=(low, high)) if np.isfinite(low).all() else made]


def describe_end(found: ReturnSummary) -> str:
    """The return at the end, beside the best, in words."""
    if found.evaluated:
        low, high = found.interval or (math.nan, math.nan)
        text = f"the evaluation at step {found.final_step:,.0f}, the last one, returned "
        text += figure(found.final)
        text += ends_of(Interval(found.final, low, high))
    else:
        text = f"the newest training episodes returned {figure(found.final)} on average over "
        text += f"{_updates(found)} (sampled actions; no evaluation during training)"
    if found.final >= found.best:
        return text + ", which is the best of the run"
    what = f"the best {_updates(found).removeprefix('1 ')} averaged"
    what, until = ("the best one", "at step") if found.evaluated else (what, "up to step")
    return (
        f"{text}, {what} {figure(found.best)} {until} {found.best_step:,.0f} (the best of "
        "several noisy values is biased upwards)"
    )


def _updates(found: ReturnSummary) -> str:
    return "1 update" if found.updates == 1 else f"{found.updates} updates"


def _judge(facts: Facts, found: ReturnSummary, fallen: bool) -> tuple[str, str, str]:
    """Finding, level and advice."""
    text = f"Training began at a return of {figure(found.start)}; {describe_end(found)}."
    smaller = smaller_steps(facts.settings)
    if found.lost > LOST_A_QUARTER and fallen:
        share = f"{100 * found.lost:.0f} % of what" if found.lost < 1 else "all that"
        advice = f"Use {smaller}; the figures below show what came before the loss. "
        if getattr(facts.settings.rule, "final_fraction", 0.0) == 1.0:
            advice = f"Let the step fall over the run (final_fraction), or u{advice[1:]}"
        kept = "`surefoot evaluate RUN --best` plays the best policy, which is stored."
        return f"{text} It has lost {share} it had learned.", "red", advice + kept * found.evaluated
    if found.best <= found.start and found.interval and found.interval[1] < found.start:
        guard = "" if facts.settings.train.guard else ", or --guard"
        advice = f"It has unlearned its initial behaviour: start again with {smaller}{guard}."
        return text + " That is below the first policy's return.", "red", advice
    if found.best <= found.start:
        advice = (
            "Nothing has been learned yet: check below whether the promises contain signal, and "
            "try more steps, more steps per batch, or another step size."
        )
        return text, "amber", advice
    return text, "green", ""
