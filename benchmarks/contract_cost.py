"""`python -m benchmarks.contract_cost`: what looking at everything an environment gives costs.

Two collectors of the same environments take turns: one as it is, one whose looks are taken out
(shapes, dtypes, finiteness, bounds, the record for a replay, the limit of a step's time). Whole
rollouts, calls of the policy included; a ratio is of two neighbours.
"""

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import jax

from surefoot.config.presets import preset, settle
from surefoot.envs.host import EnvLimits
from surefoot.envs.registry import find_env
from surefoot.networks.actor_critic import build
from surefoot.training.learner import Learner
from surefoot.training.rollout_host import HostCollector

ENVS = ("HalfCheetah-v5", "CartPole-v1")


@contextlib.contextmanager
def unlooked() -> Iterator[None]:
    """Everything that is looked at, passed over."""
    passed: dict[str, Any] = {
        "surefoot.envs.contract.ObsContract.__call__": lambda self, obs: obs,
        "surefoot.envs.host.check_finite": lambda *_: None,
        "surefoot.envs.action_log.ActionLog.add": lambda *_: None,
        "surefoot.envs.host.HostEnv.count_outside": lambda *_: (0, ""),
        "surefoot.envs.host.HostEnv._guarded": lambda self, call, *given: call(*given),
    }
    with contextlib.ExitStack() as stack:
        for name, instead in passed.items():
            stack.enter_context(patch(name, instead))
        yield


def compare(env: str, pairs: int) -> dict[str, Any]:
    """Milliseconds of a rollout with and without, and their ratio pair by pair."""
    groups = preset(env, "ppo", "none")
    settings = settle(env, groups, changes={"train": {"vectorization": "sync"}})
    limits, num_envs = EnvLimits.from_settings(settings.train), settings.train.num_envs
    opened = find_env(env, {}).open(num_envs, seed=0, limits=limits)
    learner = Learner(settings, opened.spec, build(opened.spec, settings.network))
    state = jax.jit(learner.init)(0)
    collector = HostCollector(opened, learner.actor, settings)
    collector.reset(0)

    def seconds() -> float:
        began = time.thread_time()
        collector.collect(state.learn.params["policy"], state.learn.obs_stats, 0)
        return time.thread_time() - began

    seconds(), seconds()
    looked, passed = [], []
    for pair in range(pairs):
        for here in (True, False) if pair % 2 else (False, True):
            with contextlib.nullcontext() if here else unlooked():
                (looked if here else passed).append(seconds())
    opened.close()
    fastest = [statistics.mean(sorted(times)[: pairs // 4]) for times in (looked, passed)]
    return {
        "with_ms": round(1e3 * fastest[0], 2),
        "without_ms": round(1e3 * fastest[1], 2),
        "ratio": round(fastest[0] / fastest[1], 4),
    }


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.contract_cost", description=__doc__)
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--json", type=Path, help="where the figures are kept")
    given = parser.parse_args()
    found = {}
    for env in ENVS:
        found[env] = compare(env, given.pairs)
        print(env, found[env], flush=True)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
