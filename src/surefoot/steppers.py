"""How a run moves on by one chunk of iterations, on the host or inside one program."""

import time
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from surefoot.config import Settings
from surefoot.envs.host import HostEnv
from surefoot.learner import Learner, is_due
from surefoot.loop_state import LoopState
from surefoot.rollout_host import HostCollector

Notice = Callable[[str], None]
"""Called with the name of a program before it is built, which takes seconds."""


class Compiled:
    """A function compiled ahead of time for each shape it meets, with the seconds that took."""

    def __init__(self, function: Callable[..., Any], what: str, compiling: Notice):
        self._function, self._what, self._notice = jax.jit(function), what, compiling
        self._programs: dict[Any, Any] = {}
        self.seconds = 0.0

    def __call__(self, *arguments: Any) -> Any:
        """The function's value; the first call with new shapes builds its program."""
        leaves = jax.tree.leaves(arguments)
        shapes = tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
        if shapes not in self._programs:
            self._notice(self._what)
            started = time.monotonic()
            self._programs[shapes] = self._function.lower(*arguments).compile()
            self.seconds += time.monotonic() - started
        return self._programs[shapes](*arguments)


class Stepper(Protocol):
    """Advances a run by one chunk of iterations."""

    def reset(self, iteration: int) -> None:
        """Start new episodes, where the environments live on the host."""
        ...

    def advance(self, state: LoopState) -> tuple[LoopState, list[dict[str, Any]]]:
        """The state after the chunk, and one row of metrics an iteration."""
        ...

    def close(self) -> None:
        """Let go of the environments."""
        ...


class HostStepper:
    """One iteration a chunk: a rollout stepped by Python, then the compiled learning."""

    def __init__(self, env: HostEnv, learner: Learner, settings: Settings, compiling: Notice):
        self._env, self._settings = env, settings
        self._collector = HostCollector(env, learner.actor, settings)
        self._learn = Compiled(learner.learn, "the update", compiling)
        self._notice, self._warm = compiling, False

    def reset(self, iteration: int) -> None:
        """New episodes everywhere."""
        self._collector.reset(iteration)

    def advance(self, state: LoopState) -> tuple[LoopState, list[dict[str, Any]]]:
        """One rollout and one update."""
        compiled, warming = self._learn.seconds, self._warm_up(state)
        started, iteration = time.monotonic(), int(state.iteration)
        host = self._collector.collect(state.params["policy"], state.obs_stats, iteration)
        before, look = time.monotonic(), np.bool_(is_due(self._settings, iteration))
        state, metrics = self._learn(state, host.rollout, host.episodes, look)
        metrics = jax.device_get(metrics)
        compiling = self._learn.seconds - compiled
        now = time.monotonic()
        row = metrics | _info_means(host.infos, self._settings.train.info_keys)
        row |= {
            "time/env": host.env_seconds,
            "time/policy": host.policy_seconds,
            "time/update": now - before - compiling,
            "time/compile": compiling + warming,
            "time/iteration": now - started - compiling,
        }
        return state, [row]

    def _warm_up(self, state: LoopState) -> float:
        """Compile what acting needs before the first rollout; the seconds that took."""
        if self._warm:
            return 0.0
        started, self._warm = time.monotonic(), True
        self._notice("the policy")
        self._collector.warm_up(state.params["policy"], state.obs_stats)
        return time.monotonic() - started

    def close(self) -> None:
        """Close the environments."""
        self._env.close()


def _info_means(infos: list[dict[str, float]], keys: tuple[str, ...]) -> dict[str, float]:
    """Means of `is_success` and of the chosen keys over the episodes that ended."""
    means = {}
    for key in ("is_success", *keys):
        values = [info[key] for info in infos if key in info]
        if values:
            means[f"episode/{key}"] = sum(values) / len(values)
    return means


class JaxStepper:
    """Several iterations a chunk, collected and learned from in one program."""

    def __init__(self, learner: Learner, settings: Settings, compiling: Notice):
        self._iterations = settings.num_iterations
        self._chunk = chunk_length(settings)
        run = chunk_of(learner, settings, self._chunk)
        self._run = Compiled(run, "the whole iteration", compiling)

    def reset(self, iteration: int) -> None:
        """Nothing: the environments' states are part of the loop's."""

    def advance(self, state: LoopState) -> tuple[LoopState, list[dict[str, Any]]]:
        """As many iterations as the chunk holds and the plan has left."""
        compiled, started = self._run.seconds, time.monotonic()
        count = min(self._chunk, self._iterations - int(state.iteration))
        state, metrics = self._run(state, jnp.int32(count))
        metrics = jax.device_get(metrics)
        compiling = self._run.seconds - compiled
        seconds = (time.monotonic() - started - compiling) / count
        return state, [
            {name: values[i] for name, values in metrics.items()}
            | {"time/iteration": seconds, "time/compile": compiling if i == 0 else 0.0}
            for i in range(count)
        ]

    def close(self) -> None:
        """Nothing to close."""


def chunk_length(settings: Settings) -> int:
    """Iterations of a JAX-native run in one call of its program."""
    return min(settings.train.dispatch, settings.num_iterations)


def chunk_of(
    learner: Learner, settings: Settings, chunk: int
) -> Callable[..., tuple[LoopState, dict[str, Any]]]:
    """`(state, count) -> (state, metrics)`: the first `count` of `chunk` iterations.

    One program serves a full chunk and the last, shorter one, so that both give the same bits.
    """
    assert learner.iterate is not None

    def iterate(state):
        return learner.iterate(state, is_due(settings, state.iteration))  # type: ignore[misc]

    def run(state, count):
        shapes = jax.eval_shape(iterate, state)[1]
        empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

        def step(state, index):
            return jax.lax.cond(index < count, iterate, lambda state: (state, empty), state)

        return jax.lax.scan(step, state, jnp.arange(chunk))

    return run
