"""A run: its settings, state, metrics and directory; and how it is begun, opened and evaluated."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from surefoot.config.presets import read_settings
from surefoot.config.settings import OwnNetworks, Settings
from surefoot.envs.env_id import imports_nothing
from surefoot.envs.global_generators import kept_generators
from surefoot.envs.host import EnvLimits, HostEnv
from surefoot.envs.jax_contract import check_jax_env, check_numbers
from surefoot.envs.registry import find_env
from surefoot.envs.source import DeferredSource, EnvSource, OpenEnvs
from surefoot.errors import CheckpointError, ConfigError, NotFiniteError
from surefoot.formulas.intervals import mean_interval
from surefoot.jax_defaults import jax_defaults
from surefoot.networks.actor_critic import build
from surefoot.networks.policy import Policy
from surefoot.storage.checkpoint import Checkpoint, restore_arrays
from surefoot.storage.compilation_cache import keep_programs
from surefoot.storage.recorded_spec import read_spec
from surefoot.storage.run_directory import RunDirectory, finite_row
from surefoot.training.callback import Row
from surefoot.training.evaluate import Evaluation, evaluate
from surefoot.training.learner import Learner
from surefoot.training.memory import check_size
from surefoot.training.state import LoopState, without_open_episodes
from surefoot.types import EnvSpec

MAX_EVALUATION_ENVS = 10
EPISODE_WITHOUT_END = 10_000
"""Steps an episode of an evaluation has on average where the environment states no time limit."""


@dataclass(repr=False)
class Run:
    """A run, whether finished, stopped or read from its directory.

    Attributes:
        settings: every setting.
        source: opens more environments like those it trained in.
        learner: the run's pure functions.
        state: its current state.
        rows: one row of metrics per iteration.
        directory: where it is kept, or None.
        env_steps: valid environment steps so far.
    """

    settings: Settings
    source: EnvSource
    learner: Learner
    state: LoopState
    rows: list[Row] = field(default_factory=list)
    directory: RunDirectory | None = None
    env_steps: int = 0

    def __repr__(self) -> str:
        kept = f", kept in {self.directory.path}" if self.directory else ""
        done = f"{self.iteration} of {self.settings.num_iterations} iterations"
        return f"<Run of {self.settings.rule.name} on {self.settings.env}: {done}{kept}>"

    def advance(self, state: LoopState, metrics: Sequence[Mapping[str, Any]]) -> list[Row]:
        """Move on to a later state, with the metrics of each iteration since; their rows."""
        before, self.state = self.iteration, state
        rows = []
        for offset, values in enumerate(metrics):
            steps = int(values["env_steps"])
            self.env_steps += steps
            row = {"iteration": before + offset + 1} | finite_row(values)
            row["env_steps"] = self.env_steps
            row["time/steps_per_second"] = steps / values["time/iteration"]
            rows.append(row)
        self.rows += rows
        return rows

    def set_state(self, state: LoopState) -> None:
        """Replace the state by one at the same iteration."""
        self.state = state

    @property
    def iteration(self) -> int:
        """Iterations done."""
        return int(self.state.learn.iteration)

    @property
    def finished(self) -> bool:
        """Whether every planned iteration is done."""
        return self.iteration >= self.settings.num_iterations

    def settings_at(self, iteration: int) -> Settings:
        """The settings that made an update, counted from 1: those before an override differ."""
        if self.directory is None:
            return self.settings
        return self.directory.history.at(iteration)

    @property
    def policy(self) -> Policy:
        """What it has learned."""
        return Policy(
            self.learner.spec,
            self.learner.actor,
            self.state.learn.params["policy"],
            self.state.learn.obs_stats,
        )

    @jax_defaults()
    def evaluate(
        self,
        episodes: int = 20,
        *,
        stochastic: bool = False,
        seed: int | None = None,
        max_steps: int | None = None,
    ) -> dict[str, Any]:
        """Play whole episodes on environments of its own; the policy and its normaliser stay.

        Args:
            episodes: to play.
            stochastic: sample actions; else the policy's mode.
            seed: of the environments and actions.
            max_steps: environment steps of all episodes together; None: `eval_max_steps`.

        Returns:
            `return_mean`, `return_std`, `return_ci95` (a t interval over episodes), `episodes`,
            `cut` (those that `eval_max_steps` ended), `length_mean`, `returns`; `success_rate`
            where the infos have `is_success`.

        Raises:
            NotFiniteError: where the environment's rewards are not finite.
        """
        number = self.settings.train.seed + 1_000_003 if seed is None else seed
        if episodes < 1:
            raise ConfigError(f"episodes must be at least 1, got {episodes}")
        settings = self.settings
        if max_steps is not None:
            settings = settings.with_train(eval_max_steps=max_steps)
        evaluator = Evaluator(settings, self.source, self.learner, episodes)
        try:
            result = evaluator(self.state, number, stochastic=stochastic)
        finally:
            evaluator.close()
        if not np.isfinite(result["returns"]).all():
            raise NotFiniteError(
                f"{self.settings.env}: returns of {episodes} evaluation episodes are not finite; "
                "look at the environment's rewards"
            )
        return result


class Evaluator:
    """Environments for evaluation, kept open between two evaluations: its own, or those given."""

    def __init__(
        self,
        settings: Settings,
        source: EnvSource,
        learner: Learner,
        episodes: int,
        env: "OpenEnvs | None" = None,
    ):
        train = settings.train
        self._learner, self._episodes = learner, episodes
        limit = learner.spec.max_episode_steps or max(EPISODE_WITHOUT_END, train.num_steps)
        self._max_steps = train.eval_max_steps or episodes * limit
        self._opened = None
        if env is None:
            # No more than trained: there may be licences, ports or memory for so many.
            count = min(episodes, MAX_EVALUATION_ENVS, train.num_envs)
            with kept_generators():  # those of training go on as if nothing had been opened
                count = count if source.reopens else train.num_envs
                self._opened = env = source.open(
                    count,
                    seed=train.seed,
                    processes=self._processes(settings, source, count),
                    limits=EnvLimits.from_settings(train),
                )
        self._env = env
        try:
            check_spaces(self._env.spec, learner.spec, f"the policy for {settings.env}")
        except CheckpointError:
            self.close()
            raise

    def __call__(self, state: LoopState, seed: int, *, stochastic: bool) -> dict[str, Any]:
        """Play the episodes; what `Run.evaluate` returns."""
        with kept_generators():
            result = evaluate(
                self._env,
                self._learner.actor,
                state.learn.params["policy"],
                state.learn.obs_stats,
                episodes=self._episodes,
                max_steps=self._max_steps,
                stochastic=stochastic,
                seed=seed,
            )
        if result.cut:
            warnings.warn(
                f"{result.cut} of {len(result.returns)} evaluation episodes of "
                f"{self._learner.spec.env_id} were cut before their end, and count as far as they "
                f"were played: all together took {self._max_steps:,} steps (--eval-max-steps)",
                stacklevel=2,
            )
        return summarize(result)

    @staticmethod
    def _processes(settings: Settings, source: EnvSource, count: int) -> int:
        """As many as were asked for; whether more than one save time is not tried again."""
        wanted = settings.train.vectorization
        if wanted == "auto":
            return 1
        return source.num_processes(wanted, num_envs=count, steps=settings.train.steps)

    def close(self) -> None:
        """Close the environments that it has opened."""
        if self._opened is not None:
            self._opened.close()


@np.errstate(invalid="ignore")  # of returns that are not finite, as their mean shows
def summarize(evaluation: Evaluation) -> dict[str, Any]:
    """Mean, spread and 95 % t interval of the returns of an evaluation; of one, no interval."""
    returns, count = evaluation.returns, len(evaluation.returns)
    interval = mean_interval(returns)
    summary = {
        "return_mean": float(np.mean(returns)),
        "return_std": float(np.std(returns, ddof=1)) if count > 1 else 0.0,
        "return_ci95": interval and [interval.low, interval.high],
        "episodes": count,
        "cut": evaluation.cut,
        "length_mean": float(np.mean(evaluation.lengths)),
        "returns": [float(total) for total in returns],
    }
    successes = [info["is_success"] for info in evaluation.infos if "is_success" in info]
    if successes:
        summary["success_rate"] = float(np.mean(successes))
    return summary


def begin(
    settings: Settings,
    source: EnvSource,
    own: OwnNetworks,
    *,
    elsewhere: bool = False,
) -> tuple[Run, OpenEnvs]:
    """A run at its first iteration, and its environments, opened.

    Where they are stepped `elsewhere`, one alone is opened, to look at.
    """
    opened = _open_envs(settings, source, elsewhere=elsewhere)
    try:
        opened.visit(jax=check_jax_env, host=_warn_of_notes)
        learner, start = _trace(settings, source, own, opened.spec)
        state = start.lower().compile()(np.int32(settings.train.seed))
        if state.env is not None:
            check_numbers(opened.spec, state.env.obs, strict=settings.train.strict_env)
        return Run(settings, source, learner, state), opened
    except BaseException:
        opened.close()
        raise


def _open_envs(settings: Settings, source: EnvSource, *, elsewhere: bool) -> OpenEnvs:
    train, processes = settings.train, 1
    if not elsewhere:
        processes = source.num_processes(
            train.vectorization, num_envs=train.num_envs, steps=train.steps
        )
    return source.open(
        1 if elsewhere else train.num_envs,
        seed=train.seed,
        processes=processes,
        limits=EnvLimits.from_settings(train),
    )


def _warn_of_notes(env: HostEnv) -> None:
    for note in env.notes:
        warnings.warn(f"{env.spec.env_id}: {note}", stacklevel=2)


def _trace(
    settings: Settings, source: EnvSource, own: OwnNetworks, spec: EnvSpec
) -> tuple[Learner, Any]:
    """A run's learner, and its start, traced: shapes are known before any memory is taken."""
    # Nothing here computes while Python does something else, and handing a step's small program to
    # another thread takes longer than running it. It has no effect where JAX has been used before.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    keep_programs()
    affine = settings.train.affine
    network = build(spec, settings.network, own.policy, own.critic, affine=affine)
    learner = Learner(settings, spec, network, source.jax_env)
    start = jax.jit(learner.init).trace(np.int32(settings.train.seed))
    check_size(start.out_info, f"{settings.env}'s run")
    return learner, start


