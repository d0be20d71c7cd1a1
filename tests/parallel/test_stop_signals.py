"""Stop signals are recorded and handlers restored; an orphan ends by itself."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from surefoot.parallel.signals import STOP_SIGNALS, CatchSignals
from tests.support.cases import case


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_the_first_signal_is_recorded_and_the_handlers_are_restored(number):
    before = [signal.getsignal(each) for each in STOP_SIGNALS]
    reactions = []
    with CatchSignals(reactions.append) as signals:
        assert signals.caught is None
        os.kill(os.getpid(), number)
        assert signals.caught == number
    assert reactions == [number]
    assert [signal.getsignal(each) for each in STOP_SIGNALS] == before


def test_a_second_signal_stops_at_once_and_the_handlers_are_restored():
    before = signal.getsignal(signal.SIGTERM)
    with CatchSignals():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before


@case(100)
def test_a_signal_is_announced_while_compiled_code_keeps_python_from_answering():
    matrix, announced = np.ones((3000, 3000)), []
    with CatchSignals(announce=lambda name: announced.append((name, time.monotonic()))) as signals:
        sender = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM))
        sender.start()
        matrix @ matrix
        done = time.monotonic()
        sender.join()
        assert signals.caught == signal.SIGTERM
    name, when = announced[0]
    assert name == "SIGTERM"
    assert when < done


def test_another_wakeup_of_signals_is_given_back():
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        before = signal.set_wakeup_fd(ours.fileno())
        try:
            with CatchSignals(announce=print):
                pass
            assert signal.set_wakeup_fd(before) == ours.fileno()
        finally:
            signal.set_wakeup_fd(before)


@case(99)
def test_a_process_that_outlives_its_terminal_is_not_stopped_by_a_hangup():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as `nohup` does
    try:
        with CatchSignals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.caught is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_outside_the_main_thread_signals_are_left_alone():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work():
        with CatchSignals() as signals:
            seen.append((signals.caught, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(None, before)]


PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.DEVNULL)
print(child.pid, flush=True)
sys.stdin.read()
"""
CHILD = """
import time
from surefoot.parallel.signals import end_with_parent
end_with_parent()
time.sleep(60)
"""


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_process_ends_with_its_parent():
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    child = int(parent.stdout.readline())
    time.sleep(1.0)
    assert is_running(child)
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 30
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_running(child)
