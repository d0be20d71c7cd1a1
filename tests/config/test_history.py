"""The settings of every iteration of a run are known, however often it went on with others."""

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surefoot.config.history import SettingsHistory, read_history
from surefoot.config.presets import preset, settle
from surefoot.errors import CheckpointError, ConfigError

pytestmark = pytest.mark.core
FILE = Path("run/config.json")


def of_rule(rule, kwargs=None, env="CartPole-v1", **train):
    return settle(env, preset(env, rule), changes={"train": train}, env_kwargs=kwargs)


SETTINGS = [
    of_rule("trpo"),
    of_rule("trpo", gamma=0.5),
    of_rule("trpo", steps=9_000, info_keys=("a", "b")),
    of_rule("npg"),
    of_rule("trpo", {"level": 1, "map": [1, 2]}),
    of_rule("trpo", {"level": None}),
    of_rule("trpo", env="Acrobot-v1"),
]


def through_json(history):
    return read_history(json.loads(json.dumps(history.to_dict())), FILE)


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.floats(0.0, 1.0), st.none() | st.sampled_from(SETTINGS)),
        max_size=8,
    )
)
def test_each_iteration_has_the_settings_that_made_it_after_any_overrides_and_resumes(parts):
    """Iterations, then a resume from one of them, with other settings or not; and so on."""
    history, made = SettingsHistory(SETTINGS[0]), []
    for count, back, settings in parts:
        made += [history.now] * count
        made = made[: round(back * len(made))]
        history = through_json(history.continued(len(made), settings))
        assert history.now == (settings or history.now)
        assert [history.at(k + 1) for k in range(len(made))] == made
        assert history.at(len(made) + 1) == history.now
        # No entry says nothing, and none is of an iteration that is not done.
        in_turn = [old for _, old in history.earlier] + [history.now]
        assert all(old != new for old, new in itertools.pairwise(in_turn))
        assert all(0 < until <= len(made) for until, _ in history.earlier)


@pytest.mark.parametrize(("old", "new"), list(itertools.permutations(SETTINGS, 2)))
def test_settings_of_any_kind_come_back_whole(old, new):
    history = through_json(SettingsHistory(old).continued(3, new))
    assert history == SettingsHistory(new, ((3, old),))


def test_the_file_has_the_old_values_of_what_changed_alone():
    history = SettingsHistory(SETTINGS[0]).continued(12, SETTINGS[1]).continued(20, SETTINGS[2])
    steps, gamma = SETTINGS[0].train.steps, SETTINGS[0].train.gamma
    assert history.to_dict()["history"] == [
        {"until_iteration": 12, "settings": {"train": {"gamma": gamma}}},
        {
            "until_iteration": 20,
            "settings": {"train": {"gamma": 0.5, "steps": steps, "info_keys": ()}},
        },
    ]
    (first, gammas), (second, _) = history.changes()
    assert (first, second, gammas) == (12, 20, {"train.gamma": (gamma, 0.5)})


def test_a_configuration_without_a_history_has_had_one_kind_of_settings():
    assert read_history(SETTINGS[0].to_dict(), FILE) == SettingsHistory(SETTINGS[0])


ENTRY = {"until_iteration": 3, "settings": {"train": {"gamma": 0.5}}}


@pytest.mark.parametrize(
    "history",
    [
        *(7, "x", {"a": 1}, None, [1], [[]], [{}], [{"until_iteration": 3}]),
        *([ENTRY | {"until_iteration": value}] for value in (0, -1, 2.0, True, "3", None)),
        [ENTRY, ENTRY],
        *(
            [ENTRY | {"settings": value}]
            for value in (7, [], {"train": 7}, {"train": []}, {"versions": {}}, {"env_kwargs": 3})
        ),
    ],
)
def test_a_malformed_history_is_an_error_of_one_line_that_names_the_file(history):
    with pytest.raises(CheckpointError, match=r"run/config.json is not a configuration") as caught:
        read_history(SETTINGS[0].to_dict() | {"history": history}, FILE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"train": {"gamma": 2.0}}, "gamma must be"),
        ({"train": {"gama": 0.9}}, "has no setting gama; did you mean gamma"),
        ({"rule": {"name": "trop"}}, "no rule trop; did you mean trpo"),
    ],
)
def test_wrong_settings_in_a_history_are_told_as_those_in_force_are(settings, told):
    history = [{"until_iteration": 3, "settings": settings}]
    with pytest.raises(ConfigError, match=told):
        read_history(SETTINGS[0].to_dict() | {"history": history}, FILE)
