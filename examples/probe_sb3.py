"""Probe the step between two checkpoints of stable-baselines3: promised, realised, how far to go.

python examples/probe_sb3.py CartPole-v1 before.zip after.zip, or without arguments to train both.
"""

import copy
import sys
import tempfile

import numpy as np
import torch
from stable_baselines3 import PPO

import surefoot as sf


class FromSB3:
    """A PPO policy of stable-baselines3 as a probe reads it; its noise comes from NumPy.

    Noise that does not depend on the policy is what pairs two policies' episodes. Where the model
    was trained under VecNormalize, normalise `obs` here as it did.
    """

    def __init__(self, policy):
        self.policy = policy.eval()

    def _distribution(self, obs):
        return self.policy.get_distribution(torch.as_tensor(obs, device=self.policy.device))

    @torch.no_grad()
    def sample(self, obs, rng):
        inner = self._distribution(obs).distribution
        if isinstance(inner, torch.distributions.Categorical):
            logits = inner.logits.cpu().numpy()
            return np.argmax(logits + rng.gumbel(size=logits.shape), axis=1)
        mean, std = inner.mean.cpu().numpy(), inner.stddev.cpu().numpy()
        return (mean + std * rng.normal(size=mean.shape)).astype(np.float32)

    @torch.no_grad()
    def log_prob(self, obs, actions):
        actions = torch.as_tensor(actions, device=self.policy.device)
        return self._distribution(obs).log_prob(actions).cpu().numpy()

    @torch.no_grad()
    def value(self, obs):
        obs = torch.as_tensor(obs, device=self.policy.device)
        return self.policy.predict_values(obs)[:, 0].cpu().numpy()


def path_between(old, new):
    """The policy at a fraction of the way from one to the other, straight in the parameters."""
    ends = old.state_dict(), new.state_dict()

    def policy_at(fraction):
        between = copy.deepcopy(old)
        mixed = {name: p + fraction * (ends[1][name] - p) for name, p in ends[0].items()}
        between.load_state_dict(mixed)
        return FromSB3(between)

    return policy_at


def probe(env_id, before, after, budget):
    """Probe two saved models; `value` is the old one's critic, lambda and gamma its own."""
    old, new = PPO.load(before, device="cpu"), PPO.load(after, device="cpu")
    critic = FromSB3(old.policy)
    settings = sf.ProbeSettings(
        gamma=old.gamma,
        gae_lambda=old.gae_lambda,
        clip_eps=old.clip_range(1.0),
        budget=budget,
    )
    return sf.probe_policies(
        env_id,
        critic,
        FromSB3(new.policy),
        settings,
        value=critic.value,
        path=path_between(old.policy, new.policy),
    )


def train_two(env_id, folder, steps=4096):
    """A model after some steps, and after one more update."""
    model = PPO("MlpPolicy", env_id, n_steps=1024, seed=0, device="cpu")
    model.learn(steps)
    model.save(f"{folder}/before.zip")
    model.learn(1024, reset_num_timesteps=False)
    model.save(f"{folder}/after.zip")
    return f"{folder}/before.zip", f"{folder}/after.zip"


if __name__ == "__main__":
    env_id = sys.argv[1] if len(sys.argv) > 1 else "CartPole-v1"
    with tempfile.TemporaryDirectory() as folder:
        files = sys.argv[2:4] or train_two(env_id, folder)
        torch.set_num_threads(1)  # networks this small are slower on several
        found = probe(env_id, *files, budget=50_000)
    print("\n".join(found.verdict()))
    found.plot("probe-sb3.png")
