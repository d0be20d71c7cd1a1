"""Settings that are known to work: by environment and rule, and those of other libraries.

`shared` holds for every rule on an environment, so that `compare` changes nothing but the rule;
a rule's own table comes on top when it trains alone. Sources: `docs/results.md` for ours, the
class defaults of each library for theirs.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from surefoot.config.settings import (
    RULES,
    Critic,
    Network,
    Rule,
    Settings,
    Train,
    check_together,
    from_mapping,
    resolve,
)
from surefoot.config.validation import limits_of, nearest, shown
from surefoot.errors import CheckpointError, ConfigError

Tables = Mapping[str, Mapping[str, Any]]
"""Settings by section: train, network, critic, rule."""


class Preset(NamedTuple):
    """Settings for one environment: shared by all rules, and what each adds."""

    shared: Tables
    by_rule: Mapping[str, Tables]


_EVERYWHERE: Tables = {"rule": {"learning_rate_end": 0.0, "max_kl_end": 0.001}}
"""On every environment, known or not: a step size and a radius that fall keep a good policy good.

Held constant, they lost policies in the last iterations of a run: of ten runs of ppo on
CartPole-v1 one ended at a return of 111 after 500, and trpo on InvertedPendulum-v5 at 901 after
1000.
"""

_MUJOCO = Preset(
    shared={"train": {"steps": 1_000_000, "gamma": 0.995, "gae_lambda": 0.97}},
    by_rule={
        "trpo": {
            "rule": {"max_kl": 0.04, "max_kl_end": 0.01, "cg_iters": 15},
            "critic": {"num_epochs": 20},
        },
        "npg": {
            "rule": {"max_kl": 0.04, "max_kl_end": 0.01, "cg_iters": 15},
            "critic": {"num_epochs": 20},
        },
    },
)

_MINATAR = Preset(
    shared={
        "train": {
            "steps": 10_000_000,
            "num_envs": 64,
            "num_steps": 128,
            "obs_norm": False,
            "return_norm": True,
        },
        "network": {"hidden": (128,), "activation": "relu"},
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

_SWIMMER = Preset(
    shared={"train": {"steps": 1_000_000, "gamma": 0.9999, "gae_lambda": 0.97}},
    by_rule=_MUJOCO.by_rule,
)

PRESETS: dict[str, Preset] = {
    "CartPole-v1": Preset(shared={"train": {"steps": 100_000}}, by_rule={}),
    "Acrobot-v1": Preset(shared={"train": {"steps": 100_000}}, by_rule={}),
    "Pendulum-v1": Preset(
        shared={"train": {"steps": 100_000, "gamma": 0.9, "gae_lambda": 0.95}},
        by_rule={
            "trpo": {"rule": {"max_kl": 0.02, "max_kl_end": 0.002}},
            "ppo": {"rule": {"learning_rate": 1e-3}},
        },
    ),
    "MountainCarContinuous-v0": Preset(shared={"train": {"steps": 100_000}}, by_rule={}),
    "InvertedPendulum-v5": Preset(shared={"train": {"steps": 200_000}}, by_rule={}),
    "Hopper-v5": _MUJOCO,
    "Walker2d-v5": _MUJOCO,
    "HalfCheetah-v5": _MUJOCO,
    "Swimmer-v5": _SWIMMER,
    "gymnax:CartPole-v1": Preset(shared={"train": {"steps": 100_000}}, by_rule={}),
    "gymnax:Breakout-MinAtar": _MINATAR,
    "gymnax:Asterix-MinAtar": _MINATAR,
    "gymnax:Freeway-MinAtar": _MINATAR,
    "gymnax:SpaceInvaders-MinAtar": _MINATAR,
    "gymnax:Seaquest-MinAtar": _MINATAR,
}

_NO_TRICKS = {
    "train": {"obs_norm": False, "return_norm": False},
    "network": {"ortho_init": False, "head_scale": 1.0},
    "critic": {"max_grad_norm": 0.0, "value_clip": 0.0},
    "rule": {"advantage_norm": "none", "max_grad_norm": 0.0, "ent_coef": 0.0},
}

_SB3_PPO = {
    "train": {
        "num_envs": 1,
        "num_steps": 2048,
        "obs_norm": False,
        "return_norm": False,
        "action_scale": "raw",
    },
    "rule": {"num_minibatches": 32, "num_epochs": 10, "advantage_norm": "minibatch"},
    # Its value loss is a full mean square with weight 0.5: ours is half of one with weight 1.
    "critic": {"joint": True, "vf_coef": 1.0},
}

_SB3_CONTRIB_TRPO = {
    "train": _SB3_PPO["train"],
    "rule": {
        "max_kl": 0.01,
        "cg_iters": 15,
        "damping": 0.1,
        "fisher_fraction": 1.0,
        "backtrack_coeff": 0.8,
        "max_backtracks": 10,
    },
    "critic": {
        "num_epochs": 10,
        "num_minibatches": 16,
        "learning_rate": 1e-3,
        "max_grad_norm": 0.0,
    },
}

_CLEANRL_PPO = {
    "train": {"num_envs": 1, "num_steps": 2048, "action_scale": "raw"},
    "rule": {"learning_rate_end": 0.0, "num_minibatches": 32, "num_epochs": 10},
    "critic": {"joint": True, "vf_coef": 0.5, "value_clip": 0.2},
}

PEERS: dict[str, dict[str, Tables]] = {
    "sb3": {"ppo": _SB3_PPO},
    "sb3-contrib": {"trpo": _SB3_CONTRIB_TRPO},
    "cleanrl": {"ppo": _CLEANRL_PPO},
}
"""Defaults of other libraries, for the rules that they have."""

NAMES = ("auto", "none", "plain", *PEERS)


def preset_tables(preset: str, env_id: str, rule: str, *, shared_only: bool = False) -> Tables:
    """The settings a preset gives a rule on an environment, by section.

    Args:
        preset: one of `NAMES`.
        env_id: the environment's id.
        rule: the rule's name.
        shared_only: leave out what the preset adds for this rule alone.

    Raises:
        ConfigError: for an unknown preset, or a peer that does not have the rule.
    """
    if preset not in NAMES:
        raise ConfigError(f"no preset {preset}{nearest(preset, NAMES)} ({', '.join(NAMES)})")
    if preset == "none":
        return {}
    if preset == "plain":
        return _NO_TRICKS
    if preset in PEERS:
        if rule not in PEERS[preset]:
            raise ConfigError(
                f"preset {preset} is for {', '.join(PEERS[preset])}; that library has no {rule}"
            )
        return PEERS[preset][rule]
    # EnvPool's environments are Gymnasium's, stepped by other code.
    found = PRESETS.get(env_id.removeprefix("envpool:"), Preset(shared={}, by_rule={}))
    added = {} if shared_only else found.by_rule.get(rule, {})
    layers = (_EVERYWHERE, found.shared, added)
    sections = ("train", "network", "critic", "rule")
    tables = {name: {k: v for t in layers for k, v in t.get(name, {}).items()} for name in sections}
    of_rule = limits_of(RULES[rule])
    return tables | {"rule": {k: v for k, v in tables["rule"].items() if k in of_rule}}


def known_rule(name: str) -> str:
    """`name`, where a rule is called so.

    Raises:
        ConfigError: with the nearest rule.
    """
    if name not in RULES:
        raise ConfigError(f"no rule {name}{nearest(name, RULES)} ({', '.join(RULES)})")
    return name


def settle(
    env_id: str,
    rule: Rule,
    train: Train,
    network: Network,
    critic: Critic,
    *,
    preset: str = "auto",
    tables: Mapping[str, Any] | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    shared_only: bool = False,
    devices: int = 1,
) -> Settings:
    """Every setting of a run: explicit ones over `tables` over the preset over the defaults.

    Args:
        env_id: the environment's id.
        rule: the rule and its explicit settings.
        train: explicit settings of the run.
        network: explicit settings of the networks.
        critic: explicit settings of the critic.
        preset: one of `NAMES`.
        tables: a parsed configuration file, or the `config.json` of a run.
        env_kwargs: arguments of the environment.
        shared_only: see `preset_tables`.
        devices: as many blocks of environments, where nothing else is set.

    Raises:
        ConfigError: for any setting that is unknown, out of range or at odds with another.
    """
    tables = dict(tables or {})
    known = ("env", "env_kwargs", "preset", "rule", "train", "network", "critic")
    for name in tables:
        if name not in known:
            raise ConfigError(f"the configuration has no table {name}{nearest(name, known)}")
    given_rule = {k: v for k, v in dict(tables.get("rule", {})).items() if k != "name"}
    from_preset = preset_tables(preset, env_id, rule.name, shared_only=shared_only)

    def fill(name: str, config: Any, table: Mapping[str, Any]) -> Any:
        if not isinstance(table, Mapping):
            raise ConfigError(f"the configuration's {name} must be a table, got {table!r}")
        from_file = from_mapping(type(config), table)
        spread = {"blocks": devices} if name == "train" else {}
        usual = resolve(type(config)(), from_preset.get(name, {}), spread)
        chosen = resolve(config, vars(from_file), vars(usual))
        ends = _scaled_ends(from_preset.get(name, {}), vars(usual), vars(chosen))
        return resolve(config, vars(from_file), ends, vars(usual))

    settings = Settings(
        env=env_id,
        env_kwargs=dict(env_kwargs or {}),
        preset=preset,
        rule=fill("rule", rule, given_rule),
        train=fill("train", train, tables.get("train", {})),
        network=fill("network", network, tables.get("network", {})),
        critic=fill("critic", critic, tables.get("critic", {})),
    )
    check_together(settings)
    return settings


def _scaled_ends(
    preset: Mapping[str, Any], usual: Mapping[str, Any], chosen: Mapping[str, Any]
) -> dict[str, Any]:
    """The ends of a preset's schedules, for the starts that were chosen: each keeps its share.

    An end of 0.001 is meant for a radius of 0.01; from one of 0.0005 it would be a growth.
    """
    starts = {name: name.removesuffix("_end") for name in preset if name.endswith("_end")}
    return {
        end: usual[end] * chosen[start] / usual[start]
        for end, start in starts.items()
        if chosen[start] != usual[start]
    }


def differing_settings(config: Mapping[str, Any], settings: Settings) -> dict[str, str]:
    """Where a run's `config.json` and these settings differ: what is said of each, by its name."""
    new = settings.to_dict()
    pairs = [(name, config.get(name), new[name]) for name in ("env", "env_kwargs")]
    for section in ("rule", "train", "network", "critic"):
        there = config.get(section, {})
        pairs += [(f"{section}.{k}", there.get(k), value) for k, value in new[section].items()]
    return {
        name: f"{name} is {shown(old)} there and {shown(value)} here"
        for name, old, value in pairs
        if shown(old) != shown(value)
    }


def settle_tables(config: Mapping[str, Any]) -> Settings:
    """The settings that a run's `config.json` froze."""
    rule = known_rule(str(dict(config.get("rule", {})).get("name")))
    keys = ("rule", "train", "network", "critic")
    return settle(
        str(config["env"]),
        RULES[rule](),
        Train(),
        Network(),
        Critic(),
        preset="none",
        tables={key: config.get(key, {}) for key in keys},
        env_kwargs=config.get("env_kwargs", {}),
    )


def frozen_settings(config: Mapping[str, Any], file: Path) -> Settings:
    """The settings of a run, from a `config.json` that may hold anything.

    Raises:
        ConfigError: for settings that are wrong.
        CheckpointError: for what holds no settings at all.
    """
    try:
        return settle_tables(config)
    except ConfigError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as fault:
        raise CheckpointError(f"{file} is not a configuration of ours: {fault}") from fault
