"""The loop: advance, log, evaluate, store; until the steps are done or something stops it."""

import importlib.metadata
import math
import platform
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from surefoot.diagnostics.warnings import WarningMonitor
from surefoot.envs.jax_contract import check_numbers, check_rollout
from surefoot.envs.source import OpenEnvs
from surefoot.errors import (
    NotFiniteError,
    ReplicaError,
    StoppedBySignal,
    SurefootError,
)
from surefoot.parallel.mesh import ALONE, ONE, Placement, Ranks
from surefoot.parallel.signals import CatchSignals
from surefoot.storage.checkpoint import Checkpoint, name_arrays
from surefoot.storage.run_directory import finite_row
from surefoot.training.callback import Callback, Row
from surefoot.training.plan import Plan
from surefoot.training.replay_error import record_batch
from surefoot.training.run import Evaluator, Run
from surefoot.training.state import LoopState, replicated, without_open_episodes
from surefoot.training.steppers import RolloutStopped, Stepper, Stopping

MAX_IN_TROUBLE = 20
"""Updates kept for probes because they were in trouble, beside those of `probe_every`."""
EVERY_ONE = 10**9
"""More checkpoints than any run keeps."""


def versions() -> dict[str, str]:
    """Versions that a bit-for-bit resume depends on."""
    names = ("surefoot", "jax", "jaxlib", "numpy", "gymnasium")
    found = {name: importlib.metadata.version(name) for name in names}
    return {"python": platform.python_version(), **found}


class _Point(NamedTuple):
    """A state of the run."""

    state: LoopState
    env_steps: int
    exact: bool


