"""A run directory keeps what it was given, or says what is wrong with it; it runs nothing."""

import dataclasses
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import surefoot as sf
from surefoot.config.settings import VPG, Critic, Network, Train
from surefoot.errors import CheckpointError, ConfigError, StorageError
from surefoot.storage.checkpoint import (
    Checkpoint,
    name_arrays,
    read_checkpoint,
    restore_arrays,
    write_checkpoint,
)
from surefoot.storage.files import Folder
from surefoot.storage.run_directory import RunDirectory, finite_row
from surefoot.training.api import resume, train
from tests.support.cases import case
from tests.support.programs import quickly_built
from tests.support.scripted import Scripted, scripted_jax
from tests.support.trees import assert_same_bits

TREE = {
    "params": (np.array([1.5, -0.0, 1e-42], np.float32), np.float32(3.0)),
    "counts": {"b": np.array([[2**31 - 1, -5]], np.int32), "a": np.uint32(4_000_000_000)},
    "flags": np.array([True, False]),
    "none": None,
    "empty": np.zeros((0, 3), np.float32),
}


def checkpoint_of(tree=TREE, iteration=1, env_steps=64, exact=True):
    return Checkpoint(name_arrays(tree), iteration, env_steps, exact, {"jax": "0"})


@pytest.fixture
def directory(tmp_path):
    """A run directory with checkpoints at 64 and 128 steps."""
    run = RunDirectory.create(tmp_path / "run", {"env": "CartPole-v1"})
    for iteration in (1, 2):
        tree = {**TREE, "none": np.float32(iteration)}
        run.save(checkpoint_of(tree, iteration, 64 * iteration), keep=3)
    return run


@pytest.mark.core
def test_a_checkpoint_gives_back_what_was_stored_bit_for_bit(tmp_path):
    path = write_checkpoint(Folder.open(tmp_path), checkpoint_of())
    found = read_checkpoint(path)
    assert_same_bits(restore_arrays(TREE, found.arrays, "here"), TREE)
    assert found._replace(arrays={}) == Checkpoint({}, 1, 64, True, {"jax": "0"})


def test_a_tree_that_was_another_is_refused_field_by_field():
    other = {
        "params": (np.zeros(4, np.float32), np.float64(3.0)),
        "counts": {"b": TREE["counts"]["b"], "c": np.uint32(1)},
        "flags": TREE["flags"],
        "empty": TREE["empty"],
    }
    with pytest.raises(CheckpointError) as caught:
        restore_arrays(other, name_arrays(TREE), "runs/x")
    message = str(caught.value)
    assert "runs/x is of another run" in message
    assert "params/0 is float32[3], this run needs float32[4]" in message
    assert "params/1 is float32[], this run needs float64[]" in message
    assert "counts/a is left over" in message
    assert "counts/c is missing" in message


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "bytes|not valid JSON"),
    "one bit": (flip, "SHA-256|not valid JSON|bytes|format|not list|manifest"),
    "missing": (lambda path: path.unlink(), "cannot be read: No such file"),
    "a directory": (lambda path: (path.unlink(), path.mkdir()), "no plain file"),
    "a fifo": (lambda path: (path.unlink(), os.mkfifo(path)), "no plain file"),
    "a link": (
        lambda path: (path.rename(path.with_suffix(".away")), path.symlink_to(path.name + ".away")),
        "cannot be read",
    ),
    "empty": (lambda path: path.write_bytes(b""), "bytes|not valid JSON"),
}


