import re
import runpy
from pathlib import Path

import pytest

import surefoot as sf
from surefoot.diagnostics.catalogue import METRICS, explain
from surefoot.errors import ConfigError

ROOT = Path(__file__).parents[2]
SMALL = {
    "train": sf.Train(num_envs=2, num_steps=16, eval_every=32, eval_episodes=1),
    "network": sf.Network(hidden=(8,)),
    "critic": sf.Critic(num_minibatches=2, num_epochs=1),
}
RULES = [
    sf.VPG(),
    sf.NPG(),
    sf.TRPO(),
    sf.PPOKL(num_minibatches=2),
    sf.PPO(num_minibatches=2),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_every_logged_figure_is_in_the_table_and_every_rule_logs_the_same_diagnostics(rule):
    run = sf.train("CartPole-v1", rule, steps=32, **SMALL)
    logged = set(run.rows[-1])
    assert logged <= set(METRICS)
    shared = {"policy", "surrogate", "critic", "normalize", "episode", "eval", "time"}
    expected = {name for name in METRICS if name.partition("/")[0] in shared}
    # Neither is a figure of CartPole, and short rollouts may end no episode.
    absent = {"episode/is_success", "eval/success_rate"}
    absent |= {name for name in expected if name.startswith("episode/") and name not in logged}
    assert expected - absent <= logged


def test_the_page_of_metrics_is_the_table():
    page = runpy.run_path(str(ROOT / "docs" / "write_metrics.py"))["page"]()
    assert (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8") == page


@pytest.mark.core
@pytest.mark.parametrize("name", METRICS)
def test_a_metric_is_explained_without_another_ones_text(name):
    words = " ".join(METRICS[name])
    assert not re.search(r"\bthose\b|\bthem\b|\bas for\b", words)


@pytest.mark.core
def test_an_unknown_metric_is_answered_with_near_ones():
    with pytest.raises(ConfigError, match="policy/kl_mean"):
        explain("kl")
    with pytest.raises(ConfigError, match="policy/entropy"):
        explain("policy/entrpy")


@pytest.mark.core
def test_a_chosen_info_key_is_explained_as_such():
    assert "info['height']" in explain("episode/height")
