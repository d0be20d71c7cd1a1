"""Style that all figures share; none needs a display.

Colours are Okabe and Ito's, distinct for any colour vision; each
built-in rule has its own in every figure.
"""

import io
import itertools
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from surefoot.config.settings import RULES
from surefoot.storage.files import replace_file

PALETTE = ("#E69F00", "#009E73", "#0072B2", "#CC79A7", "#D55E00", "#56B4E9", "#000000", "#8C6D1F")
DASHES = ((0, (1, 1)), (0, (6, 1.5, 1, 1.5)), "solid", (0, (3, 1)), (0, (7, 1.5)))
GRAY = "#555555"
WIDTH, HEIGHT, DPI = 8.0, 4.8, 100
"""A figure is 800 by 480 pixels."""
NARROW = 3.75
"""Width in inches of a figure on a phone: as SVG 360 pixels, on a screen of 390. At full size no
text may be below `SMALLEST`, in points: 11 pixels."""
SMALLEST = 8.5


def blank(title: str, *, xlabel: str, ylabel: str, narrow: bool = False) -> tuple[Figure, Axes]:
    """An empty figure with one pair of axes; a `narrow` one is for a phone."""
    size = (NARROW, 1.35 * NARROW) if narrow else (WIDTH, HEIGHT)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    axes = figure.add_subplot(xlabel=xlabel, ylabel=ylabel)
    if narrow:
        # Beside the axis a title has less room than in the whole figure.
        figure.suptitle(textwrap.fill(title, 46), fontsize=11)
        axes.set_xlabel(textwrap.fill(xlabel, 44))
    else:
        axes.set_title(title, loc="left", fontsize=13)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure, axes


def draw_optimum(axes: Axes, optimum: float) -> None:
    """Draw the optimal value as a line across the figure."""
    axes.axhline(optimum, color=GRAY, linewidth=1.2, zorder=0)
    where = axes.get_yaxis_transform()
    axes.text(0.99, optimum, "optimum", transform=where, color=GRAY, fontsize=9, ha="right",
              va="bottom")  # fmt: skip


def as_png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def as_svg(figure: Figure) -> str:
    """A figure as the text of an SVG file; the same figure gives the same text."""
    buffer = io.StringIO()
    # Letters as paths: a reader's fonts must not move the labels.
    with matplotlib.rc_context({"svg.hashsalt": "surefoot", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", facecolor="white", metadata={"Date": None})
    return buffer.getvalue()


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG.

    Raises:
        StorageError: where the file cannot be written.
    """
    replace_file(path, as_png(figure))


def styles_of(labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A colour and a dash for each label; rules keep their own."""
    own = {label: i for i, label in enumerate(RULES) if label in labels}
    # Other labels take what no rule of this figure has, and then begin again.
    free = itertools.chain(
        (i for i in range(len(PALETTE)) if i not in own.values()), itertools.count()
    )
    places = {label: own[label] if label in own else next(free) for label in labels}
    return {
        label: {"color": PALETTE[i % len(PALETTE)], "linestyle": DASHES[i % len(DASHES)]}
        for label, i in places.items()
    }
