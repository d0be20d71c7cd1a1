"""A comparison as text, as JSON, and as files: every number beside the way it was computed."""

import csv
import io
import math
import re
import textwrap
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from surefoot.analysis.scores import Comparison, Score
from surefoot.analysis.statistics import (
    ENOUGH_SEEDS,
    METHODS,
    TOO_FEW,
    Contrast,
    Interval,
    Summary,
    contrast,
    summarize_scores,
)
from surefoot.errors import StorageError
from surefoot.storage.run_directory import RunDirectory

WIDTH = 96
ALONE = "nothing but the rule"
CURVE = "return of training episodes (sampled actions)"


def folder_name(env_id: str) -> str:
    """An environment's id as a part of a path."""
    return re.sub(r"[^\w.-]", "_", env_id)


def _finals(scores: Sequence[Score]) -> np.ndarray:
    return np.array([score.final for score in scores])


def _best_mean(scores: Sequence[Score]) -> float | None:
    """Mean of the best evaluations, where every seed has one."""
    best = [score.best for score in scores if score.best is not None]
    return float(np.mean(best)) if len(best) == len(scores) else None


def _summaries(comparison: Comparison, env: str) -> dict[str, Summary]:
    rules = comparison.rules(env)
    return {rule: summarize_scores(_finals(comparison.of(env, rule))) for rule in rules}


def _contrasts(comparison: Comparison, env: str) -> list[Contrast]:
    scores = {rule: _finals(comparison.of(env, rule)) for rule in comparison.rules(env)}
    pairs = combinations(scores, 2)
    return [contrast(first, scores[first], second, scores[second]) for first, second in pairs]


def table(comparison: Comparison) -> str:
    """The comparison for a terminal.

    It opens with what differed between the rules besides the rule, gives each environment's
    scores and pairs, names the cells that failed, and ends with how each column is computed.
    """
    parts = [_opening(comparison)]
    parts += [_environment(comparison, env) for env in comparison.envs]
    if comparison.failures:
        told = [f"  {failure.cell}: {failure.message}" for failure in comparison.failures]
        parts.append("\n".join(["Cells without a score", *told]))
    if comparison.scores:
        parts.append(_footer(comparison))
    return "\n\n".join(parts) + "\n"


def _opening(comparison: Comparison) -> str:
    lines = ["What differed between the rules"]
    for env in comparison.envs:
        first, *rest = comparison.differences[env] or (ALONE,)
        indent = " " * (len(env) + 4)
        lines += [f"  {env}: {first}", *(indent + line for line in rest)]
    return "\n".join(lines if comparison.scores else [*lines, "  no cell has a score"])


def _environment(comparison: Comparison, env: str) -> str:
    scores = [score for score in comparison.scores if score.env == env]
    digits = _digits(scores)
    rows = [
        [
            rule,
            str(summary.n),
            _number(summary.mean, digits),
            _interval(summary.interval, digits),
            _number(summary.median, digits),
            _number(summary.interquartile_mean, digits),
            _number(_best_mean(comparison.of(env, rule)), digits),
        ]
        for rule, summary in _summaries(comparison, env).items()
    ]
    text = f"{env}, return\n" + _aligned(
        ["rule", "n", "final", "interval", "median", "IQM", "best"], rows
    )
    pairs = [
        [
            f"{pair.first} over {pair.second}",
            f"{pair.probability:.2f}",
            _number(pair.difference, digits, sign="+"),
            _interval(pair.interval, digits, sign="+"),
        ]
        for pair in _contrasts(comparison, env)
    ]
    if env in comparison.optima:
        best = _number(comparison.optima[env], digits)
        text += f"\n  {best} is the most that any policy has, even one that watches the clock"
    return text + ("\n\n" + _aligned(["pair", "beats", "difference", "interval"], pairs)) * bool(
        pairs
    )


def _digits(scores: Sequence[Score]) -> int:
    """Decimals that show four figures of the greatest score."""
    greatest = max(abs(score.final) for score in scores)
    return min(4, max(0, 3 - math.floor(math.log10(greatest)))) if greatest > 0 else 1


def _number(value: float | None, digits: int, *, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.{digits}f}"


