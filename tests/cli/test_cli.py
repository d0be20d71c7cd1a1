import argparse
import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import surefoot as sf
from surefoot.cli import parser as cli
from surefoot.cli.flags import setting_names, whole
from surefoot.cli.parser import main
from surefoot.diagnostics.catalogue import METRICS
from tests.support.cases import case
from tests.support.shell import in_a_shell

SMALL = [
    *("--num-envs", "2", "--num-steps", "16", "--hidden", "8", "--critic-num-minibatches", "2"),
    *("--critic-num-epochs", "1", "--eval-episodes", "2"),
]


@pytest.fixture(autouse=True)
def empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def error_of(capsys, *arguments):
    """The exit code and the one line on standard error."""
    code = main(list(arguments))
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("surefoot: error[")
    return code, lines[0]


@pytest.mark.core
@pytest.mark.parametrize(
    ("arguments", "name", "said"),
    [
        (["trian"], "USAGE", "no command trian; did you mean train?"),
        (["quux"], "USAGE", "no command quux (train, resume, evaluate"),
        (["--frob"], "FLAG", "unknown flag --frob"),
        (["--json", "train", "CartPole-v1"], "FLAG", "goes behind the command: surefoot train"),
        (["train", "CartPol-v1"], "UNKNOWN-ENV", "did you mean CartPole-v1?"),
        (["train", "CartPole-v1", "trp0"], "CONFIG", "did you mean trpo?"),
        (["train", "CartPole-v1", "--num-env", "3"], "FLAG", "did you mean --num-envs?"),
        (["train", "CartPole-v1", "--n-envs", "3"], "FLAG", "here it is --num-envs"),
        (["train", "CartPole-v1", "--algo", "ppo"], "FLAG", "the rule stands behind the env"),
        (["train", "CartPole-v1", "--rule", "ppo"], "FLAG", "the rule stands behind the env"),
        (["train", "--env-id", "CartPole-v1", "ppo"], "FLAG", "stands behind the command"),
        (["train", "ALE/Pong-v5"], "UNKNOWN-ENV", "registers it, as in ale_py:ALE/Pong-v5"),
        (["train", "CartPole-v1", "--clip-range", "3"], "FLAG", "here it is --clip-eps"),
        (["train", "CartPole-v1", "--clip-eps", ".1"], "FLAG", "a setting of ppo"),
        (["train", "CartPole-v1", "--gamma", "1.2"], "CONFIG", "at least 0 and at most 1"),
        (["train", "CartPole-v1", "--max-kl", "-1"], "CONFIG", "max_kl must be"),
        (["train", "CartPole-v1", "--steps", "abc"], "USAGE", "must be a whole number"),
        (["train", "CartPole-v1", "--steps", "1.5"], "USAGE", "must be a whole number"),
        (["train", "CartPole-v1", "--num-envs", "0"], "CONFIG", "at least 1"),
        (["train", "CartPole-v1", "ppo", "--num-minibatches", "30"], "CONFIG", "16 and 32"),
        (["train", "CartPole-v1", "--critic-joint"], "CONFIG", "descends a loss"),
        (["train", "CartPole-v1", "--preset", "sb4"], "CONFIG", "did you mean sb3?"),
        (["train", "CartPole-v1", "--distribution", "tanh"], "CONFIG", "tanh-gaussian"),
        (["train", "CartPole-v1", "--distribution", "tanh-gaussian"], "CONFIG", "is for Box"),
        (["evaluate", "nothing", "--seed", "-1"], "CONFIG", "--seed must be a"),
        (["compare", "CartPole-v1", "--preset", "sb3"], "USAGE", "--preset must be one of auto, t"),
        (["train", "CartPole-v1", "--resume", "auto"], "CONFIG", "--out"),
        (["train", "CartPole-v1", "--env-kwargs", "{"], "CONFIG", "not JSON"),
        (["train", "nowhere:Env-v0"], "UNKNOWN-ENV", "no module nowhere"),
        (["train", "brax:ant"], "CONFIG", "not supported yet"),
        (["train", "CartPole-v1", "--out", "/proc/nowhere"], "STORAGE", "/proc/nowhere"),
        (["resume", "nothing"], "CHECKPOINT", "no run directory"),
        (["resume", "nothing", "--workers", "2"], "FLAG", "unknown flag --workers"),
        (["train", "CartPole-v1", "--workers", "2"], "FLAG", "--workers needs --cluster ray"),
        (["train", "CartPole-v1", "--restarts", "2"], "FLAG", "ray or --env-workers"),
        (
            ["train", "CartPole-v1", "--workers", "2", "--env-workers", "2"],
            "FLAG",
            "--workers needs --cluster ray",
        ),
        (
            ["train", "CartPole-v1", "--cluster", "ray", "--env-workers", "2"],
            "FLAG",
            "are for different environments",
        ),
        (["train", "CartPole-v1", "--env-workers", "0"], "CONFIG", "--env-workers must be at"),
        (["exact", "corridor", "trpo", "--plot", "none/x.png"], "STORAGE", "no directory none"),
        (["evaluate", "nothing"], "CHECKPOINT", "no run directory"),
        (["explain", "kl"], "CONFIG", "policy/kl_mean"),
        (["compare", "CartPole-v1", "--seeds", "0"], "CONFIG", "at least 1"),
    ],
)
def test_a_wrong_command_gets_one_line_and_leaves_nothing(
    arguments, name, said, capsys, empty_directory
):
    code, line = error_of(capsys, *arguments)
    assert f"error[{name}]" in line
    assert said in line
    assert code in (2, 6, 7)
    assert list(empty_directory.iterdir()) == []


