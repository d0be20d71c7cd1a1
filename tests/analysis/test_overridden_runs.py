"""A run that went on with other settings is looked at with the settings of each time."""

import json
import shutil
from dataclasses import replace
from functools import partial

import gymnasium
import numpy as np
import pytest

import surefoot as sf
from surefoot.analysis.compare import read_runs
from surefoot.analysis.plots.report import Extent, draw_panels
from surefoot.analysis.probe.choose import choose_update
from surefoot.analysis.probe.updates import Rerun, find_update
from surefoot.analysis.report import report
from surefoot.analysis.report.judgement import judge
from surefoot.analysis.report.learning import learning_section, summarize_returns
from surefoot.analysis.report.promises import promise_section
from surefoot.analysis.report.section import Facts
from surefoot.analysis.report.steps import distance_section, solver_section
from surefoot.analysis.report.table import table_of
from surefoot.analysis.report.totals import totals
from surefoot.config.presets import preset, settle
from surefoot.config.settings import Parallel
from surefoot.envs.registry import find_env
from surefoot.errors import CheckpointError
from surefoot.storage.checkpoint import name_arrays, read_checkpoint
from surefoot.storage.run_directory import RunDirectory
from surefoot.training.api import Job, train_or_resume
from surefoot.training.callback import Callback, as_callback
from surefoot.training.run import open_run
from surefoot.training.trainer import Resources
from tests.support.cases import case
from tests.support.runs_to_report import rows_of_a_run, write_run
from tests.support.shell import same_bits

# Other steps, and so another schedule, are what is asked for here.
pytestmark = pytest.mark.filterwarnings("ignore:max_kl falls over the whole run")

BATCH = 32
JAX = "gymnax:CartPole-v1"


def short_cartpole(**how):
    """CartPole whose episodes end after five steps, so that a run resets after four updates."""
    return gymnasium.wrappers.TimeLimit(gymnasium.make("CartPole-v1", **how).unwrapped, 5)


