"""What one setting is: its meaning, its default, the values it may take, and how it is shown."""

import difflib
import math
import re
import sys
from collections.abc import Iterable
from dataclasses import field, fields
from typing import Any, NamedTuple, get_args

from surefoot.errors import ConfigError


def _exact(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


class Limits(NamedTuple):
    """What a setting means, its library default, and the values it may take.

    `choices` are its words; with a `pattern` for them, what they look like.
    """

    default: Any
    help: str
    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    choices: tuple[str, ...] = ()
    pattern: str = ""
    fewest: int = 0

    def describe(self) -> str:
        """The allowed values in words, for an error message."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        left = f"{'above' if self.open_low else 'at least'} {_exact(self.low)}"
        right = f"{'below' if self.open_high else 'at most'} {_exact(self.high)}"
        parts = [
            text for text, bound in ((left, self.low), (right, self.high)) if math.isfinite(bound)
        ]
        what = f"{self.fewest} or more finite numbers" if self.fewest else "a finite number"
        return what + (" " + " and ".join(parts) if parts else "")

    def allow(self, value: Any) -> bool:
        """Whether every number or word in `value` lies within the limits."""
        values = value if isinstance(value, tuple) else (value,)
        if len(values) < self.fewest:
            return False
        if self.pattern:
            return all(re.fullmatch(self.pattern, item) for item in values)
        if self.choices:
            return all(item in self.choices for item in values)
        numbers = [x for x in values if isinstance(x, int | float) and not isinstance(x, bool)]
        return all(
            math.isfinite(x)
            and (x > self.low if self.open_low else x >= self.low)
            and (x < self.high if self.open_high else x <= self.high)
            for x in numbers
        )


def setting(default: Any, help: str, **limits: Any) -> Any:
    """A field that is unset (None) until `resolve` gives it `default` or something better."""
    return field(default=None, metadata={"limits": Limits(default, help, **limits)})


def limits_of(config: Any) -> dict[str, Limits]:
    """The limits of every field of a settings class or instance, by field name."""
    return {f.name: f.metadata["limits"] for f in fields(config) if "limits" in f.metadata}


_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a word",
    tuple[int, ...]: "a list of whole numbers",
    tuple[str, ...]: "a list of words",
}


def coerce(value: Any, template: Any, where: str) -> Any:
    """`value` as the type that a field annotated `template` holds.

    Raises:
        ConfigError: where it is of another kind; nothing is ever evaluated or imported.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is None:
        return None
    if template is bool and isinstance(value, bool):
        return value
    if number and abs(value) > sys.float_info.max:
        value = math.inf if value > 0 else -math.inf
    if template is int and number and float(value).is_integer():
        return int(value)
    if template is float and number:
        return float(value)
    if template is str and isinstance(value, str):
        return value
    if template in (tuple[int, ...], tuple[str, ...]) and isinstance(value, list | tuple):
        return tuple(coerce(entry, get_args(template)[0], where) for entry in value)
    raise ConfigError(f"{where} must be {_KINDS[template]}, got {value!r}")


def check(config: Any) -> None:
    """Refuse a value outside its limits.

    Raises:
        ConfigError: names the setting, the rule where there is one, the value and the range.
    """
    owner = getattr(config, "name", type(config).__name__.lower())
    for name, limits in limits_of(config).items():
        value = getattr(config, name)
        if value is not None and not limits.allow(value):
            raise ConfigError(f"{owner}: {name} must be {limits.describe()}, got {value!r}")


def shown(value: Any) -> str:
    """A setting's value as a person would write it."""
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or "none"
    return str(value)


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?`, or nothing where no known name is near."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {matches[0]}?" if matches else ""


def is_off(value: Any) -> bool:
    """Whether a number that is 0 where it is switched off is known to be 0; a traced one is not."""
    return isinstance(value, int | float) and value <= 0
