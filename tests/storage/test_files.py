"""Files of a run: whatever lies in its directory, reads end at once and writes stay inside."""

import contextlib
import hashlib
import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

import surefoot as sf
from surefoot.config.presets import settle
from surefoot.errors import (
    CheckpointError,
    ConfigError,
    NotFiniteError,
    StorageError,
    SurefootError,
)
from surefoot.storage.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from surefoot.storage.files import Folder, replace_file
from surefoot.storage.lock import lock, unlock
from surefoot.storage.run_directory import RunDirectory
from surefoot.training.api import resume
from tests.support.cases import case

pytestmark = pytest.mark.usefixtures("empty_directory")

TINY = sf.Train(num_envs=2, num_steps=16)
CRITIC = sf.Critic(num_epochs=1, num_minibatches=1)


def trained(out, steps=64, **how):
    given = {"train": TINY, "critic": CRITIC, "preset": "none", "seed": 0} | how
    return sf.train("CartPole-v1", sf.VPG(), steps=steps, out=out, **given)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("finished") / "run").directory.path


@pytest.fixture
def run(finished):
    """The directory of a finished run, to be spoilt."""
    return shutil.copytree(finished, Path("run").absolute())


def as_a_pipe(file):
    file.unlink()
    os.mkfifo(file)


def as_a_device(file):
    file.unlink()
    file.symlink_to("/dev/zero")


def as_a_directory(file):
    file.unlink()
    file.mkdir()


def as_twelve_gigabytes(file):
    with open(file, "ab") as opened:
        opened.truncate(12 * 2**30)


def as_a_link_to_a_whole_one(file):
    elsewhere = Path("elsewhere").absolute()
    file.rename(elsewhere)
    file.symlink_to(elsewhere)


def as_a_link_to_nothing(file):
    file.unlink()
    file.symlink_to("nothing")


SPOILT = [as_a_pipe, as_a_device, as_a_directory, as_twelve_gigabytes,
          as_a_link_to_a_whole_one, as_a_link_to_nothing]  # fmt: skip
FILES = ["config.json", "metrics.jsonl", "lock", "checkpoints/step-000000064/state.json",
         "checkpoints/step-000000064/manifest.json",
         "checkpoints/step-000000064/arrays.safetensors"]  # fmt: skip


@pytest.mark.thorough
@case(92)
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("spoil", SPOILT)
def test_a_file_that_is_not_what_it_seems_is_refused_or_passed_over_at_once(run, name, spoil):
    spoil(run / name)
    reads = (sf.load, resume, lambda path: sf.probe_run(path, budget=64), RunDirectory.rows)
    for read in reads:
        began = time.monotonic()
        with contextlib.suppress(ConfigError, CheckpointError, StorageError):
            read(RunDirectory(run) if read is RunDirectory.rows else run)
        assert time.monotonic() - began < 10


@case(92)
@pytest.mark.parametrize("name", ["metrics.jsonl", "config.json", "score.json"])
def test_nothing_is_written_through_a_link(run, name):
    target = Path("precious")
    target.write_text("mine")
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(target.absolute())
    directory = RunDirectory(run)
    for write in (lambda: directory.write(name, "x"), lambda: replace_file(run / name, b"x")):
        write()
        assert target.read_text() == "mine"
        assert (run / name).read_bytes() == b"x"
    (run / "metrics.jsonl").unlink(missing_ok=True)
    (run / "metrics.jsonl").symlink_to(target.absolute())
    with pytest.raises(StorageError):
        directory.append({"iteration": 1})
    assert target.read_text() == "mine"


@case(92)
@pytest.mark.parametrize("folder", ["checkpoints", "best", "kept", "probe"])
def test_a_folder_that_is_a_link_is_neither_read_nor_written(run, folder):
    elsewhere = Path("elsewhere").absolute()
    elsewhere.mkdir()
    shutil.rmtree(run / folder, ignore_errors=True)
    (run / folder).symlink_to(elsewhere)
    directory = RunDirectory(run)
    with pytest.raises(StorageError):
        directory.write(f"{folder}/file", "x")
    with pytest.raises(StorageError):
        directory.save(point(), keep=1, folder=folder)
    assert directory.checkpoints(folder) == []
    assert list(elsewhere.iterdir()) == []


def point(**arrays):
    return Checkpoint({"a": np.zeros(2, np.float32), **arrays}, 1, 32, True, {})


@case(93)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_weights_that_are_not_finite_are_neither_stored_nor_loaded(value, dtype, monkeypatch):
    Path("checkpoints").mkdir()
    spoilt = point(**{"params/policy": np.array([1.0, value], dtype)})
    with Folder.open(Path("checkpoints")) as folder:
        with pytest.raises(NotFiniteError, match="params/policy"):
            write_checkpoint(folder, spoilt)
        assert folder.names() == []
        # What an environment of the user's has in its state is its own affair.
        write_checkpoint(folder, point(**{"env/state": np.array([value], dtype)}))
        with monkeypatch.context() as patch:
            patch.setattr("surefoot.storage.checkpoint.not_finite", lambda arrays: [])
            path = write_checkpoint(folder, spoilt)
    with pytest.raises(CheckpointError, match="params/policy are not finite"):
        read_checkpoint(path)


