"""The planted-collapse suite: what counts as a collapse, and how warnings are fitted and scored."""

from dataclasses import replace
from itertools import pairwise

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import surefoot as sf
from research.collapses.cells import (
    ENVS,
    TRAINING_ENVS,
    TRAINING_FAULTS,
    all_cells,
    varied,
)
from research.collapses.conditions import CONDITIONS, LOOKBACK, WARMUP, scores_of
from research.collapses.driver import fingerprint, load
from research.collapses.labels import USUAL, Curve, label, smooth
from research.collapses.programs import (
    Phase,
    phases_of,
    settings_of,
    stack_dials,
    train_chunks,
    without_numbers,
)
from research.collapses.thresholds import (
    Judged,
    choose,
    first_flag,
    fit,
    fit_threshold,
    lead,
    score,
    tally,
)

RISE = np.linspace(0.0, 100.0, 20)


def curve(*levels):
    """A rise from 0 to 100 over twenty iterations, then ten iterations at each level."""
    return np.concatenate([RISE, *(np.full(10, float(level)) for level in levels)])


def curve_of(returns, steps=USUAL):
    return Curve(np.asarray(returns), np.ones(len(returns)), np.full(len(returns), steps))


def fate_of(returns, steps=USUAL, **how):
    return label(curve_of(returns, steps), **{"span": 100.0, "start": 0.0} | how)


def test_a_lasting_loss_of_half_the_gain_is_a_collapse():
    fate = fate_of(curve(100, 30))
    # Smoothed over three iterations, the fall to 30 shows as 77, 53, 30 from iteration 30 on.
    assert fate == ("collapsed", 31, 32, 31)


def test_a_loss_that_recovers_is_no_collapse():
    returns = curve(100, 100)
    returns[25:28] = 0.0
    assert fate_of(returns).fate == "faltered"
    assert fate_of(returns).first_quarter == 25


def test_a_run_that_keeps_what_it_gained_is_steady():
    assert fate_of(curve(100, 80)) == ("steady", None, None, None)


def test_a_run_that_never_learned_has_nothing_to_lose():
    assert fate_of(0.3 * curve(100, 0)).fate == "unlearned"
    assert fate_of(np.full(30, np.nan)).fate == "unlearned"


def test_the_quarter_point_is_where_the_fall_that_lasted_began():
    returns = curve(100, 100, 0)
    returns[22:24] = 0.0  # an earlier stumble
    fate = fate_of(returns)
    assert fate.fate == "collapsed"
    assert fate.first_quarter == 22
    assert fate.quarter == 40


def test_a_fall_that_flickers_is_a_collapse_if_it_is_half_on_average():
    returns = curve(100, 0, 0)
    returns[[34, 38, 42, 46]] = 100.0
    assert fate_of(returns).fate == "collapsed"


@given(st.floats(0.1, 1000.0), st.floats(-1e4, 1e4))
def test_a_fate_depends_on_neither_unit_nor_zero_of_the_return(unit, zero):
    for returns in (curve(100, 30), curve(100, 80), 0.3 * curve(100, 0), curve(100, 60)):
        moved = unit * returns + zero
        assert fate_of(moved, span=100 * unit, start=zero).fate == fate_of(returns).fate


def test_iterations_without_an_episode_carry_the_last_returns_on():
    returns = np.array([np.nan, 1.0, np.nan, 3.0, 5.0, 7.0])
    np.testing.assert_allclose(smooth(curve_of(returns)), [np.nan, 1.0, 1.0, 2.0, 4.0, 5.0])
    nothing = np.array([2.0, np.nan, np.nan, np.nan, np.nan, 4.0])
    np.testing.assert_allclose(smooth(curve_of(nothing)), [2.0, 2.0, 2.0, 2.0, 2.0, 4.0])


def test_every_episode_of_the_window_counts_alike():
    curve = Curve(np.array([1.0, 4.0, np.nan]), np.array([3.0, 1.0, 0.0]), np.full(3, USUAL))
    np.testing.assert_allclose(smooth(curve), [1.0, 1.75, 1.75])


