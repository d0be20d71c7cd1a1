"""Runs and their checkpoints: killed, damaged, hostile, crowded."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

import surefoot as sf
from surefoot.storage.checkpoint import Checkpoint
from surefoot.storage.files import dump
from surefoot.storage.lock import lock, unlock
from surefoot.storage.run_directory import RunDirectory
from tests.support.broken_envs import Sound
from tests.support.cases import case
from tests.support.shell import SMALL, around, last_good, told_of

pytestmark = pytest.mark.usefixtures("empty_directory")

SOUND = "broken_envs:Sound"
OFTEN = ["--checkpoint-every", "32", "--no-reset-at-checkpoints"]
AGAIN = ["resume", "run", "--env", SOUND, "--json"]


def newest() -> Path:
    return sorted(Path("run/checkpoints").iterdir())[-1]


SAVES = """
import os, signal, sys
from pathlib import Path
import numpy as np
from surefoot.storage.checkpoint import Checkpoint
from surefoot.storage.lock import lock, unlock
from surefoot.storage.run_directory import RunDirectory

CALLS = ["open", "mkdir", "fsync", "rename", "rmdir", "unlink"]
directory = RunDirectory(Path("run"))

def point_of(iteration):
    arrays = {"a": np.full(7, iteration, np.float32), "b": np.arange(iteration)}
    return Checkpoint(arrays, iteration, 64 * iteration, True, {})

def dies_at(number):
    seen = 0
    def wrapped(real):
        def call(*given, **named):
            nonlocal seen
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*given, **named)
        return call
    for name in CALLS:
        setattr(os, name, wrapped(getattr(os, name)))

directory.save(point_of(1), keep=2)
saved, points, found = 1, 0, set()
for number in range(1, 200):
    child = os.fork()
    if child == 0:
        dies_at(number)
        directory.save(point_of(saved + 1), keep=2)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    newest = directory.newest()
    assert newest.iteration in (saved, saved + 1), (number, newest.iteration, saved)
    assert (newest.arrays["a"] == newest.iteration).all()
    assert len(newest.arrays["b"]) == newest.iteration
    found.add(newest.iteration - saved)
    saved = newest.iteration
    directory.trim(saved, 64 * saved)
    assert not list(Path("run").glob("**/.tmp-*"))
    if status == 0:
        break
    points += 1