def _interval(interval: Interval | None, digits: int, *, sign: str = "") -> str:
    if interval is None:
        return "-"
    low, high = (_number(bound, digits, sign=sign) for bound in interval)
    return f"[{low}, {high}]"


def _aligned(header: list[str], rows: list[list[str]]) -> str:
    """Columns under their names, the first to the left; a column with nothing in it is left out."""
    columns = [[name, *cells] for name, *cells in zip(header, *rows, strict=True)]
    columns = [column for column in columns if set(column[1:]) != {"-"}]
    widths = [max(map(len, column)) for column in columns]
    lines = []
    for cells in zip(*columns, strict=True):
        first, *rest = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        lines.append("  " + "  ".join([first, *rest]).rstrip())
    return "\n".join(lines)


def _methods(comparison: Comparison) -> dict[str, str]:
    """How each number in this comparison was computed, and why one is missing."""
    methods = {name: text.format(episodes=comparison.episodes) for name, text in METHODS.items()}
    contrasts = [pair for env in comparison.envs for pair in _contrasts(comparison, env)]
    summaries = [s for env in comparison.envs for s in _summaries(comparison, env).values()]
    if not any(summary.interval for summary in summaries):
        del methods["interval"]
    if not any(pair.interval for pair in contrasts):
        del methods["difference interval"]
    if not contrasts:
        del methods["beats"], methods["difference"]
    if all(score.best is None for score in comparison.scores):
        del methods["best"]
    if any(summary.n < ENOUGH_SEEDS for summary in summaries):
        methods["no interval"] = TOO_FEW
    return methods


def _footer(comparison: Comparison) -> str:
    methods = _methods(comparison)
    width = max(map(len, methods)) + 4
    lines = [
        textwrap.fill(
            text,
            WIDTH,
            break_on_hyphens=False,
            initial_indent=f"  {name}".ljust(width),
            subsequent_indent=" " * width,
        )
        for name, text in methods.items()
    ]
    return "\n".join(["How the numbers are computed", *lines])


def to_dict(comparison: Comparison) -> dict[str, Any]:
    """The comparison as plain JSON values, without the curves (each run's metrics hold them)."""
    results = {}
    for env in comparison.envs:
        summaries = {
            rule: _plain(summary) | {"best_mean": _best_mean(comparison.of(env, rule))}
            for rule, summary in _summaries(comparison, env).items()
        }
        pairs = [_plain(pair) for pair in _contrasts(comparison, env)]
        results[env] = {"rules": summaries, "pairs": pairs}
        if env in comparison.optima:
            results[env]["optimum"] = comparison.optima[env]
    return {
        "differences": {env: list(lines) for env, lines in comparison.differences.items()},
        "results": results,
        "scores": [score._asdict() for score in comparison.scores],
        "failures": [failure._asdict() for failure in comparison.failures],
        "episodes": comparison.episodes,
        "methods": _methods(comparison) if comparison.scores else {},
    }


def _plain(values: Summary | Contrast) -> dict[str, Any]:
    interval = None if values.interval is None else list(values.interval)
    return values._asdict() | {"interval": interval}


def write_outputs(comparison: Comparison, out: str | Path) -> list[Path]:
    """Write `scores.csv` and one picture of learning curves an environment; their paths.

    Raises:
        StorageError: where `out` cannot be written.
    """
    from surefoot.analysis.plots import Series, plot_curves

    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise StorageError(f"making {out}: {fault.strerror or fault}") from fault
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(Score._fields)
    writer.writerows(["" if v is None else v for v in score] for score in comparison.scores)
    RunDirectory(out).write("scores.csv", file.getvalue())
    written = [out / "scores.csv"]
    for env in comparison.envs:
        curves = {
            rule: [
                Series(*comparison.curves[env, rule, score.seed][:2])
                for score in comparison.of(env, rule)
            ]
            for rule in comparison.rules(env)
        }
        path = out / f"curves-{folder_name(env)}.png"
        plot_curves(
            curves,
            path,
            title=env,
            ylabel=CURVE,
            fewest_for_band=ENOUGH_SEEDS,
            optimum=comparison.optima.get(env),
        )
        written.append(path)
    return written
