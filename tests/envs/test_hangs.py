"""Environments that never return are ended in time by name, whatever they are called for."""

import json
import subprocess
import sys
import time

import pytest

import surefoot as sf
from tests.support.broken_envs import HangsIn, Sound
from tests.support.cases import case
from tests.support.shell import SMALL, around, last_good

pytestmark = pytest.mark.usefixtures("empty_directory")

CALLS = pytest.mark.parametrize("when", ["made", "reset", "step", "close"])
SAID = {
    "made": "making environment 0 did not respond within 1 s",
    "reset": "environment 0 did not respond within 1 s",
    "step": "environment 0 did not respond within 1 s",
    "close": "closing environment 0 did not respond within 1 s",
}


def flags(**how):
    return ["--env-timeout-s", "1", "--env-kwargs", json.dumps(how)]


def in_a_shell(*more, **how):
    """How a command ended, its error line, and its seconds until nobody holds its output."""
    words = ["train", "broken_envs:HangsIn", "vpg", "--steps", "256", *SMALL, "--out", "run"]
    command = [sys.executable, "-m", "surefoot", *words, *flags(**how), *more]
    started = time.monotonic()
    done = subprocess.run(command, env=around({}), capture_output=True, text=True, timeout=60)
    return done.returncode, done.stderr, time.monotonic() - started


@case(115)
@CALLS
def test_a_hang_in_this_process_is_an_error_in_time(train, when):
    started = time.monotonic()
    ended = train("broken_envs:HangsIn", *flags(when=when))
    assert ended.code == 4
    assert "error[ENV-HUNG]" in ended.line
    assert SAID[when] in ended.line
    assert time.monotonic() - started < 25
    if when == "close":  # what was trained is kept, and said to be
        assert "the run is kept in run" in ended.line
        assert last_good(env="broken_envs:HangsIn").finished


@pytest.mark.thorough
@case(115)
@CALLS
@pytest.mark.parametrize("how", ["native", "alarm"])
def test_a_hang_that_nothing_interrupts_ends_this_process_with_a_line(when, how):
    code, said, seconds = in_a_shell(when=when, how=how)
    assert code == 4
    assert "error[ENV-HUNG]" in said
    assert "did not respond within 1 s (env_timeout_s), in code that cannot be" in said
    assert seconds < 25


@pytest.mark.thorough
@case(115)
@pytest.mark.parametrize("how", ["asleep", "native", "lock"])
@CALLS
def test_a_hang_in_another_process_is_an_error_in_time(when, how):
    code, said, seconds = in_a_shell("--vectorization", "async", when=when, how=how, where="there")
    assert seconds < 30
    if when == "close":  # it is ended, and the run is whole
        assert code == 0, said
        return
    assert code == 4
    assert "error[ENV-HUNG]" in said
    assert "the process of environments 1 to 1 did not respond within 1 s" in said


@case(115)
@pytest.mark.parametrize("when", ["made", "close"])
@pytest.mark.thorough
def test_what_an_environment_of_another_process_leaves_behind_does_not_hold_our_output(when):
    code, said, seconds = in_a_shell(
        "--vectorization", "async", when=when, how="leaves", where="there"
    )
    assert code == 0, said
    assert seconds < 30


class SlowToMake(Sound):
    def __init__(self):
        super().__init__()
        time.sleep(0.4)

    def close(self):
        time.sleep(0.4)


@case(115)
@pytest.mark.thorough
def test_many_constructors_that_take_their_time_are_each_within_it():
    train = sf.Train(steps=64, num_envs=4, num_steps=16, env_timeout_s=1.0)
    critic = sf.Critic(num_epochs=1, num_minibatches=1)
    assert sf.train(SlowToMake, sf.VPG(), train=train, critic=critic, preset="none").finished


@case(115)
def test_a_hang_while_closing_hides_no_other_error():
    train = sf.Train(steps=640, num_envs=1, num_steps=16, env_timeout_s=1.0)
    critic = sf.Critic(num_epochs=1, num_minibatches=1)

    def make():
        env = HangsIn(when="close")
        env.broken = lambda *given: 1 / 0
        return env

    with pytest.raises(sf.SurefootError, match="ZeroDivisionError"):
        sf.train(make, sf.VPG(), train=train, critic=critic, preset="none")
