"""Pictures of a report: panels above each other over one axis of environment steps, as SVG.

All pictures of a page have the same left and right edge, so that a step stands below itself.
"""

import io
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from jaxtyping import Float, Num
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from surefoot.analysis.plots.style import WIDTH

LEVEL_COLORS = {"red": "#D55E00", "amber": "#E69F00", "green": "#009E73"}
LEVEL_MARKS = {"red": "v", "amber": "d", "green": "o"}
OTHER_COLOR, OTHER_MARK = "#555555", "s"
PLACES = 300
"""Marks that find room beside each other along the steps."""
_LEFT, _RIGHT = 0.11, 0.985
_LEGEND, _AXIS = 0.42, 0.6
"""Inches above each panel for its legend, and below the last one for its axis."""


class Trace(NamedTuple):
    """One figure over steps: a line, or separate points where `points`.

    `low` and `high` are a band around a line, and bars on points. `mark` is for a line of one
    point.
    """

    label: str
    steps: Num[np.ndarray, " point"]
    values: Float[np.ndarray, " point"]
    color: str
    low: Float[np.ndarray, " point"] | None = None
    high: Float[np.ndarray, " point"] | None = None
    dash: str = "solid"
    points: bool = False
    mark: str = "o"


class Panel(NamedTuple):
    """One pair of axes: its traces, where they are healthy, and values to compare with."""

    ylabel: str
    traces: Sequence[Trace]
    healthy: tuple[float, float] | None = None
    levels: Sequence[tuple[float, str]] = ()
    log: bool = False
    ylim: tuple[float | None, float | None] | None = None
    height: float = 1.7


class Raised(NamedTuple):
    """A warning of one name: its level, and the steps at which it was raised."""

    name: str
    level: str
    steps: Num[np.ndarray, " time"]


def draw_panels(panels: Sequence[Panel], last_step: float, raised: Sequence[Raised] = ()) -> str:
    """The panels as one SVG, with the warnings as marks along the top of the first."""
    heights = [panel.height for panel in panels]
    total = sum(heights) + _LEGEND * len(panels) + _AXIS
    figure = Figure(figsize=(WIDTH, total))
    top = total
    for index, panel in enumerate(panels):
        top -= _LEGEND
        box = (_LEFT, (top - panel.height) / total, _RIGHT - _LEFT, panel.height / total)
        axes = figure.add_axes(box)
        _draw(axes, panel)
        _share_steps(axes, last_step, last=index == len(panels) - 1)
        if index == 0:
            _mark(axes, raised, last_step)
        _legend(axes, [trace.label for trace in panel.traces])
        top -= panel.height
    return _svg(figure)


def draw_timeline(raised: Sequence[Raised], last_step: float) -> str:
    """A row for each warning, and a tick for each time that it was raised, as SVG."""
    height = 0.3 * len(raised) + 0.1
    total = height + _AXIS + 0.2
    figure = Figure(figsize=(WIDTH, total))
    # Names stand above their rows: beside them they would move the axis of steps.
    axes = figure.add_axes((_LEFT, _AXIS / total, _RIGHT - _LEFT, height / total))
    for row, each in enumerate(reversed(raised)):
        color = LEVEL_COLORS.get(each.level, OTHER_COLOR)
        axes.vlines(
            _apart(each.steps, last_step), row + 0.08, row + 0.5, color=color, linewidth=1.8
        )
        axes.text(0.0, row + 0.56, each.name, color=color, fontsize=8, va="bottom")
        axes.axhline(row, color="#dddddd", linewidth=0.8)
    axes.set_ylim(0, len(raised) + 0.1)
    axes.set_yticks([])
    axes.spines[["top", "right", "left"]].set_visible(False)
    _share_steps(axes, last_step, last=True)
    return _svg(figure)


