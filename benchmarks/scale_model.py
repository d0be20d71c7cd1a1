"""What more devices would bring, from a cost model: `python -m benchmarks.scale_model`.

Every device has the same number of rows, so that the batch grows with the devices. An iteration is
a chain of parts between two sums over all devices; each part takes as long as on the slowest of
them, which is simulated, and each sum as long as a ring or a tree of the links takes. What is
measured and what is assumed is marked at each constant; docs/scale.md says what it means.
"""

import argparse
import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROWS = 65_536
"""Of each device: 512 environments x 128 steps."""
SMALL, LARGE = 9_155, 10_000_000
"""Parameters: two networks of two layers of 64 (CartPole), and a large policy with its critic."""


class Links(NamedTuple):
    """How devices are joined: seconds of a small sum per hop, bytes a second of a large one."""

    latency: float
    bandwidth: float


INSIDE = Links(5e-6, 200e9)
"""Assumed: eight GPUs of one machine over NVLink."""
BETWEEN = Links(10e-6, 25e9)
"""Assumed: a 200 Gbit/s network card for each GPU."""
FLOPS = 200e12
"""Assumed, of large products: about half of an H100's TF32 peak."""
SPREAD = 0.03
"""Assumed: standard deviation of a part's time from device to device, as a share of it."""
SECONDS = {"ppo": 13.3e-3, "trpo": 13.5e-3}
"""Measured on one H200: a whole iteration of 512 CartPoles x 128 steps, the small networks.

`surefoot train gymnax:CartPole-v1 ppo --critic-joint --num-epochs 4 --num-minibatches 4 --num-envs
512 --num-steps 128 --steps 1.5e7 --dispatch 16`, and trpo with a critic of as many passes: the
median of `time/iteration`.
"""
ROLLOUT = 9e-3
"""Of these, what PPO's update of as many rows does not take (4.4 ms): 128 steps one by one."""
SELECTED = 5e9
"""Assumed: numbers a second among which a device finds the largest hundredth."""
FORWARDS = {"gradient": 3.3, "fisher": 1.5, "look": 1.0}
"""Measured, in forward passes over the batch: a gradient, a Fisher product on a quarter of it."""
PASSES, MINIBATCHES, PRODUCTS, TRIES = 4, 4, 10, 2
SCALARS = {"step": 2, "fixed": 20}
"""Counted in the compiled program: small sums of a minibatch of PPO's, for its advantages (a critic
fitted apart has none), and of all figures together."""


def seconds_of_sum(count: int, floats: float) -> float:
    """A sum over `count` devices of so many floats each, as a ring inside and between machines."""
    if count == 1:
        return 0.0
    links = INSIDE if count <= 8 else BETWEEN
    moved = 2 * (count - 1) / count * 4 * floats / links.bandwidth
    return 2 * math.ceil(math.log2(count)) * links.latency + moved


def parts_of(rule: str, params: int) -> tuple[float, int, int]:
    """Seconds of computing on one device, sums of a whole gradient, and small sums."""
    steps = PASSES * MINIBATCHES
    if rule == "ppo":  # policy and critic in one descent
        vectors, scalars = steps, SCALARS["step"] * steps
        forwards = PASSES * FORWARDS["gradient"] + 3 * FORWARDS["look"]
    else:  # the policy's natural step, then the critic's descent: half of the parameters each
        vectors = 1 + PRODUCTS + steps
        scalars = PRODUCTS + 2 * TRIES
        own = FORWARDS["gradient"] + PRODUCTS * FORWARDS["fisher"] + (2 + TRIES) * FORWARDS["look"]
        forwards = (own + PASSES * FORWARDS["gradient"] + FORWARDS["look"]) / 2
    scalars += SCALARS["fixed"]
    forwards += FORWARDS["look"]  # of the rollout
    computing = ROLLOUT + forwards * 2 * params * ROWS / FLOPS
    if params == SMALL:
        computing = SECONDS[rule]
    return computing, vectors, scalars


def seconds_of_figures(count: int) -> float:
    """What the worst hundredth of the states' KL takes beyond one device: every row's is read."""
    if count == 1:
        return 0.0
    links, rows = INSIDE if count <= 8 else BETWEEN, (count - 1) * ROWS
    return 4 * rows / links.bandwidth + rows / SELECTED


def predict(rule: str, params: int, count: int) -> dict[str, float]:
    """An iteration's milliseconds on so many devices, and what of it is not computing."""
    computing, vectors, scalars = parts_of(rule, params)
    size = params if rule == "ppo" else params / 2
    summing = vectors * seconds_of_sum(count, size) + scalars * seconds_of_sum(count, 1)
    figures = seconds_of_figures(count)
    parts = vectors + scalars
    rng = np.random.default_rng(0)
    slowest = np.max(rng.normal(1.0, SPREAD, (200, min(parts, 60), count)), axis=-1).mean()
    waiting = computing * (slowest - 1.0)
    total = computing + summing + waiting + figures
    return {
        "milliseconds": 1e3 * total,
        "summing": summing / total,
        "figures": figures / total,
        "waiting": waiting / total,
        "efficiency": computing / total,
        "million_steps_per_second": count * ROWS / total / 1e6,
        "sums_of_a_gradient": vectors,
        "small_sums": scalars,
        "megabytes": 2 * vectors * 4 * size / 1e6,
    }


def main() -> None:
    """Print the tables of docs/scale.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = {
        f"{rule}, {params:,} parameters, {count} devices": predict(rule, params, count)
        for params in (SMALL, LARGE)
        for rule in ("ppo", "trpo")
        for count in (1, 8, 64, 1024)
    }
    for name, row in found.items():
        print(
            f"| {name} | {row['milliseconds']:.1f} | {row['summing']:.0%} | {row['figures']:.0%} | "
            f"{row['waiting']:.0%} | {row['efficiency']:.0%} | "
            f"{row['million_steps_per_second']:,.0f} |"
        )
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
