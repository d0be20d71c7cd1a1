"""The picture of a probe: the waterfall from promise to gain, and the plane along the update."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from surefoot.analysis.plots.exact import CLIPPED, PROMISE, RETURN, SURE, TRUST, kl_axis
from surefoot.analysis.plots.style import DPI, save

RANDOM = "#8C8C8C"
ROOM = {"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
WIDTH, HEIGHT = 12.0, 6.4
CAPTION_COLUMNS = 165


class Bar(NamedTuple):
    """One bar of the waterfall; `low` and `high` are its interval, or None.

    `lost` says what lies between this bar and the next.
    """

    label: str
    mean: float
    low: float | None
    high: float | None
    promise: bool
    lost: str


class ProbePicture(NamedTuple):
    """What a probe's picture shows; gains are of discounted return over the old policy.

    Attributes:
        title: a heading.
        caption: what was found, a sentence each.
        bars: of the waterfall, from the first promise to the gain.
        x: fractions of the update, 0 among them; without a sweep there is none.
        kl: mean KL(old || new) at each, in nats.
        fresh: what L promises on fresh data, with its interval.
        in_sample: what it promises on the training batch, or None.
        clipped: ppo's objective on fresh data.
        realised: fraction, gain and its interval, where episodes were played.
        random: the same along a random direction of equal mean KL.
        certificates: for each bound the gain that it leaves.
        edge: where half the promise is kept, or None.
    """

    title: str
    caption: Sequence[str]
    bars: Sequence[Bar]
    x: Float[np.ndarray, " point"]
    kl: Float[np.ndarray, " point"]
    fresh: Float[np.ndarray, "point 3"]
    in_sample: Float[np.ndarray, " point"] | None
    clipped: Float[np.ndarray, " point"]
    realised: Float[np.ndarray, "place 4"]
    random: Float[np.ndarray, "other_place 4"]
    certificates: Mapping[str, Float[np.ndarray, " point"]]
    edge: float | None


def plot_probe(picture: ProbePicture, path: Path) -> None:
    """Draw the waterfall and, where there is one, the sweep beside it.

    Raises:
        StorageError: where the file cannot be written.
    """
    swept = len(picture.x) > 0
    width = WIDTH if swept else 0.5 * WIDTH
    figure = Figure(figsize=(width, HEIGHT), dpi=DPI, layout="constrained")
    columns = figure.subplots(1, 2, width_ratios=(1.0, 1.35)) if swept else [figure.subplots()]
    _waterfall(columns[0], picture.bars)
    if swept:
        _sweep(columns[1], picture)
    for axes in columns:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.2)
    figure.suptitle(picture.title, x=0.01, ha="left", fontsize=13)
    columns_wide = CAPTION_COLUMNS if swept else CAPTION_COLUMNS // 2
    lines = [line for each in picture.caption for line in _wrapped(each, columns_wide)]
    caption = "\n".join(lines)
    figure.supxlabel(caption, x=0.01, ha="left", fontsize=9.5, color="#333333")
    save(figure, path)


def _wrapped(sentence: str, columns: int) -> list[str]:
    return textwrap.wrap(sentence, columns, initial_indent="•  ", subsequent_indent="    ")


def _waterfall(axes: Axes, bars: Sequence[Bar]) -> None:
    """The bars, each with its interval, and between two of them what was lost on the way."""
    means = [bar.mean for bar in bars]
    ends = [*means, *(e for bar in bars for e in (bar.low, bar.high) if e is not None), 0.0]
    low, high = min(ends), max(ends)
    room = 0.08 * (high - low) or 0.1
    for place, bar in enumerate(bars):
        color = PROMISE if bar.promise else RETURN
        axes.bar(place, bar.mean, width=0.56, color=color, alpha=0.85 if bar.promise else 1.0)
        if bar.low is not None and bar.high is not None:
            axes.vlines(place, bar.low, bar.high, color="white", linewidth=5.0)
            axes.vlines(place, bar.low, bar.high, color="#444444", linewidth=2.2)
        top = max(bar.mean, bar.high or bar.mean, 0.0)
        axes.text(
            place, top + 0.25 * room, f"{bar.mean:+.3g}", ha="center", va="bottom", fontsize=11,
            fontweight="bold", color=color,
        )  # fmt: skip
        if place + 1 < len(bars):
            after = bars[place + 1].mean
            axes.hlines(bar.mean, place, place + 1, color="#777777", linewidth=0.9, linestyle=":")
            axes.annotate(
                "", (place + 0.5, after), (place + 0.5, bar.mean),
                arrowprops={"arrowstyle": "-|>", "color": "#777777", "linewidth": 1.3},
            )  # fmt: skip
            axes.text(
                place + 0.5, low - 1.1 * room, f"{bar.lost}\n{after - bar.mean:+.3g}", ha="center",
                va="top", fontsize=9, color="#555555",
            )  # fmt: skip
    axes.axhline(0.0, color="#222222", linewidth=1.0)
    axes.set_xticks(range(len(bars)), [bar.label for bar in bars], fontsize=9)
    axes.set_ylim(low - 3.2 * room, high + 2.0 * room)
    axes.set_ylabel("gain of discounted return over the old policy")
    axes.set_title("from promise to gain, with 95 % intervals", loc="left", fontsize=11, pad=33)


def _sweep(axes: Axes, picture: ProbePicture) -> None:
    """L over what was got along the update, with the step taken and the edge of trust."""
    x, fresh = picture.x, picture.fresh
    if picture.edge is not None:
        axes.axvspan(0.0, picture.edge, color=TRUST, alpha=0.1, linewidth=0)
    axes.axvline(1.0, color="#555555", linewidth=1.0, linestyle=(0, (1, 2)))
    axes.fill_between(x, fresh[:, 1], fresh[:, 2], color=PROMISE, alpha=0.18, linewidth=0)
    axes.plot(x, fresh[:, 0], color=PROMISE, linewidth=2.4, label="L on fresh data, promised")
    if picture.in_sample is not None:
        axes.plot(
            x, picture.in_sample, color=PROMISE, linewidth=1.5, linestyle=(0, (1, 1.2)),
            label="L on its own batch",
        )  # fmt: skip
    axes.plot(
        x, picture.clipped, color=CLIPPED, linewidth=1.6, linestyle=(0, (7, 1.5)),
        label="ppo's clipped objective",
    )  # fmt: skip
    _gains(axes, picture.realised, RETURN, "η, what is got")
    _gains(axes, picture.random, RANDOM, "η in a random direction of equal KL")
    for color, (name, low) in zip(SURE, picture.certificates.items(), strict=False):
        label = f"{name}, estimated: no guarantee"
        axes.plot(x, low, color=color, linewidth=1.1, linestyle=(0, (2, 1)), label=label)
    _frame(axes, picture)
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.14))


def _gains(axes: Axes, rows: Float[np.ndarray, "place 4"], color: str, label: str) -> None:
    """Gains with their intervals, from the old policy on."""
    if len(rows) == 0:
        return
    at, mean = np.append(0.0, rows[:, 0]), np.append(0.0, rows[:, 1])
    axes.plot(at, mean, "-", color=color, linewidth=2.0, label=label)
    axes.plot(at[1:], mean[1:], "o", color=color, markersize=5)
    axes.vlines(rows[:, 0], rows[:, 2], rows[:, 3], color=color, linewidth=1.4)


def _reach(picture: ProbePicture) -> float:
    """How far along the update is shown: to twice the edge of trust, where there is one."""
    farthest = float(picture.x[-1])
    if picture.edge is None:
        return farthest
    wanted = max(1.5, 2.0 * picture.edge)
    return min((float(at) for at in picture.realised[:, 0] if at >= wanted), default=farthest)


def _frame(axes: Axes, picture: ProbePicture) -> None:
    """Limits by what the update promises and gets, so that a wild line hides nothing; labels."""
    reach = _reach(picture)
    shown, played = picture.x <= reach, picture.realised[picture.realised[:, 0] <= reach]
    near = [0.0, *picture.fresh[shown, 0], *played[:, 1]]
    if picture.in_sample is not None:
        near.append(float(np.interp(1.0, picture.x, picture.in_sample)))
    high = max(near) or 0.5 * (max(near) - min(near)) or 1.0
    # A fall goes out of the picture before it makes the rest of it flat.
    floor = -1.2 * high if high > 0.05 * -min(near) else min(near)
    low = max(min([*near, *played[:, 2], *picture.clipped[shown]]), floor)
    high = max(high, min(max([0.0, *played[:, 3]]), 1.3 * high))
    pad = 0.07 * (high - low)
    axes.set_ylim(low - 2 * pad, high + pad)
    axes.set_xlim(0.0, reach)
    axes.text(1.0, low - 1.8 * pad, " the step taken", fontsize=9, color="#555555", va="bottom")
    if picture.edge is not None:
        axes.text(
            picture.edge, low - 0.7 * pad, " edge of trust: half the promise is kept", color=TRUST,
            fontsize=9, va="bottom", ha="left" if picture.edge < 0.55 * reach else "right",
            bbox=ROOM,
        )  # fmt: skip
    axes.axhline(0.0, color="#222222", linewidth=0.8)
    axes.set(xlabel="multiples of the update (0 the old policy, 1 the new one)")
    axes.set_title("along the update", loc="left", fontsize=11)
    if np.all(np.diff(picture.kl) > 0):
        kl_axis(axes, picture.x[shown], picture.kl[shown])