def test_training_leaves_a_run_that_evaluates_and_resumes(capsys):
    assert main(["train", "CartPole-v1", "--steps", "64", "--out", "run", "--json", *SMALL]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events] == ["start", "row", "row", "end"]
    assert events[0]["settings"]["rule"]["name"] == "trpo"
    assert events[2]["env_steps"] == 64

    assert main(["evaluate", "run", "--episodes", "2", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["return_mean"] == events[-1]["evaluation"]["return_mean"]
    assert result["episodes"] == 2
    assert {"return_ci95", "return_mean"} <= set(result)

    assert main(["resume", "run", "--json"]) == 0
    said = capsys.readouterr()
    assert [json.loads(line)["event"] for line in said.out.splitlines()] == ["end"]
    assert "run was complete already" in said.err

    assert main(["evaluate", "run", "--episodes", "1"]) == 0
    assert "one gives no interval" in capsys.readouterr().out
    assert main(["evaluate", "run", "--episodes", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["return_ci95"] is None

    code, line = error_of(capsys, "evaluate", "run", "--best")
    assert code == 6
    assert "--eval-every" in line


def test_a_used_directory_is_refused_and_resume_auto_goes_on_in_it(capsys):
    command = ["train", "CartPole-v1", "--steps", "32", "--out", "run", *SMALL]
    assert main([*command, "--resume", "auto"]) == 0
    rows = Path("run/metrics.jsonl").read_text()
    capsys.readouterr()
    code, line = error_of(capsys, *command)
    assert code == 2
    assert "OUT-USED" in line
    assert main([*command, "--resume", "auto"]) == 0
    assert Path("run/metrics.jsonl").read_text() == rows
    capsys.readouterr()
    code, line = error_of(capsys, *command, "--resume", "auto", "--gamma", "0.9")
    assert code == 2
    assert "gamma" in line


def test_settings_come_from_flags_over_file_over_preset(capsys):
    Path("mine.toml").write_text(
        '[train]\ngamma = 0.9\ngae_lambda = 0.5\n[rule]\nname = "ppo"\nclip_eps = 0.3\n'
    )
    command = ["train", "CartPole-v1", "--config", "mine.toml", "--steps", "32", "--json"]
    flags = ["--gamma", "0.8", "--num-minibatches", "2", "--no-obs-norm", *SMALL]
    assert main([*command, *flags]) == 0
    settings = json.loads(capsys.readouterr().out.splitlines()[0])["settings"]
    assert settings["rule"]["name"] == "ppo"
    assert settings["rule"]["clip_eps"] == 0.3
    assert settings["train"]["gamma"] == 0.8
    assert settings["train"]["gae_lambda"] == 0.5
    assert settings["train"]["obs_norm"] is False


BITS = """
from tests.support.broken_envs import Sound
from gymnasium.spaces import MultiBinary

class Bits(Sound):
    action_space = MultiBinary(5)

    def step(self, action):
        return super().step(action[0])
"""


@pytest.mark.parametrize(
    ("env", "rule", "name", "expected"),
    [
        ("Pendulum-v1", "trpo", "sb3-contrib", {"max_kl": 0.01, "damping": 0.1}),
        ("peers_env:Bits", "trpo", "sb3-contrib", {"max_kl": 0.05, "damping": 0.5}),
        # Its 4 minibatches divide this batch, the 32 of its script for Box actions do not.
        ("CartPole-v1", "ppo", "cleanrl", {"num_minibatches": 4, "ent_coef": 0.01}),
    ],
)
def test_presets_of_other_libraries_see_the_actions(env, rule, name, expected, capsys):
    Path("peers_env.py").write_text(BITS)
    batch = ["--num-envs", "2", "--num-steps", "10", "--steps", "20", "--hidden", "8"]
    passes = [] if name == "cleanrl" else ["--critic-num-minibatches", "1"]
    words = ["train", env, rule, "--preset", name, "--eval-episodes", "1", "--json"]
    assert main([*words, *batch, *passes]) == 0
    settings = json.loads(capsys.readouterr().out.splitlines()[0])["settings"]
    assert {key: settings["rule"][key] for key in expected} == expected


def test_a_rule_that_another_library_lacks_is_refused_before_an_environment_is_made(capsys):
    code, line = error_of(capsys, "train", "peers_env:Missing", "ppo", "--preset", "sb3-contrib")
    assert code == 2
    assert "that library has no ppo" in line


@pytest.mark.core
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[trian]\nsteps = 3\n", "did you mean train"),
        ("[train]\nstep = 3\n", "did you mean steps"),
        ("[train]\ngamma = \"__import__('os').mkdir('owned')\"\n", "must be a number"),
        ("[train\n", "--config"),
        ('rule = "ppo"\n', "must be a table, got 'ppo'; a rule is named by rule.name = \"ppo\""),
        ("env_kwargs = 3\n", "env_kwargs must be a table, got 3"),
        ('[rule]\nname = "ppo"\nmax_kl = 0.1\n', "it is a setting of npg, trpo"),
    ],
)
def test_a_configuration_file_is_data_and_nothing_else(text, said, capsys, empty_directory):
    (empty_directory / "mine.toml").write_text(text)
    code, line = error_of(capsys, "train", "CartPole-v1", "--config", "mine.toml")
    assert code == 2
    assert said in line
    assert not (empty_directory / "owned").exists()
    assert not (empty_directory / "runs").exists()


def test_the_config_of_a_run_serves_as_a_configuration_file(capsys):
    command = ["train", "CartPole-v1", "--steps", "32", "--json", "--out"]
    assert main([*command, "one", *SMALL]) == 0
    changed = ["--keep-checkpoints", "5", "--resume", "auto", "--override", "keep_checkpoints"]
    assert main([*command, "one", *SMALL, *changed]) == 0
    assert main([*command, "two", "--config", "one/config.json"]) == 0
    capsys.readouterr()
    one, two = (json.loads(Path(name, "config.json").read_text()) for name in ("one", "two"))
    assert one.pop("history")[0]["settings"] == {"train": {"keep_checkpoints": 3}}
    assert one == two


def test_a_module_of_ones_own_trains_and_must_be_named_again(capsys, empty_directory):
    (empty_directory / "my_module.py").write_text(
        "import gymnasium\n"
        "def make(length=5):\n"
        "    return gymnasium.make('CartPole-v1', max_episode_steps=length)\n"
    )
    command = ["train", "my_module:make", "--env-kwargs", '{"length": 7}', "--steps", "32"]
    assert main([*command, "--out", "run", *SMALL]) == 0
    assert "--env my_module:make" in capsys.readouterr().err
    code, line = error_of(capsys, "evaluate", "run")
    assert code == 6
    assert "--env my_module:make" in line
    assert main(["evaluate", "run", "--env", "my_module:make", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["length_mean"] == 7


@pytest.mark.thorough
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_says_how_to_resume_and_exits_with_its_code(number, code, empty_directory):
    command = [sys.executable, "-m", "surefoot", "train", "CartPole-v1", "--steps", "1e7"]
    process = subprocess.Popen(
        [*command, "--out", "run", *SMALL], stderr=subprocess.PIPE, text=True
    )
    rows = empty_directory / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not rows.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    os.kill(process.pid, number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert "surefoot resume run" in said
    last = json.loads(rows.read_text().splitlines()[-1])["iteration"]
    state = next((empty_directory / "run" / "checkpoints").iterdir()) / "state.json"
    assert json.loads(state.read_text())["iteration"] == last
    assert json.loads(state.read_text())["exact"] is False


def test_a_module_without_the_name_is_answered_with_what_it_has(capsys, empty_directory):
    (empty_directory / "half_module.py").write_text("def make_it():\n    pass\n")
    code, line = error_of(capsys, "train", "half_module:mak_it")
    assert code == 2
    assert "half_module has no function mak_it" in line
    assert "did you mean make_it?" in line


@pytest.mark.core
def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"surefoot {importlib.metadata.version('surefoot')}\n"


@pytest.mark.core
def test_a_wrong_command_line_and_a_bug_are_told_in_json_too(capsys, monkeypatch):
    def fail(options):
        raise RuntimeError("a bug\nof ours")

    commands = [(*command, fail if command[0] == "explain" else run)
                for *command, run in cli.COMMANDS]  # fmt: skip
    monkeypatch.setattr(cli, "COMMANDS", commands)
    for command, name, code in ((["train", "--json"], "USAGE", 2), (["explain"], "INTERNAL", 1)):
        assert main([*command, "--json"]) == code
        told = json.loads(capsys.readouterr().out)
        assert (told["event"], told["name"], told["exit_code"]) == ("error", name, code)
        assert "\n" not in told["message"]


@pytest.mark.thorough
def test_what_a_preset_changed_is_said_at_the_start_one_record_a_line(capsys, monkeypatch):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert "--preset none does not" in " ".join(capsys.readouterr().out.split())
    monkeypatch.setenv("COLUMNS", "40")
    command = ["train", "Pendulum-v1", "--num-envs", "2", "--num-steps", "200", "--out", "run"]
    flags = ["--steps", "400", "--critic-num-minibatches", "2", "--eval-episodes", "1"]
    assert main([*command, *flags]) == 0
    first, second, *rest = capsys.readouterr().err.splitlines()
    assert first.startswith("trpo on Pendulum-v1: 1 iterations of 2 x 200 steps")
    assert second.startswith("non-default settings")
    assert {"gamma 0.9", "max_kl 0.02"} <= set(second.split(": ")[1].split(", "))
    (record,) = [line for line in rest if line.startswith("1/1 ")]
    assert record.endswith("left")


def test_warnings_of_gymnasium_stay_out_of_a_users_lines():
    code = (
        "from surefoot.cli.parser import _quiet_warnings\n"
        "with _quiet_warnings():\n"
        "    import gymnasium\n"
        "    gymnasium.make('CartPole-v0')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stderr == b""


@pytest.mark.core
def test_explain_knows_every_metric(capsys):
    assert main(["explain"]) == 0
    listed = capsys.readouterr().out
    for name, metric in METRICS.items():
        assert name in listed
        assert main(["explain", name]) == 0
        assert metric.what in capsys.readouterr().out


@pytest.mark.core
def test_help_needs_no_jax(empty_directory):
    code = (
        "import sys; from surefoot.cli.parser import main\n"
        "try: main(['train', '--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0
    assert b"--max-kl" in done.stdout


@pytest.mark.thorough
def test_ctrl_c_at_a_terminal_reaches_the_workers_too_and_the_run_is_saved_all_the_same(
    empty_directory,
):
    command = [sys.executable, "-m", "surefoot", "train", "CartPole-v1", "--steps", "1e7"]
    process = subprocess.Popen(
        [*command, "--out", "run", "--vectorization", "async", *SMALL],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    rows = empty_directory / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not rows.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "surefoot resume run" in said
    assert list((empty_directory / "run" / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("arguments", "name", "said"),
    [
        (["CartPole-v1", "--seed", "7"], "FLAG", "--seeds N, not --seed"),
        (["run", "CartPole-v1"], "CONFIG", "not both at once"),
        (["run", "--rules", "ppo"], "FLAG", "--rules applies to training"),
        (["run", "--seeds", "3"], "FLAG", "--seeds applies to training"),
        (["run", "--num-envs", "3"], "FLAG", "--num-envs applies to training"),
    ],
)
def test_compare_refuses_what_it_would_have_to_ignore(
    capsys, empty_directory, arguments, name, said
):
    (empty_directory / "run").mkdir()
    code, line = error_of(capsys, "compare", *arguments)
    assert code == 2
    assert f"error[{name}]" in line
    assert said in line


@pytest.mark.thorough
@pytest.mark.parametrize(
    "variables",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"COLUMNS": "1"},
        {"TERM": "dumb", "NO_COLOR": "1"},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "words", [("--help",), ("train", "--help"), ("explain",), ("exact", "corridor", "trpo")]
)
def test_every_kind_of_terminal_is_written_to(variables, words, empty_directory):
    done = in_a_shell(*words, **variables)
    assert done.returncode == 0, done.stderr
    assert "INTERNAL" not in done.stderr


@pytest.mark.thorough
@pytest.mark.parametrize("words", [("explain",), ("exact", "corridor", "trpo", "--json")])
def test_a_full_device_for_the_output_is_a_storage_error(words, empty_directory):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "surefoot", *words],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 7
    assert done.stderr.startswith("surefoot: error[STORAGE]: standard output: No space left")


@pytest.mark.thorough
def test_a_warning_is_a_line_without_a_place_in_our_code(empty_directory):
    (Path("own_env.py")).write_text(
        "import gymnasium\n\n\nclass Endless(gymnasium.Env):\n"
        "    observation_space = gymnasium.spaces.Box(-1, 1, (2,))\n"
        "    action_space = gymnasium.spaces.Discrete(2)\n\n"
        "    def reset(self, *, seed=None, options=None):\n"
        "        return self.observation_space.low, {}\n\n"
        "    def step(self, action):\n"
        "        return self.observation_space.low, 1.0, False, False, {}\n"
    )
    words = ["train", "own_env:Endless", "vpg", *SMALL, "--steps", "32", "--eval-max-steps", "10"]
    done = in_a_shell(*words, "--out", "run")
    assert done.returncode == 0
    lines = done.stderr.splitlines()
    (warned,) = [line for line in lines if "were cut before their end" in line]
    assert warned.startswith("surefoot: warning: 2 of 2 evaluation episodes")


@pytest.mark.parametrize(("text", "value"), [("500k", 500_000), ("1M", 10**6), ("1.5M", 1_500_000)])
def test_steps_may_be_written_in_thousands_and_millions(text, value):
    assert whole(text) == value


@pytest.mark.parametrize("text", ["k", "M", "1m", "1.5", "1kM", "0x1M", "١M"])
def test_other_words_are_no_whole_number(text):
    with pytest.raises(argparse.ArgumentTypeError):
        whole(text)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("trpo", "--max-kl 0.01"),
        ("ppo-kl", "[rule]"),
        ("max_kl", "[setting of npg, trpo]"),
        ("--gamma", "discount per step"),
        ("critic-learning-rate", "[setting of critic]"),
        ("policy/kl_mean", "healthy:"),
        ("sb3-contrib", "[preset of trpo]"),
        ("cleanrl", "differs: it treats a time limit as the end"),
    ],
)
def test_explain_knows_rules_settings_and_presets_too(name, said, capsys):
    assert main(["explain", "--", name]) == 0
    assert said in capsys.readouterr().out


def test_every_rule_and_setting_is_explained(capsys):
    for name in setting_names():
        assert main(["explain", name]) == 0
        assert name in capsys.readouterr().out


@case(124)
@pytest.mark.thorough
@pytest.mark.parametrize(
    ("variable", "words"),
    [
        ("JAX_PLATFORMS=nonsense", ["train", "CartPole-v1", "vpg", *SMALL]),
        ("JAX_NUM_CPU_DEVICES=x", ["train", "CartPole-v1", "vpg", *SMALL]),
        ("MPLBACKEND=nonsense", ["exact", "corridor", "trpo", "--plot", "x.png"]),
    ],
)
def test_a_variable_that_a_library_refuses_is_named(variable, words, empty_directory):
    name, _, value = variable.partition("=")
    done = in_a_shell(*words, **{name: value})
    assert done.returncode == 2
    assert f"error[VARIABLE]: the environment variable {variable}: " in done.stderr


@case(125)
@pytest.mark.parametrize(
    "name", ["debug_nans", "debug_infs", "disable_jit", "numpy_rank_promotion"]
)
@pytest.mark.parametrize("env", ["CartPole-v1", "gymnax:CartPole-v1"])
@pytest.mark.thorough
def test_settings_of_jax_for_debugging_do_not_apply_inside(name, env):
    strict = {"numpy_rank_promotion": "raise"}.get(name, True)
    context = jax.disable_jit() if name == "disable_jit" else getattr(jax, name)(strict)
    told = f"jax_{name} does not apply inside surefoot"
    with context:
        with pytest.warns(UserWarning, match=told):
            run = sf.train(env, "trpo", steps=64, num_envs=2, num_steps=16, preset="none")
        with pytest.warns(UserWarning, match=told):
            assert run.evaluate(episodes=1)["episodes"] == 1
        with pytest.warns(UserWarning, match=told):
            assert run.policy(np.zeros(4, np.float32)) in (0, 1)


@pytest.mark.core
@pytest.mark.parametrize(
    "words",
    [["train", "ALE/Pong-v5"], ["train", "Atari"], ["train", "CartPole-v1", "--frobnicate"]],
)
def test_no_name_is_suggested_where_none_is_near(words, capsys):
    assert main(words) == 2
    assert "did you mean" not in capsys.readouterr().err


def test_a_used_directory_names_a_command_that_works(command):
    code = "import gymnasium\n\n\ndef make():\n    return gymnasium.make('CartPole-v1')\n"
    Path("own_used.py").write_text(code)
    words = ["train", "own_used:make", "vpg", *SMALL, "--steps", "64", "--out", "run"]
    assert command(*words).code == 0
    ended = command(*words)
    assert "`surefoot resume run --env own_used:make`" in ended.line


def test_an_evaluation_of_an_earlier_iteration_says_of_which_step_it_is(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("surefoot.cli.progress.SECONDS_BETWEEN_LINES", 0.0)
    flags = ["--steps", "2048", "--num-envs", "2", "--num-steps", "128", "--preset", "none"]
    flags += ["--eval-every", "768", "--eval-episodes", "1"]
    flags += ["--out", str(tmp_path / "run")]
    assert main(["train", "CartPole-v1", *flags]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "steps/s" in line]
    assert len(lines) == 8
    evaluated = [re.search(r"evaluation [\d.]+( \(at [\d,]+\))?", line) for line in lines]
    said = [found and found[1] for found in evaluated]
    # Evaluations are of iterations 3, 6 and 8, of 256 steps each.
    assert said == [None, None, None, " (at 768)", " (at 768)", None, " (at 1,536)", None]
    assert [found is None for found in evaluated] == [True, True] + [False] * 6
