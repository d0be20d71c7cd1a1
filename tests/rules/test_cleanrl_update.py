"""One update of ppo under the preset cleanrl is the descent that CleanRL's scripts describe."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from surefoot.config.presets import preset
from surefoot.formulas.distributions import Categorical, DiagGaussian
from surefoot.rules import UPDATE_RULES
from surefoot.rules.critic import critic_losses
from surefoot.rules.rows import AllRows
from surefoot.types import Batch, Inputs

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.slow

OBS, KEY = 5, jax.random.key(7)


def layers(key, out, last):
    made, sizes = [], itertools.pairwise((OBS, 64, 64, out))
    for each, pair, scale in zip(jax.random.split(key, 3), sizes, (1.4, 1.4, last), strict=True):
        weights = jax.nn.initializers.orthogonal(scale)(each, pair)
        made.append({"w": weights, "b": jnp.zeros(pair[1])})
    return made


def forward(layers, x, tanh):
    for layer in layers[:-1]:
        x = tanh(x @ layer["w"] + layer["b"][None])
    return x @ layers[-1]["w"] + layers[-1]["b"][None]


def our_policy(params, inputs):
    head = forward(params["policy"]["layers"], inputs.obs, jnp.tanh)
    if "log_std" not in params["policy"]:
        return Categorical(head)
    return DiagGaussian(head, jnp.broadcast_to(params["policy"]["log_std"][None], head.shape))


def our_value(params, inputs):
    return forward(params["critic"], inputs.obs, jnp.tanh)[:, 0]


def rows_of(params, kind, size, count):
    random = np.random.default_rng(0)
    inputs = Inputs(jnp.asarray(random.normal(size=(count, OBS)), jnp.float32), None)
    box = kind == "Box"
    drawn = random.normal(size=(count, size)) if box else random.integers(0, size, count)
    actions = jnp.asarray(drawn, jnp.float32 if box else jnp.int32)
    advantages = jnp.asarray(2 * random.normal(size=count), jnp.float32)
    values, ones = our_value(params, inputs), jnp.ones(count)
    log_probs = our_policy(params, inputs).log_prob(actions)
    return Batch(inputs, actions, log_probs, advantages, values, advantages + values, ones, ones,
                 jnp.arange(count), jnp.ones(()))  # fmt: skip


def their_update(params, batch, orders, settings, spread):
    """The loss and Adam of torch, minibatch by minibatch."""
    tensor = lambda leaf: torch.tensor(np.asarray(leaf))  # noqa: E731
    theirs = jax.tree.map(lambda leaf: torch.nn.Parameter(tensor(leaf)), params)
    leaves = jax.tree.leaves(theirs)
    adam = torch.optim.Adam(leaves, lr=settings.rule.learning_rate, eps=1e-5)
    obs, actions, old, gains, values = map(
        tensor,
        (batch.inputs.obs, batch.actions, batch.old_log_probs, batch.advantages, batch.values),
    )
    for rows in orders:
        head = forward(theirs["policy"]["layers"], obs[rows], torch.tanh)
        if "log_std" in theirs["policy"]:
            law = torch.distributions.Normal(head, theirs["policy"]["log_std"].exp())
            log_probs, entropy = law.log_prob(actions[rows]).sum(1), law.entropy().sum(1)
        else:
            law = torch.distributions.Categorical(logits=head)
            log_probs, entropy = law.log_prob(actions[rows].long()), law.entropy()
        gain = gains[rows]
        gain = (gain - gain.mean()) / (gain.std(correction=spread) + 1e-8)
        ratio = (log_probs - old[rows]).exp()
        clipped = torch.minimum(gain * ratio, gain * ratio.clamp(0.8, 1.2))
        value, before = forward(theirs["critic"], obs[rows], torch.tanh)[:, 0], values[rows]
        near = before + (value - before).clamp(-0.2, 0.2)
        target = gains[rows] + before
        miss = torch.maximum((value - target) ** 2, (near - target) ** 2)
        loss = -clipped.mean() - settings.rule.ent_coef * entropy.mean() + 0.25 * miss.mean()
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(leaves, 0.5)
        adam.step()
    return jax.tree.map(lambda leaf: jnp.asarray(leaf.detach().numpy()), theirs)


@pytest.mark.parametrize(("kind", "size"), [("Discrete", 3), ("Box", 6)])
def test_an_update_ends_where_cleanrls_does(kind, size):
    settings = preset("", "ppo", "cleanrl", actions=(kind, size))
    policy = {"layers": layers(jax.random.key(0), size, 0.01)}
    if kind == "Box":
        policy["log_std"] = jnp.zeros(size)
    params = {"policy": policy, "critic": layers(jax.random.key(1), 1, 1.0)}
    count, critic = settings.train.num_envs * settings.train.num_steps, settings.critic
    batch = rows_of(params, kind, size, count)
    losses, weight = critic_losses(critic, our_value), critic.vf_coef
    rule = UPDATE_RULES["ppo"](settings.rule, our_policy, 1.0,
                               lambda params, rows: weight * losses(params, rows))  # fmt: skip
    ours, *_ = jax.jit(rule.update)(rule.init(params), params, batch, KEY)
    orders = np.concatenate(
        [
            np.asarray(AllRows().minibatches(key, count, settings.rule.num_minibatches))
            for key in jax.random.split(KEY, settings.rule.num_epochs)
        ]
    )
    start, end = (ravel_pytree(tree)[0] for tree in (params, ours))
    for spread, tolerance in ((0, 1e-4), (1, 0.1)):  # ours, and theirs, with n - 1
        found = ravel_pytree(their_update(params, batch, orders, settings, spread))[0]
        distance = jnp.linalg.norm(end - found) / jnp.linalg.norm(found - start)
        assert distance < tolerance
