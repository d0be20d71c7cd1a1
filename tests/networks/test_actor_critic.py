"""Networks and heads for every space, and the actions that an environment is sent."""

import itertools
from functools import cache

import gymnasium.spaces as spaces
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from jax.flatten_util import ravel_pytree

from surefoot.config.presets import PRESETS, preset
from surefoot.config.settings import Network, OwnNetwork
from surefoot.errors import ConfigError
from surefoot.formulas.distributions import Bernoulli, Categorical, DiagGaussian, MultiCategorical
from surefoot.networks.actor_critic import _orthogonal, build
from surefoot.networks.heads import make_head
from surefoot.networks.spaces import (
    flatten_obs,
    full_mask,
    mask_size,
    normalised_leaves,
    own_dtype,
    sent_action,
)
from surefoot.types import EnvSpec, Inputs
from tests.support.cases import case

KEY = jax.random.key(0)
VECTOR = spaces.Box(-1.0, 1.0, (5,))
BOX = spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 5.0], np.float32))
DISCRETE = spaces.Discrete(3)

OBSERVATIONS = {
    "vector": VECTOR,
    "matrix": spaces.Box(-1.0, 1.0, (2, 3)),
    "planes": spaces.Box(0.0, 1.0, (10, 10, 4)),
    "image": spaces.Box(0, 255, (10, 10, 4), np.uint8),
    "discrete": spaces.Discrete(4, start=-2),
    "multi-discrete": spaces.MultiDiscrete([[2, 3], [4, 2]]),
    "multi-binary": spaces.MultiBinary((2, 2)),
    "dict": spaces.Dict(
        {"z": VECTOR, "eye": spaces.Box(0, 255, (5, 6, 1), np.uint8), "a": spaces.Discrete(2)}
    ),
    "tuple": spaces.Tuple((VECTOR, spaces.Dict({"deep": spaces.MultiBinary(3)}))),
}
ACTIONS = {
    "three": DISCRETE,
    "discrete": spaces.Discrete(4, start=-2),
    "box": BOX,
    "matrix": spaces.Box(-1.0, 3.0, (2, 2)),
    "double": spaces.Box(-1.0, 1.0, (2,), np.float64),
    "integers": spaces.Box(-2, 9, (2,), np.int32),
    "bytes": spaces.Box(0, 255, (2,), np.uint8),
    "half-bounded": spaces.Box(np.float32([0, -np.inf]), np.float32([np.inf, 1])),
    "multi-discrete": spaces.MultiDiscrete([[2, 3], [4, 2]]),
    "multi-binary": spaces.MultiBinary((2, 2)),
    "dict": spaces.Dict({"z": spaces.Discrete(3), "a": BOX}),
    "tuple": spaces.Tuple((spaces.MultiDiscrete([2, 3]), spaces.Dict({"x": BOX, "b": DISCRETE}))),
}


def spec(obs=VECTOR, action=DISCRETE):
    return EnvSpec("Toy-v0", obs, action, None, masked=False, jax_native=False)


def make(obs=VECTOR, action=DISCRETE, own_policy=None, own_critic=None, **settings):
    config = Network(**({"hidden": (8, 8)} | settings))
    return build(spec(obs, action), config, own_policy, own_critic)


def observations(space, leading, seed=0):
    """Samples of a space with leading axes, in the dtypes of this machine."""
    space.seed(seed)
    rows = [space.sample() for _ in range(int(np.prod(leading)))]
    return jax.tree.map(
        lambda *leaves: jnp.asarray(np.stack(leaves).reshape(*leading, *np.shape(leaves[0]))), *rows
    )


