"""sbx: the PPO of Stable-Baselines3, on JAX."""

from typing import Any

from answer import serve


def start(duel: dict[str, Any]):
    """PPO with a vector of environments in this process, which is its fastest kind here."""
    from sbx import PPO
    from stable_baselines3.common.env_util import make_vec_env

    model = PPO(
        "MlpPolicy",
        make_vec_env(duel["env"], n_envs=duel["num_envs"], seed=0),
        n_steps=duel["num_steps"],
        n_epochs=duel["num_epochs"],
        batch_size=duel["minibatch"],
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
