"""Rules side by side over seeds: every cell an ordinary run, the same settings for every rule.

`compare` trains the cells that are missing and reads them all; `read_runs` reads finished runs
from anywhere. `table`, `to_dict` and `write_outputs` tell the result.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium

from surefoot.analysis.cells import Cell, Group, grouped, stored_score, train_group, trial
from surefoot.analysis.scores import Comparison, Curve, Failure, Score, read_runs
from surefoot.analysis.tables import folder_name, table, to_dict, write_outputs
from surefoot.config.presets import differing_settings, known_rule, read_settings, settle
from surefoot.config.settings import (
    Critic,
    Network,
    OwnNetworks,
    Rule,
    Settings,
    Train,
)
from surefoot.envs.registry import find_env
from surefoot.errors import ConfigError
from surefoot.parallel.jobs import ComparisonStopped, Outcome, side_by_side
from surefoot.parallel.mesh import claim_devices
from surefoot.storage.run_directory import RunDirectory
from surefoot.training.api import choose_groups

__all__ = [
    "Comparison",
    "ComparisonStopped",
    "Curve",
    "Failure",
    "Score",
    "compare",
    "read_runs",
    "table",
    "to_dict",
    "write_outputs",
]

EVALUATIONS = 10
"""Evaluations along a cell whose settings ask for none."""


def compare(
    envs: Sequence[Any],
    rules: Sequence[str | Rule],
    *,
    seeds: int,
    out: str | Path,
    steps: int | None = None,
    jobs: int = 1,
    devices: int = 1,
    preset: str = "auto",
    changes: Mapping[str, Mapping[str, Any]] | None = None,
    train: Train | None = None,
    network: Network | OwnNetworks | None = None,
    critic: Critic | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    episodes: int = 20,
    tell: Callable[[str], None] = print,
) -> Comparison:
    """Train every rule on every environment with seeds 0, 1, ... and score the final policies.

    Each cell is a run directory `out/<env>/<rule>/seed-<n>`. The same call again goes on where
    it stopped, and with more seeds adds the new ones. A cell that fails is named in the result's
    `failures`; the others stand.

    Args:
        envs: ids; with one job also functions that make an environment, and JaxEnvs.
        rules: names, or rules with settings of their own; each once.
        seeds: how many.
        out: the directory of all cells.
        steps: environment steps of each cell.
        jobs: cells at a time, each in a new process (a script needs its `__main__` guard). The
            seeds of a rule on a JAX-native environment are one program and count as one cell.
        devices: of each such program, whose seeds are shared out among them; with one job.
        preset: all rules get what this preset shares among them; `tuned` gives each rule what
            `auto` gives it alone, critic included.
        changes: fields of settings groups to change for all rules, by group.
        train: settings shared by all rules, taken as they stand.
        network: so too, or your own networks.
        critic: so too.
        env_kwargs: arguments for the environments.
        episodes: fresh deterministic episodes behind each final score.
        tell: called with the expected duration, then with a line for each cell.

    Raises:
        ConfigError: before anything is trained, for wrong settings or an unknown environment,
            and where `out` holds cells of other settings; what differs is listed.
        ComparisonStopped: after SIGINT or SIGTERM, with the checkpoints written.
    """
    for name, count in (("seeds", seeds), ("jobs", jobs), ("episodes", episodes)):
        if count < 1:
            raise ConfigError(f"compare: {name} must be at least 1, got {count}")
    if devices > 1 and jobs > 1:
        raise ConfigError(
            "compare: devices and jobs do not go together: each job would take the same devices"
        )
    if devices > 1 and any(find_env(env, env_kwargs or {}).jax_env is None for env in envs):
        raise ConfigError(
            "compare: devices share out the seeds of JAX-native environments (gymnax:ID); "
            "jobs trains others side by side"
        )
    if devices > seeds:
        raise ConfigError(f"compare: {devices} devices need as many seeds, got {seeds}")
    claim_devices(devices)
    changes = {name: dict(table) for name, table in (changes or {}).items()}
    if steps is not None:
        changes["train"] = {**changes.get("train", {}), "steps": steps}
    fixed = _Fixed(train, network, critic, preset, changes, env_kwargs)
    settings = _settle_all(envs, rules, fixed, jobs)
    own = network if isinstance(network, OwnNetworks) else OwnNetworks()
    pattern = [Cell(env, each, own, Path(out), episodes) for env, each in settings]
    cells = [_with_seed(cell, seed) for seed in range(seeds) for cell in pattern]
    for cell in cells:
        _refuse_other_settings(cell)
    waiting = [c for c in cells if stored_score(RunDirectory(c.path), episodes) is None]
    failures = _train_all(grouped(waiting), len(cells), jobs, devices, tell) if waiting else {}
    result = read_runs([cell.path for cell in cells if cell.name not in failures], episodes)
    return replace(result, failures=tuple(Failure(*failure) for failure in failures.items()))


def _with_seed(cell: Cell, seed: int) -> Cell:
    """The cell of one seed, in a directory of its own below the pattern's."""
    settings = cell.settings.with_train(seed=seed)
    path = cell.path / folder_name(settings.env) / settings.rule.name / f"seed-{seed}"
    return cell._replace(settings=settings, path=path)


