"""Finished runs read back: their scores and curves, and what differed between their settings."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from surefoot.analysis.cells import score_run, stored_score
from surefoot.config.presets import settings_of
from surefoot.config.settings import OwnNetworks
from surefoot.config.validation import shown
from surefoot.envs.registry import find_env
from surefoot.envs.tabular import best_possible
from surefoot.errors import ConfigError
from surefoot.storage.run_directory import RunDirectory
from surefoot.training.run import load

SHARED = ("train", "network", "critic")


class Score(NamedTuple):
    """One run's return: of its final policy, and at the best evaluation along the way.

    `best` is None where the run was not evaluated while it trained.
    """

    env: str
    rule: str
    seed: int
    final: float
    best: float | None
    env_steps: int
    path: str


class Curve(NamedTuple):
    """One run's returns over environment steps.

    `returns` are the mean of the training episodes that ended in each iteration, under sampled
    actions; `eval_returns` those of the deterministic evaluations. Iterations without one are
    left out.
    """

    env_steps: Int[np.ndarray, " iteration"]
    returns: Float[np.ndarray, " iteration"]
    eval_steps: Int[np.ndarray, " evaluation"]
    eval_returns: Float[np.ndarray, " evaluation"]


class Failure(NamedTuple):
    """A cell that has no score, and why."""

    cell: str
    message: str


@dataclass(frozen=True)
class Comparison:
    """Scores of rules over seeds, and what else than the rule was different.

    Attributes:
        scores: one a run.
        curves: by environment, rule and seed.
        differences: for each environment, a line for each setting that differed between the
            runs of its rules; empty where nothing but the rule did.
        episodes: episodes behind each final score.
        failures: cells that have no score.
        optima: the largest mean return any policy has, for environments whose table tells it.
    """

    scores: tuple[Score, ...]
    curves: Mapping[tuple[str, str, int], Curve]
    differences: Mapping[str, tuple[str, ...]]
    episodes: int
    failures: tuple[Failure, ...] = ()
    optima: Mapping[str, float] = field(default_factory=dict)

    @property
    def envs(self) -> tuple[str, ...]:
        """Environments, in the order of their first run."""
        return tuple(dict.fromkeys(score.env for score in self.scores))

    def rules(self, env: str) -> tuple[str, ...]:
        """Rules on an environment, in the order of their first run."""
        return tuple(dict.fromkeys(score.rule for score in self.scores if score.env == env))

    def of(self, env: str, rule: str) -> tuple[Score, ...]:
        """The scores of a rule on an environment, one a seed."""
        return tuple(s for s in self.scores if (s.env, s.rule) == (env, rule))


class _Finished(NamedTuple):
    score: Score
    curve: Curve
    rule_settings: dict[str, Any]
    settings: dict[str, Any]
    circumstances: dict[str, Any]
    optimum: float | None


def read_runs(
    paths: Iterable[str | Path],
    episodes: int = 20,
    *,
    envs: Sequence[Any] = (),
    network: OwnNetworks | None = None,
) -> Comparison:
    """Compare finished runs, wherever they are.

    Runs of one rule whose settings differ are told apart as `trpo#1`, `trpo#2`, in the order of
    `paths`, and the differences say how. A final policy without a score of as many episodes is
    evaluated, and its score kept beside the run.

    Args:
        paths: run directories, or directories that have some below them.
        episodes: of the final policy's evaluation.
        envs: environments that need an import of your own, named again.
        network: your own networks again, where the runs have them.

    Raises:
        CheckpointError: where there is no run, or it cannot be evaluated.
        ConfigError: for a run that is not finished, or one seed of the same settings twice.
    """
    named = {find_env(env, {}).env_id: env for env in envs}
    found = {run.resolve(): run for path in paths for run in _runs_below(Path(path))}
    own = network if network is not None else OwnNetworks()
    runs = _tell_apart([_read_run(path, episodes, named, own) for path in found.values()])
    by_seed: dict[tuple[str, str, int], _Finished] = {}
    for run in runs:
        other = by_seed.setdefault((run.score.env, run.score.rule, run.score.seed), run)
        if other is not run:
            raise ConfigError(
                f"{other.score.path} and {run.score.path} are the same run twice "
                f"({run.score.rule} on {run.score.env}, seed {run.score.seed}, equal settings); "
                "it would count as two seeds: leave one out"
            )
    names = dict.fromkeys(run.score.env for run in runs)
    return Comparison(
        scores=tuple(run.score for run in runs),
        curves={key: run.curve for key, run in by_seed.items()},
        differences={env: _differences([r for r in runs if r.score.env == env]) for env in names},
        episodes=episodes,
        optima={run.score.env: run.optimum for run in runs if run.optimum is not None},
    )


def _runs_below(path: Path) -> list[Path]:
    """The run directory itself, or those below; a path with none is left for its error."""
    if (path / "config.json").exists():
        return [path]
    return sorted(file.parent for file in path.rglob("config.json")) or [path]


def _read_run(path: Path, episodes: int, named: Mapping[str, Any], own: OwnNetworks) -> _Finished:
    directory = RunDirectory(path)
    config = directory.config
    settings = settings_of(config)
    score = stored_score(directory, episodes)
    if score is None:
        score = score_run(load(path, env=named.get(settings.env), network=own), episodes)
    rows = [row for row in directory.rows() if row["env_steps"] <= score["env_steps"]]
    curve = Curve(*_column(rows, "episode/return_mean"), *_column(rows, "eval/return_mean"))
    best = float(np.max(curve.eval_returns)) if len(curve.eval_returns) else None
    kwargs = f" {json.dumps(settings.env_kwargs)}" if settings.env_kwargs else ""
    frozen = settings.to_dict()
    rule_settings = {f"rule.{key}": value for key, value in frozen["rule"].items()}
    shared = {f"{section}.{k}": value for section in SHARED for k, value in frozen[section].items()}
    del shared["train.seed"]
    versions = {f"versions.{key}": v for key, v in dict(config.get("versions", {})).items()}
    return _Finished(
        Score(
            settings.env + kwargs,
            settings.rule.name,
            settings.train.seed,
            float(score["return_mean"]),
            best,
            score["env_steps"],
            str(path),
        ),
        curve,
        rule_settings,
        shared,
        {"own networks": config.get("own_networks", False)} | versions,
        best_possible(settings.env, settings.env_kwargs),
    )


def _column(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Environment steps and values of the rows that have the key."""
    pairs = [(row["env_steps"], row[key]) for row in rows if key in row]
    return np.array([x for x, _ in pairs], int), np.array([y for _, y in pairs], float)


