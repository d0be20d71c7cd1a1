"""The settings that were compared, by what they change of the library's defaults."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from benchmarks.mujoco.tasks import Task

Tables = dict[str, dict[str, Any]]


class Setting(NamedTuple):
    """One setting of trpo for all tasks.

    Attributes:
        radius: max_kl in nats for each dimension of the action; None: the default, whatever it is.
        left: the share of the radius left at the end.
        damping: for each dimension of the action; None: the default.
        scaled_noise: start at the log standard deviation -0.5 ln d, not at 0.
        changes: of the defaults, by group.
    """

    radius: float | None = None
    left: float = 0.1
    damping: float | None = None
    scaled_noise: bool = True
    changes: Mapping[str, Mapping[str, Any]] = {}

    def tables(self, task: Task) -> Tables:
        """What it changes of the library's defaults on a task."""
        rule: dict[str, Any] = {"final_fraction": self.left}
        if self.radius is not None:
            rule |= {"max_kl": self.radius, "kl_per_dimension": True}
        if self.damping is not None:
            rule["damping"] = self.damping * task.actions
        tables: Tables = {"train": {}, "network": {}, "critic": {}, "rule": rule}
        if self.scaled_noise:
            tables["network"]["std_per_dimension"] = False
        for group, table in self.changes.items():
            tables[group].update(table)
        return tables


def _changed(base: Setting, **changes: Mapping[str, Any]) -> Setting:
    return base._replace(changes={**base.changes, **changes})


_FIRST = Setting(radius=0.005)

SETTINGS: dict[str, Setting] = {
    # What the library did before: noise of 1 in every dimension, 0.01 nats in all.
    "before": Setting(scaled_noise=False),
    "noise": Setting(),
    "radius-.002": Setting(radius=0.002),
    "radius-.005": _FIRST,
    "radius-.005-quarter": Setting(radius=0.005, left=0.25),
    "radius-.01": Setting(radius=0.01),
    "radius-.01-quarter": Setting(radius=0.01, left=0.25),
    "small-batches": _changed(Setting(radius=0.0025), train={"num_steps": 128}),
    "in-step": _changed(_FIRST, train={"stagger": False}),
    "large-batches": _changed(Setting(radius=0.01), train={"num_steps": 512}),
    "lambda-.9": _changed(_FIRST, train={"gae_lambda": 0.9}),
    "lambda-.97": _changed(_FIRST, train={"gae_lambda": 0.97}),
    "critic-20": _changed(_FIRST, critic={"num_epochs": 20}),
    "critic-wide": _changed(_FIRST, network={"critic_hidden": (256, 256)}),
    "critic-20-wide": _changed(
        _FIRST, network={"critic_hidden": (256, 256)}, critic={"num_epochs": 20}
    ),
    "critic-fast": _changed(_FIRST, critic={"learning_rate": 3e-3}),
    "critic-falling": _changed(_FIRST, critic={"final_fraction": 0.1}),
    "two-envs": _changed(_FIRST, train={"num_envs": 2, "num_steps": 1024}),
    "clipped": _changed(_FIRST, network={"distribution": "clipped-gaussian"}),
    "fisher-whole": _changed(_FIRST, rule={"fisher_fraction": 1.0}),
    "damping-.1-d": _FIRST._replace(damping=0.1),
    "damping-.01": _changed(_FIRST, rule={"damping": 0.01}),
}
