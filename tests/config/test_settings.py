"""Settings: where a value comes from, what it may be, and what the refusal says."""

from dataclasses import fields

import numpy as np
import pytest

import surefoot as sf
from surefoot.config.settings import (
    NPG,
    PPO,
    RULES,
    TRPO,
    VPG,
    Critic,
    Network,
    Settings,
    Train,
    check_together,
    non_default,
)
from surefoot.config.validation import (
    changed,
    limits_of,
    nearest,
    traced_values,
    with_arrays,
)
from surefoot.errors import ConfigError, SurefootError

pytestmark = pytest.mark.core


KINDS = [*RULES.values(), Train, Network, Critic]


def settings(rule=None, **parts):
    """Settings of 8 x 256 rows, with `train`, `network` or `critic` replaced."""
    values = {"train": Train(), "network": Network(), "critic": Critic()} | parts
    return Settings("CartPole-v1", {}, rule or TRPO(), **values)


@pytest.mark.parametrize("kind", KINDS)
def test_a_group_of_settings_prints_what_it_holds(kind):
    given = kind()
    assert {f.name for f in fields(kind)} == set(limits_of(kind))
    for name, limits in limits_of(kind).items():
        assert getattr(given, name) == limits.default
        assert f"{name}={limits.default!r}" in repr(given)
        assert limits.help
    assert "None" not in repr(given)


@pytest.mark.parametrize("kind", KINDS)
def test_settings_are_given_by_name_alone(kind):
    with pytest.raises(TypeError, match="positional"):
        kind("MlpPolicy")


def test_fields_are_changed_over_those_of_a_group():
    preset = Train(gamma=0.8, num_envs=2, num_steps=32)
    train = changed(changed(preset, {"gamma": 0.9, "num_envs": 4}), {"gamma": 0.7})
    assert (train.gamma, train.num_envs, train.num_steps, train.gae_lambda) == (0.7, 4, 32, 0.95)


