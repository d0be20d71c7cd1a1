"""Stop signals are recorded and handlers restored; an orphan ends by itself."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from surefoot.parallel.signals import STOP_SIGNALS, CatchSignals


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
