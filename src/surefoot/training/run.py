"""A run: its settings, state, metrics and directory; and how it is begun, opened and evaluated."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from surefoot.config.presets import read_settings
from surefoot.config.settings import OwnNetworks, Settings
from surefoot.envs.host import EnvLimits
from surefoot.envs.registry import find_env, imports_nothing
from surefoot.envs.source import EnvSource, OpenEnvs
from surefoot.errors import CheckpointError, ConfigError, NotFiniteError
from surefoot.formulas.intervals import mean_interval
from surefoot.networks.actor_critic import build
from surefoot.networks.policy import Policy
from surefoot.storage.checkpoint import restore_arrays
from surefoot.storage.compilation_cache import keep_programs
from surefoot.storage.run_directory import RunDirectory, finite_row
from surefoot.training.callback import Row
from surefoot.training.evaluate import Evaluation, evaluate
from surefoot.training.learner import Learner
from surefoot.training.memory import check_size
from surefoot.training.state import LoopState, without_open_episodes

MAX_EVALUATION_ENVS = 10


@dataclass
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

    @property
    def policy(self) -> Policy:
        """What it has learned."""
        return Policy(
            self.learner.spec,
            self.learner.actor,
            self.state.learn.params["policy"],
            self.state.learn.obs_stats,
        )

    def evaluate(
        self, episodes: int = 20, *, stochastic: bool = False, seed: int | None = None
    ) -> dict[str, Any]:
        """Play whole episodes on environments of its own; the policy and its normaliser stay.

        Returns:
            `return_mean`, `return_std`, `return_ci95` (a t interval over episodes), `episodes`,
            `length_mean`, `returns`; `success_rate` where the infos tell `is_success`.

        Raises:
            NotFiniteError: where the environment's rewards are not finite.
        """
        number = self.settings.train.seed + 1_000_003 if seed is None else seed
        evaluator = Evaluator(self.settings, self.source, self.learner, episodes)
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
    """Separate environments for evaluation, kept open between two evaluations."""

    def __init__(self, settings: Settings, source: EnvSource, learner: Learner, episodes: int):
        self._learner, self._episodes = learner, episodes
        if not source.reopens:
            raise ConfigError(
                f"{source.env_id} came as a ready vector environment: evaluation needs more of "
                "them; give a function that makes one environment"
            )
        self._env = source.open(
            min(episodes, MAX_EVALUATION_ENVS),
            seed=settings.train.seed,
            limits=EnvLimits.from_settings(settings.train),
        )

    def __call__(self, state: LoopState, seed: int, *, stochastic: bool) -> dict[str, Any]:
        """Play the episodes; what `Run.evaluate` returns."""
        result = evaluate(
            self._env,
            self._learner.actor,
            state.learn.params["policy"],
            state.learn.obs_stats,
            episodes=self._episodes,
            stochastic=stochastic,
            seed=seed,
        )
        return summarize(result)

    def close(self) -> None:
        """Close the environments."""
        self._env.close()


def summarize(evaluation: Evaluation) -> dict[str, Any]:
    """Mean, spread and 95 % t interval of the returns of an evaluation; of one, no interval."""
    returns, count = evaluation.returns, len(evaluation.returns)
    interval = mean_interval(returns)
    summary = {
        "return_mean": float(np.mean(returns)),
        "return_std": float(np.std(returns, ddof=1)) if count > 1 else 0.0,
        "return_ci95": interval and [interval.low, interval.high],
        "episodes": count,
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
    to_train: bool = True,
    elsewhere: bool = False,
) -> tuple[Run, OpenEnvs]:
    """A run at its first iteration, and its environments, opened.

    They are spread over processes only where they are there `to_train`; where they are stepped
    `elsewhere`, one alone is opened, to look at.
    """
    # Nothing here computes while Python does something else, and handing a step's small program to
    # another thread takes longer than running it. It has no effect where JAX has been used before.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    keep_programs()
    train = settings.train
    processes, count = 1, 1 if elsewhere else train.num_envs
    if to_train and not elsewhere:
        processes = source.num_processes(
            train.vectorization, num_envs=train.num_envs, steps=train.steps
        )
    limits = EnvLimits.from_settings(train)
    opened = source.open(count, seed=train.seed, processes=processes, limits=limits)
    try:
        network = build(opened.spec, settings.network, own.policy, own.critic)
        learner = Learner(settings, opened.spec, network, source.jax_env)
        # Traced first: shapes are known before any memory is taken.
        start = jax.jit(learner.init).trace(np.int32(train.seed))
        check_size(start.out_info, f"{settings.env}'s run")
        state = start.lower().compile()(np.int32(train.seed))
        return Run(settings, source, learner, state), opened
    except BaseException:
        if source.reopens:  # a vector environment of the user's own stays open
            opened.close()
        raise


def named_source(directory: RunDirectory, env: Any = None) -> tuple[Settings, EnvSource]:
    """The settings of a run, and the source of its environments; nothing it names is imported.

    Raises:
        CheckpointError: where there is no run, or its environment must be named again.
    """
    config, path = directory.config, directory.path
    named = config.get("env")
    if not isinstance(named, str):
        raise CheckpointError(f"{path}: config.json names no environment")
    local = config.get("env_from_python", False) or not imports_nothing(named)
    if env is None and local:
        raise CheckpointError(
            f"{path} was trained on {named}, which loading will not import by itself; "
            f"name it again: --env {named} (in Python: env=...)",
            name="NAME-ENV",
        )
    settings = read_settings(config, path / "config.json")
    by_id = env is None or isinstance(env, str)
    return settings, find_env(named if env is None else env, settings.env_kwargs if by_id else {})


def open_run(
    path: str | Path,
    *,
    env: Any = None,
    own: OwnNetworks | None = None,
    folder: str = "checkpoints",
    exact: bool = False,
    to_train: bool = False,
    settings: Settings | None = None,
    elsewhere: bool = False,
) -> tuple[Run, OpenEnvs]:
    """A run from its directory, and its environments, opened.

    Nothing that the directory names is imported: an environment that needs an import of the
    user's own, and own networks, must be given again. `settings` take the place of its own.

    Raises:
        CheckpointError: where there is no run, no good checkpoint, or something must be named.
    """
    directory, own = RunDirectory(Path(path)), own or OwnNetworks()
    frozen, source = named_source(directory, env)
    settings, config = settings or frozen, directory.config
    if config.get("own_networks", False) and own == OwnNetworks():
        raise CheckpointError(
            f"{path} was trained with a network of your own; give it again (network=...)",
            name="NAME-NETWORK",
        )
    checkpoint = directory.newest(exact=exact, folder=folder)
    run, opened = begin(settings, source, own, to_train=to_train, elsewhere=elsewhere)
    try:
        _check_spaces(run, config, path)
        state = restore_arrays(run.state, checkpoint.arrays, str(path))
    except CheckpointError:
        if source.reopens:
            opened.close()
        raise
    if not opened.spec.jax_native:
        # Its environments start new episodes, whatever was open when the checkpoint was written.
        state = without_open_episodes(state)
    rows = [row for row in directory.rows() if row["iteration"] <= checkpoint.iteration]
    run = replace(run, state=state, rows=rows, directory=directory, env_steps=checkpoint.env_steps)
    return run, opened


def recorded_spaces(run: Run) -> dict[str, str]:
    """The spaces of a run as its configuration keeps them."""
    spec = run.learner.spec
    return {
        "observation_space": str(spec.observation_space),
        "action_space": str(spec.action_space),
    }


def _check_spaces(run: Run, config: dict[str, Any], path: str | Path) -> None:
    """Refuse an environment whose arrays may fit, and whose spaces do not."""
    differences = [
        f"its {name.replace('_', ' ')} is {config[name]}, this environment's is {found}"
        for name, found in recorded_spaces(run).items()
        if config.get(name, found) != found
    ]
    if differences:
        raise CheckpointError(
            f"{path} is of another environment: {'; '.join(differences)}; name the one it was "
            "trained on",
            name="OTHER-ENV",
        )


def load(
    path: str | Path,
    *,
    env: Any = None,
    network: OwnNetworks | None = None,
    best: bool = False,
) -> Run:
    """A run from its directory, at its newest checkpoint or at its best evaluation.

    Args:
        path: the run directory.
        env: the environment again, where it needs an import of your own.
        network: your own networks again, where the run has them.
        best: the checkpoint of the best evaluation (`--eval-every`) and not the newest.

    Raises:
        CheckpointError: where there is no run, no good checkpoint, or something must be named.
    """
    run, opened = open_run(path, env=env, own=network, folder="best" if best else "checkpoints")
    opened.close()
    return run
