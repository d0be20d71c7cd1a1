"""Pictures of exact quantities: one update, lines, and exact learning curves."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from surefoot.analysis.plots.style import blank, draw_optimum, save, styles_of
from surefoot.exact.picture import LinePicture, UpdatePicture
from surefoot.exact.report import ExactCurve

RETURN, PROMISE, CLIPPED, TRUST = "#000000", "#D55E00", "#CC79A7", "#0072B2"
SURE = ("#0072B2", "#009E73", "#56B4E9")


def plot_update(picture: UpdatePicture, path: Path) -> None:
    """Draw L over the return along an update, with the step taken and the edge of trust.

    Raises:
        StorageError: the file cannot be written.
    """
    save(draw_update(picture), path)


def draw_update(picture: UpdatePicture, *, narrow: bool = False) -> Figure:
    """The figure of `plot_update`, `narrow` for a phone."""
    figure, axes = blank(
        picture.title, xlabel=picture.xlabel, ylabel="discounted return", narrow=narrow
    )
    x, along, edge = picture.x, picture.along, picture.edge
    if edge is not None:
        axes.axvspan(x[0], edge, color=TRUST, alpha=0.1, linewidth=0)
    axes.plot(x, along.surrogate, color=PROMISE, linewidth=2.4, label="L, what is promised")
    axes.plot(x, along.eta, color=RETURN, linewidth=2.4, label="η, what is got")
    axes.plot(
        x, along.clipped, color=CLIPPED, linewidth=1.8, linestyle=(0, (7, 1.5)),
        label="ppo's clipped objective",
    )  # fmt: skip
    for color, (name, low) in zip(SURE, picture.guaranteed.items(), strict=False):
        axes.plot(x, low, color=color, linewidth=1.3, linestyle=(0, (2, 1)), label=name)
    _mark_step(axes, picture)
    # The guarantees may lie far below: they do not set the scale.
    low = min(along.eta.min(), along.clipped.min())
    high = max(along.eta.max(), along.surrogate.max(), along.clipped.max())
    pad = 0.08 * (high - low) or 0.1
    axes.set_ylim(low - pad, high + pad)
    axes.set_xlim(x[0], x[-1])
    if edge is not None and edge < x[-1]:
        text = (
            "edge of trust:\nhalf is kept" if narrow else "edge of trust: half the promise is kept"
        )
        beside, at = {"xytext": (4, 0), "textcoords": "offset points"}, (edge, low - 0.5 * pad)
        axes.annotate(text, at, color=TRUST, fontsize=9, va="bottom", **beside)
    kl_axis(axes, x, along.kl, gap=0.16 if narrow else 0.09)
    columns = 1 if narrow else 3
    figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    return figure


def _mark_step(axes: Axes, picture: UpdatePicture) -> None:
    """The update: a dot on the return, a dot on the promise, and their difference."""
    x, along, taken = picture.x, picture.along, picture.taken
    promised, got = (float(np.interp(taken, x, line)) for line in (along.surrogate, along.eta))
    axes.plot([taken] * 2, [promised, got], color=PROMISE, linewidth=1.4, linestyle=":")
    axes.plot(taken, promised, "o", color=PROMISE, markersize=7)
    axes.plot(taken, got, "o", color=RETURN, markersize=7)
    axes.plot(x[0], along.eta[0], "o", color="white", markeredgecolor=RETURN, markersize=7)
    # Texts go towards the middle of the figure, the higher value's above its dot.
    right = taken > 0.5 * (x[0] + x[-1])
    side = {"ha": "right" if right else "left", "textcoords": "offset points", "fontsize": 10}
    room = {"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
    for text, value, color, above in (
        (f"promised {promised:.3g}", promised, PROMISE, promised >= got),
        (f"got {got:.3g}", got, RETURN, promised < got),
    ):
        offset = (-8 if right else 8, 11 if above else -11)
        axes.annotate(text, (taken, value), offset, va="center", color=color, bbox=room, **side)


def kl_axis(
    axes: Axes,
    x: Float[np.ndarray, " point"],
    kl: Float[np.ndarray, " point"],
    *,
    gap: float = 0.09,
) -> None:
    """Mean KL along the top, at round values at least `gap` of the axis apart."""
    top = axes.secondary_xaxis("top")
    reach = kl[-1]
    wanted = np.array([0.0, *(m * 10.0**e for e in range(-4, 3) for m in (1, 2, 5))])
    wanted = wanted[wanted <= reach]
    places = np.interp(wanted, kl, x)
    shown = [0]
    for i in range(1, len(wanted)):
        # Labels that are closer would overlap.
        if places[i] - places[shown[-1]] > gap * (x[-1] - x[0]):
            shown.append(i)
    top.set_xticks(places[shown], [f"{each:g}" for each in wanted[shown]])
    top.set_xlabel("mean KL(old ‖ new), nats", fontsize=9)
    top.tick_params(labelsize=9)


def plot_lines(picture: LinePicture, path: Path) -> None:
    """Draw lines and the dots on them.

    Raises:
        StorageError: the file cannot be written.
    """
    save(draw_lines(picture), path)


def draw_lines(picture: LinePicture, *, narrow: bool = False) -> Figure:
    """The figure of `plot_lines`, `narrow` for a phone."""
    figure, axes = blank(picture.title, xlabel=picture.xlabel, ylabel=picture.ylabel, narrow=narrow)
    for line in picture.lines:
        axes.plot(line.x, line.y, color=line.color, linewidth=2.2, label=line.label)
    for x, y in picture.dots:
        axes.plot(x, y, "o", color=RETURN, markersize=7)
    if picture.log:
        axes.set(xscale="log", yscale="log")
    if picture.ylim:
        axes.set_ylim(*picture.ylim)
    if narrow:
        figure.legend(loc="outside lower center", frameon=False)
    else:
        axes.legend(frameon=False)
    return figure


def plot_exact_curves(
    curves: Sequence[ExactCurve], path: Path, *, title: str, optimum: float
) -> None:
    """Draw exact returns over updates, and the optimum.

    Raises:
        StorageError: the file cannot be written.
    """
    figure, axes = blank(title, xlabel="updates", ylabel="discounted return")
    draw_optimum(axes, optimum)
    styles = styles_of([curve.rule for curve in curves])
    for curve in curves:
        axes.plot(curve.etas, label=curve.rule, linewidth=2.2, **styles[curve.rule])
    axes.set_xlim(0, max(len(curve.etas) for curve in curves) - 1)
    # There is no half of an update.
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside right upper", frameon=False, handlelength=2.6)
    save(figure, path)
