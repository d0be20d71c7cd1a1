import matplotlib.axes
import matplotlib.image
import numpy as np
import pytest

from surefoot.analysis.plots.curves import Series, plot_curves
from surefoot.errors import StorageError


def series(seed=0, length=20):
    return Series(np.arange(1, length + 1), np.random.default_rng(seed).normal(size=length))


@pytest.fixture
def drawn(monkeypatch):
    """What is drawn: `lines` as (label, x, y), `bands` as (x, low, high)."""
    seen = {"lines": [], "bands": []}
    plot, fill = matplotlib.axes.Axes.plot, matplotlib.axes.Axes.fill_between

    def spy_plot(axes, x, y, **how):
        seen["lines"].append((how.get("label"), np.asarray(x), np.asarray(y), how["color"]))
        return plot(axes, x, y, **how)

    def spy_fill(axes, x, low, high, **how):
        seen["bands"].append((np.asarray(x), low, high))
        return fill(axes, x, low, high, **how)

    monkeypatch.setattr(matplotlib.axes.Axes, "plot", spy_plot)
    monkeypatch.setattr(matplotlib.axes.Axes, "fill_between", spy_fill)
    return seen


def test_a_figure_is_800_pixels_wide(tmp_path):
    plot_curves({"trpo": [series()]}, tmp_path / "curve.png", title="CartPole-v1")
    assert matplotlib.image.imread(tmp_path / "curve.png").shape[:2] == (480, 800)


def test_a_label_without_values_is_no_error(tmp_path, drawn):
    plot_curves({"trpo": [series(length=0)], "ppo": []}, tmp_path / "curve.png")
    assert drawn["lines"] == []
    assert (tmp_path / "curve.png").exists()


def test_the_mean_is_taken_where_every_run_has_values(tmp_path, drawn):
    runs = [
        Series(np.array([0, 10, 20]), np.array([0.0, 10.0, 20.0])),
        Series(np.array([5, 15]), np.array([1.0, 3.0])),
    ]
    plot_curves({"trpo": runs}, tmp_path / "curve.png")
    *_, (_, x, mean, _) = drawn["lines"]
    assert list(x) == [5, 10, 15]
    np.testing.assert_allclose(mean, [(5 + 1) / 2, (10 + 2) / 2, (15 + 3) / 2])


def test_long_runs_are_drawn_as_means_of_groups(tmp_path, drawn):
    steps = np.arange(1, 251)
    plot_curves({"trpo": [Series(steps, steps * 2.0)]}, tmp_path / "curve.png")
    ((_, x, y, _),) = drawn["lines"]
    assert len(x) == 84  # 83 threes and one left over
    assert (x[0], y[0], x[-1], y[-1]) == (2.0, 4.0, 250.0, 500.0)


@pytest.mark.parametrize(("count", "bands"), [(4, 0), (5, 1)])
def test_a_band_is_drawn_from_five_seeds_on(tmp_path, drawn, count, bands):
    steps = np.array([10, 20])
    runs = [Series(steps, np.array([float(i), 7.0])) for i in range(count)]
    plot_curves({"trpo": runs}, tmp_path / "curve.png")
    assert len(drawn["bands"]) == bands
    for _, low, high in drawn["bands"]:
        half = 2.7764451 * np.sqrt(2.5 / 5)
        np.testing.assert_allclose([low[0], high[0]], [2.0 - half, 2.0 + half], rtol=1e-6)
        assert low[1] == high[1] == 7.0


def test_a_rule_has_its_colour_in_every_figure_and_no_two_share_one(tmp_path, drawn):
    one = [Series(np.array([1, 2]), np.array([1.0, 2.0]))]
    plot_curves({"ppo": one, "mine": one, "trpo": one}, tmp_path / "a.png")
    plot_curves({"trpo": one}, tmp_path / "b.png")
    ppo, mine, trpo, again = (color for *_, color in drawn["lines"])
    assert trpo == again
    assert len({ppo, mine, trpo}) == 3


def test_a_figure_that_cannot_be_written_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match="writing"):
        plot_curves({"trpo": [series()]}, tmp_path / "missing" / "curve.png")
