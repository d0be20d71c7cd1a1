"""Environments spread over processes: the same numbers, and every end of one told and tidied up."""

import contextlib
import enum
import gc
import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import gymnasium
import jax
import numpy as np
import pytest

import surefoot as sf
from surefoot.envs import channel
from surefoot.envs import processes as processes_module
from surefoot.envs import vector as vectors
from surefoot.envs.channel import Channel
from surefoot.envs.processes import usable_cores
from surefoot.envs.registry import find_env
from surefoot.envs.source import EnvSource
from surefoot.errors import ConfigError, EnvContractError, EnvCrashError
from tests.support.scripted import ACTION_SPACES, OBS_SPACES, Scripted, make_scripted, mask_of

SECONDS = 5.0
"""Within which the end of a process has its consequences."""


def opened(num_envs=5, processes=3, source=None, **options):
    source = source or find_env("tests.support.scripted:Scripted-v0", options)
    return source.open(num_envs, seed=0, processes=processes)


def workers(word=b"surefoot.envs.worker"):
    """Processes that step environments, of those whose command has a word."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes()
            if b"surefoot.envs.worker" in words and word in words:
                found.append(int(entry.name))
    return found


def children():
    """Those that this process started and has not let go of."""
    own = f"PPid:\t{os.getpid()}\n"
    return [pid for pid in workers() if own in Path(f"/proc/{pid}/status").read_text()]


def held():
    """Sockets and anonymous files that this process has open."""
    gc.collect()  # a caught exception keeps what its frames saw
    links = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            links.append(os.readlink(entry))
    own = [link for link in links if link.startswith(("socket:", "/memfd:surefoot"))]
    return sorted(own)


@pytest.fixture(autouse=True)
def nothing_is_left_behind():
    before = held()
    yield
    assert children() == []
    assert held() == before


def played(env, steps=12):
    """All that comes back from a reset and some steps."""
    rng, story = np.random.default_rng(0), [env.reset([3, 1, 4, 1, 5])]
    space = gymnasium.vector.utils.batch_space(env.spec.action_space, env.num_envs)
    space.seed(int(rng.integers(100)))
    for _ in range(steps):
        step = env.step(space.sample())
        for info in step.final_infos.values():
            del info["jax_loaded"]  # only in this process
        story.append(step._replace(obs=jax.tree.map(np.copy, step.obs)))
    story.append(env.reset([2, 2, 2, 2, 2]))
    story = jax.tree.map(np.copy, story)
    env.close()
    return story


@pytest.mark.parametrize("processes", [2, 3, 5])
@pytest.mark.parametrize(
    "options",
    [
        *({"obs": obs} for obs in OBS_SPACES),
        *({"action": action} for action in ACTION_SPACES),
        {"reuse": True, "masks": mask_of},
    ],
    ids=lambda options: "-".join(
        f"{k}={v if k != 'masks' else 'given'}" for k, v in options.items()
    ),
)
def test_what_comes_back_is_the_same_however_many_processes_step(options, processes):
    if processes == 5 and options != {"masks": mask_of, "reuse": True}:
        pytest.skip("five processes once are enough")
    here, there = (
        played(opened(processes=1, **options)),
        played(opened(processes=processes, **options)),
    )
    jax.tree.map(np.testing.assert_array_equal, here, there)
    assert any(step.final_infos for step in here[1:-1])


class Keeping(Scripted):
    """Tells in its reward the action that it kept from the step before."""

    kept = None

    def step(self, action):
        obs, _, *rest = super().step(action)
        paid, self.kept = 0.0 if self.kept is None else float(self.kept[0]), action
        return obs, paid, *rest


def test_an_action_that_an_environment_keeps_is_not_overwritten():
    for processes in (1, 2):
        env = opened(2, processes, find_env(partial(Keeping, action="box"), {}))
        env.reset([1, 1])
        env.step(np.full((2, 2), 0.25, np.float32))
        step = env.step(np.full((2, 2), 0.75, np.float32))
        env.close()
        np.testing.assert_array_equal(step.rewards, [0.25, 0.25])


def test_a_run_has_the_same_bits_in_several_processes():
    def run(vectorization):
        train = sf.Train(steps=256, num_envs=4, num_steps=32, vectorization=vectorization)
        return sf.train("CartPole-v1", sf.PPO(num_epochs=1), train=train)

    runs = [run(kind) for kind in ("sync", "async")]
    jax.tree.map(np.testing.assert_array_equal, *(r.state.learn.params for r in runs))


class WordyError(Exception):
    """Cannot be pickled: its words are many, its arguments one."""

    def __init__(self, one, two):
        super().__init__(one)
        self.two = lambda: two


class Faulty(Scripted):
    """Fails at its third step, in the way that is asked for."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def step(self, action):
        if self.time == 2:
            self.how()
        return super().step(action)


