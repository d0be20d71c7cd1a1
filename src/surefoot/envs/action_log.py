"""What environments were sent since they were seeded: enough to do it to one of them again."""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

BLOCK = 256
MOST_BYTES = 64 * 2**20
"""What is kept at most; a longer story is given up."""


class Story(NamedTuple):
    """What one environment went through: its seed, and the actions since, [step, ...], if any."""

    index: int
    seed: int
    actions: PyTree


class Tape:
    """Seeds, and actions of all environments since, packed block by block."""

    def __init__(self) -> None:
        self.start([])

    def start(self, seeds: list[int]) -> None:
        """New episodes everywhere: what came before decides nothing any more."""
        self.seeds, self._since = list(seeds), [0] * len(seeds)
        self._packed: list[PyTree] = []
        self._recent: list[PyTree] = []
        self._steps, self._bytes = 0, 0

    def add(self, actions: PyTree) -> None:
        """Note what is about to be sent, in arrays that nobody writes to any more."""
        self._recent.append(actions)
        if len(self._recent) == BLOCK:
            self._pack()

    def _pack(self) -> None:
        """Make one array of many small ones, which take several times their numbers' room."""
        self._steps += len(self._recent)
        if self._bytes <= MOST_BYTES:
            block = jax.tree.map(lambda *leaves: np.stack(leaves), *self._recent)
            self._packed.append(block)
            self._bytes += sum(leaf.nbytes for leaf in jax.tree.leaves(block))
        else:
            self._packed = []
        self._recent = []

    @property
    def steps(self) -> int:
        """Steps since all were seeded."""
        return self._steps + len(self._recent)

    def restart(self, index: int, seed: int) -> None:
        """One of them starts anew: its story begins here."""
        self.seeds[index], self._since[index] = seed, self.steps

    def age(self, index: int) -> int:
        """Steps of one environment since its seed."""
        return self.steps - self._since[index]

    def of(self, index: int) -> Story | None:
        """What one environment went through; None where it was too much to keep."""
        steps = self.steps
        if steps == self._since[index]:
            return Story(index, self.seeds[index], ())
        if self._recent:
            self._pack()
        if not self._packed:
            return None
        mine = slice(self._since[index], steps), index
        actions = jax.tree.map(lambda *rows: np.concatenate(rows)[mine], *self._packed)
        return Story(index, self.seeds[index], actions)
