"""Signals, the end of a process, and what a machine runs out of."""

import contextlib
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import surefoot as sf
from surefoot.envs.registry import find_env
from surefoot.envs.source import EnvSource
from surefoot.envs.step_timeout import StepTimeout
from tests.support.broken_envs import Sound
from tests.support.cases import case
from tests.support.shell import SMALL, around, last_good

pytestmark = pytest.mark.usefixtures("empty_directory")

SOUND = "broken_envs:Sound"
OFTEN = ["--checkpoint-every", "320", "--no-reset-at-checkpoints"]
TWO = ["--vectorization", "cores"]


@contextlib.contextmanager
def running(*words: str, **how):
    """A long run in a process of its own, past its first rows."""
    command = [sys.executable, "-m", "surefoot", "train", SOUND, "vpg", "--steps", "1e8"]
    process = subprocess.Popen(
        [*command, *SMALL, *OFTEN, "--out", "run", *words],
        env=around({}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **how,
    )
    deadline = time.monotonic() + 120
    while not list(Path("run").glob("checkpoints/step-*")) and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def descendants(pid):
    """Processes that a process started."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"PPid:\t{pid}\n" in (entry / "status").read_text():
                found.append(int(entry.name))
    return found


def gone(pids, within):
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.thorough
@case(66)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_sigterm_or_sigusr1(command, number):
    with running() as process:
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 143
    line = said.strip().splitlines()[-1]
    assert f"stopped by {number.name} at iteration" in line
    assert f"surefoot resume run --env {SOUND}" in line
    run = last_good(env=SOUND)
    assert run.iteration == run.rows[-1]["iteration"]
    assert run.iteration == int(re.search(r"at iteration (\d+)", line)[1])


@case(67)
def test_sigint_once():
    with running(*TWO) as process:
        workers = descendants(process.pid)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"surefoot resume run --env {SOUND}" in said
    assert last_good(env=SOUND).iteration == last_good(env=SOUND).rows[-1]["iteration"]
    assert len(workers) == 1
    assert gone(workers, 5)


@pytest.mark.thorough
@case(67)
def test_sigint_twice():
    with running(*TWO) as process:
        workers = descendants(process.pid)
        for _ in range(20):
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert last_good(env=SOUND).iteration > 0
    assert gone(workers, 10)


@pytest.mark.thorough
@case(68)
def test_the_trainer_is_killed():
    shared = set(os.listdir("/dev/shm"))
    with running(*TWO) as process:
        workers = descendants(process.pid)
        assert len(workers) == 1
        process.kill()
        process.wait()
        assert gone(workers, 5)
    assert set(os.listdir("/dev/shm")) <= shared
    assert last_good(env=SOUND).iteration > 0


@case(69)
def test_standard_output_closes():
    with running("--json") as process:
        process.stdout.close()
        said = process.stderr.read()
        assert process.wait(timeout=60) == 0
    assert "Traceback" not in said
    assert "BrokenPipe" not in said
    assert last_good(env=SOUND).iteration > 0


@pytest.mark.thorough
@case(70)
def test_memory_runs_out():
    code = (
        "import resource, sys; from surefoot.cli.parser import main; import jax;"
        "jax.numpy.ones(3) + 1;"
        "size = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize();"
        "resource.setrlimit(resource.RLIMIT_AS, (size + 2**29,) * 2);"
        "sys.exit(main(sys.argv[1:]))"
    )
    words = ["train", SOUND, "vpg", "--num-envs", "2", "--num-steps", str(2**22)]
    words += ["--preset", "none", "--critic-num-minibatches", "1", "--out", "run"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], env=around({}), capture_output=True, text=True
    )
    line = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 8, done.stderr
    assert re.search(r"error\[OUT-OF-MEMORY\]: out of memory: .*halve num_steps", line)
    assert "8,388,608 rows (num_envs 2 x num_steps 4194304)" in line


@case(71)
def test_no_room_in_dev_shm(monkeypatch):
    """Nothing is made there at all: environments share memory that has no name."""
    before = set(os.listdir("/dev/shm"))
    env = find_env("CartPole-v1", {}).open(4, seed=0, processes=2)
    env.reset([0, 1, 2, 3])
    env.step(np.zeros(4, np.int64))
    assert set(os.listdir("/dev/shm")) == before
    env.close()


def held():
    """Descriptors, threads and child processes of this process."""
    return len(os.listdir("/proc/self/fd")), threading.active_count(), len(descendants(os.getpid()))


@case(72)
@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_thousand_vectors_opened_and_closed(processes):
    opens_and_closes(1000 // processes**3, processes)


@pytest.mark.thorough
@case(72)
def test_some_vectors_opened_and_closed():
    opens_and_closes(50, 1)
    opens_and_closes(10, 2)


def opens_and_closes(times, processes):
    source = EnvSource(env_id="Sound", make=Sound)

    def once():
        env = source.open(2, seed=0, processes=processes)
        env.reset([0, 1])
        env.step(np.zeros(2, np.int64))
        env.close()

    once()
    before, memory = held(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(times):
        once()
    assert held() == before
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 50_000


@case(73)
def test_the_clock_jumps(monkeypatch):
    """A day forwards or back at each look changes nothing."""
    jumps = iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: 1e9 + (-1) ** next(jumps) * 86_400.0 * next(jumps))
    settings = sf.Train(num_envs=2, num_steps=16, env_timeout_s=60.0)
    critic = sf.Critic(num_epochs=1, num_minibatches=1)
    run = sf.train(Sound, sf.VPG(), steps=128, train=settings, critic=critic, preset="none")
    for row in run.rows:
        for name in ("time/iteration", "time/env", "time/policy", "time/update"):
            assert 0 <= row[name] < 60
        assert 0 < row["time/steps_per_second"] < 1e6


@pytest.mark.thorough
def test_standard_streams_that_are_closed_from_the_start():
    words = [sys.executable, "-m", "surefoot", "train", SOUND, "vpg", "--steps", "64", *SMALL]
    line = " ".join([*words, *TWO, "--out", "run", "<&-", ">&-", "2>&-"])
    assert subprocess.run(["sh", "-c", line], env=around({})).returncode == 0
    assert last_good(env=SOUND).finished


def test_a_step_timeout_lets_steps_in_time_pass_and_ends_when_closed():
    before = set(threading.enumerate())
    timeout = StepTimeout(0.4, "it")
    for _ in range(30):
        timeout.started = time.monotonic()
        time.sleep(0.02)
    timeout.started = None
    time.sleep(0.5)
    timeout.close()
    deadline = time.monotonic() + 5
    while set(threading.enumerate()) - before:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert timeout.message == "did not respond within 0.4 s (env_timeout_s)"
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
