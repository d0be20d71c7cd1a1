"""Differences between two tables of settings."""

from surefoot.config.differences import differences, flatten


def test_settings_that_differ_are_named_with_both_values():
    old = {"env": "A", "train": {"gamma": 0.9, "steps": 5}, "rule": {"name": "npg"}}
    new = {"env": "A", "train": {"gamma": 0.99, "steps": 5}, "critic": {"joint": True}}
    assert differences(old, new) == {
        "train.gamma": (0.9, 0.99),
        "critic.joint": (None, True),
        "rule.name": ("npg", None),
    }
    assert differences(old, old) == {}


def test_a_list_of_json_equals_a_tuple():
    assert differences({"network": {"hidden": [8, 8]}}, {"network": {"hidden": (8, 8)}}) == {}


def test_tables_are_flattened_by_one_level():
    assert flatten({"a": 1, "b": {"c": {"d": 2}}}) == {"a": 1, "b.c": {"d": 2}}
