"""The report: figures from rows, and one page that needs nothing else."""

import base64
import itertools
import json
import math
import re
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.legend import Legend
from matplotlib.text import Text

import surefoot.analysis.plots.report
import surefoot.analysis.report
from surefoot.analysis.plots.grouping import means, newest, starts_of
from surefoot.analysis.plots.style import as_svg
from surefoot.analysis.report import report
from surefoot.analysis.report.appendix import newest_probe
from surefoot.analysis.report.learning import learning_section, summarize_returns
from surefoot.analysis.report.promises import _discount
from surefoot.analysis.report.section import Facts, line
from surefoot.analysis.report.steps import distance_section
from surefoot.analysis.report.table import Table, table_of
from surefoot.analysis.report.totals import half_of_sums, totals
from surefoot.analysis.text import figure
from surefoot.cli.parser import main
from surefoot.config.history import SettingsHistory
from surefoot.config.presets import preset, settings_of, settle
from surefoot.diagnostics.catalogue import METRICS
from surefoot.diagnostics.groups import EpisodeSums, interval_of
from surefoot.diagnostics.lens import (
    judge_update,
    realised_gain,
    shows_gain,
    start_lens,
    total_gain,
)
from surefoot.diagnostics.warnings import ALARMS
from surefoot.errors import CheckpointError, ConfigError
from surefoot.exact import TabularSoftmax, random_mdp, solve
from surefoot.storage.run_directory import RunDirectory
from tests.support.runs_to_report import rows_of_a_run, write_run

HOSTILE = "<script>alert('x')</script>\"'><img src=x onerror=y>"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(64)