VALUES = [None, True, "x", "1e308", [1], {"a": 1}, -1, 0.5, 1e308, 2**63, 10**400]


@case(94)
@pytest.mark.parametrize("value", VALUES, ids=str)
@pytest.mark.parametrize("name", ["iteration", "env_steps", "episode/return_mean", "warnings"])
def test_a_row_of_other_types_is_passed_over(run, name, value):
    directory, file = RunDirectory(run), run / "metrics.jsonl"
    rows = directory.rows()
    file.write_text(file.read_text() + json.dumps(rows[-1] | {name: value}) + "\n")
    found = directory.rows()
    assert found[: len(rows)] == rows
    for row in found:
        assert type(row["iteration"]) is int
        assert type(row["env_steps"]) is int
        others = [number for key, number in row.items() if key != "warnings"]
        assert all(abs(number) < 1e300 for number in others)
        assert isinstance(row.get("warnings", ""), str)
    sf.load(run)


@case(94)
@pytest.mark.parametrize("value", VALUES, ids=str)
@pytest.mark.parametrize("name", ["iteration", "env_steps", "exact", "versions"])
def test_counters_of_other_types_are_refused_in_one_line(run, name, value):
    path = RunDirectory(run).checkpoints()[-1]
    found = read_checkpoint(path)
    file = path / "state.json"
    before = file.read_bytes()
    file.write_text(json.dumps(json.loads(before) | {name: value}))
    vouch_for(path)
    if value == {"a": 1} and name == "versions":
        return  # which it may be
    if name == "exact":
        assert read_checkpoint(path).exact is (value is True)
        return
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_checkpoint(path)
    assert found.iteration == 2


def vouch_for(path):
    """Write a manifest with the digests of what is there."""
    manifest = json.loads((path / "manifest.json").read_text())
    for part, entry in manifest["files"].items():
        data = (path / part).read_bytes()
        entry |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (path / "manifest.json").write_text(json.dumps(manifest))


@case(94)
@pytest.mark.parametrize(
    "name", ["step-000000128.bak", "step-000000128 (copy)", "step-9", "step-0000000128", "step-x",
             "step-٠٠٠٠٠٠٦٤٠", "step-000000128~", ".step-000000128", "left-step-000000128"],
)  # fmt: skip
def test_copies_beside_checkpoints_are_no_checkpoints(run, name):
    stored = RunDirectory(run).checkpoints()
    shutil.copytree(stored[0], stored[0].with_name(name))
    assert RunDirectory(run).checkpoints() == stored
    assert sf.load(run).env_steps == 64
    assert resume(run).env_steps == 64


@case(95)
@pytest.mark.parametrize("how", ["moved", "removed", "replaced"])
def test_a_run_whose_directory_is_no_longer_there_stops_and_writes_nowhere_else(how, finished):
    def interfere(row):
        if row["iteration"] == 3:
            path = Path("run")
            shutil.rmtree(path) if how == "removed" else path.rename("moved")
            if how == "replaced":
                shutil.copytree(finished, path)

    train = sf.Train(num_envs=2, num_steps=16, checkpoint_every=32)
    with pytest.raises(StorageError, match="was moved, removed or replaced"):
        trained("run", steps=320, train=train, callback=interfere)
    if how == "replaced":
        rows = [RunDirectory(path).rows() for path in (Path("run"), finished)]
        assert rows[0] == rows[1]
        names = [sorted(file.name for file in path.rglob("*")) for path in (Path("run"), finished)]
        assert names[0] == names[1]
    else:
        assert not Path("run").exists()
    if how != "removed":
        assert sf.load("moved").env_steps == 64


@case(95)
def test_a_forked_process_writes_nothing_to_the_run_of_the_first(run):
    directory = RunDirectory(run)
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*")}
    lock(run)
    try:
        pid = os.fork()
        if pid == 0:
            code = 0
            writes = (
                lambda: directory.append({"iteration": 9}),
                lambda: directory.write("config.json", "{}"),
                lambda: directory.save(point(), keep=1),
                directory.forget,
            )
            for write in writes:
                try:
                    write()
                except StorageError as error:
                    code += "of which this one is a copy" in str(error)
            os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) >= 3
    finally:
        unlock(run)
    after = {file: file.stat().st_mtime_ns for file in run.rglob("*") if file.name != "lock"}
    assert after == {file: time for file, time in before.items() if file.name != "lock"}


@case(127)
@pytest.mark.parametrize(
    ("group", "name", "value"),
    [
        ("train", "num_envs", 10**9),
        ("train", "num_steps", 10**9),
        ("train", "eval_episodes", 10**9),
        ("network", "hidden", [8] * 3000),
        ("network", "critic_hidden", [8] * 3000),
    ],
)
def test_sizes_that_a_run_claims_are_refused_at_once_by_name(group, name, value):
    config = settle("CartPole-v1", sf.preset("CartPole-v1")).to_dict()
    config[group][name] = value
    run = RunDirectory.create(Path("run"), config)
    unlock(run.path)
    began = time.thread_time()
    with pytest.raises(SurefootError, match=name):
        sf.load("run")
    assert time.thread_time() - began < 1.0
