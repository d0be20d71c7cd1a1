"""Which update of a run is probed, and how its two policies and its batch are had again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from surefoot.analysis.probe.again import make_again
from surefoot.analysis.probe.batches import OwnBatch
from surefoot.envs.source import OpenEnvs
from surefoot.errors import CheckpointError, ConfigError
from surefoot.storage.checkpoint import (
    LARGEST_JSON,
    name_arrays,
    read_checkpoint,
    read_file,
    restore_arrays,
    strict_json,
)
from surefoot.storage.run_directory import RunDirectory
from surefoot.training.loop import versions
from surefoot.training.run import Run
from surefoot.training.state import LoopState, without_open_episodes
from surefoot.types import Params

FOLDERS = ("checkpoints", "kept", "best")


class Stored(NamedTuple):
    """A kept checkpoint, as its counters say; `exact` is whether its rollout comes again."""

    path: Path
    iteration: int
    exact: bool


class Update(NamedTuple):
    """One update of a run: its two policies, and the critic of before it.

    `obs_stats` and `return_scale` are those it was made with. `batch` is None where it is gone.
    """

    iteration: int
    old: Params
    new: Params
    before: Params
    obs_stats: Any
    return_scale: float
    batch: OwnBatch | None
    source: str


def find_stored(directory: RunDirectory, *, jax_native: bool) -> list[Stored]:
    """Every checkpoint of a run, wherever it is kept, oldest first.

    Raises:
        CheckpointError: where there is none.
    """
    found = []
    for path in (path for folder in FOLDERS for path in directory.checkpoints(folder)):
        state = strict_json(read_file(path / "state.json", LARGEST_JSON), path / "state.json")
        try:
            found.append(Stored(path, int(state["iteration"]), jax_native or bool(state["exact"])))
        except (KeyError, TypeError, ValueError) as fault:
            raise CheckpointError(f"{path / 'state.json'} is not one of ours: {fault}") from fault
    if not found:
        raise CheckpointError(
            f"{directory.path} has no checkpoint: a probe needs one beside an update",
            name="NO-CHECKPOINT",
        )
    return sorted(found, key=lambda each: each.iteration)


class Finder:
    """Restores updates of one run, whose environments are open."""

    def __init__(self, run: Run, opened: OpenEnvs, *, say: Callable[[str], None]):
        assert run.directory is not None
        self._run, self._opened, self._say = run, opened, say
        self._directory = run.directory
        self._start = jax.jit(run.learner.init)
        self.stored = find_stored(run.directory, jax_native=opened.spec.jax_native)
        rows = run.directory.rows()
        self.done = max((row["iteration"] for row in rows), default=self.stored[-1].iteration)

    def newest(self) -> int:
        """The newest update that the run made and that can be probed as it is."""
        kept = {each.iteration for each in self.stored}
        known = {k for each in kept for k in (each, each + 1) if 1 <= k <= self.done}
        if not known:
            raise ConfigError(f"{self._directory.path} has made no update yet", name="UPDATE")
        return max(known)

    def find(self, iteration: int | None, *, replay: bool) -> Update:
        """The update of one iteration, by the best of what is kept.

        Raises:
            ConfigError: for an iteration that the run never made.
            CheckpointError: where nothing around it is kept, and how to rebuild it.
        """
        wanted = self.newest() if iteration is None else iteration
        if not 1 <= wanted <= self.done:
            raise ConfigError(
                f"--update {wanted}: {self._directory.path} made updates 1 to {self.done}",
                name="UPDATE",
            )
        before = [each for each in self.stored if each.iteration == wanted - 1]
        after = [each for each in self.stored if each.iteration == wanted]
        exact = [each for each in before if each.exact]
        if exact or wanted == 1:
            state = self._restore(exact[0]) if exact else self._begin()
            return self._again(state, 0, after, self._versions_differ(exact))
        if after:
            return self._kept(wanted, self._restore(after[0]))
        if before:
            return self._alike(self._restore(before[0]))
        return self._replayed(wanted, replay=replay)

    def _begin(self) -> LoopState:
        return self._start(self._run.settings.train.seed)

    def _restore(self, stored: Stored) -> LoopState:
        checkpoint = read_checkpoint(stored.path)
        template = jax.eval_shape(self._start, self._run.settings.train.seed)
        state = restore_arrays(template, checkpoint.arrays, str(stored.path))
        if not self._opened.spec.jax_native:
            state = without_open_episodes(state)
        return state

    def _versions_differ(self, stored: list[Stored]) -> bool:
        written = read_checkpoint(stored[0].path).versions if stored else None
        return written is not None and written != versions()

    def _again(
        self, state: LoopState, count: int, after: list[Stored], other_versions: bool
    ) -> Update:
        """The rollout collected and the update made once more, after `count` other iterations."""
        made, batch = make_again(self._run, self._opened, state, count)
        iteration = int(made.learn.iteration)
        source = "its batch was collected again and the update made again"
        if after:
            kept = self._restore(after[0])
            same = _equal(made.learn.params, kept.learn.params)
            source += (
                ", equal to the kept one to the bit"
                if same
                else "; they differ from the kept one in bits: another machine, other versions, "
                "or seeds trained together?"
            )
        elif other_versions:
            source += "; other versions than the run's, so bits may differ"
        else:
            source += ", bit for bit on the versions and in the program that the run was made with"
        return _update(iteration, made, batch, source)

    def _kept(self, iteration: int, state: LoopState) -> Update:
        if not bool(state.lens.ready):
            raise CheckpointError(f"the checkpoint of iteration {iteration} holds no update")
        source = "both policies are the run's own; its batch is gone, so its promise is as recorded"
        hint = max((e.iteration + 1 for e in self.stored if e.exact and e.iteration < self.done),
                   default=None)  # fmt: skip
        if hint is not None:
            source += f" (--update {hint} has its batch)"
        return _update(iteration, state, None, source)

    def _alike(self, state: LoopState) -> Update:
        made, batch = make_again(self._run, self._opened, state, 0)
        source = (
            "an update like the run's: from the policy before it, on a fresh batch, because the "
            "checkpoint was stored in the middle of episodes"
        )
        return _update(int(made.learn.iteration), made, batch, source)

    def _replayed(self, wanted: int, *, replay: bool) -> Update:
        """The update after all iterations since the last exact checkpoint before it."""
        earlier = [each for each in self.stored if each.exact and each.iteration < wanted]
        first = earlier[-1].iteration if earlier else 0
        count = wanted - 1 - first
        cost = f"{count} iterations, {count * self._run.settings.batch_size:,} steps"
        if not replay:
            listed = ", ".join(map(str, sorted({each.iteration for each in self.stored})))
            raise CheckpointError(
                f"update {wanted} was never kept; checkpoints are kept after iterations {listed}; "
                f"--replay rebuilds it from iteration {first}: {cost} again",
                name="NEVER-KEPT",
            )
        self._say(f"replaying from iteration {first}: {cost}")
        state = self._restore(earlier[-1]) if earlier else self._begin()
        other = self._versions_differ(earlier[-1:])
        found = self._again(state, count, [], other)
        return found._replace(source=f"replayed from iteration {first}; {found.source}")


def _equal(first: Any, second: Any) -> bool:
    ours, theirs = name_arrays(first), name_arrays(second)
    return all(np.array_equal(array, theirs[name]) for name, array in ours.items())


def _update(iteration: int, state: LoopState, batch: OwnBatch | None, source: str) -> Update:
    """The update that led to a state, whose lens has what was before it."""
    lens = state.lens
    old, new = lens.params["policy"], state.learn.params["policy"]
    if _equal(old, new):
        raise ConfigError(
            f"update {iteration} changed nothing: its step was refused, there is nothing to probe",
            name="NO-STEP",
        )
    scale = float(lens.return_scale)
    return Update(iteration, old, new, lens.params, lens.obs_stats, scale, batch, source)
