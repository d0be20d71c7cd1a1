"""Every figure; the only package that imports matplotlib."""

from surefoot.analysis.plots.curves import Series, plot_curves
from surefoot.analysis.plots.exact import plot_exact_curves, plot_lines, plot_update
from surefoot.analysis.plots.probe import Bar, ProbePicture, plot_probe

__all__ = [
    "Bar",
    "ProbePicture",
    "Series",
    "plot_curves",
    "plot_exact_curves",
    "plot_lines",
    "plot_probe",
    "plot_update",
]
