"""Compare rules over seeds: train the missing cells, or read finished runs, and tabulate them.

`compare` trains, `read_runs` reads finished runs from anywhere, `table`, `to_dict` and
`write_outputs` present the result.
"""

from surefoot.analysis.compare.cells import Workers
from surefoot.analysis.compare.comparison import Comparison, Failure, LearningCurve, Score
from surefoot.analysis.compare.grid import SharedSettings
from surefoot.analysis.compare.output import table, to_dict, write_outputs
from surefoot.analysis.compare.read import read_runs
from surefoot.analysis.compare.train import compare
from surefoot.parallel.jobs import ComparisonStopped

__all__ = [
    "Comparison",
    "ComparisonStopped",
    "Failure",
    "LearningCurve",
    "Score",
    "SharedSettings",
    "Workers",
    "compare",
    "read_runs",
    "table",
    "to_dict",
    "write_outputs",
]
