"""The settings of a run over its iterations: those in force, and those before each override.

`config.json` keeps the earlier ones as `history`, oldest first: `until_iteration`, the last update
that they made, and `settings`, the fields whose values changed then, with their old values.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from surefoot.config.differences import differences
from surefoot.config.presets import config_errors, read_settings, settings_of
from surefoot.config.settings import GROUPS, Settings
from surefoot.config.validation import shown


class SettingsChange(NamedTuple):
    """A change of settings: the last update before it, and the old and new values by name."""

    iteration: int
    values: dict[str, tuple[Any, Any]]

    @property
    def text(self) -> str:
        """The change in words, as `rule.max_kl 0.01 to 0.003 after update 12`."""
        each = (f"{name} {shown(old)} to {shown(new)}" for name, (old, new) in self.values.items())
        return f"{', '.join(each)} after update {self.iteration:,}"


@dataclass(frozen=True)
class SettingsHistory:
    """The settings `now` in force, and `earlier` ones with their last iteration, oldest first."""

    now: Settings
    earlier: tuple[tuple[int, Settings], ...] = ()

    def at(self, iteration: int) -> Settings:
        """The settings that made an update, counted from 1."""
        return next((old for until, old in self.earlier if iteration <= until), self.now)

    def changes(self) -> list[SettingsChange]:
        """What changed, and when, oldest first."""
        found = [
            SettingsChange(until, differences(old, new)) for until, old, new in self._in_pairs()
        ]
        return [change for change in found if change.values]

    def continued(self, iteration: int, settings: Settings | None = None) -> "SettingsHistory":
        """The history of a run that goes on from an iteration, with other `settings` if given.

        Later iterations are about to be done again: what was in force in them is dropped.
        """
        now, kept, done = settings or self.now, [], 0
        for until, old in (*self.earlier, (iteration, self.now)):
            if done < min(until, iteration):
                done = min(until, iteration)
                kept.append((done, old))
        if kept and kept[-1][1] == now:
            kept.pop()
        return SettingsHistory(now, tuple(kept))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, the form of `config.json`."""
        entries = [
            {"until_iteration": until, "settings": _old_values(old, new)}
            for until, old, new in self._in_pairs()
        ]
        return self.now.to_dict() | {"history": entries}

    def _in_pairs(self) -> list[tuple[int, dict[str, Any], dict[str, Any]]]:
        """Each last iteration of earlier settings, these, and those that followed."""
        tables = [settings.to_dict() for settings in (*(old for _, old in self.earlier), self.now)]
        pairs = zip(self.earlier, itertools.pairwise(tables), strict=True)
        return [(until, old, new) for (until, _), (old, new) in pairs]


def _old_values(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `old` with another value in `new`; other rules and arguments as a whole."""
    found = {key: table for key, table in old.items() if table != new[key]}
    for key in found.keys() & set(GROUPS):
        if old[key].get("name") == new[key].get("name"):
            found[key] = {k: v for k, v in old[key].items() if v != new[key][k]}
    return found


def _with_old_values(new: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """The tables of which `entry` has the fields with other values in `new`."""
    found = dict(new)
    for key, table in entry.items():
        if key not in new:
            raise ValueError(f"history has a table {key}")
        found[key] = new[key] | table if key in GROUPS and "name" not in table else table
    return found


def read_history(config: Mapping[str, Any], file: Path) -> SettingsHistory:
    """The settings of a run over its iterations, from a `config.json` that may hold anything.

    Raises:
        ConfigError: for settings that are wrong.
        CheckpointError: for a file that holds no settings, or a history that is not of surefoot.
    """
    now = read_settings(config, file)
    tables, earlier, later = now.to_dict(), [], math.inf
    with config_errors(file):
        for entry in reversed(config.get("history", [])):
            until, tables = entry["until_iteration"], _with_old_values(tables, entry["settings"])
            if type(until) is not int or not 0 < until < later:
                raise ValueError(f"history has until_iteration {until!r}")
            earlier.insert(0, (until, settings_of(tables)))
            later = until
    return SettingsHistory(now, tuple(earlier))
