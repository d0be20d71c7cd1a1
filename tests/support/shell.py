"""Commands as a user gives them, and what they leave."""

import contextlib
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import surefoot as sf

SMALL = [
    *("--num-envs", "2", "--num-steps", "16", "--hidden", "8", "--eval-episodes", "1"),
    *("--critic-num-epochs", "1", "--critic-num-minibatches", "1", "--preset", "none"),
]


class Ended(NamedTuple):
    """How a command ended: its exit code, its last line of errors, its records."""

    code: int
    line: str
    records: list[dict[str, Any]]


def in_a_shell(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own."""
    command = [sys.executable, "-m", "surefoot", *words]
    return subprocess.run(command, env=around(variables), capture_output=True, text=True)


def around(variables: dict[str, str]) -> dict[str, str]:
    """The environment of such a process, which finds the modules beside the tests."""
    return os.environ | {"PYTHONPATH": str(Path(__file__).parent)} | variables


def last_good(path: str = "run", env: str | None = None) -> sf.Run:
    """The run from its newest checkpoint; its policy acts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = sf.load(path, env=env)
    space = run.learner.spec.action_space
    assert space.contains(run.policy(run.learner.spec.observation_space.sample()))
    return run


@contextlib.contextmanager
def told_of(word: str) -> Iterator[list[str]]:
    """The warnings with a word in them, once the block is left."""
    said: list[str] = []
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        yield said
    said += [str(each.message) for each in told if word in str(each.message)]


def same_bits(one: Any, other: Any) -> bool:
    """Whether two trees of arrays are equal to the bit, NaN included."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)