class Reader(HTMLParser):
    """Every tag and attribute of a page; complains of one that is not closed."""

    VOID = ("meta", "img", "br", "source")

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Reports of a run that is well and of one that collapses, by name."""
    base = tmp_path_factory.mktemp("runs")
    found = {}
    for name in ("healthy", "collapse"):
        path = write_run(base / name, rows_of_a_run(collapse=name == "collapse"))
        found[name] = report(path, commands=[("Play it:", "surefoot evaluate x")])
    return found


def facts_of(rows, eval_episodes):
    """What a report reads of a run of these rows."""
    settings = settle("CartPole-v1", preset("CartPole-v1"))
    settings = settings.with_train(eval_episodes=eval_episodes)
    return Facts(Path("run"), SettingsHistory(settings), {}, table_of(rows))


def finding(of, section):
    return of.summary["sections"][section]["finding"]


def level(of, section):
    return of.summary["sections"][section]["level"]


# The table


def test_only_finite_numbers_are_figures():
    rows = [
        {"iteration": 1, "env_steps": 10, "a": 1.0, "b": float("nan"), "c": "x", "d": True},
        {"iteration": 2, "env_steps": 20, "a": float("inf"), "b": 10**400, "warnings": "x y x"},
        {"iteration": 3, "env_steps": "many", "a": 5.0},
    ]
    table = table_of(rows)
    assert set(table.columns) == {"env_steps", "iteration", "a"}
    np.testing.assert_array_equal(table.column("a"), [1.0, np.nan])
    assert np.isnan(table.column("nothing")).all()
    assert table.warnings == ((), ("x", "y"))


def test_a_long_run_is_drawn_in_groups_and_its_extremes_and_its_end_are_kept():
    values = np.arange(1000.0)
    starts = starts_of(1000)
    assert len(starts) == 200
    np.testing.assert_array_equal(means(values, starts)[:2], [2.0, 7.0])
    assert newest(values, starts)[-1] == np.maximum.reduceat(values, starts)[-1] == 999.0
    assert len(starts_of(201)) <= 200
    assert list(starts_of(3)) == [0, 1, 2]


def test_the_worst_state_of_a_group_is_its_worst_one():
    rows = [{"iteration": k, "env_steps": k, "kl": float(k % 50 == 7)} for k in range(1, 1001)]
    (found,) = line(table_of(rows), "kl", "worst", "#000000", reduction=np.maximum.reduceat)
    assert found.values.sum() == 20
    assert set(found.values) == {0.0, 1.0}


def recent_of(values):
    rows = np.arange(len(values))
    columns = {"kl": np.asarray(values, float)} if np.isfinite(values).any() else {}
    return Table(rows, rows.astype(float), columns, ((),) * len(rows)).recent("kl")


def test_recent_is_the_newest_tenth_or_the_newest_value_before_it():
    values = np.where(np.arange(200) % 2 == 0, np.arange(200.0), np.nan)
    assert recent_of(values) == np.mean(np.arange(180.0, 200.0, 2.0))
    assert recent_of(np.where(np.arange(200) == 7, 3.0, np.nan)) == 3.0
    assert recent_of(np.array([np.nan, 1.0, 3.0])) == 2.0
    assert np.isnan(recent_of(np.array([np.nan])))
    assert list(table_of(rows_of_a_run()).newest_tenth().iterations) == [55, 56, 57, 58, 59, 60]


# Figures


def gains_table(shares=(0.5, 0.25, 0.75), width=1.0):
    """Three updates that promise 1, 2 and 4 and gain 0.4, 0.6 and -1."""
    rows = [{"iteration": 1, "env_steps": 10, "lens/signal_share": shares[0]}]
    for k, (promise, gain) in enumerate(((1.0, 0.4), (2.0, 0.6), (4.0, -1.0)), start=2):
        row = {"iteration": k, "env_steps": 10 * k, "lens/promised_gain": promise}
        row |= {"lens/realised_gain": gain}
        row |= {"lens/realised_low": gain - width, "lens/realised_high": gain + width}
        rows.append(row | ({"lens/signal_share": shares[k - 1]} if k <= len(shares) else {}))
    return table_of(rows)


def test_a_promise_is_weighed_with_the_signal_share_of_its_own_update():
    found = totals(gains_table(), 8)
    assert found is not None
    np.testing.assert_allclose(found.promised, [1.0, 3.0, 7.0])
    np.testing.assert_allclose(found.signal, [0.5, 0.5 + 0.5, 1.0 + 3.0])
    np.testing.assert_allclose(found.realised, [0.4, 1.0, 0.0])
    np.testing.assert_array_equal(found.steps, [20, 30, 40])
    assert found.signal_share == pytest.approx(4.0 / 7.0)
    assert found.realised_share().mean == pytest.approx(0.0)


def test_gains_without_an_interval_are_not_summed():
    assert totals(gains_table(width=math.nan), 8) is None
    table = gains_table()
    for end in ("low", "high"):
        table.columns[f"lens/realised_{end}"][2] = math.nan
    found = totals(table, 8)
    np.testing.assert_allclose(found.promised, [1.0, 5.0])
    np.testing.assert_allclose(found.realised, [0.4, -0.6])


def test_a_run_without_gains_has_no_sums():
    assert totals(table_of([{"iteration": 1, "env_steps": 10}]), 8) is None


@pytest.mark.parametrize("changing", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("count", [4, 12, 60])
def test_the_interval_of_a_sum_of_gains_covers_it_whether_critics_change_or_not(changing, count):
    """A rollout's noise is one number under any critic, and another one under each."""
    rng, num_envs, covered, naive = np.random.default_rng(0), 8, [], []
    for _ in range(400):
        shared = rng.normal(size=(count + 1, num_envs))
        after, before = changing * rng.normal(size=(2, count + 1, num_envs))
        differences = (shared + after)[1:] - (shared + before)[:-1]
        gains = differences.mean(axis=1)
        halves = 2.3646 * differences.std(axis=1, ddof=1) / num_envs**0.5
        half = half_of_sums(gains, halves, num_envs)
        covered.append(abs(gains.sum()) <= half[-1])
        naive.append(half[-1] <= (1 + 1e-9) * (halves**2).sum() ** 0.5)
    assert np.mean(covered) >= 0.93
    assert np.mean(naive) == 1.0


