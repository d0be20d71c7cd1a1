"""The laws of docs/theory.md, each tried on random cases.

A law asks surefoot's functions for what it states, compares them with a computation that shares
nothing with them (sums over time by doubling, scores one by one, finite differences, linear
programs), and returns its number of checks; 0 where it does not apply to a case.
"""

from collections.abc import Callable

from tests.support.laws import bounds, geometry, identities, maximisers
from tests.support.laws.cases import Case, draw_case

LAWS: dict[str, Callable[[Case], int]] = {
    f"I{number}": getattr(module, f"law_i{number}")
    for number in (*range(1, 34), 36)
    for module in (identities, geometry, maximisers, bounds)
    if hasattr(module, f"law_i{number}")
}
"""The laws by their numbers in docs/theory.md; I34 and I35 have tests of their own."""
COSTLY = ("I19", "I29")
"""Laws that call a solver for every state or policy."""

__all__ = ["COSTLY", "LAWS", "draw_case"]