def _tell_apart(runs: list[_Finished]) -> list[_Finished]:
    """Name the runs of one rule by their settings, where those are not all the same."""
    variants: dict[tuple[str, str], list[Any]] = {}
    for run in runs:
        known = variants.setdefault((run.score.env, run.score.rule), [])
        if _decides(run) not in known:
            known.append(_decides(run))
    named = []
    for run in runs:
        known = variants[run.score.env, run.score.rule]
        number = f"#{known.index(_decides(run)) + 1}" if len(known) > 1 else ""
        named.append(run._replace(score=run.score._replace(rule=run.score.rule + number)))
    return named


def _decides(run: _Finished) -> dict[str, Any]:
    return run.rule_settings | run.settings


def _differences(runs: Sequence[_Finished]) -> tuple[str, ...]:
    """What differed between the rules' runs on one environment, one setting a line."""
    lines = []
    for name in dict.fromkeys(run.rule_settings["rule.name"] for run in runs):
        lines += _differing([r for r in runs if r.rule_settings["rule.name"] == name], _own)
    return tuple(lines + _differing(runs, lambda run: run.settings | run.circumstances))


def _own(run: _Finished) -> dict[str, Any]:
    return run.rule_settings


def _differing(
    runs: Sequence[_Finished], read: Callable[[_Finished], Mapping[str, Any]]
) -> list[str]:
    lines = []
    for key in dict.fromkeys(key for run in runs for key in read(run)):
        values: dict[str, list[str]] = {}
        for run in runs:
            text, known = shown(read(run).get(key)), values.setdefault(run.score.rule, [])
            if text not in known:
                known.append(text)
        if len({tuple(sorted(known)) for known in values.values()}) > 1:
            told = ", ".join(f"{rule} {' or '.join(known)}" for rule, known in values.items())
            lines.append(f"{key}: {told}")
        elif any(len(known) > 1 for known in values.values()):
            lines.append(f"{key}: {' or '.join(next(iter(values.values())))} within each rule")
    return lines
