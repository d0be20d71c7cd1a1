"""What watches a run while it trains: a display, loggers, or code of the user's."""

from collections.abc import Callable
from typing import Any

Row = dict[str, Any]
"""The metrics of one iteration."""


class Callback:
    """Called while a run trains; every method is a no-op. Override those that you need."""

    def on_start(self, run: Any, plan: Any) -> None:
        """Called before the first iteration, with the run and its `Plan`."""

    def on_compile(self, what: str) -> None:
        """Called before a program is compiled, which takes seconds."""

    def on_rollout(self, done: int, steps: int) -> None:
        """Called about once a second while Python steps environments: `done` of `steps` taken."""

    def on_row(self, run: Any, row: Row) -> bool | None:
        """Called after each iteration; return True to stop the run."""

    def on_stop(self, signal: str) -> None:
        """Called as soon as a signal asks the run to stop, from a thread of its own."""

    def on_message(self, text: str) -> None:
        """Called with a line for people before other work that takes long, such as a probe's."""

    def on_end(self, run: Any) -> None:
        """Called when training has ended, after an error too."""


class _EachRow(Callback):
    def __init__(self, function: Callable[[Row], Any]):
        self._function = function

    def on_row(self, run: Any, row: Row) -> bool | None:
        return bool(self._function(row))


def as_callback(given: Callback | Callable[[Row], Any] | None) -> Callback:
    """A callback as it is, or one that calls a function with each row; None gives no-ops."""
    if isinstance(given, Callback):
        return given
    return Callback() if given is None else _EachRow(given)
