import csv
import json
import math
import os
import re
import shutil
import signal
from dataclasses import replace

import gymnasium
import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.experimental.compilation_cache import compilation_cache
from scipy import stats

from surefoot import load, train
from surefoot.analysis.compare import (
    Comparison,
    Failure,
    LearningCurve,
    Score,
    SharedSettings,
    Workers,
    compare,
    read_runs,
    table,
    to_dict,
    write_outputs,
)
from surefoot.analysis.compare import train as comparing
from surefoot.analysis.compare.comparison import (
    contrast,
    probability_of_beating,
    summarize_scores,
    welch_interval,
)
from surefoot.analysis.plots import curves as plots
from surefoot.config.settings import PPO, TRPO, VPG, Critic, Network, Train
from surefoot.errors import ConfigError, NotFiniteError, StorageError
from surefoot.parallel.jobs import ComparisonStopped
from surefoot.storage.run_directory import RunDirectory, folder_name
from surefoot.training import loop
from surefoot.training.memory import fitting
from tests.support.cases import case

ENV = "CartPole-v1"
RULES = (VPG(), PPO(num_minibatches=1, num_epochs=1))
TRAIN = {
    "num_envs": 2,
    "num_steps": 16,
    "eval_episodes": 2,
    "checkpoint_every": 32,
    "reset_at_checkpoints": False,
}


def shared_with(**train):
    """Settings of three iterations, with these of `Train` changed."""
    return SharedSettings(
        steps=96,
        network=Network(hidden=(8,)),
        critic=Critic(num_minibatches=1, num_epochs=1),
        changes={"train": TRAIN | train},
    )


SHARED = shared_with()
TINY = {"shared": SHARED, "episodes": 3}
"""Three iterations of 32 steps, a checkpoint after each."""

