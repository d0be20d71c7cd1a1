"""`python -m benchmarks.peers`: set the peers up, time surefoot against each, draw the table.

    python -m benchmarks.peers setup
    python -m benchmarks.peers run [--only REGEX] [--pairs 5] [--json docs/results/peers.json]
    python -m benchmarks.peers draw [--json docs/results/peers.json] [--picture FILE]

Both sides of a duel are processes that live through it: one trains a round while the other waits,
in turns. A round is whole training, environments and logging included; compilation and one first
round come before, and are shown apart. A ratio is of one pair of neighbouring rounds.
"""

import argparse
import json
import re
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

from benchmarks.peers.drawing import draw
from benchmarks.peers.duel import machine, run_duel, sentence, versions
from benchmarks.peers.tasks import DUELS

HERE = Path(__file__).parent
RESULTS = Path("docs/results/peers.json")
PICTURE = Path("docs/pictures/peers.png")
ENVIRONMENTS = ("torch", "rejax")


def set_up(where: Path) -> None:
    """One virtual environment for the peers on torch, one for rejax, whose gymnax is older."""
    for name in ENVIRONMENTS:
        print(f"{where / name}: {(HERE / f'requirements-{name}.txt').name}", flush=True)
        venv.create(where / name, with_pip=True)
        pip = [str(where / name / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        # torch first and alone: what depends on it would else bring a build for CUDA.
        if name == "torch":
            subprocess.run([*pip, "torch==2.13.0"], check=True)
        requirements = HERE / f"requirements-{name}.txt"
        subprocess.run([*pip, "-r", str(requirements)], check=True)


def run(where: Path, only: str, pairs: int, out: Path | None) -> None:
    """Every duel whose name fits, written after each, so that a long run loses nothing."""
    chosen = [duel for duel in DUELS if re.search(only, duel.name)]
    if not chosen:
        sys.exit(f"no duel fits {only}: {', '.join(duel.name for duel in DUELS)}")
    here = {"machine": machine(), "versions": versions(where, ENVIRONMENTS)}
    kept: dict[str, Any] = here | {"duels": {}}
    if out and out.exists():
        before = json.loads(out.read_text())
        # Figures of another machine or other versions do not belong beside new ones.
        if here.items() <= before.items():
            kept = before
    for duel in chosen:
        found = run_duel(duel, where, pairs=pairs)
        print(sentence(duel, found), flush=True)
        kept["duels"][duel.name] = found
        if out:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(kept, indent=1) + "\n")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("command", choices=("setup", "run", "draw"))
    parser.add_argument("--where", type=Path, default=Path(".peers"), help="virtual environments")
    parser.add_argument("--only", default="", help="regular expression on names of duels")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    given = parser.parse_args()
    if given.command == "setup":
        set_up(given.where)
    elif given.command == "run":
        run(given.where, given.only, given.pairs, given.json)
    else:
        draw(json.loads(given.json.read_text())["duels"], given.picture)


if __name__ == "__main__":
    main()
