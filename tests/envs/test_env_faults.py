"""Environments that break: what is said, what ends, and what is left."""

import contextlib
import json
import os
import re
import time
import tracemalloc
from pathlib import Path

import gymnasium
import jax
import numpy as np
import pytest
from gymnasium import spaces

import surefoot as sf
from surefoot.analysis.compare import read_runs
from surefoot.analysis.report import report
from surefoot.envs.contract import ObsContract, outside
from surefoot.envs.group import EnvFactory, EnvGroup
from surefoot.envs.registry import find_env
from surefoot.errors import EnvContractError, EnvCrashError
from tests.support import broken_envs
from tests.support.broken_envs import AT, Endless, Flaky, Sound, ThirdOf, ThirdUnlike
from tests.support.cases import case
from tests.support.shell import SMALL, in_a_shell, last_good, same_bits, told_of

pytestmark = pytest.mark.usefixtures("empty_directory")

TWO = ["--vectorization", "cores"]
HERE_AND_ELSEWHERE = pytest.mark.parametrize(
    ("where", "how"), [("", []), ("Elsewhere", TWO)], ids=["here", "elsewhere"]
)
FIRST_BAD = f"at step {AT} after reset(seed="


def of(kind: str) -> str:
    return f"broken_envs:{kind}"


def left_by(kind: str) -> None:
    """Two iterations of 16 steps were done before the 35th; the third was never learned from."""
    run = last_good(env=of(kind))
    assert run.iteration == 2
    assert run.env_steps == 64
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(run.state.learn.params))


def broken(ended, kind, code, said):
    """The command ended with this code and line, and left a run that loads."""
    assert ended.code == code
    assert re.search(said, ended.line), ended.line
    assert "the last good checkpoint is run/checkpoints/step-000000064" in ended.line
    assert ended.records[-1]["exit_code"] == code
    left_by(kind)


def processes():
    """Environment processes of this one that still run."""
    own, found = f"PPid:\t{os.getpid()}\n", []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            mine = own in (entry / "status").read_text()
            if mine and b"surefoot.envs.worker" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


@case(9)
@HERE_AND_ELSEWHERE
def test_step_raises(train, command, where, how):
    kind = f"Raises{where}"
    ended = train(of(kind), *how)
    broken(ended, kind, 4, r"environment [01] raised RuntimeError: the motor is .?\[31mhot")
    assert FIRST_BAD in ended.line
    assert re.search(r"action [01]; ", ended.line)
    assert "\x1b" not in ended.line
    again = f"surefoot replay run --env {of(kind)}"
    assert f"`{again}`" in ended.line
    # Alone it is stepped here, where only the one that breaks everywhere breaks.
    met = command(*again.replace("Elsewhere", "").split()[1:], "--json")
    assert met.code == 0
    what = met.records[-1]["message"].partition(": environment 0 ")[2]
    assert " ".join(what.replace("\x1b", " ").split()) in ended.line


@case(9)
def test_a_fault_in_a_first_rollout_can_be_replayed_and_the_command_given_again(train, command):
    for _ in range(2):
        ended = train(of("Raises"), "--num-steps", "64")
        assert ended.code == 4
        assert "checkpoint" not in ended.line
    assert command("replay", "run", "--env", of("Raises")).code == 0
    assert isinstance(sf.replay("run", env=of("Raises")), EnvCrashError)
    well = command("replay", "run", "--env", of("Sound"))
    assert well.code == 3
    assert "raised no error" in well.line