@pytest.mark.core
@pytest.mark.parametrize("file", ["arrays.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_and_never_read_as_if_it_were_whole(directory, file, damage):
    spoil, message = DAMAGES[damage]
    newest = directory.checkpoints()[-1]
    spoil(newest / file)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_checkpoint(newest)
    assert newest.name in str(caught.value)


def test_every_single_flipped_bit_of_a_checkpoint_is_noticed(tmp_path):
    small = checkpoint_of({"a": np.arange(3, dtype=np.float32)})
    path = write_checkpoint(Folder.open(tmp_path), small)
    expected = read_checkpoint(path)
    for file in sorted(path.iterdir()):
        data = file.read_bytes()
        for position in range(len(data)):
            changed = bytearray(data)
            changed[position] ^= 1 << position % 8
            file.write_bytes(changed)
            try:
                found = read_checkpoint(path)
            except CheckpointError:
                continue
            # White space between two entries of the manifest is all that may change.
            assert file.name == "manifest.json"
            assert_same_bits(found.arrays, expected.arrays)
            assert found._replace(arrays={}) == expected._replace(arrays={})
        file.write_bytes(data)


@pytest.mark.core
def test_loading_falls_back_past_a_damaged_checkpoint_and_says_so(directory):
    assert directory.newest().iteration == 2
    flip(directory.checkpoints()[-1] / "arrays.safetensors")
    with pytest.warns(UserWarning, match="SHA-256.*using step-000000064 instead"):
        assert directory.newest().iteration == 1
    flip(directory.checkpoints()[0] / "arrays.safetensors")
    with pytest.raises(CheckpointError, match=r"no checkpoint to load; .*step-000000128.*SHA"):
        directory.newest()


def test_an_exact_checkpoint_is_looked_for_behind_those_that_are_not(directory):
    directory.save(checkpoint_of(iteration=3, env_steps=192, exact=False), keep=3)
    assert directory.newest().iteration == 3
    assert directory.newest(exact=True).iteration == 2


def rewrite(path, **parts):
    """Put other bytes into a checkpoint, with a manifest that fits them."""
    manifest = json.loads((path / "manifest.json").read_bytes())
    for name, data in parts.items():
        file = {"arrays": "arrays.safetensors", "state": "state.json"}[name]
        (path / file).write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        manifest["files"][file] = {"size": len(data), "sha256": digest}
    (path / "manifest.json").write_text(json.dumps(manifest))


class Bomb:
    """What a hostile pickle is: its loading runs a command."""

    def __init__(self, sentinel):
        self.sentinel = sentinel

    def __reduce__(self):
        return os.mkdir, (str(self.sentinel),)


@pytest.mark.core
def test_a_pickle_under_our_name_is_refused_and_not_run(directory, tmp_path):
    sentinel = tmp_path / "it-ran"
    data = pickle.dumps(Bomb(sentinel))
    for path in directory.checkpoints():
        rewrite(path, arrays=data, state=data)
        (path / "extra.pkl").write_bytes(data)
    with pytest.raises(CheckpointError, match="not valid JSON"):
        directory.newest()
    for path in directory.checkpoints():
        rewrite(path, state=json.dumps({"iteration": 1}).encode())
    with pytest.raises(CheckpointError, match="cannot be read"):
        directory.newest()
    assert not sentinel.exists()
    pickle.loads(data)
    assert sentinel.exists(), "the pickle was a live one"


HOSTILE_JSON = {
    "nested": b"[" * 100_000,
    "nested objects": b'{"a":' * 100_000,
    "not a number": b'{"format": NaN}',
    "infinite": b'{"format": 1, "files": Infinity}',
    "a long number": b"1" * 100_000,
    "a list": b"[]",
    "no text": b"\xff\xfe\x00",
    "no files": b'{"format": 1}',
    "files that are none": b'{"format": 1, "files": {"arrays.safetensors": 1, "state.json": 2}}',
}


@pytest.mark.core
@pytest.mark.parametrize("content", HOSTILE_JSON)
def test_hostile_json_is_refused_at_once(directory, content):
    newest = directory.checkpoints()[-1]
    (newest / "manifest.json").write_bytes(HOSTILE_JSON[content])
    started = time.monotonic()
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        read_checkpoint(newest)
    assert time.monotonic() - started < 1.0


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"iteration": "x"},
        {"iteration": 1, "env_steps": None},
        {"iteration": 1, "env_steps": 1, "exact": True, "versions": 3},
    ],
)
def test_counters_of_another_kind_are_refused(directory, state):
    newest = directory.checkpoints()[-1]
    rewrite(newest, state=json.dumps(state).encode())
    with pytest.raises(CheckpointError, match="step-000000128"):
        read_checkpoint(newest)


