"""How a run moves on by one chunk of iterations, on the host or inside one program."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from surefoot.config.settings import Settings
from surefoot.parallel.mesh import ONE, Placement
from surefoot.training.callback import Callback
from surefoot.training.learner import Learner
from surefoot.training.memory import return_memory
from surefoot.training.plan import chunk_length, looks_at
from surefoot.training.rollout_host import Collector, Pulse
from surefoot.training.state import STATE_AXES, LoopState
from surefoot.types import Params, Rollout

Notice = Callable[[str], None]
"""Called with the name of a program before it is built, which takes seconds."""


class Compiled:
    """A function compiled ahead of time for each shape of its arguments.

    Attributes:
        seconds: spent on compiling so far.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        what: str,
        compiling: Notice,
        placement: Placement = ONE,
        outputs: Any = None,
    ):
        self._function = jax.jit(function, out_shardings=outputs)
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


def as_arrays(traced: Any) -> Any:
    """Numbers as arrays of JAX's default precision."""
    return jax.tree.map(lambda number: np.asarray(number, jnp.zeros(()).dtype), traced)


Stopping = Callable[[], bool]
"""Whether the run is asked to stop."""
SECONDS_BETWEEN_PULSES = 1.0


def never() -> bool:
    """That of a run that nothing asks to stop."""
    return False


class RolloutStopped(Exception):  # noqa: N818
    """A rollout was dropped because the run is asked to stop."""


class Stepper(Protocol):
    """Advances a run by one chunk of iterations."""

    def reset(self, iteration: int) -> None:
        """Start new episodes, where the environments live on the host."""
        ...

    def advance(
        self, state: LoopState, stopping: Stopping = never
    ) -> tuple[LoopState, list[dict[str, Any]]]:
        """The state after the chunk, and one row of metrics an iteration.

        Raises:
            RolloutStopped: where environments are stepped by Python, as soon as it is `stopping`.
        """
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
        callback: Callback,
        placement: Placement = ONE,
    ):
        self._collector, self._settings, self._placement = collector, settings, placement
        compiling = callback.on_compile
        self._traced = as_arrays(learner.traced)
        self._learn = Compiled(
            learner.learn,
            "the update",
            compiling,
            placement,
            placement.shardings((STATE_AXES, False)),
        )
        self._look = Compiled(
            learner.look, "the diagnostics", compiling, placement, placement.shardings(False)
        )
        self._callback, self._warm = callback, False

    def reset(self, iteration: int) -> None:
        """New episodes everywhere."""
        self._collector.reset(iteration)

    def advance(
        self, state: LoopState, stopping: Stopping = never
    ) -> tuple[LoopState, list[dict[str, Any]]]:
        """One rollout and one update, with the expensive diagnostics before it where due."""
        warming, iteration = self._warm_up(state), int(state.learn.iteration)
        compiled = self._learn.seconds + self._look.seconds
        started = time.monotonic()
        host = self._collector.collect(*self._acting(state), iteration, self._pulse(stopping))
        self._rollout = host.rollout
        before = time.monotonic()
        rollout, episodes = self._placement.put_rollout(host.rollout, host.episodes)
        state, looked = self._placement.put_state(state, STATE_AXES), {}
        if looks_at(self._settings, iteration):
            lens, looked = self._look(state, rollout, self._traced)
            state = state._replace(lens=lens)
        state, metrics = self._learn(state, rollout, episodes, self._traced)
        # One transfer for all figures; it waits for the update, so that the clock below includes
        # it.
        metrics = jax.device_get(looked | metrics)
        compiling = self._learn.seconds + self._look.seconds - compiled
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

    def _pulse(self, stopping: Stopping) -> Pulse:
        shown, steps = time.monotonic(), self._settings.train.num_steps

        def pulse(done: int) -> None:
            nonlocal shown
            if stopping():
                raise RolloutStopped
            if time.monotonic() - shown >= SECONDS_BETWEEN_PULSES:
                shown = time.monotonic()
                self._callback.on_rollout(done, steps)

        return pulse

    def last_rollout(self, state: LoopState) -> Rollout:
        """The last one that was collected."""
        return self._rollout

    def _warm_up(self, state: LoopState) -> float:
        """Compile what acting needs before the first rollout; the seconds that took."""
        if self._warm:
            return 0.0
        started, self._warm = time.monotonic(), True
        self._callback.on_compile("the policy")
        self._collector.warm_up(*self._acting(state))
        return time.monotonic() - started

    def _acting(self, state: LoopState) -> tuple[Params, Any]:
        """What acting needs, on one device: a step's few observations are not worth more."""
        return self._placement.here((state.learn.params["policy"], state.learn.obs_stats))


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
        callback: Callback,
        placement: Placement = ONE,
    ):
        self._settings, self._placement = settings, placement
        compiling = callback.on_compile
        self._traced = as_arrays(learner.traced)
        self._run = Compiled(
            chunk_of(learner, chunk_length(settings)),
            "the whole iteration",
            compiling,
            placement,
            placement.shardings((STATE_AXES, False)),
        )
        self._look = Compiled(
            learner.collect_and_look,
            "the diagnostics",
            compiling,
            placement,
            placement.shardings(False),
        )
        self._collect = learner.collect

    def reset(self, iteration: int) -> None:
        """Nothing: the environments' states are part of the loop's."""

    def last_rollout(self, state: LoopState) -> Rollout:
        """The one that comes next: those before it stayed inside the program."""
        state = self._placement.put_state(state, STATE_AXES)
        with self._placement.scope():
            return self._placement.whole(jax.jit(self._collect)(state)[1])

    def advance(
        self, state: LoopState, stopping: Stopping = never
    ) -> tuple[LoopState, list[dict[str, Any]]]:
        """As many iterations as the chunk holds and the plan has left."""
        started = time.monotonic()
        iteration = int(state.learn.iteration)
        state = self._placement.put_state(state, STATE_AXES)
        done = advance_chunk(self._run, self._look, self._settings, state, self._traced, iteration)
        seconds = time.monotonic() - started - done.compiling
        return done.state, chunk_rows(done, seconds / done.count, done.compiling)


