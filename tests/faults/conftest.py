"""Commands in an empty directory."""

import json
import sys
import warnings
from pathlib import Path

import pytest
from shell import SMALL, Ended

from surefoot.cli import main


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