@pytest.mark.parametrize(
    "changing",
    [0.0, 0.3, 1.0],
)
@pytest.mark.thorough
def test_the_interval_of_all_gains_covers_their_exact_sum_at_its_rate(changing):
    """Sampled on a finite MDP along ten exact updates, under critics that err anew each time."""
    mdp, rng, covered = random_mdp(5, gamma=0.9), np.random.default_rng(0), []
    policies, theta = [], np.zeros((6, 3))
    for _ in range(11):
        policies.append(solve(mdp, TabularSoftmax().policy(theta)))
        theta = theta + 0.1 * policies[-1].advantages
    exact = policies[-1].eta - policies[0].eta
    interval_of_sum = jax.jit(lambda gained: interval_of(total_gain(gained)))
    for _ in range(500):
        critics = [each.values + changing * rng.normal(size=6) for each in policies]
        gained, before = jnp.zeros(8), None
        for k, solution in enumerate(policies):
            errors = sampled_td(mdp, solution, critics[max(k - 1, 0) : k + 1], rng=rng)
            if before is not None:
                gained = gained + realised_gain(before, errors[0]).by_group
            before = errors[-1]
        found = interval_of_sum(gained)
        covered.append(float(found.low) <= exact <= float(found.high))
    assert 0.93 <= np.mean(covered) <= 0.97


def test_the_sums_that_a_run_keeps_are_of_its_gains_and_one_bad_reward_spoils_none():
    rng, ones, realised = np.random.default_rng(0), jnp.ones(4), 0.0
    lens = start_lens({}, (), num_groups=4, num_features=1)
    for k in range(4):
        after = EpisodeSums(jnp.asarray(rng.normal(size=4), jnp.float32), ones, ones)
        judged, metrics = judge_update(lens, after, paired=True)
        if k == 0:
            assert np.isnan(metrics["lens/total_gain"])
        else:
            realised += float(metrics["lens/realised_gain"])
            assert float(metrics["lens/total_gain"]) == pytest.approx(realised, rel=1e-4)
        lens = judged._replace(td=after, ready=jnp.array(True))
    _, unpaired = judge_update(lens, after, paired=False)
    assert np.isnan(unpaired["lens/total_gain"])
    bad = EpisodeSums(jnp.full(4, jnp.nan), ones, ones)
    judged, _ = judge_update(lens, bad, paired=True)
    np.testing.assert_array_equal(judged.gained, lens.gained)
    ahead, metrics = judge_update(lens._replace(shows_gain=jnp.array(False)), after, paired=True)
    assert np.isfinite(metrics["lens/realised_gain"])
    assert np.isnan(metrics["lens/realised_low"])
    np.testing.assert_array_equal(ahead.gained, lens.gained)


@pytest.mark.parametrize(
    ("explained", "carried", "shown"),
    [(0.5, 0.9, True), (0.0, 0.9, False), (np.nan, 0.9, False), (np.nan, 0.01, True)],
)
def test_a_gain_shows_where_the_critic_or_the_rollout_reaches_it(explained, carried, shown):
    assert bool(shows_gain(jnp.float32(explained), jnp.float32(carried))) is shown


def sampled_td(mdp, solution, critics, *, rng, num_envs=8, rows=100):
    """Sums of TD errors of each environment's rows, under each of some critics."""
    law = (1 - mdp.gamma) * solution.visits[:, None] * solution.policy
    pairs = rng.choice(law.size, size=(num_envs, rows), p=law.reshape(-1) / law.sum())
    states, actions = np.divmod(pairs, mdp.num_actions)
    reach = np.cumsum(mdp.transitions, axis=-1)[states, actions]
    after = np.sum(rng.random((num_envs, rows, 1)) > reach, axis=-1).clip(max=mdp.num_states - 1)
    return [
        EpisodeSums(
            (mdp.rewards[states, actions] + mdp.gamma * critic[after] - critic[states]).sum(axis=1),
            *2 * [np.full(num_envs, rows / mdp.horizon)],
        )
        for critic in critics
    ]


def test_a_run_that_kept_its_own_interval_is_reported_with_it():
    table = gains_table()
    rows = np.arange(4.0)
    more = {"lens/total_low": 0.0 - rows, "lens/total_high": 0.0 + rows}
    kept = table._replace(
        columns=table.columns | {k: np.append(np.nan, v[1:]) for k, v in more.items()}
    )
    np.testing.assert_array_equal(totals(kept, 8).realised_half, [1.0, 2.0, 3.0])
    np.testing.assert_array_equal(
        totals(kept, 8, whole=False).realised_half, totals(table, 8).realised_half
    )


