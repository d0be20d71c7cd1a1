"""Every figure; the only package that imports matplotlib."""

from surefoot.analysis.plots.curves import Series, plot_curves
from surefoot.analysis.plots.exact import (
    ExactCurve,
    Line,
    Plane,
    plot_exact_curves,
    plot_lines,
    plot_plane,
)
from surefoot.analysis.plots.probe import Bar, ProbePicture, plot_probe

__all__ = [
    "Bar",
    "ExactCurve",
    "Line",
    "Plane",
    "ProbePicture",
    "Series",
    "plot_curves",
    "plot_exact_curves",
    "plot_lines",
    "plot_plane",
    "plot_probe",
]
