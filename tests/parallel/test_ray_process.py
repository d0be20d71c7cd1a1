"""The process of Ray's driver: what ends it is an error here, and nothing of it stays behind.

A stand-in plays Ray; tests/parallel/test_ray.py has the real one.
"""

import contextlib
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

import surefoot as sf
from surefoot.errors import ConfigError, EnvCrashError, WorkerLostError
from surefoot.parallel import ray_process
from surefoot.parallel.ray_process import RayProcess, cluster_resources
from surefoot.training.callback import Callback
from surefoot.training.on_ray import RankJob, train_on_ray
from tests.support import ray_calls
from tests.support.cases import case

pytestmark = pytest.mark.usefixtures("empty_directory")


@pytest.fixture
def ray(monkeypatch):
    """A driver's process with the stand-in; nothing with its mark may outlive the test."""
    Path("ray.py").write_text(ray_calls.RAY)
    monkeypatch.syspath_prepend(str(Path.cwd()))
    with contextlib.closing(RayProcess(None, 2)) as process:
        while len(marked(process)) < 2:  # the driver, and what it has started
            time.sleep(0.01)
        yield process
    assert marked(process) == []


def marked(process):
    return list(ray_process._marked(process._token))


def test_values_objects_and_errors_cross_between_the_processes(ray):
    assert ray.call(cluster_resources) == {"CPU": 3.0}
    with pytest.raises(EnvCrashError, match="of the driver") as raised:
        ray.call(ray_calls.refuse)
    assert raised.value.index == 3
    assert ray.call(ray_calls.Counter, 4) is None
    assert ray.call(ray_calls.Counter.add, 5) == 12.0


@case(128)
def test_a_driver_that_ray_exits_is_reported_with_its_last_words(ray):
    with pytest.raises(WorkerLostError, match=r"Ray is gone \(\(raylet\) Raylet is terminated.\):"):
        ray.call(ray_calls.die)
    assert marked(ray) == []
    with pytest.raises(WorkerLostError, match="Ray is gone"):
        ray.call(cluster_resources)


@case(128)
@pytest.mark.thorough
def test_a_silent_ray_is_lost_while_its_actors_still_answer(ray, monkeypatch):
    monkeypatch.setattr(ray_process, "TIMEOUT_S", 4.0)
    ray.call(ray_calls.wait, 5.0)  # a long call, with heartbeats
    ray.call(ray_calls.fall_silent)
    started = time.monotonic()

    def go_on():
        while True:
            ray.call(ray_calls.wait, 0.1)

    with pytest.raises(WorkerLostError, match="Ray has not answered for 4 s"):
        go_on()
    assert time.monotonic() - started < 8
    assert marked(ray) == []


def test_what_a_pulse_raises_ends_a_call_and_its_driver(ray):
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ray.call(ray_calls.wait, 600.0, pulse=stop)
    started = time.monotonic()
    ray.close()
    assert time.monotonic() - started < 5


@case(128)
@pytest.mark.parametrize(
    ("how", "address", "error", "text"),
    [
        ("raise", None, WorkerLostError, "did not start on this machine: no room in /dev/shm;"),
        ("raise", "auto", ConfigError, "Ray at auto: no room in /dev/shm"),
        ("hang", None, WorkerLostError, "Ray has not answered for 2 s"),
        ("hang", "auto", ConfigError, "auto: Ray has not answered for 2 s"),
    ],
)
def test_a_start_that_fails_or_hangs_is_reported(how, address, error, text, monkeypatch):
    Path("ray.py").write_text(ray_calls.RAY)
    monkeypatch.syspath_prepend(str(Path.cwd()))
    monkeypatch.setattr(ray_process, "START_S", 2.0)
    monkeypatch.setenv("RAY_STAND_IN", how)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with pytest.raises(error, match=text):
        RayProcess(address, 2)


@case(128)
@pytest.mark.thorough
def test_a_run_that_is_complete_misses_no_ray():
    env, directory = "gymnax:CartPole-v1", Path.cwd() / "run"
    small = {"network": sf.Network(hidden=(8,)), "num_envs": 2, "num_steps": 8, "lens_every": 0}
    done = sf.train(env, "vpg", steps=64, out=directory, preset="none", **small)

    def lose(work, *, env_steps, on_row):
        raise WorkerLostError("Ray is gone")

    def again(settings):
        job = RankJob(env, settings, directory, 1)
        return train_on_ray(job, SimpleNamespace(run=lose), lambda job: None, Callback())

    assert again(done.settings).iteration == done.iteration
    longer = replace(done.settings, train=replace(done.settings.train, steps=128))
    with pytest.raises(WorkerLostError, match=r"gone; the newest checkpoint is .*step-000000064"):
        again(longer)
