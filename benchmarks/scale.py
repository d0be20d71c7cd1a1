"""What more processes bring: two ranks against one, two environment actors against one.

    python -m benchmarks.scale ranks --json docs/results/scale_ranks.json
    python -m benchmarks.scale actors --json docs/results/scale_actors.json
    python -m benchmarks.scale sums --json docs/results/scale_sums.json

`ranks` trains gymnax:CartPole-v1 with 256 environments x 128 steps in all: one process pinned to
one core against two processes pinned to a core each, one process with two devices on both cores,
and two runs that have nothing to do with each other, a core each: what two of these cores are worth
(two threads of one physical core are not two). In turn, round by round. `actors` trains
HalfCheetah-v5 with one and with two actors and compares what they collect a second. `sums` times a
mean over two processes, and counts those of one update. Nothing else should be running.
"""

import argparse
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

ROUNDS = 3
TASK = ["gymnax:CartPole-v1", "--num-envs", "256", "--num-steps", "128", "--dispatch", "4"]
RULES = {
    "ppo, 4 passes of 4 minibatches": [
        *("ppo", "--critic-joint", "--num-epochs", "4", "--num-minibatches", "4"),
    ],
    "trpo, own settings": ["trpo"],
    "trpo, critic of 4 passes of 4 minibatches": [
        *("trpo", "--critic-num-epochs", "4", "--critic-num-minibatches", "4"),
    ],
}


def start(words: list[str], core: int | None, out: Path, **variables: str) -> subprocess.Popen:
    """A training run in a process of its own, on one core or on all."""
    pin = None if core is None else (lambda: os.sched_setaffinity(0, {core}))
    command = [sys.executable, "-m", "surefoot", "train", *words, "--out", str(out), "--json"]
    return subprocess.Popen(
        command, env=os.environ | variables, preexec_fn=pin, stdout=subprocess.DEVNULL
    )


def rows_of(out: Path) -> list[dict[str, Any]]:
    """The rows of a run, but the first third."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return rows[len(rows) // 3 :]


def steps_per_second(out: Path) -> float:
    """Of the median iteration, compilation left out."""
    rows = rows_of(out)
    return 256 * 128 / statistics.median(row["time/iteration"] for row in rows)


def trained(words: list[str], how: str, out: Path, cores: tuple[int, int]) -> float:
    """Steps a second of one run: `one` core, `ranks` on a core each, or two `devices`."""
    words = [*TASK, *words, "--steps", "1e6"]
    if how == "one":
        processes = [start(words, cores[0], out)]
    elif how == "apart":
        processes = [start(words, core, out.with_name(f"run-{core}")) for core in cores]
        assert [process.wait() for process in processes] == [0, 0]
        return sum(steps_per_second(out.with_name(f"run-{core}")) for core in cores)
    elif how == "devices":
        processes = [start([*words, "--devices", "2"], None, out)]
    else:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            where = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free.getsockname()[1]}"}
        where["JAX_NUM_PROCESSES"] = "2"
        processes = [
            start([*words, "--cluster", "auto"], core, out, JAX_PROCESS_ID=str(rank), **where)
            for rank, core in enumerate(cores)
        ]
    assert [process.wait() for process in processes] == [0] * len(processes)
    return steps_per_second(out)


def compare_ranks(only: str, cores: tuple[int, int]) -> dict[str, Any]:
    """Throughputs in turn, and the ratios of neighbours."""
    found: dict[str, Any] = {}
    for name, words in RULES.items():
        if only not in name:
            continue
        rates: dict[str, list[float]] = {"one": [], "ranks": [], "devices": [], "apart": []}
        for _ in range(ROUNDS):
            for how, seen in rates.items():
                with tempfile.TemporaryDirectory() as folder:
                    seen.append(trained(words, how, Path(folder) / "run", cores))
        against = {
            how: statistics.median(b / a for a, b in zip(rates["one"], rates[how], strict=True))
            for how in ("ranks", "devices", "apart")
        }
        found[name] = {"steps_per_second": rates, "against_one_core": against}
        print(name, json.dumps(found[name]), flush=True)
    return found


def compare_actors() -> dict[str, Any]:
    """What one and two environment actors collect a second, in turn."""
    rates: dict[str, list[float]] = {"1": [], "2": []}
    for _ in range(ROUNDS):
        for workers, seen in rates.items():
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "run"
                words = ["HalfCheetah-v5", "ppo", "--steps", "61440", "--env-workers", workers]
                assert start(words, None, out).wait() == 0
                taken = [row["time/iteration"] - row["time/update"] for row in rows_of(out)]
                seen.append(2048 / statistics.median(taken))
    ratios = [b / a for a, b in zip(rates["1"], rates["2"], strict=True)]
    return {"steps_per_second": rates, "two_against_one": statistics.median(ratios)}


MEAN = """
import sys, time, jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from surefoot.parallel.rows import AXIS
from surefoot.parallel.rendezvous import join_cluster
mesh = join_cluster().placement.mesh
for size in (1, 100, 1_000, 10_000, 100_000, 1_000_000):
    spread = NamedSharding(mesh, P(AXIS))
    x = jax.make_array_from_callback((2, size), spread, lambda i: np.ones((1, size), np.float32))
    def means(x):
        one = lambda c, _: (jnp.mean(x * c, 0), None)
        return jax.lax.scan(one, jnp.ones(size), None, length=200)[0]
    program = jax.jit(means)
    taken = []
    for _ in range(6):
        began = time.perf_counter()
        jax.block_until_ready(program(x))
        taken.append((time.perf_counter() - began) / 200)
    if jax.process_index() == 0:
        print(size, sorted(taken[1:])[2] * 1e3, flush=True)
