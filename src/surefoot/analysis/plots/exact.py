"""Pictures of the laboratory: the plane under one update, and exact learning curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes

from surefoot.analysis.plots.style import blank, draw_optimum, save, styles_of

RETURN, PROMISE, CLIPPED, TRUST = "#000000", "#D55E00", "#CC79A7", "#0072B2"
SURE = ("#0072B2", "#009E73", "#56B4E9")


class Plane(NamedTuple):
    """What is true and what is promised along one update.

    Attributes:
        title: a heading.
        xlabel: what `x` is.
        x: places along the update, from the old policy on.
        kl: mean KL(old || new) at each, in nats.
        eta: the return.
        surrogate: L.
        clipped: PPO's objective.
        sure: for each guarantee its lower bound on the return.
        taken: the update's own place.
        edge: where half the promise is kept, or None.
    """

    title: str
    xlabel: str
    x: Float[np.ndarray, " point"]
    kl: Float[np.ndarray, " point"]
    eta: Float[np.ndarray, " point"]
    surrogate: Float[np.ndarray, " point"]
    clipped: Float[np.ndarray, " point"]
    sure: Mapping[str, Float[np.ndarray, " point"]]
    taken: float
    edge: float | None


def plot_plane(plane: Plane, path: Path) -> None:
    """Draw L over the return along an update, with the step taken and the edge of trust.

    Raises:
        StorageError: where the file cannot be written.
    """
    figure, axes = blank()
    x = plane.x
    if plane.edge is not None:
        axes.axvspan(x[0], plane.edge, color=TRUST, alpha=0.1, linewidth=0)
    axes.plot(x, plane.surrogate, color=PROMISE, linewidth=2.4, label="L, what is promised")
    axes.plot(x, plane.eta, color=RETURN, linewidth=2.4, label="η, what is got")
    axes.plot(
        x, plane.clipped, color=CLIPPED, linewidth=1.8, linestyle=(0, (7, 1.5)),
        label="ppo's clipped objective",
    )  # fmt: skip
    for color, (name, low) in zip(SURE, plane.sure.items(), strict=False):
        axes.plot(x, low, color=color, linewidth=1.3, linestyle=(0, (2, 1)), label=name)
    _mark_step(axes, plane)
    low = min(plane.eta.min(), plane.clipped.min())
    high = max(plane.eta.max(), plane.surrogate.max(), plane.clipped.max())
    pad = 0.08 * (high - low) or 0.1
    axes.set_ylim(low - pad, high + pad)
    axes.set_xlim(x[0], x[-1])
    if plane.edge is not None and plane.edge < x[-1]:
        axes.text(
            plane.edge, low - 0.5 * pad, " edge of trust: half the promise is kept", color=TRUST,
            fontsize=9, va="bottom",
        )  # fmt: skip
    axes.set(xlabel=plane.xlabel, ylabel="discounted return")
    axes.set_title(plane.title, loc="left", fontsize=13, pad=12)
    kl_axis(axes, plane.x, plane.kl)
    axes.grid(alpha=0.2)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    save(figure, path)


def _mark_step(axes: Axes, plane: Plane) -> None:
    """The update: a dot on what was got, a dot on what was promised, and their difference."""
    promised, got = (
        float(np.interp(plane.taken, plane.x, line)) for line in (plane.surrogate, plane.eta)
    )
    axes.plot([plane.taken] * 2, [promised, got], color=PROMISE, linewidth=1.4, linestyle=":")
    axes.plot(plane.taken, promised, "o", color=PROMISE, markersize=7)
    axes.plot(plane.taken, got, "o", color=RETURN, markersize=7)
    axes.plot(plane.x[0], plane.eta[0], "o", color="white", markeredgecolor=RETURN, markersize=7)
    right = plane.taken > 0.5 * (plane.x[0] + plane.x[-1])
    side = {"ha": "right" if right else "left", "textcoords": "offset points", "fontsize": 10}
    room = {"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
    for text, value, color, above in (
        (f"promised {promised:.3g}", promised, PROMISE, promised >= got),
        (f"got {got:.3g}", got, RETURN, promised < got),
    ):
        offset = (-8 if right else 8, 11 if above else -11)
        axes.annotate(
            text, (plane.taken, value), offset, va="center", color=color, bbox=room, **side
        )


def kl_axis(axes: Axes, x: Float[np.ndarray, " point"], kl: Float[np.ndarray, " point"]) -> None:
    """Mean KL along the top, at round values."""
    top = axes.secondary_xaxis("top")
    reach = kl[-1]
    wanted = np.array([0.0, *(m * 10.0**e for e in range(-4, 3) for m in (1, 2, 5))])
    wanted = wanted[wanted <= reach]
    places = np.interp(wanted, kl, x)
    shown = [0]
    for i in range(1, len(wanted)):
        if places[i] - places[shown[-1]] > 0.09 * (x[-1] - x[0]):
            shown.append(i)
    top.set_xticks(places[shown], [f"{each:g}" for each in wanted[shown]])
    top.set_xlabel("mean KL(old ‖ new), nats", fontsize=9)
    top.tick_params(labelsize=8)


class Line(NamedTuple):
    """One line of a picture."""

    label: str
    x: Sequence[float] | Float[np.ndarray, " point"]
    y: Sequence[float] | Float[np.ndarray, " point"]
    color: str


def plot_lines(
    lines: Sequence[Line],
    path: Path,
    *,
    xlabel: str,
    ylabel: str,
    title: str,
    log: bool = False,
    dots: Sequence[tuple[float, float]] = (),
    ylim: tuple[float, float] | None = None,
) -> None:
    """Draw lines, on logarithmic axes where `log`, and dots on them, from and to `ylim`.

    Raises:
        StorageError: where the file cannot be written.
    """
    figure, axes = blank()
    for line in lines:
        axes.plot(line.x, line.y, color=line.color, linewidth=2.2, label=line.label)
    for x, y in dots:
        axes.plot(x, y, "o", color="#000000", markersize=7)
    if log:
        axes.set(xscale="log", yscale="log")
    axes.set(xlabel=xlabel, ylabel=ylabel)
    if ylim:
        axes.set_ylim(*ylim)
    axes.set_title(title, loc="left", fontsize=13)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    save(figure, path)


class ExactCurve(NamedTuple):
    """Exact returns over updates, from the start on."""

    label: str
    etas: Sequence[float]


def plot_exact_curves(
    curves: Sequence[ExactCurve], path: Path, *, title: str, optimum: float
) -> None:
    """Draw exact returns over updates, and the optimum.

    Raises:
        StorageError: where the file cannot be written.
    """
    figure, axes = blank()
    draw_optimum(axes, optimum)
    longest = max(len(curve.etas) for curve in curves) - 1
    styles = styles_of([curve.label for curve in curves])
    for curve in curves:
        axes.plot(curve.etas, label=curve.label, linewidth=2.2, **styles[curve.label])
    axes.set(xlabel="updates", ylabel="discounted return")
    axes.set_xlim(0, longest)
    axes.set_title(title, loc="left", fontsize=13)
    axes.grid(alpha=0.25)
    figure.legend(loc="outside right upper", frameon=False, handlelength=2.6)
    save(figure, path)
