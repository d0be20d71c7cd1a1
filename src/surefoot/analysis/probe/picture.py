"""What the picture of a probe shows, from its figures."""

import numpy as np
from jaxtyping import Float

from surefoot.analysis.plots import Bar, ProbePicture
from surefoot.analysis.probe.estimates import Estimate
from surefoot.analysis.probe.result import Point, Probe


def picture(probe: Probe) -> ProbePicture:
    """The waterfall and, where policies between and beyond were looked at, the sweep."""
    points = probe.update if len(probe.update) > 1 else ()
    with_batch = bool(points) and all(point.in_sample for point in points)
    names = points[0].certificates if points else ()
    return ProbePicture(
        title=probe.title,
        caption=probe.verdict(),
        bars=_bars(probe),
        x=_line([point.fraction for point in points]),
        kl=_line([point.kl.mean for point in points]),
        fresh=np.array([[0.0] * 3, *(_three(point.fresh) for point in points)]),
        in_sample=_line([p.in_sample.mean for p in points if p.in_sample]) if with_batch else None,
        clipped=_line([point.clipped.mean for point in points]),
        realised=_played(points or probe.update),
        random=_played(probe.random),
        certificates={
            name: _line([point.certificates.get(name, np.nan) for point in points])
            for name in names
        },
        edge=probe.trust.fraction if probe.trust else None,
    )


def _line(values: list[float]) -> Float[np.ndarray, " point"]:
    """A line that begins at the old policy, where nothing is promised or gained."""
    return np.array([0.0, *values]) if values else np.zeros(0)


def _three(estimate: Estimate) -> tuple[float, float, float]:
    low, high = estimate.low, estimate.high
    mean = estimate.mean
    return mean, mean if low is None else low, mean if high is None else high


def _played(points: tuple[Point, ...]) -> Float[np.ndarray, "place 4"]:
    rows = [(point.fraction, *_three(point.realised)) for point in points if point.realised]
    return np.array(rows).reshape(-1, 4)


def _bars(probe: Probe) -> list[Bar]:
    bars = []
    if probe.in_sample is not None:
        label = "promised on\nits own batch" + ("\n(as recorded)" if probe.recorded else "")
        bars.append(_bar(label, probe.in_sample, "noise"))
    if probe.gae_lambda < 1.0:
        bars.append(_bar("promised on\nfresh data", probe.fresh, "the critic"))
        label = "promised on\nfresh data,\nMonte Carlo"
        bars.append(_bar(label, probe.monte_carlo, "visits shift"))
    else:
        bars.append(_bar("promised on\nfresh data", probe.fresh, "visits shift"))
    bars.append(_bar("realised", probe.realised, "", promise=False))
    return bars


def _bar(label: str, estimate: Estimate, lost: str, *, promise: bool = True) -> Bar:
    return Bar(label, *estimate, promise, lost)