def test_smaller_batches_are_smoothed_over_more_iterations_and_fare_alike():
    returns = curve(100, 100, 30)
    spread = np.repeat(returns, 4)
    assert fate_of(spread, USUAL // 4).fate == fate_of(returns).fate == "collapsed"
    noise = np.tile([0.0, 100.0, 100.0, 100.0], 40)
    assert fate_of(np.concatenate([np.repeat(RISE, 4), noise]), USUAL // 4).fate == "steady"


def run_of(fate, *, planted=None, quarter=None, **scores):
    return Judged(fate, planted, quarter, {k: np.asarray(v, float) for k, v in scores.items()})


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300))
def test_a_fitted_threshold_flags_one_healthy_run_in_a_hundred_at_most(peaks):
    threshold = fit_threshold([np.array([np.nan, peak, -1e9]) for peak in peaks])
    assert sum(peak >= threshold for peak in peaks) <= 0.01 * len(peaks)


def test_a_threshold_is_fitted_on_healthy_runs_alone():
    runs = [
        run_of("steady", a=[1.0, 2.0]),
        run_of("steady", planted=0, a=[9.0, 9.0]),
        run_of("collapsed", a=[8.0, 8.0]),
        run_of("unlearned", a=[8.0, 8.0]),
        run_of("faltered", a=[1.5, 0.0]),
    ]
    assert 2.0 < fit(runs, ["a"])["a"] < 3.0


def test_a_condition_that_is_never_told_of_healthy_runs_is_never_raised():
    assert fit_threshold([np.full(3, np.nan)]) == np.inf
    assert fit_threshold([]) == np.inf


def test_a_collapse_is_announced_between_its_fault_and_its_quarter_point():
    scores = [0, 9, 0, 0, 9, 0, 0, 9]
    late = run_of("collapsed", planted=5, quarter=7, a=scores)
    early = run_of("collapsed", planted=2, quarter=7, a=scores)
    assert lead(late, {"a": 1.0}) is None  # at row 1 nothing was planted, and row 7 is too late
    assert lead(early, {"a": 1.0}) == 3
    assert first_flag(late, {"a": 1.0}) == 1
    assert first_flag(late, {"a": 10.0}) is None


def test_the_union_takes_the_conditions_that_add_to_each_other():
    first = [run_of("collapsed", planted=0, quarter=2, a=[9, 0, 0], b=[9, 0, 0], c=[0, 0, 0])] * 3
    second = [run_of("collapsed", planted=0, quarter=2, a=[0, 0, 0], b=[0, 0, 0], c=[0, 9, 0])] * 2
    chosen = choose([*first, *second], {"a": 1.0, "b": 1.0, "c": 1.0})
    assert list(chosen) == ["a", "c"]


def test_a_score_counts_collapses_announced_and_healthy_runs_flagged():
    runs = [
        run_of("collapsed", planted=0, quarter=3, a=[0, 9, 0, 0]),
        run_of("collapsed", planted=0, quarter=3, a=[0, 0, 0, 9]),
        run_of("steady", a=[0, 0, 0, 9]),
        *[run_of("steady", a=[0, 0, 0, 0])] * 3,
        run_of("steady", planted=2, a=[9, 9, 9, 9]),  # survived its fault: neither
    ]
    scored = score(runs, {"a": 1.0})
    assert scored.hits[:2] == (1, 2)
    assert scored.false_alarms[:2] == (1, 4)
    assert scored.leads == (2.0, 2.0, 2.0)


def test_the_interval_of_a_share_is_clopper_and_pearsons():
    nothing, half = tally(0, 200), tally(5, 10)
    assert (nothing.low, round(nothing.high, 5)) == (0.0, round(1 - 0.025 ** (1 / 200), 5))
    np.testing.assert_allclose((half.low, half.high), (0.18709, 0.81291), atol=1e-5)


