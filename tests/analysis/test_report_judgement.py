"""Verdicts of a report: decided once, dated, and followed by advice that this run can take."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest

import surefoot.analysis.plots.report
import surefoot.analysis.report
from surefoot.analysis.plots.report import Extent, Panel, PanelSeries, draw_panels
from surefoot.analysis.report import report
from surefoot.analysis.report.judgement import FEWEST_GAINS
from surefoot.analysis.report.learning import summarize_returns
from surefoot.analysis.report.section import Facts
from surefoot.analysis.report.table import table_of
from surefoot.config.history import SettingsHistory
from surefoot.config.presets import preset, settle
from tests.support.runs_to_report import rows_of_a_run, write_run


def facts_of(rows):
    settings = settle("CartPole-v1", preset("CartPole-v1", "trpo"))
    return Facts(Path("run"), SettingsHistory(settings), {}, table_of(rows))


@pytest.fixture(autouse=True)
def _without_pictures(monkeypatch):
    """Words alone: drawing takes most of a report's time."""
    monkeypatch.setattr(surefoot.analysis.report, "_picture", lambda *_: "")


def finding(of, section):
    return of.summary["sections"][section]["finding"]


def level(of, section):
    return of.summary["sections"][section]["level"]


def advice(of, section):
    pattern = rf"<section id='{section}'>(?:(?!</section>).)*<p class='advice[^>]*>(.*?)</p>"
    return "".join(re.findall(pattern, of.page, re.DOTALL))


def with_promises(share, kept, ratio, *, late=None):
    """Rows whose promises have this signal share, realised share of it, and filtered ratio."""
    rows = rows_of_a_run()
    for before, row in itertools.pairwise(rows):
        row["lens/promised_gain"] = 4.0
        before["lens/signal_share"] = row["lens/signal_share"] = share
        is_late = row["iteration"] > 54
        gain = 4.0 * share * (late if is_late and late is not None else kept)
        row |= {"lens/realised_gain": gain}
        row |= {"lens/realised_low": gain - 0.01, "lens/realised_high": gain + 0.01}
        row |= {"lens/filtered_ratio": ratio}
        row |= {"lens/filtered_low": ratio - 0.1, "lens/filtered_high": ratio + 0.1}
    return rows


@pytest.mark.parametrize("share", [0.1, 0.7])
@pytest.mark.parametrize("kept", [-0.5, 0.3, 0.9, 1.3])
@pytest.mark.parametrize("ratio", [-0.2, 0.3, 0.8])
@pytest.mark.parametrize("late", [None, -0.5])
def test_both_sections_on_promises_give_one_verdict(tmp_path, share, kept, ratio, late):
    made = report(write_run(tmp_path / "run", with_promises(share, kept, ratio, late=late)))
    assert level(made, "promise") == level(made, "lies")
    assert advice(made, "promise") == advice(made, "lies")
    well = share > 0.2 and kept > 0.5 and ratio > 0.5 and late is None
    assert (level(made, "promise") == "green") == well
    # What one section says of the whole run is next to the other's ratio of the newest updates.
    (whole,) = re.findall(r"(-?\d+) % of the signal", finding(made, "promise"))
    assert f"; {whole} % over the whole run)" in finding(made, "lies")


def test_promises_that_came_true_only_of_late_ask_for_no_smaller_step_now(tmp_path):
    made = report(write_run(tmp_path / "run", with_promises(0.7, 0.3, 0.8)))
    assert "leave the step as it is" in advice(made, "promise")
    assert "leave the step as it is" in advice(made, "lies")


def test_a_ratio_that_rests_on_few_gains_is_neither_shown_nor_judged(tmp_path):
    rows = with_promises(0.7, 0.9, 0.3)
    for row in rows[FEWEST_GAINS:]:
        row |= {"lens/realised_low": None, "lens/realised_high": None}
    few = report(write_run(tmp_path / "few", rows))
    assert "is not shown: with fewer than 10 measured gains" in finding(few, "lies")
    assert "is realised" not in finding(few, "lies")
    assert level(few, "lies") == "green"
    many = report(write_run(tmp_path / "many", with_promises(0.7, 0.9, 0.3)))
    assert "30 % of the signal is realised" in finding(many, "lies")
    assert level(many, "lies") == "amber"


