"""Find an update of a run: its two policies and its batch, from the checkpoints around it.

Iterations are repeated with the programs that the run was trained with. The one module of the probe
that knows the state of the training loop.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from surefoot.analysis.probe.players import Trajectories
from surefoot.analysis.probe.rows import Experience, episode_ages
from surefoot.envs.host import HostEnv
from surefoot.envs.source import OpenEnvs
from surefoot.errors import CheckpointError, ConfigError
from surefoot.storage.checkpoint import read_checkpoint, read_state, restore_arrays
from surefoot.storage.run_directory import RunDirectory
from surefoot.training.batch import state_values
from surefoot.training.callback import Callback
from surefoot.training.loop import versions
from surefoot.training.plan import chunk_length, make_plan
from surefoot.training.rollout_host import HostCollector
from surefoot.training.run import Run
from surefoot.training.state import LoopState, without_open_episodes
from surefoot.training.steppers import HostStepper, as_arrays, chunk_of
from surefoot.types import Params, Rollout

FOLDERS = ("checkpoints", "kept", "best")
"""Where a run directory has checkpoints."""


class PolicyUpdate(NamedTuple):
    """One update of a run: the policies before and after it, and what was frozen meanwhile.

    `critic` are the parameters before the update, `obs_stats` normalise observations, and
    `return_scale` is environment reward units per unit of the critic. `batch` is what the update
    learned from, if that is reproducible; `source` says where all this comes from.
    """

    iteration: int
    old: Params
    new: Params
    critic: Params
    obs_stats: Any
    return_scale: float
    batch: Experience | None
    source: str


class Rerun:
    """Repeats iterations of one run in its opened environments."""

    def __init__(self, run: Run, opened: OpenEnvs):
        self._settings, self._opened, self._learner = run.settings, opened, run.learner
        self._init = jax.jit(partial(run.learner.init, run.settings.train.seed))
        self.jax_native, self.batch_size = run.learner.spec.jax_native, run.settings.batch_size

    def restore(self, path: Path | None) -> LoopState:
        """The state of a checkpoint, or the first one."""
        if path is None:
            return self._init()
        arrays = read_checkpoint(path).arrays
        return restore_arrays(jax.eval_shape(self._init), arrays, str(path))

    def last_update(self, state: LoopState) -> PolicyUpdate:
        """The update that led to a state; a `ConfigError` if it was refused."""
        before, iteration = state.lens, int(state.learn.iteration)
        if not bool(before.ready):
            raise CheckpointError(f"the checkpoint of iteration {iteration} holds no update")
        old, new = before.params["policy"], state.learn.params["policy"]
        # A refused step returns the old parameters bit for bit.
        if _same_bits(old, new):
            raise ConfigError(
                f"update {iteration} changed nothing: its step was refused, so there is nothing to "
                "probe",
                name="NO-STEP",
            )
        scale = float(before.return_scale)
        return PolicyUpdate(iteration, old, new, before.params, before.obs_stats, scale, None, "")

    def repeat(
        self, start: Path | None, count: int, end: Path | None, row: Mapping[str, Any]
    ) -> PolicyUpdate:
        """The update after `count` iterations from a checkpoint, compared to what was stored of it.

        That is the checkpoint at its `end`, if there is one, and the `row` of its iteration.
        """
        before = self.restore(start)
        state, rollout, ages = self._opened.visit(
            jax=lambda _: self._repeat_jax(before, count),
            host=lambda env: self._repeat_host(env, before, count),
        )
        update = self.last_update(state)
        source = "its batch was collected again and the update repeated"
        made, recorded = float(state.lens.kl), row.get("policy/kl_mean")
        if isinstance(recorded, float) and not math.isclose(made, recorded, rel_tol=1e-3):
            source += (
                f", and is another one: its mean KL is {made:.3g}, the run recorded {recorded:.3g} "
                "(other settings since, other versions, or another machine)"
            )
        elif end and _same_bits(state.learn.params, self.restore(end).learn.params):
            source += ", equal to the stored one bit for bit"
        elif end:
            source += (
                "; bits differ from the stored one: another machine, other versions, or seeds "
                "trained together?"
            )
        elif start and read_checkpoint(start).versions != versions():
            source += "; bits may differ: the run was made with other versions"
        return update._replace(batch=self._experience(update, rollout, ages), source=source)

    def _experience(self, update: PolicyUpdate, rollout: Rollout, ages: Any) -> Experience:
        learner = self._learner
        values_of = jax.jit(partial(state_values, learner.actor, rows=learner.parts.rows))
        values = values_of(update.critic, update.obs_stats, rollout)
        here, after = (update.return_scale * np.asarray(each, np.float64) for each in values)
        rows: Any = jax.tree.map(np.asarray, rollout)
        obs = jax.tree.map(lambda leaf: leaf[:-1], rows.obs)
        steps = Trajectories(obs, rows.action_mask, rows.actions, rows.rewards)
        return Experience(steps, here, after, rows.terminated, rows.truncated, rows.valid, ages)

    def _repeat_jax(self, state: LoopState, count: int) -> tuple[LoopState, Rollout, Any]:
        learner, before = self._learner, state
        # The compiled chunk of training, one iteration at a time: so bits are those of training.
        program = jax.jit(chunk_of(learner, chunk_length(self._settings)))
        for _ in range(count + 1):
            before = state
            state, _ = program(state, jnp.int32(1), as_arrays(learner.traced))
        assert before.env is not None
        rollout = jax.device_get(jax.jit(learner.collect)(before)[1])
        return state, rollout, np.asarray(before.env.lengths)

    def _repeat_host(
        self, env: HostEnv, state: LoopState, count: int
    ) -> tuple[LoopState, Rollout, Any]:
        """All iterations in turn: a rollout starts where the one before ended, within episodes."""
        settings = self._settings
        collector = HostCollector(env, self._learner.actor, settings)
        stepper = HostStepper(collector, self._learner, settings, Callback())
        # The run may have started new episodes after each scheduled checkpoint.
        every = make_plan(settings, self._learner.spec).reset_every
        rollout: Any = None
        ages: Any = None
        for index in range(count + 1):
            iteration = int(state.learn.iteration)
            if index == 0 or (every and iteration % every == 0):
                state = without_open_episodes(state)
                stepper.reset(iteration)
                ages = np.zeros(env.num_envs, np.int64)
            else:
                ended = np.asarray(rollout.terminated | rollout.truncated)
                *_, ages = episode_ages(ended, np.asarray(rollout.valid), ages)
            state, _ = stepper.advance(state)
            rollout = stepper.last_rollout(state)
        return state, rollout, ages


def _same_bits(first: Any, second: Any) -> bool:
    return bool(jax.tree.all(jax.tree.map(np.array_equal, first, second)))


def _of_most_promise(
    rows: Mapping[int, Mapping[str, Any]], stored: Sequence["StoredCheckpoint"], done: int
) -> int:
    """The update that promised most of those next to a checkpoint, the newest of equal ones."""

    def promise(iteration: int) -> tuple[float, int]:
        found = rows.get(iteration, {}).get("surrogate/promised_gain")
        if isinstance(found, float) and math.isfinite(found):
            return found, iteration
        return -math.inf, iteration

    # A checkpoint is next to the update that led to it and to the one that follows.
    near = {k for each in stored for k in (each.iteration, each.iteration + 1)}
    return max((k for k in near if 1 <= k <= done), key=promise, default=0)


class StoredCheckpoint(NamedTuple):
    """A checkpoint of a run; `exact` if the rollout that follows it is reproducible."""

    iteration: int
    path: Path
    exact: bool


def find_checkpoints(directory: RunDirectory, *, jax_native: bool) -> list[StoredCheckpoint]:
    """All checkpoints of a run, in any folder, oldest first; a `CheckpointError` without any."""
    found = []
    for path in (path for folder in FOLDERS for path in directory.checkpoints(folder)):
        # The small file alone: arrays are read from the checkpoints that are used.
        state = read_state(path)
        try:
            exact = jax_native or bool(state["exact"])
            found.append(StoredCheckpoint(int(state["iteration"]), path, exact))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} is not a checkpoint of surefoot: {error}") from error
    if not found:
        raise CheckpointError(
            f"{directory.path} has no checkpoint: a probe needs one next to an update",
            name="NO-CHECKPOINT",
        )
    return sorted(found)


def find_update(
    directory: RunDirectory,
    rerun: Rerun,
    iteration: int | None,
    *,
    replay: bool,
    callback: Callback,
) -> PolicyUpdate:
    """The update of one iteration, from the best checkpoint next to it.

    None takes that of most promise, among the updates that have a checkpoint next to them. If one
    has none, `replay` repeats iterations since an earlier one.

    Raises:
        ConfigError: for an iteration that the run never made, or an update that was refused.
        CheckpointError: if no checkpoint is next to it; the message says how to replay it.
    """
    stored = find_checkpoints(directory, jax_native=rerun.jax_native)
    # Without rows the newest checkpoint shows how far the run came.
    rows = {row["iteration"]: row for row in directory.rows()}
    done = max(rows, default=stored[-1].iteration)
    if iteration is None:
        iteration = _of_most_promise(rows, stored, done)
    if not 1 <= iteration <= done:
        what = f"the updates that {directory.path} made"
        raise ConfigError(f"--update must be 1 to {done}, {what}; got {iteration}", name="UPDATE")
    exact = [each for each in stored if each.exact and each.iteration < iteration]
    before = next((each.path for each in stored if each.iteration == iteration - 1), None)
    after = next((each.path for each in stored if each.iteration == iteration), None)
    # The state before the first update follows from the seed alone.
    first, start, _ = exact[-1] if exact else (0, None, True)
    # In the order of their worth: both policies and the batch, the policies alone, another batch.
    if first == iteration - 1:
        return rerun.repeat(start, 0, after, rows.get(iteration, {}))
    if after:
        source = (
            "both policies are the run's own; its batch is not stored: its promise is as logged"
        )
        others = [each.iteration for each in stored if each.exact and each.iteration < done]
        source += f" (--update {max(others) + 1} has its batch)" if others else ""
        return rerun.last_update(rerun.restore(after))._replace(source=source)
    if before:
        source = (
            "a similar update: from the run's policy before it, on another batch, because the "
            "checkpoint was stored in the middle of episodes"
        )
        return rerun.repeat(before, 0, None, {})._replace(source=source)
    count = iteration - 1 - first
    cost = f"{count} iterations, {count * rerun.batch_size:,} steps"
    if not replay:
        listed = ", ".join(map(str, sorted({each.iteration for each in stored})))
        raise CheckpointError(
            f"update {iteration} has no checkpoint next to it; there are checkpoints after "
            f"iterations {listed}; --replay repeats the run from iteration {first}: {cost}",
            name="NEVER-KEPT",
        )
    callback.on_message(f"replaying from iteration {first}: {cost}")
    found = rerun.repeat(start, count, None, rows.get(iteration, {}))
    return found._replace(source=f"replayed from iteration {first}; {found.source}")