def test_the_interval_of_one_gain_is_its_own():
    np.testing.assert_allclose(half_of_sums(np.array([3.0]), np.array([2.0]), 8), [2.0])


def test_the_score_is_of_evaluations_where_there_are_any():
    rows = rows_of_a_run(60, collapse=True)
    found = summarize_returns(facts_of(rows, 20))
    evaluated = [row for row in rows if "eval/return_mean" in row]
    assert found.evaluated
    assert found.final == evaluated[-1]["eval/return_mean"]
    assert found.best == max(row["eval/return_mean"] for row in evaluated)
    half = 2.0930241 * evaluated[-1]["eval/return_std"] / 20**0.5
    np.testing.assert_allclose(found.interval, (found.final - half, found.final + half), rtol=1e-6)
    assert found.lost > 0.9
    assert summarize_returns(facts_of(rows, 1)).interval is None


def test_without_evaluations_the_score_is_the_mean_of_a_tenth_of_the_training_episodes():
    rows = [
        {"iteration": k, "env_steps": k, "episode/return_mean": float(k), "episode/count": k % 2}
        for k in range(1, 41)
    ]
    found = summarize_returns(facts_of(rows, 20))
    assert not found.evaluated
    assert found.final == pytest.approx((37 + 39) / 2)
    assert found.start == 1.0, "the first policy's"
    assert (found.best, found.best_step) == (pytest.approx(38.0), 40)
    assert summarize_returns(facts_of([{"iteration": 1, "env_steps": 9}], 20)) is None


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.0, "0"), (0.36603, "0.366"), (1234.5, "1,234"), (-0.02, "-0.02"), (2e-5, "2.0e-05")],
)
def test_a_figure_has_the_digits_that_a_person_reads(value, said):
    assert figure(value) == said


def test_figures_of_a_long_run_keep_the_worst_state_and_the_extreme_episodes(tmp_path):
    rows = rows_of_a_run(1000)
    path = write_run(tmp_path / "run", rows)
    config = json.loads((path / "config.json").read_text())
    facts = Facts(path, SettingsHistory(settings_of(config)), config, table_of(rows))
    worst, *_ = distance_section(facts).panels[0].series
    assert worst.values.max() == max(row["policy/kl_worst_state"] for row in rows)
    (panel,) = learning_section(facts, summarize_returns(facts)).panels
    training = panel.series[0]
    assert training.band[0].min() == min(row["episode/return_min"] for row in rows)
    assert training.band[1].max() == max(row["episode/return_max"] for row in rows)
    assert all(len(each.steps) <= 200 for each in panel.series)


# The page


@pytest.mark.parametrize("name", ["healthy", "collapse"])
def test_the_page_is_whole_and_fetches_and_runs_nothing(made, name):
    read = Reader(made[name].page)
    assert "script" not in read.tags
    assert not [key for key, _ in read.attributes if key.startswith("on")]
    links = [value for key, value in read.attributes if key in ("src", "srcset", "href")]
    assert len(links) > 10
    assert all(link.startswith(("data:image/", "#")) for link in links)
    assert "http" not in re.sub(r"base64,[A-Za-z0-9+/=]*|http-equiv", "", made[name].page)
    targets = {value for key, value in read.attributes if key == "id"}
    assert {link[1:] for link in links if link.startswith("#")} == targets


def test_every_picture_has_its_sentence_and_no_figure_is_nan(made):
    for each in made.values():
        figure = r'<figure><picture><source .*?><img alt="(.*?)" src=.*?<figcaption[^>]*>(.*?)<'
        pictures = re.findall(figure, each.page)
        assert len(pictures) >= 6
        assert all(re.search(r"\d", caption) for _, caption in pictures)
        words = " ".join(Reader(each.page).text)
        assert not re.search(r"\bnan\b|\binf\b|\bNone\b", words)


def test_a_healthy_run_asks_for_nothing(made):
    summary = made["healthy"].summary
    assert summary["verdict"][0].startswith("trpo trained on CartPole-v1 for 122,880 steps")
    assert summary["verdict"][2] == "Nothing below asks for attention."
    assert finding(made["healthy"], "warnings") == "No warning was raised."
    assert {each["level"] for each in summary["sections"].values()} == {"green", ""}


