"""Ranks on Ray: started, watched and restarted; each test starts a Ray of its own."""

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
from test_ranks import ENDLESS, LONG, RUN, arrays, equal, rows, undisturbed  # noqa: F401

from tests.support.cases import case
from tests.support.shell import around, in_a_shell

pytestmark = pytest.mark.usefixtures("empty_directory")

pytest.importorskip("ray")


def on_ray(*words, **variables):
    """Start a run on two workers."""
    command = [sys.executable, "-m", "surefoot", "train", *RUN, "--cluster", "ray", "--out", "run"]
    with open("driver.log", "w") as log:
        return subprocess.Popen(
            [*command, *words], env=around(variables), stdout=subprocess.PIPE, stderr=log, text=True
        )


def wait_for(process, found, within=120):
    until = time.monotonic() + within
    while not found():
        assert process.poll() is None, logs()
        assert time.monotonic() < until, logs()
        time.sleep(0.02)


def wait_for_end_of(pids, within):
    until = time.monotonic() + within
    while any(Path(f"/proc/{number}").exists() for number in pids):
        assert time.monotonic() < until
        time.sleep(0.1)


def logs():
    files = [Path("driver.log"), *sorted(Path().glob("run.ranks/*.log"))]
    return "\n".join(file.read_text() for file in files)


def trained(count):
    return lambda: Path("run/metrics.jsonl").exists() and len(rows()) >= count


def pid(rank):
    """Of the process that a rank is, or was last."""
    log = Path(f"run.ranks/rank-{rank}.log").read_text()
    return int(re.findall(rf"^rank {rank}: process (\d+) on ", log, re.MULTILINE)[-1])


@pytest.mark.thorough
@case(74)
def test_a_killed_rank_is_restarted_with_the_others(undisturbed):  # noqa: F811
    process = on_ray(*LONG, "--workers", "2", "--json")
    wait_for(process, trained(25))
    lost = pid(1)
    os.kill(lost, signal.SIGKILL)
    out, _ = process.communicate(timeout=150)
    assert process.returncode == 0, logs()
    assert pid(1) != lost
    equal(arrays(), undisturbed[0])
    records = [json.loads(line) for line in out.splitlines()]
    iterations = [record["iteration"] for record in records if record["event"] == "row"]
    assert iterations == list(range(1, 101))
    assert [row["policy/kl_mean"] for row in rows()] == undisturbed[1]
    assert records[-1]["event"] == "end"


@pytest.mark.slow
@case(77)
def test_a_rank_lost_after_the_last_restart_ends_the_run():
    process = on_ray(*ENDLESS, "--restarts", "0")
    wait_for(process, trained(12))
    os.kill(pid(0), signal.SIGKILL)
    process.communicate(timeout=100)
    assert process.returncode == 9
    line = Path("driver.log").read_text().splitlines()[-1]
    assert "error[WORKER-LOST]: ranks were lost more often than the 0 times" in line
    assert "The actor died unexpectedly" in line
    assert re.search(r"logs: .*rank-0.log, .*rank-1.log; the newest checkpoint is .*step-\d+", line)


@pytest.mark.slow
@case(78)
def test_a_signal_to_the_driver_stores_and_stops():
    process = on_ray(*ENDLESS)
    wait_for(process, trained(5))
    ranks = [pid(0), pid(1)]
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143, logs()
    assert "--resume auto continues from there" in Path("driver.log").read_text()
    assert arrays()[0] == f"step-{64 * len(rows()):09d}"
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)


@pytest.mark.slow
@case(78)
def test_a_signal_while_ranks_start_does_not_count_as_their_loss():
    process = on_ray(*ENDLESS)
    wait_for(process, Path("run.ranks/rank-1.log").exists)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=100)
    assert process.returncode == 143, logs()


@pytest.mark.slow
@case(76)
def test_a_stuck_rank_is_killed_and_restarted(undisturbed):  # noqa: F811
    process = on_ray(*LONG)
    wait_for(process, trained(25))
    stuck = pid(1)
    os.kill(stuck, signal.SIGSTOP)
    process.communicate(timeout=200)
    assert process.returncode == 0, logs()
    equal(arrays(), undisturbed[0])
    assert not Path(f"/proc/{stuck}").exists()


