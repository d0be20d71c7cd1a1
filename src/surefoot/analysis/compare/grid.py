"""The cells of a comparison: every rule on every environment with every seed, settings shared."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium

from surefoot.analysis.compare.cells import Cell
from surefoot.config.differences import differences
from surefoot.config.peers import FindActions
from surefoot.config.presets import known_rule, read_settings, settle
from surefoot.config.settings import Critic, Network, OwnNetworks, Rule, Settings, Train
from surefoot.config.validation import shown
from surefoot.envs.registry import find_env
from surefoot.errors import ConfigError
from surefoot.storage.run_directory import RunDirectory, folder_name
from surefoot.training.api import choose_groups

EVALUATIONS = 10
"""Evaluations during the training of a cell whose settings ask for none."""


class SharedSettings(NamedTuple):
    """Settings that all rules of a comparison share.

    Attributes:
        steps: environment steps of each cell.
        train: settings of the runs, used as given.
        network: likewise, or your own networks.
        critic: likewise.
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

    def settle(
        self, env_id: str, rule: str | Rule, *, actions: FindActions | None = None
    ) -> Settings:
        """All settings of a rule on an environment, with evaluations during training."""
        tuned, changes = self.preset == "tuned", dict(self.changes)
        groups = choose_groups(
            env_id,
            rule,
            self.train,
            self.network,
            self.critic,
            preset="auto" if tuned else self.preset,
            actions=actions,
            shared_only=not tuned,
        )
        if self.steps is not None:
            changes["train"] = {**changes.get("train", {}), "steps": self.steps}
        settings = settle(env_id, groups, changes=changes, env_kwargs=self.env_kwargs)
        # What is given is used as it is, no evaluations included.
        chosen = self.train is not None or "eval_every" in changes.get("train", {})
        if chosen or settings.train.eval_every:
            return settings
        return settings.with_train(eval_every=math.ceil(settings.train.steps / EVALUATIONS))


def lay_out(
    envs: Sequence[Any],
    rules: Sequence[str | Rule],
    shared: SharedSettings,
    out: Path,
    *,
    seeds: int,
    episodes: int,
) -> list[Cell]:
    """The cells, a seed of all rules and environments after the other.

    Raises:
        ConfigError: for wrong settings, an unknown environment, and where `out` holds cells of
            other settings; the differences are listed.
    """
    sources = [find_env(env, shared.env_kwargs or {}) for env in envs]
    ids = [source.env_id for source in sources]
    names = [known_rule(rule) if isinstance(rule, str) else rule.name for rule in rules]
    folders = [folder_name(env_id) for env_id in ids]
    # By folder, since two ids of one folder would share their runs.
    for what, known in (("environment", folders), ("rule", names)):
        twice = [name for name in known if known.count(name) > 1]
        if twice or not known:
            problem = f"{what} {twice[0]} is given twice" if twice else f"no {what} is given"
            raise ConfigError(
                f"compare: {problem}; train variants of one separately and compare their runs"
            )
    own = shared.network if isinstance(shared.network, OwnNetworks) else OwnNetworks()
    pattern = []
    for env, source, folder in zip(envs, sources, folders, strict=True):
        if isinstance(env, gymnasium.Env | gymnasium.vector.VectorEnv):
            raise ConfigError(f"{source.env_id}: each cell opens its own; give an id or a function")
        for rule, name in zip(rules, names, strict=True):
            settings = shared.settle(source.env_id, rule, actions=source.actions)
            pattern.append(Cell(env, settings, own, out / folder / name, episodes))
    cells = [
        cell._replace(settings=cell.settings.with_train(seed=seed), path=cell.path / f"seed-{seed}")
        # Seeds outermost: a comparison that is stopped early has all rules with as many seeds.
        for seed in range(seeds)
        for cell in pattern
    ]
    for cell in cells:
        _refuse_other_settings(cell)
    return cells


def _refuse_other_settings(cell: Cell) -> None:
    """Refuse a cell's directory that holds a run of other settings."""
    directory = RunDirectory(cell.path)
    file = directory.path / "config.json"
    if not file.exists():
        return
    found = differences(read_settings(directory.config, file).to_dict(), cell.settings.to_dict())
    if found:
        listed = "; ".join(
            f"{name} is {shown(there)} there and {shown(here)} here"
            for name, (there, here) in found.items()
        )
        raise ConfigError(
            f"{cell.path} holds a run with other settings: {listed}; choose another --out"
        )
