"""A run on two devices is the run on one: the same numbers, to rounding."""

import re
import subprocess
import sys
from functools import cache

import jax
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

import surefoot as sf
from surefoot.config.presets import Groups, settle
from surefoot.config.settings import Critic, Network, Train
from surefoot.errors import ConfigError
from surefoot.networks.actor_critic import build
from surefoot.parallel.mesh import ONE, claim_devices, spread_over
from surefoot.training.learner import Learner
from surefoot.training.state import STATE_AXES
from surefoot.training.steppers import Compiled
from tests.support.cases import case
from tests.support.programs import quickly_built
from tests.support.scripted import scripted_jax, scripted_vector
from tests.support.trees import assert_same_bits, same_bits

TWO = spread_over(jax.local_devices()[:2])
TWO_DEVICES = sf.Parallel(devices=2)
SHORT = {"num_epochs": 2, "num_minibatches": 2}
RULES_HERE = {
    "vpg": sf.VPG(),
    "npg": sf.NPG(cg_iters=4),
    "trpo": sf.TRPO(cg_iters=4, max_backtracks=4),
    "ppo-kl": sf.PPOKL(**SHORT),
    "ppo": sf.PPO(**SHORT),
}
every_rule = pytest.mark.parametrize("rule", list(RULES_HERE))


@cache
def learner_of(rule, *, blocks=2, guard=False, joint=False, shared=False):
    env = scripted_jax()
    settings = settle(
        "Scripted",
        Groups(
            RULES_HERE[rule],
            Train(num_envs=8, num_steps=16, blocks=blocks, guard=guard),
            Network(hidden=(8,), shared_torso=shared),
            Critic(joint=joint) if joint else Critic(**SHORT),
        ),
    )
    return Learner(settings, env.spec, build(env.spec, settings.network), env)


@cache
def started(rule, **how):
    return jax.jit(learner_of(rule, **how).init)(0)


@cache
def iterated(rule, placement, **how):
    """One iteration with the expensive diagnostics, on these devices."""
    learner = learner_of(rule, **how)
    state = placement.put_state(started(rule, **how), STATE_AXES)
    with quickly_built():
        lens, looked = compiled(learner.collect_and_look, placement)(state)
        state, metrics = compiled(learner.iterate, placement)(state._replace(lens=lens))
    metrics = {name: float(value) for name, value in (looked | metrics).items()}
    return placement.whole(state), metrics


def compiled(function, placement):
    return Compiled(function, "", lambda what: None, placement)


def distance(one, other):
    """The largest difference of two trees, against the largest number of each leaf."""
    far = [0.0]
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        a, b = np.asarray(a, float), np.asarray(b, float)
        scale = np.max(np.abs(a), initial=0.0)
        far.append(np.max(np.abs(a - b), initial=0.0) / (scale or 1.0))
    return max(far)


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


HOWS = [
    ("trpo", {}),
    ("ppo", {"joint": True}),
    *(slow(rule, {}) for rule in RULES_HERE if rule != "trpo"),
    slow("trpo", {"guard": True}),
    slow("ppo", {"joint": True, "shared": True}),
    slow("trpo", {"blocks": 8}),
]


@pytest.mark.thorough
@pytest.mark.parametrize(("rule", "how"), HOWS, ids=str)
def test_one_iteration_on_two_devices_is_that_on_one(rule, how):
    (one, figures), (two, others) = iterated(rule, ONE, **how), iterated(rule, TWO, **how)
    began = started(rule, **how).learn.params["policy"]
    assert not same_bits(one.learn.params["policy"], began)
    assert_same_bits(one.env, two.env)
    assert distance(one.learn.params, two.learn.params) < 1e-5
    assert distance(one.learn, two.learn) < 1e-4
    assert list(figures) == list(others)
    for name, value in figures.items():
        assert value == pytest.approx(others[name], rel=1e-3, abs=1e-5, nan_ok=True), name


WHOLE = {
    "vpg": sf.VPG(),
    "npg": sf.NPG(cg_iters=4, fisher_fraction=1.0),
    "trpo": sf.TRPO(cg_iters=4, max_backtracks=4, fisher_fraction=1.0),
}
DRAWN = ("visitation", "kl_p99", "kl_worst_share", "kl_median", "log_ratio")
"""In names of figures that are taken of some rows: others in other blocks."""


