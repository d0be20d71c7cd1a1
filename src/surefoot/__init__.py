"""Trust-region policy optimisation that shows why an update worked or fell.

The public names, in the order of the ladder; each is imported when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from surefoot.analysis.probe.api import probe_policies, probe_run
    from surefoot.analysis.probe.policies import Callables
    from surefoot.analysis.probe.result import Probe
    from surefoot.analysis.probe.settings import ProbeSettings
    from surefoot.config.presets import preset
    from surefoot.config.settings import (
        NPG,
        PPO,
        PPOKL,
        TRPO,
        VPG,
        Critic,
        Network,
        OwnNetwork,
        OwnNetworks,
        Parallel,
        Train,
    )
    from surefoot.envs.jax_native import JaxEnv, JaxStep
    from surefoot.errors import ConfigError, SurefootError
    from surefoot.exporting.export import export
    from surefoot.networks.policy import Policy
    from surefoot.training.api import resume, train
    from surefoot.training.callback import Callback
    from surefoot.training.many_seeds import make_train, train_many
    from surefoot.training.replay_error import replay
    from surefoot.training.run import Run, load

_HOMES = {
    "config.settings": (
        "VPG",
        "NPG",
        "TRPO",
        "PPOKL",
        "PPO",
        "Train",
        "Network",
        "Critic",
        "OwnNetwork",
        "OwnNetworks",
        "Parallel",
    ),
    "config.presets": ("preset",),
    "training.api": ("train", "resume"),
    "training.callback": ("Callback",),
    "training.many_seeds": ("train_many", "make_train"),
    "training.replay_error": ("replay",),
    "exporting.export": ("export",),
    "training.run": ("Run", "load"),
    "networks.policy": ("Policy",),
    "analysis.probe.api": ("probe_policies", "probe_run"),
    "analysis.probe.policies": ("Callables",),
    "analysis.probe.result": ("Probe",),
    "analysis.probe.settings": ("ProbeSettings",),
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
    "Callback",
    "ConfigError",
    "Critic",
    "JaxEnv",
    "JaxStep",
    "Network",
    "OwnNetwork",
    "OwnNetworks",
    "Parallel",
    "Policy",
    "Probe",
    "ProbeSettings",
    "Run",
    "SurefootError",
    "Train",
    "export",
    "load",
    "make_train",
    "preset",
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
