"""A log of the actions that environments were sent: enough to repeat an error of one of them."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from surefoot.errors import EnvContractError, EnvCrashError

BLOCK_STEPS = 256
MAX_BYTES = 64 * 2**20
"""Size at which a log is dropped."""


class EnvHistory(NamedTuple):
    """Seed of one environment, and its actions since, [step, ...]; `()` if there are none.

    `cut` is the step after which its first episode is cut, or 0.
    """

    index: int
    seed: int
    actions: PyTree
    cut: int = 0


class ActionLog:
    """Seeds, and the actions of all environments since then, packed in blocks of steps.

    `seeds` has each environment's at its last seeded reset.
    """

    def __init__(self) -> None:
        self.start([])

    def start(self, seeds: Sequence[int], cuts: Sequence[int] = ()) -> None:
        """Forget what came before: new episodes start everywhere, some of them to be cut."""
        self.seeds, self._since = list(seeds), [0] * len(seeds)
        self._cuts = list(cuts) or [0] * len(seeds)
        self._packed: list[PyTree] = []
        self._recent: list[PyTree] = []
        self._packed_steps, self._bytes = 0, 0

    def add(self, actions: PyTree) -> None:
        """Log the actions of a step, in arrays that are not written to again."""
        self._recent.append(actions)
        if len(self._recent) == BLOCK_STEPS:
            self._pack()

    def _pack(self) -> None:
        # Many small arrays take several times the memory of one large one.
        self._packed_steps += len(self._recent)
        if self._bytes <= MAX_BYTES:
            block = jax.tree.map(lambda *leaves: np.stack(leaves), *self._recent)
            self._packed.append(block)
            self._bytes += sum(leaf.nbytes for leaf in jax.tree.leaves(block))
        else:
            # Dropped whole: actions without those before them reproduce nothing.
            self._packed = []
        self._recent = []

    @property
    def steps(self) -> int:
        """Steps since the last reset of all environments."""
        return self._packed_steps + len(self._recent)

    def restart(self, index: int, seed: int) -> None:
        """Start the history of one environment again."""
        self.seeds[index], self._since[index] = seed, self.steps
        self._cuts[index] = 0

    def history(self, index: int) -> EnvHistory | None:
        """The history of one environment; None if the log was dropped."""
        steps = self.steps
        # An error of a reset needs no actions, so it has a history even if the log was dropped.
        if steps == self._since[index]:
            return EnvHistory(index, self.seeds[index], (), self._cuts[index])
        if self._recent:
            self._pack()
        if not self._packed:
            return None
        own = slice(self._since[index], steps), index
        actions = jax.tree.map(lambda *rows: np.concatenate(rows)[own], *self._packed)
        return EnvHistory(index, self.seeds[index], actions, self._cuts[index])

    def locate(
        self, error: EnvContractError | EnvCrashError, env_id: str
    ) -> EnvContractError | EnvCrashError:
        """Name environment, step, seed and action in an error, and attach the history."""
        index = error.index
        if index is None:
            where, at = "", f"at step {self.steps}" if self.steps else "at a reset"
        else:
            where = f"environment {index}" + (" " if isinstance(error, EnvCrashError) else ": ")
            steps, seed = self.steps - self._since[index], self.seeds[index]
            at = f"at step {steps} after reset(seed={seed})" if steps else f"at reset(seed={seed})"
            error.history = self.history(index)
            if steps and error.history:
                at += f", action {_last(error.history.actions)}"
        error.args = (f"{env_id}: {where}{error}; {at}",)
        return error


def _last(actions: PyTree) -> str:
    last = [leaf[-1] for leaf in jax.tree.leaves(actions)]
    shown = [np.array2string(leaf, precision=4, threshold=8, edgeitems=4) for leaf in last]
    return " ".join(" ".join(shown).split())
