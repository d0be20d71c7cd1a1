"""How a run moves on by one chunk of iterations, on the host or inside one program."""

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from surefoot.config.settings import Settings
from surefoot.parallel.mesh import ONE, Placement
from surefoot.training.learner import Learner, is_due
from surefoot.training.memory import return_memory
from surefoot.training.rollout_host import Collector
from surefoot.training.state import ENV_FIELDS, LoopState
from surefoot.types import Params, Rollout

SEEDS = "seed"
"""The axis of a mesh that whole runs are shared out along."""
Notice = Callable[[str], None]
"""Called with the name of a program before it is built, which takes seconds."""


class Compiled:
    """A function compiled ahead of time for each shape it meets, with the seconds that took.

    Where there is a placement, it gives a state and figures.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        what: str,
        compiling: Notice,
        placement: Placement = ONE,
    ):
        self._function = jax.jit(function, **placement.of_outputs(LoopState, ENV_FIELDS))
        self._placement = placement
        self._what, self._notice = what, compiling
        self._programs: dict[Any, Any] = {}
        self.seconds = 0.0

    def __call__(self, *arguments: Any) -> Any:
        """The function's value; the first call with new shapes builds its program."""
        return self.program(*arguments)(*arguments)

    def program(self, *arguments: Any) -> Any:
        """The program for arguments of these shapes."""
        leaves = jax.tree.leaves(arguments)
        shapes = tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
        if shapes not in self._programs:
            self._notice(self._what)
            started = time.monotonic()
            with self._placement.scope():
                self._programs[shapes] = self._function.lower(*arguments).compile()
            return_memory()
            self.seconds += time.monotonic() - started
        return self._programs[shapes]


class Stepper(Protocol):
    """Advances a run by one chunk of iterations."""

    def reset(self, iteration: int) -> None:
        """Start new episodes, where the environments live on the host."""
        ...

    def advance(self, state: LoopState) -> tuple[LoopState, list[dict[str, Any]]]:
        """The state after the chunk, and one row of metrics an iteration."""
        ...

    def last_rollout(self, state: LoopState) -> Rollout:
        """What the update before this state learned from, or the like of it."""
        ...


class HostStepper:
    """One iteration a chunk: a rollout stepped by Python, then the compiled learning."""

    def __init__(
        self,
        collector: Collector,
        learner: Learner,
        settings: Settings,
        compiling: Notice,
        placement: Placement = ONE,
    ):
        self._collector, self._settings, self._placement = collector, settings, placement
        self._learn = Compiled(learner.learn, "the update", compiling, placement)
        self._notice, self._warm = compiling, False

    def reset(self, iteration: int) -> None:
        """New episodes everywhere."""
        self._collector.reset(iteration)

    def advance(self, state: LoopState) -> tuple[LoopState, list[dict[str, Any]]]:
        """One rollout and one update."""
        compiled, warming = self._learn.seconds, self._warm_up(state)
        started, iteration = time.monotonic(), int(state.iteration)
        host = self._collector.collect(*self._acting(state), iteration)
        self._rollout = host.rollout
        before, look = time.monotonic(), np.bool_(is_due(self._settings, iteration))
        rollout, episodes = self._placement.put_rollout(host.rollout, host.episodes)
        state = self._placement.put_state(state, ENV_FIELDS)
        state, metrics = self._learn(state, rollout, episodes, look)
        metrics = jax.device_get(metrics)
        compiling = self._learn.seconds - compiled
        now = time.monotonic()
        row = metrics | _info_means(host.infos, self._settings.train.info_keys)
        row |= {
            "env/outside": host.outside,
            **self._collector.figures,
            "time/env": host.env_seconds,
            "time/policy": host.policy_seconds,
            "time/update": now - before - compiling,
            "time/compile": compiling + warming,
            "time/iteration": now - started - compiling,
        }
        return state, [row]

    def last_rollout(self, state: LoopState) -> Rollout:
        """The last one that was collected."""
        return self._rollout

    def _warm_up(self, state: LoopState) -> float:
        """Compile what acting needs before the first rollout; the seconds that took."""
        if self._warm:
            return 0.0
        started, self._warm = time.monotonic(), True
        self._notice("the policy")
        self._collector.warm_up(*self._acting(state))
        return time.monotonic() - started

    def _acting(self, state: LoopState) -> tuple[Params, Any]:
        """What acting needs, on one device: a step's few observations are not worth more."""
        return self._placement.here((state.params["policy"], state.obs_stats))


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

    def __init__(
        self,
        learner: Learner,
        settings: Settings,
        compiling: Notice,
        placement: Placement = ONE,
    ):
        self._iterations, self._placement = settings.num_iterations, placement
        self._chunk = chunk_length(settings)
        run = chunk_of(learner, settings, self._chunk)
        self._run = Compiled(run, "the whole iteration", compiling, placement)
        self._collect = learner.collect

    def reset(self, iteration: int) -> None:
        """Nothing: the environments' states are part of the loop's."""

    def last_rollout(self, state: LoopState) -> Rollout:
        """The one that comes next: those before it stayed inside the program."""
        assert self._collect is not None
        with self._placement.scope():
            return self._placement.whole(jax.jit(self._collect)(state)[1])

    def advance(self, state: LoopState) -> tuple[LoopState, list[dict[str, Any]]]:
        """As many iterations as the chunk holds and the plan has left."""
        compiled, started = self._run.seconds, time.monotonic()
        iteration = int(state.iteration)
        count = min(self._chunk, self._iterations - iteration)
        state = self._placement.put_state(state, ENV_FIELDS)
        state, metrics = self._run(state, np.int32(iteration), np.int32(count))
        metrics = jax.device_get(metrics)
        compiling = self._run.seconds - compiled
        seconds = (time.monotonic() - started - compiling) / count
        return state, _rows(metrics, count, seconds, compiling)