def unplugged():
    raise BrokenPipeError("the simulator is gone")


def wordy():
    raise WordyError("too many\nwords", 2)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (wordy, r"environment 1 raised WordyError: too many words \(.+\); at step 3 after"),
        (
            unplugged,
            r"raised BrokenPipeError: the simulator is gone \(.+\); at step 3",
        ),
        (partial(sys.exit, "enough"), r"environment 1 raised SystemExit: enough \(.+\); at step 3"),
        (partial(os._exit, 7), r"environments 1 to 1 \(pid \d+\) ended with exit status 7"),
    ],
    ids=["unpicklable", "broken-pipe", "exit", "hard-exit"],
)
def test_what_ends_an_environment_elsewhere_is_told(how, said):
    made = []

    def make():  # the first is stepped in this process, and stays well
        made.append(None)
        return Scripted() if len(made) == 1 and os.getpid() == trainer else Faulty(how)

    trainer = os.getpid()
    env = opened(2, 2, EnvSource(env_id="Faulty", make=make))
    env.reset([1, 1])
    for _ in range(2):
        env.step(np.zeros(2, np.int64))
    with pytest.raises(EnvCrashError, match=said) as caught:
        env.step(np.zeros(2, np.int64))
    env.close()
    if how is wordy:
        assert "in wordy" in caught.value.__notes__[0]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_killed_process_is_told_at_once_with_its_environments(number):
    env = opened(5, 2)
    env.reset([0, 1, 2, 3, 0])
    (pid,) = children()
    os.kill(pid, number)
    started = time.monotonic()
    with pytest.raises(EnvCrashError) as caught:
        env.step(np.zeros(5, np.int64))
    env.close()
    assert time.monotonic() - started < SECONDS
    assert f"environments 2 to 4 (pid {pid}) was killed by {number.name}" in str(caught.value)
    assert ("out of memory?" in str(caught.value)) == (number is signal.SIGKILL)


def test_signals_for_the_whole_job_are_left_to_the_trainer():
    env = opened(2, 2)
    env.reset([0, 1])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        os.kill(children()[0], number)
    time.sleep(0.1)
    env.step(np.zeros(2, np.int64))
    env.close()


def test_a_process_that_does_not_end_is_ended(monkeypatch):
    monkeypatch.setattr("surefoot.envs.worker.GRACE_SECONDS", 0.2)
    env = opened(2, 2)
    os.kill(children()[0], signal.SIGSTOP)
    env.close()


class Unlike:
    """Makes environments with another action space from the second on."""

    def __init__(self):
        self.trainer = os.getpid()

    def __call__(self):
        return Scripted() if os.getpid() == self.trainer else Scripted(action="box")


def test_environments_of_unlike_spaces_in_another_process_are_refused_by_index():
    with pytest.raises(EnvContractError, match=r"environment 1 has spaces .*Box.* environment 0"):
        opened(2, 2, EnvSource(env_id="Unlike", make=Unlike()))


def test_a_constructor_that_fails_elsewhere_is_told_as_it_is_here():
    def make():
        if os.getpid() != trainer:
            raise RuntimeError("no licence")
        return Scripted()

    trainer = os.getpid()
    with pytest.raises(EnvCrashError, match="making environment 1 raised RuntimeError: no licence"):
        opened(2, 2, EnvSource(env_id="Unlicensed", make=make))