@case(10)
@pytest.mark.parametrize("vectorization", ["sync", "cores"])
def test_step_raises_and_the_environment_is_made_anew(vectorization):
    how = {"critic": sf.Critic(num_epochs=1, num_minibatches=1), "preset": "none"}
    settings = sf.Train(
        num_envs=2,
        num_steps=16,
        on_env_error="restart:4",
        reset_at_checkpoints=False,
        vectorization=vectorization,
    )
    with pytest.raises(
        EnvCrashError, match=r"the cable is loose \(.+\), after 4 restarts"
    ) as caught:
        sf.train(Flaky, sf.VPG(), train=settings, steps=1024, out="run", **how)
    assert caught.value.index == 0
    assert "at step 35 after reset(seed=" in str(caught.value)
    assert len(caught.value.history.actions) == 35
    run = sf.load("run", env=Flaky)
    # Both break at steps 35, 70 and 105: the fifth of an episode each time. Of the first the
    # third rollout has three steps, of the second the fifth rollout has all.
    assert [row["env/restarts"] for row in run.rows] == [0, 0, 2, 2, 4, 4]
    kept = np.diff([0, *(row["env_steps"] for row in run.rows)])
    assert kept.tolist() == [32, 32, 32 - 2 * 3, 32, 32 - 2 * 5, 32]
    ended = [row.get("episode/length_mean") for row in run.rows]
    assert all(length in (10.0, None) for length in ended)


def test_the_step_in_which_an_environment_is_made_anew_has_no_reward_and_no_end():
    class EndsAndBreaks(Sound):
        """Its second reset, at the end of its first episode, raises."""

        resets = 0

        def reset(self, *, seed=None, options=None):
            self.resets += 1
            if self.resets == 2:
                raise RuntimeError("the cable is loose")
            return super().reset(seed=seed, options=options)

    group = EnvGroup(EnvFactory("Ends", EndsAndBreaks, restart=True), range(1))
    group.reset([0])
    action = np.array([group.spaces[1].sample()])
    while "restarted" not in (step := group.step(action)).infos.get(0, {}):
        assert not step.terminated.any()
    assert (step.rewards[0], bool(step.terminated[0]), bool(step.truncated[0])) == (0, False, False)


@pytest.mark.parametrize("name", ["observation_space", "action_space"])
def test_an_environment_that_is_made_anew_with_other_spaces_is_refused(name):
    made = []

    def make():
        env = Flaky()
        if made:
            setattr(env, name, gymnasium.spaces.Box(-1.0, 1.0, (7,)))
        made.append(env)
        return env

    group = EnvGroup(EnvFactory("Flaky", make, restart=True), range(1))
    group.reset([0])
    action = np.array([group.spaces[1].sample()])

    def step_until_it_breaks():
        for _ in range(40):
            group.step(action)

    with pytest.raises(EnvContractError, match="recreated, it has other spaces"):
        step_until_it_breaks()


@case(10)
def test_a_ready_vector_cannot_be_made_anew(train):
    vector = gymnasium.vector.SyncVectorEnv([Sound] * 2)
    with pytest.raises(sf.ConfigError, match="cannot be recreated"):
        sf.train(vector, train=sf.Train(num_envs=2, on_env_error="restart:1"))


@case(11)
def test_the_third_constructor_raises(train):
    started = time.monotonic()
    ended = train(of("third_raises"), "--num-envs", "4", "--critic-num-minibatches", "1")
    assert ended.code == 4
    assert "making environment 2 raised ValueError: no licence for a third" in ended.line
    assert time.monotonic() - started < 10
    assert not Path("run").exists()
    with pytest.raises(EnvCrashError, match="making environment 2"):
        sf.train(ThirdOf(), sf.VPG(), steps=64, train=sf.Train(num_envs=4))


@pytest.mark.thorough
@case(12)
@HERE_AND_ELSEWHERE
def test_step_never_returns(train, where, how):
    kind = f"Hangs{where}"
    ended = train(of(kind), "--env-timeout-s", "1", *how)
    whose = "the process of environments 1 to 1" if where else "environment 0"
    broken(ended, kind, 4, rf"error\[ENV-HUNG\]: .*{whose} did not respond within 1 s")
    assert processes() == []


@pytest.mark.thorough
@case(12)
def test_step_never_returns_from_native_code():
    words = ["train", of("HangsDeep"), "vpg", "--steps", "256", *SMALL, "--out", "run"]
    done = in_a_shell(*words, "--env-timeout-s", "1")
    assert done.returncode == 4
    line = done.stderr.strip().splitlines()[-1]
    assert re.search(
        r"error\[ENV-HUNG\].* did not respond within 1 s .*cannot be interrupted", line
    )


