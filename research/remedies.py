"""What the guard costs and gains where nothing is wrong: learning tasks with and without.

    python -m research.remedies [--seeds 10] [--only TASK] [--out docs/results/remedies.csv]

Every seed is trained with and without, and compared with itself: the mean return of training
episodes over the whole run (how fast it learned) and over its last tenth (where it ended), and the
final deterministic policy on 20 fresh episodes. Differences are paired by seed, with Student's
95 % interval; shares are of the plain rule's gain over a random policy.
"""

import argparse
import csv
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

import surefoot as sf
from surefoot.formulas.intervals import mean_interval


class Task(NamedTuple):
    """An environment, how long it is trained on, a random policy's return, and settings."""

    env: str
    steps: int
    random: float
    train: dict[str, Any]
    learning_rate: float


TASKS = (
    Task("gymnax:CartPole-v1", 100_000, 21.0, {}, 3e-4),
    Task("gymnax:Acrobot-v1", 100_000, -500.0, {}, 3e-4),
    Task("gymnax:Catch-bsuite", 60_000, -0.55, {}, 3e-4),
    Task("gymnax:Pendulum-v1", 150_000, -1220.0, {"gamma": 0.9}, 1e-3),
)
FIELDS = ("whole", "last_tenth", "final")


def variants(task: Task) -> Iterator[tuple[str, str, Any, sf.Train]]:
    """Rule, name of the variant, the rule's settings and the run's, plain ones first."""
    plain, guarded = sf.Train(**task.train), sf.Train(**task.train, guard=True)
    ppo = sf.PPO(learning_rate=task.learning_rate)
    yield "ppo", "plain", ppo, plain
    yield "ppo", "guard", ppo, guarded
    yield "trpo", "plain", sf.TRPO(), plain
    yield "trpo", "guard", sf.TRPO(), guarded


def scores(task: Task, rule: Any, train: sf.Train, seeds: int) -> dict[str, np.ndarray]:
    """Each seed's three scores."""
    runs = sf.train_many(task.env, rule, seeds=range(seeds), steps=task.steps, train=train)
    found: dict[str, list[float]] = {name: [] for name in FIELDS}
    for run in runs:
        rows = [r for r in run.rows if "episode/return_mean" in r]
        counts = np.array([r["episode/count"] for r in rows], float)
        returns = np.array([r["episode/return_mean"] for r in rows])
        late = np.array([r["iteration"] for r in rows]) > 0.9 * len(run.rows)
        found["whole"].append(float(np.average(returns, weights=counts)))
        found["last_tenth"].append(float(np.average(returns[late], weights=counts[late])))
        found["final"].append(run.evaluate(20)["return_mean"])
    return {name: np.array(values) for name, values in found.items()}


def difference(plain: np.ndarray, other: np.ndarray, random: float) -> dict[str, float]:
    """Mean paired difference and its interval, and the same as shares of the plain gain."""
    found = mean_interval(other - plain)
    assert found is not None  # of several seeds
    gained = float(plain.mean() - random)
    return {
        "difference": found.mean,
        "low": found.low,
        "high": found.high,
        "share": found.mean / gained,
        "share_low": found.low / gained,
        "share_high": found.high / gained,
    }


def main() -> None:
    """Train everything, and write a line for each task, rule, variant and score."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--only", metavar="TASK", default="")
    parser.add_argument("--out", metavar="FILE")
    options = parser.parse_args()
    lines = []
    for task in TASKS:
        if options.only not in task.env:
            continue
        plain: dict[str, dict[str, np.ndarray]] = {}
        for name, variant, rule, train in variants(task):
            started = time.monotonic()
            found = scores(task, rule, train, options.seeds)
            plain.setdefault(name, found)
            for score in FIELDS:
                line = {"env": task.env, "rule": name, "variant": variant, "score": score}
                line |= {"seeds": options.seeds, "mean": float(found[score].mean())}
                if variant != "plain":
                    line |= difference(plain[name][score], found[score], task.random)
                lines.append(
                    {k: round(v, 4) if isinstance(v, float) else v for k, v in line.items()}
                )
            print(lines[-3:], f"{time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    if options.out:
        keys = list(dict.fromkeys(key for line in lines for key in line))
        with open(options.out, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, keys)
            writer.writeheader()
            writer.writerows(lines)


if __name__ == "__main__":
    main()
