"""Where an iteration's time goes, part by part, and what TRPO's update costs beside PPO's.

    python -m benchmarks.parts [--env HalfCheetah-v5] [--repeats 30] [--json FILE]

A rollout of 8 x 256 is collected once; each part of what follows is a program of its own, and is
run on that rollout again and again, the parts in turns. Unit costs come with operations as XLA
counts them, in forward passes of the policy over the batch. PPO makes 10 epochs of 32 minibatches
with its critic inside, TRPO as many with a critic of its own, and beside that its own settings.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.flatten_util import ravel_pytree

from surefoot.config.presets import Tables, preset, settle
from surefoot.config.settings import OwnNetworks
from surefoot.diagnostics.groups import groups_of
from surefoot.diagnostics.update_stats import diagnose
from surefoot.envs.registry import find_env
from surefoot.formulas.conjugate_gradient import fisher_vector_product, quadratic_form
from surefoot.rules.base import reference
from surefoot.rules.critic import fit_critic
from surefoot.rules.natural_step import objective
from surefoot.training.batch import state_values
from surefoot.training.learn import read_rollout
from surefoot.training.rollout_host import HostCollector
from surefoot.training.run import begin

DISAGREE = 1.5
"""A median is not reported where the third quartile is so many times the first."""


class Bench:
    """A run of one rule, its rollout, and the parts of its iteration as programs."""

    def __init__(self, env_id: str, rule: str, changes: Tables, *, num_steps: int = 256):
        train = {"num_envs": 8, "num_steps": num_steps, "steps": 10_000_000}
        self.settings = settle(env_id, preset(env_id, rule), changes={"train": train, **changes})
        run, env = begin(self.settings, find_env(env_id, {}), OwnNetworks())
        self.learner, self.state, self.parts = run.learner, run.state, run.learner.parts
        collector = env.visit(
            host=lambda env: HostCollector(env, self.learner.actor, self.settings),
            jax=lambda _: None,
        )
        assert collector is not None, f"{env_id} is not stepped by Python"
        self.collector, self.close = collector, env.close
        self.collector.reset(0)
        self.rollout = self.collect().rollout
        self.batch = self.values()()[0]

    def collect(self) -> Any:
        """One rollout."""
        return self.collector.collect(
            self.state.learn.params["policy"], self.state.learn.obs_stats, 0
        )

    def update(self) -> Callable[[], Any]:
        """The rule's update alone: of the policy, and of the critic where that is joint."""
        params = self.state.learn.params if self.parts.joint else self.state.learn.params["policy"]
        run = jax.jit(self.parts.rule.update)
        return lambda: run(self.state.learn.rule, params, self.batch, jax.random.key(0))

    def critic(self) -> Callable[[], Any]:
        """The critic's own fit."""
        network, settings = self.parts.network, self.settings
        run = jax.jit(
            lambda state, params, batch, key: fit_critic(
                settings.critic,
                lambda critic, inputs: network.value({"critic": critic}, inputs),
                self.parts.num_updates,
                *(state, params, batch, key),
                self.parts.rows,
            )
        )
        critic = self.state.learn.params["critic"]
        return lambda: run(self.state.learn.critic, critic, self.batch, jax.random.key(0))

    def whole(self) -> Callable[[], Any]:
        """Everything between two rollouts."""
        episodes = self.collect().episodes
        run = jax.jit(self.learner.learn)
        return lambda: run(self.state, self.rollout, episodes)

    def values(self) -> Callable[[], Any]:
        """The critic's values, the advantages and the targets."""
        run = jax.jit(lambda state, rollout: read_rollout(self.parts, state, rollout))
        return lambda: run(self.state.learn, self.rollout)

    def diagnosis(self) -> Callable[[], Any]:
        """What the update did, on its own batch."""
        run = jax.jit(
            lambda params, batch: diagnose(self.parts.network.policy, params, params, batch)
        )
        return lambda: run(self.state.learn.params["policy"], self.batch)

    def judgement(self) -> Callable[[], Any]:
        """The old critic's look at the new rollout."""
        run = jax.jit(
            lambda state, rollout: (
                state_values(
                    self.parts.actor, state.params, state.obs_stats, rollout, self.parts.rows
                ),
                groups_of(rollout),
            )
        )
        return lambda: run(self.state.learn, self.rollout)

    def units(self) -> dict[str, Any]:
        """Unit costs of the policy on the batch, as functions to be timed."""
        policy, params = self.parts.network.policy, self.state.learn.params["policy"]
        config = self.settings.rule
        flat, unravel = ravel_pytree(params)
        batch = reference(config, policy, params, self.batch)[1]
        quarter = jax.tree.map(lambda leaf: leaf[: len(batch.weights) // 4], batch.inputs)
        weights = batch.weights[: len(batch.weights) // 4]

        def product(vector, inputs, weights):
            return ravel_pytree(
                fisher_vector_product(policy, params, inputs, weights)(unravel(vector))
            )[0]

        named: dict[str, Callable[..., Any]] = {
            "forward": lambda x: jax.tree.leaves(policy(unravel(x), batch.inputs)),
            "gradient": jax.grad(
                lambda x: objective(config, policy(unravel(x), batch.inputs), batch)
            ),
            "fisher product, linearised each time": lambda x: product(
                x, batch.inputs, batch.weights
            ),
            "the same on a quarter of the states": lambda x: product(x, quarter, weights),
            "curvature, forward mode": lambda x: quadratic_form(
                policy, params, batch.inputs, batch.weights, unravel(x)
            ),
        }
        return {
            name: jax.jit(function).lower(flat).compile() for name, function in named.items()
        } | {"flat": flat}


def seconds_of(functions: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Each function's seconds, in turns; the first call of each is not counted."""
    found: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(repeats + 1):
        for name, function in functions.items():
            before = time.perf_counter()
            jax.block_until_ready(function())
            if turn:
                found[name].append(time.perf_counter() - before)
    return found


def middle(times: list[float]) -> tuple[float, float, float]:
    """First quartile, median and third quartile, in milliseconds."""
    low, mid, high = statistics.quantiles([1e3 * t for t in times], n=4)
    return low, mid, high


def show(title: str, times: dict[str, list[float]]) -> dict[str, Any]:
    """Print a block; the medians that can be trusted."""
    print(f"\n{title}")
    found = {}
    for name, each in times.items():
        low, mid, high = middle(each)
        unsure = high > DISAGREE * low
        note = "  (runs disagree: not reported)" if unsure else ""
        print(f"  {name:42s} {mid:8.2f} ms  ({low:.2f} to {high:.2f}){note}", flush=True)
        found[name] = None if unsure else round(mid, 3)
    return found


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parts", description=__doc__)
    parser.add_argument("--env", default="HalfCheetah-v5")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    passes = {"num_epochs": 10, "num_minibatches": 32}
    ppo = Bench(given.env, "ppo", {"rule": passes, "critic": {"joint": True}})
    trpo = Bench(given.env, "trpo", {"critic": passes})
    default = Bench(given.env, "trpo", {})
    alone = Bench(given.env, "ppo", {"rule": passes, "critic": passes})
    parts = {
        "rollout (environment and policy)": ppo.collect,
        "values and advantages": ppo.values(),
        "the old critic's look at the rollout": ppo.judgement(),
        "diagnosis of the update": ppo.diagnosis(),
        "ppo: policy and critic, joint": ppo.update(),
        "ppo: policy alone": alone.update(),
        "trpo: policy": trpo.update(),
        "trpo: critic, as many passes as ppo": trpo.critic(),
        "trpo: critic, own settings": default.critic(),
        "ppo: all between two rollouts": ppo.whole(),
        "trpo: all, as many passes as ppo": trpo.whole(),
        "trpo: all, own settings": default.whole(),
    }
    results = {"parts_ms": show("parts of an iteration, 8 x 256", seconds_of(parts, given.repeats))}
    host = ppo.collect()
    spent = f"environment {host.env_seconds:.3f} s, policy {host.policy_seconds:.3f} s"
    print(f"  of the rollout: {spent}")
    units = default.units()
    flat = units.pop("flat")
    timed = {name: (lambda f=function: f(flat)) for name, function in units.items()}
    results["units_ms"] = show("unit costs of the policy", seconds_of(timed, 10 * given.repeats))
    flops = {name: function.cost_analysis().get("flops", 0.0) for name, function in units.items()}
    results["units_operations"] = {k: round(v / flops["forward"], 2) for k, v in flops.items()}
    print("  operations, in forward passes: " + json.dumps(results["units_operations"]))
    ms = results["parts_ms"]
    print("\nTRPO beside PPO (10 epochs x 32)")
    results["trpo_over_ppo"] = {}
    for what, one, other in (
        ("policy part", "trpo: policy", "ppo: policy alone"),
        (
            "whole, equal critic passes",
            "trpo: all, as many passes as ppo",
            "ppo: all between two rollouts",
        ),
        ("whole, own settings", "trpo: all, own settings", "ppo: all between two rollouts"),
    ):
        ratio = ms[one] / ms[other] if ms[one] and ms[other] else None
        results["trpo_over_ppo"][what] = ratio and round(ratio, 3)
        print(f"  {what:42s} {'not reported' if ratio is None else f'{ratio:.2f}'}")
    if given.json:
        given.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