def go_on(env, out, *, override=(), stop_at=None, rule="trpo", network=(), kwargs=None, **train):
    """Train or continue a small run with these settings, and stop after an update."""
    usual = {"num_envs": 2, "num_steps": BATCH // 2, "dispatch": 1, "keep_checkpoints": 99}
    usual |= {"checkpoint_every": 1, "lens_every": 0, "eval_episodes": 1}
    max_kl = {"max_kl": train.pop("max_kl")} if "max_kl" in train else {}
    source = find_env(env, kwargs or {})
    settings = settle(
        source.env_id,
        preset(source.env_id, rule, "none"),
        changes={
            "rule": max_kl,
            "train": usual | train,
            "network": {"hidden": (8,), **dict(network)},
            "critic": {"num_epochs": 1, "num_minibatches": 1},
        },
        env_kwargs=kwargs,
    )
    callback = as_callback(lambda row: row["iteration"] == stop_at)
    job = Job(env, source, settings, out=out)
    return train_or_resume(job, Resources(Parallel()), callback, override=override)


def found_update(path, iteration, *, replay=False, env=None):
    """The run with the settings of an update, and the update, made again."""
    directory = RunDirectory(path)
    chosen = choose_update(directory, iteration)
    rerun = Rerun(partial(open_run, path, env=env), directory.history, iteration)
    try:
        found = find_update(chosen, rerun, replay=replay, callback=Callback())
        return rerun.run, found
    finally:
        rerun.close()


def stored_policy(path, iteration):
    """The policy after an update, as the checkpoint after the next one remembers it."""
    for each in choose_update(RunDirectory(path), None).stored:
        if each.iteration == iteration + 1:
            arrays = read_checkpoint(each.path).arrays
            start = "lens/params/policy/"
            return {n.removeprefix(start): a for n, a in arrays.items() if n.startswith(start)}
    raise AssertionError(iteration)


def without_checkpoints(path, *iterations):
    for each in choose_update(RunDirectory(path), None).stored:
        if each.iteration in iterations:
            shutil.rmtree(each.path)


@pytest.fixture(scope="module")
def jax_run(tmp_path_factory):
    """Two updates of trpo, two more with another radius, and two of npg with more steps each."""
    path = tmp_path_factory.mktemp("jax") / "run"
    go_on(JAX, path, steps=6 * BATCH, stop_at=2)
    go_on(JAX, path, override=["rule.max_kl"], steps=6 * BATCH, max_kl=0.003, stop_at=4)
    go_on(JAX, path, override=["rule", "num_steps", "steps"], rule="npg", max_kl=0.003,
          num_steps=BATCH, steps=12 * BATCH)  # fmt: skip
    return path


@pytest.fixture(scope="module")
def host_run(tmp_path_factory):
    """Three updates, stopped in the middle of episodes; four more with another radius."""
    path = tmp_path_factory.mktemp("host") / "run"
    go_on(short_cartpole, path, steps=8 * BATCH, stop_at=3)
    go_on(short_cartpole, path, override=["max_kl", "steps"], steps=7 * BATCH, max_kl=0.003)
    return path


@pytest.mark.thorough
@case(117)
def test_each_update_of_a_jax_native_run_is_made_again_to_the_bit_on_either_side_of_a_change(
    jax_run,
):
    assert [until for until, _ in RunDirectory(jax_run).history.earlier] == [2, 4]
    for iteration in (2, 3, 5):
        run, found = found_update(jax_run, iteration)
        assert found.source.endswith("equal to the stored one bit for bit"), iteration
        rule = "trpo" if iteration <= 4 else "npg"
        radius = 0.01 if iteration <= 2 else 0.003
        assert (run.settings.rule.name, run.settings.rule.max_kl) == (rule, radius)
        assert len(found.batch.valid) == (BATCH if iteration > 4 else BATCH // 2)


@pytest.mark.thorough
@case(117)
def test_a_replay_through_changes_makes_the_runs_own_update(jax_run, tmp_path):
    path = shutil.copytree(jax_run, tmp_path / "run")
    wanted = stored_policy(path, 5)
    without_checkpoints(path, 1, 2, 3, 4, 5)
    _, found = found_update(path, 5, replay=True)
    assert found.source.startswith("replayed from iteration 0")
    assert same_bits(name_arrays(found.new), wanted)


@case(117)
@pytest.mark.thorough
def test_a_change_in_the_middle_of_episodes_is_followed_by_updates_that_are_made_again(
    host_run, tmp_path
):
    """Where a host run goes on with other settings, it begins new episodes."""
    (stopped,) = [c for c in choose_update(RunDirectory(host_run), 4).stored if c.iteration == 3]
    assert not read_checkpoint(stopped.path).exact
    run, found = found_update(host_run, 4, env=short_cartpole)
    assert found.source.endswith("equal to the stored one bit for bit")
    assert run.settings.rule.max_kl == 0.003
    run, found = found_update(host_run, 1, env=short_cartpole)
    assert found.source.endswith("equal to the stored one bit for bit")
    assert run.settings.rule.max_kl == 0.01
    # Also where nothing is repeated, the probe is of the settings of the update.
    run, found = found_update(host_run, 2, env=short_cartpole)
    assert found.source.startswith("both policies are the run's own")
    assert run.settings.rule.max_kl == 0.01
    path = shutil.copytree(host_run, tmp_path / "run")
    wanted = stored_policy(path, 5)
    without_checkpoints(path, 1, 2, 3, 4, 5)
    _, found = found_update(path, 5, replay=True, env=short_cartpole)
    assert found.source.startswith("replayed from iteration 0")
    assert same_bits(name_arrays(found.new), wanted)


@pytest.mark.thorough
def test_a_probe_of_an_old_update_is_of_the_settings_of_its_time(jax_run):
    found = sf.probe_run(jax_run, 2, budget=1500)
    assert "bit for bit" in found.source
    assert found.title.endswith("(trpo on gymnax:CartPole-v1)")


def test_a_run_knows_the_settings_of_its_updates(host_run, tmp_path):
    run = sf.load(host_run, env=short_cartpole)
    assert [run.settings_at(k).rule.max_kl for k in (1, 3, 4, 8)] == [0.01, 0.01, 0.003, 0.003]
    assert replace(run, directory=None).settings_at(1) == run.settings
    # A run of before there was a history is read and resumed as ever.
    copy = shutil.copytree(host_run, tmp_path / "old")
    config = json.loads((copy / "config.json").read_text())
    del config["history"]
    (copy / "config.json").write_text(json.dumps(config))
    old = sf.load(copy, env=short_cartpole)
    assert old.settings_at(1) == old.settings == old.settings_at(9)
    assert len(sf.resume(copy, env=short_cartpole).rows) == 7


@pytest.mark.thorough
def test_going_back_before_a_change_drops_it_and_two_in_a_row_are_one(tmp_path):
    path = tmp_path / "run"
    go_on(short_cartpole, path, steps=12 * BATCH, stop_at=5)
    go_on(short_cartpole, path, override=["max_kl"], max_kl=0.5, steps=12 * BATCH, stop_at=6)
    history = RunDirectory(path).history
    assert [(until, old.rule.max_kl) for until, old in history.earlier] == [(5, 0.01)]
    # Back to the scheduled checkpoint of iteration 4, before the change: the radius is now that
    # of all that comes after it.
    sf.resume(path, env=short_cartpole, exact=True, callback=lambda row: row["iteration"] == 5)
    history = RunDirectory(path).history
    assert [until for until, _ in history.earlier] == [4]
    for radius in (0.25, 0.125):
        go_on(short_cartpole, path, override=["max_kl", "steps"], max_kl=radius, steps=5 * BATCH)
        history = RunDirectory(path).history
        earlier = [(until, old.rule.max_kl) for until, old in history.earlier]
        assert (earlier, history.now.rule.max_kl) == ([(4, 0.01), (5, 0.5)], radius)
    run = go_on(short_cartpole, path, override=["max_kl", "steps"], max_kl=0.125, steps=6 * BATCH)
    assert [run.settings_at(k).rule.max_kl for k in range(1, 7)] == [0.01] * 4 + [0.5, 0.125]


def test_a_run_that_is_refused_keeps_its_settings_and_history(host_run, tmp_path):
    path = shutil.copytree(host_run, tmp_path / "run")
    before = (path / "config.json").read_text()
    with pytest.raises(CheckpointError, match="is of another run"):
        go_on(short_cartpole, path, override=["train", "rule"], num_envs=4, steps=9 * BATCH)
    assert (path / "config.json").read_text() == before


@pytest.mark.thorough
@pytest.mark.usefixtures("empty_directory")
def test_the_best_policy_plays_as_it_did_and_where_it_did(tmp_path):
    """Also where its activation or the environment's arguments were overridden since."""
    path, level = tmp_path / "run", "broken_envs:Level"
    evaluated = {"steps": 4 * BATCH, "eval_every": 1}
    go_on(level, path, stop_at=2, kwargs={"level": 1}, **evaluated)
    first = sf.load(path, env=level, best=True)
    obs = np.random.default_rng(0).normal(size=(500, 2)).astype(np.float32)
    actions = first.policy(obs)
    override = ["activation", "env_kwargs"]
    relu = {"activation": "relu"}
    go_on(level, path, override=override, kwargs={"level": 0}, network=relu, **evaluated)
    best, newest = (sf.load(path, env=level, best=best) for best in (True, False))
    assert (best.iteration <= 2, newest.iteration) == (True, 4)
    assert best.settings == best.settings_at(best.iteration) != newest.settings
    np.testing.assert_array_equal(best.policy(obs), actions)
    returns = [run.evaluate(1)["return_mean"] for run in (best, newest)]
    assert returns == [10.0, 0.0]


# Reports and comparisons


def write_changed(path, rows, *entries, **config):
    history = [{"until_iteration": until, "settings": old} for until, old in entries]
    return write_run(path, rows, history=history, **config)


def facts_of(path):
    directory = RunDirectory(path)
    return Facts(path, directory.history, directory.config, table_of(directory.rows()))


def test_a_report_says_when_settings_changed_and_what_and_marks_it(tmp_path, monkeypatch):
    path = write_changed(
        tmp_path / "changed",
        rows_of_a_run(60),
        (20, {"rule": {"max_kl": 0.02}}),
        (40, {"rule": {"damping": 0.3}, "train": {"gamma": 0.9}}),
    )
    drawn: list[Extent] = []
    monkeypatch.setattr(
        "surefoot.analysis.report.draw_panels",
        lambda panels, extent, *_, **how: drawn.append(extent) or "<svg/>",
    )
    plain = report(write_run(tmp_path / "plain", rows_of_a_run(60)))
    assert plain.summary["settings_changes"] == []
    assert len(plain.summary["verdict"]) == 3
    assert set(drawn) == {Extent(60 * 2048, ())}
    made = report(path)
    said = (
        "Settings changed: rule.max_kl 0.02 to 0.01 after update 20.",
        "Settings changed: rule.damping 0.3 to 0.1, train.gamma 0.9 to 0.99 after update 40.",
    )
    assert tuple(made.summary["verdict"][1:3]) == said
    assert all(line in made.page for line in said)
    first, _ = made.summary["settings_changes"]
    assert first == {"iteration": 20, "values": {"rule.max_kl": (0.02, 0.01)}}
    assert json.dumps(made.summary)
    assert drawn[-1] == Extent(60 * 2048, (20 * 2048, 40 * 2048))
    panel = distance_section(facts_of(path)).panels[0]
    assert draw_panels([panel], Extent(9.0, [3.0])) != draw_panels([panel], Extent(9.0))


def test_a_report_judges_rows_by_the_settings_of_their_time(tmp_path):
    constant = {"name": "trpo", "final_fraction": 1.0}
    rows = rows_of_a_run(60)
    for row in rows:
        row["update/radius"] = 0.02 if row["iteration"] <= 30 else 0.01
    old = {"rule": {"max_kl": 0.02}, "train": {"eval_episodes": 4, "gamma": 0.9}}
    facts = facts_of(write_changed(tmp_path / "run", rows, (30, old), rule=constant))
    panel = distance_section(facts).panels[0]
    (radius,) = [each for each in panel.series if each.label == "radius"]
    np.testing.assert_array_equal(radius.values, [0.02] * 30 + [0.01] * 30)
    # Intervals of evaluations: of four episodes, and of twenty.
    panel = learning_section(facts, summarize_returns(facts)).panels[0]
    (bars,) = [each for each in panel.series if each.label == "evaluations"]
    deviations = [row["eval/return_std"] for row in rows if "eval/return_std" in row]
    halves = 0.5 * (bars.band[1] - bars.band[0]) / deviations
    np.testing.assert_allclose(halves[[0, -1]], [3.1824463 / 2, 2.0930241 / 20**0.5])
    sums = totals(facts.table, 8)
    meaning = promise_section(facts, sums, judge(facts, summarize_returns(facts), sums)).meaning
    assert "(the discount is 0.9), and later a reward 100 steps" in meaning


def test_the_epochs_of_a_run_are_compared_to_those_that_were_planned(tmp_path):
    rows = rows_of_a_run(60, rule="ppo")
    ppo = {"name": "ppo", "num_epochs": 40}
    path = write_changed(tmp_path / "run", rows, (59, {"rule": {"num_epochs": 10}}), rule=ppo)
    found = solver_section(facts_of(path))
    assert "10 of 15 epochs run" in found.finding
    assert found.level == "green"
    assert solver_section(facts_of(write_run(tmp_path / "all", rows, rule=ppo))).level == "amber"


@pytest.fixture
def finished(tmp_path):
    """`finished(name, seed, *entries)`: the directory of a finished run with a score."""

    def make(name, seed, *entries):
        steps = 2048 * 60
        path = tmp_path / name
        write_changed(path, rows_of_a_run(60), *entries, train={"steps": steps, "seed": seed})
        score = {"return_mean": 9.0, "episodes": 3, "env_steps": steps}
        (path / "score.json").write_text(json.dumps(score))
        return path

    return make


def test_a_run_that_changed_on_its_way_is_no_seed_of_the_settings_it_ended_with(finished):
    old = {"rule": {"max_kl": 0.02}}
    plain, changed = finished("plain", 0), finished("changed", 1, (20, old))
    result = read_runs([plain, changed], episodes=3)
    assert result.rules("CartPole-v1") == ("trpo#1", "trpo#2")
    assert result.differences["CartPole-v1"] == (
        "changed on the way: trpo#1 none, trpo#2 rule.max_kl 0.02 to 0.01 after update 20",
    )
    # Those that changed alike are of one setting, which the table names.
    result = read_runs([changed, finished("like", 2, (20, old))], episodes=3)
    assert result.rules("CartPole-v1") == ("trpo",)
    assert result.differences["CartPole-v1"] == (
        "changed on the way: rule.max_kl 0.02 to 0.01 after update 20 in every run",
    )
    assert read_runs([plain], episodes=3).differences["CartPole-v1"] == ()