def test_a_constructor_that_fails_here_leaves_no_process():
    def make():
        raise RuntimeError("no licence")

    with pytest.raises(EnvCrashError, match="making environment 0 raised RuntimeError"):
        opened(2, 2, EnvSource(env_id="Unlicensed", make=make))


def test_environments_that_cannot_be_sent_are_refused_with_a_way_out():
    handle = sys.stdout.buffer
    with pytest.raises(ConfigError, match=r"cannot be made in another process .*sync"):
        opened(2, 2, EnvSource(env_id="Held", make=lambda: handle))


SCRIPT = """
import gymnasium, numpy as np, os, sys, time
import surefoot as sf

class Own(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (1,))
    action_space = gymnasium.spaces.Discrete(2)
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}
    def step(self, action):
        time.sleep(0.001)
        return self.np_random.uniform(-1, 1, 1).astype(np.float32), 1.0, False, False, {}

gymnasium.register("Own-v0", Own, max_episode_steps=20)
print("once")
train = sf.Train(steps=STEPS, num_envs=2, num_steps=64, vectorization="async")
run = sf.train("Own-v0", sf.VPG(), train=train)
print("return", run.rows[-1]["episode/return_mean"])
"""


@pytest.mark.thorough
def test_a_plain_script_with_an_environment_of_its_own_needs_no_guard(tmp_path):
    """As multiprocessing's own start would: it runs the script again in each process."""
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.replace("STEPS", "256"))
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.stdout.split("\n") == ["once", "return 20.0", ""], done.stderr


def test_processes_whose_trainer_was_killed_end_by_themselves(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.replace("STEPS", "10_000_000"))
    process = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.DEVNULL, start_new_session=True
    )

    word = os.fsencode(tmp_path)
    deadline = time.monotonic() + 60
    while not workers(word) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert workers(word)
    process.kill()
    process.wait()
    deadline = time.monotonic() + SECONDS
    while workers(word) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not workers(word)


@pytest.mark.parametrize(
    ("step_seconds", "steps", "cores", "found"),
    [
        (1e-3, 100_000, 4, 4),
        (1e-3, 100_000, 1, 1),
        (1e-3, 100_000, 64, 8),
        (1e-3, 1_000, 4, 1),  # 0.7 s saved do not pay for starting
        (5e-6, 10_000_000, 4, 1),  # passing the turn takes longer than the steps
        (60e-6, 1_000_000, 2, 2),
    ],
)
def test_auto_takes_more_processes_where_they_save_time(
    monkeypatch, step_seconds, steps, cores, found
):
    monkeypatch.setattr(processes_module, "step_seconds", lambda make: step_seconds)
    monkeypatch.setattr(processes_module, "usable_cores", lambda: cores)
    source = find_env("CartPole-v1", {})
    processes = partial(source.num_processes, num_envs=8, steps=steps)
    assert processes("auto") == found
    assert processes("sync") == 1
    assert processes("async") == 8
    assert processes("cores") == min(cores, 8)
    monkeypatch.setattr("multiprocessing.parent_process", lambda: "one of several")
    assert processes("auto") == 1


@pytest.mark.parametrize(
    "env",
    [
        make_scripted,
        Scripted(),
        "tests.support.scripted:Scripted-v0",
        "tests.support.scripted:make_scripted",
        "phys2d/CartPole-v1",
    ],
    ids=["factory", "instance", "own-id", "own-factory", "on-jax"],
)
def test_auto_keeps_in_this_process_what_may_share_something_with_it(monkeypatch, env):
    monkeypatch.setattr(processes_module, "step_seconds", lambda make: 1.0)
    assert find_env(env, {}).num_processes("auto", num_envs=8, steps=10**6) == 1