def test_a_ratio_from_before_the_first_signal_share_is_of_noise_and_not_shown(tmp_path):
    rows = with_promises(0.7, 0.9, 0.3)
    for row in rows[:-5]:
        del row["lens/signal_share"]
    made = report(write_run(tmp_path / "run", rows))
    assert "is not shown: with fewer than 10 measured gains" in finding(made, "lies")


def test_losses_that_updates_promise_are_not_called_nothing(tmp_path):
    rows = with_promises(0.7, 0.9, 0.8)
    for row in rows[1:]:
        row["lens/promised_gain"] = -20.0 if row["iteration"] % 2 else 15.0
    made = report(write_run(tmp_path / "run", rows))
    assert "Updates promised losses even on their own batches" in advice(made, "promise")
    assert "Nothing was promised" not in made.page


def test_promises_that_came_true_are_not_called_noise(tmp_path):
    made = report(write_run(tmp_path / "run", with_promises(0.1, 6.0, 1.2)))
    assert "600 % of the signal" in finding(made, "promise")
    assert "the signal is a low estimate" in finding(made, "promise")
    assert "noise" not in advice(made, "promise") + advice(made, "lies")
    noisy = report(write_run(tmp_path / "noisy", with_promises(0.1, 0.9, 0.9)))
    assert "low estimate" not in finding(noisy, "promise")
    assert "Most of the promise is noise" in advice(noisy, "lies")


def test_the_noise_of_one_batch_is_not_said_of_promises_that_hold(tmp_path):
    for share, told in ((0.7, "green"), (0.1, "amber")):
        rows = with_promises(share, 0.9, 0.8)
        for row in rows:
            if "lens/expected_cosine" in row:
                row["lens/expected_cosine"] = 0.0
        made = report(write_run(tmp_path / told, rows))
        assert level(made, "critic") == level(made, "lies") == told
        assert ("70 % of a promise is signal" in finding(made, "critic")) == (told == "green")


def solved(rows):
    """Rows whose episodes all return 500 from the tenth update on, by noise in all else."""
    for row in rows:
        done = min(1.0, row["iteration"] / 10)
        low = high = mean = 500.0 * done
        row |= {"episode/return_mean": mean, "episode/return_min": low, "episode/return_max": high}
        row |= {"episode/count": 3 + row["iteration"] % 4, "lens/explained_variance": -2.0}
        row |= {"lens/signal_share": 0.05, "policy/kl_worst_share": 0.6}
        for key in ("eval/return_mean", "eval/return_std"):
            row.pop(key, None)
    return rows


@pytest.mark.parametrize("count", [15, 60, 313])
def test_a_solved_run_is_told_nothing_but_that(tmp_path, count):
    made = report(write_run(tmp_path / "run", solved(rows_of_a_run(count))))
    assert made.summary["verdict"][2] == "Nothing below asks for attention."
    # Sums of equal numbers in floating point differ by rounding.
    assert "which is the best of the run" in made.summary["verdict"][1]
    assert "All their episodes returned 500: explained variance means nothing" in finding(
        made, "critic"
    )
    assert "did harm" not in made.page


def test_a_warning_counts_in_a_solved_run_while_it_is_raised(tmp_path):
    for name, first, told in (("old", 12, "green"), ("new", 55, "red")):
        rows = solved(rows_of_a_run(60))
        for row in rows[first : first + 3]:
            row["warnings"] = "kl-large"
        made = report(write_run(tmp_path / name, rows))
        assert level(made, "warnings") == told
        assert ("nothing needs to be done" in made.page) == (told == "green")


def test_training_began_at_the_return_of_the_first_row(tmp_path):
    rows = rows_of_a_run(200)
    for row in rows:
        row.pop("eval/return_mean", None)
    first = rows[0]["episode/return_mean"]
    made = report(write_run(tmp_path / "run", rows))
    found = summarize_returns(facts_of(rows))
    assert found is not None
    assert found.start == first
    assert finding(made, "learning").startswith(f"Training began at a return of {first:.3g}; ")
    assert "on average over 20 updates" in finding(made, "learning")


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (1, "In the only update, "),
        (3, "In all 3 updates, "),
        (30, "In the newest 5 of 30 updates, "),
        (313, "In the newest 32 of 313 updates, "),
    ],
)
def test_recent_figures_say_of_how_many_updates_they_are(tmp_path, count, said):
    made = report(write_run(tmp_path / "run", rows_of_a_run(count)))
    assert finding(made, "distance").startswith(said)
    assert "tenth of the run" not in made.page


