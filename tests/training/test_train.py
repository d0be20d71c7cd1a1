"""The loop: same seed same bits, resume equals never stopped, and what ends a run early."""

import importlib
import itertools
import json
import os
import signal
import threading
import time
from functools import partial
from types import ModuleType, SimpleNamespace

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import surefoot as sf
from surefoot.analysis.compare import SharedSettings, compare
from surefoot.config.presets import Groups, preset, settle
from surefoot.config.settings import PPO, VPG, Critic, Network, OwnNetworks, Parallel, Train
from surefoot.diagnostics.warnings import Alarm
from surefoot.envs.registry import find_env
from surefoot.errors import (
    CheckpointError,
    ConfigError,
    EnvCrashError,
    NotFiniteError,
    OutOfMemoryError,
    StoppedBySignal,
)
from surefoot.storage.checkpoint import read_checkpoint
from surefoot.storage.lock import unlock
from surefoot.storage.run_directory import RunDirectory
from surefoot.training import seed_batch
from surefoot.training.api import Job, resume, train, train_or_resume
from surefoot.training.callback import Callback, as_callback
from surefoot.training.evaluate import Evaluation
from surefoot.training.memory import memory_left, memory_of
from surefoot.training.plan import FIRST_LOOK, make_plan
from surefoot.training.run import begin, summarize
from surefoot.training.steppers import as_arrays, chunk_of
from surefoot.training.trainer import Resources
from tests.support.cases import case
from tests.support.programs import quickly_built
from tests.support.scripted import LIMIT, Scripted, make_scripted, return_of, scripted_jax, shown
from tests.support.trees import assert_same_bits, same_bits

# Ten episode limits of five steps are four iterations of sixteen: the shortest schedule there is.
NUM_ENVS, NUM_STEPS, EVERY, ITERATIONS = 2, 16, 4, 16
BATCH = NUM_ENVS * NUM_STEPS
ENVS = {"host": "tests.support.scripted:Scripted-v0", "jax": scripted_jax()}
both_worlds = pytest.mark.parametrize("world", list(ENVS))
# Where one shows what the other does.
host_and_thorough_jax = pytest.mark.parametrize(
    "world", ["host", pytest.param("jax", marks=pytest.mark.thorough)]
)


def compare_one(env, rule="trpo", **how):
    return compare([env], [rule], seeds=1, out="nowhere", shared=SharedSettings(**how))


def arguments(world, **more):
    """A run whose every schedule moves: a resume that restarts one is found out."""
    return {
        "env": ENVS[world],
        "rule": PPO(
            num_epochs=2,
            num_minibatches=2,
            learning_rate=1e-2,
            final_fraction=0.0,
        ),
        "steps": ITERATIONS * BATCH,
        "train": Train(
            num_envs=NUM_ENVS,
            num_steps=NUM_STEPS,
            dispatch=2,
            checkpoint_every=EVERY * BATCH if world == "host" else 1,
            **more,
        ),
        "network": Network(hidden=(8,)),
        "critic": Critic(num_epochs=2, num_minibatches=2, learning_rate=1e-2, final_fraction=0.1),
    }


def go_on(world, path, **how):
    """Resume; an environment of one's own is named again."""
    return resume(path, env=ENVS[world], **how)


def stop_at(iteration):
    return lambda row: row["iteration"] == iteration


def timeless(rows):
    """Rows of metrics without wall-clock time."""
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