@case(13)
def test_an_environments_process_is_killed(train):
    ended = train(of("KilledElsewhere"), *TWO)
    said = r"environments 1 to 1 \(pid \d+\) was killed by SIGKILL \(out of memory\?\)"
    broken(ended, "KilledElsewhere", 4, said)


@case(112)
@pytest.mark.parametrize(
    ("kind", "status"), [("Leaves", 0), ("LeavesWith3", 3), ("LeavesInReset", 0)]
)
def test_an_environment_ends_its_own_process(train, kind, status):
    said = rf"environments 1 to 1 \(pid \d+\) ended with exit status {status}; --vectorization sync"
    broken(train(of(f"{kind}Elsewhere"), *TWO), f"{kind}Elsewhere", 4, said)


@case(112)
def test_an_environment_ends_its_own_process_where_it_is_made(train):
    ended = train(of("LeavesAtOnceElsewhere"), *TWO)
    assert ended.code == 4
    assert "ended with exit status 0" in ended.line
    assert processes() == []
    assert not Path("run").exists()


@case(112)
@pytest.mark.thorough
def test_a_run_that_ends_with_its_process_is_not_called_finished():
    flags = [*SMALL, "--out", "run", "--checkpoint-every", "32"]
    done = in_a_shell("train", of("Leaves"), "vpg", "--steps", "256", *flags)
    assert done.returncode == 0, "nothing in a process outlives its end"
    run = last_good(env=of("Leaves"))
    assert (run.iteration, run.finished) == (2, False)
    assert report(Path("run")).summary["finished"] is False
    with pytest.raises(sf.ConfigError, match=r"run is not finished \(iteration 2 of 8\)"):
        read_runs(["run"], envs=[of("Leaves")])
    # Its environments start anew, and break after as many steps again.
    assert in_a_shell("resume", "run", "--env", of("Sound")).returncode == 0
    assert last_good(env=of("Sound")).finished


@case(14)
@HERE_AND_ELSEWHERE
@pytest.mark.parametrize(
    ("kind", "said"),
    [("Unpicklable", "raised WordyError: too many words"), ("Exits", "raised SystemExit: enough")],
)
def test_an_exception_that_cannot_be_pickled_or_sys_exit(train, kind, said, where, how):
    kind += where
    broken(train(of(kind), *how), kind, 4, said)


@case(15)
@HERE_AND_ELSEWHERE
def test_nan_in_an_observation(train, command, where, how):
    kind = f"NanObs{where}"
    said = r"environment [01]: observation\[1\] is nan; " + re.escape(FIRST_BAD)
    broken(train(of(kind), *how), kind, 3, said)
    assert command("replay", "run", "--env", of("NanObs")).code == 0


@case(16)
@pytest.mark.parametrize(
    ("kind", "said"), [("InfReward", "reward is -inf"), ("HugeReward", r"reward is 1e\+39")]
)
def test_an_infinite_or_nan_reward(train, kind, said):
    broken(train(of(kind)), kind, 3, f"environment 0: {said}; {re.escape(FIRST_BAD)}")


@case(17)
@HERE_AND_ELSEWHERE
@pytest.mark.parametrize(("kind", "shape"), [("LongObs", "(3,)"), ("OneObs", "(1,)")])
def test_an_observation_of_another_shape_from_step(train, kind, shape, where, how):
    kind += where
    said = re.escape(f": observation has shape {shape}, its space has (2,)")
    broken(train(of(kind), *how), kind, 3, said)


@case(17)
def test_an_observation_of_another_shape_from_reset(train):
    ended = train(of("LongReset"))
    assert ended.code == 3
    assert (
        "environment 0: observation has shape (3,), its space has (2,); at reset(seed="
        in ended.line
    )


@case(18)
def test_float64_in_a_space_of_float32(train):
    with told_of("float64") as said:
        assert train(of("Doubles")).code == 0
    # Training's environments and those of the final evaluation.
    assert said == ["observation has dtype float64, its space float32: it is cast"] * 2
    assert last_good(env=of("Doubles")).state.learn.obs_stats is not None


@case(18)
def test_float64_beyond_float32(train):
    said = re.escape("environment 0: observation[0] is 1e+300, outside the range of float32")
    broken(train(of("TooLarge")), "TooLarge", 3, said)


