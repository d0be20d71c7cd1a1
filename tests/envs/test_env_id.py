"""Ids of environments: one grammar, and nothing is imported but the module that a user names."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import surefoot as sf
from surefoot.envs.env_id import ADAPTORS, imports_nothing, parse_env_id
from surefoot.envs.registry import find_env
from surefoot.errors import ConfigError, SurefootError
from surefoot.storage.files import dump
from surefoot.training.api import resume
from tests.support.cases import case
from tests.support.shell import SMALL, in_a_shell

pytestmark = pytest.mark.usefixtures("empty_directory")

MARK = "open('it-ran', 'w').close()\n"
OWN = """
import numpy as np
from gymnasium import Env, spaces

class Own(Env):
    observation_space, action_space = spaces.Box(-1, 1, (2,)), spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), 1.0, True, False, {}
"""


@pytest.mark.core
@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("CartPole-v1", ("", "", "CartPole-v1")),
        ("ALE/Pong-v5", ("", "", "ALE/Pong-v5")),
        ("module:Env-v0", ("", "module", "Env-v0")),
        ("package.module:make", ("", "package.module", "make")),
        ("gymnax:CartPole-v1", ("gymnax", "", "CartPole-v1")),
        ("envpool:Pong-v5", ("envpool", "", "Pong-v5")),
        ("tabular:random:3", ("tabular", "", "random:3")),
        ("tabular:a dir/b:c.npz", ("tabular", "", "a dir/b:c.npz")),
        ("tabular:module:Env-v0", ("tabular", "module", "Env-v0")),
        ("gymnax", ("", "", "gymnax")),
    ],
)
def test_an_id_is_read_in_parts(text, parts):
    assert parse_env_id(text) == parts
    assert imports_nothing(text) == (not parts[1])


PARTS = st.sampled_from(["", "evil", "gymnax", "tabular", "random", ".", "..", "/", " ", "3", "\n"])


@pytest.mark.core
@given(st.lists(PARTS, min_size=1, max_size=4).map(":".join) | st.text(max_size=12))
def test_any_text_is_an_id_or_is_refused_in_one_line(text):
    try:
        parts = parse_env_id(text)
    except ConfigError:
        assert imports_nothing(text)
        return
    assert ":".join(filter(None, parts)) == text
    assert parts.adaptor in ("", "brax", *ADAPTORS)
    if not imports_nothing(text):
        assert all(part.isidentifier() for part in parts.module.split("."))


HOSTILE = ["evil:", "evil:Env-v0", "evil:make", ":evil", "evil::x", " evil:x", "evil:\n", "evil.",
           "tabular:evil:Env-v0", "tabular:evil:", "gymnax:evil:x", "envpool:evil:x"]  # fmt: skip


@case(89)
@pytest.mark.parametrize("env_id", HOSTILE)
def test_nothing_that_a_run_names_is_imported_whatever_it_looks_like(env_id):
    Path("evil.py").write_text(MARK)
    config = sf.train("CartPole-v1", "vpg", steps=32, out="run", train=TINY, preset="none")
    path = config.directory.path
    record = config.directory.config | {"env": env_id, "env_from_python": False}
    (path / "config.json").write_bytes(dump(record))
    for read in (lambda: sf.load(path).evaluate(1), lambda: resume(path), lambda: probe(path)):
        with pytest.raises(SurefootError):
            read()
    assert not Path("it-ran").exists()
    assert "evil" not in sys.modules


TINY = sf.Train(num_envs=2, num_steps=16)


def probe(path):
    return sf.probe_run(path, budget=100)


@pytest.mark.thorough
@case(90)
def test_a_file_of_the_current_directory_never_takes_the_place_of_a_library():
    for name in ("numpy", "jax", "secrets", "gymnasium", "rich", "queue"):
        Path(f"{name}.py").write_text(MARK)
    Path("own.py").write_text(OWN)
    done = in_a_shell("train", "own:Own", "vpg", *SMALL, "--steps", "64", "--out", "run")
    assert done.returncode == 0, done.stderr
    # `python -m surefoot` would run this file in our place, as Python does; the command does not.
    Path("surefoot.py").write_text(MARK)
    script = [Path(sys.executable).with_name("surefoot"), "evaluate", "run", "--env", "own:Own"]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not Path("it-ran").exists()


@case(91)
@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def f(:\n", "own_broken.py, line 1"),
        ("\nimport moviepy_of_mine\n", "No module named 'moviepy_of_mine' ("),
        ("x = 1\nraise RuntimeError('no licence')\n", "raised RuntimeError: no licence ("),
        ("import sys\nsys.exit(0)\n", "raised SystemExit: 0 ("),
        ("1 / 0\n", "own_broken.py, line 1)"),
    ],
    ids=["syntax", "package", "error", "exit", "place"],
)
def test_a_module_that_cannot_be_imported_is_named_with_the_place(code, said, command):
    sys.modules.pop("own_broken", None)
    Path("own_broken.py").write_text(code)
    for words in (
        ("train", "own_broken:make", "vpg", *SMALL),
        ("exact", "own_broken:Env-v0", "trpo"),
    ):
        ended = command(*words)
        assert ended.code == 2
        assert "error[IMPORT]: own_broken:" in ended.line
        assert said in ended.line
        assert "own_broken.py" in ended.line


@case(91)
@pytest.mark.parametrize("path", ["./my_env.py:MyEnv", "my_env.py:MyEnv", "/a/my_env.py:MyEnv"])
def test_a_file_in_the_place_of_a_module_is_answered_with_the_module(path):
    with pytest.raises(ConfigError, match=r"is named as Python imports it: ([a-z.]+)?my_env:MyEnv"):
        find_env(path, {})
