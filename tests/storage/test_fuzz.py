"""Files of a run with anything in them are read, or refused by name; nothing else is opened."""

import contextlib
import hashlib
import json
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

import surefoot as sf
from surefoot.config.presets import read_settings, settle
from surefoot.errors import CheckpointError, ConfigError
from surefoot.storage.checkpoint import Checkpoint
from surefoot.storage.env_error_record import EnvErrorRecord, read_env_error, write_env_error
from surefoot.storage.lock import unlock
from surefoot.storage.run_directory import CHECKPOINT_FOLDERS, RunDirectory
from tests.support.cases import case

pytestmark = pytest.mark.usefixtures("empty_directory")

FILES = ("arrays.safetensors", "state.json", "manifest.json")
OTHERS = ("config.json", "metrics.jsonl", "env-error.json", "env-error.safetensors")
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
    """A run with every kind of file that is read."""
    settings = settle("CartPole-v1", sf.preset("CartPole-v1"))
    run = RunDirectory.create(Path("run"), settings.to_dict())
    arrays = {"a/b": np.arange(6, dtype=np.float32).reshape(2, 3), "c": np.array(7, np.int32)}
    run.save(Checkpoint(arrays, 3, 96, True, {"jax": "1"}), keep=1)
    run.append({"iteration": 1, "env_steps": 32, "policy/kl_mean": 0.01})
    run.append({"iteration": 2, "env_steps": 64, "policy/kl_mean": None})
    write_env_error(run, EnvErrorRecord("it broke", "ENV-CRASH", 1, 5, {"action": np.arange(3)}))
    unlock(run.path)
    return run


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


def read_everything(run: RunDirectory) -> None:
    """As the commands do that are given a run of somebody else's."""
    for read in (run.newest, run.rows, partial(read_env_error, run)):
        with contextlib.suppress(CheckpointError):
            read()
    with contextlib.suppress(CheckpointError, ConfigError):
        read_settings(run.config, run.path / "config.json")


def fuzz(run: RunDirectory, count: int, seed: int) -> None:
    rng, folder = random.Random(seed), run.checkpoints()[0]
    whole = {name: (folder / name).read_bytes() for name in FILES}
    whole |= {name: (run.path / name).read_bytes() for name in OTHERS}
    opened: list[str] = []
    watching = True

    def note(name, given):
        if watching and name == "open" and isinstance(given[0], str | bytes | os.PathLike):
            opened.append(os.fspath(given[0]))

    sys.addaudithook(note)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(count):
        name = rng.choice((*FILES, *OTHERS))
        data = spoilt(whole[name], rng)
        target = (folder if name in FILES else run.path) / name
        target.write_bytes(data)
        if name in FILES[:2] and rng.random() < 0.9:  # vouched for, so that what is inside is read
            manifest = json.loads(whole["manifest.json"])
            digest = hashlib.sha256(data).hexdigest()
            manifest["files"][name] = {"size": len(data), "sha256": digest}
            (folder / "manifest.json").write_text(json.dumps(manifest))
        opened.clear()
        began = time.thread_time()  # of its own: other processes may keep the core for longer
        read_everything(run)
        assert time.thread_time() - began < 1.0, (name, data)
        # What is opened inside an opened directory has its bare name.
        outside = {path for path in map(str, opened) if not path.startswith(str(run.path))}
        outside -= {*FILES, *OTHERS, folder.name, *CHECKPOINT_FOLDERS}
        assert not outside, (name, data)
        target.write_bytes(whole[name])
        (folder / "manifest.json").write_bytes(whole["manifest.json"])
    watching = False
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 200_000
    assert run.newest().iteration == 3


@case(52)
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