@pytest.mark.thorough
@case(19)
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("Objects", "observation has dtype object, its space has float32"),
        ("Words", "observation has dtype <U1, its space has float32"),
        ("Wide", r"observation\['place'\]\[1\] is 34359738369, outside 32 bits"),
        ("NoChoice", r"observation is 1099511627776, outside Discrete\(3\)"),
        ("NoTruth", "terminated is a str; it must be True or False"),
        ("NoNumber", r"reward has shape \(1,\); it must be one number"),
        ("NoInfo", "step returned NoneType for info"),
    ],
)
def test_objects_words_or_whole_numbers_beyond_32_bits(train, kind, said):
    broken(train(of(kind)), kind, 3, f"environment 0: {said}")


@case(19)
@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int32])
def test_no_whole_number_wraps_around(dtype):
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    fit = ObsContract(spaces.Box(low, high, (2,), dtype))
    for wrong in ([0, high + 1], [low - 1, 0], [0.0, float(high) + 1000]):
        with pytest.raises(EnvContractError, match=r"outside (the range of|32 bits)"):
            fit(np.array(wrong))
    assert fit(np.array([low, high])).tolist() == [low, high]


@case(9)
@pytest.mark.parametrize("text", ["too many values to unpack (expected 2)", "expected 5, got 4"])
def test_what_an_environment_raises_of_its_own_is_not_taken_for_an_old_interface(text):
    class Muddled(Sound):
        def broken(self, *given):
            raise ValueError(text)

    with pytest.raises(EnvCrashError, match="raised ValueError"):
        sf.train(Muddled, sf.VPG(), steps=256, train=sf.Train(num_envs=2, num_steps=16))


@case(9)
def test_another_fault_is_not_taken_for_the_recorded_one(train, command):
    assert train(of("Raises")).code == 4
    ended = command("replay", "run", "--env", of("NanObs"))
    assert ended.code == 3
    assert "raised another error: " in ended.line


@case(10)
def test_an_episode_that_is_lost_counts_in_no_evaluation():
    settings = sf.Train(num_envs=2, num_steps=16, on_env_error="restart:50")
    critic = sf.Critic(num_epochs=1, num_minibatches=1)
    run = sf.train(Sound, sf.VPG(), steps=32, train=settings, critic=critic, preset="none")
    run.source = find_env(Flaky, {})
    # Of ten environments each has four episodes to play, and breaks in the fourth.
    result = run.evaluate(40)
    assert result["length_mean"] == 10.0
    assert max(result["returns"]) <= 10.0


@case(20)
def test_bounds_of_several_parts_blame_the_environment_of_the_first():
    space = spaces.Dict({"a": spaces.Box(-1, 1, (1,)), "b": spaces.Box(-1, 1, (1,))})
    obs = {"a": np.zeros((6, 1), np.float32), "b": np.zeros((6, 1), np.float32)}
    obs["a"][5], obs["b"][2] = 7.0, 8.0
    found = outside(space, obs, leading=1)
    assert found.at == (5,)
    assert found.text == "observation['a'][0] is 7, outside -1 to 1"
    assert found.rows.tolist() == [False, False, True, False, False, True]
    obs["b"][2] = 0.0
    assert outside(space, obs, leading=1).rows.tolist() == [False] * 5 + [True]
    obs["a"][5] = 0.0
    assert outside(space, obs, leading=1) is None


@case(20)
def test_an_observation_on_a_bound_that_float32_rounds_is_inside():
    space = spaces.Box(-0.1, 0.1, (1,), np.float64)
    assert outside(space, np.array([[0.1], [-0.1]], np.float32), leading=1) is None
    assert outside(space, np.array([[0.1001]], np.float32), leading=1) is not None


@case(20)
def test_an_observation_outside_its_space(train):
    with told_of("outside") as said:
        ended = train(of("Outside"))
    assert ended.code == 0
    rows = [record for record in ended.records if record["event"] == "row"]
    assert [row["env/outside"] for row in rows] == [0, 0, 2, 0, 0, 0, 0, 0]
    assert len(said) == 1
    assert "observation[1] is -10.5, outside -10 to 10" in said[0]