def stored_rows(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def assert_same_run(one, other):
    assert_same_bits(one.state, other.state)
    assert one.env_steps == other.env_steps
    assert timeless(one.rows) == timeless(other.rows)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """`whole(world)`: the run that nobody stopped."""
    runs = {}

    def get(world):
        if world not in runs:
            out = tmp_path_factory.mktemp("whole") / world
            runs[world] = train(**arguments(world), seed=3, out=out)
        return runs[world]

    return get


@pytest.mark.core
@both_worlds
def test_the_same_seed_gives_the_same_bits(whole, world):
    again = train(**arguments(world), seed=3)
    assert_same_run(again, whole(world))


@host_and_thorough_jax
def test_another_seed_gives_another_run(whole, world):
    other = train(**arguments(world), seed=4, callback=stop_at(2))
    assert not same_bits(other.state.learn.params, whole(world).state.learn.params)
    first, second = other.rows[0], whole(world).rows[0]
    assert first["policy/kl_mean"] != second["policy/kl_mean"]


@both_worlds
def test_every_schedule_and_every_kind_of_metric_is_in_the_rows(whole, world):
    rows = whole(world).rows
    assert [row["iteration"] for row in rows] == list(range(1, ITERATIONS + 1))
    assert [row["env_steps"] for row in rows] == [BATCH * i for i in range(1, ITERATIONS + 1)]
    rates = [row["update/learning_rate"] for row in rows]
    np.testing.assert_allclose(rates, 1e-2 * (1 - np.arange(ITERATIONS) / ITERATIONS), rtol=1e-5)
    assert all(np.isfinite(value) for row in rows for value in row.values())
    assert stored_rows(whole(world).directory.path) == rows


@pytest.mark.thorough
@both_worlds
def test_the_statistics_that_acted_are_the_ones_that_learn(whole, world):
    rows = whole(world).rows
    # The next ones differ, so that old log-probabilities would not fit if they were used.
    assert all(row["normalize/kl"] > 1e-7 for row in rows[:4])
    assert all(row["policy/staleness"] < 1e-5 for row in rows)


@case(56)
@case(58)
@pytest.mark.core
@pytest.mark.parametrize(
    "stops",
    [
        pytest.param((EVERY,), id="one"),
        pytest.param((EVERY, 2 * EVERY, 3 * EVERY), id="three", marks=pytest.mark.thorough),
    ],
)
@both_worlds
def test_a_resumed_run_equals_one_that_never_stopped(whole, world, stops, tmp_path):
    run = train(**arguments(world), seed=3, out=tmp_path / "run", callback=stop_at(stops[0]))
    for stop in (*stops[1:], None):
        assert not run.finished
        run = go_on(world, tmp_path / "run", exact=True, callback=stop and stop_at(stop))
    assert_same_run(run, whole(world))
    assert timeless(stored_rows(tmp_path / "run")) == timeless(whole(world).rows)


@pytest.mark.thorough
def test_a_jax_native_run_goes_on_exactly_from_any_checkpoint(whole, tmp_path):
    run = train(**arguments("jax"), seed=3, out=tmp_path / "run", callback=stop_at(5))
    assert run.iteration == 6, "a dispatch of two iterations is finished first"
    assert_same_run(go_on("jax", tmp_path / "run", exact=True), whole("jax"))


def test_a_host_run_goes_back_to_its_last_scheduled_checkpoint_to_be_exact(whole, tmp_path):
    train(**arguments("host"), seed=3, out=tmp_path / "run", callback=stop_at(EVERY + 2))
    run = go_on("host", tmp_path / "run", exact=True)
    assert_same_run(run, whole("host"))
    assert timeless(stored_rows(tmp_path / "run")) == timeless(whole("host").rows)


def test_a_host_run_stopped_in_between_goes_on_without_a_gap_or_a_double(whole, tmp_path):
    stopped = train(**arguments("host"), seed=3, out=tmp_path / "run", callback=stop_at(EVERY + 2))
    run = go_on("host", tmp_path / "run")
    assert run.finished
    assert timeless(run.rows[: EVERY + 2]) == timeless(stopped.rows)
    assert [row["iteration"] for row in run.rows] == list(range(1, ITERATIONS + 1))
    assert stored_rows(tmp_path / "run") == run.rows


def test_returns_of_episodes_cut_by_a_stop_are_not_carried_into_new_ones(tmp_path):
    run = train(**arguments("host"), seed=3, out=tmp_path / "run", callback=stop_at(EVERY + 1))
    assert run.state.learn.returns_so_far.any()
    assert run.state.learn.ages.any()
    loaded = sf.load(tmp_path / "run", env=ENVS["host"])
    assert not loaded.state.learn.returns_so_far.any()
    assert not loaded.state.learn.ages.any()


@pytest.mark.core
def test_a_public_name_is_not_hidden_by_the_module_it_lives_in():
    for home in sf._HOMES:
        importlib.import_module(f"surefoot.{home}")
    for name in sf.__all__:
        assert not isinstance(getattr(sf, name), ModuleType), name


class Killed(BaseException):
    """What a kill looks like from inside: nobody catches it."""


@case(57)
@host_and_thorough_jax
def test_a_kill_in_the_middle_of_a_save_costs_no_exactness(whole, world, tmp_path, monkeypatch):
    path = tmp_path / "run"
    real, synced = os.fsync, []

    def fsync(descriptor):
        synced.append(descriptor)
        # One for config.json and five for each of two checkpoints; the third is begun.
        if len(synced) >= 14:
            raise Killed
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(Killed):
            train(**arguments(world), seed=3, out=path)
    every = EVERY if world == "host" else 2
    assert len(stored_rows(path)) == 3 * every
    assert RunDirectory(path).newest().iteration == 2 * every
    assert_same_run(go_on(world, path, exact=True), whole(world))
    assert timeless(stored_rows(path)) == timeless(whole(world).rows)


@pytest.mark.thorough
def test_what_a_kill_leaves_half_written_is_gone_after_a_resume(whole, tmp_path):
    path = tmp_path / "run"
    train(**arguments("jax"), seed=3, out=path, callback=stop_at(EVERY))
    (path / "checkpoints" / ".tmp-1-dead").mkdir()
    (path / "checkpoints" / ".tmp-1-dead" / "arrays.safetensors").write_bytes(b"half")
    with open(path / "metrics.jsonl", "a") as file:
        file.write('{"iteration": 5, "env_steps": 160}\n{"iteration": 6, "env_')
    assert_same_run(go_on("jax", path), whole("jax"))
    assert timeless(stored_rows(path)) == timeless(whole("jax").rows)
    assert not list(path.glob("**/.tmp-*"))


@both_worlds
def test_resuming_a_finished_run_changes_nothing(whole, world):
    path = whole(world).directory.path

    def contents():
        return {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}

    before, told = contents(), []
    run = go_on(world, path, callback=told.append)
    assert told == []
    assert contents() == before
    assert_same_run(run, whole(world))


@both_worlds
def test_evaluating_along_the_way_disturbs_nothing(whole, world, tmp_path):
    run = train(
        **arguments(world, eval_every=EVERY * BATCH, eval_episodes=3),
        seed=3,
        out=tmp_path / "run",
    )
    assert_same_bits(run.state, whole(world).state)
    evaluated = [row for row in run.rows if "eval/return_mean" in row]
    assert [row["iteration"] for row in evaluated] == [EVERY * i for i in range(1, 5)]
    returns = [return_of(e) for e in range(4)]
    assert all(min(returns) <= row["eval/return_mean"] <= max(returns) for row in evaluated)
    best = max(evaluated, key=lambda row: row["eval/return_mean"])
    loaded = sf.load(tmp_path / "run", env=ENVS[world], best=True)
    assert loaded.iteration == best["iteration"]


@case(65)
def test_evaluation_never_moves_the_normaliser(whole):
    run = whole("host")
    before = jax.device_get(run.state)
    result = run.evaluate(episodes=4)
    assert_same_bits(run.state, before)
    assert result["episodes"] == 4
    assert result == run.evaluate(episodes=4)


@pytest.mark.core
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@both_worlds
def test_a_signal_ends_the_run_after_the_iteration_with_a_checkpoint(world, number, tmp_path):
    path, handler = tmp_path / "run", signal.getsignal(number)

    def interrupt(row):
        if row["iteration"] == EVERY + 2:
            os.kill(os.getpid(), number)

    with pytest.raises(StoppedBySignal) as caught:
        train(**arguments(world), seed=3, out=path, callback=interrupt)
    assert (caught.value.number, caught.value.iteration) == (number, EVERY + 2)
    assert caught.value.path == path
    assert signal.getsignal(number) is handler
    checkpoint = RunDirectory(path).newest()
    assert checkpoint.iteration == EVERY + 2
    assert checkpoint.exact == (world == "jax"), "the host's environments were mid-episode"


@case(99)
def test_a_second_signal_stops_at_once_and_costs_nothing_that_was_learned(tmp_path):
    def interrupt_twice(row):
        if row["iteration"] == EVERY + 2:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(**arguments("host"), seed=3, out=tmp_path / "run", callback=interrupt_twice)
    assert RunDirectory(tmp_path / "run").newest().iteration == EVERY + 2


class Interrupted(Scripted):
    """Sends this process a signal at its 40th step of all."""

    taken = 0

    def step(self, action):
        Interrupted.taken += 1
        if Interrupted.taken == NUM_ENVS * (NUM_STEPS + 4):
            os.kill(os.getpid(), signal.SIGTERM)
        return super().step(action)


@case(100)
def test_a_signal_acts_at_the_next_step_and_the_unfinished_rollout_is_dropped(tmp_path):
    Interrupted.taken, path = 0, tmp_path / "run"
    with pytest.raises(StoppedBySignal) as caught:
        train(**{**arguments("host"), "env": Interrupted}, seed=3, out=path)
    assert Interrupted.taken == NUM_ENVS * (NUM_STEPS + 4)
    assert caught.value.iteration == 1
    assert RunDirectory(path).newest().iteration == len(stored_rows(path)) == 1
    run = resume(path, env=make_scripted)
    assert run.finished


@case(99)
@both_worlds
def test_a_run_that_was_stopped_is_carried_by_an_interrupt_that_no_sweep_swallows(world):
    def interrupt(row):
        if row["iteration"] == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught:
        train(**arguments(world), seed=3, callback=interrupt)
    assert not isinstance(caught.value, Exception)
    assert caught.value.run.iteration == 2
    assert caught.value.run.policy(np.zeros(2, np.float32)).shape == ()


@pytest.mark.thorough
@case(99)
@both_worlds
@pytest.mark.parametrize(
    "error", [ZeroDivisionError, KeyboardInterrupt, SystemExit, MemoryError, GeneratorExit]
)
def test_an_error_of_a_callback_costs_nothing_that_was_learned(whole, world, error, tmp_path):
    path, at = tmp_path / "run", EVERY + 1  # the first row of a dispatch of two

    def fail(row):
        if row["iteration"] == at:
            raise error

    with pytest.raises((error, OutOfMemoryError)):
        train(**arguments(world), seed=3, out=path, callback=fail)
    newest = RunDirectory(path).newest().iteration
    assert newest == len(stored_rows(path)) == (at if world == "host" else at + 1)
    run = go_on(world, path)
    assert run.finished
    if world == "jax":
        assert_same_run(run, whole(world))


@pytest.mark.thorough
def test_a_run_outside_the_main_thread_leaves_signals_alone(whole):
    runs, before = [], signal.getsignal(signal.SIGTERM)
    work = threading.Thread(target=lambda: runs.append(train(**arguments("jax"), seed=3)))
    work.start()
    work.join()
    assert_same_run(runs[0], whole("jax"))
    assert signal.getsignal(signal.SIGTERM) is before


def plan_of(jax_native, limit, **given):
    settings = settle("?", Groups(PPO(num_minibatches=1), Train(**given), Network(), Critic()))
    spec = SimpleNamespace(jax_native=jax_native, max_episode_steps=limit)
    return make_plan(settings, spec)


@pytest.mark.core
def test_a_schedule_lies_ten_episode_limits_apart_only_where_resets_cut_episodes():
    small = {"num_envs": 8, "num_steps": 256, "steps": 10**6, "checkpoint_every": 1}
    assert plan_of(False, 1000, **small).reset_every == 40
    assert plan_of(False, None, **small).reset_every == 40
    assert plan_of(False, 1000, **small).cut_share == 2 * 1000 / (40 * 256)
    assert plan_of(False, 1000, **small, stagger=False).cut_share == 1000 / (40 * 256)
    assert plan_of(False, 1000, **small, reset_at_checkpoints=False).reset_every == 0
    assert plan_of(True, 1000, **small, dispatch=7).checkpoint_every == 7
    assert plan_of(True, 1000, **small, dispatch=7).cut_share == 0.0


@pytest.mark.core
def test_iterations_are_the_steps_over_the_batch_rounded_up():
    for steps, iterations in ((1, 1), (2048, 1), (2049, 2), (10**6, 489)):
        assert plan_of(True, 5, steps=steps, num_envs=8, num_steps=256).iterations == iterations


def test_a_run_that_does_not_reset_has_no_exact_checkpoint(tmp_path):
    train(
        **arguments("host", reset_at_checkpoints=False),
        seed=3,
        out=tmp_path / "run",
        callback=stop_at(EVERY),
    )
    with pytest.raises(CheckpointError, match="no exact checkpoint"):
        go_on("host", tmp_path / "run", exact=True)


def requeue(world, path, settings, callback=None):
    """What a command does that may have been started before: start there, or go on."""
    job = Job(ENVS[world], find_env(ENVS[world], {}), settings, out=path)
    return train_or_resume(job, Resources(Parallel()), as_callback(callback))


class Started(Callback):
    """Notes where runs start, and stops each after some iterations."""

    def __init__(self, stop):
        self.iterations, self._stop = [], stop

    def on_start(self, run, plan):
        self.iterations.append(run.iteration)

    def on_row(self, run, row):
        return row["iteration"] == self._stop


def test_a_requeued_command_starts_goes_on_or_says_what_differs(whole, tmp_path):
    settings, path, started = whole("host").settings, tmp_path / "run", Started(EVERY)
    assert requeue("host", path, settings, started).iteration == EVERY
    assert_same_run(requeue("host", path, settings, started), whole("host"))
    assert started.iterations == [0, EVERY]
    other = settings.with_train(steps=BATCH, seed=4)
    with pytest.raises(ConfigError, match=r"train\.steps is 512 there and 32 here.*train\.seed"):
        requeue("host", path, other)


def test_a_requeued_command_starts_over_what_never_reached_a_checkpoint(whole, tmp_path):
    settings, path = whole("jax").settings, tmp_path / "run"
    RunDirectory.create(path, settings.to_dict()).append({"iteration": 1})
    unlock(path)  # as the end of its process does
    assert_same_run(requeue("jax", path, settings), whole("jax"))


class Failing(gymnasium.Wrapper):
    """Fails at a step of its own, counted over all episodes."""

    def __init__(self, env, at=None):
        super().__init__(env)
        self.at, self.count = at, 0

    def step(self, action):
        self.count += 1
        if self.count == self.at:
            raise RuntimeError("the motor is hot")
        return self.env.step(action)


def failing(at):
    return {**arguments("host"), "env": lambda: Failing(gymnasium.make(ENVS["host"]), at)}


def test_a_crash_keeps_what_was_done_and_one_before_the_first_update_its_story_alone(tmp_path):
    with pytest.raises(EnvCrashError, match="the motor is hot"):
        train(**failing(at=2 * NUM_STEPS + 1), seed=3, out=tmp_path / "late")
    kept = RunDirectory(tmp_path / "late").newest()
    assert kept.iteration == 2
    assert not kept.exact
    with pytest.raises(EnvCrashError, match="the motor is hot"):
        train(**failing(at=2), seed=3, out=tmp_path / "early")
    left = {path.name for path in (tmp_path / "early").iterdir()}
    assert left == {"config.json", "env-error.json", "env-error.safetensors", "lock"}
    run = train(**arguments("host"), seed=3, out=tmp_path / "early", callback=stop_at(1))
    assert run.iteration == 1
    assert not (tmp_path / "early" / "env-error.json").exists()


def test_a_crash_of_an_evaluation_leaves_no_checkpoint_ahead_of_its_rows(tmp_path):
    made = itertools.count()

    def make():
        at = 3 * LIMIT if next(made) >= NUM_ENVS else None  # the evaluation's alone
        return Failing(gymnasium.make(ENVS["host"]), at=at)

    how = {**arguments("host", eval_every=BATCH, eval_episodes=1), "env": make}
    with pytest.raises(EnvCrashError, match="the motor is hot"):
        train(**how, seed=3, out=tmp_path / "run")
    directory = RunDirectory(tmp_path / "run")
    crashed = directory.newest().iteration
    assert crashed > 1
    assert directory.rows()[-1]["iteration"] == crashed
    run = resume(tmp_path / "run", env=ENVS["host"])
    assert [row["iteration"] for row in run.rows] == list(range(1, ITERATIONS + 1))
    assert [row["iteration"] for row in directory.rows()] == list(range(1, ITERATIONS + 1))


def spoilt(episodes=range(1000), reward=jnp.nan):
    """JAX-native, and of some episodes the rewards are not a number."""
    twin = scripted_jax()

    def step(key, state, action):
        made = twin.step(key, state, action)
        bad = jnp.any(state[0] == jnp.array(list(episodes)))
        return made._replace(reward=jnp.where(bad, reward, made.reward))

    return twin._replace(step=step)


@pytest.mark.thorough
def test_evaluations_that_are_not_finite_are_told_and_break_no_row(tmp_path):
    # Each is finite, so that training starts; their sum is not.
    huge = spoilt(reward=jnp.float32(3e38))
    how = {**arguments("jax", eval_every=BATCH, eval_episodes=4), "env": huge, "steps": BATCH}
    run = train(**how, seed=3, out=tmp_path / "run")
    assert "eval/return_mean" not in run.rows[-1]
    assert not (tmp_path / "run" / "best").exists()
    with pytest.raises(NotFiniteError, match="look at the environment's rewards"):
        run.evaluate(4)


class FailingCallback(Callback):
    """Notes what it is called with, and fails at the second row."""

    def __init__(self):
        self.calls, self.rows = [], []

    def on_start(self, run, plan):
        self.calls.append(("start", plan.iterations))

    def on_compile(self, what):
        self.calls.append(("compile", what))

    def on_row(self, run, row):
        self.rows.append(row)
        if row["iteration"] == 2:
            raise ZeroDivisionError

    def on_end(self, run):
        self.calls.append(("end", run.iteration))


@both_worlds
def test_a_callback_gets_every_row_and_one_end_even_after_an_error_of_its_own(whole, world):
    callback = FailingCallback()
    with pytest.raises(ZeroDivisionError):
        train(**arguments(world), seed=3, callback=callback)
    assert callback.calls[0] == ("start", ITERATIONS)
    assert [what for what, _ in callback.calls].count("compile") >= 1
    assert callback.calls[-1] == ("end", 2)
    assert timeless(callback.rows) == timeless(whole(world).rows[:2])


def test_chosen_infos_are_means_over_the_episodes_that_ended():
    run = train(**arguments("host", info_keys=("clock",)), seed=3, callback=stop_at(3))
    for row in run.rows:
        assert row["episode/clock"] == pytest.approx(row["episode/length_mean"])
        assert 0.0 < row["episode/is_success"] < 1.0


@pytest.mark.thorough
def test_updates_that_are_not_finite_are_refused_and_soon_end_the_run(tmp_path):
    given = {**arguments("jax", max_refusals=2), "env": spoilt(range(12, 1000))}
    with pytest.raises(NotFiniteError, match="2 updates in a row were not finite") as caught:
        train(**given, seed=3, out=tmp_path / "run")
    rows = stored_rows(tmp_path / "run")
    assert rows[0]["update/refusals"] == 0
    assert [row["update/refusals"] for row in rows[-3:]] == [0, 1, 2]
    assert [row["update/finite"] for row in rows[-3:]] == [1, 0, 0]
    assert f"at iteration {len(rows)}" in str(caught.value)


@pytest.mark.thorough
def test_a_run_recovers_from_a_passing_fault():
    given = {**arguments("jax", max_refusals=9), "env": spoilt(range(14, 17))}
    run = train(**given, seed=3, callback=stop_at(8))
    refusals = [row["update/refusals"] for row in run.rows]
    assert refusals[0] == 0
    assert max(refusals) > 0
    assert refusals[-1] == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(run.state))


