"""What the stored runs say, as tables: fates, candidates, the union, and a remedy's worth."""

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research.collapses.cells import ENVS, Cell
from research.collapses.conditions import CONDITIONS, scores_of
from research.collapses.driver import load
from research.collapses.labels import Curve, Label, label, smooth
from research.collapses.thresholds import Judged, Scored, choose, fit, score, tally
from surefoot.diagnostics.warnings import ALARMS
from surefoot.formulas.intervals import mean_interval

YARDSTICK = "returns"
"""What a plot of returns alone would tell; scored like the others, and never part of the union."""
FINAL = 10
"""Iterations whose mean return is a run's final one."""


def curves_of(metrics: Mapping[str, np.ndarray]) -> list[Curve]:
    """The returns of each run of a cell."""
    names = ("episode/return_mean", "episode/count", "env_steps")
    return [Curve(*run) for run in zip(*(metrics[name] for name in names), strict=True)]


def labels_of(cell: Cell, metrics: Mapping[str, np.ndarray]) -> list[Label]:
    """The fate of each run of a cell."""
    env = ENVS[cell.env]
    span = env.good - env.random
    return [label(curve, span=span, start=env.random) for curve in curves_of(metrics)]


def judged(cells: Sequence[Cell], out: Path) -> dict[str, list[Judged]]:
    """Every stored run by part of the split, labelled and scored."""
    parts: dict[str, list[Judged]] = {"fit": [], "held-out": [], "mixed": []}
    for cell in cells:
        metrics = load(cell, out)
        if metrics is None:
            print(f"{cell.name} has not been trained: left out")
            continue
        for i, fate in enumerate(labels_of(cell, metrics)):
            scores = scores_of({name: values[i] for name, values in metrics.items()})
            where = (cell.env, cell.rule, cell.fault)
            parts[cell.part].append(Judged(fate.fate, cell.planted, fate.quarter, scores, where))
    return parts


def report_thresholds(cells: Sequence[Cell], out: Path, results: Path) -> None:
    """Fit on one part, score on the others, and write `collapses-*.csv` and `.json`.

    The warnings that surefoot ships have thresholds of their own, from the suite's first training:
    they are scored as they are, on whatever training is stored here.
    """
    parts = judged(cells, out)
    names = list(CONDITIONS)
    thresholds = fit(parts["fit"], names)
    union = choose(parts["fit"], {n: t for n, t in thresholds.items() if n != YARDSTICK})
    rows = [
        _candidate_row(name, thresholds[name], name in union, parts)
        for name in names
        if any(np.isfinite(run.scores[name]).any() for runs in parts.values() for run in runs)
    ]
    _write(results / "collapses-conditions.csv", rows)
    _write(results / "collapses-fates.csv", _fate_rows(parts))
    summary: dict[str, Any] = {
        "thresholds": {name: float(f"{threshold:.4g}") for name, threshold in union.items()},
        "runs": {part: Counter(_kind(run) for run in runs) for part, runs in parts.items()},
        "union": {part: _told(score(runs, union)) for part, runs in parts.items()},
        "union_held_out_by_env": _broken_down(parts["held-out"], union, 0),
        "union_held_out_by_fault": _broken_down(parts["held-out"], union, 2),
        "shipped": {
            name: {part: _told(score(runs, {name: alarm.bound})) for part, runs in parts.items()}
            for name, alarm in ALARMS.items()
        },
    }
    (results / "collapses.json").write_text(json.dumps(summary, indent=1) + "\n")
    _print(summary)


def _print(summary: Mapping[str, Any]) -> None:
    """The union and what it achieves, a line each."""
    for name, threshold in summary["thresholds"].items():
        print(f"{name:20} at {threshold:<10} {CONDITIONS[name].says}")
    for part, told in summary["union"].items():
        hits, false = told["hits"], told["false_alarms"]
        print(f"{part}: {dict(summary['runs'][part])}")
        print(f"  announced {hits['count']} of {hits['of']}, 95 % {hits['interval']}")
        print(f"  false alarms {false['count']} of {false['of']}, 95 % {false['interval']}")
        print(f"  updates ahead, quartiles {told['lead_quartiles']}")
    for name, parts in summary["shipped"].items():
        hits, false = (
            " + ".join(f"{part[what]['count']} of {part[what]['of']}" for part in parts.values())
            for what in ("hits", "false_alarms")
        )
        print(f"shipped {name:20} announced {hits}; false alarms {false} ({' + '.join(parts)})")


def _kind(run: Judged) -> str:
    return run.fate if run.planted is None else f"planted, {run.fate}"


def _told(scored: Scored) -> dict[str, Any]:
    """A score in plain numbers."""
    shown = lambda t: {  # noqa: E731
        "count": t.count,
        "of": t.of,
        "interval": [round(t.low, 3), round(t.high, 3)],
    }
    return {
        "hits": shown(scored.hits),
        "false_alarms": shown(scored.false_alarms),
        "lead_quartiles": [lead if np.isfinite(lead) else None for lead in scored.leads],
    }