def test_a_figure_of_one_update_says_of_which(tmp_path):
    rows = rows_of_a_run(60)
    for row in rows:
        row.pop("lens/visitation_shift", None)
    rows[57]["lens/visitation_shift"] = 0.1
    made = report(write_run(tmp_path / "run", rows))
    assert "is at least 0.1 at update 58 " in finding(made, "lies")


@pytest.mark.parametrize(
    ("rule", "ways", "never"),
    [
        ({"name": "trpo"}, "a smaller max_kl,", "epochs"),
        ({"name": "vpg"}, "a smaller learning_rate,", "epochs"),
        ({"name": "ppo"}, "a smaller learning_rate or clip_eps, or fewer epochs,", "max_kl"),
    ],
)
def test_advice_names_settings_that_the_rule_has(tmp_path, rule, ways, never):
    rows = rows_of_a_run(60, rule=rule["name"])
    for row in rows:
        row |= {"policy/kl_worst_share": 0.5, "lens/signal_share": 0.1}
    made = report(write_run(tmp_path / "run", rows, rule=rule))
    assert f"use {ways} or a wider network." in advice(made, "distance")
    assert never not in advice(made, "distance") + advice(made, "promise")


def test_a_curvature_of_all_states_asks_for_no_larger_share_of_them(tmp_path):
    for fraction, word in ((0.25, "fisher_fraction"), (1.0, "more steps per batch")):
        rows = rows_of_a_run(30)
        for row in rows:
            row["update/kl_quadratic"] = 0.1 * row["policy/kl_mean"]
        rule = {"name": "trpo", "fisher_fraction": fraction}
        made = report(write_run(tmp_path / f"{fraction}", rows, rule=rule))
        assert word in advice(made, "solver")


def test_environments_in_step_are_explained_by_the_setting_that_made_them_so(tmp_path):
    rows = rows_of_a_run(30)
    for row in rows:
        row |= {"lens/realised_low": None, "lens/realised_high": None}
    for stagger in (True, False):
        settings = {"train": {"steps": 2048 * 30, "stagger": stagger}}
        made = report(write_run(tmp_path / f"{stagger}", rows, **settings))
        assert ("--no-stagger" in finding(made, "promise")) == (not stagger)


def test_the_interval_of_a_single_point_is_drawn(monkeypatch):
    figures = []
    monkeypatch.setattr(surefoot.analysis.plots.report, "as_svg", figures.append)
    one, ends = np.array([1.0]), (np.array([0.5]), np.array([1.5]))
    draw_panels([Panel("y", [PanelSeries("gain", one, one, "#123456", band=ends)])], Extent(2.0))
    bar = figures[0].axes[0].containers[0].lines[2][0]
    np.testing.assert_allclose(bar.get_segments()[0], [[1.0, 0.5], [1.0, 1.5]])


def test_means_of_equal_returns_differ_by_rounding_alone_and_the_newest_is_the_best():
    rows = [
        {"iteration": k, "env_steps": k, "episode/return_mean": 0.1 if k > 2 else 0.0}
        | {"episode/count": 1 + k * k % 7}
        for k in range(1, 201)
    ]
    found = summarize_returns(facts_of(rows))
    assert found is not None
    assert (found.final, found.best_step) == (found.best, 200)


def test_returns_that_are_all_equal_do_not_judge_a_critic(tmp_path):
    rows = rows_of_a_run(60)
    for row in rows:
        row |= {f"episode/return_{part}": -500.0 for part in ("mean", "min", "max")}
        row["lens/explained_variance"] = -3.0
    made = report(write_run(tmp_path / "run", rows))
    assert "returned -500: explained variance means nothing" in finding(made, "critic")
    assert level(made, "critic") == "green"


def test_a_log_ratio_of_rounding_is_zero_without_a_sign(tmp_path):
    rows = rows_of_a_run(30)
    for row in rows:
        row |= {"policy/log_ratio_good_p50": 1e-8, "policy/log_ratio_bad_p50": -6e-8}
        row["policy/kl_median"] = 1e-14
    made = report(write_run(tmp_path / "run", rows))
    assert "is 0.000 for good and 0.000 for bad actions" in finding(made, "distance")
