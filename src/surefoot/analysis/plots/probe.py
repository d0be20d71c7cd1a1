"""The picture of a probe: the waterfall from promise to gain, and the plane along the update."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from surefoot.analysis.plots.exact import CLIPPED, PROMISE, RETURN, SURE, TRUST, kl_axis
from surefoot.analysis.plots.style import DPI, as_png

RANDOM = "#8C8C8C"
ROOM = {"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
WIDTH, HEIGHT = 12.0, 6.4
CAPTION_COLUMNS = 165


Record = Mapping[str, Any]
"""A probe, or a point of one, as JSON: an interval is `{mean, low, high}`, its ends may be None."""


def plot_probe(record: Record) -> bytes:
    """The waterfall and, where there is one, the sweep beside it, as PNG.

    `record` is of a probe, from `Probe.to_dict` or from its file.
    """
    swept = len(record["update"]) > 1
    width = WIDTH if swept else 0.5 * WIDTH
    figure = Figure(figsize=(width, HEIGHT), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, 2, width_ratios=(1.0, 1.35)) if swept else [figure.subplots()]
    _waterfall(panels[0], _bars(record))
    if swept:
        _Sweep(panels[1], record).draw()
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.2)
    figure.suptitle(record["title"], x=0.01, ha="left", fontsize=13)
    columns = CAPTION_COLUMNS if swept else CAPTION_COLUMNS // 2
    wrapper = textwrap.TextWrapper(columns, initial_indent="•  ", subsequent_indent="    ")
    caption = "\n".join(wrapper.fill(sentence) for sentence in record["verdict"])
    figure.supxlabel(caption, x=0.01, ha="left", fontsize=9.5, color="#333333")
    return as_png(figure)


class _Bar(NamedTuple):
    """One bar of the waterfall: a gain as mean, low and high, and what is lost before the next."""

    label: str
    gain: Float[np.ndarray, " 3"]
    lost: str = ""


def _interval(record: Mapping[str, float | None]) -> Float[np.ndarray, " 3"]:
    """Mean, low and high; NaN where they are unknown."""
    return np.array([record["mean"], record["low"], record["high"]], float)


def _bars(record: Record) -> list[_Bar]:
    bars = []
    if record["in_sample"]:
        label = "promised on\nits own batch" + ("\n(as logged)" if record["recorded"] else "")
        bars.append(_Bar(label, _interval(record["in_sample"]), "noise"))
    fresh, label = _interval(record["fresh"]), "promised on\nfresh data"
    if record["gae_lambda"] < 1.0:
        bars.append(_Bar(label, fresh, "the critic"))
        fresh, label = _interval(record["monte_carlo"]), f"{label},\nMonte Carlo"
    bars.append(_Bar(label, fresh, "visitation"))
    return [*bars, _Bar("realised", _interval(record["realised"]))]


def _waterfall(axes: Axes, bars: Sequence[_Bar]) -> None:
    """The bars with their intervals, and between two of them what is lost."""
    ends = np.array([[0.0] * 3, *(bar.gain for bar in bars)])
    low, high = float(np.nanmin(ends)), float(np.nanmax(ends))
    room = 0.08 * (high - low) or 0.1
    for place, bar in enumerate(bars):
        mean, last = bar.gain[0], place + 1 == len(bars)
        color = RETURN if last else PROMISE
        axes.bar(place, mean, width=0.56, color=color, alpha=1.0 if last else 0.85)
        # A white edge keeps the interval visible on its bar.
        axes.vlines(place, *bar.gain[1:], color="white", linewidth=5.0)
        axes.vlines(place, *bar.gain[1:], color="#444444", linewidth=2.2)
        top = max(np.nanmax(bar.gain), 0.0)
        axes.text(
            place, top + 0.25 * room, f"{mean:+.3g}", ha="center", va="bottom", fontsize=11,
            fontweight="bold", color=color,
        )  # fmt: skip
        if last:
            continue
        after = bars[place + 1].gain[0]
        axes.hlines(mean, place, place + 1, color="#777777", linewidth=0.9, linestyle=":")
        axes.annotate(
            "", (place + 0.5, after), (place + 0.5, mean),
            arrowprops={"arrowstyle": "-|>", "color": "#777777", "linewidth": 1.3},
        )  # fmt: skip
        axes.text(
            place + 0.5, low - 1.1 * room, f"{bar.lost}\n{after - mean:+.3g}", ha="center",
            va="top", fontsize=9, color="#555555",
        )  # fmt: skip
    axes.axhline(0.0, color="#222222", linewidth=1.0)
    axes.set_xticks(range(len(bars)), [bar.label for bar in bars], fontsize=9)
    axes.set_ylim(low - 3.2 * room, high + 2.0 * room)
    axes.set_ylabel("gain of discounted return over the old policy")
    # As high as the title beside it, which lies above an axis of KL.
    axes.set_title("from promise to gain, with 95 % intervals", loc="left", fontsize=11, pad=33)


def _from_old(values: Any) -> Float[np.ndarray, " point"]:
    """A line that starts at the old policy, where nothing is promised or gained."""
    return np.array([0.0, *values])


def _played(points: Sequence[Record]) -> Float[np.ndarray, "point 4"]:
    """Fraction, gain and the ends of its interval, of the points that were played."""
    rows = [(each["fraction"], *_interval(each["realised"])) for each in points if each["realised"]]
    return np.array(rows).reshape(-1, 4)


class _Sweep:
    """L over the return along the update, with the step taken and the edge of trust."""

    def __init__(self, axes: Axes, record: Record):
        points, trust = record["update"], record["trust"]
        self._axes, self._points, self._edge = axes, points, trust and trust["fraction"]
        # As in `Edge.before`: the edge itself is not known.
        at_first = self._edge is not None and trust["sure"] is None
        self._before = at_first and self._edge == trust["gone"]
        self._random, self._realised = _played(record["random"]), _played(points)
        self._x = _from_old([each["fraction"] for each in points])
        self._kl = _from_old([each["kl"]["mean"] for each in points])
        self._fresh = np.array([[0.0] * 3, *(_interval(each["fresh"]) for each in points)])
        self._clipped = _from_old([each["clipped"]["mean"] for each in points])
        # All points have it or none: it takes the stored batch.
        own = [each["in_sample"]["mean"] for each in points if each["in_sample"]]
        self._own = _from_old(own) if len(own) == len(points) else None

    def draw(self) -> None:
        """Draw all lines, then the frame around what matters of them."""
        axes, x, fresh = self._axes, self._x, self._fresh
        if self._edge is not None:
            axes.axvspan(0.0, self._edge, color=TRUST, alpha=0.1, linewidth=0)
        axes.axvline(1.0, color="#555555", linewidth=1.0, linestyle=(0, (1, 2)))
        axes.fill_between(x, fresh[:, 1], fresh[:, 2], color=PROMISE, alpha=0.18, linewidth=0)
        axes.plot(x, fresh[:, 0], color=PROMISE, linewidth=2.4, label="L on fresh data, promised")
        if self._own is not None:
            axes.plot(
                x, self._own, color=PROMISE, linewidth=1.5, linestyle=(0, (1, 1.2)),
                label="L on its own batch",
            )  # fmt: skip
        axes.plot(
            x, self._clipped, color=CLIPPED, linewidth=1.6, linestyle=(0, (7, 1.5)),
            label="PPO's clipped objective",
        )  # fmt: skip
        self._gains(self._realised, RETURN, "η, realised")
        self._gains(self._random, RANDOM, "η in a random direction of equal KL")
        bounds = [each["certificates"] for each in self._points]
        for color, name in zip(SURE, bounds[0], strict=False):
            low = _from_old([each.get(name, np.nan) for each in bounds])
            label = f"{name}, estimated: no guarantee"
            axes.plot(x, low, color=color, linewidth=1.1, linestyle=(0, (2, 1)), label=label)
        self._frame()
        place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.14)}
        axes.legend(frameon=False, fontsize=8, ncols=3, **place)

    def _gains(self, rows: Float[np.ndarray, "point 4"], color: str, label: str) -> None:
        if len(rows) == 0:
            return
        at, mean = _from_old(rows[:, 0]), _from_old(rows[:, 1])
        self._axes.plot(at, mean, "-", color=color, linewidth=2.0, label=label)
        self._axes.plot(at[1:], mean[1:], "o", color=color, markersize=5)
        self._axes.vlines(rows[:, 0], rows[:, 2], rows[:, 3], color=color, linewidth=1.4)

    def _reach(self) -> float:
        """How far along the update is shown: to twice the edge of trust, where there is one."""
        farthest = float(self._x[-1])
        if self._edge is None:
            return farthest
        # Up to a point that was played, so that the picture does not end in a guess.
        wanted = max(1.5, 2.0 * self._edge)
        return min((float(at) for at in self._realised[:, 0] if at >= wanted), default=farthest)

    def _frame(self) -> None:
        """Limits by what the update promises and gains, so that a wild line hides nothing."""
        axes, edge, reach = self._axes, self._edge, self._reach()
        shown, played = self._x <= reach, self._realised[self._realised[:, 0] <= reach]
        near = [0.0, *self._fresh[shown, 0], *played[:, 1]]
        if self._own is not None:
            near.append(float(np.interp(1.0, self._x, self._own)))
        high = max(near) or 0.5 * (max(near) - min(near)) or 1.0
        # A deep fall leaves the picture before it makes the rest of it flat.
        floor = -1.2 * high if high > 0.05 * -min(near) else min(near)
        low = max(min([*near, *played[:, 2], *self._clipped[shown]]), floor)
        # One wide interval must not flatten the rest either.
        high = max(high, min(max([0.0, *played[:, 3]]), 1.3 * high))
        pad = 0.07 * (high - low)
        axes.set_ylim(low - 2 * pad, high + pad)
        axes.set_xlim(0.0, reach)
        axes.text(1.0, low - 1.8 * pad, " the step taken", fontsize=9, color="#555555", va="bottom")
        if edge is not None:
            label = " edge of trust: half the promise is kept"
            label = " edge of trust: before this" if self._before else label
            axes.text(
                edge, low - 0.7 * pad, label, color=TRUST,
                fontsize=9, va="bottom", ha="left" if edge < 0.55 * reach else "right", bbox=ROOM,
            )  # fmt: skip
        axes.axhline(0.0, color="#222222", linewidth=0.8)
        axes.set(xlabel="multiples of the update (0 the old policy, 1 the new one)")
        axes.set_title("along the update", loc="left", fontsize=11)
        # A second axis needs a KL that grows along the update; an estimate need not.
        if np.all(np.diff(self._kl) > 0):
            kl_axis(axes, self._x[shown], self._kl[shown])