def brief_arguments():
    """A run whose program is built in little time."""
    return {**arguments("host"), "rule": VPG(), "critic": Critic(num_epochs=1, num_minibatches=1)}


@pytest.mark.thorough
@pytest.mark.parametrize(("obs", "action"), [("dict", "dict"), ("tuple", "tuple")])
def test_nested_spaces_train_end_to_end(obs, action, tmp_path):
    given = {**brief_arguments(), "env_kwargs": {"obs": obs, "action": action}}
    with quickly_built():
        run = train(**given, seed=3, out=tmp_path / "run", callback=stop_at(2))
        loaded = sf.load(tmp_path / "run", env=ENVS["host"])
    start = jax.jit(run.learner.init)(3)
    for part in ("policy", "critic"):
        assert not same_bits(run.state.learn.params[part], start.learn.params[part])
    assert all(row["policy/kl_mean"] > 0 for row in run.rows)
    action = loaded.policy(shown(obs, 1, 2), deterministic=False, key=0)
    assert run.learner.spec.action_space.contains(action)
    assert_same_bits(action, run.policy(shown(obs, 1, 2), deterministic=False, key=0))


def linear(outputs):
    """A network of one's own: a matrix and no more."""
    return sf.OwnNetwork(
        lambda key, obs: {"matrix": 0.1 * jax.random.normal(key, (obs.shape[-1], outputs))},
        lambda params, obs: obs @ params["matrix"],
    )