def _broken_down(runs: Sequence[Judged], union: Mapping[str, float], by: int) -> dict[str, Any]:
    kinds = sorted({run.where[by] for run in runs})
    return {kind: _told(score([r for r in runs if r.where[by] == kind], union)) for kind in kinds}


def _candidate_row(
    name: str, threshold: float, chosen: bool, parts: Mapping[str, Sequence[Judged]]
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "condition": name,
        "score": CONDITIONS[name].says,
        "threshold": f"{threshold:.4g}",
        "in_union": int(chosen),
    }
    for part, runs in parts.items():
        scored, prefix = score(runs, {name: threshold}), part.replace("-", "_")
        for what, counted in (("hits", scored.hits), ("false", scored.false_alarms)):
            row |= {
                f"{prefix}_{what}": counted.count,
                f"{prefix}_{what}_of": counted.of,
                f"{prefix}_{what}_low": round(counted.low, 3),
                f"{prefix}_{what}_high": round(counted.high, 3),
            }
        quartiles = zip(("q1", "median", "q3"), scored.leads, strict=True)
        row |= {f"{prefix}_lead_{which}": f"{value:g}" for which, value in quartiles}
    return row


def _fate_rows(parts: Mapping[str, Sequence[Judged]]) -> list[dict[str, Any]]:
    """How many runs of each kind met each fate."""
    fates = ("steady", "faltered", "collapsed", "unlearned")
    counted: dict[tuple[str, ...], Counter[str]] = {}
    for part, runs in parts.items():
        for run in runs:
            counted.setdefault((part, *run.where), Counter())[run.fate] += 1
    heads = ("part", "env", "rule", "fault")
    return [
        dict(zip(heads, where, strict=True)) | {fate: counts[fate] for fate in fates}
        for where, counts in sorted(counted.items())
    ]


def report_variant(plain: Sequence[Cell], varied: Sequence[Cell], out: Path, results: Path) -> None:
    """A remedy against the plain runs of the same seeds: collapses cut, and what it costs."""
    rows, healthy, collapsed = [], [], Counter()
    for before, after in zip(plain, varied, strict=True):
        pair = load(before, out), load(after, out)
        if pair[0] is None or pair[1] is None:
            print(f"{before.name} has not been trained both ways: left out")
            continue
        old, new = labels_of(before, pair[0]), labels_of(after, pair[1])
        row = {"cell": before.name, "fault": before.fault, "runs": len(old)}
        if before.planted is None:
            gains = _relative_gains(before, pair[0], pair[1])
            learned = ("steady", "faltered")
            healthy += [g for g, fate in zip(gains, old, strict=True) if fate.fate in learned]
            row["final_change"] = float(f"{np.mean(gains):.4g}")
        else:
            falls = [_fell(fate, before.planted) for fate in old]
            kept = [_fell(fate, before.planted) for fate in new]
            collapsed.update(
                plain=sum(falls),
                both=sum(a and b for a, b in zip(falls, kept, strict=True)),
                varied=sum(kept),
            )
            row |= {"collapsed": sum(falls), "collapsed_with": sum(kept)}
        rows.append(row)
    name = varied[0].variant
    _write(results / f"collapses-{name}.csv", rows)
    print(json.dumps(_remedy(collapsed, healthy), indent=1))
    (results / f"collapses-{name}.json").write_text(
        json.dumps(_remedy(collapsed, healthy), indent=1) + "\n"
    )


def _fell(fate: Label, planted: int) -> bool:
    return fate.fate == "collapsed" and fate.quarter is not None and fate.quarter > planted


def _remedy(collapsed: Counter[str], healthy: Sequence[float]) -> dict[str, Any]:
    """Share of collapses that the remedy cut, and the mean relative change of healthy finals."""
    cut = tally(collapsed["plain"] - collapsed["both"], collapsed["plain"])
    told: dict[str, Any] = {
        "collapsed": collapsed["plain"],
        "collapsed_with_remedy": collapsed["varied"],
        "cut": {"count": cut.count, "of": cut.of, "interval": [cut.low, cut.high]},
        "healthy_pairs": len(healthy),
    }
    change = mean_interval(np.array(healthy))
    if change is not None:
        ends = [change.low, change.high]
        told["healthy_final_change"] = {"mean": change.mean, "interval": ends}
    return told


def _relative_gains(
    cell: Cell, plain: Mapping[str, np.ndarray], varied: Mapping[str, np.ndarray]
) -> np.ndarray:
    """Change of the final return, as a share of the plain run's gain over a random policy."""
    finals = [
        np.array([np.nanmean(smooth(curve)[-FINAL:]) for curve in curves_of(metrics)])
        for metrics in (plain, varied)
    ]
    gained = np.maximum(finals[0] - ENVS[cell.env].random, 1e-9)
    return (finals[1] - finals[0]) / gained


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    heads = list(dict.fromkeys(head for row in rows for head in row))
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, heads)
        writer.writeheader()
        writer.writerows(rows)
