"""What the pictures of the laboratory show, computed."""

import numpy as np

from surefoot import exact as t
from surefoot.analysis.plots import Plane
from surefoot.exact.line import Landmarks, Ray
from surefoot.exact.report import Report, Start

SHOWN = {"B6": "guaranteed: B6, Schulman 2015", "B10": "guaranteed: B10", "B11": "guaranteed: B11"}
"""The guarantees that are drawn: the essay's, and two that are sharp for small steps."""
POINTS = 401


def plane(
    start: Start, found: Report, ray: Ray, marks: Landmarks, *, rule: str, clip_eps: float
) -> Plane:
    """The plane under one update, from the old policy to a little beyond the update or its edge."""
    reach = 1.0 if marks.broken is None else max(1.0, min(marks.broken, 3.0))
    fractions = np.linspace(0.0, min(1.12 * reach, ray.end), POINTS)
    solved = [t.solve(ray.mdp, ray.at(a)) for a in fractions]
    sure = [t.guaranteed(ray.mdp, ray.old, new) for new in solved]
    lines = {SHOWN[name]: np.array([row[name] for row in sure]) for name in SHOWN}
    x, xlabel = fractions, "multiples of the update"
    if isinstance(start.family, t.Shared):
        x = np.array([new.policy[0, 1] for new in solved])
        xlabel = "probability of going right, shared by all states"
    on_axis = lambda a: float(np.interp(a, fractions, x))  # noqa: E731
    return Plane(
        title=f"{ray.mdp.name}, {rule}",
        xlabel=xlabel,
        x=x,
        kl=np.array([ray.kl(a) for a in fractions]),
        eta=np.array([new.eta for new in solved]),
        surrogate=np.array([t.surrogate(ray.old, new.policy) for new in solved]),
        clipped=np.array(
            [t.clipped(ray.mdp, ray.old, new.policy, clip_eps=clip_eps) for new in solved]
        ),
        sure={name: np.where(np.isfinite(low), low, np.nan) for name, low in lines.items()},
        taken=on_axis(1.0),
        edge=None if marks.half is None or found.ratio is None else on_axis(marks.half),
    )
