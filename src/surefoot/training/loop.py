"""The loop: advance, log, evaluate, store; until the steps are done or someone stops it."""

import contextlib
import importlib.metadata
import math
import platform
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any, NamedTuple, Protocol

from surefoot.config.settings import Settings
from surefoot.diagnostics.warnings import Watchman
from surefoot.envs.host import HostEnv
from surefoot.envs.source import OpenEnvs
from surefoot.errors import (
    EnvContractError,
    EnvCrashError,
    NotFiniteError,
    StoppedBySignal,
    SurefootError,
    WorkerLostError,
)
from surefoot.parallel.mesh import ONE
from surefoot.parallel.ranks import ALONE
from surefoot.storage.checkpoint import Checkpoint, name_arrays
from surefoot.storage.lock import unlock
from surefoot.storage.run_directory import finite_row
from surefoot.training.memory import fitting, told_of_memory
from surefoot.training.plan import Plan, make_plan
from surefoot.training.replay import keep_batch, keep_fault
from surefoot.training.rollout_host import HostCollector
from surefoot.training.run import Evaluator, Run
from surefoot.training.state import LoopState, replicated, without_open_episodes
from surefoot.training.steppers import HostStepper, JaxStepper, SeedBatch, Stepper

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


SIGNALS = (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGUSR1", signal.SIGTERM))
"""After which a run is stored and ends: of a person, of a system, of a scheduler that takes the
machine away."""


class _Signals:
    """Notes these signals instead of dying; a second one stops at once."""

    def __init__(self) -> None:
        self.caught: int | None = None
        self._old: dict[int, Any] = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.caught is not None:
            raise KeyboardInterrupt
        self.caught = number

    def __enter__(self) -> "_Signals":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
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
    if run.directory is None and run.ranks.count == 1:
        return
    state = run.placement.whole(point.state)  # of which every rank has a part
    if run.directory is None:
        return
    checkpoint = Checkpoint(
        name_arrays(state), int(state.learn.iteration), point.env_steps, point.exact, versions()
    )
    run.directory.save(checkpoint, keep=keep, folder=folder)


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
        self.run, self._stepper, self._plan = run, stepper, plan
        self._listener, self._on_update = listener, on_update
        spec, train = run.learner.spec, run.settings.train
        self._resets = not spec.jax_native and train.reset_at_checkpoints
        # A JAX-native run's environments are in its state: any checkpoint of it is exact.
        self._always_exact = spec.jax_native
        self._best = max(
            (row.get("eval/return_mean", -math.inf) for row in run.rows), default=-math.inf
        )
        self._watchman, self._in_trouble = Watchman(run.rows), 0
        self._before, self._asked_to_stop = self._point(), False
        self._stored = run.env_steps  # where the newest checkpoint is: ranks must know it alike
        self._evaluator = None
        if plan.evaluate_every:
            self._evaluator = Evaluator(run.settings, run.source, run.learner, train.eval_episodes)

    @property
    def going(self) -> bool:
        """Whether there is more to do."""
        return not self.run.finished and not self._asked_to_stop

    def once(self) -> None:
        """One chunk, with all that comes after it."""
        rows = self._advance()
        try:
            if self._evaluator and self._is_due(self._plan.evaluate_every):
                self._evaluate(self._evaluator, rows[-1])
        finally:  # an evaluation that crashes must not leave a checkpoint ahead of its rows
            self._asked_to_stop = self._tell(rows)
        self._store()

    def close(self, fault: BaseException | None) -> None:
        """Let the evaluation go, and store where the run stands, whoever stopped it.

        Not behind updates that were refused: the last good checkpoint is that before them.
        """
        if self._evaluator:
            self._evaluator.close()
        good = fault is None or isinstance(fault, EnvCrashError | EnvContractError)
        # Where actors are lost the state is good; where ranks are, a part of it is with them.
        good |= self.run.ranks is ALONE and isinstance(fault, WorkerLostError)
        if good and self.run.env_steps != self._stored:
            _save(self.run, exact=self._always_exact)

    def _is_due(self, every: int) -> bool:
        return self.run.iteration % every == 0 or self.run.finished

    def _advance(self) -> list[dict[str, Any]]:
        """One chunk; its rows."""
        run, before = self.run, self.run.iteration
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
        run = self.run
        seed = run.settings.train.seed + run.iteration
        result = evaluator(run.placement.whole(run.state), seed, stochastic=False)
        # Every rank has played; machines that differ may differ in the last digit.
        result = run.ranks.exchange(result)[0]
        names = ("return_mean", "return_std", "length_mean", "success_rate")
        row |= finite_row({f"eval/{name}": result[name] for name in names if name in result})
        if result["return_mean"] > self._best:
            self._best = result["return_mean"]
            _save(run, exact=False, folder="best")

    def _tell(self, rows: list[dict[str, Any]]) -> bool:
        """Write the rows and show them; whether `on_update` asks to stop."""
        run, stop = self.run, False
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
            if row["update/refusals"] >= run.settings.train.max_refusals:
                self._give_up(row)
        if in_trouble and self._in_trouble < MOST_IN_TROUBLE:
            self._in_trouble += 1
            self._pin(self._before, self._point())
        return stop

    def _give_up(self, row: Mapping[str, Any]) -> None:
        """End a run whose updates are not finite."""
        limit, kept = self.run.settings.train.max_refusals, ""
        if self.run.directory or self.run.ranks.count > 1:
            rollout = self._stepper.last_rollout(self.run.state)
            if self.run.directory:
                kept = keep_batch(self.run, rollout, row)
        raise NotFiniteError(
            f"{limit} updates in a row were not finite, the last at iteration "
            f"{row['iteration']}; the policy is as it was before the first of them{kept}; "
            "look at the rewards and observations, or lower the learning rate"
        )

    def _point(self) -> _Point:
        """Where the run stands; a host run is repeatable only right after a scheduled reset."""
        run = self.run
        reset = self._resets and run.iteration % self._plan.checkpoint_every == 0
        exact = self._always_exact or reset or run.iteration == 0
        return _Point(run.state, run.env_steps, exact)

    def _pin(self, *points: _Point) -> None:
        """Keep states for probes."""
        for point in points:
            _save_point(self.run, point, "kept", EVERY_ONE)

    def _store(self) -> None:
        """Checkpoint where one is scheduled."""
        run, due = self.run, self._is_due(self._plan.checkpoint_every)
        if due and self._resets:
            run.state = without_open_episodes(run.state)
        if due:
            _save(run, exact=self._always_exact or self._resets)
            self._stored = run.env_steps
        self._store_for_probe()
        if due and self._resets and not run.finished:
            self._stepper.reset(run.iteration)

    def _store_for_probe(self) -> None:
        every = self._plan.probe_every
        if every and self.run.iteration % every == 0:
            self._pin(self._point())


def _agreed(run: Run, caught: int | None) -> int | None:
    """The signal that any rank of the run has caught."""
    return run.ranks.synchronize(replicated(run.state), run.iteration, caught)


def _go(loops: Sequence[_Loop]) -> list[SurefootError | None]:
    """Move loops on in step until each is done or has failed; the fault of each.

    Raises:
        StoppedBySignal: after one of `SIGNALS`, with the checkpoints written.
    """
    faults: list[SurefootError | None] = [None] * len(loops)
    raised: BaseException | None = None
    with _Signals() as signals:
        try:
            going, caught = [i for i, loop in enumerate(loops) if loop.going], signals.caught
            while going and caught is None:
                for i in going:
                    try:
                        loops[i].once()
                    except SurefootError as fault:
                        faults[i] = fault
                going = [i for i in going if loops[i].going and faults[i] is None]
                caught = _agreed(loops[0].run, signals.caught)
        except BaseException as other:
            raised = other
            raise
        finally:
            for i, loop in enumerate(loops):
                try:
                    loop.close(raised or faults[i])
                except SurefootError as fault:
                    faults[i] = faults[i] or fault
    if loops[0].run.ranks is ALONE:
        caught = signals.caught  # while the loops were closed too
    if caught is not None:
        run = next((loop.run for loop in loops if loop.going), loops[0].run)
        raise StoppedBySignal(caught, run.iteration, run.directory and run.directory.path)
    return faults


def _smaller(settings: Settings) -> str:
    """What to do where a run does not fit."""
    train = settings.train
    return (
        f"an update reads {settings.batch_size:,} rows (num_envs {train.num_envs} x num_steps "
        f"{train.num_steps}): halve num_steps, or choose narrower --hidden layers"
    )


def _let_go(run: Run) -> None:
    """Another process may write there now."""
    if run.directory:
        unlock(run.directory.path)


def _make_stepper(run: Run, env: OpenEnvs, listener: Listener) -> Stepper:
    how = run.learner, run.settings, listener.compiling, run.placement

    def host_stepper(env: HostEnv) -> Stepper:
        collector = run.actors or HostCollector(env, run.learner.actor, run.settings)
        return HostStepper(collector, *how)

    return env.visit(jax=lambda _: JaxStepper(*how), host=host_stepper)


def drive(
    run: Run,
    env: OpenEnvs,
    listener: Listener | None,
    on_update: Callable[[dict[str, Any]], Any] | None,
) -> Run:
    """Run the loop over opened environments, and close them whatever happens."""
    listener = listener or Silence()
    with contextlib.ExitStack() as ending:
        ending.callback(_let_go, run)
        ending.callback(env.close)
        stepper = _make_stepper(run, env, listener)
        ending.callback(listener.finished, run)
        try:
            run.ranks.start(run.iteration)
            plan = make_plan(run.settings, run.learner.spec)
            stepper.reset(run.iteration)
            listener.started(run, plan)
            with run.ranks.reporting_loss(), told_of_memory(_smaller(run.settings)):
                (fault,) = _go([_Loop(run, stepper, plan, listener, on_update)])
            if fault is not None:
                raise fault
            run.state, run.placement = run.placement.whole(run.state), ONE
            run.ranks.leave()
            return run
        except StoppedBySignal:
            run.ranks.leave()
            raise
        except SurefootError as fault:
            keep_fault(run, fault)
            raise


def drive_together(
    runs: Sequence[Run], *, jobs: int = 1, devices: int = 1
) -> list[SurefootError | None]:
    """Run the loops of JAX-native runs as one program; the fault of each that failed.

    The runs share their learner, stand at the same iteration and differ in their seeds alone. One
    that fails leaves the others be. Where they do not fit into memory together, beside those of
    other `jobs`, they go in turns. They are shared out among the `devices`.

    Raises:
        StoppedBySignal: after one of `SIGNALS`, with the checkpoints written.
    """
    try:
        with told_of_memory(_smaller(runs[0].settings)):
            return _drive_together(runs, jobs, devices)
    finally:
        for run in runs:
            _let_go(run)


def _drive_together(runs: Sequence[Run], jobs: int, devices: int) -> list[SurefootError | None]:
    first, silence = runs[0], Silence()
    states = [run.state for run in runs]
    devices = min(devices, len(runs))
    together = SeedBatch(first.learner, first.settings, states, silence.compiling, devices)
    turn = fitting(together.program, len(runs), jobs=jobs)
    if turn < len(runs):
        del together, states  # what each turn needs is measured anew, without them
        turns = [runs[start : start + turn] for start in range(0, len(runs), turn)]
        how = {"jobs": jobs, "devices": devices}
        return [fault for some in turns for fault in drive_together(some, **how)]
    plan = make_plan(first.settings, first.learner.spec)
    loops = [
        _Loop(run, stepper, plan, silence, None)
        for run, stepper in zip(runs, together.steppers, strict=True)
    ]
    faults = _go(loops)
    for run, fault in zip(runs, faults, strict=True):
        if fault is not None:
            keep_fault(run, fault)
    return faults