print(points, sorted(found))
"""


@case(45)
@pytest.mark.thorough
def test_a_kill_anywhere_in_a_save():
    Path("run").mkdir()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SAVES],
        env=around({}),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    points, found = done.stdout.split(maxsplit=1)
    assert int(points) >= 12
    assert json.loads(found) == [0, 1]


@case(46)
def test_a_full_disk_in_a_first_save(train, monkeypatch):
    real = os.fsync

    def sync(descriptor):
        if os.path.exists("run/metrics.jsonl"):
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", sync)
    ended = train(SOUND, *OFTEN)
    assert ended.code == 7
    assert "No space left on device" in ended.line
    assert not list(Path("run").glob("**/.tmp-*"))


WITH_LITTLE_ROOM = """
import resource, signal, sys
from surefoot.cli.parser import main
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.thorough
@case(46)
def test_a_disk_that_is_full_after_some_saves(command):
    """A file may not grow beyond what is left: the system itself refuses the write."""
    words = ["train", SOUND, "vpg", "--steps", "640", *SMALL, *OFTEN, "--out", "run"]
    done = subprocess.run(
        [sys.executable, "-c", WITH_LITTLE_ROOM, *words],
        env=around({"JAX_ENABLE_COMPILATION_CACHE": "false"}),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 7, done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert re.search(r"error\[STORAGE\]: writing run/metrics.jsonl: File too large", line)
    assert "the last good checkpoint is run/checkpoints/step-" in line
    assert not list(Path("run").glob("**/.tmp-*"))
    run = last_good(env=SOUND)
    assert command(*AGAIN).code == 0
    assert last_good(env=SOUND).iteration > run.iteration


@case(47)
@pytest.mark.parametrize("out", ["/proc/nowhere", "file/run", "file"])
def test_an_output_directory_that_cannot_be_one(train, out):
    Path("file").write_text("mine")
    started = time.monotonic()
    ended = train(SOUND, "--out", out)
    assert ended.code in (2, 7)
    assert out in ended.line
    assert not ended.records or ended.records[-1]["event"] == "error"
    assert Path("file").read_text() == "mine"
    assert time.monotonic() - started < 30


@case(48)
@pytest.mark.parametrize(
    "file",
    [
        "arrays.safetensors",
        *(
            pytest.param(file, marks=pytest.mark.thorough)
            for file in ("state.json", "manifest.json")
        ),
    ],
)
def test_a_file_cut_short(train, command, file):
    assert train(SOUND, *OFTEN).code == 0
    last = last_good(env=SOUND)
    cut = newest() / file
    cut.write_bytes(cut.read_bytes()[:-3])
    with told_of("instead") as said:
        assert command(*AGAIN).code == 0
    assert any(file in text for text in said)
    assert last_good(env=SOUND).iteration == last.iteration
    for each in Path("run/checkpoints").iterdir():
        kept = each / file
        kept.write_bytes(kept.read_bytes()[:-3])
    ended = command("evaluate", "run", "--env", SOUND)
    assert ended.code == 6
    assert file in ended.line


@case(49)
def test_a_flipped_bit(train, command):
    assert train(SOUND, "--keep-checkpoints", "1").code == 0
    file = newest() / "arrays.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)
    ended = command("evaluate", "run", "--env", SOUND)
    assert ended.code == 6
    assert "differs from its SHA-256 digest" in ended.line


class Bomb:
    def __reduce__(self):
        return (os.mkdir, ("owned",))


@case(50)
def test_a_hostile_pickle_under_our_name(train, command):
    import pickle

    assert train(SOUND, "--keep-checkpoints", "1").code == 0
    (newest() / "arrays.safetensors").write_bytes(pickle.dumps(Bomb()))
    Path("run/policy.pkl").write_bytes(pickle.dumps(Bomb()))
    assert command("evaluate", "run", "--env", SOUND).code == 6
    assert not Path("owned").exists()


@case(51)
@pytest.mark.parametrize("how", ["path", "link", "device", "directory-link"])
def test_a_manifest_with_a_path_a_link_or_a_device(train, command, how):
    assert train(SOUND, "--keep-checkpoints", "1").code == 0
    secret = Path("secret")
    secret.write_text("secret")
    folder = newest()
    if how == "path":
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["files"] = {"../../../secret": {"size": 6, "sha256": "0" * 64}}
        (folder / "manifest.json").write_text(json.dumps(manifest))
    elif how == "directory-link":
        folder.rename("elsewhere")
        folder.symlink_to(Path("elsewhere").absolute())
    else:
        (folder / "state.json").unlink()
        target = secret.absolute() if how == "link" else Path("/dev/zero")
        (folder / "state.json").symlink_to(target)
    opened = []
    sys.addaudithook(lambda name, given: opened.append(str(given[0])) if name == "open" else None)
    assert command("evaluate", "run", "--env", SOUND).code == 6
    outside = [path for path in opened if "secret" in path or path == "/dev/zero"]
    assert outside == []


READS = """
import resource, time, warnings
from pathlib import Path
import jax
from surefoot.errors import CheckpointError
from surefoot.storage.lock import lock, unlock
from surefoot.storage.run_directory import RunDirectory

warnings.simplefilter("ignore")
memory = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before, started, run = memory(), time.monotonic(), RunDirectory(Path("run"))
try:
    run.rows(), run.config, run.newest()
    print("read")
except CheckpointError:
    print("refused")
print(time.monotonic() - started, memory() - before)
"""


@case(52)
@pytest.mark.parametrize("what", ["elements", "json", "config", "metrics"])
def test_a_small_file_that_claims_much(train, what):
    assert train(SOUND, "--keep-checkpoints", "1").code == 0
    folder = newest()
    if what == "elements":
        header = json.dumps(
            {"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}
        )
        data = len(header).to_bytes(8, "little") + header.encode()
        rewrite(folder, "arrays.safetensors", data)
    elif what == "json":
        rewrite(folder, "state.json", b"[" * 100_000)
    elif what == "config":
        Path("run/config.json").write_bytes(b'{"a":' * 100_000)
    else:
        Path("run/metrics.jsonl").write_bytes(b"[" * 100_000 + b"\n")
    done = subprocess.run(
        [sys.executable, "-c", READS], env=around({}), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    how, figures = done.stdout.strip().splitlines()
    assert how == ("read" if what == "metrics" else "refused")
    seconds, kilobytes = map(float, figures.split())
    assert seconds < 1
    assert kilobytes < 200_000


def rewrite(folder: Path, name: str, data: bytes) -> None:
    """Other contents under a manifest that vouches for them."""
    import hashlib

    (folder / name).write_bytes(data)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))


@case(53)
def test_a_newer_format(train, command):
    assert train(SOUND, "--keep-checkpoints", "1").code == 0
    file = newest() / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 99}))
    ended = command("evaluate", "run", "--env", SOUND)
    assert ended.code == 6
    assert "has format 99, this surefoot reads 1; install the version that wrote it" in ended.line


