"""sb3-contrib's TRPO."""

from typing import Any

from answer import serve


def start(duel: dict[str, Any]):
    """TRPO with its own defaults: 15 steps of CG on all states, 10 passes of the critic."""
    from sb3_contrib import TRPO
    from stable_baselines3.common.env_util import make_vec_env

    model = TRPO(
        "MlpPolicy",
        make_vec_env(duel["env"], n_envs=duel["num_envs"], seed=0),
        n_steps=duel["num_steps"],
        n_critic_updates=duel["num_epochs"],
        batch_size=duel["minibatch"],
        device="cpu",
        seed=0,
    )
    batch = duel["num_envs"] * duel["num_steps"]
    steps = duel["peer_rounds"] * batch
    model.learn(2 * batch)

    def play() -> int:
        model.learn(steps, reset_num_timesteps=False)
        return steps

    return play


serve(start)
