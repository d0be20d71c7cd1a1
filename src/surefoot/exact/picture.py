"""Contents of pictures of exact quantities, as plain data; `analysis.plots` draws them."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from surefoot.exact.bounds import guaranteed_returns
from surefoot.exact.path import UpdatePath, Walk, walk

DRAWN_BOUNDS = {
    "B6": "guaranteed: B6, Schulman 2015",
    "B10": "guaranteed: B10",
    "B11": "guaranteed: B11",
}
"""The guarantees that are drawn: the essay's, and two that are sharp for small steps."""
POINTS = 401


class PlottedLine(NamedTuple):
    """One line of a picture."""

    label: str
    x: Sequence[float] | Float[np.ndarray, " point"]
    y: Sequence[float] | Float[np.ndarray, " point"]
    color: str


class LinePicture(NamedTuple):
    """Lines with dots on them, on logarithmic axes where `log`, from and to `ylim`."""

    title: str
    xlabel: str
    ylabel: str
    lines: Sequence[PlottedLine]
    dots: Sequence[tuple[float, float]] = ()
    log: bool = False
    ylim: tuple[float, float] | None = None


class UpdatePicture(NamedTuple):
    """The truth and the promise along one update, at places `x` from the old policy on.

    `guaranteed` is each bound's lower limit of the return, `taken` the update's own place, and
    `edge` where half the promise is kept, or None.
    """

    title: str
    xlabel: str
    x: Float[np.ndarray, " point"]
    along: Walk
    guaranteed: Mapping[str, Float[np.ndarray, " point"]]
    taken: float
    edge: float | None


def update_picture(
    path: UpdatePath, *, rule: str, shared: bool, clip_eps: float = 0.2
) -> UpdatePicture:
    """One update, from the old policy to a little beyond the update or its break-even.

    `shared` says that all states share one parameter; the axis is then the probability it sets.
    """
    broken, half = path.landmarks.broken, path.landmarks.half
    reach = 1.0 if broken is None else max(1.0, min(broken, 3.0))
    # A little further, so that the mark of the step is not on the frame.
    fractions = np.linspace(0.0, min(1.12 * reach, path.end), POINTS)
    along = walk(path.old, [path.at(a) for a in fractions], clip_eps=clip_eps)
    x, xlabel = fractions, "multiples of the update"
    if shared:
        x = np.array([new.policy[0, 1] for new in along.solved])
        xlabel = "probability of going right, shared by all states"
    lows = [guaranteed_returns(path.old, new) for new in along.solved]
    limits = {label: np.array([low[name] for low in lows]) for name, label in DRAWN_BOUNDS.items()}

    def on_axis(fraction: float) -> float:
        return float(np.interp(fraction, fractions, x))

    return UpdatePicture(
        title=f"{path.old.mdp.name}, {rule}",
        xlabel=xlabel,
        x=x,
        along=along,
        guaranteed={n: np.where(np.isfinite(low), low, np.nan) for n, low in limits.items()},
        taken=on_axis(1.0),
        edge=None if half is None else on_axis(half),
    )
