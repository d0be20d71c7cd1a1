"""Lower bounds of a gain, from rows."""

import numpy as np
import pytest

from surefoot.formulas.sampled_bounds import sampled_bounds

GAMMA, HORIZON = 0.9, 10.0


def bounds(lift, half_moved, size, *, kl, worst_kl):
    """Of two episodes of the same three rows."""
    weights = np.tile(GAMMA ** np.arange(3), 2)
    mass = np.full(2, weights[:3].sum())
    columns = [weights, *(np.tile(each, 2) for each in (lift, half_moved, size))]
    promise = np.full(2, weights[:3] @ lift)
    return promise[0], sampled_bounds(
        np.stack(columns, axis=1), promise, mass, kl * mass,
        worst_kl=worst_kl, gamma=GAMMA, horizon=HORIZON,
    )  # fmt: skip


def test_a_step_that_moves_nothing_is_bounded_by_its_promise():
    zeros = np.zeros(3)
    promise, found = bounds(zeros, zeros, np.ones(3), kl=0.0, worst_kl=(0.0, 0.0))
    assert promise == 0.0
    assert found == {"B6": 0.0, "B10": 0.0, "B11": 0.0}


def test_bounds_are_those_of_the_theory_on_rows():
    lift, half_moved, size = np.array([[0.2, -0.1, 0.3], [0.1, 0.2, 0.1], [1.0, 0.5, 2.0]])
    promise, found = bounds(lift, half_moved, size, kl=0.01, worst_kl=(0.04, 0.05))
    assert found["B6"] == pytest.approx(promise - 4 * 2.0 * GAMMA * HORIZON**2 * 0.04)
    mass = (GAMMA ** np.arange(3)).sum()
    path = GAMMA * 0.01 * mass
    moved = GAMMA * (GAMMA ** np.arange(3) @ half_moved)
    visits = min((path / 2) ** 0.5, (1 - np.exp(-path)) ** 0.5, moved)
    assert found["B10"] == pytest.approx(promise - HORIZON * 0.4 * visits)
    # For any rate the entropic expression bounds; the best of many is no better than B11 by much.
    share = np.append(GAMMA ** np.arange(3), HORIZON - mass) / HORIZON
    rates = np.geomspace(1e-3, 100.0, 400)
    moments = [np.log(share @ np.exp(-rate * np.append(lift, 0.0))) for rate in rates]
    best = max(-HORIZON / rates * (GAMMA * HORIZON * 0.05 + np.array(moments)))
    assert best - 0.2 * abs(best) <= found["B11"] <= best + 1e-9


def test_a_bound_that_is_not_finite_is_left_out():
    ones = np.ones(3)
    _, found = bounds(ones, ones, ones, kl=0.1, worst_kl=(np.inf, np.inf))
    assert set(found) == {"B10"}
