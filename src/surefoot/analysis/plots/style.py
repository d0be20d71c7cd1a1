"""What every picture has in common; nothing here needs a display.

Colours are Okabe and Ito's, which people with any colour vision tell apart; each of the ladder's
rules keeps its own in every picture.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from surefoot.config.settings import RULES
from surefoot.errors import StorageError

PALETTE = ("#E69F00", "#009E73", "#0072B2", "#CC79A7", "#D55E00", "#56B4E9", "#000000", "#8C6D1F")
DASHES = ((0, (1, 1)), (0, (6, 1.5, 1, 1.5)), "solid", (0, (3, 1)), (0, (7, 1.5)))
WIDTH, HEIGHT, DPI = 8.0, 4.8, 100
"""A picture is 800 by 480 pixels."""


def blank() -> tuple[Figure, Axes]:
    """An empty picture with one pair of axes."""
    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def draw_optimum(axes: Axes, optimum: float) -> None:
    """The most that is possible, as a line across the picture."""
    axes.axhline(optimum, color="#555555", linewidth=1.2, zorder=0)
    where = axes.get_yaxis_transform()
    axes.text(
        0.99, optimum, "optimum", transform=where, color="#555555", fontsize=9, ha="right",
        va="bottom",
    )  # fmt: skip


def save(figure: Figure, path: Path) -> None:
    """Write a picture as PNG.

    Raises:
        StorageError: where the file cannot be written.
    """
    try:
        figure.savefig(path, format="png")
    except OSError as fault:
        raise StorageError(f"writing {path}: {fault.strerror or fault}") from fault


def styles_of(labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A colour and a dash for each label; a rule's own name has its own colour."""
    own = {label: i for i, label in enumerate(RULES) if label in labels}
    free = itertools.chain(
        (i for i in range(len(PALETTE)) if i not in own.values()), itertools.count()
    )
    places = {label: own[label] if label in own else next(free) for label in labels}
    return {
        label: {"color": PALETTE[i % len(PALETTE)], "linestyle": DASHES[i % len(DASHES)]}
        for label, i in places.items()
    }
