"""`python -m research.collapses`: train the suite, fit the warnings, write the tables."""

import argparse
import re
import sys
from pathlib import Path

from research.collapses.cells import VARIANTS, Cell, all_cells, quick_cells, varied
from research.collapses.driver import estimate, train_cells
from research.collapses.report import report_thresholds, report_variant


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m research.collapses", description=__doc__)
    parser.add_argument("what", choices=("list", "train", "score", "compare"))
    parser.add_argument("--out", type=Path, default=Path("runs/collapses"), help="metrics of runs")
    parser.add_argument("--results", type=Path, default=Path("docs/results"), help="tables")
    parser.add_argument("--only", default="", help="regular expression on names of cells")
    parser.add_argument("--variant", default="plain", choices=tuple(VARIANTS), help="a remedy")
    parser.add_argument("--quick", action="store_true", help="two cells, a minute or two")
    parser.add_argument("--jobs", type=int, default=2, help="processes, one core each")
    return parser


def _cells(only: str, variant: str, quick: bool) -> list[Cell]:
    cells = [c for c in (quick_cells() if quick else all_cells()) if re.search(only, c.name)]
    if variant == "guard":
        # What a guard costs where nothing is wrong is asked of longer runs: research/remedies.
        cells = [cell for cell in cells if cell.planted is not None]
    return [varied(cell, variant) for cell in cells]


def main() -> int:
    """Do what was asked; 1 where a cell failed."""
    asked = _parser().parse_args()
    cells = _cells(asked.only, asked.variant, asked.quick)
    if asked.what == "list":
        for cell in cells:
            print(f"{cell.name:45} {cell.part:9} {cell.fault:8} {len(cell.seeds)} runs")
        print(f"about {estimate(cells) / 60:.0f} minutes of one core")
    elif asked.what == "train":
        results = train_cells(cells, asked.out, jobs=asked.jobs)
        faults = {name: result for name, result in results.items() if isinstance(result, str)}
        for name, fault in faults.items():
            print(f"{name} failed: {fault}", file=sys.stderr)
        return 1 if faults else 0
    elif asked.what == "score":
        report_thresholds(cells, asked.out, asked.results)
    else:
        plain = _cells(asked.only, "plain", asked.quick)
        names = {cell.name for cell in cells}
        report_variant([c for c in plain if c.name in names], cells, asked.out, asked.results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
