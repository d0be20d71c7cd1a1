"""Many seeds of one JAX-native run in a single program, each advanced by a stepper of its own."""

import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from surefoot.config.settings import Settings
from surefoot.training.learner import Learner
from surefoot.training.plan import chunk_length
from surefoot.training.state import LoopState
from surefoot.training.steppers import (
    Compiled,
    Notice,
    Stopping,
    advance_chunk,
    as_arrays,
    chunk_of,
    chunk_rows,
    never,
)
from surefoot.types import Rollout

SEEDS = "seed"
"""The axis of a mesh that whole runs are shared out along."""


class SeedBatch:
    """Runs that differ in their seeds alone, in one program, each with a stepper of its own.

    The runs advance together: the first stepper asked for a chunk advances all of them. Whole runs
    are shared out among the `devices`, which need nothing from each other.
    """

    def __init__(
        self,
        learner: Learner,
        settings: Settings,
        states: Sequence[LoopState],
        compiling: Notice,
        devices: int = 1,
    ):
        self._settings, self._traced = settings, as_arrays(learner.traced)
        run = jax.vmap(chunk_of(learner, chunk_length(settings)), in_axes=(0, None, None))
        look = jax.vmap(learner.collect_and_look, in_axes=(0, None))
        if devices > 1:
            mesh = Mesh(np.asarray(jax.local_devices()[:devices]), (SEEDS,))
            each, all_ = PartitionSpec(SEEDS), PartitionSpec()
            run = jax.shard_map(
                run,
                mesh=mesh,
                check_vma=False,
                in_specs=(each, all_, all_),
                out_specs=each,
            )
            look = jax.shard_map(
                look, mesh=mesh, check_vma=False, in_specs=(each, all_), out_specs=each
            )
        what = f"{len(states)} seeds"
        self._run = Compiled(run, f"the whole iteration of {what}", compiling)
        self._look = Compiled(look, f"the diagnostics of {what}", compiling)
        self._collect = learner.collect
        # Where they do not come out even, the last run is there more than once.
        spare = -len(states) % devices
        several = [*states, *[states[-1]] * spare]
        self._states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *several)
        self._take = jax.jit(lambda states, i: jax.tree.map(lambda leaf: leaf[i], states))
        self._iteration, self._rows = int(states[0].learn.iteration), [[]] * len(states)
        self._compiled = 0.0  # seconds in the rows so far; `program` may compile before the first
        self.steppers = [_Seat(self, i) for i in range(len(states))]

    @property
    def program(self) -> Any:
        """The compiled program of a chunk."""
        return self._run.program(self._states, np.int32(0), self._traced)

    def chunk_of(self, position: int, iteration: int) -> tuple[LoopState, list[dict[str, Any]]]:
        """One run's state and rows after the chunk that starts at an iteration."""
        if iteration == self._iteration:
            self._advance()
        return self._take(self._states, position), self._rows[position]

    def rollout(self, state: LoopState) -> Rollout:
        """A rollout of one of the runs."""
        return jax.jit(self._collect)(state)[1]

    def _advance(self) -> None:
        runs, started = len(self._rows), time.monotonic()
        done = advance_chunk(
            self._run, self._look, self._settings, self._states, self._traced, self._iteration
        )
        # Of the time that all take together, each has its share.
        seconds = (time.monotonic() - started - done.compiling) / (done.count * runs)
        in_all = self._run.seconds + self._look.seconds
        compiling, self._compiled = in_all - self._compiled, in_all

        # Out of arrays that the host already has: no dispatch for each figure of each run.
        def of(table: dict[str, Any], run: int) -> dict[str, Any]:
            return {name: values[run] for name, values in table.items()}

        self._states = done.state
        self._rows = [
            chunk_rows(
                done._replace(metrics=of(done.metrics, run), looked=of(done.looked, run)),
                seconds,
                compiling / runs,
            )
            for run in range(runs)
        ]
        self._iteration += done.count


class _Seat:
    """One run among several in a program."""

    def __init__(self, batch: SeedBatch, position: int):
        self._batch, self._position = batch, position

    def reset(self, iteration: int) -> None:
        """Nothing: the environments' states are part of the loop's."""

    def advance(
        self, state: LoopState, stopping: Stopping = never
    ) -> tuple[LoopState, list[dict[str, Any]]]:
        """The state after the chunk, which the other runs go through as well."""
        return self._batch.chunk_of(self._position, int(state.learn.iteration))

    def last_rollout(self, state: LoopState) -> Rollout:
        """The one that comes next."""
        return self._batch.rollout(state)