def metrics_of(length, seed=0):
    """A run's metrics, with every name that a condition may ask for."""
    rng = np.random.default_rng(seed)
    metrics = {name: rng.uniform(0.1, 1.0, length) for name in sorted(_Recorder.names())}
    return metrics | {"lens/realised_high": metrics["lens/realised_gain"] + 0.1}


class _Recorder(dict):
    """A window that notes which metrics are asked for."""

    def __init__(self):
        super().__init__()
        self.asked = set()

    def get(self, name, default=None):
        self.asked.add(name)
        return np.ones(LOOKBACK)

    def __getitem__(self, name):
        return self.get(name)

    @classmethod
    def names(cls):
        window = cls()
        for condition in CONDITIONS.values():
            condition.score(window)
        return window.asked


def test_a_score_knows_nothing_of_what_comes_next():
    whole = metrics_of(40)
    early = scores_of({name: values[:25] for name, values in whole.items()})
    for name, scores in scores_of(whole).items():
        np.testing.assert_array_equal(scores[:25], early[name], err_msg=name)


def test_a_score_looks_twenty_rows_back_at_most():
    one, other = metrics_of(45), metrics_of(45)
    for values in other.values():
        values[: 45 - LOOKBACK] = 7.0
    for name, scores in scores_of(one).items():
        np.testing.assert_array_equal(scores[-1], scores_of(other)[name][-1], err_msg=name)


def test_every_condition_can_be_told_and_none_during_the_warm_up():
    for name, scores in scores_of(metrics_of(40)).items():
        assert np.isfinite(scores[-1]), name
        assert np.isnan(scores[:WARMUP]).all(), name


def test_a_metric_that_a_run_does_not_log_raises_nothing():
    scores = scores_of({"policy/kl_mean": np.full(30, 0.01)})
    told = {name for name, values in scores.items() if np.isfinite(values).any()}
    assert told == {"kl-large", "kl-twice", "kl-surge"}


@pytest.mark.parametrize(
    ("name", "metric", "calm", "alarming"),
    [
        ("kl-surge", "policy/kl_mean", 0.01, 1.0),
        ("few-rows", "policy/ess_fraction", 0.9, 0.1),
        ("critic", "critic/explained_variance", 0.9, -1.0),
        ("entropy-fall", "policy/entropy", 1.0, 0.1),
        ("sure-harm", "lens/realised_gain", 1.0, -1.0),
        ("broken-promise-10", "lens/realised_gain", 1.0, -9.0),
        ("filtered-ratio", "lens/filtered_high", 1.0, -1.0),
        ("refused", "update/accepted", 1.0, 0.0),
        ("cosine", "lens/expected_cosine", 0.9, 0.0),
        ("noise", "lens/crossfit_promise", 0.9, 0.0),
    ],
)
def test_a_score_rises_as_things_get_worse(name, metric, calm, alarming):
    def scored(values):
        metrics = metrics_of(LOOKBACK) | {metric: values}
        if metric == "lens/realised_gain":
            metrics["lens/realised_high"] = values + 0.5
        return CONDITIONS[name].score(metrics)

    values = np.full(LOOKBACK, calm)
    before = scored(values)
    assert scored(np.r_[values[:-2], alarming, alarming]) > before


def test_no_two_cells_share_a_name_or_a_seed():
    cells = all_cells()
    assert len({cell.name for cell in cells}) == len(cells)
    seeds = sorted(seed for cell in cells for seed in cell.seeds)
    assert all(a < b for a, b in pairwise(seeds))


def test_held_out_cells_share_neither_environment_nor_fault_with_the_fit():
    cells = all_cells()
    for cell in cells:
        if cell.part == "held-out":
            assert cell.env not in TRAINING_ENVS
            assert cell.fault not in TRAINING_FAULTS
    healthy = [cell for cell in cells if cell.part == "held-out" and cell.planted is None]
    assert sum(len(cell.seeds) for cell in healthy) >= 200
    assert {cell.env for cell in healthy} == set(ENVS) - set(TRAINING_ENVS)
    assert {cell.rule for cell in healthy} == {"ppo", "ppo-kl", "trpo", "npg", "vpg"}


