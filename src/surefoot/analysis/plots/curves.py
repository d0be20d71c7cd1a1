"""Learning curves: returns of runs over environment steps."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Num
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter

from surefoot.analysis.plots.grouping import group_size, means, starts_of
from surefoot.analysis.plots.style import blank, draw_optimum, save, styles_of
from surefoot.formulas.intervals import t_interval

MAX_CURVE_POINTS = 100


class Series(NamedTuple):
    """One run's values over environment steps, in the order of the steps."""

    steps: Num[np.ndarray, " point"]
    values: Float[np.ndarray, " point"]


def plot_curves(
    series_by_label: Mapping[str, Sequence[Series]],
    path: Path,
    *,
    title: str = "",
    ylabel: str = "return of training episodes",
    fewest_for_band: int = 5,
    optimum: float | None = None,
) -> None:
    """Draw, for each label, every run faintly, their mean, and its 95 % t interval.

    Args:
        series_by_label: for each label one series per run.
        path: the PNG file to write.
        title: a heading; the number of seeds is added.
        ylabel: what the values are.
        fewest_for_band: fewest runs with an interval.
        optimum: the largest possible value, drawn as a line.

    Raises:
        StorageError: where the file cannot be written.
    """
    full = {
        label: [series for series in runs if len(series.steps)]
        for label, runs in series_by_label.items()
    }
    # Labels may have different numbers of seeds: then each says its own.
    counts = {len(runs) for runs in full.values() if runs}
    longest = max((len(series.steps) for runs in full.values() for series in runs), default=0)
    size = group_size(longest, MAX_CURVE_POINTS)
    styles = styles_of(list(full))
    seeds = f"n = {next(iter(counts))} seeds" if len(counts) == 1 and counts != {1} else ""
    heading = ", ".join(part for part in (title, seeds) if part)
    figure, axes = blank(heading, xlabel="environment steps", ylabel=ylabel)
    for label, runs in full.items():
        name = label if len(counts) == 1 else f"{label} (n = {len(runs)})"
        if runs:
            grouped = [_in_groups(series, size) for series in runs]
            _draw_label(axes, name, grouped, styles[label], fewest_for_band)
    # 1M rather than 1e6.
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    figure.supxlabel(_key(counts, size, fewest_for_band), fontsize=9, color="#555555")
    if optimum is not None:
        draw_optimum(axes, optimum)
    if longest:
        axes.set_xlim(left=0)
        figure.legend(loc="outside right upper", frameon=False, handlelength=2.6)
    else:
        axes.text(0.5, 0.5, "no values", transform=axes.transAxes, ha="center")
    save(figure, path)


def _in_groups(series: Series, size: int) -> Series:
    starts = starts_of(len(series.steps), size)
    return Series(*(means(part.astype(float), starts) for part in series))


def _key(counts: set[int], size: int, fewest_for_band: int) -> str:
    """Meaning of the lines and the band, in words."""
    parts = []
    if max(counts, default=1) > 1:
        parts.append("thick: mean over seeds, thin: one seed")
        if max(counts) >= fewest_for_band:
            parts.append("band: 95 % t interval of the mean")
        if min(counts) < fewest_for_band:
            parts.append(f"no band below {fewest_for_band} seeds")
    if size > 1:
        parts.append(f"a point: mean of {size} iterations")
    return "; ".join(parts)


def _draw_label(
    axes: Axes, name: str, runs: Sequence[Series], style: Mapping[str, Any], fewest_for_band: int
) -> None:
    steps, values = _on_common_steps(runs)
    banded = len(runs) >= fewest_for_band
    for run in runs if len(runs) > 1 else ():
        faint = {"color": style["color"], "alpha": 0.2 if banded else 0.4, "linewidth": 0.8}
        axes.plot(run.steps, run.values, zorder=1, **faint)
    # A line of one point would be invisible.
    mean, marker = values.mean(axis=0), "o" if len(steps) == 1 else None
    axes.plot(steps, mean, label=name, linewidth=2.2, marker=marker, zorder=3, **style)
    if banded:
        error = values.std(axis=0, ddof=1) / len(runs) ** 0.5
        _, low, high = t_interval(mean, error, len(runs) - 1)
        axes.fill_between(steps, low, high, color=style["color"], alpha=0.25, linewidth=0)


def _on_common_steps(
    runs: Sequence[Series],
) -> tuple[Num[np.ndarray, " point"], Float[np.ndarray, "run point"]]:
    """Every run interpolated at the steps of any, over the range that all of them cover."""
    first = max(run.steps[0] for run in runs)
    # Runs that do not overlap still share one point, where the latest of them starts.
    last = max(first, min(run.steps[-1] for run in runs))
    steps = np.unique(np.concatenate([run.steps for run in runs]))
    steps = steps[(steps >= first) & (steps <= last)]
    # Runs need not end their iterations at the same steps.
    return steps, np.stack([np.interp(steps, run.steps, run.values) for run in runs])
