"""Every preset resolves; `auto` changes between rules only what a rule's own table says."""

import pytest

from surefoot.config.peers import BY_ACTIONS, NOTES, PEERS
from surefoot.config.presets import NAMES, PRESETS, preset, settings_of, settle
from surefoot.config.settings import GROUPS, RULES, Critic, Network, Train
from surefoot.errors import ConfigError

pytestmark = pytest.mark.core


def settled(env, rule, name="auto", *, changes=None, actions=("Box", 1), **how):
    return settle(env, preset(env, rule, name, actions=actions, **how), changes=changes)


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


@pytest.mark.parametrize("kind", ["Box", "MultiBinary"])
@pytest.mark.parametrize("size", [1, 3, 6, 17])
def test_a_mean_over_dimensions_makes_the_radius_and_the_damping_so_many_times_as_large(kind, size):
    one = settled("any", "trpo", "sb3-contrib", actions=(kind, 1)).rule
    assert (one.max_kl, one.damping) == (0.01, 0.1)
    many = settled("any", "trpo", "sb3-contrib", actions=(kind, size)).rule
    assert many.max_kl == pytest.approx(size * one.max_kl)
    assert many.damping == pytest.approx(size * one.damping)


@pytest.mark.parametrize("actions", [("Discrete", 1), ("MultiDiscrete", 3)])
def test_a_kl_that_is_a_sum_keeps_its_radius(actions):
    rule = settled("any", "trpo", "sb3-contrib", actions=actions).rule
    assert (rule.max_kl, rule.damping) == (0.01, 0.1)


def test_the_step_of_sb3_contrib_has_the_damping_in_its_scale_and_all_its_iterations():
    rule = settled("any", "trpo", "sb3-contrib").rule
    assert rule.damped_scale
    assert (rule.cg_iters, rule.cg_tolerance, rule.fisher_fraction) == (15, 0.0, 1.0)
    # Ten trials, the full step included.
    assert (rule.max_backtracks, rule.backtrack_coeff) == (9, 0.8)


def test_cleanrl_has_other_defaults_where_actions_are_no_box():
    discrete = settled("any", "ppo", "cleanrl", actions=("Discrete", 1))
    box = settled("any", "ppo", "cleanrl", actions=("Box", 6))
    assert (discrete.train.num_envs, discrete.train.num_steps) == (4, 128)
    assert (box.train.num_envs, box.train.num_steps) == (1, 2048)
    assert (discrete.train.steps, box.train.steps) == (500_000, 1_000_000)
    assert (discrete.rule.num_minibatches, discrete.rule.num_epochs) == (4, 4)
    assert (box.rule.num_minibatches, box.rule.num_epochs) == (32, 10)
    assert (discrete.rule.learning_rate, box.rule.learning_rate) == (2.5e-4, 3e-4)
    assert (discrete.rule.ent_coef, box.rule.ent_coef) == (0.01, 0.0)
    for settings, normalised in ((discrete, False), (box, True)):
        assert (settings.train.obs_norm, settings.train.return_norm) == (normalised, normalised)
        assert (settings.rule.clip_eps, settings.rule.max_grad_norm) == (0.2, 0.5)
        assert (settings.critic.vf_coef, settings.critic.value_clip) == (0.5, 0.2)
        assert settings.rule.final_fraction == 0.0


@pytest.mark.parametrize("name", BY_ACTIONS)
def test_a_preset_that_depends_on_the_actions_is_not_guessed(name):
    with pytest.raises(ConfigError, match=r'depends on the actions: .*actions=\("Box", 6\)'):
        preset("HalfCheetah-v5", next(iter(PEERS[name])), name)


def test_every_library_says_where_it_still_differs():
    assert set(NOTES) == set(PEERS)
    for notes in NOTES.values():
        assert all(note.startswith("differs: ") for note in notes if "differs" in note)
    assert any("time limit" in note for note in NOTES["cleanrl"])
    assert any("KL(new || old)" in note for note in NOTES["sb3-contrib"])