scores_of_seeds = st.lists(st.integers(-5, 5).map(float), min_size=2, max_size=8).map(np.array)


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """Cells of one rule are one program: compile it once for this whole file, workers included."""
    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("programs")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    with pytest.MonkeyPatch.context() as patch:
        old = {name: getattr(jax.config, name) for name in settings}
        for name, value in settings.items():
            patch.setenv(name.upper(), str(value))
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        yield
        for name, value in old.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A comparison of two rules with one seed, what it told, and its directory."""
    out, told = tmp_path_factory.mktemp("trained") / "out", []
    result = compare([ENV], RULES, seeds=1, out=out, progress=told.append, **TINY)
    return result, told, out


@pytest.fixture
def out(trained, tmp_path):
    """The trained directory again, to spoil."""
    return shutil.copytree(trained[2], tmp_path / "out")


def silent(line):
    """Progress that is not shown."""


def files(path):
    return {str(p): p.stat().st_mtime_ns for p in path.rglob("*") if p.is_file()}


def change_config(path, section, **values):
    config = json.loads((path / "config.json").read_text())
    config[section] |= values
    (path / "config.json").write_text(json.dumps(config))


def made_up(finals, best=True):
    """A comparison on one environment with these finals by rule, as if they had been trained."""
    scores = tuple(
        Score(ENV, rule, seed, final, final + 10.0 if best else None, 1000, f"runs/{rule}/{seed}")
        for rule, values in finals.items()
        for seed, final in enumerate(values)
    )
    steps = np.arange(1, 4) * 100
    curves = {
        (s.env, s.rule, s.seed): LearningCurve(steps, s.final * steps / 300, steps, steps / 1.0)
        for s in scores
    }
    return Comparison(scores, curves, {ENV: ()}, episodes=20)


# --- statistics ---------------------------------------------------------------------------------


def test_a_summary_is_what_a_hand_computes():
    summary = summarize_scores(np.array([1.0, 2.0, 3.0, 4.0, 10.0]))
    assert (summary.n, summary.mean, summary.median) == (5, 4.0, 3.0)
    assert summary.interquartile_mean == 3.0  # one of five is cut from each end
    half = 2.7764451 * math.sqrt(12.5 / 5)
    np.testing.assert_allclose(summary.interval, (4.0, 4.0 - half, 4.0 + half), rtol=1e-7)


def test_welchs_interval_is_scipys():
    first, second = np.array([1.0, 2.0, 4.0, 8.0, 9.0]), np.array([3.0, 3.5, 2.0, 4.0, 3.0, 2.5])
    expected = stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
    np.testing.assert_allclose(welch_interval(first, second)[1:], expected, rtol=1e-9)


@given(scores_of_seeds, scores_of_seeds)
def test_the_chance_of_beating_is_mann_whitneys_u_over_all_pairs(first, second):
    u = (
        stats.mannwhitneyu(first, second, method="asymptotic").statistic
        if np.ptp(np.concatenate([first, second]))
        else len(first) * len(second) / 2
    )
    assert probability_of_beating(first, second) == pytest.approx(u / (len(first) * len(second)))


@given(scores_of_seeds, scores_of_seeds)
def test_a_pair_read_backwards_is_its_mirror(first, second):
    there, back = contrast("a", first, "b", second), contrast("b", second, "a", first)
    assert there.probability + back.probability == pytest.approx(1.0)
    assert there.difference == -back.difference


@given(scores_of_seeds)
def test_a_rule_beats_its_mirror_half_the_time(scores):
    assert probability_of_beating(scores, scores[::-1]) == pytest.approx(0.5)


@pytest.mark.parametrize("spread", [0.0, 1e-160])
def test_scores_without_spread_have_an_interval_of_no_width(spread):
    same = np.full(5, 500.0) if spread == 0.0 else np.arange(5) * spread
    summary = summarize_scores(same)
    np.testing.assert_allclose(summary.interval, (summary.mean,) * 3, atol=1e-100)
    pair = contrast("a", same, "b", same + 0.0)
    assert pair.probability == 0.5
    np.testing.assert_allclose(pair.interval, (0.0, 0.0, 0.0), atol=1e-100)


def test_below_five_seeds_there_is_no_interval():
    four, five = np.arange(4.0), np.arange(5.0)
    assert summarize_scores(four).interval is None
    assert summarize_scores(five).interval is not None
    assert welch_interval(four, five) is None
    assert welch_interval(five, five) is not None


@pytest.mark.parametrize("seeds", [5, 10])
def test_intervals_cover_the_truth_95_times_in_100(seeds):
    rng = np.random.default_rng(0)
    hits = np.zeros(2)
    for _ in range(2000):
        wide, narrow = rng.normal(3.0, 4.0, seeds), rng.normal(1.0, 1.0, 2 * seeds)
        for i, (truth, interval) in enumerate(
            [(3.0, summarize_scores(wide).interval), (2.0, welch_interval(wide, narrow))]
        ):
            hits[i] += interval.low <= truth <= interval.high
    np.testing.assert_allclose(hits / 2000, 0.95, atol=0.015)


# --- telling the result -------------------------------------------------------------------------


def test_the_table_opens_with_nothing_but_the_rule():
    text = table(made_up({"trpo": [1.0] * 5, "ppo": [2.0] * 5}))
    assert text.splitlines()[:2] == [
        "What differed between the rules",
        "  CartPole-v1: nothing but the rule",
    ]


def test_the_table_shows_every_number_beside_its_method():
    text = table(made_up({"trpo": [100.0, 110.0, 120.0, 130.0, 190.0], "ppo": [100.0] * 6}))
    rows = [line.split() for line in text.splitlines()]
    assert ["rule", "n", "final", "interval", "median", "IQM", "best"] in rows
    assert ["trpo", "5", "130.0", "[86.1,", "173.9]", "120.0", "120.0", "140.0"] in rows
    assert ["ppo", "6", "100.0", "[100.0,", "100.0]", "100.0", "100.0", "110.0"] in rows
    assert ["trpo", "over", "ppo", "0.90", "+30.0", "[-13.9,", "+73.9]"] in rows
    footer = text.partition("How the numbers are computed")[2]
    for name in ("n", "final", "interval", "median", "IQM", "best", "beats", "difference"):
        assert f"\n  {name} " in footer
    assert "20 fresh deterministic episodes" in " ".join(footer.split())


def test_the_table_and_the_picture_say_that_they_measure_different_things(monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(plots, "plot_curves", lambda *curves, **how: drawn.append(how))
    comparison = made_up({"trpo": [1.0], "ppo": [2.0]})
    write_outputs(comparison, tmp_path)
    assert drawn[0]["ylabel"] == "return of training episodes (sampled actions)"
    (line,) = [line for line in table(comparison).splitlines() if line.startswith("  curves")]
    assert "training episodes, with sampled actions" in line


def test_below_five_seeds_the_table_shows_points_and_says_why():
    text = table(made_up({"trpo": [1.0, 2.0, 3.0], "ppo": [2.0, 2.0, 2.0]}, best=False))
    results, _, footer = text.partition("How the numbers are computed")
    assert "interval" not in results
    assert "[" not in results
    assert "best" not in text
    assert "a percentile bootstrap of three covers the mean 75 %" in " ".join(footer.split())


def test_one_rule_alone_has_scores_and_no_pairs():
    text = table(made_up({"trpo": [1.0] * 5}))
    assert "over" not in text.partition("How the numbers")[0]
    assert "beats" not in text


def test_scores_that_are_all_zero_are_a_table_like_any_other():
    text = table(made_up({"trpo": [0.0] * 5, "ppo": [0.0] * 5}))
    assert "0.50" in text
    assert "nan" not in text


def test_failures_are_in_the_table_even_where_nothing_else_is():
    failed = Comparison((), {}, {}, 20, (Failure("CartPole-v1 ppo seed 0", "it fell"),))
    assert "CartPole-v1 ppo seed 0: it fell" in table(failed)
    assert "no cell has a score" in table(failed)
    json.dumps(to_dict(failed), allow_nan=False)


def test_the_dictionary_is_strict_json_and_holds_the_tables_numbers():
    comparison = made_up({"trpo": [1.0, 2.0, 3.0, 4.0, 10.0], "ppo": [1.0, 2.0]}, best=False)
    told = json.loads(json.dumps(to_dict(comparison), allow_nan=False))
    trpo, ppo = told["results"][ENV]["rules"].values()
    assert (trpo["n"], trpo["mean"], trpo["best_mean"]) == (5, 4.0, None)
    assert len(trpo["interval"]) == 2
    assert ppo["interval"] is None
    (pair,) = told["results"][ENV]["pairs"]
    assert (pair["first"], pair["second"], pair["interval"]) == ("trpo", "ppo", None)
    assert len(told["scores"]) == 7
    assert "no interval" in told["methods"]


def test_scores_csv_reads_back_as_the_scores(tmp_path):
    comparison = made_up({"trpo": [0.1 + 0.2, -1e-9, 1e9], "ppo": [1 / 3]})
    comparison = replace(
        comparison, scores=(comparison.scores[0]._replace(best=None), *comparison.scores[1:])
    )
    csv_path, picture = write_outputs(comparison, tmp_path / "new")
    assert picture.read_bytes().startswith(b"\x89PNG")
    with open(csv_path, newline="") as file:
        read = [
            Score(
                row["env"],
                row["rule"],
                int(row["seed"]),
                float(row["final"]),
                float(row["best"]) if row["best"] else None,
                int(row["env_steps"]),
                row["path"],
            )
            for row in csv.DictReader(file)
        ]
    assert tuple(read) == comparison.scores


def test_a_place_that_cannot_be_written_is_a_storage_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="making"):
        write_outputs(made_up({"trpo": [1.0]}), tmp_path / "file" / "out")


# --- training the cells -------------------------------------------------------------------------


def test_a_cell_is_an_ordinary_run_with_its_score_beside_it(trained):
    result, _, out = trained
    path = out / ENV / "vpg" / "seed-0"
    score = json.loads((path / "score.json").read_text())
    vpg = result.of(ENV, "vpg")[0]
    assert vpg.path == str(path)
    assert vpg.final == score["return_mean"] == pytest.approx(np.mean(score["returns"]))
    assert len(score["returns"]) == 3
    assert vpg.env_steps == 96
    assert result.rules(ENV) == ("vpg", "ppo")
    assert result.differences == {ENV: ()}
    assert result.failures == ()
    assert RunDirectory(path).config["train"]["seed"] == 0


def test_cells_are_evaluated_about_ten_times_so_that_best_stands_beside_final(trained):
    result, _, out = trained
    config = RunDirectory(out / ENV / "ppo" / "seed-0").config
    assert config["train"]["eval_every"] == 10
    curve = result.curves[ENV, "ppo", 0]
    assert list(curve.eval_steps) == [32, 64, 96]
    assert result.of(ENV, "ppo")[0].best == max(curve.eval_returns)


def test_the_number_of_cells_comes_first_then_a_line_a_cell_with_the_time_left(trained):
    first, *lines = trained[1]
    assert first == "2 cells with 1 job"
    assert [line.partition(":")[0] for line in lines] == [f"{ENV} vpg seed 0", f"{ENV} ppo seed 0"]
    assert re.search(r"final return [\d.]+, \d+ s \(1 of 2, about \d+ s left\)$", lines[0])
    assert lines[-1].endswith("(2 of 2)")


def test_the_same_command_twice_trains_nothing_again(trained, out):
    before, told = files(out), []
    result = compare([ENV], RULES, seeds=1, out=out, progress=told.append, **TINY)
    assert files(out) == before
    assert told == []
    assert [s.final for s in result.scores] == [s.final for s in trained[0].scores]


def test_one_seed_more_adds_only_that_seed(out):
    before, told = files(out), []
    result = compare([ENV], RULES, seeds=2, out=out, progress=told.append, **TINY)
    assert {name: time for name, time in files(out).items() if name in before} == before
    assert [score.seed for score in result.scores] == [0, 0, 1, 1]
    assert len(told) == 3
    first, _, second, _ = (score.final for score in result.scores)
    assert first != second


def test_a_cell_that_lost_its_last_iteration_goes_on_from_the_one_before(trained, out):
    path = out / ENV / "vpg" / "seed-0"
    (path / "score.json").unlink()
    shutil.rmtree(path / "checkpoints" / "step-000000096")
    lines = (path / "metrics.jsonl").read_text().splitlines()
    result = compare([ENV], RULES, seeds=1, out=out, progress=silent, **TINY)
    again = (path / "metrics.jsonl").read_text().splitlines()
    assert again[:2] == lines[:2]
    assert len(again) == 3
    assert again[2] != lines[2]
    assert result.of(ENV, "ppo") == tuple(
        s._replace(path=s.path.replace(str(trained[2]), str(out)))
        for s in trained[0].of(ENV, "ppo")
    )


def test_a_cell_killed_before_its_first_checkpoint_starts_again(trained, out):
    path = out / ENV / "vpg" / "seed-0"
    (path / "score.json").unlink()
    shutil.rmtree(path / "checkpoints")
    result = compare([ENV], RULES, seeds=1, out=out, progress=silent, **TINY)
    assert result.of(ENV, "vpg")[0].final == trained[0].of(ENV, "vpg")[0].final
    assert len(RunDirectory(path).rows()) == 3


def test_a_signal_stops_the_comparison_and_the_same_command_goes_on(tmp_path):
    steps = []

    def interrupting():
        class Interrupting(gymnasium.Wrapper):
            def step(self, action):
                steps.append(1)
                if len(steps) == 40:  # in the second iteration
                    os.kill(os.getpid(), signal.SIGTERM)
                return self.env.step(action)

        return Interrupting(gymnasium.make(ENV))

    how = {"seeds": 1, "out": tmp_path, "progress": silent, **TINY}
    how["shared"] = shared_with(eval_every=0)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ComparisonStopped, match="stopped by SIGTERM") as stopped:
        compare([interrupting], RULES[:1], **how)
    assert stopped.value.number == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before
    (path,) = (file.parent for file in tmp_path.rglob("config.json"))
    assert len(RunDirectory(path).rows()) == 1  # the rollout of the second was dropped
    result = compare([interrupting], RULES[:1], **how)
    assert len(RunDirectory(path).rows()) == 3
    assert result.scores[0].env_steps == 96
    assert result.scores[0].best is None


def test_cells_of_other_settings_are_refused_and_the_settings_listed(trained, out):
    before = files(out)
    other = TINY | {"shared": SHARED._replace(critic=Critic(num_minibatches=2, num_epochs=3))}
    rules = (VPG(learning_rate=1.0), RULES[1])
    with pytest.raises(ConfigError) as refused:
        compare([ENV], rules, seeds=2, out=out, progress=print, **other)
    for told in (
        "rule.learning_rate is 0.005 there and 1.0 here",
        "critic.num_epochs is 1 there and 3 here",
        "critic.num_minibatches is 1 there and 2 here",
    ):
        assert told in str(refused.value)
    assert files(out) == before


def test_a_cell_that_fails_is_named_and_the_others_stand(out, capsys):
    def broken():
        class Broken(gymnasium.Wrapper):
            def step(self, action):
                raise RuntimeError("the hinge is gone")

        return Broken(gymnasium.make(ENV))

    told = []
    result = compare([broken, ENV], RULES, seeds=1, out=out, progress=told.append, **TINY)
    assert [score.rule for score in result.scores] == ["vpg", "ppo"]
    assert [failure.cell.split()[1] for failure in result.failures] == ["vpg", "ppo"]
    assert all("the hinge is gone" in failure.message for failure in result.failures)
    assert told[0] == "2 cells with 1 job; 2 of 4 are finished already"
    assert "Cells without a score" in table(result)
    assert "the hinge is gone" in table(result)


@pytest.mark.thorough
def test_a_cell_trained_in_a_process_of_its_own_is_the_same_cell(trained, tmp_path):
    told = []
    how = {"seeds": 1, "out": tmp_path, "workers": Workers(jobs=2), "progress": told.append, **TINY}
    result = compare([ENV], RULES[:1], **how)
    assert [s.final for s in result.scores] == [s.final for s in trained[0].of(ENV, "vpg")]
    assert len(told) == 2


def test_every_rule_gets_one_shared_setting_unless_tuned(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(
        comparing,
        "_train_all",
        lambda groups, *_: (
            seen.extend(cell for (cell,) in groups) or {cell.name: "not now" for (cell,) in groups}
        ),
    )
    for preset in ("auto", "tuned"):
        shared = SharedSettings(preset=preset)
        compare(["Hopper-v5"], ["trpo", "ppo"], seeds=1, out=tmp_path, shared=shared)
    trpo, ppo, tuned_trpo, tuned_ppo = (cell.settings for cell in seen)
    assert (trpo.train, trpo.network, trpo.critic) == (ppo.train, ppo.network, ppo.critic)
    assert trpo.rule == TRPO()
    assert (tuned_trpo.critic.num_epochs, tuned_ppo.critic.num_epochs) == (20, 10)
    assert tuned_trpo.rule.max_kl == 0.04


@pytest.mark.parametrize(
    ("envs", "rules", "how", "message"),
    [
        (["CartPol-v1"], ["trpo"], {}, "did you mean CartPole-v1"),
        (["gymnax:CartPol-v1"], ["trpo"], {}, "did you mean CartPole-v1"),
        (["tabular:chan"], ["trpo"], {}, "unknown MDP chan"),
        ([ENV], ["pppo"], {}, "no rule pppo; did you mean ppo"),
        ([ENV], ["trpo", TRPO(max_kl=0.1)], {}, "rule trpo is given twice"),
        ([ENV, ENV], ["trpo"], {}, "environment CartPole-v1 is given twice"),
        ([], ["trpo"], {}, "no environment is given"),
        ([ENV], ["trpo"], {"seeds": 0}, "seeds must be at least 1"),
        (
            [ENV],
            ["trpo"],
            {"shared": SharedSettings(critic=Critic(num_minibatches=7))},
            "does not divide",
        ),
        ([ENV], ["trpo"], {"workers": Workers(2, 2)}, "devices and jobs cannot be combined"),
        (
            [lambda: None],
            ["trpo"],
            {"workers": Workers(jobs=2)},
            "with several jobs an environment must be an id",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_trained(
    envs, rules, how, message, tmp_path
):
    with pytest.raises(ConfigError, match=message):
        compare(envs, rules, **{"seeds": 2, "out": tmp_path / "out", **how})
    assert not (tmp_path / "out").exists()


def test_one_environment_object_cannot_serve_every_cell(tmp_path):
    env = gymnasium.make(ENV)
    with pytest.raises(ConfigError, match="each cell opens its own"):
        compare([env], ["trpo"], seeds=1, out=tmp_path)
    env.close()


# --- reading finished runs ----------------------------------------------------------------------


def test_finished_runs_are_read_from_wherever_they_are(trained, out):
    result = read_runs([out / ENV / "ppo" / "seed-0", out / ENV / "vpg"], episodes=3)
    assert result.rules(ENV) == ("ppo", "vpg")
    assert {s.final for s in result.scores} == {s.final for s in trained[0].scores}


def test_a_run_without_a_score_is_evaluated_and_the_score_kept(trained, out):
    path = out / ENV / "vpg" / "seed-0"
    (path / "score.json").write_text('{"episodes": 3, "return_mean": NaN}')
    result = read_runs([path], episodes=3)
    assert result.scores[0].final == trained[0].of(ENV, "vpg")[0].final
    assert json.loads((path / "score.json").read_text())["return_mean"] == result.scores[0].final


def test_settings_that_differed_are_listed_with_each_rules_value(out):
    change_config(out / ENV / "vpg" / "seed-0", "critic", num_epochs=20)
    change_config(out / ENV / "vpg" / "seed-0", "network", hidden=[16, 8])
    change_config(out / ENV / "vpg" / "seed-0", "versions", surefoot="0.0.1")
    result = read_runs([out], episodes=3)
    critic, network, version = sorted(result.differences[ENV])
    assert critic == "critic.num_epochs: ppo 1, vpg 20"
    assert network == "network.hidden: ppo 8, vpg 16 8"
    assert version.startswith("versions.surefoot: ppo ")
    assert version.endswith(", vpg 0.0.1")
    assert table(result).splitlines()[1] == f"  CartPole-v1: {result.differences[ENV][0]}"


def test_runs_of_one_rule_with_other_settings_are_not_taken_for_seeds(out):
    wide = shutil.copytree(out / ENV / "ppo" / "seed-0", out / "wide")
    change_config(wide, "rule", clip_eps=0.4)
    result = read_runs([out / ENV, wide], episodes=3)
    assert result.rules(ENV) == ("ppo#1", "vpg", "ppo#2")
    assert result.differences[ENV] == ("rule.clip_eps: ppo#1 0.2, ppo#2 0.4",)


def test_environments_of_other_arguments_are_other_environments(out):
    path = out / ENV / "ppo" / "seed-0"
    change_config(path, "env_kwargs", sutton_barto_reward=True)
    assert read_runs([out], episodes=3).envs == (
        'CartPole-v1 {"sutton_barto_reward": true}',
        ENV,
    )


def test_one_run_is_not_counted_twice(out):
    path = out / ENV / "ppo" / "seed-0"
    assert len(read_runs([path, path], episodes=3).scores) == 1
    copy = shutil.copytree(path, out / "copy")
    with pytest.raises(ConfigError, match="are the same run twice"):
        read_runs([path, copy], episodes=3)


@case(112)
@pytest.mark.parametrize("scored", [False, True])
def test_an_unfinished_run_is_no_result(out, scored):
    """Nor is one that was scored, went on to more steps and was lost on the way."""
    path = out / ENV / "ppo" / "seed-0"
    change_config(path, "train", steps=320)
    if not scored:
        (path / "score.json").unlink()
    with pytest.raises(ConfigError, match=r"not finished \(iteration 3 of 10\)"):
        read_runs([path], episodes=3)


# --- seeds in one program -----------------------------------------------------------------------

NATIVE = "gymnax:CartPole-v1"
# Steps long enough that KL, a millionth of a nat by default, is no rounding in float32.
LONG_STEPS = VPG(learning_rate=0.05)
NATIVE_TRAIN = {"dispatch": 1, "eval_every": 64}
NATIVE_SHARED = shared_with(**NATIVE_TRAIN)
TINY_NATIVE = TINY | {"shared": NATIVE_SHARED}


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """Three seeds on a JAX-native environment, what was told, and their directory."""
    out, told = tmp_path_factory.mktemp("together") / "out", []
    result = compare([NATIVE], [LONG_STEPS], seeds=3, out=out, progress=told.append, **TINY_NATIVE)
    return result, told, out


def seed_path(out, seed):
    return out / folder_name(NATIVE) / "vpg" / f"seed-{seed}"


def timeless(rows):
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


@pytest.mark.thorough
def test_seeds_of_a_compiled_environment_are_trained_together_and_are_ordinary_runs(together):
    result, told, out = together
    assert "the seeds of a JAX-native environment are trained as one program" in told[0]
    assert [line.partition(":")[2].partition(":")[0] for line in told[1:]] == [
        f"CartPole-v1 vpg seed {seed}" for seed in range(3)
    ]
    assert len({score.final for score in result.scores}) > 1
    assert all(score.best is not None for score in result.scores)
    for seed in range(3):
        directory = RunDirectory(seed_path(out, seed))
        assert directory.config["train"]["seed"] == seed
        assert [path.name for path in directory.checkpoints()] == [
            f"step-{steps:09d}" for steps in (32, 64, 96)
        ]
        own = Train(**TRAIN | NATIVE_TRAIN)
        groups = {"network": SHARED.network, "critic": SHARED.critic}
        alone = train(NATIVE, LONG_STEPS, steps=96, seed=seed, train=own, **groups)
        rows = directory.rows()
        assert len(rows) == len(alone.rows) == 3
        assert [row["time/compile"] > 0 for row in rows] == [True, False, False]
        for row, expected in zip(timeless(rows), timeless(alone.rows), strict=True):
            assert set(row) == set(expected)
            for name, value in row.items():
                assert value == pytest.approx(expected[name], rel=1e-3, abs=1e-4), name
        run = load(seed_path(out, seed))
        assert run.finished
        assert run.evaluate(3)["return_mean"] == result.scores[seed].final


@pytest.mark.thorough
def test_seeds_shared_out_among_devices_are_the_same_runs(together, tmp_path):
    """Three seeds on two devices: one of them is there twice."""
    how = TINY_NATIVE | {"progress": silent, "workers": Workers(devices=2)}
    result = compare([NATIVE], [LONG_STEPS], seeds=3, out=tmp_path, **how)
    assert not result.failures
    for seed in range(3):
        one, other = (RunDirectory(seed_path(out, seed)).rows() for out in (together[2], tmp_path))
        for row, expected in zip(timeless(one), timeless(other), strict=True):
            for name, value in row.items():
                assert value == pytest.approx(expected[name], rel=1e-3, abs=1e-4), name


def test_devices_that_would_stand_idle_are_refused(tmp_path):
    how = TINY_NATIVE | {"out": tmp_path / "out", "workers": Workers(devices=2)}
    with pytest.raises(ConfigError, match="2 devices need as many seeds, got 1"):
        compare([NATIVE], [LONG_STEPS], seeds=1, **how)
    with pytest.raises(ConfigError, match="share out the seeds of JAX-native environments"):
        compare([ENV], RULES[:1], seeds=2, **how)


@pytest.mark.thorough
def test_seeds_together_go_on_from_where_each_stands(together, tmp_path):
    out = shutil.copytree(together[2], tmp_path / "out")
    spoilt = {
        0: ("step-000000096",),
        1: ("step-000000096",),
        2: ("step-000000064", "step-000000096"),
    }
    for seed, steps in spoilt.items():
        (seed_path(out, seed) / "score.json").unlink()
        for step in steps:
            shutil.rmtree(seed_path(out, seed) / "checkpoints" / step)
    told = []
    result = compare([NATIVE], [LONG_STEPS], seeds=4, out=out, progress=told.append, **TINY_NATIVE)
    assert len(told) == 5
    for seed in range(3):
        before = timeless(RunDirectory(seed_path(together[2], seed)).rows())
        after = timeless(RunDirectory(seed_path(out, seed)).rows())
        assert len(after) == len(before)
        # Programs of other numbers of seeds may round otherwise.
        for row, expected in zip(after, before, strict=True):
            assert row == pytest.approx(expected, rel=1e-3, abs=1e-4)
        final = together[0].scores[seed].final
        assert result.scores[seed].final == pytest.approx(final, rel=1e-3)
    assert len(RunDirectory(seed_path(out, 3)).rows()) == 3


@pytest.mark.thorough
def test_one_seed_that_fails_leaves_those_beside_it_be(together, tmp_path, monkeypatch):
    advance = loop.Loop.advance

    def failing(self, stopping):
        advance(self, stopping)
        if self.run.settings.train.seed == 1 and self.run.iteration == 2:
            raise NotFiniteError("2 updates in a row were not finite")

    monkeypatch.setattr(loop.Loop, "advance", failing)
    out = tmp_path / "out"
    result = compare([NATIVE], [LONG_STEPS], seeds=3, out=out, progress=silent, **TINY_NATIVE)
    (failure,) = result.failures
    assert failure.cell == f"{NATIVE} vpg seed 1"
    assert "not finite" in failure.message
    finals = [together[0].scores[seed].final for seed in (0, 2)]
    assert [score.final for score in result.scores] == finals
    assert len(RunDirectory(seed_path(out, 1)).rows()) == 2


@pytest.mark.thorough
def test_a_bug_in_one_seed_costs_those_that_are_not_done_and_is_named(
    together, tmp_path, monkeypatch
):
    advance = loop.Loop.advance

    def failing(self, stopping):
        advance(self, stopping)
        if self.run.settings.train.seed == 1 and self.run.finished:
            raise RuntimeError("a bug")

    monkeypatch.setattr(loop.Loop, "advance", failing)
    out = tmp_path / "out"
    result = compare([NATIVE], [LONG_STEPS], seeds=3, out=out, progress=silent, **TINY_NATIVE)
    assert {failure.message for failure in result.failures} == {"RuntimeError: a bug"}
    monkeypatch.setattr(loop.Loop, "advance", advance)
    result = compare([NATIVE], [LONG_STEPS], seeds=3, out=out, progress=silent, **TINY_NATIVE)
    finals = [score.final for score in together[0].scores]
    assert [score.final for score in result.scores] == pytest.approx(finals, rel=1e-3)


@pytest.mark.thorough
def test_a_seed_whose_last_checkpoint_cannot_be_written_leaves_the_others_be(
    together, tmp_path, monkeypatch
):
    close = loop.Loop.close

    def full(self, fault):
        if self.run.settings.train.seed == 0:
            raise StorageError("the disk is full")
        close(self, fault)

    monkeypatch.setattr(loop.Loop, "close", full)
    out = tmp_path / "out"
    result = compare([NATIVE], [LONG_STEPS], seeds=3, out=out, progress=silent, **TINY_NATIVE)
    (failure,) = result.failures
    assert failure.cell == f"{NATIVE} vpg seed 0"
    assert "the disk is full" in failure.message
    assert [s.final for s in result.scores] == [s.final for s in together[0].scores[1:]]


def test_jobs_side_by_side_share_the_memory(monkeypatch, capsys):
    monkeypatch.setattr("surefoot.training.memory.memory_of", lambda program: 30)
    monkeypatch.setattr("surefoot.training.memory.memory_left", lambda: 40)
    assert [fitting(None, 3), fitting(None, 3, jobs=2), fitting(None, 1, jobs=2)] == [3, 2, 1]
    assert capsys.readouterr().err.count("at a time") == 1


@pytest.mark.thorough
def test_a_signal_stops_all_seeds_with_a_checkpoint_each(together, tmp_path, monkeypatch):
    advance = loop.Loop.advance

    def interrupted(self, stopping):
        if self.run.settings.train.seed == 1 and self.run.iteration == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        advance(self, stopping)

    monkeypatch.setattr(loop.Loop, "advance", interrupted)
    out, how = tmp_path / "out", TINY_NATIVE | {"progress": silent}
    how["shared"] = shared_with(**NATIVE_TRAIN, checkpoint_every=96)
    with pytest.raises(ComparisonStopped):
        compare([NATIVE], [LONG_STEPS], seeds=3, out=out, **how)
    for seed in range(3):
        assert [p.name for p in RunDirectory(seed_path(out, seed)).checkpoints()] == [
            "step-000000064"
        ]
    monkeypatch.setattr(loop.Loop, "advance", advance)
    result = compare([NATIVE], [LONG_STEPS], seeds=3, out=out, **how)
    assert [s.final for s in result.scores] == [s.final for s in together[0].scores]


@pytest.mark.thorough
def test_seeds_that_do_not_fit_together_are_trained_in_turns(
    together, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("surefoot.training.memory.memory_of", lambda program: 30)
    monkeypatch.setattr("surefoot.training.memory.memory_left", lambda: 29)
    monkeypatch.setattr("surefoot.training.run.check_size", lambda shapes, what: None)
    result = compare([NATIVE], [LONG_STEPS], seeds=2, out=tmp_path, progress=silent, **TINY_NATIVE)
    assert "2 seeds at once need" in capsys.readouterr().err
    assert [s.final for s in result.scores] == [s.final for s in together[0].scores[:2]]