class Loop:
    """The loop of one run, with what it keeps between two chunks of iterations."""

    def __init__(
        self,
        run: Run,
        stepper: Stepper,
        plan: Plan,
        callback: Callback,
        placement: Placement = ONE,
        ranks: Ranks = ALONE,
        shared: "OpenEnvs | None" = None,
    ):
        """Begin a run's loop; its evaluations play in environments of their own or `shared` ones.

        Those are the ones that the run trains in, and start new episodes after it.
        """
        self.run, self.ranks = run, ranks
        self._shares = shared is not None
        self._stepper, self._plan, self._callback = stepper, plan, callback
        self._placement = placement
        spec, train = run.learner.spec, run.settings.train
        # A JAX-native run's environments are in its state: any checkpoint of it is exact.
        self._always_exact = spec.jax_native
        self._best = max(
            (row.get("eval/return_mean", -math.inf) for row in run.rows), default=-math.inf
        )
        self._monitor, self._in_trouble = WarningMonitor(run.rows), 0
        self._before, self._asked_to_stop = self._point(), False
        self._logged = self._before  # the newest state of which every row is written
        self._stored = run.env_steps  # where the newest checkpoint is, known to all ranks alike
        self._evaluator = None
        if plan.evaluate_every:
            self._evaluator = Evaluator(
                run.settings, run.source, run.learner, train.eval_episodes, shared
            )

    @property
    def going(self) -> bool:
        """Whether there is more to do."""
        return not self.run.finished and not self._asked_to_stop

    def advance(self, stopping: Stopping) -> None:
        """Train one chunk; evaluate, log and store where due."""
        # Only after an update is it known to be in trouble, and a probe needs the state before it.
        self._before = self._point()
        state, metrics = self._stepper.advance(self.run.state, stopping)
        if state.env is not None and not self.run.iteration:
            self._check_start(state, metrics[0])
        rows = self.run.advance(state, metrics)
        try:
            if self._evaluator and self._is_due(self._plan.evaluate_every):
                self._evaluate(self._evaluator, rows[-1])
        finally:  # an evaluation that crashes must not leave a checkpoint ahead of its rows
            self._asked_to_stop = self._log(rows)
        self._store()

    def _check_start(self, state: LoopState, metrics: Mapping[str, Any]) -> None:
        """Validate the numbers of JAX-native environments before anything of the run is kept.

        Inside the program nothing can be refused but an update.
        """
        run = self.run
        if not metrics["update/finite"]:
            # Collected once more, as the program kept nothing of it.
            check_rollout(run.learner.spec, self._stepper.last_rollout(run.state))
        assert state.env is not None
        obs = self._placement.whole(state.env.obs)
        check_numbers(run.learner.spec, obs, strict=run.settings.train.strict_env)

    def announce(self, signal: str) -> None:
        """Tell the callback that a signal asks the run to stop."""
        self._callback.on_stop(signal)

    def close(self, error: BaseException | None) -> None:
        """Store the newest state of which every row is written, and close the evaluation.

        Not after updates that were refused: the last good checkpoint is that before them.
        """
        good = not isinstance(error, NotFiniteError | ReplicaError)
        # Gathering the state takes every rank, and after an error of one the others are elsewhere.
        good &= self.ranks.count == 1 or error is None
        if good and self._logged.env_steps != self._stored:
            # Not after a reset, after which a host run would be exact.
            self._save_point(self._logged._replace(exact=self._always_exact), "checkpoints")
        if self._evaluator:
            self._evaluator.close()  # last, for it may hang

    def _is_due(self, every: int) -> bool:
        return self.run.iteration % every == 0 or self.run.finished

    def _evaluate(self, evaluator: Evaluator, row: dict[str, Any]) -> None:
        """Add an evaluation to the newest row, and keep the policy if it is the best so far."""
        run = self.run
        if self._shares:
            run.set_state(without_open_episodes(run.state))
        seed = run.settings.train.seed + run.iteration
        result = evaluator(self._placement.whole(run.state), seed, stochastic=False)
        # Every rank has evaluated; machines may differ in the last digit.
        result = self.ranks.exchange(result)[0]
        names = ("return_mean", "return_std", "length_mean", "success_rate")
        row |= finite_row({f"eval/{name}": result[name] for name in names if name in result})
        # Without one that is not finite, which no later one would exceed.
        mean = row.get("eval/return_mean", -math.inf)
        if mean > self._best:
            self._best = mean
            self._save(exact=False, folder="best")
        if self._shares and not run.finished:
            self._stepper.reset(run.iteration)

    def _log(self, rows: list[Row]) -> bool:
        """Write and show rows; whether a callback asks to stop."""
        run, stop, in_trouble = self.run, False, False
        limit = run.settings.train.max_refusals
        refused = [i for i, row in enumerate(rows) if row["update/refusals"] >= limit]
        rows = rows[: refused[0] + 1] if refused else rows
        for row in rows:
            raised = self._monitor.see(row)
            in_trouble |= self._monitor.newly_red or self._monitor.newly_lost
            if raised:
                row["warnings"] = " ".join(raised)
            if run.directory:
                run.directory.append(row)
        # Before anything below can raise: a callback's error costs nothing that was learned.
        self._logged = self._point()
        for row in rows:
            # In this order, so that the callback sees every row even after it has asked to stop.
            stop = bool(self._callback.on_row(run, row)) or stop
        if refused:
            self._give_up(rows[-1])
        if in_trouble and self._in_trouble < MAX_IN_TROUBLE:
            self._in_trouble += 1
            self._keep_for_probe(self._before, self._point())
        return stop

    def _give_up(self, row: Mapping[str, Any]) -> None:
        """End a run whose updates are not finite."""
        limit, kept = self.run.settings.train.max_refusals, ""
        if self.run.directory or self.ranks.count > 1:
            # All ranks take part in gathering it, also those without a directory.
            rollout = self._stepper.last_rollout(self.run.state)
            if self.run.directory:
                kept = record_batch(self.run, rollout, row)
        raise NotFiniteError(
            f"{limit} updates in a row were not finite, the last at iteration "
            f"{row['iteration']}; the policy is as it was before the first of them{kept}; "
            "look at the rewards and observations, or lower the learning rate"
        )

    def _point(self) -> _Point:
        """The run's state; a host run is exact only right after a scheduled reset."""
        run = self.run
        every = self._plan.reset_every
        reset = every > 0 and run.iteration % every == 0
        exact = self._always_exact or reset or run.iteration == 0
        return _Point(run.state, run.env_steps, exact)

    def _store(self) -> None:
        """Write a checkpoint where one is scheduled."""
        run, plan = self.run, self._plan
        reset = plan.reset_every > 0 and self._is_due(plan.reset_every)
        # Before it is stored: a checkpoint is exact only if it holds what the run itself goes on
        # with.
        if reset:
            run.set_state(without_open_episodes(run.state))
        if reset or self._is_due(plan.checkpoint_every):
            self._save(exact=self._always_exact or reset)
            self._stored = run.env_steps
        every = plan.probe_every
        if every and run.iteration % every == 0:
            self._keep_for_probe(self._point())
        if reset and not run.finished:
            self._stepper.reset(run.iteration)

    def _keep_for_probe(self, *points: _Point) -> None:
        for point in points:
            self._save_point(point, "kept")

    def _save(self, *, exact: bool, folder: str = "checkpoints") -> None:
        self._save_point(_Point(self.run.state, self.run.env_steps, exact), folder)

    def _save_point(self, point: _Point, folder: str) -> None:
        keep = {"best": 1, "kept": EVERY_ONE}.get(folder, self.run.settings.train.keep_checkpoints)
        directory = self.run.directory
        if directory is None and self.ranks.count == 1:
            return
        state = self._placement.whole(point.state)  # every rank has a part of it
        if directory is None:
            return
        iteration, steps = int(state.learn.iteration), point.env_steps
        checkpoint = Checkpoint(name_arrays(state), iteration, steps, point.exact, versions())
        directory.save(checkpoint, keep=keep, folder=folder)

    def synchronize(self, signal: int | None) -> int | None:
        """Compare with the other ranks; a signal that any of them has received."""
        return self.ranks.synchronize(replicated(self.run.state), self.run.iteration, signal)


def run_loops(loops: Sequence[Loop]) -> list[SurefootError | None]:
    """Advance loops in step until each has ended; the error of each.

    Raises:
        StoppedBySignal: after a stop signal, with the checkpoints written.
    """
    errors: list[SurefootError | None] = [None] * len(loops)
    raised: BaseException | None = None
    with CatchSignals(announce=loops[0].announce) as signals:
        try:
            going, caught = [i for i, loop in enumerate(loops) if loop.going], signals.caught
            while going and caught is None:
                for i in going:
                    try:
                        loops[i].advance(lambda: signals.caught is not None)
                    except RolloutStopped:
                        break
                    except SurefootError as error:
                        errors[i] = error
                going = [i for i in going if loops[i].going and errors[i] is None]
                caught = loops[0].synchronize(signals.caught)
        except BaseException as other:
            raised = other
            raise
        finally:
            for i, loop in enumerate(loops):
                try:
                    loop.close(raised or errors[i])
                except SurefootError as error:
                    errors[i] = errors[i] or error
                except Exception:
                    if raised is None:  # which matters more
                        raise
    if loops[0].ranks.count == 1:
        caught = signals.caught  # one may have come while the loops were closed
    if caught is not None:
        run = next((loop.run for loop in loops if loop.going), loops[0].run)
        path = run.directory and run.directory.path
        raise StoppedBySignal(caught, run.iteration, path, run)
    return errors