class _Fixed(NamedTuple):
    """What all rules of a comparison share."""

    train: Train | None
    network: Network | OwnNetworks | None
    critic: Critic | None
    preset: str
    changes: Mapping[str, Mapping[str, Any]]
    env_kwargs: Mapping[str, Any] | None

    def settle(self, env_id: str, rule: str | Rule) -> Settings:
        """A rule's settings on an environment."""
        tuned = self.preset == "tuned"
        groups = choose_groups(
            env_id,
            rule,
            self.train,
            self.network,
            self.critic,
            preset="auto" if tuned else self.preset,
            shared_only=not tuned,
        )
        settings = settle(env_id, groups, changes=self.changes, env_kwargs=self.env_kwargs)
        asked = self.train is not None or "eval_every" in self.changes.get("train", {})
        if asked or settings.train.eval_every:
            return settings
        return settings.with_train(eval_every=math.ceil(settings.train.steps / EVALUATIONS))


def _settle_all(
    envs: Sequence[Any], rules: Sequence[str | Rule], fixed: _Fixed, jobs: int
) -> list[tuple[Any, Settings]]:
    """Each environment with each rule's settings on it, evaluated along the way."""
    ids = [find_env(env, fixed.env_kwargs or {}).env_id for env in envs]
    for what, names in (
        ("environment", [folder_name(name) for name in ids]),
        ("rule", [known_rule(each) if isinstance(each, str) else each.name for each in rules]),
    ):
        twice = [name for name in names if names.count(name) > 1]
        if twice or not names:
            problem = f"{what} {twice[0]} comes twice" if twice else f"no {what} is given"
            raise ConfigError(
                f"compare: {problem}; variants of one are trained by themselves and compared as "
                "runs"
            )
    for env, name in zip(envs, ids, strict=True):
        if isinstance(env, gymnasium.Env | gymnasium.vector.VectorEnv):
            raise ConfigError(f"{name}: every cell needs its own; give an id or a function")
        if jobs > 1 and not isinstance(env, str):
            raise ConfigError(f"{name}: with several jobs an environment must be an id (module:id)")
    return [
        (env, fixed.settle(env_id, rule))
        for env, env_id in zip(envs, ids, strict=True)
        for rule in rules
    ]


def _refuse_other_settings(cell: Cell) -> None:
    """Refuse a cell's directory that holds a run of other settings.

    Raises:
        ConfigError: lists them.
    """
    directory = RunDirectory(cell.path)
    if not (directory.path / "config.json").exists():
        return
    there = read_settings(directory.config, directory.path / "config.json").to_dict()
    told = list(differing_settings(there, cell.settings).values())
    if told:
        raise ConfigError(
            f"{cell.path} holds a run of other settings: {'; '.join(told)}; choose another --out"
        )


def _train_all(
    groups: Sequence[Group], total: int, jobs: int, devices: int, tell: Callable[[str], None]
) -> dict[str, str]:
    """Train the cells that are missing; the messages of those that failed, by name."""
    tell(forecast(groups, total, jobs, devices))
    failures: dict[str, str] = {}
    ended, count = 0, sum(map(len, groups))

    def done(position: int, outcome: Outcome) -> None:
        group = groups[position]
        failed = [Outcome(None, outcome.error)] * len(group)
        for cell, one in zip(group, outcome.value or failed, strict=True):
            tell_of(cell, one)

    def tell_of(cell: Cell, outcome: Outcome) -> None:
        nonlocal ended
        ended += 1
        if outcome.error is not None:
            failures[cell.name] = outcome.error
            tell(f"{cell.name}: {outcome.error} ({ended} of {count})")
            return
        score = stored_score(RunDirectory(cell.path), cell.episodes) or {}
        final, seconds = score.get("return_mean", math.nan), duration(outcome.value)
        tell(f"{cell.name}: final return {final:.1f}, {seconds} ({ended} of {count})")

    work = partial(train_group, jobs=jobs, devices=devices)
    side_by_side(work, groups, jobs=jobs, done=done)
    return failures


def forecast(groups: Sequence[Group], total: int, jobs: int, devices: int) -> str:
    """How long the cells will take, from a short trial of each rule on each environment.

    Trials run as many at a time as the cells will, so that they share the machine alike; a part
    of an interrupted cell that is done already is counted again.
    """
    kinds = {_kind(group): group for group in groups}
    outcomes: dict[tuple[str, str, int], Outcome] = {}
    names = list(kinds)
    side_by_side(
        partial(trial, devices=devices),
        list(kinds.values()),
        jobs=jobs,
        done=lambda position, outcome: outcomes.update({names[position]: outcome}),
    )
    found = [outcomes[_kind(group)] for group in groups]
    known = [outcome.value for outcome in found if outcome.error is None]
    count = sum(map(len, groups))
    text = f"{count} cells"
    if known:
        seconds = max(sum(known) / min(jobs, len(groups)), *known)
        text += f", about {duration(seconds)} with {jobs} job{'s' if jobs > 1 else ''}"
    if len(groups) < count:
        text += "; the seeds of a JAX-native environment are trained as one program"
    if count < total:
        text += f"; {total - count} of {total} are finished already"
    for (env, rule, _), outcome in outcomes.items():
        if outcome.error is not None:
            text += f"\nthe trial of {rule} on {env} failed: {outcome.error}"
    return text


def _kind(group: Group) -> tuple[str, str, int]:
    """Groups of one kind take equally long."""
    return group[0].settings.env, group[0].settings.rule.name, len(group)


def duration(seconds: float) -> str:
    """Seconds as a person would say them."""
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
