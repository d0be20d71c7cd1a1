"""The loop: advance, log, evaluate, store; until the steps are done or someone stops it."""

import importlib.metadata
import math
import platform
import signal
import threading
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp

from surefoot.alarms import Watchman
from surefoot.checkpoint import Checkpoint, name_arrays
from surefoot.envs.host import HostEnv
from surefoot.envs.jax_native import JaxEnv
from surefoot.errors import (
    EnvContractError,
    EnvCrashError,
    NotFiniteError,
    StoppedBySignal,
    SurefootError,
)
from surefoot.loop_state import LoopState
from surefoot.plan import Plan, make_plan
from surefoot.run import finite_row
from surefoot.steppers import HostStepper, JaxStepper, Stepper
from surefoot.trained import Evaluator, Run

MOST_IN_TROUBLE = 20
"""Updates in trouble that are kept for probes, in one go; those of `probe_every` come on top."""
EVERY_ONE = 10**9
"""More checkpoints than any run keeps."""


class Listener(Protocol):
    """A live display, or nothing: told what happens while a run goes on."""

    def started(self, run: Run, plan: Plan) -> None:
        """Settings are resolved and environments open."""
        ...

    def compiling(self, what: str) -> None:
        """A program is about to be built."""
        ...

    def row(self, row: Mapping[str, Any]) -> None:
        """An iteration is done."""
        ...

    def finished(self, run: Run) -> None:
        """The loop has ended, well or not."""
        ...


class Silence:
    """A listener that does nothing."""

    def started(self, run: Run, plan: Plan) -> None:
        """Nothing."""

    def compiling(self, what: str) -> None:
        """Nothing."""

    def row(self, row: Mapping[str, Any]) -> None:
        """Nothing."""

    def finished(self, run: Run) -> None:
        """Nothing."""


class _Signals:
    """Notes SIGINT and SIGTERM instead of dying; a second one stops at once."""

    def __init__(self) -> None:
        self.caught: int | None = None
        self._old: dict[int, Any] = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.caught is not None:
            raise KeyboardInterrupt
        self.caught = number

    def __enter__(self) -> "_Signals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)


def versions() -> dict[str, str]:
    """Versions that a bit-for-bit resume depends on."""
    names = ("surefoot", "jax", "jaxlib", "numpy", "gymnasium")
    found = {name: importlib.metadata.version(name) for name in names}
    return {"python": platform.python_version(), **found}


class _Point(NamedTuple):
    """A state that the run has been in."""

    state: LoopState
    env_steps: int
    exact: bool


def _save(run: Run, *, exact: bool, folder: str = "checkpoints") -> None:
    keep = 1 if folder == "best" else run.settings.train.keep_checkpoints
    _save_point(run, _Point(run.state, run.env_steps, exact), folder, keep)


def _save_point(run: Run, point: _Point, folder: str, keep: int) -> None:
    if run.directory is None:
        return
    state = point.state
    checkpoint = Checkpoint(
        name_arrays(state), int(state.iteration), point.env_steps, point.exact, versions()
    )
    run.directory.save(checkpoint, keep=keep, folder=folder)


def _check_finite(run: Run, row: Mapping[str, Any]) -> None:
    limit = run.settings.train.max_refusals
    if row["update/refusals"] >= limit:
        kept = run.directory.checkpoints()[-1:] if run.directory else []
        hint = f"; the last good checkpoint is {kept[0]}" if kept else ""
        raise NotFiniteError(
            f"{limit} updates in a row were not finite, the last at iteration "
            f"{row['iteration']}; the policy is as it was before the first of them{hint}; "
            "look at the rewards and observations, or lower the learning rate"
        )


