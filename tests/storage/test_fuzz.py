"""Files of a run with anything in them are read, or refused by name; nothing else is opened."""

import contextlib
import hashlib
import json
import math
import os
import random
import resource
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from gymnasium import spaces

import surefoot as sf
from surefoot.analysis.report.appendix import raised_warnings
from surefoot.analysis.report.table import table_of
from surefoot.cli.commands.training import settings_file
from surefoot.config.history import SettingsHistory, read_history
from surefoot.config.presets import settle
from surefoot.errors import SurefootError
from surefoot.exact import find_mdp
from surefoot.exporting.numpy_policy import NumpyPolicy
from surefoot.storage.checkpoint import Checkpoint
from surefoot.storage.env_error_record import EnvErrorRecord, read_env_error, write_env_error
from surefoot.storage.lock import unlock
from surefoot.storage.recorded_spec import record_spec
from surefoot.storage.run_directory import CHECKPOINT_FOLDERS, RunDirectory
from surefoot.training.run import named_source
from surefoot.types import EnvSpec
from tests.support.cases import case

pytestmark = pytest.mark.usefixtures("empty_directory")

FILES = ("arrays.safetensors", "state.json", "manifest.json")
VALUES = [
    *(
        None,
        True,
        -1,
        0,
        1.5,
        1e308,
        10**400,
        2**63,
        math.nan,
        -math.inf,
        "",
        "x",
        "evil:",
        "\x1b[",
    ),
    *([], {}, [None], [[]], {"": {}}, [0.5, "a"], {"type": "Box"}, [2**40, 2**40], "9" * 5000),
]
"""What takes the place of a value of JSON."""
WORDS = [
    *(b"null", b"true", b"-1", b"1e999", b"NaN", b"Infinity", b"9" * 400, b'""', b"{}", b"[]"),
    *(
        b"[" * 3000,
        b'{"a":' * 3000,
        b'"../../../etc/passwd"',
        b'"\\u0000"',
        b"\xff\xfe",
        b"\x80\x04.",
    ),
    *(b'"__class__"', b"0x10", b"1_000", b'"F64"', b'"BOOL"', b"[4294967296,4294967296]"),
]


@pytest.fixture
def directory():
    """A run with every kind of file that is read, and files that commands are given."""
    settings = settle("CartPole-v1", sf.preset("CartPole-v1"))
    keys = {"n": spaces.Discrete(3), "x": spaces.Box(-np.ones(2), np.ones(2), dtype=np.float64)}
    spec = EnvSpec(
        "CartPole-v1", spaces.Dict(keys), spaces.MultiDiscrete([2, 3]), 500, False, False
    )
    history = SettingsHistory(settings).continued(2, settings.with_train(gamma=0.9))
    config = history.to_dict() | {"spec": record_spec(spec), "devices": 1}
    run = RunDirectory.create(Path("run"), config)
    arrays = {"a/b": np.arange(6, dtype=np.float32).reshape(2, 3), "c": np.array(7, np.int32)}
    run.save(Checkpoint(arrays, 3, 96, True, {"jax": "1"}), keep=1)
    run.append({"iteration": 1, "env_steps": 32, "policy/kl_mean": 0.01, "warnings": "noisy"})
    run.append({"iteration": 2, "env_steps": 64, "policy/kl_mean": None, "eval/return_mean": 9.0})
    write_env_error(run, EnvErrorRecord("it broke", "ENV-CRASH", 1, 5, {"action": np.arange(3)}))
    unlock(run.path)
    np.savez("run/mdp.npz", transitions=np.full((2, 2, 2), 0.5), rewards=np.ones((2, 2)), gamma=0.9)
    about = np.frombuffer(json.dumps({"format": 1, "layers": 1}).encode(), np.uint8)
    np.savez("run/policy.npz", about=about, **{"layer0.weight": np.ones((2, 3), np.float32)})
    Path("run/settings.toml").write_text('[train]\nsteps = 300\n[rule]\nname = "ppo"\n')
    return run


def read_settings_of(run: RunDirectory) -> None:
    read_history(run.config, run.path / "config.json")


def read_source(run: RunDirectory) -> None:
    """Its spaces, by value; and nothing that it names is imported."""
    named_source(run, to_open=False)


def read_table(run: RunDirectory) -> None:
    raised_warnings(table_of(run.rows()))


def read_flags(name: str, run: RunDirectory) -> None:
    tables = settings_file(str(run.path / name))
    settle("CartPole-v1", sf.preset("CartPole-v1"), changes=tables)


