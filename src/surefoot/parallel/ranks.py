"""The ranks of one run, each a process. This one alone is the default; see `connected_ranks`."""

import contextlib
from pathlib import Path
from typing import Any

from jaxtyping import PyTree

from surefoot.parallel.mesh import ONE, Placement


class Ranks:
    """This process among those of its run; here alone, so that most methods do nothing.

    Attributes:
        rank: number of this process; only rank 0 writes.
        count: number of processes.
        placement: devices of all processes.
    """

    rank: int = 0
    count: int = 1
    placement: Placement = ONE

    def exchange(self, value: Any) -> list[Any]:
        """Every rank's value, in the order of ranks; WorkerLostError after a minute without."""
        return [value]

    def opening(
        self, settings: dict[str, Any], path: Path | None
    ) -> contextlib.AbstractContextManager[dict[str, Any]]:
        """Context manager in which this rank opens the run: rank 0 first, then the others.

        It yields, to ranks other than 0, the `iteration` of the run, or that it is `finished`. An
        error that keeps a rank from `start` is raised on all ranks. Nested uses do nothing.
        """
        return contextlib.nullcontext({})

    def start(self, iteration: int) -> None:
        """Wait until all ranks have opened the run; raise the error of one that could not."""

    def synchronize(self, replicated: PyTree, iteration: int, signal: int | None) -> int | None:
        """Return a signal that any rank has received; every rank calls it after each chunk.

        Raises:
            ReplicaError: if a rank's `replicated` arrays differ from rank 0's.
            WorkerLostError: if a rank is lost.
        """
        return signal

    def reporting_loss(self) -> contextlib.AbstractContextManager[None]:
        """Context manager of a computation with the others: a lost rank is a WorkerLostError."""
        return contextlib.nullcontext()

    def leave(self) -> None:
        """Wait for the others and disconnect."""


ALONE = Ranks()
