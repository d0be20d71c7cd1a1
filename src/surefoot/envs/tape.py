"""What environments were sent since they were seeded: enough to do it to one of them again."""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

BLOCK = 256
MOST_BYTES = 64 * 2**20
"""What is kept at most; a longer story is given up."""


class Story(NamedTuple):
    """What one environment went through: its seed, and the actions since, [step, ...]."""

    index: int
    seed: int
    actions: PyTree


class Tape:
    """Seeds, and actions of all environments, copied step by step into blocks."""

    def __init__(self) -> None:
        self.start([])

    def start(self, seeds: list[int]) -> None:
        """New episodes everywhere: what came before decides nothing any more."""
        self.seeds, self.steps = list(seeds), 0
        self._since = [0] * len(seeds)
        self._blocks: list[list[np.ndarray]] = []
        self._block: list[np.ndarray] = []
        self._bytes = 0

    def add(self, actions: PyTree) -> None:
        """Note what is about to be sent."""
        leaves = [actions] if type(actions) is np.ndarray else jax.tree.leaves(actions)
        at = self.steps % BLOCK
        if at == 0:
            self._begin_block(actions, leaves)
        for rows, leaf in zip(self._block, leaves, strict=False):
            rows[at] = leaf
        self.steps += 1

    def _begin_block(self, actions: PyTree, leaves: list[np.ndarray]) -> None:
        """Room for more steps, where there is some."""
        if self._bytes > MOST_BYTES:
            self._blocks, self._block = [], []
            return
        self._block = [np.empty((BLOCK, *leaf.shape), leaf.dtype) for leaf in leaves]
        self._blocks.append(self._block)
        self._bytes += sum(rows.nbytes for rows in self._block)
        self._tree = jax.tree.structure(actions)

    def restart(self, index: int, seed: int) -> None:
        """One of them starts anew: its story begins here."""
        self.seeds[index], self._since[index] = seed, self.steps

    def age(self, index: int) -> int:
        """Steps of one environment since its seed."""
        return self.steps - self._since[index]

    def of(self, index: int) -> Story | None:
        """What one environment went through; None where it was too much to keep."""
        if not self._blocks or not self.seeds:
            return None
        leaves = [
            np.concatenate(rows)[: self.steps, index] for rows in zip(*self._blocks, strict=True)
        ]
        return Story(index, self.seeds[index], jax.tree.unflatten(self._tree, leaves))