class _Loop:
    """One pass of the loop over a run, with what it keeps between two chunks."""

    def __init__(
        self,
        run: Run,
        stepper: Stepper,
        plan: Plan,
        listener: Listener,
        on_update: Callable[[dict[str, Any]], Any] | None,
    ):
        self._run, self._stepper, self._plan = run, stepper, plan
        self._listener, self._on_update = listener, on_update
        spec, train = run.learner.spec, run.settings.train
        self._resets = not spec.jax_native and train.reset_at_checkpoints
        # A JAX-native run's environments are in its state: any checkpoint of it is exact.
        self._always_exact = spec.jax_native
        self._best = max(
            (row.get("eval/return_mean", -math.inf) for row in run.rows), default=-math.inf
        )
        self._watchman, self._in_trouble = Watchman(run.rows), 0
        self._before = self._point()

    def go(self) -> Run:
        """Iterate until the plan is done, `on_update` says stop, or a signal comes."""
        run, train = self._run, self._run.settings.train
        evaluator = None
        if self._plan.evaluate_every:
            evaluator = Evaluator(run.settings, run.source, run.learner, train.eval_episodes)
        try:
            with _Signals() as signals:
                stop = False
                while not run.finished and not stop and signals.caught is None:
                    rows = self._advance_or_keep()
                    if evaluator and self._is_due(self._plan.evaluate_every):
                        self._evaluate(evaluator, rows[-1])
                    stop = self._tell(rows)
                    self._store(stopping=stop or signals.caught is not None)
        finally:
            if evaluator:
                evaluator.close()
        if signals.caught is not None:
            raise StoppedBySignal(
                signals.caught, run.iteration, run.directory and run.directory.path
            )
        return run

    def _is_due(self, every: int) -> bool:
        return self._run.iteration % every == 0 or self._run.finished

    def _advance_or_keep(self) -> list[dict[str, Any]]:
        """`_advance`; where the environment fails, what is done until then is stored first."""
        try:
            return self._advance()
        except (EnvCrashError, EnvContractError):
            stored = self._run.directory and self._run.directory.checkpoints()
            newest = f"step-{self._run.env_steps:09d}"
            if self._run.iteration and not (stored and stored[-1].name == newest):
                _save(self._run, exact=self._always_exact)
            raise

    def _advance(self) -> list[dict[str, Any]]:
        """One chunk; its rows."""
        run, before = self._run, self._run.iteration
        self._before = self._point()
        run.state, metrics = self._stepper.advance(run.state)
        rows = []
        for offset, values in enumerate(metrics):
            steps = int(values["env_steps"])
            run.env_steps += steps
            row = {"iteration": before + offset + 1} | finite_row(values)
            row["env_steps"] = run.env_steps
            row["time/steps_per_second"] = steps / values["time/iteration"]
            rows.append(row)
        run.rows += rows
        return rows

    def _evaluate(self, evaluator: Evaluator, row: dict[str, Any]) -> None:
        """Add an evaluation to the newest row, and keep the policy where it is the best so far."""
        run = self._run
        seed = run.settings.train.seed + run.iteration
        result = evaluator(run.state, seed, stochastic=False)
        names = ("return_mean", "return_std", "length_mean", "success_rate")
        row |= finite_row({f"eval/{name}": result[name] for name in names if name in result})
        if result["return_mean"] > self._best:
            self._best = result["return_mean"]
            _save(run, exact=False, folder="best")

    def _tell(self, rows: list[dict[str, Any]]) -> bool:
        """Write the rows and show them; whether `on_update` asks to stop."""
        run, stop = self._run, False
        in_trouble = False
        for row in rows:
            raised = self._watchman.see(row)
            in_trouble |= self._watchman.newly_red or self._watchman.newly_lost
            if raised:
                row["warnings"] = " ".join(raised)
            if run.directory:
                run.directory.append(row)
            self._listener.row(row)
            stop = bool(self._on_update and self._on_update(row)) or stop
            _check_finite(run, row)
        if in_trouble and self._in_trouble < MOST_IN_TROUBLE:
            self._in_trouble += 1
            self._pin(self._before, self._point())
        return stop

    def _point(self) -> _Point:
        """Where the run stands; a host run is repeatable only right after a scheduled reset."""
        run = self._run
        reset = self._resets and run.iteration % self._plan.checkpoint_every == 0
        exact = self._always_exact or reset or run.iteration == 0
        return _Point(run.state, run.env_steps, exact)

    def _pin(self, *points: _Point) -> None:
        """Keep states for probes."""
        for point in points:
            _save_point(self._run, point, "kept", EVERY_ONE)

    def _store(self, *, stopping: bool) -> None:
        """Checkpoint where one is scheduled, or where the run is about to stop."""
        run = self._run
        if not self._is_due(self._plan.checkpoint_every):
            if stopping:
                _save(run, exact=self._always_exact)
            self._store_for_probe()
            return
        if self._resets:
            zeros = jnp.zeros_like(run.state.returns_so_far)
            run.state = run.state._replace(returns_so_far=zeros)
        _save(run, exact=self._always_exact or self._resets)
        self._store_for_probe()
        if self._resets and not run.finished:
            self._stepper.reset(run.iteration)

    def _store_for_probe(self) -> None:
        every = self._plan.probe_every
        if every and self._run.iteration % every == 0:
            self._pin(self._point())


def drive(
    run: Run,
    env: JaxEnv | HostEnv,
    listener: Listener | None,
    on_update: Callable[[dict[str, Any]], Any] | None,
) -> Run:
    """Run the loop over opened environments, and close them whatever happens."""
    listener = listener or Silence()
    stepper: Stepper
    if isinstance(env, HostEnv):
        stepper = HostStepper(env, run.learner, run.settings, listener.compiling)
    else:
        stepper = JaxStepper(run.learner, run.settings, listener.compiling)
    try:
        plan = make_plan(run.settings, run.learner.spec)
        stepper.reset(run.iteration)
        listener.started(run, plan)
        return _Loop(run, stepper, plan, listener, on_update).go()
    except SurefootError:
        # Whatever failed before a first iteration leaves nothing that a second try would meet.
        if run.directory and run.iteration == 0:
            run.directory.forget()
        raise
    finally:
        listener.finished(run)
        stepper.close()