def test_a_falsy_value_is_a_value():
    train = changed(Train(seed=5, gamma=0.5), {"seed": 0, "obs_norm": False, "gamma": 0.0})
    assert (train.seed, train.obs_norm, train.gamma) == (0, False, 0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_that_are_data_of_a_program_are_floats_and_may_be_arrays(kind):
    group = kind()
    values = traced_values(group)
    assert all(isinstance(value, float) for value in values.values())
    arrays = with_arrays(group, {name: [value] for name, value in values.items()})
    assert {name: [value] for name, value in values.items()} == {
        name: getattr(arrays, name) for name in values
    }
    assert group == kind()
    for name, limits in limits_of(kind).items():
        # A number that is 0 where it is off is no data while it is off.
        assert (name in values) == (
            limits.traced and not (limits.off_at_zero and not limits.default)
        )


@pytest.mark.parametrize(
    ("kind", "key", "near"),
    [
        (TRPO, "max_kll", "max_kl"),
        (Train, "num_env", "num_envs"),
        (PPO, "clip_epsilon", "clip_eps"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest_one(kind, key, near):
    with pytest.raises(ConfigError, match=rf"no setting {key}; did you mean {near}\?"):
        changed(kind(), {key: 1})


def test_a_key_near_nothing_is_refused_without_a_guess():
    with pytest.raises(ConfigError, match=r"trpo has no setting zzz$"):
        changed(TRPO(), {"zzz": 1})
    assert nearest("zzz", ["max_kl"]) == ""


@pytest.mark.parametrize(
    ("kind", "table", "message"),
    [
        (TRPO, {"max_kl": -1.0}, r"trpo: max_kl must be a finite number above 0, got -1\.0"),
        (NPG, {"max_kl": 0.0}, r"npg: max_kl must be a finite number above 0, got 0\.0"),
        (TRPO, {"max_kl": float("nan")}, r"trpo: max_kl must be a finite .* above 0, got nan"),
        (
            PPO,
            {"clip_eps": float("inf")},
            r"ppo: clip_eps must be a finite .* above 0, got inf",
        ),
        (
            TRPO,
            {"backtrack_coeff": 1.0},
            r"backtrack_coeff must be .* and below 1, got 1\.0",
        ),
        (Train, {"gamma": 1.01}, r"train: gamma must be .* at least 0 and at most 1, got 1\.01"),
        (
            Train,
            {"num_envs": 0},
            r"num_envs must be a finite number at least 1 and at most 1048576, got 0",
        ),
        (Network, {"hidden": (64, 0)}, r"network: hidden must be .* at least 1 .*, got \(64, 0\)"),
        (Network, {"activation": "sine"}, r"activation must be one of tanh, relu.*, got 'sine'"),
        (PPO, {"advantage_norm": "all"}, r"advantage_norm must be one of minibatch, batch, none"),
    ],
)
def test_a_value_outside_its_range_is_refused_by_name_value_and_range(kind, table, message):
    with pytest.raises(ConfigError, match=message):
        kind(**table)


@pytest.mark.parametrize(
    ("kind", "table", "wanted"),
    [
        (TRPO, {"max_kl": "0.01"}, "a number"),
        (Train, {"steps": "1e6"}, "a whole number"),
        (Train, {"steps": 1.5}, "a whole number"),
        (Train, {"steps": True}, "a whole number"),
        (Train, {"steps": 10**400}, "a whole number"),
        (Train, {"obs_norm": 1}, "true or false"),
        (Train, {"vectorization": 3}, "a word"),
        (Network, {"hidden": ["64"]}, "a whole number"),
        (Network, {"hidden": "64"}, "a list of whole numbers"),
        (Train, {"info_keys": [1]}, "a word"),
    ],
)
def test_a_value_of_another_kind_is_refused_and_never_converted(kind, table, wanted):
    (key,) = table
    with pytest.raises(ConfigError, match=f"{key} must be {wanted}, got"):
        changed(kind(), table)


def test_a_limit_is_told_to_its_last_digit():
    with pytest.raises(ConfigError, match="at most 2147483647, got 2147483648"):
        Train(seed=2**31)


def test_non_default_settings_are_listed_without_the_seed():
    assert non_default(settings()) == []
    parts = {"train": Train(seed=5, gamma=0.9, obs_norm=False), "critic": Critic(num_epochs=20)}
    assert non_default(settings(TRPO(max_kl=0.04, final_fraction=0.5), **parts)) == [
        "gamma 0.9",
        "obs_norm off",
        "max_kl 0.04",
        "final_fraction 0.5",
        "critic num_epochs 20",
    ]


def test_numbers_of_the_same_value_are_accepted_in_either_form():
    train = changed(Train(), {"steps": 1e6, "gamma": 1, "info_keys": ["height"]})
    assert (train.steps, train.gamma, train.info_keys) == (1_000_000, 1.0, ("height",))
    assert type(train.steps) is int
    assert type(train.gamma) is float
    assert changed(Network(), {"hidden": [32, 32]}).hidden == (32, 32)


def test_a_network_without_hidden_layers_is_refused_before_it_is_built():
    with pytest.raises(ConfigError, match="hidden"):
        Network(hidden=())


def test_settings_fit_together_as_they_come():
    for rule in RULES.values():
        check_together(settings(rule()))


@pytest.mark.parametrize(
    ("rule", "critic", "message"),
    [
        (
            PPO(num_minibatches=30),
            Critic(),
            r"num_minibatches 30 does not divide .* 2048 .*16 and 32",
        ),
        (PPO(), Critic(num_minibatches=3), r"critic num_minibatches 3 .* 2 and 4"),
        (PPO(num_minibatches=5000), Critic(), r"num_minibatches 5000 .* that do: 2048$"),
    ],
)
def test_minibatches_that_do_not_divide_the_batch_are_answered_with_the_nearest(
    rule, critic, message
):
    with pytest.raises(ConfigError, match=message):
        check_together(settings(rule, critic=critic))


@pytest.mark.parametrize("rule", [TRPO(), NPG()])
@pytest.mark.parametrize(
    "parts",
    [
        {"critic": Critic(joint=True)},
        {"network": Network(shared_torso=True), "critic": Critic(joint=True)},
        {"network": Network(shared_torso=True)},
    ],
)
def test_a_joint_or_shared_critic_is_refused_under_a_rule_with_a_step_of_its_own(rule, parts):
    with pytest.raises(ConfigError, match=rf"{rule.name}: .* needs a rule that descends a loss"):
        check_together(settings(rule, **parts))


def test_a_shared_torso_needs_one_descent_for_both():
    shared = {"network": Network(shared_torso=True)}
    with pytest.raises(ConfigError, match="shared_torso needs --critic-joint"):
        check_together(settings(VPG(), **shared))
    check_together(settings(VPG(), critic=Critic(joint=True), **shared))


def test_iterations_are_steps_over_the_batch_rounded_up():
    one = settings(train=Train(num_envs=4, num_steps=25, steps=1001))
    assert one.batch_size == 100
    assert one.num_iterations == 11
    assert one.with_train(steps=1, num_envs=8).num_iterations == 1


def test_read_settings_read_back_as_they_were():
    frozen = settings(PPO(clip_eps=0.3)).to_dict()
    rule = dict(frozen["rule"])
    assert rule.pop("name") == "ppo"
    assert PPO(**rule) == PPO(clip_eps=0.3)
    assert Train(**frozen["train"]) == Train()
    assert Network(**frozen["network"]) == Network()


def test_a_config_error_is_a_value_error_with_a_name_and_an_exit_code():
    error = ConfigError("no")
    assert isinstance(error, ValueError)
    assert isinstance(error, SurefootError)
    assert (error.name, error.code, error.retryable) == ("CONFIG", 2, False)


@pytest.mark.parametrize("kind", [np.int32, np.int64, np.uint8, np.float32, np.float64])
def test_numbers_of_numpy_are_numbers(kind):
    train = sf.Train(steps=kind(64), seed=kind(3))
    assert (train.steps, train.seed) == (64, 3)
    assert type(train.steps) is int
    assert sf.TRPO(max_kl=np.float32(0.25)).max_kl == 0.25
    assert sf.Network(hidden=kind(32)) == sf.Network(hidden=(32,)) == sf.Network(hidden=32)


@pytest.mark.parametrize("value", [np.bool_(True), 1 + 0j, np.array([64]), "64", None])
def test_what_is_no_number_is_refused(value):
    with pytest.raises(sf.ConfigError, match="steps must be a whole number"):
        sf.Train(steps=value)