def test_a_network_of_ones_own_trains_and_is_asked_for_again(tmp_path):
    own = sf.OwnNetworks(policy=linear(3), critic=linear(1))
    given = {**brief_arguments(), "network": own}
    with quickly_built():
        run = train(**given, seed=3, out=tmp_path / "run", callback=stop_at(2))
        with pytest.raises(CheckpointError, match="give it again") as caught:
            sf.load(tmp_path / "run", env=ENVS["host"])
        loaded = sf.load(tmp_path / "run", env=ENVS["host"], network=own)
    assert caught.value.name == "NAME-NETWORK"
    assert run.state.learn.params["policy"]["net"]["matrix"].shape == (2, 3)
    start = jax.jit(run.learner.init)(3)
    for part in ("policy", "critic"):
        assert not same_bits(run.state.learn.params[part], start.learn.params[part])
    assert_same_bits(loaded.state.learn.params, run.state.learn.params)


def test_a_network_from_flax_trains():
    flax = pytest.importorskip("flax.linen")
    policy, critic = flax.Dense(3), flax.Dense(1)
    own = sf.OwnNetworks(
        policy=sf.OwnNetwork(policy.init, policy.apply),
        critic=sf.OwnNetwork(critic.init, critic.apply),
    )
    with quickly_built():
        run = train(**{**brief_arguments(), "network": own}, seed=3, callback=stop_at(2))
    start = jax.jit(run.learner.init)(3)
    kernel = run.state.learn.params["policy"]["net"]["params"]["kernel"]
    assert kernel.shape == (2, 3)
    assert not same_bits(run.state.learn.params["critic"], start.learn.params["critic"])
    assert run.rows[-1]["policy/kl_mean"] > 0


