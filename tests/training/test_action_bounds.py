"""Every way to a policy tells it the bounds of its actions in its own units."""

import numpy as np
import pytest

import surefoot as sf
from surefoot.config.presets import Groups, settle
from surefoot.training.env_share import open_share
from surefoot.types import Inputs

NETWORK = sf.Network(distribution="clipped-gaussian", hidden=(4,))
BRIEF = {"num_envs": 1, "num_steps": 16, "steps": 16, "lens_every": 0}


def trained(env, train):
    run = sf.train(env, "trpo", train=train, network=NETWORK)
    return run.learner.actor, run.policy.params


def trained_with_others(env, train):
    (run,) = sf.train_many("gymnax:" + env, "trpo", seeds=[0], train=train, network=NETWORK)
    return run.learner.actor, run.policy.params


def acting_elsewhere(env, train):
    settings = settle(env, Groups(sf.TRPO(), train, NETWORK, sf.Critic()))
    return open_share(settings, 0, 1)._actor, trained(env, train)[1]


@pytest.mark.parametrize(("scale", "bound"), [("affine", 1.0), ("raw", 2.0)])
@pytest.mark.parametrize("way", [trained, trained_with_others, acting_elsewhere])
def test_a_clipped_gaussian_knows_its_bounds(way, scale, bound):
    if way is trained_with_others:
        pytest.importorskip("gymnax")
    actor, params = way("Pendulum-v1", sf.Train(action_scale=scale, **BRIEF))
    chosen = actor.network.policy(params, Inputs(np.zeros((1, 3), np.float32), None))
    assert (chosen.low, chosen.high) == ((-bound,), (bound,))
