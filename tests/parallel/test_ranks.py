"""Two processes train one run: what they compute, and what happens when one is lost."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.support.cases import case
from tests.support.shell import around, in_a_shell

pytestmark = pytest.mark.usefixtures("empty_directory")

RUN = [
    *("gymnax:CartPole-v1", "trpo", "--num-envs", "4", "--num-steps", "16", "--hidden", "8"),
    *("--eval-episodes", "1", "--critic-num-epochs", "1", "--critic-num-minibatches", "1"),
    *("--preset", "none", "--dispatch", "1", "--checkpoint-every", "640", "--lens-every", "0"),
]
LONG = ["--steps", "6400", "--eval-every", "640"]
ENDLESS = ["--steps", "6400000"]
"""A hundred iterations, and more than any test waits for."""


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(rank, port, *words, program=("-m", "surefoot", "train"), swap=(), **variables):
    """Start a rank; `swap` replaces words of the usual run."""
    variables = {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": str(rank),
    } | variables
    run = [dict(swap).get(word, word) for word in RUN]
    command = [sys.executable, *program, *run, "--cluster", "auto", "--out", "run", *words]
    log = open(f"rank-{rank}.log", "w+")  # noqa: SIM115
    return subprocess.Popen(command, env=around(variables), stdout=log, stderr=log)


@contextlib.contextmanager
def two(
    *words,
    each=lambda rank: {},
    own=((), ()),
    resume=False,
    **how,
):
    """Start two ranks, each with its own variables and flags; kill them at the end."""
    port, words = free_port(), [*words, *["--resume", "auto"] * resume]
    ranks = [start(r, port, *words, *own[r], **how, **each(r)) for r in (0, 1)]
    try:
        yield ranks
    finally:
        for rank in ranks:
            with contextlib.suppress(ProcessLookupError):
                rank.send_signal(signal.SIGCONT)
                rank.kill()
            rank.wait()


def codes(ranks, within=120):
    """Exit codes of both ranks."""
    until = time.monotonic() + within
    return [rank.wait(max(until - time.monotonic(), 0.1)) for rank in ranks]


def output(rank):
    """Lines of surefoot's that a rank printed."""
    text = Path(f"rank-{rank}.log").read_text()
    assert "Traceback" not in text
    return "\n".join(line for line in text.splitlines() if line.startswith("surefoot"))


def wait_for_rows(count, within=120):
    until = time.monotonic() + within
    while not (Path("run/metrics.jsonl").exists() and len(rows()) >= count):
        assert time.monotonic() < until, [Path(f"rank-{r}.log").read_text() for r in (0, 1)]
        time.sleep(0.02)


def rows(path="run"):
    lines = Path(path, "metrics.jsonl").read_text().splitlines()
    with contextlib.suppress(ValueError):
        return [json.loads(line) for line in lines]
    return [json.loads(line) for line in lines[:-1]]


def arrays(path="run"):
    newest = sorted(Path(path, "checkpoints").iterdir())[-1]
    return newest.name, load_file(newest / "arrays.safetensors")