@pytest.mark.slow
@case(78)
def test_a_signal_to_a_rank_stops_the_driver_too():
    process = on_ray(*ENDLESS)
    wait_for(process, trained(5))
    os.kill(pid(1), signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143, logs()


@pytest.mark.slow
def test_other_files_beside_a_run_are_left_alone(undisturbed):  # noqa: F811
    """And loggers write into the directory that a rank has made."""
    Path("run.ranks").mkdir()
    Path("run.ranks/notes.txt").write_text("of mine")
    process = on_ray(*LONG, "--tensorboard")
    process.communicate(timeout=150)
    assert process.returncode == 0, logs()
    equal(arrays(), undisturbed[0])
    assert Path("run.ranks/notes.txt").read_text() == "of mine"
    assert list(Path("run").glob("**/events*"))


@pytest.mark.slow
def test_ranks_end_with_a_killed_driver():
    process = on_ray(*ENDLESS)
    wait_for(process, trained(2))
    ranks = [pid(0), pid(1)]
    process.kill()
    wait_for_end_of(ranks, within=40)


@case(85)
def test_a_ray_without_a_token_and_a_missing_ray_are_reported_at_once():
    done = in_a_shell("train", *RUN, "--cluster", "ray", "--address", "10.0.0.1:6379")
    assert done.returncode == 2
    assert (
        "error[TOKEN]: --address 10.0.0.1:6379: other machines can reach its ports" in done.stderr
    )
    done = in_a_shell("train", *RUN, "--workers", "2")
    assert (done.returncode, "--workers needs --cluster ray" in done.stderr) == (2, True)
    done = in_a_shell("train", *RUN, "--cluster", "ray", "--workers", "0")
    assert (done.returncode, "--workers must be at least 1" in done.stderr) == (2, True)
    Path("ray.py").write_text("raise ImportError('no ray here')")
    done = in_a_shell("train", *RUN, "--cluster", "ray", PYTHONPATH=str(Path.cwd()))
    assert done.returncode == 2
    assert "pip install 'surefoot[ray]'" in done.stderr
    assert not Path("runs").exists()


def env_actors():
    """PIDs of the Ray actors that step environments."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                if "_EnvActor" in (process / "cmdline").read_text():
                    found.append(int(process.name))
    return sorted(found)


def with_env_workers(*words, env="CartPole-v1"):
    """Start a run of four environments in two actors."""
    words = [env, "--num-envs", "4", "--num-steps", "64", "--out", "run", *words]
    command = [sys.executable, "-m", "surefoot", "train", *words, "--env-workers", "2"]
    with open("driver.log", "w") as log:
        return subprocess.Popen(command, env=around({}), stdout=log, stderr=log)


@pytest.mark.slow
@case(82)
def test_a_killed_environment_actor_leaves_no_gap_in_a_batch():
    process = with_env_workers("--steps", "51200")
    wait_for(process, trained(5))
    os.kill(env_actors()[0], signal.SIGKILL)
    assert process.wait(120) == 0, logs()
    assert rows()[-1]["env/lost"] == 1
    assert [row["env_steps"] for row in rows()] == list(range(256, 51201, 256))
    assert rows()[-1]["env/stale"] == 0


def processes_of_ray(command):
    """The Ray driver of a command, and every process with that Ray's token: name by PID."""
    found, token = {}, None
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            variables = (process / "environ").read_bytes().split(b"\0")
            mine = [word for word in variables if word.startswith(b"RAY_AUTH_TOKEN=")]
            if mine and int((process / "stat").read_text().split()[3]) == command.pid:
                token = mine[0]
            found[int(process.name)] = (process / "cmdline").read_bytes(), mine
    return {
        pid: Path(line.split(b"\0")[0].decode()).name
        for pid, (line, mine) in found.items()
        if token in mine
    }


@pytest.mark.slow
@pytest.mark.thorough
@case(128)
@pytest.mark.parametrize(
    ("part", "signal_name", "within"),
    [
        ("raylet", "SIGKILL", 15),
        ("gcs_server", "SIGKILL", 35),
        ("raylet", "SIGSTOP", 35),
        ("gcs_server", "SIGSTOP", 35),
    ],
)
@pytest.mark.parametrize("start", [on_ray, with_env_workers])
def test_a_dead_part_of_ray_ends_a_run_in_time_with_its_work_kept(start, part, signal_name, within):
    process = start("--steps", "6400000")
    wait_for(process, trained(12))
    ours = processes_of_ray(process)
    (lost,) = [number for number, name in ours.items() if name == part]
    os.kill(lost, getattr(signal, signal_name))
    began = time.monotonic()
    process.communicate(timeout=within)
    assert (process.returncode, time.monotonic() - began < within) == (9, True), logs()
    wait_for_end_of(ours, within=2)  # the system takes a moment
    said = Path("driver.log").read_text()
    assert "Traceback" not in said
    assert re.search(r"error\[WORKER-LOST\]: Ray (is gone|has not answered for 20 s)", said)
    kept = sorted(path.name for path in Path("run/checkpoints").iterdir())[-1]
    assert said.splitlines()[-1].endswith(f"checkpoint is {Path('run/checkpoints', kept)}")


@pytest.mark.slow
@pytest.mark.thorough
@case(128)
def test_an_actor_that_keeps_pythons_lock_is_lost_after_the_time_of_a_step():
    held = ("--env-kwargs", '{"when": "step", "how": "lock"}')
    limits = ("--env-timeout-s", "8", "--restarts", "1", "--steps", "6400")
    process = with_env_workers(*held, *limits, env="broken_envs:HangsIn")
    assert process.wait(120) == 9, logs()
    line = Path("driver.log").read_text().splitlines()[-1]
    assert "and all 1 restarts are used: a step that kept Python's lock for 8 s" in line
    assert env_actors() == []
