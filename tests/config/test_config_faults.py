"""Commands and files that are wrong: one line, exit code 2, nothing left."""

import sys
from pathlib import Path

import pytest

from tests.support.cases import case

pytestmark = pytest.mark.usefixtures("empty_directory")


def refused(ended, said):
    assert ended.code == 2
    assert said in ended.line
    assert list(Path().iterdir()) == []


@case(1)
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--num-env", "3"], "did you mean --num-envs?"),
        (["--clip-eps", "0.1"], "a setting of ppo"),
        (["--frobnicate"], "unknown flag --frobnicate"),
    ],
)
def test_an_unknown_flag(command, words, said):
    refused(command("train", "CartPole-v1", "trpo", *words), said)


@case(2)
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trpo", "--gamma", "1.2"], "gamma must be a finite number at least 0 and at most 1"),
        (["ppo", "--clip-eps", "0"], "clip_eps must be a finite number above 0"),
        (["ppo", "--learning-rate", "nan"], "learning_rate must be a finite number"),
        (["trpo", "--num-envs", "0"], "num_envs must be a finite number at least 1"),
        (["trpo", "--max-kl", "-1"], "max_kl must be a finite number above 0"),
        (["trpo", "--on-env-error", "restart:0"], "must be one of stop, restart:N"),
        (["trpo", "--env-timeout-s", "-1"], "env_timeout_s must be a finite number at least 0"),
    ],
)
def test_a_value_out_of_its_range(command, words, said):
    refused(command("train", "CartPole-v1", *words), said)


@case(3)
def test_a_batch_that_its_minibatches_do_not_divide(command):
    refused(command("train", "CartPole-v1", "ppo", "--num-minibatches", "30"), "16 and 32")


@pytest.mark.thorough
@case(4)
@pytest.mark.parametrize("rule", ["ppo", "trpo"])
def test_a_batch_of_one(command, rule):
    one = [
        "--num-envs",
        "1",
        "--num-steps",
        "1",
        "--critic-num-minibatches",
        "1",
        "--preset",
        "none",
    ]
    one += ["--hidden", "8"] + (["--num-minibatches", "1"] if rule == "ppo" else [])
    ended = command("train", "broken_envs:Sound", rule, "--steps", "20", *one, "--json")
    assert ended.code == 0
    rows = [record for record in ended.records if record["event"] == "row"]
    assert all(row["update/finite"] == 1 for row in rows)


@case(5)
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["CartPole-v1", "--distribution", "tanh-gaussian"], "is for Box"),
        (["CartPole-v1", "--distribution", "clipped-gaussian"], "clipped-gaussian is for Box"),
        (["broken_envs:HalfBounded", "--distribution", "tanh-gaussian"], "bound"),
    ],
)
def test_a_distribution_that_does_not_fit_the_space(command, words, said):
    refused(command("train", *words), said)


@case(5)
def test_exact_quantities_of_an_environment_without_a_table(command):
    refused(command("exact", "CartPole-v1"), "has no transition table")


@case(6)
def test_an_unknown_environment_or_a_missing_package(command, monkeypatch):
    refused(command("train", "CartPol-v1"), "did you mean CartPole-v1?")
    for package in ("gymnax", "envpool"):
        monkeypatch.setitem(sys.modules, package, None)
        refused(command("train", f"{package}:CartPole-v1"), f"pip install 'surefoot[{package}]'")


@case(7)
@pytest.mark.parametrize(
    "text",
    [
        "[train]\ngamma = \"__import__('os').mkdir('owned')\"\n",
        '[train]\ngamma = "/etc/passwd"\n',
        "[trian]\nsteps = 3\n",
        '[network]\nactivation = "os:system"\n',
    ],
)
def test_a_configuration_file_with_code_or_a_path(command, text):
    Path("mine.toml").write_text(text)
    ended = command("train", "CartPole-v1", "--config", "mine.toml")
    assert ended.code == 2
    assert [path.name for path in Path().iterdir()] == ["mine.toml"]


@case(8)
def test_a_network_that_no_memory_holds(command, monkeypatch):
    refused(command("train", "CartPole-v1", "--hidden", *["1000000"] * 10), "at most 16384")
    monkeypatch.setattr("surefoot.training.memory.memory_left", lambda: 2**30)
    ended = command("train", "CartPole-v1", "--hidden", *["16384"] * 10, "--out", "run")
    refused(ended, "1.0 GiB are left; choose fewer or narrower --hidden layers")
    size = float(ended.line.partition(" takes ")[2].partition(" GiB")[0].replace(",", ""))
    # Two networks and two moments of Adam of the critic's alone, or of both.
    layers = 9 * 16384**2 * 4 / 2**30
    assert 3 * layers < size < 9 * layers
