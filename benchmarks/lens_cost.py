"""What the lens costs a run: the same iterations with all of its figures and with none of them.

    python -m benchmarks.lens_cost [--pairs 200] [--json FILE]

Three sides train the same run, a call of their program each in turn, so that a busy minute of the
machine strikes all alike: without the lens, with what it computes every update, and, one turn in
eight, with the expensive figures too, whose extra is then spread over `lens_every` updates. A call
is one iteration on the host and ten of a JAX-native run, timed after compilation. Intervals are of
medians, by their order statistics. Without the lens nothing is computed but the update, the critic
and the two figures that decide about a step.
"""

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp
from scipy import stats

from surefoot.config.presets import preset, settle
from surefoot.config.settings import OwnNetworks, Train
from surefoot.config.validation import limits_of
from surefoot.diagnostics.lens import LensState
from surefoot.envs.registry import find_env
from surefoot.formulas.distributions import kl
from surefoot.formulas.surrogate import weighted_mean
from surefoot.training import inspect
from surefoot.training.callback import Callback
from surefoot.training.rollout_host import HostCollector
from surefoot.training.run import begin
from surefoot.training.steppers import HostStepper, JaxStepper, Stepper

EVERY = limits_of(Train)["lens_every"].default
TASKS = ("HalfCheetah-v5", "gymnax:CartPole-v1")
SIDES = ("without", "each", "all")
TURNS_TO_ALL = 8


def _bare(policy_fn, old_params, new_params, batch):
    """What remains of the diagnostics: what a run needs to stop in time."""
    old, new = policy_fn(old_params, batch.inputs), policy_fn(new_params, batch.inputs)
    distance = weighted_mean(kl(old, new), batch.weights)
    return {"surrogate/promised_gain": jnp.zeros(()), "policy/kl_mean": distance}


@contextlib.contextmanager
def without_the_lens(lens: LensState) -> Iterator[None]:
    """Programs built in here leave the lens's figures out, and keep what it remembers."""
    stands_in: dict[str, Any] = {
        "diagnose": _bare,
        "judge_update": lambda lens, *_, **__: (lens, {}),
        "_some_states": lambda *_: jax.tree.map(jnp.zeros_like, lens.states),
        "fresh_explained_variance": lambda *_: jnp.zeros(()),
        "td_sums": lambda *_: jax.tree.map(jnp.zeros_like, lens.td),
    }
    with contextlib.ExitStack() as stack:
        for name, value in stands_in.items():
            stack.enter_context(patch.object(inspect, name, value))
        yield


class _Side:
    """One of the sides: a stepper and where it stands."""

    def __init__(self, task: str, rule: str, name: str):
        source = find_env(task, {})
        # The expensive figures come once a call, which is a chunk of a JAX-native run.
        each_call = 1 if source.jax_env is None else limits_of(Train)["dispatch"].default
        fields = {"steps": 100_000_000, "lens_every": each_call if name == "all" else 0}
        settings = settle(task, preset(task, rule), changes={"train": fields})
        run, env = begin(settings, source, OwnNetworks())
        parts = (run.learner, settings, Callback())
        self._env = env
        self._stepper: Stepper = env.visit(
            jax=lambda _: JaxStepper(*parts),
            host=lambda env: HostStepper(HostCollector(env, run.learner.actor, settings), *parts),
        )
        self.iterations, self._state, self._lens = each_call, run.state, name != "without"
        self._stepper.reset(0)

    def turn(self) -> float:
        """Seconds of an iteration in the next call of the program."""
        with contextlib.nullcontext() if self._lens else without_the_lens(self._state.lens):
            self._state, rows = self._stepper.advance(self._state)
        return statistics.mean(row["time/iteration"] for row in rows)

    def close(self) -> None:
        """Close the environments."""
        self._env.close()


def median_interval(values: list[float]) -> tuple[float, float]:
    """The narrowest pair of order statistics that holds the median in at least 95 % of samples.

    Fewer than six cannot: the range, which holds it in 94 % for five.
    """
    ordered, n = sorted(values), len(values)
    rank = int(stats.binom.ppf(0.025, n, 0.5))
    return ordered[max(rank - 1, 0)], ordered[min(n - rank, n - 1)]


def measure(task: str, rule: str, pairs: int) -> dict[str, Any]:
    """Time of an iteration with the lens over that without, turn by turn."""
    sides = {name: _Side(task, rule, name) for name in SIDES}
    for side in sides.values():
        for _ in range(3):
            side.turn()
    times, extras = [], []
    for number in range(pairs):
        order = ["without", "each"] if number % 2 == 0 else ["each", "without"]
        if number % TURNS_TO_ALL == 0:
            order.append("all")
        took = {name: sides[name].turn() for name in order}
        times.append((took["without"], took["each"]))
        if "all" in took:
            extras.append((took["all"] - took["each"]) / took["without"])
    for side in sides.values():
        side.close()
    # The expensive figures fall due once in EVERY updates, and came once a call.
    extra = statistics.median(extras) * sides["all"].iterations / EVERY
    ratios = [each / without for without, each in times]
    return {
        "task": task,
        "rule": rule,
        "without_ms": 1e3 * statistics.median(without for without, _ in times),
        "ratio": statistics.median(ratios) + extra,
        "interval": [round(end + extra, 4) for end in median_interval(ratios)],
        "of_expensive_figures": extra,
        "pairs": pairs,
    }


def main() -> None:
    """Measure every task and rule, and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    found = []
    for task in TASKS:
        for rule in ("trpo", "ppo"):
            started = time.monotonic()
            result = measure(task, rule, options.pairs)
            found.append(result)
            low, high = result["interval"]
            print(
                f"{task} {rule}: {result['without_ms']:.1f} ms an iteration without, "
                f"ratio {result['ratio']:.3f} ({low:.3f} to {high:.3f}), "
                f"of it {result['of_expensive_figures']:.4f} the expensive figures, "
                f"{time.monotonic() - started:.0f} s",
                flush=True,
            )
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=1)


if __name__ == "__main__":
    main()