def _apart(steps: Num[np.ndarray, " time"], last_step: float) -> Num[np.ndarray, " time"]:
    """The first of all steps that would be drawn in one place, so that a page stays small."""
    _, first = np.unique(np.floor(steps / max(last_step, 1) * PLACES), return_index=True)
    return steps[first]


def _draw(axes: Axes, panel: Panel) -> None:
    if panel.log:
        axes.set_yscale("log")
    for trace in panel.traces:
        (_draw_points if trace.points else _draw_line)(axes, trace)
    for value, text in panel.levels:
        axes.axhline(value, color="#777777", linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
        where = axes.get_yaxis_transform()
        axes.text(0.998, value, text, transform=where, fontsize=7.5, color="#555555", ha="right",
                  va="bottom")  # fmt: skip
    if panel.ylim:
        axes.set_ylim(*panel.ylim)
    if panel.healthy:
        # A band must not widen the axis: what lies far inside it would be flattened.
        bounds = axes.get_ylim()
        axes.axhspan(*panel.healthy, color="#009E73", alpha=0.08, linewidth=0, zorder=0)
        axes.set_ylim(*bounds)
    axes.set_ylabel(panel.ylabel, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.2)
    axes.tick_params(labelsize=8)


def _draw_line(axes: Axes, trace: Trace) -> None:
    if trace.low is not None and trace.high is not None:
        axes.fill_between(
            trace.steps, trace.low, trace.high, color=trace.color, alpha=0.18, linewidth=0
        )
    axes.plot(
        trace.steps,
        trace.values,
        color=trace.color,
        label=trace.label,
        linestyle=trace.dash,
        linewidth=1.8,
        marker=trace.mark if len(trace.steps) == 1 else None,
        markersize=12 if trace.mark == "*" else 6,
        markeredgecolor="#000000" if trace.mark == "*" else trace.color,
        zorder=4 if trace.mark == "*" else 2,
    )


def _draw_points(axes: Axes, trace: Trace) -> None:
    bars = None
    if trace.low is not None and trace.high is not None:
        bars = np.maximum(np.stack([trace.values - trace.low, trace.high - trace.values]), 0.0)
    axes.errorbar(
        trace.steps,
        trace.values,
        yerr=bars,
        color=trace.color,
        label=trace.label,
        linestyle=trace.dash,
        linewidth=1.2,
        marker="o",
        markersize=4,
        capsize=2,
    )


def _share_steps(axes: Axes, last_step: float, *, last: bool) -> None:
    axes.set_xlim(0, max(last_step, 1) * 1.01)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.tick_params(labelbottom=last, labelsize=8)
    if last:
        axes.set_xlabel("environment steps", fontsize=9)


def _mark(axes: Axes, raised: Sequence[Raised], last_step: float) -> None:
    """A mark on the upper edge for each time that a warning was raised, worst level on top."""
    for order, level in enumerate(("green", "amber", "red")):
        steps = [each.steps for each in raised if each.level == level]
        if steps:
            where = _apart(np.concatenate(steps), last_step)
            axes.plot(
                where, np.ones(len(where)), LEVEL_MARKS[level], color=LEVEL_COLORS[level],
                transform=axes.get_xaxis_transform(), clip_on=False, markersize=6,
                label=f"{level} warning", zorder=5 + order,
            )  # fmt: skip


def _legend(axes: Axes, order: Sequence[str]) -> None:
    """Above the axes, traces in their own order and marks behind them."""
    found = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    labels = [*order, *(label for label in found if label not in order)]
    handles = [found[label] for label in labels]
    if handles:
        axes.legend(
            handles, labels, loc="lower left", bbox_to_anchor=(-0.01, 1.02), ncols=len(handles),
            frameon=False, fontsize=8.5, handlelength=1.8, columnspacing=1.4, borderaxespad=0.0,
        )  # fmt: skip


def _svg(figure: Figure) -> str:
    """The figure as text; the same figure gives the same text."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "surefoot", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", facecolor="white", metadata={"Date": None})
    return buffer.getvalue()
