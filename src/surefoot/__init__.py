"""Trust-region policy optimisation that shows why an update worked or fell.

The public names, in the order of the ladder; each is imported when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from surefoot.config import (
        NPG,
        PPO,
        PPOKL,
        TRPO,
        VPG,
        Critic,
        Network,
        OwnNetwork,
        Train,
    )
    from surefoot.envs.jax_native import JaxEnv, JaxStep
    from surefoot.errors import ConfigError, SurefootError
    from surefoot.exporting import export
    from surefoot.faults import replay
    from surefoot.many import make_train, train_many
    from surefoot.policy import Policy
    from surefoot.probe.contenders import Callables
    from surefoot.probe.policies import probe_policies
    from surefoot.probe.result import Probe
    from surefoot.probe.runs import probe_run
    from surefoot.trained import OwnNetworks, Run, load
    from surefoot.training import resume, train

_HOMES = {
    "config": (
        "VPG",
        "NPG",
        "TRPO",
        "PPOKL",
        "PPO",
        "Train",
        "Network",
        "Critic",
        "OwnNetwork",
    ),
    "training": ("train", "resume"),
    "many": ("train_many", "make_train"),
    "faults": ("replay",),
    "exporting": ("export",),
    "trained": ("Run", "load", "OwnNetworks"),
    "policy": ("Policy",),
    "probe.contenders": ("Callables",),
    "probe.policies": ("probe_policies",),
    "probe.runs": ("probe_run",),
    "probe.result": ("Probe",),
    "envs.jax_native": ("JaxEnv", "JaxStep"),
    "errors": ("SurefootError", "ConfigError"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "NPG",
    "PPO",
    "PPOKL",
    "TRPO",
    "VPG",
    "Callables",
    "ConfigError",
    "Critic",
    "JaxEnv",
    "JaxStep",
    "Network",
    "OwnNetwork",
    "OwnNetworks",
    "Policy",
    "Probe",
    "Run",
    "SurefootError",
    "Train",
    "export",
    "load",
    "make_train",
    "probe_policies",
    "probe_run",
    "replay",
    "resume",
    "train",
    "train_many",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'surefoot' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"surefoot.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
