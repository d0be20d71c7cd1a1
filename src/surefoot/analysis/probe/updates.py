"""Find an update of a run: its two policies and its batch, from the checkpoints around it.

Iterations are repeated with the programs that the run was trained with. The one module of the probe
that knows the state of the training loop.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from surefoot.analysis.probe.choose import Chosen
from surefoot.analysis.probe.players import Trajectories
from surefoot.analysis.probe.rows import Experience, episode_ages
from surefoot.config.history import SettingsHistory
from surefoot.envs.host import HostEnv
from surefoot.envs.source import OpenEnvs
from surefoot.errors import CheckpointError, ConfigError
from surefoot.storage.checkpoint import name_arrays, read_checkpoint, restore_arrays
from surefoot.training.batch import state_values
from surefoot.training.callback import Callback
from surefoot.training.loop import versions
from surefoot.training.plan import chunk_length, make_plan
from surefoot.training.rollout_host import HostCollector
from surefoot.training.run import Run
from surefoot.training.state import LoopState, without_open_episodes
from surefoot.training.steppers import HostStepper, as_arrays, chunk_of
from surefoot.types import Params, Rollout


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


OpenRun = Callable[..., tuple[Run, OpenEnvs]]
"""`open_run(settings=...)`: opens the run and its environments with these settings."""


class Rerun:
    """Repeats iterations of one run in environments that it opens, with the settings of their time.

    `run` has those of the update of an `iteration`.
    """

    def __init__(self, open_run: OpenRun, history: SettingsHistory, iteration: int):
        self._open_run, self._history = open_run, history
        self.run, self._opened = open_run(settings=history.at(iteration))

    def close(self) -> None:
        """Close the environments."""
        self._opened.close()

    @property
    def _init(self) -> Any:
        return partial(self.run.learner.init, self.run.settings.train.seed)

    def restore(self, path: Path | None) -> LoopState:
        """The state of a checkpoint, or the first one."""
        if path is None:
            return jax.jit(self._init)()
        return self._of_arrays(read_checkpoint(path).arrays, str(path))

    def _of_arrays(self, arrays: Mapping[str, np.ndarray], where: str) -> LoopState:
        return restore_arrays(jax.eval_shape(self._init), arrays, where)

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
        self,
        start: Path | None,
        iterations: Iterable[int],
        end: Path | None,
        row: Mapping[str, Any],
    ) -> PolicyUpdate:
        """The last update of `iterations` from a checkpoint, compared to what was stored of it.

        That is the checkpoint at its `end`, if there is one, and the `row` of its iteration.
        """
        state, rollout, ages = self._repeat(start, iterations)
        update = self.last_update(state)
        source = "its batch was collected again and the update repeated"
        made, recorded = float(state.lens.kl), row.get("policy/kl_mean")
        if isinstance(recorded, float) and not math.isclose(made, recorded, rel_tol=1e-3):
            source += (
                f", and is another one: its mean KL is {made:.3g}, the run recorded {recorded:.3g} "
                "(other versions, another machine, or a resume in the middle of episodes)"
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

    def _repeat(
        self, start: Path | None, iterations: Iterable[int]
    ) -> tuple[LoopState, Rollout, Any]:
        """The state after some iterations, the last rollout, and its environments' ages."""
        found: Any = None
        for settings, some in itertools.groupby(iterations, self._history.at):
            if settings != self.run.settings:
                self.close()  # first: at most `max_envs` are open
                self.run, self._opened = self._open_run(settings=settings)
            # The run was resumed where they changed: from the arrays of its state alone.
            state = self._of_arrays(name_arrays(found[0]), "") if found else self.restore(start)
            repeats = state, len(list(some))
            found = self._opened.visit(
                jax=lambda _, repeats=repeats: self._repeat_jax(*repeats),
                host=lambda env, repeats=repeats: self._repeat_host(env, *repeats),
            )
        return found

    def _experience(self, update: PolicyUpdate, rollout: Rollout, ages: Any) -> Experience:
        learner = self.run.learner
        values_of = jax.jit(partial(state_values, learner.actor, rows=learner.parts.rows))
        values = values_of(update.critic, update.obs_stats, rollout)
        here, after = (update.return_scale * np.asarray(each, np.float64) for each in values)
        rows: Any = jax.tree.map(np.asarray, rollout)
        obs = jax.tree.map(lambda leaf: leaf[:-1], rows.obs)
        steps = Trajectories(obs, rows.action_mask, rows.actions, rows.rewards)
        return Experience(steps, here, after, rows.terminated, rows.truncated, rows.valid, ages)

    def _repeat_jax(self, state: LoopState, count: int) -> tuple[LoopState, Rollout, Any]:
        learner, before = self.run.learner, state
        # The compiled chunk of training, one iteration at a time: so bits are those of training.
        program = jax.jit(chunk_of(learner, chunk_length(self.run.settings)))
        for _ in range(count):
            before = state
            state, _ = program(state, jnp.int32(1), as_arrays(learner.traced))
        assert before.env is not None
        rollout = jax.device_get(jax.jit(learner.collect)(before)[1])
        return state, rollout, np.asarray(before.env.lengths)

    def _repeat_host(
        self, env: HostEnv, state: LoopState, count: int
    ) -> tuple[LoopState, Rollout, Any]:
        """All iterations in turn: a rollout starts where the one before ended, within episodes."""
        learner, settings = self.run.learner, self.run.settings
        collector = HostCollector(env, learner.actor, settings)
        stepper = HostStepper(collector, learner, settings, Callback())
        # The run may have started new episodes after each scheduled checkpoint.
        every = make_plan(settings, learner.spec).reset_every
        rollout: Any = None
        ages: Any = None
        for index in range(count):
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


