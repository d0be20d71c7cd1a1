"""The functions of small runs, without the loop around them."""

from surefoot.config.presets import Groups, settle
from surefoot.config.settings import Critic, Network
from surefoot.networks.actor_critic import build
from surefoot.training.learner import Learner

NETWORK = Network(hidden=(8,))
CRITIC = Critic(num_epochs=2, num_minibatches=2)


def learner_of(env, rule, train, *, network=NETWORK, critic=CRITIC):
    """The learner of an environment that is open, JAX-native or not, under these settings."""
    settings = settle(env.spec.env_id, Groups(rule, train, network, critic))
    native = env if env.spec.jax_native else None
    return Learner(settings, env.spec, build(env.spec, network), native)
