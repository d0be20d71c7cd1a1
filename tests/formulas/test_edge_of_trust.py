"""Where half of a promise is kept."""

import numpy as np
import pytest

from surefoot.formulas.edge_of_trust import find_edge
from surefoot.formulas.intervals import Interval

FRACTIONS = np.array([0.5, 1.0, 2.0])
NOISY = Interval(-0.1, -1.0, 1.0)


def sure(mean):
    return Interval(mean, mean - 0.01, mean + 0.01)


def test_the_edge_lies_where_the_line_between_two_sides_crosses():
    edge = find_edge(FRACTIONS, [sure(0.5), sure(1.0), sure(-2.0)])
    assert edge[:3] == (1.5, 1.0, 2.0)
    assert find_edge(FRACTIONS, [NOISY, sure(1.0), sure(-2.0)]).fraction == 1.5


def test_an_edge_beyond_the_points_or_before_them_is_said_to_be_there():
    assert find_edge(FRACTIONS, [sure(1.0)] * 3)[:3] == (None, 2.0, None)
    assert find_edge(FRACTIONS, [NOISY] * 3)[:3] == (None, None, None)
    assert find_edge(FRACTIONS, [sure(-1.0)] * 3)[:3] == (0.5, None, 0.5)


def test_several_points_around_the_edge_are_smoothed():
    fractions = np.array([0.9, 1.0, 1.1, 1.2])
    noise = np.array([0.01, -0.01, 0.01, -0.01])
    surplus = [sure(mean) for mean in fractions * (1.05 - fractions) + noise]
    assert find_edge(fractions, surplus).fraction == pytest.approx(1.05, abs=0.03)