class Closed(Scripted):
    """Notes that it was closed."""

    closed = 0

    def close(self):
        type(self).closed += 1


def test_environments_are_closed_when_a_run_ends_in_whatever_way():
    def fail(row):
        raise ZeroDivisionError

    Closed.closed = 0
    with pytest.raises(ZeroDivisionError):
        train(**{**arguments("host"), "env": Closed}, seed=3, callback=fail)
    assert Closed.closed == NUM_ENVS


class NeverStarts(Closed):
    """Raises on its first reset."""

    def reset(self, *, seed=None, options=None):
        raise RuntimeError("no licence")


class TooManyPixels(Closed):
    """Shows pictures that the built networks do not read."""

    def __init__(self):
        super().__init__()
        self.observation_space = gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8)

    def reset(self, *, seed=None, options=None):
        return np.zeros((64, 64, 3), np.uint8), super().reset(seed=seed, options=options)[1]


@pytest.mark.parametrize(
    ("kind", "error"), [(NeverStarts, EnvCrashError), (TooManyPixels, ConfigError)]
)
def test_environments_of_a_run_that_cannot_begin_are_closed_unless_they_are_the_users(kind, error):
    kind.closed = 0
    with pytest.raises(error):
        train(**{**arguments("host"), "env": kind}, seed=3)
    assert kind.closed == NUM_ENVS
    # Gymnasium's own mode costs steps, which is said and is not the point here.
    same = {"autoreset_mode": gymnasium.vector.AutoresetMode.SAME_STEP}
    vector = gymnasium.vector.SyncVectorEnv([kind] * NUM_ENVS, **same)
    with pytest.raises(error):
        train(**{**arguments("host"), "env": vector}, seed=3)
    assert kind.closed == NUM_ENVS
    vector.close()
    assert kind.closed == 2 * NUM_ENVS