READERS = {
    **dict.fromkeys(FILES, (RunDirectory.newest,)),
    "config.json": (read_settings_of, read_source, partial(read_flags, "config.json")),
    "metrics.jsonl": (read_table,),
    "env-error.json": (read_env_error,),
    "env-error.safetensors": (read_env_error,),
    "mdp.npz": (lambda run: find_mdp(str(run.path / "mdp.npz"), {}),),
    "policy.npz": (lambda run: NumpyPolicy.load(run.path / "policy.npz"),),
    "settings.toml": (partial(read_flags, "settings.toml"),),
}
"""By file, what reads it, as the commands do that are given a run of somebody else's."""


def altered(data: bytes, rng: random.Random) -> bytes:
    """A JSON file's bytes with one of its values replaced; of rows, of one row."""
    lines = data.splitlines()
    whole = not lines[0].endswith(b"}")
    line = 0 if whole else rng.randrange(len(lines))
    value = json.loads(data if whole else lines[line])
    at, key = value, rng.choice(list(value))
    while isinstance(at[key], dict | list) and at[key] and rng.random() < 0.8:
        at = at[key]
        key = rng.choice(list(at)) if isinstance(at, dict) else rng.randrange(len(at))
    if isinstance(at, dict) and rng.random() < 0.2:
        del at[key]
    else:
        at[key] = rng.choice(VALUES)
    lines[line] = json.dumps(value).encode()
    return lines[0] if whole else b"\n".join(lines) + b"\n"


def spoilt(data: bytes, rng: random.Random) -> bytes:
    """A file's bytes, changed in one to four ways."""
    for _ in range(rng.randint(1, 4)):
        at, kind = rng.randrange(len(data) + 1), rng.randrange(7)
        if kind == 0 and data:
            at = min(at, len(data) - 1)
            data = data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        elif kind == 1:
            data = data[:at]
        elif kind == 2:
            data = data[:at] + rng.choice(WORDS) + data[at:]
        elif kind == 3:
            data = data[:at] + rng.choice(WORDS) + data[at + rng.randrange(20) :]
        elif kind == 4:
            data = data[:at] + data[at + rng.randrange(1, 40) :]
        elif kind == 5:
            length = rng.randrange(1, 60)
            data = data[:at] + data[at : at + length] * rng.randrange(1, 4) + data[at + length :]
        else:
            number = rng.choice([0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1]).to_bytes(8, "little")
            data = number + data[8:]
    return data


def fuzz(run: RunDirectory, count: int, seed: int) -> None:
    rng, folder = random.Random(seed), run.checkpoints()[0]
    places = {name: (folder if name in FILES else run.path) / name for name in READERS}
    whole = {name: path.read_bytes() for name, path in places.items()}
    opened: list[str] = []
    watching = True

    def note(name, given):
        if watching and name == "open" and isinstance(given[0], str | bytes | os.PathLike):
            opened.append(os.fspath(given[0]))

    sys.addaudithook(note)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(count):
        name = rng.choice(list(READERS))
        by_value = name.endswith((".json", ".jsonl")) and rng.random() < 0.5
        data = (altered if by_value else spoilt)(whole[name], rng)
        places[name].write_bytes(data)
        if name in FILES[:2] and rng.random() < 0.9:  # vouched for, so that what is inside is read
            manifest = json.loads(whole["manifest.json"])
            digest = hashlib.sha256(data).hexdigest()
            manifest["files"][name] = {"size": len(data), "sha256": digest}
            (folder / "manifest.json").write_text(json.dumps(manifest))
        opened.clear()
        began = time.thread_time()  # of its own: other processes may keep the core for longer
        for read in READERS[name]:
            # Anything else would reach users as INTERNAL, a bug of ours.
            with contextlib.suppress(ValueError if name == "policy.npz" else SurefootError):
                read(run)
        assert time.thread_time() - began < 1.0, (name, data)
        # What is opened inside an opened directory has its bare name.
        ours = (str(run.path), sys.prefix, sys.base_prefix)  # Python loads modules of its own
        outside = {path for path in map(str, opened) if not path.startswith(ours)}
        outside -= {*READERS, folder.name, *CHECKPOINT_FOLDERS}
        assert not outside, (name, data)
        places[name].write_bytes(whole[name])
        (folder / "manifest.json").write_bytes(whole["manifest.json"])
    watching = False
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 200_000
    assert run.newest().iteration == 3


@case(52)
@pytest.mark.thorough
def test_spoilt_files_are_read_or_refused(directory):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fuzz(directory, 2000, seed=0)


@case(52)
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_two_hundred_thousand_spoilt_files_are_read_or_refused(directory, seed):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fuzz(directory, 50_000, seed)
