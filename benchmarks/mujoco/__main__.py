"""`python -m benchmarks.mujoco`: what there is to run, run it, and say what came of it.

    python -m benchmarks.mujoco list
    python -m benchmarks.mujoco run screen [--only REGEX] [--jobs 2]
    python -m benchmarks.mujoco score screen
    python -m benchmarks.mujoco table table [--picture docs/pictures/mujoco.png]

Each finished run is one file below --results, and is not trained again; a run that was stopped goes
on from its checkpoint below --runs. The peers need `python -m benchmarks.peers setup`.
"""

import argparse
import re
import sys
from pathlib import Path

from benchmarks.mujoco.scores import as_table, read, standings
from benchmarks.mujoco.studies import STUDIES
from benchmarks.mujoco.table import aggregate, draw, table
from benchmarks.mujoco.train import missing, train_all
from surefoot.parallel.jobs import ComparisonStopped


def main() -> int:
    """Do what was asked; 1 where a run failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.mujoco",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=("list", "run", "score", "table"))
    parser.add_argument("study", nargs="*", help=f"{', '.join(STUDIES)}; all by default")
    parser.add_argument("--only", default="", help="regular expression on names of runs")
    parser.add_argument("--jobs", type=int, default=2, help="processes, one core each")
    parser.add_argument("--results", type=Path, default=Path("docs/results/mujoco"))
    parser.add_argument("--runs", type=Path, default=Path("runs/mujoco"))
    parser.add_argument("--peers", type=Path, default=Path(".peers"), help="their environments")
    parser.add_argument("--picture", type=Path, help="of the learning curves, with table")
    given = parser.parse_args()
    studies = given.study or list(STUDIES)
    if unknown := set(studies) - set(STUDIES):
        parser.error(f"no study {', '.join(sorted(unknown))} ({', '.join(STUDIES)})")
    if given.what in ("score", "table"):
        records = [record for study in studies for record in read(given.results, study)]
        if given.what == "table":
            # Runs of several settings are no seeds of one line.
            records = [record for record in records if record["setting"] in ("default", "zoo")]
        if not records:
            parser.error(f"no record of {', '.join(studies)} below {given.results}")
    if given.what == "score":
        print(as_table(standings(records)))
        return 0
    if given.what == "table":
        print(table(records), aggregate(records), sep="\n\n")
        if given.picture:
            draw(records, given.picture)
        return 0
    planned = {
        study: [run for run in STUDIES[study]() if re.search(given.only, run.name)]
        for study in studies
    }
    if given.what == "list":
        for study, runs in planned.items():
            left = len(missing(runs, given.results))
            print(f"{study:10} {len(runs) - left:4} of {len(runs)} runs done")
        return 0
    everything = [run for runs in planned.values() for run in runs]
    places = {"runs": given.runs, "results": given.results, "peers": given.peers}
    try:
        failed = train_all(everything, **places, jobs=given.jobs)
    except ComparisonStopped as stopped:
        print(stopped, file=sys.stderr)
        return stopped.code
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