class Together:
    """Runs that differ in their seeds alone, in one program, each with a stepper of its own.

    The runs go in step: the first stepper that is asked for a chunk moves all of them on. Whole
    runs are shared out among the `devices`, which have nothing to tell each other.
    """

    def __init__(
        self,
        learner: Learner,
        settings: Settings,
        states: Sequence[LoopState],
        compiling: Notice,
        devices: int = 1,
    ):
        self._iterations = settings.num_iterations
        self._chunk = chunk_length(settings)
        run = jax.vmap(chunk_of(learner, settings, self._chunk), in_axes=(0, None, None))
        if devices > 1:
            mesh = Mesh(np.asarray(jax.local_devices()[:devices]), (SEEDS,))
            each = PartitionSpec(SEEDS)
            shared = {"in_specs": (each, PartitionSpec(), PartitionSpec()), "out_specs": each}
            run = jax.shard_map(run, mesh=mesh, check_vma=False, **shared)
        self._run = Compiled(run, f"the whole iteration of {len(states)} seeds", compiling)
        self._collect = learner.collect
        # Where they do not come out even, the last run is there more than once.
        spare = -len(states) % devices
        several = [*states, *[states[-1]] * spare]
        self._states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *several)
        self._take = jax.jit(lambda states, i: jax.tree.map(lambda leaf: leaf[i], states))
        self._iteration, self._rows = int(states[0].iteration), [[]] * len(states)
        self._told = 0.0  # of the seconds of compiling
        self.steppers = [_Seat(self, i) for i in range(len(states))]

    @property
    def program(self) -> Any:
        """The compiled program of a chunk."""
        return self._run.program(self._states, jnp.int32(0), jnp.int32(0))

    def chunk_of(self, position: int, iteration: int) -> tuple[LoopState, list[dict[str, Any]]]:
        """One run's state and rows behind the chunk that starts at an iteration."""
        if iteration == self._iteration:
            self._advance()
        return self._take(self._states, position), self._rows[position]

    def rollout(self, state: LoopState) -> Rollout:
        """A rollout of one of the runs."""
        assert self._collect is not None
        return jax.jit(self._collect)(state)[1]

    def _advance(self) -> None:
        count = min(self._chunk, self._iterations - self._iteration)
        program, runs = self.program, len(self._rows)
        compiling, self._told = self._run.seconds - self._told, self._run.seconds
        started = time.monotonic()
        self._states, metrics = program(self._states, jnp.int32(self._iteration), jnp.int32(count))
        metrics = jax.device_get(metrics)
        # Of the time that all take together, each has its share.
        seconds = (time.monotonic() - started) / (count * runs)
        self._rows = [
            _rows({k: v[i] for k, v in metrics.items()}, count, seconds, compiling / runs)
            for i in range(runs)
        ]
        self._iteration += count


class _Seat:
    """One run among several in a program."""

    def __init__(self, together: Together, position: int):
        self._together, self._position = together, position

    def reset(self, iteration: int) -> None:
        """Nothing: the environments' states are part of the loop's."""

    def advance(self, state: LoopState) -> tuple[LoopState, list[dict[str, Any]]]:
        """The state behind the chunk, which the others go through as well."""
        return self._together.chunk_of(self._position, int(state.iteration))

    def last_rollout(self, state: LoopState) -> Rollout:
        """The one that comes next."""
        return self._together.rollout(state)


def _rows(
    metrics: dict[str, Any], count: int, seconds: float, compiling: float
) -> list[dict[str, Any]]:
    """The rows of a chunk's first iterations, with the time of each."""
    return [
        {name: values[i] for name, values in metrics.items()}
        | {"time/iteration": seconds, "time/compile": compiling if i == 0 else 0.0}
        for i in range(count)
    ]


def chunk_length(settings: Settings) -> int:
    """Iterations of a JAX-native run in one call of its program."""
    return min(settings.train.dispatch, settings.num_iterations)


def chunk_of(
    learner: Learner, settings: Settings, chunk: int
) -> Callable[..., tuple[LoopState, dict[str, Any]]]:
    """`(state, iteration, count) -> (state, metrics)`: the first `count` of `chunk` iterations.

    One program serves a full chunk and the last, shorter one, so that both give the same bits.
    `iteration` is the state's, apart from it: what it decides holds for all of many seeds.
    """
    iterate = learner.iterate
    assert iterate is not None

    def run(state, iteration, count):
        shapes = jax.eval_shape(iterate, state)[1]
        empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

        def step(state, index):
            due = is_due(settings, iteration + index)
            return jax.lax.cond(
                index < count, lambda s: iterate(s, due), lambda s: (s, empty), state
            )

        return jax.lax.scan(step, state, jnp.arange(chunk))

    return run
