"""Train every rule on every environment over seeds: each cell an ordinary run, settings shared."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium

from surefoot.analysis.compare.cells import (
    Cell,
    Group,
    Workers,
    group_cells,
    stored_score,
    train_group,
)
from surefoot.analysis.compare.comparison import Comparison, Failure
from surefoot.analysis.compare.forecast import forecast
from surefoot.analysis.compare.read import read_runs
from surefoot.analysis.text import duration
from surefoot.config.differences import differences
from surefoot.config.presets import known_rule, read_settings, settle
from surefoot.config.settings import Critic, Network, OwnNetworks, Rule, Settings, Train
from surefoot.config.validation import shown
from surefoot.envs.registry import find_env
from surefoot.errors import ConfigError
from surefoot.parallel.jobs import Outcome, side_by_side
from surefoot.parallel.mesh import claim_devices
from surefoot.storage.names import folder_name
from surefoot.storage.run_directory import RunDirectory
from surefoot.training.api import choose_groups

EVALUATIONS = 10
"""Evaluations during the training of a cell whose settings ask for none."""


class SharedSettings(NamedTuple):
    """Settings that all rules of a comparison share.

    Attributes:
        steps: environment steps of each cell.
        train: settings of the runs, taken as they stand.
        network: so too, or your own networks.
        critic: so too.
        changes: fields of these groups to change, by group.
        preset: gives all rules what it shares among them; `tuned` gives each rule what `auto`
            gives it alone, critic included.
        env_kwargs: arguments for the environments.
    """

    steps: int | None = None
    train: Train | None = None
    network: Network | OwnNetworks | None = None
    critic: Critic | None = None
    changes: Mapping[str, Mapping[str, Any]] = {}
    preset: str = "auto"
    env_kwargs: Mapping[str, Any] | None = None

    def settle(self, env_id: str, rule: str | Rule) -> Settings:
        """All settings of a rule on an environment, with evaluations during training."""
        tuned, changes = self.preset == "tuned", dict(self.changes)
        groups = choose_groups(
            env_id,
            rule,
            self.train,
            self.network,
            self.critic,
            preset="auto" if tuned else self.preset,
            shared_only=not tuned,
        )
        if self.steps is not None:
            changes["train"] = {**changes.get("train", {}), "steps": self.steps}
        settings = settle(env_id, groups, changes=changes, env_kwargs=self.env_kwargs)
        chosen = self.train is not None or "eval_every" in changes.get("train", {})
        if chosen or settings.train.eval_every:
            return settings
        return settings.with_train(eval_every=math.ceil(settings.train.steps / EVALUATIONS))


def compare(
    envs: Sequence[Any],
    rules: Sequence[str | Rule],
    *,
    seeds: int,
    out: str | Path,
    shared: SharedSettings = SharedSettings(),  # noqa: B008 (immutable)
    episodes: int = 20,
    workers: Workers = Workers(),  # noqa: B008
    progress: Callable[[str], None] = print,
) -> Comparison:
    """Train every rule on every environment with seeds 0, 1, ... and score the final policies.

    Each cell is a run directory `out/<env>/<rule>/seed-<n>`. The same call again continues where
    it stopped; with more seeds it adds the new ones. A cell that fails is listed in the result's
    `failures` and does not stop the others.

    Args:
        envs: ids; with one job also functions that make an environment, and JaxEnvs.
        rules: names, or rules with settings of their own; each once.
        seeds: how many.
        out: the directory of all cells.
        shared: settings that the rules share.
        episodes: fresh deterministic episodes behind each final score.
        workers: several `jobs` train cells in new processes (a script needs its `__main__` guard);
            the seeds of a rule on a JAX-native environment are one program and count as one cell,
            and several `devices` share them out.
        progress: called with the expected duration, then with a line for each cell.

    Raises:
        ConfigError: before anything is trained, for wrong settings or an unknown environment,
            and where `out` holds cells of other settings; the differences are listed.
        ComparisonStopped: after a signal, with the checkpoints written.
    """
    _check_counts(seeds, episodes, workers)
    sources = [find_env(env, shared.env_kwargs or {}) for env in envs]
    if workers.devices > 1 and any(source.jax_env is None for source in sources):
        raise ConfigError(
            "compare: devices share out the seeds of JAX-native environments (gymnax:ID); "
            "train others in parallel with jobs"
        )
    names = [known_rule(rule) if isinstance(rule, str) else rule.name for rule in rules]
    ids = [source.env_id for source in sources]
    _refuse_twice("environment", [folder_name(env_id) for env_id in ids])
    _refuse_twice("rule", names)
    for env, env_id in zip(envs, ids, strict=True):
        _check_env(env, env_id, workers.jobs)
    claim_devices(workers.devices)
    own = shared.network if isinstance(shared.network, OwnNetworks) else OwnNetworks()
    pattern = [
        Cell(env, shared.settle(env_id, rule), own, Path(out), episodes)
        for env, env_id in zip(envs, ids, strict=True)
        for rule in rules
    ]
    cells = [_with_seed(cell, seed) for seed in range(seeds) for cell in pattern]
    for cell in cells:
        _refuse_other_settings(cell)
    waiting = [c for c in cells if stored_score(RunDirectory(c.path), episodes) is None]
    groups = group_cells(waiting)
    failures = _train_all(groups, len(cells), workers, progress) if waiting else {}
    result = read_runs([cell.path for cell in cells if cell.name not in failures], episodes)
    return replace(result, failures=tuple(Failure(*failure) for failure in failures.items()))


def _check_counts(seeds: int, episodes: int, workers: Workers) -> None:
    for name, count in (("seeds", seeds), ("jobs", workers.jobs), ("episodes", episodes)):
        if count < 1:
            raise ConfigError(f"compare: {name} must be at least 1, got {count}")
    if workers.devices > 1 and workers.jobs > 1:
        raise ConfigError(
            "compare: devices and jobs cannot be combined: each job would take the same devices"
        )
    if workers.devices > seeds:
        raise ConfigError(f"compare: {workers.devices} devices need as many seeds, got {seeds}")


def _refuse_twice(what: str, names: list[str]) -> None:
    twice = [name for name in names if names.count(name) > 1]
    if twice or not names:
        problem = f"{what} {twice[0]} is given twice" if twice else f"no {what} is given"
        raise ConfigError(
            f"compare: {problem}; train variants of one separately and compare their runs"
        )


def _check_env(env: Any, env_id: str, jobs: int) -> None:
    if isinstance(env, gymnasium.Env | gymnasium.vector.VectorEnv):
        raise ConfigError(f"{env_id}: each cell opens its own environment; give an id or function")
    if jobs > 1 and not isinstance(env, str):
        raise ConfigError(f"{env_id}: with several jobs an environment must be an id (module:id)")


def _with_seed(cell: Cell, seed: int) -> Cell:
    """The cell of one seed, in a directory of its own below the pattern's."""
    settings = cell.settings.with_train(seed=seed)
    path = cell.path / folder_name(settings.env) / settings.rule.name / f"seed-{seed}"
    return cell._replace(settings=settings, path=path)


