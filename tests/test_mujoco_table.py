"""The MuJoCo table: its rule is kept by the plan, and a stopped queue goes on."""

import json

import gymnasium
import numpy as np
import pytest
from scipy import stats

import surefoot as sf

pytest.importorskip("benchmarks.mujoco.train", reason="needs the repository's root on the path")

from benchmarks.mujoco import early
from benchmarks.mujoco.__main__ import main
from benchmarks.mujoco.scores import as_table, standings
from benchmarks.mujoco.settings import SETTINGS
from benchmarks.mujoco.studies import STUDIES, Planned
from benchmarks.mujoco.table import aggregate, iqm_interval, kept, table
from benchmarks.mujoco.tasks import BY_ENV, TASKS, TUNING
from benchmarks.mujoco.train import missing, settings_of, train_all

PLANNED = [run for study in STUDIES.values() for run in study()]


def test_every_run_has_a_name_of_its_own_and_settings_that_are_allowed():
    assert len({run.name for run in PLANNED}) == len(PLANNED)
    for run in PLANNED:
        if run.setting != "zoo":
            assert settings_of(run).train.seed == run.seed


def test_settings_are_compared_on_the_tuning_tasks_and_seeds_alone():
    for run in PLANNED:
        if run.setting in SETTINGS:
            assert BY_ENV[run.env] in TUNING
            assert 1000 <= run.seed <= 1007
        else:
            assert run.seed < 10


def test_a_setting_tells_tasks_apart_by_their_dimensions_alone():
    a, b = BY_ENV["HalfCheetah-v5"], BY_ENV["Walker2d-v5"]
    assert a.actions == b.actions
    for setting in SETTINGS.values():
        assert setting.tables(a) == setting.tables(b)


@pytest.mark.thorough
def test_the_dimensions_are_those_of_the_tasks():
    for task in TASKS:
        with gymnasium.make(task.env) as env:
            assert env.action_space.shape == (task.actions,)


def record(setting, env, final, best=None):
    return {
        "setting": setting,
        "env": env,
        "final": {"mean": final},
        "evaluations": [[1, best or final, 0.0]],
    }


def test_a_settings_score_is_the_mean_of_capped_shares_and_the_worst_task_decides_between_equals():
    def all_tasks(setting, shares):
        return [
            record(setting, task.env, share * task.bar)
            for task, share in zip(TUNING, shares, strict=True)
        ]

    capped = all_tasks("capped", [3.0, 1.0, 0.5, 0.5])
    even = all_tasks("even", [0.8, 0.8, 0.8, 0.8])
    lacking = all_tasks("lacking", [1.0] * 4)[:3]
    found = standings([*capped, *even, *lacking])
    assert [each.setting for each in found] == ["even", "capped"]
    assert found[1].score == pytest.approx((1.2 + 1.0 + 0.5 + 0.5) / 4)
    assert found[1].worst == pytest.approx(0.5)
    assert "| capped | 1 | **0.800** | 1.20 | 1.00 | 0.50 | 0.50 | 1.00 |" in as_table(found)


def test_the_best_of_a_run_is_never_below_its_end():
    lost = [record("lost", task.env, task.bar / 2, task.bar) for task in TUNING]
    kept = [record("kept", task.env, task.bar, task.bar / 2) for task in TUNING]
    assert {s.setting: s.kept for s in standings([*lost, *kept])} == {"lost": 0.5, "kept": 1.0}


@pytest.mark.thorough
def test_a_finished_run_is_one_file_and_is_not_trained_again(tmp_path):
    runs = [
        Planned("tiny", "noise", "InvertedPendulum-v5", "trpo", seed, 30_000) for seed in (1, 2)
    ]
    places = {"runs": tmp_path / "runs", "results": tmp_path / "results", "peers": tmp_path}
    assert train_all(runs[:1], **places, jobs=1) == 0
    file = places["results"] / f"{runs[0].name}.json"
    kept = json.loads(file.read_text())
    assert kept["final"]["mean"] == pytest.approx(sum(kept["final"]["returns"]) / 20, abs=0.01)
    assert kept["evaluations"]
    assert kept["curve"][-1][0] == kept["evaluations"][-1][0]
    assert kept["settings"]["train"]["gamma"] == BY_ENV["InvertedPendulum-v5"].gamma
    assert missing(runs, places["results"]) == runs[1:]
    written = file.stat().st_mtime_ns
    assert train_all(runs[:1], **places, jobs=1) == 0
    assert file.stat().st_mtime_ns == written


