"""The rows of a run as columns over its environment steps, and groups of them to be drawn."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from surefoot.diagnostics.warnings import Watchman

MOST_POINTS = 200
"""Points of a trace; a longer run's rows are taken together in groups."""


class Table(NamedTuple):
    """Columns of equal length, NaN where a row lacks the figure.

    Attributes:
        iterations: which update each row describes.
        steps: environment steps after the row's rollout.
        columns: the figures by metric name.
        warnings: names of the warnings raised at each row.
    """

    iterations: Int[np.ndarray, " row"]
    steps: Float[np.ndarray, " row"]
    columns: Mapping[str, Float[np.ndarray, " row"]]
    warnings: tuple[tuple[str, ...], ...]


def figures_of(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows that say where they stand, each with its finite numbers and its warnings alone."""
    kept = []
    for row in rows:
        if _is_figure(row.get("env_steps")):
            figures = {key: value for key, value in row.items() if _is_figure(value)}
            if isinstance(row.get("warnings"), str):
                figures["warnings"] = row["warnings"]
            kept.append(figures)
    return kept


def table_of(rows: Iterable[Mapping[str, Any]]) -> Table:
    """Rows as columns; what is no finite number is missing.

    A run in which no warning is recorded may be older than they are: its rows are asked again.
    """
    kept = figures_of(rows)
    columns: dict[str, Float[np.ndarray, " row"]] = {}
    for index, row in enumerate(kept):
        for key, value in row.items():
            if key != "warnings":
                columns.setdefault(key, np.full(len(kept), np.nan))[index] = value
    warnings = tuple(tuple(dict.fromkeys(row.get("warnings", "").split())) for row in kept)
    if not any(warnings):
        watchman = Watchman()
        warnings = tuple(tuple(watchman.see(row)) for row in kept)
    return Table(
        np.array([row["iteration"] for row in kept], int),
        np.array([row["env_steps"] for row in kept], float),
        columns,
        warnings,
    )


def _is_figure(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:  # JSON's integers have no end
        return False


def column(table: Table, key: str) -> Float[np.ndarray, " row"]:
    """A figure of every row; all NaN where no row has it."""
    found = table.columns.get(key)
    return np.full(len(table.steps), np.nan) if found is None else found


def missing(table: Table, *keys: str) -> list[str]:
    """Those of the figures that no row has."""
    return [key for key in keys if key not in table.columns]


def recent(values: Float[np.ndarray, " row"]) -> float | None:
    """Mean over the newest tenth of the rows, five at least, or else the newest value before them.

    None where there is no finite value.
    """
    finite = np.flatnonzero(np.isfinite(values))
    if not len(finite):
        return None
    late = finite[finite >= len(values) - _tenth(len(values))]
    return float(np.mean(values[late if len(late) else finite[-1:]]))


def newest_tenth(table: Table) -> Table:
    """The newest tenth of the rows, five at least."""
    start = -_tenth(len(table.steps))
    columns = {key: values[start:] for key, values in table.columns.items()}
    return Table(table.iterations[start:], table.steps[start:], columns, table.warnings[start:])


def _tenth(length: int) -> int:
    return max(5, math.ceil(length / 10))


def starts_of(length: int) -> Int[np.ndarray, " group"]:
    """Where the groups of equal size begin into which so many rows are taken together."""
    return np.arange(0, length, group_size(length))


def group_size(length: int) -> int:
    """How many of so many rows are one point of a trace."""
    return max(1, math.ceil(length / MOST_POINTS))


Reduction = Callable[
    [Float[np.ndarray, " row"], Int[np.ndarray, " group"]], Float[np.ndarray, " group"]
]


def means(
    values: Float[np.ndarray, " row"], starts: Int[np.ndarray, " group"]
) -> Float[np.ndarray, " group"]:
    """The mean of each group."""
    sizes = np.diff(np.append(starts, len(values)))
    return np.add.reduceat(values, starts) / sizes


def largest(
    values: Float[np.ndarray, " row"], starts: Int[np.ndarray, " group"]
) -> Float[np.ndarray, " group"]:
    """The largest of each group."""
    return np.maximum.reduceat(values, starts)


def smallest(
    values: Float[np.ndarray, " row"], starts: Int[np.ndarray, " group"]
) -> Float[np.ndarray, " group"]:
    """The smallest of each group."""
    return np.minimum.reduceat(values, starts)


def newest(
    values: Float[np.ndarray, " row"], starts: Int[np.ndarray, " group"]
) -> Float[np.ndarray, " group"]:
    """The last of each group, as sums over a run need it."""
    return values[np.append(starts[1:], len(values)) - 1]
