"""The words of a probe and of its picture, from measurements that are made up."""

import numpy as np
import pytest
from matplotlib.text import Text

import surefoot.analysis.plots.probe
from surefoot.analysis.probe.result import Point, Probe, RequiredBudget
from surefoot.analysis.report.appendix import StoredProbe, probe_section
from surefoot.formulas.edge_of_trust import Edge, find_edge
from surefoot.formulas.intervals import Interval


def around(mean, half=0.1):
    return Interval(mean, mean - half, mean + half)


def a_probe(*, own=5.0, fresh=4.0, realised=3.0, old=50.0, ratio=None, trust=None, reach=3.0):
    """A probe with these gains, which played fractions 1 and `reach`, and whose losses are sure."""
    points = tuple(
        Point(at, around(at), around(fresh * at), around(fresh), None, around(realised), 9, {})
        for at in (1.0, reach)
    )
    return Probe(
        title="update 3",
        iteration=3,
        source="both policies are the run's own",
        paired=True,
        gamma=0.99,
        gae_lambda=1.0,
        clip_eps=0.2,
        limit=500,
        budget=1000,
        steps=1000,
        pairs=9,
        in_sample=around(own),
        recorded=False,
        fresh=around(fresh),
        monte_carlo=around(fresh),
        realised=around(realised),
        noise=around(own - fresh),
        critic=around(0.0),
        visitation=around(fresh - realised),
        ratio=ratio,
        ratio_monte_carlo=ratio,
        needed=None if ratio else RequiredBudget(100, 12345),
        trust=trust or Edge(None, None, None),
        update=points,
        random=(),
        old_return=around(old),
        exact_kl=True,
    )


def said(probe):
    return " | ".join(probe.verdict())


def test_a_loss_that_does_not_matter_gets_no_remedy():
    assert "use more samples" in said(a_probe(own=6.0, fresh=4.0, old=50.0))
    small = said(a_probe(own=6.0, fresh=4.0, old=5000.0))
    assert "the largest significant loss is noise, below 1 % of the old policy's return" in small
    assert "use more samples" not in small


def test_where_no_less_was_realised_than_promised_nothing_is_called_lost():
    more = said(a_probe(own=5.0, fresh=4.0, realised=6.0))
    assert "nothing was lost in sum" in more
    assert "largest significant loss" not in more


def test_a_larger_budget_is_advised_only_where_there_is_a_gain_to_measure():
    worth, hardly = a_probe(fresh=4.0, old=50.0), a_probe(fresh=0.01, old=50.0)
    assert "it takes about 12,345 steps (100 pairs)" in said(worth)
    assert worth.worthwhile == worth.needed
    assert "there is hardly a gain to measure" in said(hardly)
    assert "12,345" not in said(hardly)
    assert hardly.worthwhile is None


def test_an_edge_that_was_not_found_is_not_where_half_is_surely_kept():
    found = said(a_probe(ratio=around(0.75), trust=Edge(None, 1.0, None), reach=5.0))
    assert "no edge of trust was found up to the largest step played, 5 times the update" in found
    assert "surely kept up to 1 times the update" in found


@pytest.mark.parametrize("first", [0.25, 1.0])
def test_an_edge_before_all_points_is_not_at_the_first_of_them(first, monkeypatch):
    fractions = np.array([first, 2.0])
    edge = find_edge(fractions, [around(-1.0), around(-2.0)])
    assert edge.before
    assert not find_edge(fractions, [around(1.0), around(-2.0)]).before
    assert not Edge(1.0, 1.0, 1.0).before
    probe = a_probe(ratio=around(0.2), trust=edge._replace(kl=0.1))
    assert f"significantly less than half is kept at {first:g} times the update" in said(probe)
    assert "half the promise is kept at" not in said(probe)
    figures = []
    monkeypatch.setattr(surefoot.analysis.plots.probe, "as_png", figures.append)
    probe.picture()
    words = [text.get_text() for text in figures[0].findobj(Text)]
    assert " edge of trust: before this" in words
    assert not any("half the promise is kept" in word for word in words if "•" not in word)


def test_lines_of_a_probe_are_sentences_on_the_page_of_a_report():
    record = {"verdict": ["of the promise 76 % was realised", "No loss.", ""]}
    found = probe_section(StoredProbe("update-000003", record, None)).finding
    assert found.endswith(" Of the promise 76 % was realised. No loss.")
