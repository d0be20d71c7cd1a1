"""Random numbers of a run: every key depends on the seed, the iteration and a purpose alone.

Only the iteration has to be stored to continue, and no key depends on a device or process.
"""

import math
from enum import IntEnum
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Key, PyTree


class Purpose(IntEnum):
    """What a key is for; part of every key of a run."""

    # The numbers are part of every key: another one would change the results of all runs.
    INIT = 0
    RESET = 1
    ACTION = 2
    STEP = 3
    UPDATE = 4
    CRITIC = 5
    EVALUATION = 6
    LENS = 7
    STATES = 8
    SHIFT = 9
    PROBE = 10
    STAGGER = 11


def run_key(seed: Any, iteration: Any, purpose: Purpose) -> Key[Array, ""]:
    """The key of one purpose at one iteration of a run."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), purpose), iteration)


def env_seeds(seed: int, iteration: int, num_envs: int, purpose: Purpose) -> list[int]:
    """Seeds of Gymnasium environments, from (seed, iteration, index)."""
    words = np.random.SeedSequence([seed, iteration, int(purpose)]).generate_state(num_envs)
    return [int(word) & 0x7FFFFFFF for word in words]


DRAWN_BYTES = 64 * 2**20
"""Maximum memory of the random numbers that a rollout draws at once."""


def drawn_block(one_step: PyTree, num_steps: int) -> int:
    """Steps whose random numbers are drawn at once: all, or the largest even share that is small.

    Drawing them step by step would cost more than acting. `one_step` has the shapes of one step.
    """
    leaves = jax.tree.leaves(one_step)
    step_bytes = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
    maximum = max(1, DRAWN_BYTES // max(step_bytes, 1))
    return next(n for n in range(min(maximum, num_steps), 0, -1) if num_steps % n == 0)
