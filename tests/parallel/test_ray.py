"""Ranks on Ray: placed, watched, and started anew; each test starts a Ray of its own."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_ranks import ENDLESS, LONG, RUN, arrays, equal, in_peace, rows  # noqa: F401

from tests.support.cases import case
from tests.support.shell import around, in_a_shell

pytestmark = pytest.mark.usefixtures("empty_directory")

pytest.importorskip("ray")


def on_ray(*words, **variables):
    """A run on two workers, whose end is waited for by the test."""
    command = [sys.executable, "-m", "surefoot", "train", *RUN, "--cluster", "ray", "--out", "run"]
    with open("driver.log", "w") as log:
        return subprocess.Popen(
            [*command, *words], env=around(variables), stdout=subprocess.PIPE, stderr=log, text=True
        )


def wait_for(process, found, within=120):
    until = time.monotonic() + within
    while not found():
        assert process.poll() is None, told()
        assert time.monotonic() < until, told()
        time.sleep(0.02)


def told():
    logs = sorted(Path().glob("run.ranks/*.log"))
    return "\n".join(file.read_text() for file in [Path("driver.log"), *logs])


def trained(count):
    return lambda: Path("run/metrics.jsonl").exists() and len(rows()) >= count


def pid(rank):
    return int(Path(f"run.ranks/rank-{rank}.pid").read_text())


@case(74)
def test_a_rank_that_is_killed_is_started_anew_with_the_others(in_peace):  # noqa: F811
    process = on_ray(*LONG, "--workers", "2", "--json")
    wait_for(process, trained(25))
    lost = pid(1)
    os.kill(lost, signal.SIGKILL)
    out, _ = process.communicate(timeout=150)
    assert process.returncode == 0, told()
    assert pid(1) != lost
    equal(arrays(), in_peace[0])
    records = [json.loads(line) for line in out.splitlines()]
    iterations = [record["iteration"] for record in records if record["event"] == "row"]
    assert iterations == list(range(1, 101))
    assert [row["policy/kl_mean"] for row in rows()] == in_peace[1]
    assert records[-1]["event"] == "end"


@pytest.mark.slow
@case(77)
def test_restarts_that_are_spent():
    process = on_ray(*ENDLESS, "--restarts", "0")
    wait_for(process, trained(12))
    os.kill(pid(0), signal.SIGKILL)
    process.communicate(timeout=100)
    assert process.returncode == 9
    line = Path("driver.log").read_text().splitlines()[-1]
    assert "error[WORKER-LOST]: ranks were lost more often than the 0 times" in line
    assert re.search(r"newest checkpoint is .*step-\d+; logs: .*rank-0.log, .*rank-1.log", line)


@pytest.mark.slow
@case(78)
def test_a_signal_to_the_driver_stores_and_stops():
    process = on_ray(*ENDLESS)
    wait_for(process, trained(5))
    ranks = [pid(0), pid(1)]
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143, told()
    assert "--resume auto goes on from there" in Path("driver.log").read_text()
    assert arrays()[0] == f"step-{64 * len(rows()):09d}"
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)


@pytest.mark.slow
@case(78)
def test_a_signal_while_ranks_start_is_not_taken_for_their_loss():
    process = on_ray(*ENDLESS)
    wait_for(process, Path("run.ranks/rank-1.pid").exists)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=100)
    assert process.returncode == 143, told()


@pytest.mark.slow
@case(76)
def test_a_rank_that_is_stuck_is_ended_and_started_anew(in_peace):  # noqa: F811
    process = on_ray(*LONG)
    wait_for(process, trained(25))
    stuck = pid(1)
    os.kill(stuck, signal.SIGSTOP)
    process.communicate(timeout=200)
    assert process.returncode == 0, told()
    equal(arrays(), in_peace[0])
    assert not Path(f"/proc/{stuck}").exists()


@pytest.mark.slow
@case(78)
def test_a_signal_to_a_rank_stops_the_driver_too():
    process = on_ray(*ENDLESS)
    wait_for(process, trained(5))
    os.kill(pid(1), signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143, told()


@pytest.mark.slow
def test_what_lies_beside_a_run_is_left_alone(in_peace):  # noqa: F811
    """And outside loggers write into a directory that the ranks have made."""
    Path("run.ranks").mkdir()
    Path("run.ranks/notes.txt").write_text("of mine")
    process = on_ray(*LONG, "--tensorboard")
    process.communicate(timeout=150)
    assert process.returncode == 0, told()
    equal(arrays(), in_peace[0])
    assert Path("run.ranks/notes.txt").read_text() == "of mine"
    assert list(Path("run").glob("**/events*"))


@pytest.mark.slow
def test_a_killed_driver_takes_all_with_it():
    process = on_ray(*ENDLESS)
    wait_for(process, trained(2))
    ranks = [pid(0), pid(1)]
    process.kill()
    until = time.monotonic() + 40
    while any(Path(f"/proc/{rank}").exists() for rank in ranks):
        assert time.monotonic() < until
        time.sleep(0.2)


@case(85)
def test_what_needs_a_token_or_ray_is_told_at_once():
    done = in_a_shell("train", *RUN, "--cluster", "ray", "--address", "10.0.0.1:6379")
    assert done.returncode == 2
    assert "error[TOKEN]: --address 10.0.0.1:6379: its ports are open" in done.stderr
    done = in_a_shell("train", *RUN, "--workers", "2")
    assert (done.returncode, "--workers goes with --cluster ray" in done.stderr) == (2, True)
    done = in_a_shell("train", *RUN, "--cluster", "ray", "--workers", "0")
    assert (done.returncode, "--workers must be at least 1" in done.stderr) == (2, True)
    Path("ray.py").write_text("raise ImportError('no ray here')")
    done = in_a_shell("train", *RUN, "--cluster", "ray")
    assert done.returncode == 2
    assert "pip install 'surefoot[ray]'" in done.stderr
    assert not Path("runs").exists()


def env_actors():
    """The processes of Ray's that step environments."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                if "_EnvActor" in (process / "cmdline").read_text():
                    found.append(int(process.name))
    return sorted(found)


@pytest.mark.slow
@case(82)
def test_a_killed_environment_actor_leaves_the_batch_full():
    words = ["CartPole-v1", "--num-envs", "4", "--num-steps", "64", "--steps", "51200"]
    command = [sys.executable, "-m", "surefoot", "train", *words, "--env-workers", "2"]
    with open("driver.log", "w") as log:
        process = subprocess.Popen([*command, "--out", "run"], stdout=log, stderr=log)
        wait_for(process, trained(5))
        os.kill(env_actors()[0], signal.SIGKILL)
        assert process.wait(120) == 0, told()
    assert rows()[-1]["env/lost"] == 1
    assert [row["env_steps"] for row in rows()] == list(range(256, 51201, 256))
    assert rows()[-1]["env/stale"] == 0
