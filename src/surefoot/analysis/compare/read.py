"""Read finished runs back: their scores and curves, and which of their settings differ."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from surefoot.analysis.compare.cells import score_run, stored_score
from surefoot.analysis.compare.comparison import Comparison, LearningCurve, Score
from surefoot.config.differences import differences, flatten
from surefoot.config.settings import OwnNetworks
from surefoot.config.validation import shown
from surefoot.envs.registry import find_env
from surefoot.errors import ConfigError
from surefoot.exact.registry import optimal_episode_return
from surefoot.storage.run_directory import RunDirectory
from surefoot.training.run import load

CHANGES = "changed on the way"


class _Finished(NamedTuple):
    """A run read back; `settings` are those of its rule and of all else but the seed.

    `circumstances` may differ between seeds of one setting: versions, networks of the user's own.
    """

    score: Score
    curve: LearningCurve
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

    Runs of one rule with different settings are named `trpo#1`, `trpo#2`, in the order of `paths`.
    A final policy without a score of as many episodes is evaluated, and its score stored beside
    the run.

    Args:
        paths: run directories, or directories that contain some.
        episodes: of the final policy's evaluation.
        envs: environments that need an import of your own, named again.
        network: your own networks again, where the runs have them.

    Raises:
        CheckpointError: where there is no run, or it cannot be evaluated.
        ConfigError: for a run that is not finished, or one seed of the same settings twice.
    """
    named = {find_env(env, {}).env_id: env for env in envs}
    # By resolved path, so that a run reached through two of `paths` counts once.
    found = {run.resolve(): run for path in paths for run in _runs_below(Path(path))}
    own = network if network is not None else OwnNetworks()
    runs = _number_variants([_read_run(path, episodes, named, own) for path in found.values()])
    by_seed: dict[tuple[str, str, int], _Finished] = {}
    for run in runs:
        other = by_seed.setdefault((run.score.env, run.score.rule, run.score.seed), run)
        if other is not run:
            raise ConfigError(
                f"{other.score.path} and {run.score.path} are the same run twice "
                f"({run.score.rule} on {run.score.env}, seed {run.score.seed}, equal settings), "
                "which would count as two seeds; leave one out"
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
    """The run directory itself, or those below it; a path with none is kept, for its error."""
    if (path / "config.json").exists():
        return [path]
    return sorted(file.parent for file in path.rglob("config.json")) or [path]


def _read_run(path: Path, episodes: int, named: Mapping[str, Any], own: OwnNetworks) -> _Finished:
    directory = RunDirectory(path)
    config, history = directory.config, directory.history
    settings = history.now
    found = stored_score(directory, episodes)
    if found is None:
        found = score_run(load(path, env=named.get(settings.env), network=own), episodes)
    # A run that went on after it was scored is read up to its score.
    rows = [row for row in directory.rows() if row["env_steps"] <= found["env_steps"]]
    evaluations = _column(rows, "eval/return_mean")
    curve = LearningCurve(*_column(rows, "episode/return_mean"), *evaluations)
    kwargs = f" {json.dumps(settings.env_kwargs)}" if settings.env_kwargs else ""
    score = Score(
        env=settings.env + kwargs,
        rule=settings.rule.name,
        seed=settings.train.seed,
        final=float(found["return_mean"]),
        best=float(np.max(curve.eval_returns)) if len(curve.eval_returns) else None,
        env_steps=found["env_steps"],
        path=str(path),
    )
    tables = settings.to_dict()
    decisive = flatten({key: tables[key] for key in ("rule", "train", "network", "critic")})
    # Seeds are the samples of one setting, and no variants.
    del decisive["train.seed"]
    # A run with others on its way is no sample of the settings that it ended with.
    decisive[CHANGES] = "; ".join(change.text for change in history.changes()) or "none"
    circumstances = {
        "own networks": config.get("own_networks", False),
        "versions": dict(config.get("versions", {})),
    }
    optimum = optimal_episode_return(settings.env, settings.env_kwargs)
    return _Finished(score, curve, decisive, flatten(circumstances), optimum)


def _column(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Environment steps and values of the rows that have the key."""
    pairs = [(row["env_steps"], row[key]) for row in rows if key in row]
    return np.array([x for x, _ in pairs], int), np.array([y for _, y in pairs], float)


def _number_variants(runs: list[_Finished]) -> list[_Finished]:
    """Number the settings of each rule that has several, in the names of its runs."""
    variants: dict[tuple[str, str], list[Any]] = {}
    for run in runs:
        known = variants.setdefault((run.score.env, run.score.rule), [])
        if run.settings not in known:
            known.append(run.settings)
    named = []
    for run in runs:
        known = variants[run.score.env, run.score.rule]
        # A rule with one setting keeps its plain name.
        number = f"#{known.index(run.settings) + 1}" if len(known) > 1 else ""
        named.append(run._replace(score=run.score._replace(rule=run.score.rule + number)))
    return named


def _differences(runs: Sequence[_Finished]) -> tuple[str, ...]:
    """Settings that differed between the runs on one environment, a line each.

    Settings of a rule are compared between its own variants alone.
    """
    lines: list[str] = []
    for name in dict.fromkeys(run.settings["rule.name"] for run in runs):
        variants = [run for run in runs if run.settings["rule.name"] == name]
        lines += _differing(variants, of_rule=True)
    lines += _differing(runs, of_rule=False)
    changes = {run.settings[CHANGES] for run in runs}
    if len(changes) == 1 and changes != {"none"}:
        lines.append(f"{CHANGES}: {changes.pop()} in every run")
    return tuple(lines)


def _differing(runs: Sequence[_Finished], *, of_rule: bool) -> list[str]:
    tables = []
    for run in runs:
        everything = run.settings | run.circumstances
        tables.append({k: v for k, v in everything.items() if k.startswith("rule.") == of_rule})
    lines = []
    for key in dict.fromkeys(key for other in tables for key in differences(tables[0], other)):
        values: dict[str, list[str]] = {}
        for run, table in zip(runs, tables, strict=True):
            known, text = values.setdefault(run.score.rule, []), shown(table.get(key))
            if text not in known:
                known.append(text)
        if len({tuple(sorted(known)) for known in values.values()}) > 1:
            each = ", ".join(f"{rule} {' or '.join(known)}" for rule, known in values.items())
            lines.append(f"{key}: {each}")
        else:
            lines.append(f"{key}: {' or '.join(next(iter(values.values())))} within each rule")
    return lines
