"""Work side by side in processes: errors, deaths and signals."""

import multiprocessing
import os
import signal
import threading
import time

import gymnasium
import pytest

from surefoot.parallel.jobs import ComparisonStopped, side_by_side


def test_warnings_of_gymnasium_are_not_repeated_by_every_process(capfd):
    side_by_side(gymnasium.make, ["CartPole-v0"], jobs=2, done=lambda *_: None)
    assert "DeprecationWarning" not in capfd.readouterr().err


def test_a_signal_stops_every_process():
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with pytest.raises(ComparisonStopped):
        side_by_side(time.sleep, [300.0] * 3, jobs=2, done=lambda *_: None)
    assert multiprocessing.active_children() == []


def test_work_that_fails_or_dies_in_its_process_leaves_the_others_be():
    outcomes = {}
    side_by_side(
        eval, ["1 + 1", "1 / 0", "__import__('os')._exit(3)"], jobs=3, done=outcomes.__setitem__
    )
    assert outcomes[0] == (2, None)
    assert outcomes[1] == (None, "ZeroDivisionError: division by zero")
    assert outcomes[2] == (None, "its process died with code 3")