class _Stored(NamedTuple):
    """A run as its directory has it."""

    directory: RunDirectory
    settings: Settings
    source: EnvSource
    own: OwnNetworks
    checkpoint: Checkpoint

    @property
    def spec(self) -> EnvSpec | None:
        """What the run recorded of its environment, if its spaces have a record."""
        if self.source.jax_env is not None:
            return self.source.jax_env.spec
        return recorded_spec(self.directory, self.settings.env)

    def run(self, spec: EnvSpec) -> Run:
        """The run, on environments of this spec."""
        found, path = self.checkpoint, str(self.directory.path)
        expected = recorded_spec(self.directory, self.settings.env)
        if expected is not None:
            check_spaces(spec, expected, path)
        learner, start = _trace(self.settings, self.source, self.own, spec)
        state = restore_arrays(start.out_info, found.arrays, path)
        if not spec.jax_native:
            # Its environments start new episodes, whatever was open when it was written.
            state = without_open_episodes(state)
        rows = [row for row in self.directory.rows() if row["iteration"] <= found.iteration]
        return Run(
            self.settings, self.source, learner, state, rows, self.directory, found.env_steps
        )


def named_source(
    directory: RunDirectory,
    env: Any = None,
    *,
    to_open: bool = True,
    settings: Settings | None = None,
) -> tuple[Settings, EnvSource]:
    """The settings of a run, and the source of its environments; nothing it names is imported.

    One that is not `to_open` is looked for when it is opened, if ever. `settings` take the place
    of its own.

    Raises:
        CheckpointError: where there is no run, or its environment must be named again.
    """
    config, path = directory.config, directory.path
    named = settings.env if settings else config.get("env")
    if not isinstance(named, str):
        raise CheckpointError(f"{path}: config.json names no environment")
    local = config.get("env_from_python", False) or not imports_nothing(named)
    found = settings or read_settings(config, path / "config.json")

    def find() -> EnvSource:
        if env is None and local:
            raise CheckpointError(
                f"{path} was trained on {named}, which loading will not import by itself; "
                f"name it again: --env {named} (in Python: env=...)",
                name="NAME-ENV",
            )
        by_id = env is None or isinstance(env, str)
        kwargs = found.env_kwargs if by_id else {}
        return find_env(named if env is None else env, kwargs)

    if to_open or env is not None or recorded_spec(directory, named) is None:
        return found, find()
    return found, DeferredSource(env_id=named, find=find)


