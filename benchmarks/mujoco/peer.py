"""One run of another library, with the settings of rl-baselines3-zoo; run by its own Python.

    .peers/torch/bin/python benchmarks/mujoco/peer.py '{"env": "Hopper-v5", "rule": ...}'

The zoo has no settings for v5: those of v4, or of the newest version that it lists, and where a
task has none those that its file gives MuJoCo tasks by default. As of the zoo's files of 2026-04.
"""

import json
import sys
import time
from typing import Any

import numpy as np

EVALUATIONS, EVALUATION_EPISODES, EPISODES = 10, 10, 20

# zoo: hyperparams/trpo.yml, its MuJoCo defaults; by task what it says besides.
TRPO = {
    "num_envs": 2,
    "batch_size": 128,
    "n_steps": 1024,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "sub_sampling_factor": 1,
    "cg_max_steps": 25,
    "cg_damping": 0.1,
    "n_critic_updates": 20,
    "learning_rate": 1e-3,
}
TRPO_BY_TASK = {"HalfCheetah": {"target_kl": 0.04}, "Swimmer": {"gamma": 0.9999}}

# zoo: hyperparams/ppo.yml.
_WIDE = {"log_std_init": -2, "ortho_init": False, "activation": "relu", "hidden": 256}
PPO_BY_TASK = {
    "HalfCheetah": {
        "batch_size": 64, "n_steps": 512, "gamma": 0.98, "learning_rate": 2.0633e-05,
        "ent_coef": 0.000401762, "clip_range": 0.1, "n_epochs": 20, "gae_lambda": 0.92,
        "max_grad_norm": 0.8, "vf_coef": 0.58096, "network": _WIDE,
    },
    "Hopper": {
        "batch_size": 32, "n_steps": 512, "gamma": 0.999, "learning_rate": 9.80828e-05,
        "ent_coef": 0.00229519, "clip_range": 0.2, "n_epochs": 5, "gae_lambda": 0.99,
        "max_grad_norm": 0.7, "vf_coef": 0.835671, "network": _WIDE,
    },
    "Walker2d": {
        "batch_size": 32, "n_steps": 512, "gamma": 0.99, "learning_rate": 5.05041e-05,
        "ent_coef": 0.000585045, "clip_range": 0.1, "n_epochs": 20, "gae_lambda": 0.95,
        "max_grad_norm": 1, "vf_coef": 0.871923,
    },
    "Ant": {},
    "Swimmer": {
        "num_envs": 4, "gamma": 0.9999, "n_steps": 1024, "batch_size": 256,
        "learning_rate": 6e-4, "gae_lambda": 0.98,
    },
    "Reacher": {
        "batch_size": 32, "n_steps": 512, "gamma": 0.9, "learning_rate": 0.000104019,
        "ent_coef": 7.52585e-08, "clip_range": 0.3, "n_epochs": 5, "gae_lambda": 1.0,
        "max_grad_norm": 0.9, "vf_coef": 0.950368,
    },
    "InvertedPendulum": {
        "batch_size": 64, "n_steps": 32, "gamma": 0.999, "learning_rate": 0.000222425,
        "ent_coef": 1.37976e-07, "clip_range": 0.4, "n_epochs": 5, "gae_lambda": 0.9,
        "max_grad_norm": 0.3, "vf_coef": 0.19816,
    },
    "InvertedDoublePendulum": {
        "batch_size": 512, "n_steps": 128, "gamma": 0.98, "learning_rate": 0.000155454,
        "ent_coef": 1.05057e-06, "clip_range": 0.4, "n_epochs": 10, "gae_lambda": 0.8,
        "max_grad_norm": 0.5, "vf_coef": 0.695929,
    },
    "Humanoid": {
        "batch_size": 256, "n_steps": 512, "gamma": 0.95, "learning_rate": 3.56987e-05,
        "ent_coef": 0.00238306, "clip_range": 0.3, "n_epochs": 5, "gae_lambda": 0.9,
        "max_grad_norm": 2, "vf_coef": 0.431892, "network": _WIDE,
    },
}  # fmt: skip


def settings_of(env: str, rule: str) -> dict[str, Any]:
    """What the zoo says of a rule on a task."""
    task = env.split("-")[0]
    if rule == "sb3-contrib-trpo":
        return TRPO | TRPO_BY_TASK.get(task, {})
    return {"num_envs": 1} | PPO_BY_TASK[task]


def _model(planned: dict[str, Any], given: dict[str, Any]) -> Any:
    import sb3_contrib
    import stable_baselines3
    import torch
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    torch.set_num_threads(1)
    given = dict(given)
    envs = make_vec_env(planned["env"], n_envs=given.pop("num_envs"), seed=planned["seed"])
    # As the zoo does: rewards are scaled by returns of the algorithm's own discount.
    envs = VecNormalize(envs, gamma=given.get("gamma", 0.99))
    network = given.pop("network", None)
    if network:
        hidden = [network["hidden"]] * 2
        given["policy_kwargs"] = {
            "log_std_init": network["log_std_init"],
            "ortho_init": network["ortho_init"],
            "activation_fn": torch.nn.ReLU,
            "net_arch": {"pi": hidden, "vf": hidden},
        }
    trpo = planned["rule"] == "sb3-contrib-trpo"
    algorithm = sb3_contrib.TRPO if trpo else stable_baselines3.PPO
    return algorithm("MlpPolicy", envs, seed=planned["seed"], device="cpu", **given)


def _evaluate(model: Any, planned: dict[str, Any], episodes: int, seed: int) -> list[float]:
    """Returns of fresh deterministic episodes, as the task gives them."""
    import gymnasium

    normalizer = model.get_vec_normalize_env()
    env = gymnasium.make(planned["env"])
    returns = []
    for episode in range(episodes):
        obs, _ = env.reset(seed=seed if episode == 0 else None)
        total, over = 0.0, False
        while not over:
            action, _ = model.predict(normalizer.normalize_obs(obs), deterministic=True)
            obs, reward, terminated, truncated, _ = env.step(action)
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    env.close()
    return returns


def main() -> None:
    """Train, and print the record as one line."""
    import importlib.metadata

    planned = json.loads(sys.argv[1])
    given = settings_of(planned["env"], planned["rule"])
    model, seconds = _model(planned, given), 0.0
    evaluations = []
    seed = planned["seed"] + 1_000_003
    for part in range(EVALUATIONS):
        started = time.monotonic()
        goal = planned["steps"] * (part + 1) // EVALUATIONS
        model.learn(goal - model.num_timesteps, reset_num_timesteps=False)
        seconds += time.monotonic() - started
        found = _evaluate(model, planned, EVALUATION_EPISODES, seed + 1 + part)
        evaluations.append(
            [model.num_timesteps, round(float(np.mean(found)), 2), round(float(np.std(found)), 2)]
        )
    found = _evaluate(model, planned, EPISODES, seed)
    packages = ("stable_baselines3", "sb3_contrib", "torch", "gymnasium", "mujoco", "numpy")
    record = {
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "settings": given,
        "final": {
            "mean": float(np.mean(found)),
            "std": float(np.std(found)),
            "returns": [round(value, 2) for value in found],
        },
        "evaluations": evaluations,
        "seconds": round(seconds),
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
