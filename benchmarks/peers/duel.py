"""One duel: two processes that train in turns, and what their rounds say."""

import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.peers.tasks import Duel

SIDES = Path(__file__).parent / "sides"
HOME_OF = {
    **{peer: ("torch", "with_sb3.py") for peer in ("sb3", "sb3_contrib", "sbx")},
    "rejax": ("rejax", "with_rejax.py"),
}
"""The virtual environment and the script of each peer."""
DISAGREE = 1.6
"""A ratio is not reported where the largest of the pairs is so many times the smallest."""
PACKAGES = (
    *("stable_baselines3", "sb3_contrib", "sbx-rl", "torch", "rejax", "gymnax"),
    *("jax", "numpy", "gymnasium", "mujoco", "envpool", "surefoot"),
)


class Side:
    """A process that is asked for rounds."""

    def __init__(self, python: str, script: str, duel: Duel):
        # The path stays as it is: a virtual environment's python is a link to another.
        self._command = [python, str(SIDES / script), json.dumps(duel._asdict())]
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            # What "ready" says is of a first time, whoever keeps programs.
            env=os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"},
        )
        self.ready = self._answer()["ready_s"]

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self.close()
            sys.exit(f"a side ended; to see why, run {shlex.join(self._command)}")
        return json.loads(line)

    def round(self) -> float:
        """One round; its steps per second."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        found = self._answer()
        return found["steps"] / found["seconds"]

    def close(self) -> None:
        """End the process."""
        with self._process:
            self._process.kill()


def run_duel(duel: Duel, where: Path, *, pairs: int) -> dict[str, Any]:
    """Rounds of both sides in turns; rates, ratios pair by pair, seconds until ready."""
    environment, script = HOME_OF[duel.peer]
    peer = str(where / environment / "bin" / "python")
    ours = Side(sys.executable, "with_surefoot.py", duel)
    theirs = Side(peer, script, duel)
    try:
        rates = [(ours.round(), theirs.round()) for _ in range(pairs)]
    finally:
        ours.close()
        theirs.close()
    ratios = [mine / other for mine, other in rates]
    return {
        "settings": duel._asdict(),
        "ours": {"ready_s": round(ours.ready, 1), "rates": [round(r) for r, _ in rates]},
        "theirs": {"ready_s": round(theirs.ready, 1), "rates": [round(r) for _, r in rates]},
        "ratios": [round(ratio, 3) for ratio in ratios],
        "ratio": None if disagree(ratios) else round(statistics.median(ratios), 3),
    }


def disagree(ratios: list[float]) -> bool:
    """Whether the pairs tell too different things for their median to mean anything."""
    return max(ratios) > DISAGREE * min(ratios)


def sentence(duel: Duel, found: dict[str, Any]) -> str:
    """A duel in one line."""
    mine, other = (statistics.median(found[side]["rates"]) for side in ("ours", "theirs"))
    low, high = min(found["ratios"]), max(found["ratios"])
    both = f"{duel.name}: {mine:,.0f} steps/s against {other:,.0f} of {duel.peer}"
    if found["ratio"] is None:
        return f"{both}; no ratio: the pairs say {low:.2f} to {high:.2f}, run it on an idle machine"
    aim = f", aimed at {duel.target}" if duel.target else ""
    return f"{both}, ratio {found['ratio']:.2f} ({low:.2f} to {high:.2f}){aim}"


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":")[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        model = platform.processor()
    return {"cpu": model, "cores": os.cpu_count(), "python": platform.python_version()}


def versions(where: Path, environments: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """Versions of what matters, by virtual environment."""
    ask = (
        "import importlib.metadata as m, json, sys\n"
        "have = {d.metadata['Name']: d.version for d in m.distributions()}\n"
        "print(json.dumps({k: v for k, v in have.items() if k in sys.argv[1:]}))"
    )
    pythons = {"surefoot": sys.executable}
    pythons |= {name: str(where / name / "bin" / "python") for name in environments}
    found = {}
    for name, python in pythons.items():
        told = subprocess.run(
            [python, "-c", ask, *PACKAGES], capture_output=True, text=True, check=True
        )
        found[name] = json.loads(told.stdout)
    return found