"""


def time_sums() -> dict[str, Any]:
    """Milliseconds of a mean over two processes by its floats, and how many sums an update has."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free.getsockname()[1]}"}
    where |= {"JAX_NUM_PROCESSES": "2"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", MEAN],
            env=os.environ | where | {"JAX_PROCESS_ID": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    lines = ranks[0].communicate()[0].splitlines()
    ranks[1].wait()
    means = {line.split()[0]: float(line.split()[1]) for line in lines if line[:1].isdigit()}
    return {"milliseconds": means, "sums_of_an_update": {rule: sums_of(rule) for rule in RULES}}


def sums_of(rule: str) -> dict[str, int]:
    """Collective operations in the program of one iteration, each loop's body counted once."""
    script = (
        "import jax; jax.config.update('jax_num_cpu_devices', 2)\n"
        "import sys, numpy as np, argparse\n"
        "from surefoot.cli.parser import main\n"
        "from surefoot.training import steppers\n"
        "good = steppers.Compiled.program\n"
        "def program(self, *arguments):\n"
        "    print(good(self, *arguments).as_text()); raise SystemExit\n"
        "steppers.Compiled.program = program\n"
        "main(sys.argv[1:])\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        words = ["train", *TASK, *RULES[rule], "--devices", "2", "--dispatch", "1"]
        text = subprocess.run(
            [sys.executable, "-c", script, *words, "--out", folder + "/run"],
            capture_output=True,
            text=True,
        ).stdout
    kinds = re.findall(r"= .*? (all-reduce|all-gather|all-to-all|collective-permute)\(", text)
    return dict(Counter(kinds))


def main() -> None:
    """Run one of the comparisons."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["ranks", "actors", "sums"])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", default="", help="ranks: rules with this in their name")
    parser.add_argument("--cores", type=int, nargs=2, default=(0, 1), help="ranks: pin to these")
    options = parser.parse_args()
    ranks = partial(compare_ranks, options.only, tuple(options.cores))
    do = {"ranks": ranks, "actors": compare_actors, "sums": time_sums}
    found = do[options.what]()
    print(json.dumps(found, indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
