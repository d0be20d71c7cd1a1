"""What one setting is: its meaning, its default, the values it may take, and how it is shown."""

import copy
import difflib
import math
import numbers
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple, TypeVar, dataclass_transform, get_args

from surefoot.errors import ConfigError

Group = TypeVar("Group")


def _exact(bound: float) -> str:
    # `g` keeps six digits, too few for a bound such as 2^31 - 1.
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


class Limits(NamedTuple):
    """What a setting means, its library default, and the values it may take.

    `choices` are its words; with a `pattern` for them, what they look like. A `traced` number is
    data of the compiled program, so that another value compiles nothing; where it is
    `off_at_zero`, 0 leaves a part of the program out. One that is `initial` decides how a run
    begins: a run that continues has its effect in its state already.
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
    most: float = math.inf
    traced: bool = False
    off_at_zero: bool = False
    initial: bool = False

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
        if self.most < math.inf:
            what = f"{self.fewest} to {self.most} finite numbers"
        return what + (" " + " and ".join(parts) if parts else "")

    def allow(self, value: Any) -> bool:
        """Whether every number or word in `value` lies within the limits."""
        values = value if isinstance(value, tuple) else (value,)
        if not self.fewest <= len(values) <= self.most:
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
    """A field of a settings group: its default, its meaning, and the values allowed."""
    return field(default=default, metadata={"limits": Limits(default, help, **limits)})


@dataclass_transform(kw_only_default=True, frozen_default=True)
def settings_group(cls: type[Group]) -> type[Group]:
    """A frozen, keyword-only dataclass whose values are checked when it is made.

    Raises:
        ConfigError: for a value of the wrong kind or outside its limits, when one is made.
    """
    cls.__post_init__ = _check  # type: ignore[attr-defined]
    return dataclass(frozen=True, kw_only=True)(cls)


def _check(group: Any) -> None:
    """Coerce every value to its type, and refuse one outside its limits."""
    owner, types = owner_of(group), {f.name: f.type for f in fields(group)}
    for name, limits in limits_of(group).items():
        value = coerce(getattr(group, name), types[name], f"{owner}: {name}")
        object.__setattr__(group, name, value)
        if not limits.allow(value):
            raise ConfigError(f"{owner}: {name} must be {limits.describe()}, got {value!r}")


def owner_of(group: Any) -> str:
    """What error messages call a settings group: a rule by its name, others by their class."""
    kind = group if isinstance(group, type) else type(group)
    return getattr(kind, "name", kind.__name__.lower())


def changed(group: Group, table: Mapping[str, Any]) -> Group:
    """A group of settings with the fields of a parsed table changed.

    Args:
        group: the settings.
        table: new values by name, as parsed from a file or given by a caller.

    Raises:
        ConfigError: for an unknown name, with the nearest valid one, or a value not allowed.
    """
    known = limits_of(group)
    for key in table:
        if key not in known:
            raise ConfigError(f"{owner_of(group)} has no setting {key}{nearest(key, known)}")
    return replace(group, **table)  # type: ignore[type-var]


def with_arrays(group: Group, arrays: Mapping[str, Any]) -> Group:
    """A copy whose fields of these names are arrays, traced ones among them, and not checked."""
    # Not `replace`, which would check the values: a traced array cannot be compared.
    made = copy.copy(group)
    for name, array in arrays.items():
        object.__setattr__(made, name, array)
    return made


def traced_values(group: Any) -> dict[str, float]:
    """The numbers that are data of a compiled program, by name.

    One that switches something off by being 0 is part of the program while it is 0.
    """
    found = {
        name: getattr(group, name) for name, limits in limits_of(group).items() if limits.traced
    }
    return {
        name: value
        for name, value in found.items()
        if value != 0.0 or not limits_of(group)[name].off_at_zero
    }


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
    if template is bool and isinstance(value, bool):
        return value
    # NumPy's numbers are numbers of Python's kinds; the sum of two of its booleans is not.
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        value = int(value)
    elif isinstance(value, numbers.Real) and not isinstance(value, bool):
        value = float(value)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    # `float` raises an OverflowError for an integer so large.
    if number and abs(value) > sys.float_info.max:
        value = math.inf if value > 0 else -math.inf
    if template is int and number and float(value).is_integer():
        return int(value)
    if template is float and number:
        return float(value)
    if template is str and isinstance(value, str):
        return value
    if template == tuple[int, ...] and number:
        value = (value,)  # one layer
    if template in (tuple[int, ...], tuple[str, ...]) and isinstance(value, list | tuple):
        return tuple(coerce(entry, get_args(template)[0], where) for entry in value)
    raise ConfigError(f"{where} must be {_KINDS[template]}, got {value!r}")


def shown(value: Any) -> str:
    """A setting's value as a person would write it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or "none"
    return str(value)


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?`, or nothing where no known name is near."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.65)
    return f"; did you mean {matches[0]}?" if matches else ""


def is_off(value: Any) -> bool:
    """Whether a number that is 0 where it is switched off is known to be 0; a traced one is not."""
    return isinstance(value, int | float) and value <= 0