@pytest.mark.thorough
@pytest.mark.parametrize("rule", [rule if rule == "trpo" else slow(rule) for rule in WHOLE])
def test_what_reads_all_rows_does_not_depend_on_the_blocks(rule):
    """A gradient that were summed over blocks, not averaged, would differ.

    Nor do figures: rows, their groups and what follows them stay together. With eight blocks each
    environment is a group of the gradient's noise, as with one.
    """
    env, ends = scripted_jax(), {}
    for blocks in (1, 2, 8):
        settings = settle(
            "Scripted",
            Groups(
                WHOLE[rule],
                Train(num_envs=8, num_steps=16, blocks=blocks),
                Network(hidden=(8,)),
                Critic(num_epochs=2, num_minibatches=1),
            ),
        )
        learner = Learner(settings, env.spec, build(env.spec, settings.network), env)
        with quickly_built():
            iterate, look = jax.jit(learner.iterate), jax.jit(learner.collect_and_look)
            state = jax.jit(learner.init)(0)
            for _ in range(2):
                lens, looked = look(state)
                state, figures = iterate(state._replace(lens=lens))
        ends[blocks] = state.learn.params, looked | figures
    for blocks in (2, 8):
        assert distance(ends[1][0], ends[blocks][0]) < 1e-4
        for name, value in ends[1][1].items():
            if any(part in name for part in DRAWN) or (blocks == 2 and "noise" in name):
                continue
            if blocks == 2 and name == "lens/expected_cosine":
                continue
            other = float(ends[blocks][1][name])
            assert float(value) == pytest.approx(other, rel=2e-3, abs=1e-5, nan_ok=True), name


@pytest.mark.thorough
@pytest.mark.parametrize("rule", ["trpo", *map(slow, ("vpg", "npg", "ppo-kl", "ppo"))])
def test_ten_updates_on_the_same_batches_stay_together_in_double_precision(rule, x64):
    learner = learner_of.__wrapped__(rule)
    state = jax.jit(learner.init)(0)
    with quickly_built():
        collect = jax.jit(learner.collect)
        rollouts = []
        for iteration in range(10):
            env, rollout, episodes = collect(at_iteration(state, iteration))
            rollouts.append((rollout, episodes))
            state = state._replace(env=env)
        ends = []
        for placement in (ONE, TWO):
            at = placement.put_state(at_iteration(state, 0), STATE_AXES)
            program = compiled(learner.learn, placement)
            for rollout, episodes in rollouts:
                at, _ = program(at, *placement.put_rollout(rollout, episodes))
            ends.append(placement.whole(at.learn.params))
    assert jax.tree.leaves(ends[0])[0].dtype == np.float64
    assert distance(*ends) < 1e-9


def at_iteration(state, iteration):
    return state._replace(learn=state.learn._replace(iteration=np.int32(iteration)))


@case(79)
@pytest.mark.slow
@pytest.mark.parametrize("env", ["jax", "host"])
@pytest.mark.filterwarnings("ignore:.*a step of this vector environment")
def test_a_whole_run_on_two_devices(tmp_path, env):
    """Its directory is read on one."""
    how = {
        "train": sf.Train(num_envs=4, num_steps=16, dispatch=1, reset_at_checkpoints=False),
        "network": sf.Network(hidden=(8,)),
        "critic": sf.Critic(**SHORT),
    }
    made = scripted_jax() if env == "jax" else sf_vector
    ends = {}
    for devices in (1, 2):
        train = sf.Train(**{**vars(how["train"]), "blocks": 2})
        out = tmp_path / str(devices)
        with quickly_built():
            run = sf.train(
                made() if env == "host" else made, "trpo", steps=64 * 2, out=out,
                parallel=sf.Parallel(devices=devices), **{**how, "train": train},
            )  # fmt: skip
        ends[devices] = run
    assert distance(ends[1].state.learn.params, ends[2].state.learn.params) < 1e-4
    loaded = sf.load(tmp_path / "2", env=made() if env == "host" else made)
    assert_same_bits(loaded.state.learn.params, ends[2].state.learn.params)


def sf_vector():
    return scripted_vector(AutoresetMode.NEXT_STEP, 4)


