"""The benchmarks: what a side answers, and that ratios which mean nothing are not reported."""

import json
import sys

import pytest

pytest.importorskip("benchmarks.peers.duel", reason="needs the repository's root on the path")

from benchmarks import contract_cost, lens_cost, parts
from benchmarks.peers import duel as duels
from benchmarks.peers.drawing import draw, label
from benchmarks.peers.tasks import DUELS, Duel

TINY = Duel("tiny", "rejax", "CartPole-v1", "gymnax:CartPole-v1", "ppo", 4, 16, 1, 32, 10, 10, 1.5)


@pytest.mark.thorough
def test_surefoots_side_trains_as_many_iterations_as_a_round_asks_for():
    side = duels.Side(sys.executable, "with_surefoot.py", TINY)
    try:
        side._process.stdin.write("\n\n")
        side._process.stdin.flush()
        for _ in range(2):
            answer = side._answer()
            assert answer["steps"] == 10 * 4 * 16
            assert answer["seconds"] > 0
    finally:
        side.close()


def test_a_side_that_ends_is_named_with_the_command_that_shows_why():
    with pytest.raises(SystemExit, match=r"to see why, run .*with_surefoot\.py"):
        duels.Side(sys.executable, "with_surefoot.py", TINY._replace(ours="no:Such-v0"))


def found(ours, theirs):
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {
        "settings": TINY._asdict(),
        "ours": {"ready_s": 1.0, "rates": ours},
        "theirs": {"ready_s": 1.0, "rates": theirs},
        "ratios": ratios,
        "ratio": None if duels.disagree(ratios) else sorted(ratios)[len(ratios) // 2],
    }


def test_a_ratio_is_the_median_of_pairs_and_none_where_they_disagree():
    said = duels.sentence(TINY, found([300, 330, 300], [100, 100, 90]))
    assert "ratio 3.30 (3.00 to 3.33), aimed at 1.5" in said
    said = duels.sentence(TINY, found([300, 330, 300], [100, 100, 30]))
    assert "no ratio: the pairs say 3.00 to 10.00" in said


def test_parts_whose_runs_disagree_are_not_reported(capsys):
    times = {"steady": [0.010, 0.011] * 10, "wild": [0.010, 0.030] * 10}
    reported = parts.show("parts", times)
    assert reported["steady"] == pytest.approx(10.5)
    assert reported["wild"] is None
    assert "runs disagree" in capsys.readouterr().out


def test_the_picture_has_a_row_a_duel(tmp_path):
    results = {"one": found([300, 330, 300], [100, 100, 90]), "two": found([3, 3, 3], [1, 2, 1])}
    draw(json.loads(json.dumps(results)), tmp_path / "peers.png")
    assert (tmp_path / "peers.png").stat().st_size > 10_000
    assert "4 x 16" in label(results["one"])


def test_every_duel_gives_both_sides_whole_minibatches():
    for duel in DUELS:
        assert (duel.num_envs * duel.num_steps) % duel.minibatch == 0
        assert (duels.SIDES / duels.HOME_OF[duel.peer][1]).is_file()
        # A round ends with a dispatch of a JAX-native run.
        assert not duel.ours.startswith("gymnax:") or duel.rounds % 10 == 0


@pytest.mark.thorough
@pytest.mark.parametrize("task", ["CartPole-v1", "tabular:corridor"])
def test_an_iteration_without_the_lens_is_timed(task):
    side = lens_cost._Side(task, "ppo", "without")
    try:
        assert side.turn() > 0
    finally:
        side.close()


def test_what_looking_at_environments_costs_is_a_ratio_of_rollouts():
    found = contract_cost.compare("CartPole-v1", 4)
    assert found["ratio"] == pytest.approx(found["with_ms"] / found["without_ms"], abs=0.01)
    assert found["with_ms"] > 0


@pytest.mark.thorough
def test_every_part_of_an_iteration_is_a_program_of_its_own():
    bench = parts.Bench("CartPole-v1", "trpo", {"critic": {"num_epochs": 1}}, num_steps=32)
    programs = {
        name: getattr(bench, name)()
        for name in ("values", "judgement", "diagnosis", "update", "critic")
    }
    times = parts.seconds_of(programs, 2)
    bench.close()
    assert all(len(each) == 2 and min(each) > 0 for each in times.values())
