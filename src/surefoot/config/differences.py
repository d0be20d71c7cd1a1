"""Which settings of two runs differ."""

from collections.abc import Mapping
from typing import Any

from surefoot.config.validation import shown


def flatten(tables: Mapping[str, Any]) -> dict[str, Any]:
    """Tables of settings as one table, with names such as `train.gamma`."""
    flat: dict[str, Any] = {}
    for name, value in tables.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{key}": entry for key, entry in value.items()}
        else:
            flat[name] = value
    return flat


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings that differ between two tables, by name: the old value and the new one.

    Values that are shown alike are equal, as a list in JSON and a tuple are; a missing one is None.
    """
    old, new = flatten(old), flatten(new)
    pairs = {name: (old.get(name), new.get(name)) for name in dict.fromkeys([*new, *old])}
    return {name: pair for name, pair in pairs.items() if shown(pair[0]) != shown(pair[1])}
