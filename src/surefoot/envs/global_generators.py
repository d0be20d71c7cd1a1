"""The global generators of `random` and `numpy.random`, from which some environments draw.

They are seeded where environments are made and reset, not around each step: to exchange their
states takes longer than most steps do. Whoever opens environments gets them back when these close.
"""

import contextlib
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np


class GlobalGenerators(NamedTuple):
    """States of both generators."""

    python: Any
    numpy: Any

    @classmethod
    def now(cls) -> "GlobalGenerators":
        """Their current states."""
        return cls(random.getstate(), np.random.get_state(legacy=False))  # noqa: NPY002

    def restore(self) -> None:
        """Set both to these states."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)  # noqa: NPY002


@contextlib.contextmanager
def kept_generators() -> Iterator[None]:
    """Context manager after which both are as they were before."""
    before = GlobalGenerators.now()
    try:
        yield
    finally:
        before.restore()


def seed_generators(seed: int) -> None:
    """Seed both."""
    random.seed(seed)
    # Of another kind than NumPy's default it cannot be seeded; a program that set it seeds it.
    with contextlib.suppress(TypeError):
        np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002