SEEDS = (3, 8)


@pytest.fixture(scope="module")
def many():
    given = arguments("jax")
    with quickly_built():
        return sf.train_many(given.pop("env"), given.pop("rule"), seeds=SEEDS, **given)


def test_many_seeds_in_one_program_equal_one_run_each(whole, many):
    alone = [whole("jax"), train(**arguments("jax"), seed=SEEDS[1], callback=stop_at(2))]
    for together, single in zip(many, alone, strict=True):
        assert together.settings == single.settings
        for row, expected in zip(timeless(together.rows[:2]), timeless(single.rows), strict=False):
            assert set(row) == set(expected)
            for name in row:
                assert row[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-5), name
    assert not same_bits(many[0].state.learn.params, many[1].state.learn.params)


def test_each_of_many_runs_has_a_policy_and_an_evaluation_of_its_own(many):
    obs = np.array([[0.0, 1.0], [3.0, 2.0]], np.float32)
    for run in many:
        assert run.finished
        assert run.policy(obs).shape == (2,)
        assert run.evaluate(episodes=3)["episodes"] == 3


def assert_close(one, other):
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, one, other)


@pytest.mark.thorough
def test_make_train_is_a_pure_function_of_the_seed(many):
    given = arguments("jax")
    settings = {k: given[k] for k in ("network", "critic")}
    settings["train"] = Train(**{**vars(given["train"]), "steps": given["steps"]})
    run = sf.make_train(given["env"], given["rule"], **settings)
    program, seeds = jax.jit(jax.vmap(run)), jnp.array(SEEDS, jnp.uint32)
    with quickly_built():
        (state, metrics), again = program(seeds), program(seeds)
    assert_same_bits((state, metrics), again)
    assert metrics["env_steps"].shape == (len(SEEDS), ITERATIONS)
    # The discounts and rates are constants there and data here, which rounds differently.
    for index, single in enumerate(many):
        of_seed = jax.tree.map(lambda leaf, i=index: leaf[i], state.learn.params)
        assert_close(of_seed, single.state.learn.params)


