"""One update of a run, looked at from fresh episodes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from surefoot.analysis.probe.batches import batch_rows
from surefoot.analysis.probe.contenders import judge_networks, network_player
from surefoot.analysis.probe.result import Origin, Probe, conclude
from surefoot.analysis.probe.scoring import OldRows, Scores, score
from surefoot.analysis.probe.sweep import (
    FRACTIONS,
    NEW,
    Findings,
    Place,
    Setting,
    first_pairs,
    sweep,
)
from surefoot.analysis.probe.terms import (
    CLIP_EPS,
    Progress,
    budget_of,
    cut_at,
    quiet,
    refuse_vectors,
)
from surefoot.analysis.probe.updates import FOLDERS, Finder, Update
from surefoot.config.settings import OwnNetworks
from surefoot.storage.run_directory import RunDirectory
from surefoot.training.batch import horizon_of
from surefoot.training.run import Run, open_run
from surefoot.types import Params

Say = Callable[[str], None]


def probe_run(
    path: str | Path,
    update: int | None = None,
    *,
    budget: int | None = None,
    replay: bool = False,
    seed: int = 0,
    env: Any = None,
    network: OwnNetworks | None = None,
    say: Say = quiet,
    progress: Progress = quiet,
) -> Probe:
    """Look at one update of a run from fresh episodes: what it promised, what it got, how far.

    Args:
        path: the run directory; it is only read.
        update: the iteration whose update is probed; the newest that can be, where it is None.
        budget: environment steps; 200,000, or 1,000,000 where the environment is JAX-native.
        replay: make iterations again, from the last exact checkpoint, where nothing is kept.
        seed: of the fresh episodes.
        env: the environment again, where it needs an import of your own.
        network: your own networks again, where the run has them.
        say: told in words what is about to be done.
        progress: told how many steps are done, of how many.

    Raises:
        CheckpointError: where the run keeps nothing to probe from; see its message.
        ConfigError: for an update that the run never made, or a budget that is too small.
    """
    folder = _a_folder(path)
    run, opened = open_run(path, env=env, own=network, folder=folder)
    try:
        refuse_vectors(run.source)
        found = Finder(run, opened, say=say).find(update, replay=replay)
    finally:
        opened.close()
    setting = _setting_of(run, found, budget, seed)
    title = f"update {found.iteration} of {path} ({run.settings.rule.name} on {run.settings.env})"
    say(f"{title}: at most {setting.budget:,} environment steps (--budget)")
    return _probe_update(run, found, setting, title, seed, progress)


def _a_folder(path: str | Path) -> str:
    """A folder of the run that has checkpoints; the first where none has."""
    directory = RunDirectory(Path(path))
    return next((name for name in FOLDERS if directory.checkpoints(name)), FOLDERS[0])


def _setting_of(run: Run, found: Update, budget: int | None, seed: int) -> Setting:
    train, spec, actor = run.settings.train, run.learner.spec, run.learner.actor
    limit = cut_at(train.gamma, spec.max_episode_steps)
    player = network_player(
        actor, run.source, spec, found.obs_stats, gamma=train.gamma, limit=limit, seed=seed
    )
    return Setting(
        player=player,
        judge=judge_networks(actor, found.before, found.obs_stats, found.return_scale),
        policy=lambda place: _on_line(found.old, found.new, place[1]),
        gamma=train.gamma,
        gae_lambda=train.gae_lambda,
        clip_eps=getattr(run.settings.rule, "clip_eps", CLIP_EPS),
        horizon=horizon_of(run.settings, spec),
        limit=limit,
        budget=budget_of(budget, spec.jax_native),
    )


def _on_line(old: Params, new: Params, fraction: float) -> Params:
    """The policy at a fraction of the way from old to new, beyond it above 1."""
    if fraction in (0.0, 1.0):
        return (old, new)[int(fraction)]
    return jax.tree.map(lambda a, b: a + fraction * (b - a), old, new)


def _probe_update(
    run: Run, found: Update, setting: Setting, title: str, seed: int, progress: Progress
) -> Probe:
    findings = Findings(setting, lambda steps: progress(steps, setting.budget))
    try:
        first_pairs(findings)
        away = random_twin(setting, findings.rows, found.old, seed)

        def policy(place: Place) -> Params:
            if place[0] == "update":
                return _on_line(found.old, found.new, place[1])
            return jax.tree.map(lambda a, d: a + place[1] * d, found.old, away)

        setting = setting._replace(policy=policy)
        findings.setting = setting
        sweep(findings, FRACTIONS, random=True)
    finally:
        setting.player.close()
    batch: dict[Place, Scores] = {}
    if found.batch is not None:
        rows = batch_rows(found.batch, setting)
        for place in findings.scores:
            batch[place] = score(
                setting.judge, found.old, policy(place), rows, clip_eps=setting.clip_eps
            )
    recorded = [row for row in run.directory.rows() if row["iteration"] == found.iteration]  # type: ignore[union-attr]
    promise = recorded[-1].get("surrogate/promised_gain") if recorded else None
    return conclude(findings, Origin(title, found.iteration, found.source, batch, promise))


def random_twin(setting: Setting, rows: OldRows, old: Params, seed: int) -> Params:
    """A random direction in the parameters, Gaussian, of the update's mean KL on these rows."""
    leaves, structure = jax.tree.flatten(old)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    drawn = [jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
    away = jax.tree.unflatten(structure, drawn)

    def kl_of(new: Params) -> float:
        found = score(setting.judge, old, new, rows, clip_eps=setting.clip_eps)
        return float(found.kl.sum() / found.mass.sum())

    def reached(scale: float) -> float:
        return kl_of(jax.tree.map(lambda a, d: a + scale * d, old, away))

    # Through several layers KL may grow like any power of the step: it is bracketed, then halved.
    wanted, high = kl_of(setting.policy(NEW)), 1e-3
    while reached(high) < wanted and high < 1e3:
        high *= 2.0
    low = 0.0
    for _ in range(10):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if reached(middle) < wanted else (low, middle)
    scale = 0.5 * (low + high)
    return jax.tree.map(lambda d: scale * d, away)