def test_a_small_file_that_claims_a_huge_array_is_refused_at_once(directory):
    newest = directory.checkpoints()[-1]
    header = json.dumps({"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}})
    claims = len(header).to_bytes(8, "little") + header.encode() + bytes(64)
    rewrite(newest, arrays=claims)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_checkpoint(newest)


@pytest.mark.core
def test_a_newer_format_is_refused_with_what_to_do(directory):
    newest = directory.checkpoints()[-1]
    manifest = json.loads((newest / "manifest.json").read_bytes())
    (newest / "manifest.json").write_text(json.dumps({**manifest, "format": 2}))
    with pytest.raises(CheckpointError, match="has format 2, this surefoot reads 1; install"):
        read_checkpoint(newest)


def test_names_in_a_manifest_open_nothing_outside_the_checkpoint(directory, tmp_path):
    outside = tmp_path / "outside"
    outside.write_bytes(b"secret")
    newest = directory.checkpoints()[-1]
    manifest = json.loads((newest / "manifest.json").read_bytes())
    arrays = manifest["files"].pop("arrays.safetensors")
    for name in (str(outside), "../../../outside"):
        files = {**manifest["files"], name: arrays}
        (newest / "manifest.json").write_text(json.dumps({**manifest, "files": files}))
        with pytest.raises(CheckpointError, match=r"does not list arrays\.safetensors"):
            read_checkpoint(newest)


def test_a_checkpoint_that_is_a_link_is_not_followed(directory, tmp_path):
    newest = directory.checkpoints()[-1]
    newest.rename(tmp_path / "elsewhere")
    newest.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="is a link, or no directory"):
        read_checkpoint(newest)


class Killed(BaseException):
    """What a kill looks like from inside: nobody catches it."""


SAVE_CALLS = [("mkdir", 1), *(("fsync", n) for n in range(1, 6)), ("rename", 1)]


@pytest.mark.parametrize("fault", [Killed, OSError(28, "No space left on device")], ids=str)
@pytest.mark.parametrize(("call", "number"), SAVE_CALLS)
def test_a_save_that_breaks_anywhere_leaves_the_old_or_the_new_one(
    directory, monkeypatch, call, number, fault
):
    real, calls = getattr(os, call), []

    def breaks(*arguments, **named):
        calls.append(arguments)
        if len(calls) == number:
            raise fault
        return real(*arguments, **named)

    tree = {**TREE, "none": np.float32(3)}
    expected = Killed if fault is Killed else StorageError
    with monkeypatch.context() as patch:
        patch.setattr(os, call, breaks)
        with pytest.raises(expected):
            directory.save(checkpoint_of(tree, 3, 192), keep=3)
    assert len(calls) == number
    found = directory.newest()
    # The fifth sync is of the parent: by then the new one has its name.
    assert found.iteration == (3 if (call, number) == ("fsync", 5) else 2)
    assert_same_bits(restore_arrays(tree, found.arrays, "here")["none"], np.float32(found[1]))
    assert not list(directory.path.glob("**/.tmp-*"))
    directory.save(checkpoint_of(tree, 3, 192), keep=3)
    assert directory.newest().iteration == 3


def test_a_full_disk_is_told_with_the_path_and_may_pass(directory, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="step-000000192: No space left on device") as caught:
        directory.save(checkpoint_of(iteration=3, env_steps=192), keep=3)
    assert caught.value.retryable
    with pytest.raises(StorageError, match="No space left"):
        directory.write("report.html", "text")
    assert not list(directory.path.glob("**/.tmp-*"))


@pytest.mark.core
def test_only_the_newest_checkpoints_are_kept(directory):
    for iteration in range(3, 7):
        directory.save(checkpoint_of(iteration=iteration, env_steps=64 * iteration), keep=2)
    assert [path.name for path in directory.checkpoints()] == ["step-000000320", "step-000000384"]
    directory.save(checkpoint_of(), keep=1, folder="best")
    assert len(directory.checkpoints()) == 2


def test_steps_beyond_nine_digits_are_still_the_newest(directory):
    for env_steps in (999_999_999, 1_000_000_000, 2**31, 2**53 + 1):
        directory.save(checkpoint_of(iteration=env_steps, env_steps=env_steps), keep=2)
    assert directory.newest().env_steps == 2**53 + 1
    assert [int(path.name[5:]) for path in directory.checkpoints()] == [2**31, 2**53 + 1]


def test_a_save_in_the_place_of_a_damaged_one_replaces_it(directory):
    flip(directory.checkpoints()[-1] / "arrays.safetensors")
    directory.save(checkpoint_of(iteration=2, env_steps=128), keep=3)
    assert directory.newest().iteration == 2


@pytest.mark.core
def test_a_used_directory_is_refused(directory, tmp_path):
    for path in (directory.path, tmp_path / "file"):
        if not path.exists():
            path.write_text("something")
        with pytest.raises(ConfigError, match="is used already; choose another --out") as caught:
            RunDirectory.create(path, {})
        assert caught.value.name == "OUT-USED"
    (tmp_path / "empty").mkdir()
    assert RunDirectory.create(tmp_path / "empty", {"env": "x"}).config == {"env": "x"}


@case(62)
def test_a_directory_that_another_process_has_just_taken_is_being_written_and_not_used(tmp_path):
    # `--resume auto` started three times at once: the first has the lock and no config.json yet.
    path = tmp_path / "run"
    path.mkdir()
    code = (
        "import sys; from pathlib import Path; from surefoot.storage.lock import lock; "
        "lock(Path(sys.argv[1])); print('locked', flush=True); sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code, str(path)], **pipes) as first:
        assert first.stdout.readline() == b"locked\n"
        with pytest.raises(StorageError, match=f"is being written by process {first.pid} on"):
            RunDirectory.create(path, {})
        first.stdin.close()
    with pytest.raises(ConfigError, match="is used already"):
        RunDirectory.create(path, {})


@case(131)
@pytest.mark.parametrize("path", [None, 5, b"run", "", ["run"]])
def test_what_is_no_path_is_named(path):
    with pytest.raises(ConfigError, match="a run's directory must be a path, got "):
        RunDirectory(path)


def test_a_directory_that_cannot_be_written_is_told_before_anything_runs(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="Not a directory"):
        RunDirectory.create(tmp_path / "file" / "run", {})


def test_what_is_no_run_directory_is_told(tmp_path):
    with pytest.raises(CheckpointError, match="is no run directory: it has no config"):
        _ = RunDirectory(tmp_path).config
    with pytest.raises(CheckpointError, match="has no checkpoint to load"):
        RunDirectory(tmp_path).newest()


def test_rows_pass_over_what_is_no_row_and_trim_leaves_no_gap_and_no_double(directory):
    for iteration in range(1, 5):
        directory.append({"iteration": iteration, "env_steps": 9, "policy/kl_mean": 0.5})
    with open(directory.path / "metrics.jsonl", "ab") as file:
        file.write(b'7\n[]\n{"iteration": "x"}\n\xff\xfe\n{"iteration": 5, "pol')
    assert [row["iteration"] for row in directory.rows()] == [1, 2, 3, 4]
    assert [row["iteration"] for row in directory.trim(2, 128)] == [1, 2]
    directory.append({"iteration": 3})
    lines = (directory.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == [1, 2, 3]


def test_going_on_from_an_earlier_point_sets_the_later_checkpoints_aside(directory):
    directory.save(checkpoint_of(iteration=2, env_steps=128), keep=1, folder="best")
    directory.trim(1, 64)
    assert directory.newest().iteration == 1
    assert (directory.path / "checkpoints" / "left-step-000000128").is_dir()
    assert directory.checkpoints("best") == []
    directory.save(checkpoint_of(iteration=1, env_steps=96), keep=1, folder="best")
    assert [path.name for path in directory.checkpoints("best")] == ["step-000000096"]


def test_the_newest_exact_checkpoint_is_kept_however_many_forced_ones_follow(tmp_path):
    run = RunDirectory.create(tmp_path / "run", {"env": "CartPole-v1"})
    for step, exact in ((64, True), (128, True), (192, False), (256, False), (320, False)):
        run.save(checkpoint_of(iteration=step, env_steps=step, exact=exact), keep=2)
    assert [int(path.name[5:]) for path in run.checkpoints()] == [128, 256, 320]
    assert run.newest(exact=True).iteration == 128


def test_forgetting_removes_what_a_run_wrote_before_its_first_checkpoint_and_nothing_else(
    tmp_path,
):
    run = RunDirectory.create(tmp_path / "run", {"env": "CartPole-v1"})
    run.append({"iteration": 1})
    run.forget()
    assert not run.path.exists()
    run = RunDirectory.create(tmp_path / "run", {"env": "CartPole-v1"})
    (run.path / "notes.txt").write_text("mine")
    run.forget()
    assert [path.name for path in run.path.iterdir()] == ["notes.txt"]


def test_a_row_holds_plain_finite_numbers():
    row = finite_row(
        {"a": jnp.float32(0.5), "b": jnp.int32(3), "c": np.nan, "d": jnp.inf, "e": "word"}
    )
    assert row == {"a": 0.5, "b": 3, "e": "word"}
    assert json.loads(json.dumps(row, allow_nan=False)) == row


ENV = "tests.support.scripted:Scripted-v0"


def arguments(**more):
    return {
        "rule": VPG(),
        "steps": 64,
        "train": Train(num_envs=2, num_steps=16),
        "network": Network(hidden=(8,)),
        "critic": Critic(num_epochs=1, num_minibatches=1),
        **more,
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run on an environment of one's own, with an argument."""
    out = tmp_path_factory.mktemp("trained") / "run"
    with quickly_built():
        return train(ENV, out=out, env_kwargs={"action": "box"}, **arguments())


@pytest.mark.core
def test_a_loaded_run_is_the_one_that_was_stored(trained):
    loaded = sf.load(trained.directory.path, env=ENV)
    assert_same_bits(loaded.state.learn.params, trained.state.learn.params)
    assert_same_bits(loaded.state.learn.obs_stats, trained.state.learn.obs_stats)
    assert loaded.settings == trained.settings
    assert loaded.rows == trained.rows
    obs = np.array([[0.0, 1.0], [3.0, 2.0]], np.float32)
    np.testing.assert_array_equal(loaded.policy(obs), trained.policy(obs))
    assert loaded.evaluate(episodes=3, seed=1) == trained.evaluate(episodes=3, seed=1)


@pytest.mark.core
def test_a_run_on_a_module_of_ones_own_must_be_named_again(trained):
    command = f"--env {ENV}"
    path = trained.directory.path
    for read in (lambda: sf.load(path).evaluate(1), lambda: resume(path)):
        with pytest.raises(CheckpointError, match="will not import by itself") as caught:
            read()
        assert command in str(caught.value)
        assert caught.value.name == "NAME-ENV"


@case(102)
@pytest.mark.core
def test_a_policy_is_loaded_and_acts_without_an_environment(trained):
    policy = sf.load(trained.directory.path).policy
    obs = np.array([[0.0, 1.0], [3.0, 2.0]], np.float32)
    np.testing.assert_array_equal(policy(obs), trained.policy(obs))


class Slow(Scripted):
    """Its constructor takes a second; `made` counts the calls."""

    made = 0

    def __init__(self):
        Slow.made += 1
        if Slow.made > 4:
            time.sleep(1.0)
        super().__init__()


@case(102)
@pytest.mark.thorough
def test_no_more_environments_are_opened_than_are_used(tmp_path):
    Slow.made, given = 0, arguments() | {"callback": lambda row: True}
    given["train"] = dataclasses.replace(given["train"], num_envs=4)
    run = train(Slow, out=tmp_path / "run", **given)
    assert Slow.made == 4
    loaded = sf.load(run.directory.path)
    loaded.policy(np.zeros(2, np.float32))
    assert Slow.made == 4
    started = time.monotonic()
    assert sf.load(run.directory.path, env=Slow).evaluate(1)["episodes"] == 1
    assert time.monotonic() - started < 5.0
    assert Slow.made == 5


def test_an_environment_named_again_gets_its_arguments_again(trained):
    loaded = sf.load(trained.directory.path, env=ENV)
    assert loaded.learner.spec.action_space == trained.learner.spec.action_space


def copied(trained, tmp_path, **changes):
    """The run again, with other entries in its configuration."""
    path = tmp_path / "copy"
    shutil.copytree(trained.directory.path, path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **changes}))
    return path


def test_nothing_that_a_run_names_is_imported(trained, tmp_path, monkeypatch):
    (tmp_path / "hostile.py").write_text(
        "import pathlib\npathlib.Path(__file__).with_name('it-ran').touch()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("hostile:Env-v0", "hostile:factory"):
        path = copied(trained, tmp_path, env=name, env_from_python=False)
        with pytest.raises(CheckpointError, match="will not import"):
            sf.load(path).evaluate(1)
        shutil.rmtree(path)
    assert not (tmp_path / "it-ran").exists()


def test_another_environment_is_refused_with_what_differs(trained):
    with pytest.raises(CheckpointError, match="is of another environment") as caught:
        sf.load(trained.directory.path, env=scripted_jax())
    assert caught.value.name == "OTHER-ENV"
    assert "its action space is Box(" in str(caught.value)
    assert "this environment's is Discrete(" in str(caught.value)


def test_an_environment_whose_arrays_fit_and_whose_bounds_differ_is_refused(trained, tmp_path):
    spec = trained.directory.config["spec"]
    spec["action_space"]["low"] = -7.0
    path = copied(trained, tmp_path, spec=spec)
    for read in (lambda: sf.load(path, env=ENV).evaluate(1), lambda: resume(path, env=ENV)):
        with pytest.raises(CheckpointError, match="is of another environment") as caught:
            read()
        assert caught.value.name == "OTHER-ENV"


def test_another_network_is_refused_with_what_differs(trained, tmp_path):
    network = json.loads((trained.directory.path / "config.json").read_text())["network"]
    path = copied(trained, tmp_path, network={**network, "hidden": [16]})
    with pytest.raises(CheckpointError, match=r"float32\[8, 2\], this run needs float32\[16, 2\]"):
        sf.load(path, env=ENV)


@pytest.mark.parametrize(
    "changes", [{"rule": 5}, {"rule": {}}, {"train": []}, {"train": {"steps": "x"}}, {"env": 3}]
)
def test_a_configuration_that_is_none_is_refused(trained, tmp_path, changes):
    path = copied(trained, tmp_path, **changes)
    with pytest.raises((CheckpointError, ConfigError)):
        sf.load(path, env=ENV)


def test_a_used_directory_is_refused_before_a_program_is_built(trained):
    told = []

    class Compilations(sf.Callback):
        def on_compile(self, what):
            told.append(what)

    with pytest.raises(ConfigError, match="is used already"):
        train(ENV, out=trained.directory.path, callback=Compilations(), **arguments())
    assert told == []


def test_a_checkpoint_opens_with_safetensors_alone(trained):
    newest = trained.directory.checkpoints()[-1]
    arrays = safetensors.numpy.load_file(newest / "arrays.safetensors")
    flat = jax.tree.leaves(trained.state)
    assert sum(a.size for a in arrays.values()) == sum(np.size(leaf) for leaf in flat)
    assert "learn/params/policy/log_std" in arrays