def test_the_promise_is_split_into_signal_and_noise(made):
    rows = rows_of_a_run()
    pairs = list(itertools.pairwise(rows))
    promised = sum(new["lens/promised_gain"] for _, new in pairs)
    signal = sum(new["lens/promised_gain"] * old["lens/signal_share"] for old, new in pairs)
    realised = sum(new["lens/realised_gain"] for _, new in pairs)
    text = finding(made["healthy"], "promise")
    assert f"promised {promised:.0f}, of which {signal:.0f} " in text
    assert f"({100 * signal / promised:.0f} %) is signal, and {realised:.0f} was realised" in text
    assert f"{100 * realised / signal:.0f} % of the signal (95 % interval" in text
    assert "undiscounted" in made["healthy"].page
    assert made["healthy"].summary["gains"]["realised"] == pytest.approx(realised)


def test_a_collapse_is_reported_with_its_warnings_first(made):
    summary = made["collapse"].summary
    assert level(made["collapse"], "learning") == level(made["collapse"], "warnings") == "red"
    assert "It has lost all that it had learned" in finding(made["collapse"], "learning")
    assert summary["verdict"][2].startswith("Look first at “Warnings” below: kl-large: a smaller")
    assert summary["warnings"] == {"kl-large": 17, "clip": 6}
    assert "kl-large (17 times), clip (6 times)" in finding(made["collapse"], "warnings")
    for section in ("lies", "distance", "solver", "critic"):
        assert level(made["collapse"], section) == "amber"
    assert ALARMS["clip"].what in made["collapse"].page


def pictures_of(page):
    return [
        base64.b64decode(data).decode()
        for data in re.findall(r"data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)", page)
    ]


def test_warnings_are_marked_on_the_learning_curve_and_on_a_timeline(made):
    counts = [len(pictures_of(made[name].page)) for name in ("healthy", "collapse")]
    assert counts[1] == counts[0] + 2, "the timeline, for wide screens and for phones"
    red = "#d55e00"
    first = [pictures_of(made[name].page)[0].lower().count(red) for name in ("healthy", "collapse")]
    assert first[0] == 0
    assert first[1] > 17, "a mark for each update that raised kl-large, and one in the legend"


