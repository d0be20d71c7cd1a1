"""Figures of a report: panels above each other over one axis of environment steps, as SVG.

All figures of a page share their left and right edges, so that steps line up down the page.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Num
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from surefoot.analysis.plots.style import GRAY, NARROW, SMALLEST, WIDTH, as_svg

LEVEL_COLORS = {"red": "#D55E00", "amber": "#E69F00", "green": "#009E73"}
LEVEL_MARKS = {"red": "v", "amber": "d", "green": "o"}
NUM_PLACES = 300
"""Warning marks that fit beside each other along the steps."""
_LEGEND, _AXIS = 0.42, 0.6
"""Inches above each panel for its legend, and below the last one for its axis."""


class _Frame(NamedTuple):
    """Inches across a figure, and where axes begin and end, as shares of it."""

    width: float
    left: float
    right: float


_FRAMES = {False: _Frame(WIDTH, 0.11, 0.985), True: _Frame(NARROW, 0.18, 0.97)}
"""Frames by whether a figure is for a phone."""


Dash = str | tuple[float, tuple[float, ...]]


class PanelSeries(NamedTuple):
    """One figure over steps: a line, or separate points where `points`.

    `band` has the lower and upper ends of a band around a line, or of the error bars of points.
    `mark` is for a line of one point.
    """

    label: str
    steps: Num[np.ndarray, " point"]
    values: Float[np.ndarray, " point"]
    color: str
    band: tuple[Float[np.ndarray, " point"], Float[np.ndarray, " point"]] | None = None
    dash: Dash = "solid"
    points: bool = False
    mark: str = "o"


class Panel(NamedTuple):
    """One pair of axes: its series, their healthy range, and levels to compare with."""

    ylabel: str
    series: Sequence[PanelSeries]
    healthy: tuple[float, float] | None = None
    levels: Sequence[tuple[float, str]] = ()
    log: bool = False
    ylim: tuple[float | None, float | None] | None = None
    height: float = 1.7


class RaisedWarning(NamedTuple):
    """A warning, its level, and the steps at which it was raised."""

    name: str
    level: str
    steps: Num[np.ndarray, " time"]


class Extent(NamedTuple):
    """The axis of steps of a page: its end, and the steps at which settings changed."""

    last_step: float
    changes: Sequence[float] = ()


def draw_panels(
    panels: Sequence[Panel],
    extent: Extent,
    raised: Sequence[RaisedWarning] = (),
    *,
    narrow: bool = False,
) -> str:
    """The panels as one SVG, with the warnings as marks along the top of the first.

    Vertical lines are where settings changed. A `narrow` one is for a phone, with a line of its own
    for each entry of a legend.
    """
    marks = len({each.level for each in raised})
    # The marks are on the first panel, and their levels in its legend.
    entries = [len(panel.series) + (0 if index else marks) for index, panel in enumerate(panels)]
    rooms = [_legend_room(count, narrow) for count in entries]
    total = sum(rooms) + sum(panel.height for panel in panels) + _AXIS
    frame = _FRAMES[narrow]
    figure = Figure(figsize=(frame.width, total))
    top = total
    for index, panel in enumerate(panels):
        top -= rooms[index] + panel.height
        # Fixed places rather than a layout, which would give each figure its own edges.
        place = (frame.left, top / total, frame.right - frame.left, panel.height / total)
        axes = figure.add_axes(place)
        _draw(axes, panel)
        _share_steps(axes, extent, last=index == len(panels) - 1)
        if index == 0:
            _mark(axes, raised, extent.last_step)
        _legend(axes, [series.label for series in panel.series], narrow=narrow)
    return as_svg(figure)


def _legend_room(entries: int, narrow: bool) -> float:
    """Inches above a panel for a legend of so many entries."""
    return 0.2 + 0.18 * entries if narrow else _LEGEND


def draw_timeline(raised: Sequence[RaisedWarning], extent: Extent, *, narrow: bool = False) -> str:
    """A row for each warning, with a tick at each time it was raised, as SVG."""
    height, frame = 0.3 * len(raised) + 0.1, _FRAMES[narrow]
    total = height + _AXIS + 0.2
    figure = Figure(figsize=(frame.width, total))
    place = (frame.left, _AXIS / total, frame.right - frame.left, height / total)
    axes = figure.add_axes(place)
    for row, each in enumerate(reversed(raised)):
        color, steps = LEVEL_COLORS.get(each.level, GRAY), _apart(each.steps, extent.last_step)
        axes.vlines(steps, row + 0.08, row + 0.5, color=color, linewidth=1.8)
        # Names are above their rows: beside them they would move the axis of steps.
        axes.text(0.0, row + 0.56, each.name, color=color, fontsize=SMALLEST, va="bottom")
        axes.axhline(row, color="#dddddd", linewidth=0.8)
    axes.set_ylim(0, len(raised) + 0.1)
    axes.set_yticks([])
    axes.spines[["top", "right", "left"]].set_visible(False)
    _share_steps(axes, extent, last=True)
    return as_svg(figure)


def _apart(steps: Num[np.ndarray, " time"], last_step: float) -> Num[np.ndarray, " time"]:
    """The first of all steps that would be drawn in one place, so that a page stays small."""
    _, first = np.unique(np.floor(steps / max(last_step, 1) * NUM_PLACES), return_index=True)
    return steps[first]


def _draw(axes: Axes, panel: Panel) -> None:
    if panel.log:
        axes.set_yscale("log")
    for series in panel.series:
        _draw_series(axes, series)
    for value, text in panel.levels:
        axes.axhline(value, color="#777777", linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
        where = axes.get_yaxis_transform()
        axes.text(0.998, value, text, transform=where, fontsize=SMALLEST, color=GRAY, ha="right",
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
    axes.tick_params(labelsize=SMALLEST)


def _draw_series(axes: Axes, series: PanelSeries) -> None:
    steps, values, band = series.steps, series.values, series.band
    style: dict[str, Any] = {"color": series.color, "label": series.label, "linestyle": series.dash}
    if series.points or (band is not None and len(steps) == 1):
        # A band around one point would have no width. Rounding may put an end on the wrong side
        # of its value, which errorbar refuses.
        bars = None if band is None else np.maximum([values - band[0], band[1] - values], 0.0)
        style |= {"linewidth": 1.2, "marker": "o", "markersize": 4, "capsize": 2}
        axes.errorbar(steps, values, yerr=bars, **style)
        return
    if band is not None:
        axes.fill_between(steps, *band, color=series.color, alpha=0.18, linewidth=0)
    if series.mark == "*":
        style |= {"markersize": 12, "markeredgecolor": "#000000", "zorder": 4}
    marker = series.mark if len(steps) == 1 else None
    axes.plot(steps, values, linewidth=1.8, marker=marker, **style)


def _share_steps(axes: Axes, extent: Extent, *, last: bool) -> None:
    # Not by the data: all figures of the page have the same axis of steps.
    axes.set_xlim(0, max(extent.last_step, 1) * 1.01)
    for step in extent.changes:
        axes.axvline(step, color=GRAY, linewidth=0.7, zorder=0)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.tick_params(labelbottom=last, labelsize=SMALLEST)
    if last:
        axes.set_xlabel("environment steps", fontsize=9)


def _mark(axes: Axes, raised: Sequence[RaisedWarning], last_step: float) -> None:
    """A mark on the upper edge for each time that a warning was raised, worst level on top."""
    for order, level in enumerate(("green", "amber", "red")):
        steps = [each.steps for each in raised if each.level == level]
        if steps:
            # Several warnings of one level at one step are one mark.
            where = _apart(np.concatenate(steps), last_step)
            axes.plot(
                where, np.ones(len(where)), LEVEL_MARKS[level], color=LEVEL_COLORS[level],
                transform=axes.get_xaxis_transform(), clip_on=False, markersize=6,
                label=f"{level} warning", zorder=5 + order,
            )  # fmt: skip


def _legend(axes: Axes, order: Sequence[str], *, narrow: bool) -> None:
    """Above the axes, series in their own order and marks behind them."""
    found = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    labels = [*order, *(label for label in found if label not in order)]
    if labels:
        axes.legend(
            [found[label] for label in labels], labels, loc="lower left",
            bbox_to_anchor=(-0.01, 1.02), ncols=1 if narrow else len(labels), frameon=False,
            fontsize=SMALLEST, labelspacing=0.3,
            handlelength=1.8, columnspacing=1.4, borderaxespad=0.0,
        )  # fmt: skip