def scored(env, rule, seed, final, best=None):
    return record("default", env, final, best) | {"rule": rule, "seed": seed, "seconds": 90}


def test_a_line_of_the_table_says_mean_worst_and_best_and_marks_a_bar_that_is_reached():
    hopper = [scored("Hopper-v5", "trpo", s, 3400.0 + 100 * s, 3900.0) for s in range(5)]
    reacher = [scored("Reacher-v5", "ppo", s, -4.5 - s) for s in range(2)]
    first, second = table([*reacher, *hopper]).splitlines()[2:]
    assert first.startswith(
        "| Hopper-v5 | trpo | 5 | **3600** | 3404 to 3796 | 158 | 3600 | 3400 |"
    )
    assert first.endswith("| 3900 | 3450 | 90 |")
    # Too few seeds for an interval of their mean, and below the bar.
    assert second.startswith("| Reacher-v5 | ppo | 2 | -5.00 | - | 0.71 | -5.00 | -5.50 |")


def test_rules_are_compared_over_tasks_whose_bar_is_positive():
    tasks = ["Hopper-v5", "Ant-v5", "Reacher-v5"]
    runs = [scored(env, "trpo", s, 0.9 * BY_ENV[env].bar) for env in tasks for s in range(4)]
    assert "| trpo | 2 | 8 | 0.90 | 0.90 to 0.90 | 12 of 12 |" in aggregate(runs)


@pytest.mark.parametrize(
    ("final", "best", "is_kept"),
    [(95.0, 100.0, True), (94.0, 100.0, False), (-4.2, -4.0, True), (-4.3, -4.0, False)],
)
def test_a_run_keeps_what_it_learned_within_five_percent_of_gains_and_of_costs(
    final, best, is_kept
):
    assert kept(scored("Hopper-v5", "trpo", 0, final, best)) is is_kept


def test_the_interval_of_an_interquartile_mean_is_about_that_mean_and_narrows_with_seeds():
    generator = np.random.default_rng(1)
    few, many = generator.normal(size=(2, 10)), generator.normal(size=(2, 160))
    found, narrow = iqm_interval(list(few)), iqm_interval(list(many))
    assert found.low < stats.trim_mean(few.ravel(), 0.25) < found.high
    assert 2.5 < (found.high - found.low) / (narrow.high - narrow.low) < 6.0


@pytest.mark.thorough
def test_what_is_looked_at_early_is_of_the_policies_a_window_apart(tmp_path):
    size = {"num_envs": 1, "num_steps": 64, "lens_every": 0}
    run = sf.train(
        "InvertedPendulum-v5",
        steps=60 * 64,
        out=tmp_path / "run",
        preset="none",
        callback=early.Early(),
        **size,
    )
    found = json.loads((tmp_path / "run" / early.FILE).read_text())
    # Ten steps of one direction each: between a random walk's root of ten and a straight line.
    assert 0.1 < found["path_efficiency"] < 1.3
    taken = [row["policy/kl_mean"] for row in run.rows[2:12]]
    assert 0.01 * sum(np.sqrt(taken)) ** 2 < found["kl_new_states"] < 2 * sum(np.sqrt(taken)) ** 2
    assert 0.0 <= found["saturation"] < 0.5
    assert all(
        0.0 <= found[f"{net}_{what}"] <= 1.0
        for net in ("policy", "critic")
        for what in ("rank", "dead")
    )


def test_rank_and_dead_units_are_those_of_features_made_to_have_them():
    generator = np.random.default_rng(0)
    one = np.outer(generator.normal(size=200), generator.normal(size=8))
    assert early._rank(one) == pytest.approx(1 / 8)
    full = generator.normal(size=(200, 8))
    assert early._rank(full) == 1.0
    full[:, :2] = 0.7
    assert early._dead(full) == pytest.approx(2 / 8)


@pytest.mark.parametrize(
    ("given", "said"), [(["list", "screens"], "no study screens"), (["table", "long"], "no record")]
)
def test_what_the_table_cannot_do_is_one_line(given, said, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["mujoco", *given, "--results", str(tmp_path)])
    with pytest.raises(SystemExit):
        main()
    assert said in capsys.readouterr().err.splitlines()[-1]