class Slow(Scripted):
    """Takes its time to be made and to step."""

    closed: ClassVar[list["Slow"]] = []

    def __init__(self, making=0.0):
        super().__init__()
        time.sleep(making)

    def step(self, action):
        time.sleep(0.002)
        return super().step(action)

    def close(self):
        self.closed.append(self)


@pytest.mark.parametrize("making", [0.0, 0.3])
def test_the_time_of_a_step_is_tried_on_an_environment_thrown_away(making, monkeypatch):
    monkeypatch.setattr(processes_module, "TRIAL_SECONDS", 0.1)
    Slow.closed.clear()
    assert 0.002 <= processes_module.step_seconds(partial(Slow, making)) < 0.1
    assert len(Slow.closed) == 1


def test_what_cannot_be_tried_is_left_in_this_process():
    assert processes_module.step_seconds(partial(Scripted, fail_at=3)) == 0.0


def test_a_groups_quota_bounds_the_cores(monkeypatch):
    free = usable_cores()
    for told, cores in (("100000 100000", 1), ("50000 100000", 1), ("max 100000", free)):
        monkeypatch.setattr(Path, "read_text", lambda path, told=told: told)
        assert usable_cores() == cores


class Colour(enum.IntEnum):
    """A number that only this module knows."""

    RED = 3


class Telling(Scripted):
    """Ends its episodes with infos of every kind."""

    def step(self, action):
        obs, reward, _, _, _ = super().step(action)
        info = {"colour": Colour.RED, "array": np.array(2.5), "text": "no", "function": lambda: 0}
        return obs, reward, True, False, info


def test_what_is_told_at_an_end_needs_no_class_of_the_users():
    env = opened(2, 2, EnvSource(env_id="Telling", make=Telling))
    env.reset([0, 0])
    step = env.step(np.zeros(2, np.int64))
    env.close()
    assert step.final_infos == {i: {"colour": 3.0, "array": 2.5} for i in range(2)}


class Simulator(Scripted):
    """Has a program of its own, which it ends by a signal."""

    def __init__(self):
        super().__init__()
        self.program = subprocess.Popen(["sleep", "60"])

    def close(self):
        self.program.terminate()
        self.program.wait()


def test_a_program_that_an_environment_started_can_be_terminated():
    env = opened(2, 2, EnvSource(env_id="Simulator", make=Simulator))
    started = time.monotonic()
    env.close()
    assert time.monotonic() - started < 3.0


class Forking(Scripted):
    """Leaves a process behind that holds what it holds, and dies."""

    def step(self, action):
        if os.fork() == 0:
            time.sleep(10.0)
            os._exit(0)
        os._exit(1)


def test_a_death_is_told_though_a_fork_holds_the_line_open():
    def make():
        return Scripted() if os.getpid() == trainer else Forking()

    trainer = os.getpid()
    env = opened(2, 2, EnvSource(env_id="Forking", make=make))
    env.reset([0, 0])
    started = time.monotonic()
    with pytest.raises(EnvCrashError, match="ended with exit status 1"):
        env.step(np.zeros(2, np.int64))
    assert time.monotonic() - started < SECONDS
    env.close()


def test_a_death_in_the_middle_of_a_message_is_told_as_one():
    env = opened(2, 2)
    env.reset([0, 0])
    (pid,) = children()
    line = env._vector._workers[0]._channel
    os.kill(pid, signal.SIGSTOP)
    ours, theirs = socket.socketpair()
    theirs.sendall(b"\1\0\0\1\0half")
    theirs.close()
    env._vector._workers[0]._channel = Channel(ours, busy_seconds=0.0, alive=lambda: True)
    line.close()
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(EnvCrashError, match="was killed by SIGKILL"):
        env.step(np.zeros(2, np.int64))
    env.close()


