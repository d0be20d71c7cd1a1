"""Warnings look at rows alone, and are what the planted collapses were scored with."""

import numpy as np
import pytest

from research.collapses.conditions import CONDITIONS, LOOKBACK, WARMUP
from surefoot.diagnostics.catalogue import METRICS
from surefoot.diagnostics.warnings import (
    ALARMS,
    LOOK_BACK,
    SMOOTH,
    WARM_UP,
    LossOfReturn,
    WarningMonitor,
    explain_alarm,
)

pytestmark = pytest.mark.core


def rows_of(rng, length, hole=0.0):
    """Rows with every metric drawn anew; a share of them left out."""
    return [
        {"iteration": i + 1}
        | {name: float(rng.lognormal()) for name in METRICS if "/" in name and rng.random() >= hole}
        for i in range(length)
    ]


def window_of(rows):
    return {
        name: np.array([row.get(name, np.nan) for row in rows]) for name in METRICS if "/" in name
    }


@pytest.mark.parametrize("name", ALARMS)
@pytest.mark.parametrize("hole", [0.0, 0.3])
def test_a_warning_is_the_condition_that_was_scored(name, hole):
    rng = np.random.default_rng(0)
    for length in (1, 2, 6, 12, LOOK_BACK):
        for _ in range(20):
            rows = rows_of(rng, length, hole)
            scored, found = CONDITIONS[name].score(window_of(rows)), ALARMS[name].score(rows)
            assert (found is None) == bool(np.isnan(scored)), (length, found, scored)
            if found is not None:
                np.testing.assert_allclose(found, scored, rtol=1e-12)


def test_both_look_back_and_warm_up_alike():
    assert (LOOK_BACK, WARM_UP) == (LOOKBACK, WARMUP)


@pytest.mark.parametrize("name", ALARMS)
def test_a_warning_names_its_evidence_and_its_remedy(name):
    alarm = ALARMS[name]
    assert alarm.level in ("red", "amber")
    assert alarm.shows in METRICS
    assert f"{alarm.bound:g}" in alarm.evidence
    text = explain_alarm(name)
    for part in (alarm.what, alarm.evidence, alarm.remedy, alarm.shows):
        assert part in text


@pytest.mark.parametrize("name", ALARMS)
def test_a_warning_is_raised_at_its_bound_and_not_during_the_warm_up(name):
    quiet = {key: 1e-3 for key in METRICS if "/" in key}
    watchman = WarningMonitor()
    for i in range(WARM_UP):
        loud = {key: 1e3 for key in METRICS if "/" in key}
        assert watchman.see({"iteration": i + 1, **loud}) == []
    watchman = WarningMonitor({"iteration": i + 1, **quiet} for i in range(LOOK_BACK))
    alarm = ALARMS[name]
    assert name not in watchman.see({"iteration": LOOK_BACK + 1, **quiet})
    held = alarm._replace(score=lambda rows: alarm.bound)
    assert held.holds([quiet])
    assert not alarm._replace(score=lambda rows: alarm.bound * (1 - 1e-9)).holds([quiet])
    assert not alarm._replace(score=lambda rows: None).holds([quiet])
    assert not held.holds([])


def lost_at(returns):
    loss, found = LossOfReturn(), []
    for i, value in enumerate(returns):
        loss.see(value)
        if loss.is_lost:
            found.append(i)
    return found


def test_a_quarter_of_the_gain_is_lost_where_it_is_beyond_noise():
    rng = np.random.default_rng(0)
    rise = np.linspace(0.0, 100.0, 20) + rng.normal(size=20)
    kept = 100.0 + rng.normal(size=20)
    fallen = 70.0 + rng.normal(size=10)
    assert lost_at([*rise, *kept]) == []
    found = lost_at([*rise, *kept, *fallen])
    assert found[0] in range(40, 40 + SMOOTH)
    assert found[-1] == 49
    assert lost_at([*rise, *kept, *(80.0 + rng.normal(size=10))]) == []
    assert lost_at([*(rise - 500), *(kept - 500), *(fallen - 500)]) == found


def test_noise_alone_is_neither_a_gain_nor_a_loss():
    rng = np.random.default_rng(1)
    assert sum(bool(lost_at(rng.normal(size=300))) for _ in range(50)) <= 2


def test_a_fall_within_the_noise_of_a_small_gain_is_none():
    rng = np.random.default_rng(2)
    rise = np.linspace(0.0, 5.0, 20)
    runs = [np.concatenate([rise, np.full(100, 5.0)]) + rng.normal(size=120) for _ in range(20)]
    assert sum(bool(lost_at(run)) for run in runs) <= 1
