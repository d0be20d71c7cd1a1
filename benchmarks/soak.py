"""`python -m benchmarks.soak`: long runs, killed again and again, beside ones that nobody disturbs.

    python -m benchmarks.soak [--kills 12] [--json docs/results/soak.json]

A million steps of CartPole-v1 in Gymnasium and ten million of gymnax's are trained twice through
the command line: once in peace, and once killed by SIGKILL at random rows and gone on with by the
command that a requeued job would repeat. At the end both must be equal to the bit, rows complete
and without a double, and the memory of the peaceful run flat.
"""

import argparse
import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

RUNS = {"CartPole-v1": 1_000_000, "gymnax:CartPole-v1": 10_000_000}
ENVS = {"CartPole-v1": (8, 256), "gymnax:CartPole-v1": (64, 128)}
CHECKPOINTS = 40


class Peace(NamedTuple):
    """What the run that nobody disturbed came to."""

    seconds: float
    memory_mb: list[float]


def command(env: str, steps: int, out: Path) -> list[str]:
    """The command of a job, the same each time that it is queued."""
    num_envs, num_steps = ENVS[env]
    words = ["train", env, "ppo", "--steps", str(steps), "--out", str(out), "--resume", "auto"]
    words += ["--num-envs", str(num_envs), "--num-steps", str(num_steps)]
    words += ["--checkpoint-every", str(steps // CHECKPOINTS), "--json"]
    return [sys.executable, "-m", "surefoot", *words]


def start(env: str, steps: int, out: Path) -> subprocess.Popen[bytes]:
    """The job in a process of its own."""
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command(env, steps, out), stdout=quiet, stderr=quiet)


def rows_in(out: Path) -> int:
    """Whole rows so far."""
    file = out / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def memory_of(process: subprocess.Popen[bytes]) -> float:
    """Megabytes that a process holds now."""
    pages = Path(f"/proc/{process.pid}/statm").read_text().split()[1]
    return int(pages) * 4096 / 2**20


def in_peace(env: str, steps: int, out: Path) -> Peace:
    """Train to the end; memory at each tenth of the rows."""
    num_envs, num_steps = ENVS[env]
    iterations = -(-steps // (num_envs * num_steps))
    began, process, memory = time.monotonic(), start(env, steps, out), []
    while process.poll() is None:
        if rows_in(out) >= (len(memory) + 1) * iterations // 10 and len(memory) < 10:
            memory.append(round(memory_of(process), 1))
        time.sleep(0.05)
    assert process.returncode == 0, f"{env}: exit code {process.returncode}"
    return Peace(time.monotonic() - began, memory)


def disturbed(env: str, steps: int, out: Path, kills: int, rng: random.Random) -> int:
    """Kill the job at random rows and queue it again until it is done; the kills that struck."""
    num_envs, num_steps = ENVS[env]
    iterations = -(-steps // (num_envs * num_steps))
    struck = 0
    while True:
        process, before = start(env, steps, out), rows_in(out)
        # On average the whole run takes as many parts as there are kills.
        target = before + rng.randint(1, 2 * iterations // kills)
        while process.poll() is None and (struck >= kills or rows_in(out) < target):
            time.sleep(0.01)
        if process.poll() is not None:
            assert process.returncode == 0, f"{env}: exit code {process.returncode}"
            return struck
        process.send_signal(signal.SIGKILL)
        process.wait()
        struck += 1


def state_of(out: Path) -> str:
    """A digest of the last checkpoint's arrays and counters."""
    newest = sorted((out / "checkpoints").glob("step-*"), key=lambda p: (len(p.name), p.name))[-1]
    data = (newest / "arrays.safetensors").read_bytes()
    state = json.loads((newest / "state.json").read_text())
    counters = {key: state[key] for key in ("iteration", "env_steps", "exact")}
    return hashlib.sha256(data).hexdigest() + json.dumps(counters, sort_keys=True)


def timeless(out: Path) -> list[dict[str, Any]]:
    """The rows, without what a clock says."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


def soak(env: str, steps: int, kills: int, folder: Path, seed: int) -> dict[str, Any]:
    """Both runs of one environment, and how they compare."""
    calm, rough = folder / "calm", folder / "rough"
    for old in (calm, rough):
        shutil.rmtree(old, ignore_errors=True)
    peace = in_peace(env, steps, calm)
    struck = disturbed(env, steps, rough, kills, random.Random(seed))
    rows = timeless(rough)
    numbers = [row["iteration"] for row in rows]
    found = {
        "steps": rows[-1]["env_steps"],
        "kills": struck,
        "state_equal": state_of(calm) == state_of(rough),
        "rows_equal": timeless(calm) == rows,
        "rows_complete": numbers == list(range(1, len(numbers) + 1)),
        "left_over": [str(path.name) for path in rough.glob("**/.tmp-*")],
        "seconds_in_peace": round(peace.seconds, 1),
        "memory_mb": peace.memory_mb,
        # The first tenths build programs and fill buffers.
        "memory_growth_mb": round(peace.memory_mb[-1] - peace.memory_mb[2], 1),
    }
    shutil.rmtree(calm)
    shutil.rmtree(rough)
    return found


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--kills", type=int, default=12, help="of each of the two runs")
    parser.add_argument("--share", type=float, default=1.0, help="of the steps, for a trial")
    parser.add_argument("--seed", type=int, default=0, help="of when kills strike")
    parser.add_argument("--json", type=Path, help="where the figures are kept")
    given = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for env, steps in RUNS.items():
            found[env] = soak(env, int(steps * given.share), given.kills, Path(folder), given.seed)
            print(env, json.dumps(found[env]), flush=True)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")
    kept = all(f["state_equal"] and f["rows_equal"] and f["rows_complete"] for f in found.values())
    sys.exit(0 if kept else 1)


if __name__ == "__main__":
    main()