@case(55)
def test_another_environment_or_network(train, command):
    assert train(SOUND).code == 0
    ended = command("evaluate", "run", "--env", "broken_envs:LongActions")
    assert ended.code == 6
    assert "its action space is Discrete(2), this environment's is Box(" in ended.line
    config = json.loads(Path("run/config.json").read_text())
    config["network"]["hidden"] = [16]
    Path("run/config.json").write_text(json.dumps(config))
    ended = command("evaluate", "run", "--env", SOUND)
    assert ended.code == 6
    assert re.search(r"params/\S+ is float32\[2, 8\], this run needs float32\[2, 16\]", ended.line)


@case(59)
def test_going_on_with_a_finished_run(train, command):
    assert train(SOUND).code == 0
    before = {
        path: path.stat().st_mtime_ns for path in Path("run").rglob("*") if path.name != "lock"
    }
    ended = command(*AGAIN)
    assert ended.code == 0
    assert "complete already" in ended.line
    after = {
        path: path.stat().st_mtime_ns for path in Path("run").rglob("*") if path.name != "lock"
    }
    assert {k: v for k, v in after.items() if k.is_file()} == {
        k: v for k, v in before.items() if k.is_file()
    }


@case(60)
def test_going_on_with_other_settings(train):
    assert train(SOUND, "--resume", "auto").code == 0
    ended = train(SOUND, "--resume", "auto", "--gamma", "0.5", "--hidden", "9")
    assert ended.code == 2
    assert "train.gamma is 0.99 there and 0.5 here" in ended.line
    assert "network.hidden is 8 there and 9 here" in ended.line
    assert "--override KEY.." in ended.line


@case(60)
@pytest.mark.thorough
def test_going_on_with_other_settings_that_are_named(train):
    assert train(SOUND, "--resume", "auto").code == 0
    more = ["--resume", "auto", "--override", "steps", "gamma"]
    assert train(SOUND, *more, "--gamma", "0.5", steps=512).code == 0
    run = last_good(env=SOUND)
    assert (run.env_steps, run.settings.train.gamma) == (512, 0.5)
    assert [row["iteration"] for row in run.rows] == list(range(1, 17))
    more = ["--resume", "auto", "--override", "hidden", "gamma"]
    ended = train(SOUND, *more, "--hidden", "9", steps=512)
    assert ended.code == 6
    assert last_good(env=SOUND).settings.network.hidden == (8,)


