"""Settings that are known to work: by environment and rule, and those of other libraries.

`shared` holds for every rule on an environment, so that `compare` changes nothing but the rule;
a rule's own table comes on top when it trains alone. Source: `docs/results.md`; those of other
libraries are in `surefoot.config.peers`.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from surefoot.config.peers import BY_ACTIONS, PEERS, Actions, FindActions, Tables
from surefoot.config.settings import (
    GROUPS,
    RULES,
    Critic,
    Network,
    Rule,
    Settings,
    Train,
    check_together,
    rules_with,
)
from surefoot.config.validation import changed, limits_of, nearest
from surefoot.errors import CheckpointError, ConfigError


class Groups(NamedTuple):
    """The settings groups of a run."""

    rule: Rule
    train: Train
    network: Network
    critic: Critic


class _Preset(NamedTuple):
    """Settings for one environment: shared by all rules, and what each adds."""

    shared: Tables
    by_rule: Mapping[str, Tables]


_MUJOCO = _Preset(
    shared={"train": {"steps": 1_000_000, "gamma": 0.995, "gae_lambda": 0.97}},
    by_rule={
        "trpo": {
            "rule": {"max_kl": 0.04, "final_fraction": 0.25, "cg_iters": 15},
            "critic": {"num_epochs": 20},
        },
        "npg": {
            "rule": {"max_kl": 0.04, "final_fraction": 0.25, "cg_iters": 15},
            "critic": {"num_epochs": 20},
        },
    },
)

_MINATAR = _Preset(
    shared={
        "train": {
            "steps": 10_000_000,
            "num_envs": 64,
            "num_steps": 128,
            "obs_norm": False,
            "return_norm": True,
        },
        "network": {"hidden": (128,), "activation": "relu", "images": "all"},
        "critic": {"num_minibatches": 16, "num_epochs": 4},
    },
    by_rule={
        "ppo": {
            "rule": {
                "num_epochs": 4,
                "num_minibatches": 8,
                "ent_coef": 0.01,
                "learning_rate": 1e-3,
            }
        },
    },
)

_SWIMMER = _Preset(
    shared={"train": {"steps": 1_000_000, "gamma": 0.9999, "gae_lambda": 0.97}},
    by_rule=_MUJOCO.by_rule,
)

PRESETS: dict[str, _Preset] = {
    "CartPole-v1": _Preset(shared={"train": {"steps": 100_000}}, by_rule={}),
    "Acrobot-v1": _Preset(shared={"train": {"steps": 100_000}}, by_rule={}),
    "Pendulum-v1": _Preset(
        shared={"train": {"steps": 100_000, "gamma": 0.9, "gae_lambda": 0.95}},
        by_rule={
            "trpo": {"rule": {"max_kl": 0.02}},
            "ppo": {"rule": {"learning_rate": 1e-3}},
        },
    ),
    "MountainCarContinuous-v0": _Preset(shared={"train": {"steps": 100_000}}, by_rule={}),
    "InvertedPendulum-v5": _Preset(shared={"train": {"steps": 200_000}}, by_rule={}),
    "Hopper-v5": _MUJOCO,
    "Walker2d-v5": _MUJOCO,
    "HalfCheetah-v5": _MUJOCO,
    "Swimmer-v5": _SWIMMER,
    "gymnax:CartPole-v1": _Preset(shared={"train": {"steps": 100_000}}, by_rule={}),
    "gymnax:Breakout-MinAtar": _MINATAR,
    "gymnax:Asterix-MinAtar": _MINATAR,
    "gymnax:Freeway-MinAtar": _MINATAR,
    "gymnax:SpaceInvaders-MinAtar": _MINATAR,
    "gymnax:Seaquest-MinAtar": _MINATAR,
}

_NO_TRICKS = {
    "train": {"stagger": False, "obs_norm": False, "return_norm": False},
    "network": {"ortho_init": False, "head_scale": 1.0},
    "critic": {"max_grad_norm": 0.0, "value_clip": 0.0},
    "rule": {
        "final_fraction": 1.0,
        "advantage_norm": "none",
        "max_grad_norm": 0.0,
        "ent_coef": 0.0,
    },
}

NAMES = ("auto", "none", "plain", *PEERS)


def preset(
    env: str,
    rule: Rule | str = "trpo",
    name: str = "auto",
    *,
    actions: Actions | FindActions | None = None,
    shared_only: bool = False,
) -> Groups:
    """The settings that a preset gives a rule on an environment, to be changed by `replace`.

    Args:
        env: the environment's id.
        rule: the rule, or its name.
        name: auto (what is known to work on the environment), none (the library's defaults),
            plain (no tricks), or another library: sb3, sb3-contrib, cleanrl.
        actions: kind and size of the action space, as ("Box", 6), or a function that finds them;
            read for sb3-contrib and cleanrl alone.
        shared_only: leave out what the preset adds for this rule alone.

    Raises:
        ConfigError: for an unknown preset or rule, a library that does not have the rule, or one
            whose defaults depend on `actions` that are not given.
    """
    rule_name = known_rule(rule if isinstance(rule, str) else rule.name)
    tables = _tables(name, env, rule_name, actions, shared_only=shared_only)
    of_rule = limits_of(RULES[rule_name])
    # The table of "plain" is for all rules, each of which has some of its settings.
    table = {key: value for key, value in tables.get("rule", {}).items() if key in of_rule}
    return Groups(
        RULES[rule_name](**table),
        Train(**tables.get("train", {})),
        Network(**tables.get("network", {})),
        Critic(**tables.get("critic", {})),
    )


def _tables(
    name: str,
    env: str,
    rule: str,
    actions: Actions | FindActions | None,
    *,
    shared_only: bool,
) -> Tables:
    if name not in NAMES:
        raise ConfigError(f"no preset {name}{nearest(name, NAMES)} ({', '.join(NAMES)})")
    if name == "none":
        return {}
    if name == "plain":
        return _NO_TRICKS
    if name in PEERS:
        if rule not in PEERS[name]:
            raise ConfigError(
                f"preset {name} is for {', '.join(PEERS[name])}; that library has no {rule}"
            )
        if name not in BY_ACTIONS:
            return PEERS[name][rule](("", 1))
        if actions is None:
            raise ConfigError(
                f"preset {name} depends on the actions: give their kind and size, "
                'as in actions=("Box", 6)'
            )
        return PEERS[name][rule](actions() if callable(actions) else actions)
    # EnvPool's environments are Gymnasium's, stepped by other code.
    found = PRESETS.get(env.removeprefix("envpool:"), _Preset(shared={}, by_rule={}))
    layers = (found.shared, {} if shared_only else found.by_rule.get(rule, {}))
    return {
        group: {key: value for layer in layers for key, value in layer.get(group, {}).items()}
        for group in GROUPS
    }


def known_rule(name: str) -> str:
    """`name`, if a rule is called so.

    Raises:
        ConfigError: with the nearest rule.
    """
    if name not in RULES:
        raise ConfigError(f"no rule {name}{nearest(name, RULES)} ({', '.join(RULES)})")
    return name


def settle(
    env: str,
    groups: Groups,
    *,
    changes: Mapping[str, Any] | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    devices: int = 1,
) -> Settings:
    """Every setting of a run: `groups`, with the fields in `changes` changed.

    Args:
        env: the environment's id.
        groups: from `preset`, or given by the user.
        changes: tables of fields by group, as in a configuration file.
        env_kwargs: arguments of the environment.
        devices: blocks of environments, unless `changes` or `groups` set another number.

    Raises:
        ConfigError: for any setting that is unknown, out of range or at odds with another.
    """
    changes = dict(changes or {})
    for name, table in changes.items():
        if name not in GROUPS:
            raise ConfigError(f"the configuration has no table {name}{nearest(name, GROUPS)}")
        if not isinstance(table, Mapping):
            raise ConfigError(f"the configuration's {name} must be a table, got {table!r}")
    rule = {key: value for key, value in changes.get("rule", {}).items() if key != "name"}
    for key in rule:
        others = rules_with(key)
        if others and groups.rule.name not in others:
            raise ConfigError(
                f"{groups.rule.name} has no setting {key}: it is a setting of {', '.join(others)}"
            )
    train = groups.train
    if train.blocks == 1 and devices > 1:
        train = changed(train, {"blocks": devices})
    settings = Settings(
        env=env,
        env_kwargs=dict(env_kwargs or {}),
        rule=changed(groups.rule, rule),
        train=changed(train, changes.get("train", {})),
        network=changed(groups.network, changes.get("network", {})),
        critic=changed(groups.critic, changes.get("critic", {})),
    )
    check_together(settings)
    return settings


def settings_of(config: Mapping[str, Any]) -> Settings:
    """The settings in a run's `config.json`."""
    rule = known_rule(str(dict(config.get("rule", {})).get("name")))
    return settle(
        str(config["env"]),
        Groups(RULES[rule](), Train(), Network(), Critic()),
        changes={key: config.get(key, {}) for key in GROUPS},
        env_kwargs=config.get("env_kwargs", {}),
    )


def read_settings(config: Mapping[str, Any], file: Path) -> Settings:
    """The settings of a run, from a `config.json` that may hold anything.

    Raises:
        ConfigError: for settings that are wrong.
        CheckpointError: for a file that holds no settings at all.
    """
    with config_errors(file):
        return settings_of(config)


@contextlib.contextmanager
def config_errors(file: Path) -> Iterator[None]:
    """Context manager that turns what a malformed `config.json` raises into a CheckpointError."""
    try:
        yield
    except ConfigError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{file} is not a configuration of surefoot: {error}") from error