@pytest.mark.thorough
def test_the_last_dispatch_is_no_longer_than_the_plan():
    """Three iterations, two in a dispatch."""
    given = arguments("jax") | {"steps": 3 * BATCH}
    env, rule = given.pop("env"), given.pop("rule")
    with quickly_built():
        runs = [sf.train(env, rule, **given), *sf.train_many(env, rule, seeds=[0, 1], **given)]
    for run in runs:
        assert (run.iteration, run.env_steps, run.finished) == (3, 3 * BATCH, True)
        assert [row["iteration"] for row in run.rows] == [1, 2, 3]


def test_many_seeds_need_an_environment_that_compiles():
    with pytest.raises(ConfigError, match="does not compile into the program"):
        sf.train_many(make_scripted, seeds=[0])


@pytest.mark.thorough
def test_the_times_of_many_seeds_add_up_to_the_time_they_took_together(monkeypatch):
    clock = itertools.count(step=600.0)  # a dispatch reads it twice
    monkeypatch.setattr(seed_batch, "time", SimpleNamespace(monotonic=partial(next, clock)))
    given, started = arguments("jax"), time.monotonic()
    with quickly_built():
        runs = sf.train_many(given.pop("env"), given.pop("rule"), seeds=SEEDS, **given)
    elapsed = time.monotonic() - started
    trained, compiled = (
        [sum(row[name] for row in run.rows) for run in runs]
        for name in ("time/iteration", "time/compile")
    )
    wall = next(clock) / 2
    # A program that is compiled to be measured is ready before the first dispatch.
    assert wall - sum(compiled) <= sum(trained) <= wall
    assert 0 < sum(compiled) < elapsed
    for times in (trained, compiled):
        assert times == pytest.approx([times[0]] * len(SEEDS))


@pytest.mark.thorough
def test_seeds_that_do_not_fit_together_go_in_turns_and_say_so(many, monkeypatch, capsys):
    given = arguments("jax")
    # Room for two of the three: the last turn is half empty.
    monkeypatch.setattr("surefoot.training.memory.memory_of", lambda program: 30)
    monkeypatch.setattr("surefoot.training.memory.memory_left", lambda: 29)
    with quickly_built():
        runs = sf.train_many(given.pop("env"), given.pop("rule"), seeds=(*SEEDS, 5), **given)
    assert "3 seeds at once need" in capsys.readouterr().err
    assert [run.settings.train.seed for run in runs] == [*SEEDS, 5]
    for run, other in zip(runs, many, strict=False):
        assert_close(run.state.learn.params, other.state.learn.params)
    assert runs[2].rows[-1]["policy/kl_mean"] != runs[1].rows[-1]["policy/kl_mean"]
    assert not same_bits(runs[2].state.learn.params, runs[1].state.learn.params)


def test_what_many_seeds_need_grows_with_their_number():
    program = jax.jit(jax.vmap(lambda x: jnp.cumsum(x * jnp.arange(1000.0))))
    sizes = [memory_of(program.lower(jnp.ones(n)).compile()) for n in (10, 1000)]
    assert sizes[1] > 50 * sizes[0]
    assert sizes[1] >= 4 * 1000 * 1000
    assert memory_left() is None or memory_left() > 2**20


def test_no_seeds_are_refused():
    given = arguments("jax")
    with pytest.raises(ConfigError, match="at least one"):
        sf.train_many(given["env"], given["rule"], seeds=[])


def test_an_evaluations_interval_is_students():
    returns = np.array([3.0, 5.0, 4.0, 9.0])
    found = summarize(Evaluation(returns, np.ones(4, int), [], 0))
    expected = stats.t.interval(0.95, 3, loc=returns.mean(), scale=stats.sem(returns))
    np.testing.assert_allclose(found["return_ci95"], expected, rtol=1e-12)


def test_a_rule_may_be_given_by_its_name_alone():
    assert preset("any", "ppo").rule == PPO()
    small = {"network": Network(hidden=(8,)), "critic": Critic(num_minibatches=2, num_epochs=1)}
    run = train(ENVS["host"], "vpg", steps=32, train=Train(num_envs=2, num_steps=16), **small)
    assert run.settings.rule.name == "vpg"


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"rule": "pppo"}, "no rule pppo; did you mean ppo"),
        ({"rule": PPO}, r"rule must be sf.TRPO\(...\), got <class "),
        ({"train": {"steps": 3, "seed": 1}}, r"train must be sf.Train\(steps=3, seed=1\), got {"),
        ({"network": {"hidden": (8,)}}, r"network must be sf.Network\(hidden=\(8,\)\), got {"),
        ({"critic": Train()}, r"critic must be sf.Critic\(...\), got Train\("),
    ],
)
@pytest.mark.parametrize("begin", [sf.train, sf.make_train, compare_one])
def test_settings_of_another_kind_are_answered_with_how_to_write_them(begin, how, message):
    with pytest.raises(ConfigError, match=message):
        begin(scripted_jax(), **how)