class Chunk(NamedTuple):
    """What one call of a JAX-native program gave: `count` iterations of metrics, on the host.

    `looked` are the expensive diagnostics, of the first iteration; `compiling` is in seconds.
    """

    state: LoopState
    metrics: dict[str, Any]
    looked: dict[str, Any]
    count: int
    compiling: float


def advance_chunk(
    run: Compiled,
    look: Compiled,
    settings: Settings,
    state: LoopState,
    traced: Any,
    iteration: int,
) -> Chunk:
    """Run the program of a chunk, after the diagnostics where they are due."""
    compiled, looked = run.seconds + look.seconds, {}
    count = min(chunk_length(settings), settings.num_iterations - iteration)
    if looks_at(settings, iteration, count):
        lens, looked = look(state, traced)
        state = state._replace(lens=lens)
    state, metrics = run(state, np.int32(count), traced)
    looked, metrics = jax.device_get((looked, metrics))
    return Chunk(state, metrics, looked, count, run.seconds + look.seconds - compiled)


def chunk_rows(chunk: Chunk, seconds: float, compiling: float) -> list[dict[str, Any]]:
    """A row of metrics for each iteration of a chunk, each of which took so many seconds."""
    rows = [
        {name: values[i] for name, values in chunk.metrics.items()}
        | {"time/iteration": seconds, "time/compile": 0.0}
        for i in range(chunk.count)
    ]
    rows[0] |= chunk.looked | {"time/compile": compiling}
    return rows


def chunk_of(learner: Learner, chunk: int) -> Callable[..., tuple[LoopState, dict[str, Any]]]:
    """`(state, count, traced) -> (state, metrics)`: the first `count` of `chunk` iterations.

    One program serves a full chunk and the last, shorter one, so that both give the same bits.
    """

    def run(state, count, traced):
        shapes = jax.eval_shape(learner.iterate, state, traced)[1]
        # Both branches of a cond must have the same shapes; these rows are never read.
        empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

        def step(state, index):
            return jax.lax.cond(
                index < count, lambda s: learner.iterate(s, traced), lambda s: (s, empty), state
            )

        return jax.lax.scan(step, state, jnp.arange(chunk))

    return run