def _read(
    path: str | Path,
    env: Any,
    own: OwnNetworks | None,
    *,
    folder: str = "checkpoints",
    exact: bool = False,
    to_open: bool = True,
    settings: Settings | None = None,
) -> _Stored:
    """What a directory has of a run.

    Raises:
        CheckpointError: where there is no run, no good checkpoint, or something must be named.
    """
    directory, own = RunDirectory(path), own or OwnNetworks()
    found, source = named_source(directory, env, to_open=to_open, settings=settings)
    if directory.config.get("own_networks", False) and own == OwnNetworks():
        raise CheckpointError(
            f"{path} was trained with a network of your own; give it again, in Python: network=...",
            name="NAME-NETWORK",
        )
    checkpoint = directory.newest(exact=exact, folder=folder)
    if folder == "best" and settings is None:
        # A policy acts as it did, whatever was overridden since.
        settings = directory.history.at(checkpoint.iteration)
        found, source = named_source(directory, env, to_open=to_open, settings=settings)
    return _Stored(directory, found, source, own, checkpoint)


def open_run(
    path: str | Path,
    *,
    env: Any = None,
    own: OwnNetworks | None = None,
    folder: str = "checkpoints",
    exact: bool = False,
    settings: Settings | None = None,
    elsewhere: bool = False,
) -> tuple[Run, OpenEnvs]:
    """A run from its directory, and its environments, opened.

    Nothing that the directory names is imported: an environment that needs an import of the
    user's own, and own networks, must be given again. `settings` take the place of its own.

    Raises:
        CheckpointError: where there is no run, no good checkpoint, or something must be named.
    """
    stored = _read(path, env, own, folder=folder, exact=exact, settings=settings)
    opened = _open_envs(stored.settings, stored.source, elsewhere=elsewhere)
    try:
        opened.visit(jax=check_jax_env, host=_warn_of_notes)
        return stored.run(opened.spec), opened
    except BaseException:
        opened.close()
        raise