def filled(network):
    """Parameters of the right shapes with random values: quicker than compiling `init`."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(network.init, KEY)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), s.dtype), shapes)


@cache
def initial(*, action="three", **settings):
    network = make(action=ACTIONS[action], **settings)
    return network, jax.jit(network.init)(KEY)


@pytest.mark.core
def test_weights_start_orthogonal_with_their_gains_and_biases_at_zero():
    _, params = initial()
    for part, head_gain in ((params["policy"]["net"], 0.01), (params["critic"], 1.0)):
        first, second = part["torso"].layers
        (head,) = part["head"]
        np.testing.assert_allclose(first.weight.T @ first.weight, 2 * np.eye(5), atol=1e-5)
        np.testing.assert_allclose(second.weight @ second.weight.T, 2 * np.eye(8), atol=1e-5)
        size = len(head.weight)
        np.testing.assert_allclose(
            head.weight @ head.weight.T, head_gain**2 * np.eye(size), rtol=1e-4, atol=1e-7
        )
        for layer in (first, second, head):
            np.testing.assert_array_equal(layer.bias, 0.0)


@pytest.mark.core
def test_a_policy_starts_near_uniform_and_a_gaussian_one_near_its_initial_spread():
    obs = observations(VECTOR, (20,))
    network, params = initial()
    probs = jax.nn.softmax(network.policy(params["policy"], Inputs(obs, None)).logits)
    np.testing.assert_allclose(probs, 1 / 3, atol=0.01)
    assert np.ptp(probs) > 0
    network, params = initial(action="box", log_std_init=-0.5)
    gaussian = network.policy(params["policy"], Inputs(obs, None))
    np.testing.assert_allclose(gaussian.mean, 0.0, atol=0.05)
    np.testing.assert_array_equal(gaussian.log_std, np.full((20, 2), -0.5, np.float32))


@pytest.mark.parametrize("size", [1, 2, 17])
def test_initial_noise_has_one_length_whatever_the_dimensions(size):
    network = make(
        action=spaces.Box(-1.0, 1.0, (size,)), log_std_init=-0.5, std_per_dimension=False
    )
    log_std = network.init(KEY)["policy"]["log_std"]
    assert log_std.shape == (size,)
    np.testing.assert_allclose(np.sqrt(np.sum(np.exp(2 * log_std))), np.exp(-0.5), rtol=1e-6)


def test_the_log_std_is_held_within_its_bounds():
    network = make(action=BOX)
    policy = filled(network)["policy"] | {"log_std": jnp.array([-50.0, 50.0])}
    gaussian = network.policy(policy, Inputs(observations(VECTOR, (1,)), None))
    np.testing.assert_array_equal(gaussian.log_std, [[-5.0, 2.0]])


@pytest.mark.core
@pytest.mark.parametrize("name", list(OBSERVATIONS))
def test_every_observation_space_is_read_and_leading_axes_are_only_rows(name):
    space = OBSERVATIONS[name]
    network = make(space)
    params = filled(network)

    @jax.jit
    def outputs(obs):
        inputs = Inputs(obs, None)
        return network.policy(params["policy"], inputs).logits, network.value(params, inputs)

    obs = observations(space, (3, 4))
    rows = jax.tree.map(lambda leaf: leaf.reshape(12, *leaf.shape[2:]), obs)
    (logits, values), (row_logits, row_values) = outputs(obs), outputs(rows)
    assert logits.shape == (3, 4, 3)
    assert values.shape == (3, 4)
    np.testing.assert_allclose(logits.reshape(12, 3), row_logits, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(values.reshape(12), row_values, rtol=1e-5, atol=1e-6)
    assert np.unique(np.round(row_values, 6)).size > 1
    assert np.all(np.isfinite(row_logits))


def test_integers_are_read_as_one_hot_from_where_they_start():
    flat, images = flatten_obs(OBSERVATIONS["discrete"], jnp.array([-2, 0, 1]), "auto")
    assert images == []
    np.testing.assert_array_equal(flat, [[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    space = spaces.MultiDiscrete([2, 3], start=[5, -1])
    flat, _ = flatten_obs(space, jnp.array([[6, -1], [5, 1]]), "auto")
    np.testing.assert_array_equal(flat, [[0, 1, 1, 0, 0], [1, 0, 0, 0, 1]])


def test_a_nested_observation_is_split_into_one_vector_and_its_images():
    space = OBSERVATIONS["dict"]
    obs = observations(space, (3,))
    flat, (image,) = flatten_obs(space, obs, "auto")
    np.testing.assert_array_equal(flat[:, :2], jax.nn.one_hot(obs["a"], 2))
    np.testing.assert_array_equal(flat[:, 2:], obs["z"])
    np.testing.assert_array_equal(image, obs["eye"].astype(jnp.float32) / 255)


def kinds_of(space, images):
    """What a Box is read as, by the network and by the statistics."""
    obs = observations(space, (2,))
    flat, seen = flatten_obs(space, obs, images)
    (normalised,) = normalised_leaves(space, images)
    assert bool(seen) is not normalised
    assert flat.shape[-1] == (0 if seen else np.prod(space.shape))
    network = make(space, images=images, activation="relu")  # which does not saturate
    params = filled(network)
    out = network.policy(params["policy"], Inputs(obs, None)).logits
    assert np.unique(np.round(out, 6), axis=0).shape == (2, 3), "both observations look alike"
    return "image" if seen else "vector"


@case(107)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, bool, np.int8, np.int32])
@pytest.mark.parametrize("shape", [(4, 3, 1), (7, 3, 5), (10, 10, 4), (2, 9, 4), (20, 20)])
def test_arrays_of_numbers_are_vectors_unless_they_are_said_to_be_images(shape, dtype):
    space = spaces.Box(0, 1, shape, dtype)
    assert kinds_of(space, "auto") == kinds_of(space, "none") == "vector"
    whole = len(shape) == 3 and min(shape[:2]) >= 3
    assert kinds_of(space, "all") == ("image" if whole else "vector")


@case(107)
@pytest.mark.parametrize("shape", [(3, 3, 1), (10, 10, 4), (2, 9, 3), (9, 2, 3), (2, 2), (128,)])
@pytest.mark.parametrize("images", ["auto", "all"])
def test_bytes_are_images_where_the_filters_leave_something_of_them(shape, images):
    space = spaces.Box(0, 255, shape, np.uint8)
    whole = len(shape) == 3 and min(shape[:2]) >= 3
    assert kinds_of(space, images) == ("image" if whole else "vector")
    assert kinds_of(space, "none") == "vector"


@case(107)
@pytest.mark.parametrize("high", [1, 3, 255])
def test_images_of_bytes_are_scaled_to_one(high):
    space = spaces.Box(0, high, (5, 5, 2), np.uint8)
    for images in ("auto", "all"):
        _, (image,) = flatten_obs(space, jnp.full((5, 5, 2), high, jnp.uint8), images)
        np.testing.assert_array_equal(image, 1.0)


def test_the_presets_of_minatar_read_images():
    for name in PRESETS:
        images = preset(name).network.images
        assert images == ("all" if "MinAtar" in name else "auto")


def batch_of_actions(name, **settings):
    """Distribution, actions as sampled, and what is sent, for six rows and uneven parameters."""
    space = ACTIONS[name]
    network = make(action=space, **settings)
    params = filled(network)["policy"]
    tanh = settings.get("distribution") == "tanh-gaussian"

    @jax.jit
    def act(key, obs):
        policy = network.policy(params, Inputs(obs, None))
        action = policy.sample(network.noise(key, (6,)))
        sent = sent_action(space, action, affine=True, tanh=tanh)
        return action, policy.log_prob(action), policy.entropy(), sent

    return space, *act(KEY, observations(VECTOR, (6,)))


@pytest.mark.core
@pytest.mark.parametrize("name", list(ACTIONS))
def test_every_action_space_is_acted_in_and_what_is_sent_lies_inside_it(name):
    space, _, log_probs, entropy, sent = batch_of_actions(name)
    assert log_probs.shape == entropy.shape == (6,)
    assert np.all(np.isfinite(log_probs))
    for row in range(6):
        one = own_dtype(space, jax.tree.map(lambda leaf, row=row: np.asarray(leaf[row]), sent))
        assert space.contains(one)


def test_a_squashed_gaussian_acts_inside_a_bounded_box():
    space, action, _, entropy, sent = batch_of_actions("box", distribution="tanh-gaussian")
    middle, half = (space.high + space.low) / 2, (space.high - space.low) / 2
    np.testing.assert_allclose(sent, middle + half * np.tanh(action), rtol=1e-5, atol=1e-6)
    assert np.all(entropy <= 2 * np.log(2))


@pytest.mark.parametrize("scale", ["affine", "raw"])
@pytest.mark.parametrize("space", [BOX, spaces.Box(-np.inf, 3.0, (2,)), spaces.Tuple((BOX, BOX))])
def test_actions_that_an_environment_cannot_tell_apart_are_one_to_a_clipped_gaussian(space, scale):
    head = make_head(space, kind="clipped-gaussian", affine=scale == "affine")
    out = jnp.linspace(-0.5, 0.5, head.size)[None]
    chosen = head.distribution(out, jnp.full(head.std_size, -1.0), None)
    base = jax.tree.map(jnp.zeros_like, chosen.mode())

    def at(value):
        action = jax.tree.map(lambda leaf: leaf + value, base)
        sent = sent_action(space, action, affine=scale == "affine", tanh=False)
        return ravel_pytree(sent)[0], chosen.log_prob(action)

    actions = [at(value) for value in (0.1, 0.2, 5.5, 6.5, 80.0)]
    for (sent_a, prob_a), (sent_b, prob_b) in itertools.combinations(actions, 2):
        assert np.array_equal(sent_a, sent_b) == np.array_equal(prob_a, prob_b)
    assert np.array_equal(actions[-1][0], actions[-2][0])


@pytest.mark.parametrize("name", ["discrete", "multi-discrete", "multi-binary"])
def test_a_mask_of_the_flat_actions_forbids_them(name):
    space = ACTIONS[name]
    head = make_head(space)
    mask = np.ones((1, mask_size(space)), bool)
    mask[0, 0] = False
    distribution = head.distribution(jnp.zeros((1, head.size)), None, jnp.asarray(mask))
    first = distribution.logits.reshape(1, -1)[0, 0]
    assert first == -1e9
    kinds = {"discrete": Categorical, "multi-discrete": MultiCategorical, "multi-binary": Bernoulli}
    assert isinstance(distribution, kinds[name])
    allowed = head.distribution(jnp.zeros((1, head.size)), None, full_mask(space, (1,)))
    assert distribution.entropy() < allowed.entropy()


def test_the_choices_of_a_multi_discrete_are_independent_and_of_their_own_sizes():
    head = make_head(spaces.MultiDiscrete([2, 4]))
    out = jnp.arange(6.0)[None] / 3
    distribution = head.distribution(out, None, None)
    parts = [Categorical(out[:, :2]), Categorical(out[:, 2:])]
    for action in ([0, 3], [1, 0]):
        expected = sum(p.log_prob(jnp.array([a])) for p, a in zip(parts, action, strict=True))
        np.testing.assert_allclose(distribution.log_prob(jnp.array([action])), expected, rtol=1e-5)
    np.testing.assert_allclose(distribution.entropy(), sum(p.entropy() for p in parts), rtol=1e-5)


def test_the_parts_of_a_nested_action_take_their_own_outputs_and_noise():
    space = ACTIONS["tuple"]
    head = make_head(space)
    assert (head.size, head.std_size) == (2 + 3 + 3 + 2, 2)
    out, log_std = jnp.arange(10.0)[None], jnp.array([-1.0, 1.0])
    choices, nested = head.distribution(out, log_std, None).parts
    np.testing.assert_array_equal(choices.logits[0, 1], [2, 3, 4])
    np.testing.assert_array_equal(nested.parts["b"].logits, [[5, 6, 7]])
    assert isinstance(nested.parts["x"], DiagGaussian)
    np.testing.assert_array_equal(nested.parts["x"].mean, [[8, 9]])
    np.testing.assert_array_equal(nested.parts["x"].log_std, [log_std])
    twin = make_head(spaces.Tuple((BOX, BOX)))
    left, right = twin.noise(KEY, (5,))
    assert not np.array_equal(left, right)


SAMPLES = arrays(np.float32, (4, 2), elements=st.floats(-1e6, 1e6, width=32))


@cache
def sender(name, affine, tanh):
    return jax.jit(lambda action: sent_action(ACTIONS[name], action, affine=affine, tanh=tanh))


@pytest.mark.core
@pytest.mark.parametrize("name", ["box", "bytes", "half-bounded"])
@pytest.mark.parametrize("affine", [True, False])
@given(SAMPLES)
def test_whatever_is_sampled_what_is_sent_is_finite_and_within_the_bounds(name, affine, action):
    space, sent = ACTIONS[name], sender(name, affine, False)(action)
    assert sent.dtype == space.dtype
    assert np.all(np.isfinite(sent))
    assert np.all((sent >= space.low) & (sent <= space.high))


def test_an_affine_action_reaches_both_bounds_and_a_raw_one_is_only_clipped():
    action = jnp.array([[-1.0, -1.0], [0.0, 0.0], [1.0, 1.0], [0.5, 3.0]])
    affine = sender("box", True, False)(action)
    np.testing.assert_allclose(affine, [[-2, 0], [0, 2.5], [2, 5], [1, 5]])
    np.testing.assert_allclose(
        sender("box", False, False)(action), [[-1, 0], [0, 0], [1, 1], [0.5, 3]]
    )
    squashed = sender("box", False, True)(jnp.array([[-50.0, 0.0]]))
    np.testing.assert_allclose(squashed, [[-2, 2.5]])
    half = sender("half-bounded", True, False)(jnp.array([[-3.0, 0.25], [7.0, 9.0]]))
    np.testing.assert_allclose(half, [[0, 0.25], [7, 1]])


def test_an_integer_box_is_sent_rounded_numbers():
    sent = sender("bytes", True, False)(jnp.array([[-1.0, 1.0], [0.004, -0.5]]))
    np.testing.assert_array_equal(sent, [[0, 255], [128, 64]])
    raw = sender("integers", False, False)(jnp.array([[-0.6, 8.7], [-9.0, 99.0]]))
    np.testing.assert_array_equal(raw, [[-1, 9], [-2, 9]])


def test_discrete_actions_are_sent_from_where_their_space_starts():
    sent = sent_action(ACTIONS["discrete"], jnp.array([0, 3]), affine=True, tanh=False)
    np.testing.assert_array_equal(sent, [-2, 1])
    space = spaces.MultiDiscrete([[2, 3], [4, 2]], start=[[1, 0], [0, 5]])
    sent = sent_action(space, jnp.array([[1, 2, 3, 0]]), affine=True, tanh=False)
    np.testing.assert_array_equal(sent, [[[2, 2], [3, 5]]])


@pytest.mark.core
@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(0, 255, (84, 84, 3), np.uint8),
        spaces.Box(0, 255, (84, 84), np.uint8),
        spaces.Dict({"camera": spaces.Box(0, 255, (17, 10, 3), np.uint8), "joints": VECTOR}),
    ],
)
def test_large_images_are_refused_by_name_unless_the_user_brings_both_networks(space):
    with pytest.raises(ConfigError, match="pixel observations") as caught:
        make(space)
    assert caught.value.name == "PIXELS"
    own = OwnNetwork(lambda key, obs: {}, lambda params, obs: jnp.zeros((1, 3)))
    with pytest.raises(ConfigError, match="pixel observations"):
        make(space, own_policy=own)
    make(space, own_policy=own, own_critic=own)
    make(space, images="none")


def test_spaces_that_nothing_here_fits_are_refused():
    with pytest.raises(ConfigError, match=r"observations of space Text.* are not supported"):
        make(spaces.Dict({"text": spaces.Text(5)}))
    with pytest.raises(ConfigError, match=r"observations of shape \(0,\) hold no number"):
        make(spaces.Dict({"none": spaces.Box(-1, 1, (0,)), "some": VECTOR}))
    with pytest.raises(ConfigError, match=r"actions of space Text.* are not supported"):
        make(action=spaces.Text(5))
    unbounded = spaces.Tuple((DISCRETE, spaces.Box(-np.inf, np.inf, (2,))))
    with pytest.raises(ConfigError, match="tanh-gaussian needs a Box with finite bounds"):
        make(action=unbounded, distribution="tanh-gaussian")


def test_a_shared_torso_is_the_policys_own_and_learns_from_the_value():
    network = make(shared_torso=True)
    params = filled(network)
    assert set(params["critic"]) == {"head"}
    obs = Inputs(observations(VECTOR, (3,)), None)
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(network.value(p, obs) ** 2)))(params)
    torso, head = gradient["policy"]["net"]["torso"], gradient["policy"]["net"]["head"]
    assert np.abs(torso.layers[0].weight).max() > 0
    np.testing.assert_array_equal(head[0].weight, 0.0)
    own = OwnNetwork(lambda key, obs: {}, lambda params, obs: jnp.zeros((1, 3)))
    with pytest.raises(ConfigError, match="shared_torso cannot be combined with own networks"):
        make(shared_torso=True, own_policy=own)


def test_networks_that_are_not_shared_do_not_learn_from_each_other():
    network = make()
    params, obs = filled(network), Inputs(observations(VECTOR, (3,)), None)
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(network.value(p, obs))))(params)
    for leaf in jax.tree.leaves(gradient["policy"]):
        np.testing.assert_array_equal(leaf, 0.0)


@pytest.mark.core
def test_plain_weights_are_uniform_within_one_over_the_root_of_their_inputs():
    """As PyTorch's layers start; the policy's head is scaled, and biases of layers are 0."""
    shape = spaces.Box(0.0, 1.0, (6, 6, 4))
    network = make(obs=shape, ortho_init=False, hidden=(256,), head_scale=0.5, images="all")
    params = jax.jit(network.init)(KEY)["policy"]["net"]
    (convolution,), (layer,), (head,) = *params["torso"], params["head"]
    for weight, inputs, gain in (
        (convolution.weight, 9 * 4, 1.0),
        (convolution.bias, 9 * 4, 1.0),
        (layer.weight, 16 * 4 * 4, 1.0),
        (head.weight, 256, 0.5),
    ):
        bound = gain / np.sqrt(inputs)
        assert 0.75 * bound < np.abs(weight).max() <= bound * 1.0001
        assert abs(np.std(weight) * np.sqrt(3.0) / bound - 1.0) < 0.35
    np.testing.assert_array_equal(layer.bias, 0.0)


def test_the_critic_may_have_widths_of_its_own():
    params = filled(make(critic_hidden=(6,)))
    assert [len(layer.weight) for layer in params["critic"]["torso"].layers] == [6]
    assert [len(layer.weight) for layer in params["policy"]["net"]["torso"].layers] == [8, 8]


def dense(outputs):
    """An own network with one weight matrix."""
    return OwnNetwork(
        lambda key, obs: {"w": jnp.ones((obs.shape[-1], outputs))},
        lambda params, obs: obs @ params["w"],
    )


@pytest.mark.core
def test_own_networks_take_the_places_of_both():
    flat_value = OwnNetwork(
        lambda key, obs: {"c": jnp.ones(())}, lambda p, obs: obs[..., 0] * p["c"]
    )
    for critic in (dense(1), flat_value):
        network = make(own_policy=dense(3), own_critic=critic)
        params, obs = network.init(KEY), observations(VECTOR, (4,))
        policy = network.policy(params["policy"], Inputs(obs, None))
        np.testing.assert_allclose(policy.logits, obs @ jnp.ones((5, 3)), rtol=1e-6)
        assert network.value(params, Inputs(obs, None)).shape == (4,)
        for leading in ((3, 1), (1,), (1, 1), (3, 2)):  # one environment, one row
            several = Inputs(observations(VECTOR, leading), None)
            assert network.value(params, several).shape == leading


def test_an_own_network_of_another_output_size_is_refused_with_both_sizes():
    obs = Inputs(observations(VECTOR, (4,)), None)
    network = make(own_policy=dense(7), own_critic=dense(1))
    params = network.init(KEY)
    with pytest.raises(ConfigError, match=r"own policy network: .* must be 3, got shape \(4, 7\)"):
        network.policy(params["policy"], obs)


@case(130)
@pytest.mark.parametrize("role", ["policy", "critic"])
def test_an_own_network_without_one_array_of_float32_is_refused_by_name(role):
    def with_own(own):
        network = make(**{"own_policy": dense(3), "own_critic": dense(1), f"own_{role}": own})
        params, obs = network.init(KEY), Inputs(observations(VECTOR, (4,)), None)
        return network.policy(params["policy"], obs).logits, network.value(params, obs)

    right = dense(3 if role == "policy" else 1)
    half = OwnNetwork(
        lambda key, obs: jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), right.init(key, obs)),
        right.apply,
    )
    with pytest.raises(ConfigError, match=f"own {role} network: .* of dtype bfloat16"):
        with_own(half)
    for out in ((jnp.zeros(4), jnp.zeros(4)), None, 3.0):
        with pytest.raises(ConfigError, match=f"own {role} network: apply must return one array"):
            with_own(OwnNetwork(right.init, lambda params, obs, out=out: out))
    inside = OwnNetwork(
        right.init, lambda params, obs: right.apply(params, obs).astype(jnp.bfloat16)
    )
    for found, expected in zip(with_own(inside), with_own(right), strict=True):
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, expected, rtol=1e-2)


def test_the_key_decides_the_first_weights():
    network, params = initial()
    again, other = jax.jit(network.init)(KEY), jax.jit(network.init)(jax.random.key(1))
    for one, same, different in zip(*map(jax.tree.leaves, (params, again, other)), strict=True):
        np.testing.assert_array_equal(one, same)
        assert not one.any() or not np.array_equal(one, different)


@pytest.mark.parametrize(("platform", "batched"), [("cpu", "0"), ("cuda", "1")])
def test_many_first_weights_are_decomposed_one_by_one_on_a_cpu_alone(platform, batched):
    keys = jax.random.split(jax.random.key(0), 3)
    draw = jax.jit(jax.vmap(lambda key: _orthogonal(key, (4, 8), gain=2.0)))
    program = draw.trace(keys).lower(lowering_platforms=(platform,)).as_text()
    assert f'num_batch_dims = "{batched}"' in program
    assert f'num_batch_dims = "{1 - int(batched)}"' not in program
    alone = [_orthogonal(key, (4, 8), gain=2.0) for key in keys]
    np.testing.assert_array_equal(draw(keys), alone)