def test_a_busy_wait_in_vain_is_followed_by_sleeping_ones(monkeypatch):
    """Where something else wants the cores, busy loops keep the other process from going on."""
    ours, theirs = socket.socketpair()
    line, other = (Channel(end, busy_seconds=0.2, alive=lambda: True) for end in (ours, theirs))
    now, turns, asleep, arrives, sleep = 0.0, 0, 0, None, line._poll.poll

    def yield_core():
        nonlocal now, turns
        now, turns = now + 0.06, turns + 1
        if turns == arrives:
            other.send()

    def fall_asleep(milliseconds):
        nonlocal asleep
        asleep += 1
        other.send()
        return sleep(milliseconds)

    monkeypatch.setattr(channel, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(channel.os, "sched_yield", yield_core)
    line._poll = SimpleNamespace(poll=fall_asleep)
    waits = []
    for number in [2, None] + [None] * 10 + [3]:
        arrives, turns, asleep = number, 0, 0
        line.receive()
        waits.append((turns, asleep))
    line.close()
    other.close()
    assert waits == [(2, 0), (4, 1)] + [(0, 1)] * 10 + [(3, 0)]  # a busy one in vain, and again


def test_a_default_timeout_of_the_users_sockets_changes_nothing():
    socket.setdefaulttimeout(0.01)
    try:
        env = opened(2, 2, EnvSource(env_id="Slow", make=Slow))
        env.reset([0, 0])
        env.step(np.zeros(2, np.int64))
        env.close()
    finally:
        socket.setdefaulttimeout(None)


class CloseFails(Scripted):
    """Cannot be closed."""

    def close(self):
        closed.append(self)
        raise RuntimeError("stuck")


closed: list[CloseFails] = []


def test_one_that_fails_to_close_stops_no_other():
    closed.clear()
    opened(3, 1, EnvSource(env_id="CloseFails", make=CloseFails)).close()
    assert len(closed) == 3


def test_a_vector_whose_first_reset_fails_is_closed_again():
    class Resetless(Scripted):
        def reset(self, *, seed=None, options=None):
            raise RuntimeError("no start")

    with pytest.raises(EnvCrashError, match="raised RuntimeError: no start"):
        opened(2, 2, EnvSource(env_id="Resetless", make=Resetless))


@pytest.mark.thorough
def test_a_run_that_goes_on_is_spread_and_one_that_is_only_played_is_not(tmp_path, monkeypatch):
    started = []

    class Counting(vectors.WorkerProcess):
        def __init__(self, share, *rest, **how):
            started.append(share.rows)
            super().__init__(share, *rest, **how)

    monkeypatch.setattr(vectors, "WorkerProcess", Counting)
    train = sf.Train(steps=64, num_envs=2, num_steps=32, vectorization="async")
    sf.train("CartPole-v1", sf.VPG(), train=train, out=tmp_path / "run")
    assert started == [range(1, 2)]
    assert sf.load(tmp_path / "run").evaluate(episodes=1)["episodes"] == 1
    assert len(started) == 1
    sf.resume(tmp_path / "run")
    assert len(started) == 2


def test_environments_that_no_network_reads_are_closed_again():
    train = sf.Train(steps=64, num_envs=2, num_steps=32, vectorization="async")
    with pytest.raises(ConfigError, match="not supported"):
        sf.train(Unread, sf.VPG(), train=train)


class Unread(Scripted):
    """Shows words."""

    def __init__(self):
        super().__init__()
        self.observation_space = gymnasium.spaces.Text(5)

    def reset(self, *, seed=None, options=None):
        return "here", super().reset(seed=seed)[1]


class Inheriting(Scripted):
    """Tells whether programs that it starts get the line to the trainer or the board."""

    def step(self, action):
        numbers = [int(word) for word in sys.argv[1:3] if word.isdigit()]
        given = sum(os.get_inheritable(number) for number in numbers)
        return super().step(action)[0], 0.0, True, False, {"given": given, "of": len(numbers)}


def test_programs_that_an_environment_starts_do_not_get_its_line():
    env = opened(2, 2, EnvSource(env_id="Inheriting", make=Inheriting))
    env.reset([0, 0])
    step = env.step(np.zeros(2, np.int64))
    env.close()
    assert step.final_infos[1] == {"given": 0.0, "of": 2.0}


def test_this_process_may_use_some_core():
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