@case(61)
def test_going_on_under_other_versions(train, command):
    assert train(SOUND, *OFTEN).code == 0
    config = json.loads(Path("run/config.json").read_text())
    config["versions"]["jax"] = "0.0.1"
    Path("run/config.json").write_text(json.dumps(config))
    shutil.rmtree(newest())
    with told_of("jax 0.0.1 to") as said:
        assert command(*AGAIN).code == 0
    assert len(said) == 1


@case(62)
def test_two_runs_in_one_directory(train, command):
    words = ["train", SOUND, "vpg", "--steps", "1e7", *SMALL, *OFTEN, "--out", "run"]
    first = subprocess.Popen(
        [sys.executable, "-m", "surefoot", *words], env=around({}), stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 120
        while not list(Path("run").glob("checkpoints/step-*")) and time.monotonic() < deadline:
            time.sleep(0.1)
        ended = command(*AGAIN)
        assert ended.code == 7
        assert (
            f"run is being written by process {first.pid} on {socket.gethostname()}" in ended.line
        )
        ended = train(SOUND, *OFTEN, "--resume", "auto", steps=10_000_000)
        assert ended.code == 7
    finally:
        first.kill()
        first.wait()
    assert json.loads(Path("run/lock").read_text())["pid"] == first.pid
    run = sf.resume("run", env=Sound, callback=lambda row: True)
    assert run.iteration > 1


@case(51)
def test_a_lock_that_is_a_link_empties_nothing(train, command):
    assert train(SOUND, *OFTEN).code == 0
    shutil.rmtree(newest())
    Path("mine").write_text("mine")
    Path("run/lock").unlink()
    Path("run/lock").symlink_to(Path("mine").absolute())
    assert command(*AGAIN).code == 7
    assert Path("mine").read_text() == "mine"
    Path("run/lock").unlink()
    Path("run/metrics.jsonl").rename("elsewhere")
    Path("run/metrics.jsonl").symlink_to(Path("mine").absolute())
    with pytest.raises(sf.SurefootError):
        RunDirectory(Path("run")).append({"iteration": 9})
    assert Path("mine").read_text() == "mine"


@case(62)
@pytest.mark.thorough
def test_named_settings_of_a_run_that_is_being_written_stay(train):
    assert train(SOUND, "--resume", "auto").code == 0
    before = Path("run/config.json").read_text()
    lock(Path("run"))
    more = ["--resume", "auto", "--override", "steps"]
    assert train(SOUND, *more, steps=512).code == 7
    assert Path("run/config.json").read_text() == before
    unlock(Path("run"))
    assert train(SOUND, *more, steps=512).code == 0


@case(63)
def test_a_kill_in_a_row_of_metrics(train, command):
    assert train(SOUND, *OFTEN).code == 0
    shutil.rmtree(newest())
    file = Path("run/metrics.jsonl")
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:-1]) + lines[-1][:40])
    assert len(sf.load("run", env=Sound).rows) == len(lines) - 1
    assert command(*AGAIN).code == 0
    found = [json.loads(line)["iteration"] for line in file.read_text().splitlines()]
    assert found == list(range(1, len(lines) + 1))


@case(64)
def test_old_checkpoints_are_removed():
    directory = RunDirectory(Path("run"))
    directory.path.mkdir()
    for iteration in range(1, 9):
        arrays = {"a": np.full(3, iteration, np.float32)}
        point = Checkpoint(arrays, iteration, iteration, iteration == 3, {})
        directory.save(point, keep=2)
        if iteration == 5:
            directory.save(point, keep=1, folder="best")
        if iteration == 7:  # damaged: what is behind it must not be the only one left
            (directory.checkpoints()[-1] / "state.json").write_bytes(dump({}))
    names = [path.name for path in directory.checkpoints()]
    assert names == ["step-000000003", "step-000000007", "step-000000008"]
    assert directory.checkpoints("best")[0].name == "step-000000005"
    (directory.checkpoints()[-1] / "state.json").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert directory.newest().iteration == 3