def find_update(chosen: Chosen, rerun: Rerun, *, replay: bool, callback: Callback) -> PolicyUpdate:
    """The update that was chosen, from the best checkpoint next to it.

    If it has none, `replay` repeats iterations since an earlier one.

    Raises:
        ConfigError: for an update that was refused.
        CheckpointError: if no checkpoint is next to it; the message says how to replay it.
    """
    iteration, rows, stored = chosen.iteration, chosen.rows, chosen.stored
    if rerun.run.learner.spec.jax_native:
        stored = [each._replace(exact=True) for each in stored]
    exact = [each for each in stored if each.exact and each.iteration < iteration]
    before = next((each.path for each in stored if each.iteration == iteration - 1), None)
    after = next((each.path for each in stored if each.iteration == iteration), None)
    # The state before the first update follows from the seed alone.
    first, start, _ = exact[-1] if exact else (0, None, True)
    # In the order of their worth: both policies and the batch, the policies alone, another batch.
    iterations = range(first + 1, iteration + 1)
    if first == iteration - 1:
        return rerun.repeat(start, iterations, after, rows.get(iteration, {}))
    if after:
        source = (
            "both policies are the run's own; its batch is not stored: its promise is as logged"
        )
        others = [each.iteration for each in stored if each.exact and each.iteration < chosen.done]
        source += f" (--update {max(others) + 1} has its batch)" if others else ""
        return rerun.last_update(rerun.restore(after))._replace(source=source)
    if before:
        source = (
            "a similar update: from the run's policy before it, on another batch, because the "
            "checkpoint was stored in the middle of episodes"
        )
        return rerun.repeat(before, [iteration], None, {})._replace(source=source)
    count = iteration - 1 - first
    cost = f"{count} iterations, {count * rerun.run.settings.batch_size:,} steps"
    if not replay:
        listed = ", ".join(map(str, sorted({each.iteration for each in stored})))
        raise CheckpointError(
            f"update {iteration} has no checkpoint next to it; there are checkpoints after "
            f"iterations {listed}; --replay repeats the run from iteration {first}: {cost}",
            name="NEVER-KEPT",
        )
    callback.on_message(f"replaying from iteration {first}: {cost}")
    found = rerun.repeat(start, iterations, None, rows.get(iteration, {}))
    return found._replace(source=f"replayed from iteration {first}; {found.source}")
