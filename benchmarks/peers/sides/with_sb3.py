"""Stable-Baselines3's PPO, sb3-contrib's TRPO, and sbx's PPO: one interface, three libraries."""

import importlib
from typing import Any

from answer import serve

# The library, its algorithm, and what it calls passes over a batch (TRPO: its critic's).
ALGORITHMS = {
    "sb3": ("stable_baselines3", "PPO", "n_epochs"),
    "sb3_contrib": ("sb3_contrib", "TRPO", "n_critic_updates"),
    "sbx": ("sbx", "PPO", "n_epochs"),
}


def start(duel: dict[str, Any]):
    """A model on a vector of environments in this process, which is its fastest kind here."""
    from stable_baselines3.common.env_util import make_vec_env

    library, algorithm, passes = ALGORITHMS[duel["peer"]]
    model = getattr(importlib.import_module(library), algorithm)(
        "MlpPolicy",
        make_vec_env(duel["env"], n_envs=duel["num_envs"], seed=0),
        n_steps=duel["num_steps"],
        batch_size=duel["minibatch"],
        seed=0,
        **{passes: duel["num_epochs"]},
    )
    batch = duel["num_envs"] * duel["num_steps"]
    steps = duel["peer_rounds"] * batch
    model.learn(2 * batch)

    def play() -> int:
        model.learn(steps, reset_num_timesteps=False)
        return steps

    return play


serve(start)