@pytest.mark.parametrize("cell", all_cells()[:20], ids=lambda cell: cell.name)
def test_runs_of_a_cell_differ_in_their_dials_only(cell):
    for phase in phases_of(cell):
        plain = without_numbers(phase.settings[0])
        assert all(without_numbers(other) == plain for other in phase.settings)
        numbers = stack_dials(phase).numbers
        for run, settings in enumerate(phase.settings):
            own = settings.traced()
            assert plain.with_arrays(own) == settings
            turned = {
                group: jax.tree.map(lambda leaf, i=run: leaf[i], numbers[group]) for group in own
            }
            assert turned == jax.tree.map(np.float32, own)


def test_a_remedy_is_laid_over_the_same_seeds():
    cell = all_cells()[-1]
    guarded = varied(cell, "guard")
    assert guarded.seeds == cell.seeds
    assert all(tables["train"]["guard"] for tables in (*guarded.before, *guarded.after))
    assert fingerprint(guarded) != fingerprint(cell)


def test_a_stored_cell_of_other_settings_is_trained_again(tmp_path):
    cell = all_cells()[0]
    path = tmp_path / "plain" / f"{cell.name}.npz"
    path.parent.mkdir()
    kl = np.zeros((8, 10))
    np.savez(path, fingerprint=np.array(fingerprint(cell)), **{"policy/kl_mean": kl})
    assert load(cell, tmp_path) is not None
    assert load(cell._replace(seeds=(1,)), tmp_path) is None


SMALL = {
    "train": {"num_envs": 4, "num_steps": 20, "steps": 20 * 80},
    "rule": {"num_epochs": 1, "num_minibatches": 2, "learning_rate": 0.01},
    "network": {"hidden": (8,)},
    "critic": {"num_epochs": 1, "num_minibatches": 2},
}


@pytest.mark.slow
def test_runs_side_by_side_are_those_of_the_library_and_a_dial_turns_from_its_row_on():
    env, seeds = "gymnax:Catch-bsuite", (3, 4)
    settings = settings_of(env, "ppo", SMALL)
    louder = replace(settings, rule=replace(settings.rule, learning_rate=0.1))
    kept = Phase(1, [settings, settings], [1.0, 1.0])
    turned = kept._replace(settings=[settings, louder])
    metrics = train_chunks([kept, turned], seeds)
    runs = sf.train_many(
        env,
        settings.rule,
        seeds=seeds,
        train=settings.train,
        network=settings.network,
        critic=settings.critic,
    )
    for name in ("policy/kl_mean", "episode/return_mean", "critic/explained_variance"):
        own = [[row.get(name, np.nan) for row in run.rows] for run in runs]
        np.testing.assert_allclose(metrics[name][0], own[0], rtol=1e-3, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(metrics[name][1, :10], own[1][:10], rtol=1e-3, atol=1e-6)
    assert metrics["policy/kl_mean"][1, 10] > 5 * runs[1].rows[10]["policy/kl_mean"]
    looked = np.isfinite(metrics["lens/crossfit_promise"])
    assert looked[:, [0, 10]].all()
    assert looked.sum() == 4


@pytest.mark.slow
def test_a_scale_of_rewards_is_undone_in_the_returns_that_are_told():
    settings = settings_of("gymnax:Catch-bsuite", "ppo", SMALL)
    plain, scaled = Phase(1, [settings] * 2, [1.0] * 2), Phase(1, [settings] * 2, [50.0] * 2)
    metrics = train_chunks([plain, scaled], (3, 4))
    assert np.isnan(metrics["episode/return_mean"][:, 10:14]).all()
    assert (metrics["episode/count"][:, 10:14] == 0).all()
    assert np.nanmax(np.abs(metrics["episode/return_mean"])) <= 1.0
    later, before = slice(15, 20), slice(1, 10)
    kept = metrics["normalize/return_scale"]
    assert (kept[:, later] > 3 * kept[:, before].max()).all()