def equal(one, other):
    assert one[0] == other[0]
    assert one[1].keys() == other[1].keys()
    different = [key for key, value in one[1].items() if value.tobytes() != other[1][key].tobytes()]
    assert not different


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Last checkpoint of two undisturbed ranks, their KL, and their directory."""
    here = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("peace"))
    try:
        with two(*LONG) as ranks:
            assert codes(ranks, 120) == [0, 0], output(0) + output(1)
        yield arrays(), [row["policy/kl_mean"] for row in rows()], Path("run").absolute()
    finally:
        os.chdir(here)


@pytest.mark.thorough
@case(79)
def test_two_processes_are_two_devices_to_the_bit(undisturbed):
    done = in_a_shell("train", *RUN, *LONG, "--devices", "2", "--out", "devices")
    assert done.returncode == 0, done.stderr
    equal(arrays("devices"), undisturbed[0])
    played = in_a_shell("evaluate", "devices", "--episodes", "1", "--json")
    assert json.loads(played.stdout)["episodes"] == 1


@pytest.mark.thorough
def test_a_finished_run_stays_finished(undisturbed):
    shutil.copytree(undisturbed[2], "run")
    with two(*LONG, resume=True) as ranks:
        assert codes(ranks) == [0, 0], output(0) + output(1)
    equal(arrays(), undisturbed[0])


@pytest.mark.slow
@case(79)
@pytest.mark.parametrize("rule", ["vpg", "npg", "ppo-kl", "ppo"])
def test_every_rule_is_the_same_in_two_processes(rule):
    with two("--steps", "64", swap={"trpo": rule}) as ranks:
        assert codes(ranks) == [0, 0], output(0) + output(1)
    words = [rule if word == "trpo" else word for word in RUN]
    done = in_a_shell("train", *words, "--steps", "64", "--devices", "2", "--out", "devices")
    assert done.returncode == 0, done.stderr
    equal(arrays("devices"), arrays())


@pytest.mark.thorough
@case(74)
def test_a_killed_rank_ends_the_other_and_the_same_command_continues(undisturbed):
    kill_and_continue(undisturbed, 1)


@pytest.mark.slow
@case(75)
def test_a_killed_coordinator_ends_the_other_and_the_same_command_continues(undisturbed):
    kill_and_continue(undisturbed, 0)


def kill_and_continue(undisturbed, killed):
    with two(*LONG) as ranks:
        wait_for_rows(25)
        ranks[killed].kill()
        began = time.monotonic()
        code = ranks[1 - killed].wait(30)
        assert time.monotonic() - began < 15
        assert code == 9, output(1 - killed)
    assert re.search(r"error\[WORKER-LOST\]: rank \d of 2 lost another rank", output(1 - killed))
    with two(*LONG, resume=True) as ranks:
        assert codes(ranks) == [0, 0], output(0) + output(1)
    equal(arrays(), undisturbed[0])
    assert [row["policy/kl_mean"] for row in rows()] == undisturbed[1]


@pytest.mark.slow
@case(76)
@pytest.mark.parametrize("stuck", [1, 0])
def test_a_stuck_rank_ends_the_other(stuck):
    with two(*ENDLESS) as ranks:
        wait_for_rows(5)
        ranks[stuck].send_signal(signal.SIGSTOP)
        began = time.monotonic()
        assert ranks[1 - stuck].wait(60) == 9, output(1 - stuck)
        assert time.monotonic() - began < 30
    assert re.search(rf"has had no heartbeat from .*rank {stuck},? for 20 s", output(1 - stuck))


@pytest.mark.thorough
@case(78)
@pytest.mark.parametrize("receiver", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_signal_to_one_rank_stops_all_at_one_step(receiver):
    with two(*ENDLESS) as ranks:
        wait_for_rows(5)
        ranks[receiver].send_signal(signal.SIGTERM)
        assert codes(ranks) == [143, 143], output(0) + output(1)
    steps = [re.search(r"SIGTERM at iteration (\d+)", output(rank))[1] for rank in (0, 1)]
    assert steps[0] == steps[1]
    assert arrays()[0] == f"step-{64 * int(steps[0]):09d}"
    assert "--resume auto continues" in output(0)


BROKEN = """
import sys, jax, numpy as np
from surefoot.training import steppers
from surefoot.cli.parser import main

good = steppers.JaxStepper.advance

def advance(self, *given):
    state, rows = good(self, *given)
    learn = state.learn
    if jax.process_index() == 1 and int(learn.iteration) == 7:
        leaf = learn.obs_stats[0].mean
        mine = np.array(leaf.addressable_data(0))
        mine[0] = np.nextafter(mine[0], 1.0)  # the last bit
        broken = jax.make_array_from_single_device_arrays(
            leaf.shape, leaf.sharding, [jax.device_put(mine, jax.local_devices()[0])]
        )
        stats = learn.obs_stats[0]._replace(mean=broken)
        learn = learn._replace(obs_stats=(stats, *learn.obs_stats[1:]))
        state = state._replace(learn=learn)
    return state, rows