def test_each_figure_has_a_drawing_for_phones_with_text_of_11_pixels(tmp_path, monkeypatch):
    figures = []

    def kept(figure):
        figures.append(figure)
        return as_svg(figure)

    monkeypatch.setattr(surefoot.analysis.plots.report, "as_svg", kept)
    page = report(write_run(tmp_path / "run", rows_of_a_run(collapse=True))).page
    assert page.count('<source media="(max-width: 600px)"') == page.count("<figure>") >= 6
    # Inches of 96 pixels: each figure is drawn wide, and then for a screen of 390 pixels.
    assert [each.get_figwidth() * 96 for each in figures] == [768, 360] * (len(figures) // 2)
    for each in figures[1::2]:
        each.draw_without_rendering()
        for text in each.findobj(Text):
            if text.get_visible() and text.get_text():
                # The margins of the page leave 358 of them.
                assert text.get_fontsize() * 96 / 72 * 358 / 360 >= 11, text.get_text()
        for legend in each.findobj(Legend):
            assert legend.get_window_extent().x1 <= each.bbox.x1


def test_the_same_run_gives_the_same_page(made, tmp_path):
    path = tmp_path / "healthy"
    write_run(path, rows_of_a_run())
    again = report(path, commands=[("Play it:", "surefoot evaluate x")])
    assert again.summary == made["healthy"].summary
    assert pictures_of(again.page) == pictures_of(made["healthy"].page)


def test_nothing_that_a_run_names_becomes_markup(tmp_path):
    rows = [{**row, "warnings": HOSTILE.replace(" ", "")} for row in rows_of_a_run(6)]
    path = write_run(
        tmp_path / "run",
        rows,
        env=HOSTILE,
        env_kwargs={HOSTILE: HOSTILE},
        preset=HOSTILE,
        observation_space=HOSTILE,
        versions={HOSTILE: HOSTILE, "surefoot": HOSTILE},
    )
    (path / "probe").mkdir()
    record = {"update": HOSTILE, HOSTILE: HOSTILE, "verdict": HOSTILE}
    (path / "probe" / "update-000003.json").write_text(json.dumps(record))
    made = report(path, commands=[(HOSTILE, HOSTILE)])
    read = Reader(made.page)
    assert "script" not in read.tags
    assert not [key for key, _ in read.attributes if key.startswith("on")]
    assert any(HOSTILE in text for text in read.text)
    assert "<script" not in "".join(pictures_of(made.page))


def test_nothing_that_a_run_names_is_imported(tmp_path, monkeypatch, capsys):
    (tmp_path / "hostile.py").write_text(
        "import pathlib\npathlib.Path(__file__).with_name('it-ran').touch()\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [str(tmp_path), *sys.path])
    write_run(tmp_path / "run", rows_of_a_run(3), env="hostile:Env-v0")
    assert main(["report", "run"]) == 0
    assert not (tmp_path / "it-ran").exists()
    page = (tmp_path / "run" / "report.html").read_text()
    for command in ("resume run", "probe run", "evaluate run --episodes 100"):
        assert f"surefoot {command} --env hostile:Env-v0" in page


# Runs of every kind


def test_a_run_that_is_not_finished_says_so(tmp_path):
    made = report(write_run(tmp_path / "run", rows_of_a_run(6)))
    assert "6 of 60 updates; it is still running, or was stopped" in made.summary["verdict"][0]
    assert not made.summary["finished"]
    assert "not finished" in made.page


def test_a_run_says_which_figures_it_lacks(tmp_path):
    new = re.compile("lens/|policy/log_ratio|policy/kl_median")
    rows = [{k: v for k, v in row.items() if not new.match(k)} for row in rows_of_a_run(6)]
    made = report(write_run(tmp_path / "run", rows))
    missing = "Left out: no row of this run has lens/promised_gain, lens/realised_gain."
    assert finding(made, "promise") == missing
    assert finding(made, "lies").startswith("Left out: no row of this run has lens/signal_share, ")
    assert finding(made, "critic").endswith("Not logged in this run: lens/explained_variance.")
    assert {level(made, name) for name in ("promise", "lies")} == {""}


def test_a_run_in_which_no_episode_ended_is_reported(tmp_path):
    rows = [
        {k: v for k, v in row.items() if not k.startswith(("episode/return", "eval/"))}
        for row in rows_of_a_run(3)
    ]
    made = report(write_run(tmp_path / "run", rows))
    assert made.summary["score"] is None
    assert made.summary["verdict"][1] == "No episode has ended, so there is no return."


@pytest.mark.parametrize(("end", "told"), [(15.0, "red"), (180.0, "green")])
def test_without_evaluations_a_fall_counts_beyond_the_noise_of_the_rows(tmp_path, end, told):
    rng, rows = np.random.default_rng(0), rows_of_a_run(60)
    for k, row in enumerate(rows):
        row["episode/return_mean"] = (4.0 * k if k < 50 else end) + 5.0 * rng.normal()
        for key in [key for key in row if key.startswith("eval/")]:
            del row[key]
    assert level(report(write_run(tmp_path / "run", rows)), "learning") == told


def test_a_run_that_unlearns_and_promises_noise_is_told_so(tmp_path):
    rows = rows_of_a_run(20, rule="ppo")
    for k, row in enumerate(rows):
        row |= {"lens/signal_share": 0.0, "episode/return_mean": 20.0 if k == 0 else 9.0}
        row |= {"update/gradient_norm": 0.0 if k > 2 else 1.0}
        if "eval/return_mean" in row:
            row |= {"eval/return_mean": 9.0, "eval/return_std": 1.0}
    made = report(write_run(tmp_path / "run", rows, rule={"name": "ppo"}))
    assert finding(made, "learning").endswith("That is below the first policy's return.")
    assert level(made, "learning") == "red"
    assert "none of which is signal" in finding(made, "promise")
    assert level(made, "solver") == level(made, "promise") == "amber"


@pytest.mark.parametrize("stands", [True, False], ids=["at its best", "still learning"])
def test_a_run_that_stands_at_its_best_is_asked_for_nothing(tmp_path, stands):
    rows = rows_of_a_run(60)
    for k, row in enumerate(rows):
        row["episode/return_mean"] = min(500.0, 20.0 + 25.0 * k) if stands else 20.0 + 8.0 * k
        if "eval/return_mean" in row:
            row |= {"eval/return_mean": row["episode/return_mean"], "eval/return_std": 0.0}
        # All returns are equal, and what promises there are is noise.
        if k > 30:
            row |= {"lens/signal_share": 0.0, "lens/explained_variance": -0.3}
            row |= {"policy/kl_worst_share": 0.5}
    made = report(write_run(tmp_path / "run", rows))
    for name in ("lies", "distance", "critic"):
        assert level(made, name) == ("green" if stands else "amber"), name
        assert ("stays near its best" in finding(made, name)) == stands, name
    assert (made.summary["verdict"][2] == "Nothing below asks for attention.") == stands


def test_it_is_said_of_how_many_updates_the_gain_can_be_told(tmp_path):
    rows = rows_of_a_run(60)
    whole = report(write_run(tmp_path / "whole", rows))
    assert "Summed are" not in finding(whole, "promise")
    for row in rows[40:]:
        row |= {"lens/realised_low": None, "lens/realised_high": None}
    part = report(write_run(tmp_path / "part", rows))
    rest = sum(row["lens/promised_gain"] for row in rows[40:])
    assert "Summed are 39 of 59 updates" in finding(part, "promise")
    assert f"the others, which promised {figure(rest)}, is not known" in finding(part, "promise")


def test_a_figure_that_the_newest_tenth_lacks_says_of_which_update_it_is(tmp_path):
    rows = rows_of_a_run(60)
    for row in rows:
        if row["iteration"] != 11:
            row.pop("lens/visitation_shift", None), row.pop("lens/expected_cosine", None)
    rows[10] |= {"lens/visitation_shift": 0.05, "lens/expected_cosine": 0.5}
    made = report(write_run(tmp_path / "run", rows))
    assert "is at least 0.05" in finding(made, "lies")
    assert finding(made, "lies").count(" at update 11 ") == 1
    assert "gradients is 0.5 at update 11." in finding(made, "critic")


@pytest.mark.parametrize(
    ("gamma", "said"),
    [(0.99, "100 steps away counts 0.366"), (0.9, "10 steps away counts 0.349"), (1.0, "in full")],
)
def test_the_effect_of_the_discount_is_shown_by_an_example(gamma, said):
    assert said in _discount(gamma)


def test_one_row_and_one_environment_are_enough(tmp_path):
    rows = rows_of_a_run(2)
    for row in rows:
        row.pop("lens/realised_low", None), row.pop("lens/realised_high", None)
    settings = {"train": {"steps": 4096, "num_envs": 1, "num_steps": 2048}}
    one = report(write_run(tmp_path / "one", rows[:1], **settings))
    assert "a gain is known one rollout later" in finding(one, "promise")
    two = report(write_run(tmp_path / "two", rows, **settings))
    assert two.summary["gains"] is None
    assert "no rollout held an even mix" in finding(two, "promise")


def test_the_guard_is_shown_where_there_was_one(tmp_path, made):
    rows = rows_of_a_run(4)
    for row, (fraction, refused) in zip(rows, [(1, 0), (0.5, 0), (0.0, 1), (1, 0)], strict=True):
        row |= {"guard/fraction": fraction, "guard/refused": refused}
    guarded = report(write_run(tmp_path / "run", rows))
    said = finding(guarded, "guard")
    assert said.startswith("The guard left 50 % of 4 updates whole, kept 62 % of a step on average")
    assert said.endswith("and refused 1.")
    assert "guard" not in made["healthy"].summary["sections"]


def test_a_rule_that_descends_has_epochs_for_a_line_search(tmp_path):
    rows = rows_of_a_run(4, rule="ppo")
    made = report(write_run(tmp_path / "run", rows, rule={"name": "ppo"}))
    assert finding(made, "solver").endswith("and 10 of 10 epochs run.")


def test_the_page_of_ten_thousand_updates_stays_below_three_megabytes(tmp_path):
    rows = rows_of_a_run(10_000, collapse=True)
    made = report(write_run(tmp_path / "run", rows))
    assert len(made.page.encode()) < 3_000_000
    assert "a point of a curve stands for 50 updates" in made.page


def test_the_newest_probe_is_in_the_page_and_a_damaged_one_is_no_fault(tmp_path, made):
    assert finding(made["healthy"], "probe") == "No update of this run has been probed."
    path = write_run(tmp_path / "run", rows_of_a_run(3))
    folder = path / "probe"
    folder.mkdir()
    record = {"update": [{"fraction": 0.0}], "pairs": 40, "verdict": ["So.", "Noise is larger."]}
    (folder / "update-000002.json").write_text(json.dumps(record))
    (folder / "update-000002.png").write_bytes(PNG)
    probed = report(path)
    assert finding(probed, "probe").startswith("Update 2 was probed")
    assert finding(probed, "probe").endswith("So. Noise is larger.")
    assert "<td>pairs</td><td>40</td>" in probed.page
    assert base64.b64encode(PNG).decode() in probed.page
    (folder / "update-000002.json").write_text('{"update": NaN')
    (folder / "update-000002.png").write_bytes(b"not a picture")
    damaged = newest_probe(path)
    assert (damaged.name, damaged.record, damaged.picture) == ("update-000002", {}, None)


def test_every_figure_that_is_shown_is_one_that_is_logged():
    folder = Path(surefoot.analysis.report.__file__).parent
    text = "".join(file.read_text() for file in folder.glob("*.py"))
    groups = "episode|eval|surrogate|policy|lens|critic|update|guard"
    used = set(re.findall(rf'"((?:{groups})/\w+)"', text))
    assert len(used) > 25
    assert used <= set(METRICS)


# The command


def test_the_command_writes_the_page_and_leaves_the_rest_of_the_run_alone(tmp_path, capsys):
    path = write_run(tmp_path / "run", rows_of_a_run(3))
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    assert main(["report", str(path)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 4
    assert said[3] == f"report: {path / 'report.html'}"
    after = {file.name: file.read_bytes() for file in path.iterdir()}
    assert after.pop("report.html").startswith(b"<!doctype html>")
    assert after == before
    elsewhere = tmp_path / "pages" / "mine.html"
    assert main(["report", str(path), "--out", str(elsewhere), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["report"] == str(elsewhere)
    assert record["env"] == "CartPole-v1"
    assert elsewhere.exists()


@pytest.mark.parametrize(
    ("arguments", "code", "name", "said"),
    [
        (["nothing"], 6, "CHECKPOINT", "no run directory"),
        (["empty"], 6, "NO-ROWS", "has no row of metrics yet"),
        (["empty", "--out", "empty/config.json"], 2, "CONFIG", "must end in .html"),
        (["full", "--out", "full/metrics.jsonl/x.html"], 7, "STORAGE", "metrics.jsonl"),
    ],
)
def test_a_report_of_what_cannot_be_reported_is_one_line(
    arguments, code, name, said, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "empty", [])
    write_run(tmp_path / "full", rows_of_a_run(1))
    assert main(["report", *arguments]) == code
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"surefoot: error[{name}]")
    assert said in line


def test_settings_that_are_none_are_refused(tmp_path):
    path = write_run(tmp_path / "run", rows_of_a_run(1), rule=5)
    with pytest.raises((CheckpointError, ConfigError)):
        report(path)


def test_a_long_run_is_read_in_seconds(tmp_path):
    """Of the thread itself: other processes may keep the core. A cell took 60 us, now 0.5."""
    figures = {f"figure/{i}": i / 7 for i in range(48)}
    rows = [{"iteration": i, "env_steps": 32 * i} | figures for i in range(1, 20_001)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "metrics.jsonl").write_text(lines)
    began = time.thread_time()
    table = table_of(RunDirectory(tmp_path).rows())
    assert time.thread_time() - began < 5.0
    assert len(table.steps) == 20_000
    assert table.column("figure/7")[-1] == 1.0
