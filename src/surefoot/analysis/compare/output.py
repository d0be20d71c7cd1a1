"""A comparison as text, as JSON, and as files: every number beside the way it was computed."""

import csv
import io
import math
import textwrap
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from surefoot.analysis.compare.comparison import (
    ENOUGH_SEEDS,
    METHODS,
    TOO_FEW,
    Comparison,
    Contrast,
    Score,
    Summary,
    contrast,
    summarize_scores,
)
from surefoot.formulas.intervals import Interval
from surefoot.storage.files import replace_file, storage
from surefoot.storage.run_directory import folder_name

WIDTH = 96
ONLY_THE_RULE = "nothing but the rule"
CURVE_LABEL = "return of training episodes (sampled actions)"


class _Results(NamedTuple):
    """Statistics on one environment."""

    summaries: dict[str, Summary]
    contrasts: list[Contrast]


def _results(comparison: Comparison) -> dict[str, _Results]:
    """The statistics of every environment."""
    found = {}
    for env in comparison.envs:
        finals, summaries = {}, {}
        for rule in comparison.rules(env):
            scores = comparison.of(env, rule)
            best = [score.best for score in scores if score.best is not None]
            # A mean over some of the seeds would not compare with `final`.
            mean = float(np.mean(best)) if len(best) == len(scores) else None
            finals[rule] = np.array([score.final for score in scores])
            summaries[rule] = summarize_scores(finals[rule])._replace(best_mean=mean)
        pairs = [contrast(a, finals[a], b, finals[b]) for a, b in combinations(finals, 2)]
        found[env] = _Results(summaries, pairs)
    return found


def table(comparison: Comparison) -> str:
    """The comparison for a terminal.

    It opens with what differed between the rules besides the rule, lists each environment's scores
    and pairs and the cells that failed, and ends with how each column is computed.
    """
    results = _results(comparison)
    parts = [_opening(comparison)]
    parts += [_environment(comparison, env, found) for env, found in results.items()]
    if comparison.failures:
        failed = [f"  {failure.cell}: {failure.message}" for failure in comparison.failures]
        parts.append("\n".join(["Cells without a score", *failed]))
    if comparison.scores:
        parts.append(_footer(_methods(comparison, results)))
    return "\n\n".join(parts) + "\n"


def _opening(comparison: Comparison) -> str:
    lines = ["What differed between the rules"]
    for env in comparison.envs:
        first, *rest = comparison.differences[env] or (ONLY_THE_RULE,)
        indent = " " * (len(env) + 4)
        lines += [f"  {env}: {first}", *(indent + line for line in rest)]
    return "\n".join(lines if comparison.scores else [*lines, "  no cell has a score"])


def _environment(comparison: Comparison, env: str, found: _Results) -> str:
    digits = _digits([score.final for score in comparison.scores if score.env == env])
    rows = []
    for rule, s in found.summaries.items():
        values = (s.mean, s.interval, s.median, s.interquartile_mean, s.best_mean)
        rows.append([rule, str(s.n), *(_shown(value, digits) for value in values)])
    header = ["rule", "n", "final", "interval", "median", "IQM", "best"]
    text = f"{env}, return\n" + _aligned(header, rows)
    if env in comparison.optima:
        best = _shown(comparison.optima[env], digits)
        text += f"\n  {best} is the optimum over all policies, time-dependent ones included"
    pairs = []
    for pair in found.contrasts:
        gap = (_shown(value, digits, sign="+") for value in (pair.difference, pair.interval))
        pairs.append([f"{pair.first} over {pair.second}", f"{pair.probability:.2f}", *gap])
    if pairs:
        text += "\n\n" + _aligned(["pair", "beats", "difference", "interval"], pairs)
    return text


def _digits(finals: Sequence[float]) -> int:
    """Decimals that show four digits of the largest score."""
    largest = max(map(abs, finals))
    return min(4, max(0, 3 - math.floor(math.log10(largest)))) if largest > 0 else 1


def _shown(value: float | Interval | None, digits: int, *, sign: str = "") -> str:
    if isinstance(value, Interval):
        return f"[{value.low:{sign}.{digits}f}, {value.high:{sign}.{digits}f}]"
    return "-" if value is None else f"{value:{sign}.{digits}f}"


def _aligned(header: list[str], rows: list[list[str]]) -> str:
    """Columns below their names, the first to the left; an empty column is left out."""
    columns = [[name, *cells] for name, *cells in zip(header, *rows, strict=True)]
    columns = [column for column in columns if set(column[1:]) != {"-"}]
    widths = [max(map(len, column)) for column in columns]
    lines = []
    for first, *rest in zip(*columns, strict=True):
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  " + "  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)


def _methods(comparison: Comparison, results: dict[str, _Results]) -> dict[str, str]:
    """How each number in this comparison is computed, and why one is missing."""
    methods = {name: text.format(episodes=comparison.episodes) for name, text in METHODS.items()}
    contrasts = [pair for found in results.values() for pair in found.contrasts]
    summaries = [each for found in results.values() for each in found.summaries.values()]
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


def _footer(methods: dict[str, str]) -> str:
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
    found = _results(comparison)
    results = {}
    for env, (summaries, contrasts) in found.items():
        rules = {rule: _plain(summary) for rule, summary in summaries.items()}
        results[env] = {"rules": rules, "pairs": [_plain(pair) for pair in contrasts]}
        if env in comparison.optima:
            results[env]["optimum"] = comparison.optima[env]
    return {
        "differences": {env: list(lines) for env, lines in comparison.differences.items()},
        "results": results,
        "scores": [score._asdict() for score in comparison.scores],
        "failures": [failure._asdict() for failure in comparison.failures],
        "episodes": comparison.episodes,
        "methods": _methods(comparison, found) if comparison.scores else {},
    }


def _plain(values: Summary | Contrast) -> dict[str, Any]:
    interval = values.interval and [values.interval.low, values.interval.high]
    return values._asdict() | {"interval": interval}


def write_outputs(comparison: Comparison, out: str | Path) -> list[Path]:
    """Write `scores.csv` and one figure of learning curves per environment; their paths.

    Raises:
        StorageError: where `out` cannot be written.
    """
    # Matplotlib takes long to import, and a table needs none.
    from surefoot.analysis.plots.curves import Series, plot_curves

    out = Path(out)
    with storage(out, "making"):
        out.mkdir(parents=True, exist_ok=True)
    file = io.StringIO()
    # The default is the line end of Windows.
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(Score._fields)
    writer.writerows(["" if v is None else v for v in score] for score in comparison.scores)
    replace_file(out / "scores.csv", file.getvalue().encode())
    written = [out / "scores.csv"]
    for env in comparison.envs:
        curves: dict[str, list[Series]] = {rule: [] for rule in comparison.rules(env)}
        for score in comparison.scores:
            if score.env == env:
                curve = comparison.curves[env, score.rule, score.seed]
                curves[score.rule].append(Series(curve.env_steps, curve.returns))
        path = out / f"curves-{folder_name(env)}.png"
        plot_curves(
            curves,
            path,
            title=env,
            ylabel=CURVE_LABEL,
            fewest_for_band=ENOUGH_SEEDS,
            optimum=comparison.optima.get(env),
        )
        written.append(path)
    return written
