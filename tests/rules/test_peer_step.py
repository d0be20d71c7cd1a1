"""The step of trpo under the preset sb3-contrib is the step of sb3-contrib's TRPO."""

from typing import NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from surefoot.config.presets import preset
from surefoot.formulas.distributions import Bernoulli, Categorical, DiagGaussian, kl
from surefoot.rules import UPDATE_RULES
from surefoot.types import Batch, Inputs

sb3_contrib = pytest.importorskip("sb3_contrib")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),  # of other people's libraries
]

LAYERS = (
    "mlp_extractor.policy_net.0",
    "mlp_extractor.policy_net.2",
    "action_net",
)


class Bits(gymnasium.Env):
    """Four bits, each of which earns what one number of the observation says."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (4,))
    action_space = gymnasium.spaces.MultiBinary(4)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.obs, self.left = self.np_random.uniform(-1, 1, 4).astype(np.float32), 20
        return self.obs, {}

    def step(self, action):
        reward, self.left = float(self.obs @ (2.0 * np.asarray(action) - 1.0)), self.left - 1
        self.obs = self.np_random.uniform(-1, 1, 4).astype(np.float32)
        return self.obs, reward, self.left == 0, False, {}


class Peer(NamedTuple):
    """One update of sb3-contrib's: the parameters on both sides of it, and its batch."""

    before: dict
    after: dict
    batch: Batch


def parameters(model):
    state = {key: jnp.asarray(x.numpy().copy()) for key, x in model.policy.state_dict().items()}
    found = {f"{layer}.{part}": state[f"{layer}.{part}"] for layer in LAYERS
             for part in ("weight", "bias")}  # fmt: skip
    return found | {key: state[key] for key in state if key == "log_std"}


def peers_update(env, seed=0):
    """Its first update with its defaults, on a rollout of its own."""
    model = sb3_contrib.TRPO("MlpPolicy", env, seed=seed, device="cpu")
    seen = {}
    train = model.train

    def watched():
        if not seen:
            seen["before"] = parameters(model)
            rows = next(model.rollout_buffer.get(batch_size=None))
            actions = jnp.asarray(rows.actions.numpy())
            zeros = jnp.zeros(len(actions))
            discrete = isinstance(env.action_space, gymnasium.spaces.Discrete)
            seen["batch"] = Batch(
                inputs=Inputs(jnp.asarray(rows.observations.numpy()), None),
                actions=actions.reshape(-1).astype(int) if discrete else actions,
                old_log_probs=jnp.asarray(rows.old_log_prob.numpy()),
                advantages=jnp.asarray(rows.advantages.numpy()),
                values=zeros,
                value_targets=zeros,
                weights=jnp.ones(len(actions)),
                visits=zeros,
                groups=jnp.arange(len(actions)),
                return_scale=jnp.ones(()),
            )
        train()
        seen.setdefault("after", parameters(model))

    model.train = watched
    model.learn(2048)
    return Peer(**seen)


def policy_fn(distribution):
    def linear(params, layer, x):
        return x @ params[f"{layer}.weight"].T + params[f"{layer}.bias"][None]

    def act(params, inputs):
        x = inputs.obs
        for layer in LAYERS[:-1]:
            x = jnp.tanh(linear(params, layer, x))
        head = linear(params, LAYERS[-1], x)
        if distribution is DiagGaussian:
            return DiagGaussian(head, jnp.broadcast_to(params["log_std"][None], head.shape))
        return distribution(head)

    return act


def our_update(config, policy, peer):
    rule = UPDATE_RULES["trpo"](config, policy, 1.0)
    update = jax.jit(rule.update)
    after, _, info = update(rule.init(peer.before), peer.before, peer.batch, jax.random.key(0))
    return after, info


@pytest.mark.parametrize(
    ("make", "distribution", "actions"),
    [
        (lambda: gymnasium.make("HalfCheetah-v5"), DiagGaussian, ("Box", 6)),
        (lambda: gymnasium.make("Pendulum-v1"), DiagGaussian, ("Box", 1)),
        (Bits, Bernoulli, ("MultiBinary", 4)),
        (lambda: gymnasium.make("CartPole-v1"), Categorical, ("Discrete", 2)),
    ],
    ids=["HalfCheetah-v5", "Pendulum-v1", "bits", "CartPole-v1"],
)
def test_the_first_step_is_that_of_sb3_contrib(make, distribution, actions):
    peer, policy = peers_update(make()), policy_fn(distribution)
    config = preset("", "trpo", "sb3-contrib", actions=actions).rule
    after, info = our_update(config, policy, peer)
    assert info["update/accepted"] == 1
    start, theirs, ours = (ravel_pytree(x)[0] for x in (peer.before, peer.after, after))
    their_step, our_step = theirs - start, ours - start
    their_norm, our_norm = jnp.linalg.norm(their_step), jnp.linalg.norm(our_step)
    assert their_step @ our_step / (their_norm * our_norm) > 0.999
    np.testing.assert_allclose(our_norm, their_norm, rtol=0.01)
    old, their_new, our_new = (
        policy(x, peer.batch.inputs) for x in (peer.before, peer.after, after)
    )
    np.testing.assert_allclose(kl(old, our_new).mean(), kl(old, their_new).mean(), rtol=0.02)
    # Its own measure, which it holds within its radius: a mean over dimensions too.
    averaged = actions[1] if actions[0] in ("Box", "MultiBinary") else 1
    assert kl(their_new, old).mean() / averaged < 0.01
