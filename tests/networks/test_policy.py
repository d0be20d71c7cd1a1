"""A frozen policy answers one observation or many, inside the space, within the mask."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from surefoot.config.presets import Groups, settle
from surefoot.config.settings import VPG, Critic, Network, Train
from surefoot.errors import EnvContractError
from surefoot.formulas.running_stats import RunningStats
from surefoot.networks.actor_critic import build, make_actor
from surefoot.networks.policy import Policy
from surefoot.types import EnvSpec
from tests.support.scripted import ACTION_SPACES, OBS_SPACES, shown
from tests.support.trees import assert_same_bits, same_bits


@cache
def make_policy(obs="box", action="discrete", stats=None):
    spec = EnvSpec("Scripted", OBS_SPACES[obs], ACTION_SPACES[action], 5, False, False)
    # A head of ordinary size, so that another observation is another distribution.
    network = Network(hidden=(8,), head_scale=0.4)
    groups = Groups(VPG(), Train(), network, Critic(num_minibatches=1))
    settings = settle("Scripted", groups)
    network = build(spec, settings.network)
    actor = make_actor(network, spec.action_space, settings)
    params = network.init(jax.random.key(1))["policy"]
    leaves = len(jax.tree.leaves(shown(obs, 0, 0)))
    return Policy(spec, actor, params, (None,) * leaves)


MOMENTS = [(0, 0), (1, 3), (2, 4), (5, 1)]


def batch_of(kind):
    observations = [shown(kind, *moment) for moment in MOMENTS]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *observations)


@pytest.mark.core
@pytest.mark.parametrize(
    ("obs", "action"),
    [("box", "box"), ("discrete", "double"), ("dict", "dict"), ("tuple", "tuple")],
)
def test_a_batch_is_answered_row_by_row(obs, action):
    policy = make_policy(obs, action)
    together = policy(batch_of(obs))
    for row, moment in enumerate(MOMENTS):
        alone = policy(shown(obs, *moment))
        assert policy.spec.action_space.contains(alone)
        expected = jax.tree.map(lambda leaf, i=row: leaf[i], together)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), alone, expected)


def test_other_observations_get_other_actions():
    actions = make_policy("box", "box")(batch_of("box"))
    assert len(np.unique(actions, axis=0)) == len(MOMENTS)


@pytest.mark.parametrize("action", ["discrete", "box", "multi-discrete", "multi-binary", "dict"])
def test_a_sample_lies_in_the_space_and_depends_on_its_key_alone(action):
    policy = make_policy("box", action)
    draw = partial(policy, shown("box", 1, 2), deterministic=False)
    assert_same_bits(draw(key=3), draw(key=jax.random.key(3)))
    assert_same_bits(draw(key=3), draw(key=np.int64(3)))
    samples = [draw(key=k) for k in range(8)]
    assert all(policy.spec.action_space.contains(sample) for sample in samples)
    assert not all(same_bits(samples[0], sample) for sample in samples)


def test_samples_without_a_key_differ_and_modes_do_not():
    # Of many rows: two samples of one may both lie beyond the same bounds.
    policy, obs = make_policy("box", "box"), np.ones((20, 2), np.float32)
    assert not same_bits(policy(obs, deterministic=False), policy(obs, deterministic=False))
    assert_same_bits(policy(obs), policy(obs))


@pytest.mark.core
def test_the_mode_is_the_likeliest_action_and_samples_follow_the_probabilities():
    policy, obs = make_policy("box", "discrete"), shown("box", 1, 2)
    inputs = policy.actor.inputs(policy.obs_stats, jnp.asarray(obs)[None], None)
    logits = policy.actor.network.policy(policy.params, inputs).logits[0]
    assert policy(obs) == jnp.argmax(logits)
    samples = policy(np.tile(obs, (4000, 1)), deterministic=False, key=0)
    shares = np.bincount(samples, minlength=3) / 4000
    np.testing.assert_allclose(shares, jax.nn.softmax(logits), atol=0.03)


@pytest.mark.core
@pytest.mark.parametrize("deterministic", [True, False])
def test_a_forbidden_action_is_never_given(deterministic):
    policy, obs = make_policy("box", "discrete"), batch_of("box")
    for forbidden in range(3):
        mask = np.arange(3) != forbidden
        for key in range(4):
            give = partial(policy, deterministic=deterministic, key=key)
            assert give(obs[0], action_mask=mask) != forbidden
            assert give(obs[0], action_mask=mask.tolist()) != forbidden
            assert forbidden not in give(obs, action_mask=np.tile(mask, (len(obs), 1)))


def test_masks_of_nested_actions_are_read_as_gymnasium_gives_them():
    obs = shown("box", 1, 2)
    pair = (np.array([0, 1], np.int8), np.array([0, 0, 1], np.int8))
    assert make_policy("box", "multi-discrete")(obs, action_mask=pair).tolist() == [1, 2]
    turn = {"turn": np.array([0, 0, 1], np.int8)}
    assert make_policy("box", "dict")(obs, action_mask=turn)["turn"] == 1, "it starts at -1"


@pytest.mark.parametrize(
    ("mask", "fault"), [([1, 1], "has 2 entries"), ([0, 0, 0], "allows no action")]
)
def test_a_mask_that_does_not_fit_is_refused(mask, fault):
    with pytest.raises(EnvContractError, match=fault):
        make_policy()(shown("box", 1, 2), action_mask=mask)


def test_observations_are_normalised_as_in_training():
    plain = make_policy("box", "box")
    stats = RunningStats(jnp.float32(4.0), jnp.array([1.0, 2.0]), jnp.array([4.0, 1.0]))
    trained = Policy(plain.spec, plain.actor, plain.params, (stats,))
    obs = np.array([5.0, 1.0], np.float32)
    # Mean (1, 2), variance (4, 1).
    np.testing.assert_allclose(trained(obs), plain(np.array([2.0, -1.0])), rtol=1e-6)
    assert not np.allclose(trained(obs), plain(obs))


@pytest.mark.parametrize(
    ("kind", "obs"),
    [
        ("box", np.zeros(5)),
        ("box", np.zeros((3, 5))),
        ("box", np.zeros((3, 2, 2))),
        ("box", 0.0),
        ("dict", {"time": 1, "episode": np.zeros(2)}),
    ],
)
def test_an_observation_of_another_shape_is_refused_with_both_shapes(kind, obs):
    policy = make_policy(kind, "box")
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(obs)]
    with pytest.raises(ValueError, match="Scripted: an observation has shape") as refused:
        policy(obs)
    assert str(refused.value).endswith(f"got {', '.join(map(str, shapes))}")


def test_lists_and_numbers_are_observations_too():
    policy = make_policy("box", "box")
    np.testing.assert_array_equal(policy([1, 2]), policy(np.array([1.0, 2.0], np.float32)))
    policy = make_policy("discrete", "double")
    np.testing.assert_array_equal(policy(7), policy(np.int64(7)))
