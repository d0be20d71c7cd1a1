"""Every preset resolves; `auto` changes between rules only what a rule's own table says."""

from dataclasses import replace

import pytest

from surefoot.config.presets import NAMES, PEERS, PRESETS, preset_tables, settle, settings_of
from surefoot.config.settings import RULES, Critic, Network, Train
from surefoot.errors import ConfigError

pytestmark = pytest.mark.core


def settled(env, rule, preset="auto", **how):
    return settle(env, RULES[rule](), Train(), Network(), Critic(), preset=preset, **how)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("env", PRESETS)
def test_the_preset_of_an_environment_resolves_for_every_rule(env, rule):
    settings = settled(env, rule)
    assert settings.rule.name == rule
    tables = preset_tables("auto", env, rule)
    for section, config in (("train", settings.train), ("rule", settings.rule)):
        for name, value in tables[section].items():
            assert getattr(config, name) == value, name
    # What a run froze is what a resume reads.
    assert settings_of(settings.to_dict()) == replace(settings, preset="none")


@pytest.mark.parametrize("env", PRESETS)
def test_rules_share_everything_but_themselves_where_only_shared_settings_hold(env):
    first, *others = [settled(env, rule, shared_only=True) for rule in RULES]
    for other in others:
        assert (other.train, other.network, other.critic) == (
            first.train,
            first.network,
            first.critic,
        )


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("preset", NAMES)
def test_every_named_preset_resolves_or_says_whose_it_is(preset, rule):
    if preset in PEERS and rule not in PEERS[preset]:
        with pytest.raises(ConfigError, match=f"that library has no {rule}"):
            settled("Unknown-v0", rule, preset)
        return
    settings = settled("Unknown-v0", rule, preset)
    assert settings.num_iterations * settings.batch_size >= settings.train.steps


@pytest.mark.parametrize("rule", RULES)
def test_an_environment_without_a_preset_has_the_defaults_but_for_steps_that_shrink(rule):
    auto, none = (settled("Unknown-v0", rule, preset) for preset in ("auto", "none"))
    assert (auto.train, auto.network, auto.critic) == (none.train, none.network, none.critic)
    ends = {"learning_rate_end", "max_kl_end"} & set(vars(none.rule))
    assert replace(auto.rule, **{name: getattr(none.rule, name) for name in ends}) == none.rule


@pytest.mark.parametrize("env", ["CartPole-v1", "Hopper-v5", "Unknown-v0"])
def test_steps_shrink_over_a_run_on_every_environment_unless_no_preset_is_asked_for(env):
    for rule in ("vpg", "ppo-kl", "ppo"):
        assert settled(env, rule).rule.learning_rate_end == 0
        assert settled(env, rule, shared_only=True).rule.learning_rate_end == 0
        plain = settled(env, rule, "none").rule
        assert plain.learning_rate_end == plain.learning_rate
    for rule in ("npg", "trpo"):
        falling, plain = settled(env, rule).rule, settled(env, rule, "none").rule
        assert falling.max_kl_end < falling.max_kl
        assert plain.max_kl_end == plain.max_kl


@pytest.mark.parametrize(
    ("env", "start", "end"),
    [("CartPole-v1", 0.0005, 0.00005), ("Hopper-v5", 0.004, 0.001), ("Hopper-v5", 0.04, 0.01)],
)
def test_a_radius_of_ones_own_keeps_the_share_at_its_end_and_never_grows(env, start, end):
    train, network, critic = Train(), Network(), Critic()
    given = settle(env, RULES["trpo"](max_kl=start), train, network, critic).rule
    tables = {"rule": {"max_kl": start}}
    filed = settle(env, RULES["trpo"](), train, network, critic, tables=tables).rule
    for rule in (given, filed):
        assert rule.max_kl == start
        assert rule.max_kl_end == pytest.approx(end)
    both = settle(env, RULES["trpo"](max_kl=start, max_kl_end=0.3), train, network, critic).rule
    assert both.max_kl_end == 0.3


def test_plain_turns_every_code_level_switch_off():
    settings = settled("Hopper-v5", "ppo", "plain")
    assert not settings.train.obs_norm
    assert not settings.train.return_norm
    assert not settings.network.ortho_init
    assert settings.rule.advantage_norm == "none"
    assert settings.rule.max_grad_norm == settings.critic.max_grad_norm == 0.0


def test_what_is_given_beats_the_preset_and_the_file():
    def steps(given, table):
        train = Train(steps=given)
        tables = {"train": {"steps": table}} if table else {}
        rule = RULES["trpo"]()
        return settle("CartPole-v1", rule, train, Network(), Critic(), tables=tables).train.steps

    assert steps(None, None) == 100_000
    assert steps(None, 7) == 7
    assert steps(5, 7) == 5


def test_an_unknown_preset_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean sb3"):
        settled("CartPole-v1", "ppo", "sb33")
