"""The MuJoCo table: its rule is kept by the plan, and a stopped queue goes on."""

import json

import gymnasium
import pytest

pytest.importorskip("benchmarks.mujoco.queue", reason="needs the repository's root on the path")

from benchmarks.mujoco.queue import missing, settings_of, train_all
from benchmarks.mujoco.scores import as_table, standings
from benchmarks.mujoco.settings import SETTINGS
from benchmarks.mujoco.studies import STUDIES, Planned
from benchmarks.mujoco.tasks import BY_ENV, TASKS, TUNING

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
