"""Defaults of other libraries as settings of ours, and where a run under them still differs.

Sources: defaults of the classes of stable-baselines3 2.9.2 and sb3-contrib 2.9.2; of CleanRL's
`ppo.py` and `ppo_continuous_action.py`.
"""

from collections.abc import Callable, Mapping
from typing import Any

Tables = Mapping[str, Mapping[str, Any]]
"""Fields of settings groups that differ from the defaults, by group: train, network, ..."""
Actions = tuple[str, int]
"""Kind of an action space, by the name of Gymnasium's class, and its numbers: ("Box", 6)."""
FindActions = Callable[[], Actions]
"""Called only where a preset depends on the actions, because an environment must be made for it."""

_SB3_TRAIN = {
    "num_envs": 1,
    "num_steps": 2048,
    "stagger": False,
    "obs_norm": False,
    "return_norm": False,
    "action_scale": "raw",
}

_SB3_PPO = {
    "train": _SB3_TRAIN,
    "rule": {
        "final_fraction": 1.0,
        "num_minibatches": 32,
        "num_epochs": 10,
        "advantage_norm": "minibatch",
    },
    # Its value loss is a full mean square with weight 0.5: ours is half of one with weight 1.
    "critic": {"joint": True, "vf_coef": 1.0},
}


def _sb3_contrib_trpo(actions: Actions) -> Tables:
    kind, size = actions
    # Of these its `kl_divergence(...).mean()` is a mean over dimensions too, where ours is the KL
    # of the whole action: in our nats its radius is so many times as wide, and its damping, beside
    # a Fisher matrix that is so many times as large, as strong.
    averaged = size if kind in ("Box", "MultiBinary") else 1
    return {
        "train": _SB3_TRAIN,
        "rule": {
            "max_kl": averaged / 100,
            "final_fraction": 1.0,
            "cg_iters": 15,
            "cg_tolerance": 0.0,
            "damping": averaged / 10,
            "damped_scale": True,
            "fisher_fraction": 1.0,
            "backtrack_coeff": 0.8,
            # Its 10 trials include the full step.
            "max_backtracks": 9,
        },
        "critic": {
            "num_epochs": 10,
            "num_minibatches": 16,
            "learning_rate": 1e-3,
            "max_grad_norm": 0.0,
        },
    }


_CLEANRL_CRITIC = {"joint": True, "vf_coef": 0.5, "value_clip": 0.2}

_CLEANRL_PPO = {
    "train": {
        "steps": 500_000,
        "num_envs": 4,
        "num_steps": 128,
        "stagger": False,
        "obs_norm": False,
        "return_norm": False,
    },
    "rule": {
        "learning_rate": 2.5e-4,
        "final_fraction": 0.0,
        "num_minibatches": 4,
        "num_epochs": 4,
        "ent_coef": 0.01,
    },
    "critic": _CLEANRL_CRITIC,
}

_CLEANRL_PPO_CONTINUOUS_ACTION = {
    "train": {
        "steps": 1_000_000,
        "num_envs": 1,
        "num_steps": 2048,
        "stagger": False,
        "action_scale": "raw",
    },
    "rule": {"final_fraction": 0.0, "num_minibatches": 32, "num_epochs": 10},
    "critic": _CLEANRL_CRITIC,
}


def _cleanrl_ppo(actions: Actions) -> Tables:
    return _CLEANRL_PPO_CONTINUOUS_ACTION if actions[0] == "Box" else _CLEANRL_PPO


PEERS: dict[str, dict[str, Callable[[Actions], Tables]]] = {
    "sb3": {"ppo": lambda _: _SB3_PPO},
    "sb3-contrib": {"trpo": _sb3_contrib_trpo},
    "cleanrl": {"ppo": _cleanrl_ppo},
}
"""Defaults of other libraries, for the rules that they have."""

BY_ACTIONS = ("sb3-contrib", "cleanrl")
"""The libraries whose defaults depend on the action space."""

_SPREAD = (
    "differs: a minibatch's advantages are divided by a standard deviation with n - 1 in it, here "
    "with n (0.8 % at 64 rows)."
)

NOTES: dict[str, tuple[str, ...]] = {
    "sb3": ("Defaults of PPO in stable-baselines3 2.9.2.", _SPREAD),
    "sb3-contrib": (
        "Defaults of TRPO in sb3-contrib 2.9.2.",
        "Box and MultiBinary actions of d dimensions: max_kl 0.01 d and damping 0.1 d. Its KL is a "
        "mean over dimensions, ours is the KL of the whole action, in nats. Other actions: 0.01 "
        "and 0.1.",
        "differs: its line search measures KL(new || old), ours KL(old || new). They agree to "
        "second order.",
        "differs: it backtracks by 0.8. Ours first shortens a step that is too far as the "
        "quadratic model of KL suggests, then by 0.8.",
        "differs: its conjugate gradient starts from noise of 1e-4 and stops below a residual of "
        "1e-5. Ours starts from 0 and takes all 15 iterations.",
    ),
    "cleanrl": (
        "Defaults of CleanRL's ppo_continuous_action.py for Box actions, of its ppo.py for others.",
        "differs: it treats a time limit as the end of the MDP. Ours adds the critic's value of "
        "the true last observation.",
        "differs: Box actions: its normalisers are updated at every step, one for each "
        "environment. Ours are updated once an iteration, one for all.",
        _SPREAD,
    ),
}
"""What a library's preset is, and where a run under it still differs from the library's."""
