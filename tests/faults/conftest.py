"""Commands as a user gives them, in an empty directory, and what they leave."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import surefoot as sf
from surefoot.cli import main

SMALL = [
    *("--num-envs", "2", "--num-steps", "16", "--hidden", "8", "--eval-episodes", "1"),
    *("--critic-num-epochs", "1", "--critic-num-minibatches", "1", "--preset", "none"),
]


def pytest_configure(config: Any) -> None:
    config.addinivalue_line("markers", "case(number): of the list of what may go wrong")


class Ended(NamedTuple):
    """How a command ended: its exit code, its last line of errors, its records."""

    code: int
    line: str
    records: list[dict[str, Any]]


@pytest.fixture(autouse=True)
def empty_directory(tmp_path, monkeypatch):
    """Where commands run; the modules beside the tests can be named."""
    monkeypatch.chdir(tmp_path)
    warnings.simplefilter("ignore", UserWarning)  # what is told of environments that break
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parent), *sys.path])
    return tmp_path


@pytest.fixture
def command(capsys):
    """`command(*words) -> Ended`, in this process."""

    def run(*words: object) -> Ended:
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        records = [json.loads(line) for line in out.splitlines() if "--json" in words]
        return Ended(code, (err.strip().splitlines() or [""])[-1], records)

    return run


@pytest.fixture
def train(command):
    """`train(env, *flags) -> Ended`: eight small iterations of vpg into the directory `run`."""

    def run(env: str, *flags: object, steps: int = 256) -> Ended:
        flags = tuple(flags) if "--out" in flags else ("--out", "run", *flags)
        return command("train", env, "vpg", "--steps", steps, *SMALL, *flags, "--json")

    return run


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


def same_bits(one: Any, other: Any) -> bool:
    """Whether two trees of arrays are equal to the bit, NaN included."""
    import jax

    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)