@host_and_thorough_jax
def test_the_lens_looks_at_every_so_many_updates_and_disturbs_nothing(whole, world):
    looked = train(**arguments(world, lens_every=4), seed=3)
    blind = train(**arguments(world, lens_every=0), seed=3)
    # What the lens knows of cross-fits is all that differs.
    unlooked = looked.state.lens._replace(ratio=blind.state.lens.ratio)
    assert_same_bits(looked.state._replace(lens=unlooked), blind.state)
    name = "lens/crossfit_promise"
    # A JAX-native run looks before the chunk of two iterations in which it is due.
    due = {"host": [4, 8, 12, 16], "jax": [3, 7, 11, 15]}[world]
    assert [row["iteration"] for row in looked.rows if name in row] == due
    assert not any(name in row for row in blind.rows)
    # What it saw goes on into the filter.
    assert all(("lens/signal_share" in row) == (row["iteration"] >= due[0]) for row in looked.rows)
    assert not any("lens/signal_share" in row for row in blind.rows)
    assert [row["iteration"] for row in whole(world).rows if name in row] == [FIRST_LOOK + 1]
    assert all("lens/realised_gain" in row for row in blind.rows[1:])


@pytest.mark.thorough
def test_seeds_in_one_program_leave_out_the_iterations_behind_the_last_together():
    # The branch of a cut is of each seed's own.
    train = Train(num_envs=NUM_ENVS, num_steps=NUM_STEPS, stagger=False)
    groups = Groups(VPG(), train, Network(hidden=(8,)), Critic(num_minibatches=1))
    run, _ = begin(settle("?", groups), find_env(ENVS["jax"], {}), OwnNetworks())
    chunk, traced = chunk_of(run.learner, 1), as_arrays(run.learner.traced)
    many = jax.vmap(chunk, in_axes=(0, None, None))
    states = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), run.state)

    def branches(program, state):
        return str(jax.make_jaxpr(program)(state, jnp.int32(0), traced)).count("cond[")

    # A predicate of each seed's own would turn the branches into selects of both sides.
    assert branches(many, states) == branches(chunk, run.state) > 0


ALARMING = {
    "every-third": Alarm(
        "red", "", "", "", "iteration", 0, lambda rows: -(rows[-1]["iteration"] % 3)
    ),
}


@host_and_thorough_jax
def test_both_sides_of_updates_that_raised_a_red_warning_are_kept(world, tmp_path, monkeypatch):
    monkeypatch.setattr("surefoot.diagnostics.warnings.ALARMS", ALARMING)
    monkeypatch.setattr("surefoot.diagnostics.warnings.WARM_UP", 0)
    given = arguments(world)
    run = train(**given | {"steps": 8 * BATCH}, seed=3, out=tmp_path / "run")
    assert [row["iteration"] for row in run.rows if "warnings" in row] == [3, 6]
    assert {row["warnings"] for row in run.rows if "warnings" in row} == {"every-third"}
    kept = [read_checkpoint(path) for path in run.directory.checkpoints("kept")]
    # A JAX-native run moves in chunks of two, and can be taken up anywhere; a host run only right
    # after a reset.
    sides = {"host": [2, 3, 5, 6], "jax": [2, 4, 6]}[world]
    monkeypatch.undo()
    assert [point.iteration for point in kept] == sides
    assert {point.exact for point in kept} == {world == "jax"}
    if world == "host":
        before, after = kept[0].arrays, kept[1].arrays
        for name in before:
            if name.startswith("learn/params/"):
                kept_by_lens = after[name.replace("learn/", "lens/", 1)]
                np.testing.assert_array_equal(before[name], kept_by_lens)


def test_no_more_than_so_many_updates_in_trouble_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("surefoot.diagnostics.warnings.ALARMS", ALARMING)
    monkeypatch.setattr("surefoot.diagnostics.warnings.WARM_UP", 0)
    monkeypatch.setattr("surefoot.training.loop.MAX_IN_TROUBLE", 1)
    run = train(**arguments("host") | {"steps": 7 * BATCH}, seed=3, out=tmp_path / "run")
    kept = [read_checkpoint(path) for path in run.directory.checkpoints("kept")]
    assert [point.iteration for point in kept] == [2, 3]


@pytest.mark.thorough
def test_updates_are_kept_for_probes_right_after_resets(tmp_path):
    run = train(**arguments("host", probe_every=1), seed=3, out=tmp_path / "run")
    kept = [read_checkpoint(path) for path in run.directory.checkpoints("kept")]
    assert [point.iteration for point in kept] == [EVERY, 2 * EVERY, 3 * EVERY, 4 * EVERY]
    assert all(point.exact for point in kept)
    left = resume(tmp_path / "run", env=ENVS["host"])
    assert left.finished


def test_nothing_is_kept_where_nothing_went_wrong(whole):
    assert whole("host").directory.checkpoints("kept") == []


def test_the_preset_of_another_library_sees_the_actions_of_an_instance_and_leaves_it_alone():
    pytest.importorskip("mujoco")
    env = gymnasium.make("HalfCheetah-v5")
    fields = {"num_envs": 1, "num_steps": 32, "steps": 32, "eval_episodes": 1}
    run = sf.train(env, "trpo", preset="sb3-contrib", **fields)
    assert (run.settings.rule.max_kl, run.settings.rule.damping) == (0.06, 0.6)
    env.reset()
    env.close()


def test_what_reset_returns_is_no_observation_and_no_preset_is_none():
    run = sf.train("CartPole-v1", "vpg", steps=64, num_envs=2, num_steps=16, preset=None)
    assert run.settings.rule == sf.VPG()
    with pytest.raises(ValueError, match=r"got \(observation, info\)"):
        run.policy(gymnasium.make("CartPole-v1").reset(seed=0))