@case(20)
def test_an_observation_outside_its_space_under_strict_env(train):
    said = re.escape("environment 0: observation[1] is -10.5, outside -10 to 10; " + FIRST_BAD)
    broken(train(of("Outside"), "--strict-env"), "Outside", 3, said)


@case(21)
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("FourValues", "step returned 4 values.*return obs, reward, terminated, truncated, info"),
        ("ResetAlone", r"it must return \(obs, info\)"),
        ("NoSeed", r"reset\(self, \*, seed=None, options=None\)"),
    ],
)
def test_an_environment_for_gym_before_0_26(train, kind, said):
    ended = train(of(kind))
    assert ended.code == 3
    assert re.search(said, ended.line), ended.line


@case(25)
def test_an_environment_that_rewrites_the_array_it_gave(train):
    assert train(of("Sound"), "--out", "sound").code == 0
    assert train(of("Rewrites"), "--out", "rewrites").code == 0
    kept = [sf.load(name, env=of("Sound")).state.learn.params for name in ("sound", "rewrites")]
    assert same_bits(*kept)


@pytest.mark.thorough
@case(26)
def test_an_episode_that_never_ends():
    """What remains is a row of metrics an update, and the action log up to its bound."""
    memory, arrays = [], []

    def note(row):
        assert "episode/return_mean" not in row
        memory.append(tracemalloc.get_traced_memory()[0])
        arrays.append(len(jax.live_arrays()))

    settings = sf.Train(num_envs=2, num_steps=64)
    critic = sf.Critic(num_epochs=1, num_minibatches=1)
    how = {"critic": critic, "preset": "none", "callback": note}
    tracemalloc.start()  # the process's size would show what the allocator keeps, too
    try:
        sf.train(Endless, sf.VPG(), steps=400 * 128, train=settings, **how)
    finally:
        tracemalloc.stop()
    assert len(memory) == 400
    assert memory[-1] - memory[100] < 2 * 2**20
    assert arrays[-1] == arrays[100]


@case(27)
def test_episodes_of_one_step(train):
    ended = train(of("ShortEpisodes"))
    assert ended.code == 0
    rows = [record for record in ended.records if record["event"] == "row"]
    assert all(row["episode/length_mean"] == 1.0 for row in rows)
    assert all(0.0 <= row["episode/return_mean"] <= 1.0 for row in rows)


@case(28)
def test_environments_in_one_process_or_in_several(train):
    assert train(of("Sound"), "--out", "one", "--vectorization", "sync").code == 0
    assert train(of("Sound"), "--out", "two", *TWO).code == 0
    assert same_bits(*(sf.load(name, env=of("Sound")).state for name in ("one", "two")))


@case(29)
def test_environments_of_unlike_spaces():
    with pytest.raises(EnvContractError, match=r"environment 2 has spaces .* environment 0 has"):
        sf.train(ThirdUnlike(), sf.VPG(), steps=64, train=sf.Train(num_envs=4))


@pytest.mark.thorough
@case(30)
def test_an_environment_that_prints():
    words = ["train", of("Prints"), "vpg", "--steps", "64", *SMALL, "--out", "run", "--json"]
    done = in_a_shell(*words)
    assert done.returncode == 0
    events = [json.loads(line)["event"] for line in done.stdout.splitlines()]
    assert events == ["start", "row", "row", "end"]
    assert "no line" in done.stderr


def test_a_directory_without_a_run_is_said_to_be_none(command):
    ended = command("replay", "nowhere")
    assert "nowhere" in ended.line
    assert "no run" in ended.line


@case(119)
@pytest.mark.parametrize("kind", ["RaisesGeneratorExit", "RaisesCancelled", "RaisesOwn"])
@HERE_AND_ELSEWHERE
def test_an_exception_that_is_no_exception_is_a_crash(train, kind, where, how):
    if where and kind != "RaisesOwn":
        pytest.skip("one of them shows what another process passes on")
    name = {"RaisesGeneratorExit": "GeneratorExit", "RaisesCancelled": "CancelledError"}
    said = rf"raised {name.get(kind, 'Mine')}: no message .*broken_envs.py, line"
    broken(train(of(kind), *how), kind, 4, said)