def recorded_spec(directory: RunDirectory, env_id: str) -> EnvSpec | None:
    """What a run recorded of its environments, if their spaces have a record."""
    file = directory.path / "config.json"
    return read_spec(directory.config.get("spec"), env_id, str(file))


def check_spaces(found: EnvSpec, expected: EnvSpec, where: str) -> None:
    """Refuse an environment whose arrays may fit, and whose spaces do not.

    Raises:
        CheckpointError: with the spaces that differ.
    """
    differences = []
    for name in ("observation_space", "action_space"):
        own, other = getattr(expected, name), getattr(found, name)
        if own != other:
            text = f"its {name.replace('_', ' ')} is {own}, this environment's is {other}"
            differences.append(text if str(own) != str(other) else f"{text}, with other bounds")
    if differences:
        raise CheckpointError(
            f"{where} is of another environment: {'; '.join(differences)}; name the one it was "
            "trained on",
            name="OTHER-ENV",
        )


@jax_defaults()
def load(
    path: str | Path,
    *,
    env: Any = None,
    network: OwnNetworks | None = None,
    best: bool = False,
) -> Run:
    """A run from its directory, at its newest checkpoint or at its best evaluation.

    No environment is opened: `evaluate` does that, and may then ask for it by name.

    Args:
        path: the run directory.
        env: the environment again, where it needs an import of your own.
        network: your own networks again, where the run has them.
        best: the checkpoint of the best evaluation (`--eval-every`) and not the newest, with the
            settings of its iteration.

    Raises:
        CheckpointError: where there is no run, no good checkpoint, or something must be named.
    """
    stored = _read(path, env, network, folder="best" if best else "checkpoints", to_open=False)
    spec = stored.spec
    if spec is None:
        opened = _open_envs(stored.settings, stored.source, elsewhere=True)
        spec = opened.spec
        opened.close()
    return stored.run(spec)
