"""Train a run: what is needed only meanwhile is opened and closed here."""

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax

from surefoot.config.settings import Parallel, Settings
from surefoot.envs.host import HostEnv
from surefoot.envs.source import OpenEnvs
from surefoot.errors import EnvCrashError, StoppedBySignal, SurefootError
from surefoot.parallel.env_workers import ActorCollector, EnvWorkers
from surefoot.parallel.mesh import (
    ALONE,
    ONE,
    Placement,
    Ranks,
    check_blocks,
    divide_cpu,
    place,
)
from surefoot.parallel.ray_process import RayProcess, ray_process
from surefoot.parallel.rendezvous import join_cluster
from surefoot.storage.lock import unlock
from surefoot.training.callback import Callback
from surefoot.training.env_share import open_share
from surefoot.training.loop import Loop, run_loops
from surefoot.training.memory import fitting, reporting_memory
from surefoot.training.plan import make_plan
from surefoot.training.replay_error import record_error
from surefoot.training.rollout_host import Collector, HostCollector, assemble
from surefoot.training.run import Run
from surefoot.training.seed_batch import SeedBatch
from surefoot.training.steppers import HostStepper, JaxStepper, Stepper


class Resources(NamedTuple):
    """Devices, processes and connections of a run, while they are held.

    Attributes:
        parallel: the settings they come from.
        ranks: the processes that train together.
        ray: Ray's driver, if it is used.
    """

    parallel: Parallel
    ranks: Ranks = ALONE
    ray: RayProcess | None = None

    @property
    def num_devices(self) -> int:
        """Devices of all processes."""
        workers = self.parallel.workers if self.parallel.cluster == "ray" else self.ranks.count
        return self.parallel.devices * workers

    @property
    def env_workers(self) -> EnvWorkers | None:
        """Ray actors that step the environments, or None."""
        if self.ray is None or not self.parallel.env_workers:
            return None
        return EnvWorkers(self.ray, self.parallel.env_workers, self.parallel.restarts)

    def place(self, settings: Settings) -> Placement:
        """The devices of this process, and where the arrays of the run live."""
        if self.ranks.count > 1:
            check_blocks(settings, self.ranks.placement.count)
            return self.ranks.placement
        return place(settings, self.parallel.devices)


@contextlib.contextmanager
def connect(parallel: Parallel) -> Iterator[Resources]:
    """Context manager of what `parallel` asks for; enter it before JAX is used.

    Raises:
        ConfigError: where no cluster or Ray is found, or one that is too small.
        WorkerLostError: where not all processes connect within a minute.
    """
    if parallel.cluster == "auto":
        yield Resources(parallel, join_cluster(parallel.devices))
    elif parallel.uses_ray:
        if parallel.cluster == "ray":
            jax.config.update("jax_platforms", "cpu")  # the accelerators are for the ranks
        cores = parallel.env_workers or parallel.workers * parallel.devices
        with ray_process(parallel.address or None, cores) as ray:
            yield Resources(parallel, ray=ray)
    else:
        divide_cpu(parallel.devices)
        yield Resources(parallel)


class Trainer(NamedTuple):
    """Trains one run over opened environments, and closes them whatever happens."""

    run: Run
    envs: OpenEnvs
    callback: Callback = Callback()
    placement: Placement = ONE
    resources: Resources = Resources(Parallel())

    def train(self) -> Run:
        """Train to the last iteration, a callback's stop, a signal or an error.

        Raises:
            StoppedBySignal: after a signal, with the checkpoint written.
            SurefootError: what ended the run, with the files to continue from.
        """
        run, ranks = self.run, self.resources.ranks
        with contextlib.ExitStack() as closing:
            # An ExitStack closes in reverse: the lock goes last, when nothing writes any more.
            closing.callback(_unlock, run)
            closing.push(self._close_envs)
            collector = self._env_actors()
            stepper = self._stepper(collector)
            closing.callback(self.callback.on_end, run)
            try:
                ranks.start(run.iteration)
                plan = make_plan(run.settings, run.learner.spec)
                stepper.reset(run.iteration)
                self.callback.on_start(run, plan)
                shared = self.envs if self._takes_turns() else None
                loop = Loop(run, stepper, plan, self.callback, self.placement, ranks, shared)
                with ranks.reporting_loss(), reporting_memory(run.settings):
                    (error,) = run_loops([loop])
                if error is not None:
                    raise error
                run.set_state(self.placement.whole(run.state))
                ranks.leave()
                return run
            except StoppedBySignal:
                ranks.leave()
                raise
            except SurefootError as error:
                record_error(run, error)
                raise

    def _close_envs(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Close the environments; that they hang is the run's error where it has no other."""
        try:
            self.envs.close()
        except EnvCrashError as hung:
            if error is not None:
                return
            if self.run.directory:
                hung.add(f"the run is kept in {self.run.directory.path}")
            raise

    def _takes_turns(self) -> bool:
        """Whether evaluations play in the environments that train."""
        return self.run.settings.train.max_envs > 0 and not self.run.learner.spec.jax_native

    def _env_actors(self) -> Collector | None:
        """Actors that step the environments elsewhere, or None."""
        workers, settings = self.resources.env_workers, self.run.settings
        if workers is None:
            return None
        train = settings.train
        share, whole = partial(open_share, settings), partial(assemble, train=train)
        return ActorCollector(workers, train.num_envs, share, whole, timeout_s=train.env_timeout_s)

    def _stepper(self, collector: Collector | None) -> Stepper:
        run = self.run
        rest = run.learner, run.settings, self.callback, self.placement

        def host_stepper(env: HostEnv) -> Stepper:
            own = collector or HostCollector(env, run.learner.actor, run.settings)
            return HostStepper(own, *rest)

        return self.envs.visit(jax=lambda _: JaxStepper(*rest), host=host_stepper)


def train_together(
    runs: Sequence[Run], *, jobs: int = 1, devices: int = 1
) -> list[SurefootError | None]:
    """Train JAX-native runs as one program; the error of each that failed.

    The runs share their learner, stand at the same iteration and differ in their seeds alone. One
    that fails does not stop the others. Where they do not fit into memory together, beside those
    of other `jobs`, they are trained in turns. They are shared out among the `devices`.

    Raises:
        StoppedBySignal: after a signal, with the checkpoints written.
    """
    try:
        with reporting_memory(runs[0].settings):
            return _train_together(runs, jobs, devices)
    finally:
        for run in runs:
            _unlock(run)


def _train_together(runs: Sequence[Run], jobs: int, devices: int) -> list[SurefootError | None]:
    first, callback = runs[0], Callback()
    states = [run.state for run in runs]
    devices = min(devices, len(runs))
    batch = SeedBatch(first.learner, first.settings, states, callback.on_compile, devices)
    turn = fitting(batch.program, len(runs), jobs=jobs)
    if turn < len(runs):
        del batch, states  # what each turn needs is measured anew, without them
        turns = [runs[start : start + turn] for start in range(0, len(runs), turn)]
        return [
            error for some in turns for error in train_together(some, jobs=jobs, devices=devices)
        ]
    plan = make_plan(first.settings, first.learner.spec)
    loops = [
        Loop(run, stepper, plan, callback)
        for run, stepper in zip(runs, batch.steppers, strict=True)
    ]
    errors = run_loops(loops)
    for run, error in zip(runs, errors, strict=True):
        if error is not None:
            record_error(run, error)
    return errors


def _unlock(run: Run) -> None:
    """Let other processes write to the run's directory."""
    if run.directory:
        unlock(run.directory.path)