steppers.JaxStepper.advance = advance
sys.exit(main(["train", *sys.argv[1:]]))
"""


@pytest.mark.thorough
@case(80)
def test_one_bit_that_differs_ends_the_run_after_that_chunk():
    Path("broken.py").write_text(BROKEN)
    with two(*ENDLESS, program=("broken.py",)) as ranks:
        assert codes(ranks) == [5, 5], output(0) + output(1)
    for rank in (0, 1):
        assert "error[REPLICAS]: the state of rank 1 no longer equals" in output(rank)
        assert "at iteration 7" in output(rank)


@case(80)
@pytest.mark.parametrize("dtype", ["float32", "int8", "uint32", "bool"])
def test_a_fingerprint_depends_on_every_bit_and_its_place(dtype):
    from surefoot.parallel.replicas import fingerprint

    def of(*leaves):
        return int(fingerprint([np.asarray(leaf, dtype) for leaf in leaves]))

    whole = of([1, 0, 1, 1], [0, 1])
    others = [of([1, 0, 1, 0], [0, 1]), of([0, 1, 1, 1], [0, 1]), of([1, 0, 1, 1], [1, 0])]
    others += [of([0, 1], [1, 0, 1, 1])]
    assert len({whole, *others}) == 5
    assert of([1, 0, 1, 1], [0, 1]) == whole


@pytest.mark.thorough
@case(81)
@pytest.mark.parametrize(
    ("each", "text"),
    [
        (lambda rank: {"JAX_ENABLE_X64": str(rank)}, 'precision "float64", not "float32"'),
        (lambda rank: {"SUREFOOT_JOB_ID": f"night {rank}"}, 'job "night 1", not "night 0"'),
    ],
)
def test_ranks_that_would_compute_something_else_do_not_start(each, text):
    with two(*LONG, each=each) as ranks:
        assert codes(ranks) == [2, 2], output(0) + output(1)
    for rank in (0, 1):
        assert "error[RANKS]: rank 1 of 2" in output(rank)
        assert text in output(rank)
    assert not Path("run").exists()


@pytest.mark.thorough
@case(81)
def test_ranks_with_other_settings_do_not_start():
    with two(*LONG, own=(["--gamma", "0.99"], ["--gamma", "0.9"])) as ranks:
        assert codes(ranks) == [2, 2], output(0) + output(1)
    assert "train.gamma 0.9, not 0.99" in output(0)


@pytest.mark.thorough
def test_an_error_of_rank_0_ends_the_others_too():
    Path("run").mkdir()
    Path("run/notes.txt").write_text("of mine")
    with two(*LONG) as ranks:
        assert codes(ranks) == [2, 2], output(0) + output(1)
    assert "rank 0: " in output(1)
    assert os.listdir("run") == ["notes.txt"]


@pytest.mark.thorough
def test_a_directory_must_be_shared_by_all_ranks(tmp_path):
    there = tmp_path / "there"
    there.mkdir()
    for again in (False, True):
        with two(*LONG, resume=again, own=([], ["--out", str(there / "run")])) as ranks:
            assert codes(ranks) == [2, 2], output(0) + output(1)
        for rank in (0, 1):
            assert re.search(r"error\[RANKS\]: rank 1 \(on .*\) does not see", output(rank))
        assert not Path("run").exists()
        assert os.listdir(there) == []


@pytest.mark.parametrize(
    ("variables", "text"),
    [
        ({"JAX_COORDINATOR_ADDRESS": ""}, "found no cluster"),
        ({"JAX_COORDINATOR_ADDRESS": "nowhere"}, "'nowhere' is not HOST:PORT"),
        ({"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES"),
        ({"JAX_PROCESS_ID": "2"}, "process_id"),
    ],
)
def test_the_address_must_be_known(variables, text):
    assert start(0, free_port(), *LONG, **variables).wait(30) == 2
    assert text in output(0)


@pytest.mark.slow
def test_ranks_of_a_slurm_job_connect(undisturbed):
    job = {"SLURM_JOB_ID": str(free_port()), "SLURM_STEP_NODELIST": "127.0.0.1"}
    job |= {"SLURM_NTASKS": "2"} | dict.fromkeys(("JAX_COORDINATOR_ADDRESS",), "")
    numbers = ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")

    def each(rank):
        own = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
        return job | own | dict.fromkeys(numbers, "")

    with two(*LONG, each=each) as ranks:
        assert codes(ranks, 120) == [0, 0], output(0) + output(1)
    equal(arrays(), undisturbed[0])


def test_host_environments_are_for_one_process():
    with two("--steps", "64", swap={RUN[0]: "CartPole-v1"}) as ranks:
        assert codes(ranks) == [2, 2], output(0) + output(1)
    assert "--env-workers" in output(0)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_missing_ranks_are_reported_within_a_minute(rank):
    began = time.monotonic()
    assert start(rank, free_port(), *LONG).wait(70) == 9
    assert time.monotonic() - began < 65
    assert "error[WORKER-LOST]: not all ranks connected to 127.0.0.1" in output(rank)


@pytest.mark.slow
@case(85)
def test_ranks_on_one_machine_listen_on_it_alone():
    with two(*ENDLESS) as ranks:
        wait_for_rows(2)
        ours = {rank.pid for rank in ranks}
        listening = []
        for kind in ("tcp", "tcp6"):
            for line in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]:
                parts = line.split()
                if parts[3] == "0A" and owner_of(parts[9], ours):
                    listening.append(parts[1])
    assert listening
    local = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    assert {address.partition(":")[0] for address in listening} <= local


def owner_of(inode, pids):
    return any(
        os.readlink(link) == f"socket:[{inode}]"
        for pid in pids
        for link in Path(f"/proc/{pid}/fd").iterdir()
        if os.path.lexists(link)
    )
