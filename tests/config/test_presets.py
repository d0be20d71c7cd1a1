"""Every preset resolves; `auto` changes between rules only what a rule's own table says."""

import pytest

from surefoot.config.presets import NAMES, PEERS, PRESETS, preset, settings_of, settle
from surefoot.config.settings import GROUPS, RULES, Critic, Network, Train
from surefoot.errors import ConfigError

pytestmark = pytest.mark.core


def settled(env, rule, name="auto", *, changes=None, **how):
    return settle(env, preset(env, rule, name, **how), changes=changes)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("env", PRESETS)
def test_the_preset_of_an_environment_resolves_for_every_rule(env, rule):
    settings = settled(env, rule)
    assert settings.rule.name == rule
    added = PRESETS[env].by_rule.get(rule, {})
    for group in GROUPS:
        for name, value in (PRESETS[env].shared.get(group, {}) | added.get(group, {})).items():
            assert getattr(getattr(settings, group), name) == value, name
    # What a run keeps is what a resume reads.
    assert settings_of(settings.to_dict()) == settings


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
@pytest.mark.parametrize("name", NAMES)
def test_every_named_preset_resolves_or_says_whose_it_is(name, rule):
    if name in PEERS and rule not in PEERS[name]:
        with pytest.raises(ConfigError, match=f"that library has no {rule}"):
            settled("Unknown-v0", rule, name)
        return
    settings = settled("Unknown-v0", rule, name)
    assert settings.num_iterations * settings.batch_size >= settings.train.steps


@pytest.mark.parametrize("rule", RULES)
def test_an_environment_without_a_preset_has_the_defaults(rule):
    assert settled("Unknown-v0", rule) == settled("Unknown-v0", rule, "none")
    assert preset("Unknown-v0", rule) == (RULES[rule](), Train(), Network(), Critic())


def test_steps_shrink_over_a_run_unless_a_library_holds_them_constant():
    for rule in RULES:
        assert RULES[rule]().final_fraction < 0.3
        assert settled("Hopper-v5", rule).rule.final_fraction < 0.3
    for rule, name in (("ppo", "sb3"), ("trpo", "sb3-contrib"), ("ppo", "plain")):
        assert settled("CartPole-v1", rule, name).rule.final_fraction == 1.0


def test_settings_of_other_rules_are_refused_with_their_names():
    with pytest.raises(ConfigError, match=r"ppo has no setting max_kl: .* of npg, trpo"):
        settled("CartPole-v1", "ppo", changes={"rule": {"max_kl": 0.1}})


def test_as_many_blocks_as_devices_unless_another_number_is_set():
    groups = preset("CartPole-v1")
    assert settle("CartPole-v1", groups, devices=2).train.blocks == 2
    four = {"train": {"blocks": 4}}
    assert settle("CartPole-v1", groups, changes=four, devices=2).train.blocks == 4


def test_plain_turns_every_code_level_switch_off():
    settings = settled("Hopper-v5", "ppo", "plain")
    assert not settings.train.obs_norm
    assert not settings.train.return_norm
    assert not settings.network.ortho_init
    assert settings.rule.advantage_norm == "none"
    assert settings.rule.max_grad_norm == settings.critic.max_grad_norm == 0.0


def test_changes_beat_the_preset():
    assert settled("CartPole-v1", "trpo").train.steps == 100_000
    assert settled("CartPole-v1", "trpo", changes={"train": {"steps": 7}}).train.steps == 7


def test_an_unknown_preset_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean sb3"):
        settled("CartPole-v1", "ppo", "sb33")
