"""Ratios of means, and how many samples they need."""

import numpy as np
import pytest

from surefoot.formulas.intervals import mean_interval
from surefoot.formulas.ratios import (
    double_sample,
    pairs_needed,
    ratio_interval,
    ratio_of_sums,
    sample_mean,
)


def test_a_promise_within_two_errors_of_zero_has_no_ratio_but_a_number_of_pairs_that_would_do():
    rng = np.random.default_rng(0)
    gains, promises = rng.normal(size=(2, 100))
    assert ratio_interval(gains, promises) is None
    promise = max(abs(promises.mean()), promises.std(ddof=1) / 10)
    spread = max(gains.std(ddof=1), promises.std(ddof=1))
    wanted = (1.96 * spread / (0.25 * promise)) ** 2
    assert pairs_needed(gains, promises) == int(np.ceil(wanted))
    ratio = ratio_interval(gains + 2.0, promises + 4.0)
    assert ratio.low < 0.5 < ratio.high


def test_gains_that_are_all_equal_give_a_ratio_no_interval():
    promises = np.random.default_rng(0).normal(size=100) + 4.0
    for gain in (0.0, 2.0):
        assert ratio_interval(np.full(100, gain), promises) is None


def test_a_figure_without_an_interval_has_ends_that_are_not_numbers():
    one = np.array([3.0])
    assert sample_mean(one).mean == 3.0
    assert np.isnan(sample_mean(one).low)
    ratio = ratio_of_sums(np.array([1.0, 2.0]), np.array([2.0, 4.0]))
    assert ratio.mean == pytest.approx(0.5)
    assert np.isnan(ratio.high)


def test_a_figure_that_others_determine_is_known_as_well_as_they_are():
    known = np.random.default_rng(1).normal(size=(400, 1))
    few = 2.0 * known[:20, 0] + 1.0
    corrected, alone = double_sample(few, known), mean_interval(few)
    whole = mean_interval(2.0 * known[:, 0] + 1.0)
    assert corrected.mean == pytest.approx(whole.mean)
    assert corrected.high - corrected.low == pytest.approx(whole.high - whole.low, rel=0.1)
    assert corrected.high - corrected.low < 0.5 * (alone.high - alone.low)