@pytest.mark.thorough
def test_a_run_continues_on_another_number_of_devices(tmp_path):
    how = {
        "train": sf.Train(num_envs=4, num_steps=16, dispatch=1, blocks=2, checkpoint_every=64),
        "network": sf.Network(hidden=(8,)),
        "critic": sf.Critic(**SHORT),
    }
    env = scripted_jax()
    with quickly_built():
        whole = sf.train(
            env, "trpo", steps=256, parallel=TWO_DEVICES, out=tmp_path / "whole", **how
        )
        sf.train(
            env, "trpo", steps=256, parallel=TWO_DEVICES, out=tmp_path / "cut", **how,
            callback=lambda row: row["iteration"] == 2,
        )  # fmt: skip
        same = sf.resume(tmp_path / "cut", env=env)
        assert_same_bits(same.state.learn.params, whole.state.learn.params)
        sf.train(
            env, "trpo", steps=256, parallel=TWO_DEVICES, out=tmp_path / "again", **how,
            callback=lambda row: row["iteration"] == 2,
        )  # fmt: skip
        with pytest.warns(UserWarning, match="devices 2 to 1.*need not equal"):
            other = sf.resume(tmp_path / "again", env=env, parallel=sf.Parallel(devices=1))
    assert distance(other.state.learn.params, whole.state.learn.params) < 1e-3


def test_there_are_as_many_blocks_as_devices_by_default():
    def blocks(train):
        groups = Groups(sf.TRPO(), train, Network(), Critic())
        return settle("x", groups, devices=4).train.blocks

    assert blocks(Train()) == 4
    assert blocks(Train(blocks=8)) == 8


def test_impossible_numbers_of_devices_are_refused():
    with pytest.raises(ConfigError, match=r"devices 64: this machine has a CPU of \d+ cores"):
        claim_devices(64)
    with pytest.raises(ConfigError, match="devices must be at least 1"):
        claim_devices(0)
    with pytest.raises(ConfigError, match="2 devices cannot share 3 blocks of environments"):
        sf.train(
            scripted_jax(),
            steps=64,
            train=sf.Train(num_envs=6, blocks=3),
            parallel=TWO_DEVICES,
        )
    with pytest.raises(ConfigError, match=r"2 blocks do not divide num_envs 3; nearest.*1 and 3"):
        sf.train(scripted_jax(), steps=64, train=sf.Train(num_envs=3), parallel=TWO_DEVICES)
    with pytest.raises(ConfigError, match=r"num_minibatches 32 does not divide .*2 blocks of 16"):
        sf.train(
            scripted_jax(),
            "ppo",
            steps=64,
            train=sf.Train(num_envs=4, num_steps=8),
            parallel=TWO_DEVICES,
        )


@pytest.mark.thorough
def test_devices_exchange_no_rows():
    """Of each row at most one number, its KL; and a gradient once a step."""
    env, steps = scripted_jax(), 512
    settings = settle(
        "Scripted",
        Groups(
            RULES_HERE["ppo"],
            Train(num_envs=8, num_steps=steps, blocks=2),
            Network(hidden=(8,)),
            Critic(**SHORT),
        ),
    )
    learner = Learner(settings, env.spec, build(env.spec, settings.network), env)
    state = TWO.put_state(jax.jit(learner.init)(0), STATE_AXES)
    with quickly_built():
        text = compiled(learner.iterate, TWO).program(state).as_text()
    moved = re.findall(r"= (.*?) (?:all-gather|all-to-all|collective-permute)\(", text)
    summed = re.findall(r"= (.*?) all-reduce\(", text)
    assert most_numbers(moved) == 8 * steps
    assert most_numbers(summed) < 8 * steps
    assert "reduce-scatter" not in text  # its sums are wrong for large parts on CPUs (gloo)
    assert "all-to-all" not in text
    # A minibatch of the critic's fit has one sum; of the policy's two more, for its advantages.
    loop = r'op_name="jit\(iterate\)/while/body[^"]*while/body'
    in_minibatch = re.findall(rf"= (.*?) all-reduce\(.*{loop}", text)
    assert sorted(shapes_of(in_minibatch)) == sorted(["3", "", "53", "35"])
    # And a loop of one device does not wait for the others' loops to end.
    assert not re.search(r"= pred\[\] all-reduce\(.*vmap\(\)/while", text)


def shapes_of(results):
    """Of each array among the results of operations, as HLO writes them."""
    return re.findall(r"\[([\d,]*)\]", " ".join(results))


def most_numbers(results):
    """Of the largest array among them."""
    return max(int(np.prod([int(n) for n in s.split(",") if n])) for s in shapes_of(results))


@pytest.mark.thorough
def test_devices_from_the_shell(tmp_path):
    words = ["train", "gymnax:CartPole-v1", "ppo", "--devices", "2", "--steps", "4096", "--json"]
    words += ["--num-envs", "4", "--num-steps", "128", "--num-epochs", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "surefoot", *words, "--out", tmp_path / "run"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert '"blocks": 2' in done.stdout
    assert '"devices": 2' in (tmp_path / "run" / "config.json").read_text()