def _refuse_other_settings(cell: Cell) -> None:
    """Refuse a cell's directory that holds a run of other settings.

    Raises:
        ConfigError: lists them.
    """
    directory = RunDirectory(cell.path)
    file = directory.path / "config.json"
    if not file.exists():
        return
    stored = read_settings(directory.config, file).to_dict()
    found = differences(stored, cell.settings.to_dict())
    if found:
        listed = "; ".join(
            f"{name} is {shown(there)} there and {shown(here)} here"
            for name, (there, here) in found.items()
        )
        raise ConfigError(
            f"{cell.path} holds a run with other settings: {listed}; choose another --out"
        )


def _train_all(
    groups: Sequence[Group], total: int, workers: Workers, progress: Callable[[str], None]
) -> dict[str, str]:
    """Train the cells that are missing; the messages of those that failed, by name."""
    progress(forecast(groups, total, workers))
    failures: dict[str, str] = {}
    ended, count = 0, sum(map(len, groups))

    def done(position: int, outcome: Outcome) -> None:
        nonlocal ended
        group = groups[position]
        failed = [Outcome(None, outcome.error)] * len(group)
        for cell, one in zip(group, outcome.value or failed, strict=True):
            ended += 1
            if one.error is not None:
                failures[cell.name] = one.error
                text = one.error
            else:
                score = stored_score(RunDirectory(cell.path), cell.episodes) or {}
                final = score.get("return_mean", math.nan)
                text = f"final return {final:.1f}, {duration(one.value)}"
            progress(f"{cell.name}: {text} ({ended} of {count})")

    side_by_side(partial(train_group, workers=workers), groups, jobs=workers.jobs, done=done)
    return failures
