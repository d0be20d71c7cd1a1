"""The rows of a run as columns over its environment steps."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

Column = Float[np.ndarray, " row"]


class Table(NamedTuple):
    """Columns of equal length, by metric name, NaN where a row lacks the figure.

    `steps` are environment steps after a row's rollout, `warnings` the names of those it raised.
    """

    iterations: Int[np.ndarray, " row"]
    steps: Column
    columns: Mapping[str, Column]
    warnings: tuple[tuple[str, ...], ...]

    def column(self, key: str) -> Column:
        """A figure of every row; all NaN where no row has it."""
        found = self.columns.get(key)
        return np.full(len(self.steps), np.nan) if found is None else found

    def known(self, key: str) -> Column:
        """The finite values of a figure."""
        values = self.column(key)
        return values[np.isfinite(values)]

    def recent(self, key: str) -> float:
        """Mean of a figure over the newest tenth of the rows, or else its newest value before them.

        NaN where no row has it.
        """
        values = self.column(key)
        finite = np.flatnonzero(np.isfinite(values))
        if not len(finite):
            return math.nan
        late = finite[finite >= len(values) - _tenth(len(values))]
        return float(np.mean(values[late if len(late) else finite[-1:]]))

    def when(self, key: str) -> str:
        """The update of the one value that `recent` is of, to follow it; "" of several."""
        finite = np.flatnonzero(np.isfinite(self.column(key)))
        late = len(self.steps) - self.num_newest
        if not len(finite) or (len(finite) > 1 and finite[-2] >= late) or len(self.steps) == 1:
            return ""
        return f" at update {int(self.iterations[finite[-1]]):,}"

    @property
    def num_newest(self) -> int:
        """Rows of the newest tenth: five at least, as far as there are so many."""
        return min(len(self.steps), _tenth(len(self.steps)))

    @property
    def period(self) -> str:
        """The newest tenth in words, to begin a sentence."""
        count = self.num_newest
        if count < len(self.steps):
            return f"In the newest {count:,} of {len(self.steps):,} updates"
        return "In the only update" if count == 1 else f"In all {count} updates"

    def missing(self, *keys: str) -> list[str]:
        """Those of the figures that no row has."""
        return [key for key in keys if key not in self.columns]

    def newest_tenth(self) -> "Table":
        """The newest tenth of the rows alone."""
        start = -_tenth(len(self.steps))
        columns = {key: values[start:] for key, values in self.columns.items()}
        return Table(self.iterations[start:], self.steps[start:], columns, self.warnings[start:])


def table_of(rows: Iterable[Mapping[str, Any]]) -> Table:
    """Rows as columns; anything but a finite number is missing, and rows without steps skipped."""
    kept = [row for row in rows if math.isfinite(_number(row.get("env_steps")))]
    columns: dict[str, Column] = {}
    for key in dict.fromkeys(key for row in kept for key in row):
        cells = [row.get(key) for row in kept]
        values = np.array([cell if type(cell) is float else _number(cell) for cell in cells])
        values[~np.isfinite(values)] = np.nan
        if not np.isnan(values).all():
            columns[key] = values
    names = (row.get("warnings") for row in kept)
    return Table(
        np.array([row["iteration"] for row in kept], int),
        np.array([row["env_steps"] for row in kept], float),
        columns,
        tuple(tuple(dict.fromkeys(n.split())) if isinstance(n, str) else () for n in names),
    )


def _number(value: Any) -> float:
    """A number as a float, NaN for anything else."""
    if type(value) is float:
        return value
    if type(value) is not int:  # in Python a bool is an int, but it is no figure
        return math.nan
    try:
        return float(value)
    except OverflowError:  # JSON's integers are unbounded
        return math.nan


def _tenth(length: int) -> int:
    """A tenth of the rows, at least five."""
    return max(5, math.ceil(length / 10))
