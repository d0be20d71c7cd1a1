"""A signal at any moment outside of training stops a command, which says so."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.cases import case
from tests.support.shell import SMALL, around

pytestmark = pytest.mark.usefixtures("empty_directory")

EVERY_SIGNAL = pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        (signal.SIGTERM, 143),
        pytest.param(signal.SIGHUP, 143, marks=pytest.mark.thorough),
        pytest.param(signal.SIGUSR1, 143, marks=pytest.mark.thorough),
    ],
    ids=lambda given: getattr(given, "name", ""),
)
COMMAND = [sys.executable, "-m", "surefoot"]
TRAIN = ["train", "when:Signals", "vpg", "--steps", "64", *SMALL, "--out", "run"]

AT_AN_IMPORT = """
import os, sys

def hook(event, given, left=[1]):
    if event == "import" and given[0] == os.environ["MODULE"] and left:
        left.pop()
        os.kill(os.getpid(), int(os.environ["NUMBER"]))

sys.addaudithook(hook)
"""
IN_AN_ENVIRONMENT = """
import os
from broken_envs import Sound

made = 0

def send(when):
    if when == os.environ["WHEN"]:
        os.kill(os.getpid(), int(os.environ["NUMBER"]))

class Signals(Sound):
    def __init__(self):
        global made
        super().__init__()
        made += 1
        send("made" if made < 3 else "evaluated")

    def reset(self, **given):
        send("reset")
        return super().reset(**given)

    def close(self):
        send("closed")
        open("closed", "a").close()
"""


def ended(words, number, **variables):
    """How a command ended, and what it said."""
    Path("when.py").write_text(IN_AN_ENVIRONMENT)
    own = around({"NUMBER": str(int(number)), "WHEN": "", **variables})
    own["PYTHONPATH"] = f".:{own['PYTHONPATH']}"
    done = subprocess.run([*COMMAND, *words], env=own, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stderr


@case(118)
@EVERY_SIGNAL
@pytest.mark.parametrize("module", ["surefoot.cli.parser", "rich", "jax", "broken_envs"])
def test_a_signal_while_a_module_is_imported(number, code, module):
    Path("sitecustomize.py").write_text(AT_AN_IMPORT)
    found, said = ended(TRAIN, number, MODULE=module)
    assert (found, said) == (code, f"surefoot: stopped by {number.name}\n")


@pytest.mark.thorough
@case(118)
@EVERY_SIGNAL
@pytest.mark.parametrize("when", ["made", "reset", "closed", "evaluated"])
def test_a_signal_while_environments_are_opened_closed_or_evaluated(number, code, when):
    found, said = ended(TRAIN, number, WHEN=when)
    assert found == code, said
    assert f"surefoot: stopped by {number.name}\n" in said
    assert "Traceback" not in said
    assert Path("closed").exists() or when in ("made", "closed")
    trained = when in ("closed", "evaluated")
    assert bool(list(Path().glob("run/checkpoints/*"))) == trained


@pytest.mark.thorough
@case(118)
@pytest.mark.parametrize(
    "command", [TRAIN, ["exact", "FrozenLake-v1"], ["essay"]], ids=lambda w: w[0]
)
@pytest.mark.parametrize("seconds", [0.0, 0.05, 0.2, 0.5, 1.0])
def test_a_signal_after_some_seconds(command, seconds):
    """From the moment at which the process catches it."""
    Path("when.py").write_text(IN_AN_ENVIRONMENT)
    words = ["1e7" if word == "64" else word for word in command]
    own = around({"WHEN": ""})
    own["PYTHONPATH"] = f".:{own['PYTHONPATH']}"
    process = subprocess.Popen([*COMMAND, *words], env=own, stderr=subprocess.PIPE, text=True)
    caught, deadline = 0, time.monotonic() + 30
    while not caught >> (signal.SIGTERM - 1) & 1 and time.monotonic() < deadline:
        status = Path(f"/proc/{process.pid}/status").read_text()
        caught = int(status.partition("SigCgt:")[2].split()[0], 16)
    time.sleep(seconds)
    finished = process.poll() == 0
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert finished or process.returncode == 143, said
    assert finished or "stopped by SIGTERM" in said
    assert "Traceback" not in said
