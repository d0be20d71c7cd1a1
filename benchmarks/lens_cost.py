"""What the lens costs a run: the same iterations with all of its figures and with none of them.

    python -m benchmarks.lens_cost [--pairs 5] [--json FILE]

Both sides train the same run from the same state, alternating; a round is `lens_every` iterations,
so that the dearer figures fall due once in each; a JAX-native round is short and there are eight
times as many. The interval of a median is that of its order statistics. Without the lens nothing
is computed but the update, the critic and the two figures that decide about a step. Compilation is
not counted.
"""

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from scipy import stats

from surefoot import iteration
from surefoot.config import RULES, Critic, Network, Train
from surefoot.distributions import kl
from surefoot.envs import find_env
from surefoot.envs.host import HostEnv
from surefoot.limits import limits_of
from surefoot.presets import settle
from surefoot.steppers import HostStepper, JaxStepper
from surefoot.surrogate import weighted_mean
from surefoot.trained import OwnNetworks, begin

EVERY = limits_of(Train)["lens_every"].default
TASKS = {"HalfCheetah-v5": 1, "gymnax:CartPole-v1": 8}
"""Tasks, with how many times the pairs each has."""


def _bare(policy_fn, old_params, new_params, batch, *, horizon):
    """What remains of the diagnostics: what a run needs to stop in time."""
    old, new = policy_fn(old_params, batch.inputs), policy_fn(new_params, batch.inputs)
    distance = weighted_mean(kl(old, new), batch.weights)
    return {"surrogate/promised_gain": jnp.zeros(()), "policy/kl_mean": distance}


@contextlib.contextmanager
def without_the_lens() -> Iterator[None]:
    """Programs built in here leave the lens's figures out."""
    stands_in: dict[str, Any] = {
        "_look": lambda parts, state, *_: (state.watch.ratio, {}),
        "diagnose": _bare,
        "judge": lambda watch, *_, **__: (watch.ratio, watch.gained, {}),
        "_states_of": lambda parts, state, *_: state.watch.states,
        "fresh_explained_variance": lambda *_: jnp.zeros(()),
        "td_sums": lambda *_: jax.tree.map(jnp.zeros_like, _SUMS["sums"]),
    }
    kept = {name: getattr(iteration, name) for name in stands_in}
    for name, value in stands_in.items():
        setattr(iteration, name, value)
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(iteration, name, value)


_SUMS: dict[str, Any] = {}


class _Side:
    """One of the two sides: a stepper and where it stands."""

    def __init__(self, task: str, rule: str, *, lens: bool):
        given = {"steps": 100_000_000} | ({} if lens else {"lens_every": 0})
        settings = settle(task, RULES[rule](), Train(**given), Network(), Critic())
        run, env = begin(settings, find_env(task, {}), OwnNetworks())
        parts = (run.learner, settings, lambda what: None)
        self.stepper: Any = (
            HostStepper(env, *parts) if isinstance(env, HostEnv) else JaxStepper(*parts)
        )
        _SUMS["sums"], self.state, self._lens = run.state.watch.td, run.state, lens
        self.stepper.reset(0)

    def round(self, iterations: int) -> float:
        """Seconds of an iteration, compilation left out."""
        done, seconds = 0, 0.0
        with contextlib.nullcontext() if self._lens else without_the_lens():
            while done < iterations:
                self.state, rows = self.stepper.advance(self.state)
                done += len(rows)
                seconds += sum(row["time/iteration"] for row in rows)
        return seconds / done


def median_interval(ratios: list[float]) -> tuple[float, float]:
    """The narrowest pair of order statistics that holds the median in at least 95 % of samples.

    Fewer than six cannot: the range, which holds it in 94 % for five.
    """
    ordered, n = sorted(ratios), len(ratios)
    rank = int(stats.binom.ppf(0.025, n, 0.5))
    return ordered[max(rank - 1, 0)], ordered[min(n - rank, n - 1)]


def measure(task: str, rule: str, pairs: int, every: int) -> dict[str, Any]:
    """Time of an iteration with the lens over that without, pair by pair."""
    sides = {lens: _Side(task, rule, lens=lens) for lens in (True, False)}
    times: dict[bool, list[float]] = {True: [], False: []}
    for side in sides.values():
        side.round(2)
    for number in range(pairs):
        for lens in (True, False) if number % 2 == 0 else (False, True):
            times[lens].append(sides[lens].round(every))
    for side in sides.values():
        side.stepper.close()
    ratios = [a / b for a, b in zip(times[True], times[False], strict=True)]
    return {
        "task": task,
        "rule": rule,
        "with_ms": 1e3 * statistics.median(times[True]),
        "without_ms": 1e3 * statistics.median(times[False]),
        "ratio": statistics.median(ratios),
        "interval": [round(end, 4) for end in median_interval(ratios)],
        "ratios": [round(ratio, 4) for ratio in ratios],
    }


def main() -> None:
    """Measure every task and rule, and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    found = []
    for task, times in TASKS.items():
        for rule in ("trpo", "ppo"):
            started = time.monotonic()
            result = measure(task, rule, times * options.pairs, EVERY)
            found.append(result)
            low, high = result["interval"]
            print(
                f"{task} {rule}: {result['without_ms']:.1f} ms an iteration without, "
                f"{result['with_ms']:.1f} with, "
                f"ratio {result['ratio']:.3f} ({low:.3f} to {high:.3f}), "
                f"{time.monotonic() - started:.0f} s",
                flush=True,
            )
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=1)


if __name__ == "__main__":
    main()
