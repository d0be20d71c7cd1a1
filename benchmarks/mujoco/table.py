"""The table of final scores, and the picture of learning curves, from the records."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.mujoco.scores import best
from benchmarks.mujoco.tasks import BY_ENV, TASKS
from surefoot.analysis.compare.comparison import summarize_scores
from surefoot.formulas.intervals import Interval

DRAWS = 10_000
"""Bootstrap samples of an interquartile mean."""
KEPT = 0.95
"""A run kept what it learned where its final score is at least this share of its best one."""

Record = Mapping[str, Any]


def table(records: Sequence[Record]) -> str:
    """Every task and rule in Markdown: final scores over seeds, best ones, time."""
    lines = [
        "| task | rule | seeds | final | 95 % | std | median | worst | IQM | 95 % | best | bar "
        "| s |",
        "|" + "---|" * 13,
    ]
    for env, rule in _lines(records):
        of = _of(records, env, rule)
        finals = np.array([record["final"]["mean"] for record in of])
        found, bar = summarize_scores(finals), BY_ENV[env].bar
        reached = bar is not None and found.mean >= bar
        cells = [
            env,
            rule,
            str(found.n),
            f"**{_shown(found.mean)}**" if reached else _shown(found.mean),
            _interval(found.interval),
            _shown(float(np.std(finals, ddof=1))) if found.n > 1 else "-",
            _shown(found.median),
            _shown(float(finals.min())),
            _shown(found.interquartile_mean),
            _interval(iqm_interval([finals]) if found.n > 1 else None),
            _shown(float(np.mean([best(record) for record in of]))),
            "-" if bar is None else f"{bar:g}",
            str(round(float(np.median([record["seconds"] for record in of])))),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def aggregate(records: Sequence[Record]) -> str:
    """Each rule over all tasks with a positive bar: the interquartile mean of final / bar."""
    lines = [
        "| rule | tasks | runs | IQM of final / bar | 95 % | final at least 95 % of best |",
        "|" + "---|" * 6,
    ]
    for rule in dict.fromkeys(record["rule"] for record in records):
        by_task = []
        for task in TASKS:
            of = _of(records, task.env, rule)
            # A share of a negative return, Reacher's, says nothing.
            if of and task.bar is not None and task.bar > 0:
                by_task.append(np.array([record["final"]["mean"] / task.bar for record in of]))
        if by_task:
            mine = [record for record in records if record["rule"] == rule]
            shares = _interquartile_mean(np.concatenate(by_task))
            lines.append(
                f"| {rule} | {len(by_task)} | {sum(map(len, by_task))} | {shares:.2f} | "
                f"{_interval(iqm_interval(by_task))} | {sum(map(kept, mine))} of {len(mine)} |"
            )
    return "\n".join(lines)


def kept(record: Record) -> bool:
    """Whether a run's final score is within 5 % of its best one; of negative ones, as a cost."""
    final, highest = record["final"]["mean"], best(record)
    return final >= (KEPT * highest if highest > 0 else highest / KEPT)


def iqm_interval(by_task: Sequence[np.ndarray]) -> Interval:
    """95 % percentile bootstrap of the interquartile mean, seeds drawn anew within each task.

    Source: Agarwal et al. 2021, arXiv:2108.13264, section 4.2.
    """
    generator = np.random.default_rng(0)
    drawn = [
        scores[generator.integers(len(scores), size=(DRAWS, len(scores)))] for scores in by_task
    ]
    means = _interquartile_mean(np.concatenate(drawn, axis=1))
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(np.mean(means)), float(low), float(high))


def _interquartile_mean(scores: np.ndarray) -> Any:
    """Over the last axis: a quarter, rounded down, cut from each end."""
    cut = scores.shape[-1] // 4
    middle = np.sort(scores, axis=-1)[..., cut : scores.shape[-1] - cut]
    return middle.mean(axis=-1)


def draw(records: Sequence[Record], picture: Path) -> None:
    """A panel a task: returns of training episodes over steps, mean and range over seeds."""
    import matplotlib.pyplot as plt

    tasks = [task for task in TASKS if any(record["env"] == task.env for record in records)]
    rules = list(dict.fromkeys(record["rule"] for record in records))
    rows = -(-len(tasks) // 3)
    figure, panels = plt.subplots(
        rows, 3, figsize=(11, 2.9 * rows), squeeze=False, layout="constrained"
    )
    for axes in panels.flat[len(tasks) :]:
        axes.set_visible(False)
    for axes, task in zip(panels.flat, tasks, strict=False):
        for position, rule in enumerate(rules):
            curves = [record["curve"] for record in _of(records, task.env, rule)]
            if not curves:
                continue
            steps = np.linspace(0, max(curve[-1][0] for curve in curves), 51)[1:]
            values = np.array([np.interp(steps, *np.array(curve).T) for curve in curves])
            color = f"C{position}"
            axes.plot(steps / 1e6, values.mean(axis=0), color=color, label=rule)
            axes.fill_between(
                steps / 1e6, values.min(axis=0), values.max(axis=0), color=color, alpha=0.15, lw=0
            )
        if task.bar is not None:
            axes.axhline(task.bar, color="0.5", lw=1, ls=":")
        axes.set_title(task.env, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[-1]:
        axes.set_xlabel("million steps", fontsize=9)
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=120)
    plt.close(figure)


def _lines(records: Sequence[Record]) -> list[tuple[str, str]]:
    order = {task.env: position for position, task in enumerate(TASKS)}
    found = dict.fromkeys((record["env"], record["rule"]) for record in records)
    return sorted(found, key=lambda line: order[line[0]])


def _of(records: Sequence[Record], env: str, rule: str) -> list[Record]:
    return [record for record in records if (record["env"], record["rule"]) == (env, rule)]


def _shown(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"


def _interval(found: Interval | None) -> str:
    return "-" if found is None else f"{_shown(found.low)} to {_shown(found.high)}"