@case(120)
def test_infos_of_what_is_no_figure_are_passed_over(train):
    assert train(of("OddInfos")).code == 0
    assert last_good(env=of("OddInfos")).finished


@case(121)
@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        ("NoActions", "ENV-CONTRACT", "its action_space is None and not a gymnasium.Space"),
        ("NoObservations", "ENV-CONTRACT", "its observation_space is None and not a gymnasium.S"),
        ("vector", "ENV-CRASH", "CartPoleVectorEnv is not a gymnasium.Env: give the vector env"),
    ],
)
def test_what_a_function_makes_is_named_where_it_is_no_environment(train, kind, name, said):
    ended = train(of(kind))
    assert f"error[{name}]" in ended.line
    assert said in ended.line
    assert not Path("run").exists()


class Vector(gymnasium.vector.VectorEnv):
    """Two environments whose every step is an episode."""

    num_envs = 2
    single_observation_space = spaces.Box(-1, 1, (2,))
    single_action_space = spaces.Discrete(2)
    observation_space = spaces.Box(-1, 1, (2, 2))
    action_space = spaces.MultiDiscrete([2, 2])
    metadata = {"autoreset_mode": gymnasium.vector.AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(self, wrong=""):
        self.wrong = wrong

    def reset(self, *, seed=None, options=None):
        assert not isinstance(seed, list) or self.wrong != "seeds"
        if self.wrong == "one seed" and isinstance(seed, list):
            raise TypeError("seed must be a number")
        return np.zeros((2, 2), np.float32), {}

    def step(self, actions):
        given = {
            "rewards": np.ones(2),
            "terminated": np.ones(2, bool),
            "truncated": np.zeros(2, bool),
        }
        if self.wrong in given:
            given[self.wrong] = given[self.wrong][:, None]
        infos = {"final_obs": np.zeros((2, 2), np.float32)}
        return np.zeros((2, 2), np.float32), *given.values(), {} if self.wrong == "obs" else infos


TINY_VECTOR = {"steps": 64, "preset": "none", "num_envs": 2, "num_steps": 16}


@case(122)
@pytest.mark.parametrize("wrong", ["rewards", "terminated", "truncated"])
def test_what_a_vector_gives_in_another_shape_is_named(wrong):
    with pytest.raises(EnvContractError, match=rf"{wrong} have shape \(2, 1\), not \(2,\)"):
        sf.train(Vector(wrong), "vpg", **TINY_VECTOR)


@case(122)
def test_a_vector_that_resets_in_the_step_must_give_the_last_observation():
    with pytest.raises(EnvContractError, match="infos lack final_obs"):
        sf.train(Vector("obs"), "vpg", **TINY_VECTOR)


@case(122)
@pytest.mark.parametrize("make", [lambda: Vector("one seed"), broken_envs.vector])
def test_a_vector_that_takes_one_seed_is_given_one(make):
    runs = [sf.train(make(), "vpg", **TINY_VECTOR) for _ in range(2)]
    same_bits(*(run.state.learn.params for run in runs))


@case(131)
@pytest.mark.parametrize("arguments", [[1], "level", 3, {1: 2}])
def test_arguments_of_an_environment_that_are_no_dictionary_are_named(arguments):
    with pytest.raises(sf.ConfigError, match="env_kwargs"):
        sf.train("CartPole-v1", env_kwargs=arguments)


@case(123)
@pytest.mark.parametrize(
    ("env", "given", "said"),
    [
        (of("Leveled"), {}, "missing a required argument: 'level'"),
        (of("Sound"), {"level": 1}, "got an unexpected keyword argument 'level'"),
        ("CartPole-v1", {"level": 1}, "unexpected keyword argument 'level'"),
        ("gymnax:CartPole-v1", {"level": 1}, "unexpected keyword argument 'level'"),
        ("tabular:corridor", {"level": 1}, "takes no level"),
    ],
)
def test_arguments_that_an_environment_does_not_take_or_lacks(command, env, given, said):
    ended = command("train", env, "vpg", *SMALL, "--env-kwargs", json.dumps(given))
    assert ended.code == 2
    assert said in ended.line
