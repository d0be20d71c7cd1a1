"""Every figure; the only package that imports matplotlib."""

from surefoot.analysis.plots.curves import Series, plot_curves
from surefoot.analysis.plots.exact import plot_exact_curves, plot_lines, plot_update

__all__ = [
    "Series",
    "plot_curves",
    "plot_exact_curves",
    "plot_lines",
    "plot_update",
]
