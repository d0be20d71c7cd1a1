"""The policy's and the critic's functions, from spaces and settings.

A network is a pair of pure functions: `init(key, obs) -> params` and `apply(params, obs)`, whose
output's last axis is the head's. Observations carry any leading axes.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import gymnasium.spaces as spaces
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from surefoot.config.settings import Network, OwnNetwork, Settings
from surefoot.errors import ConfigError
from surefoot.formulas.running_stats import normalize_obs
from surefoot.networks.heads import make_head
from surefoot.networks.spaces import (
    FILTER_SIDE,
    check_observations,
    example_obs,
    flatten_obs,
    is_image,
    leaf_spaces,
    sent_action,
    shape_of,
)
from surefoot.types import EnvSpec, Inputs, Params

LOG_STD_BOUNDS = (-5.0, 2.0)
FILTERS = 16

_ACTIVATIONS = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "swish": jax.nn.swish,
    "elu": jax.nn.elu,
    "gelu": jax.nn.gelu,
}


class ActorCritic(NamedTuple):
    """Both functions of a run.

    `init(key)` gives `{"policy": ..., "critic": ...}`. `policy(params, inputs)` reads the first
    of the two and gives a distribution; `value(params, inputs)` reads both, for a shared torso
    lives with the policy. `noise(key, leading)` draws what sampling needs for rows with those
    leading axes.
    """

    init: Callable[[Key[Array, ""]], dict[str, Params]]
    policy: Callable[[Params, Inputs], Any]
    value: Callable[[dict[str, Params], Inputs], Float[Array, "*batch"]]
    noise: Callable[[Key[Array, ""], tuple[int, ...]], Any]


class Layer(NamedTuple):
    """A linear layer, or a convolution of images with their channels last."""

    weight: Float[Array, "out ..."]
    bias: Float[Array, "out ..."]


class Torso(NamedTuple):
    """Parameters that turn an observation into features: a convolution per image, then layers.

    Source of the CNN's shape: Young & Tian 2019, arXiv:1903.03176 (MinAtar): 16 filters of 3 x 3.
    """

    convolutions: list[Layer]
    layers: list[Layer]


def _orthogonal(
    key: Key[Array, ""], shape: tuple[int, int], *, gain: float
) -> Float[Array, "out features"]:
    """An orthogonal matrix times `gain`; under vmap, on a CPU, one after another.

    A batch of LAPACK's decompositions waits for XLA's threads, which may all be waiting for it: on
    a CPU of two cores many seeds in one program then stood still (jax 0.10.2). An accelerator draws
    all at once.
    """
    draw = jax.custom_batching.custom_vmap(
        lambda key: jax.nn.initializers.orthogonal(gain)(key, shape)
    )

    @draw.def_vmap
    def _many(axis_size: int, in_batched: list[bool], keys: Key[Array, " many"]):
        one_by_one, at_once = partial(jax.lax.map, draw), jax.vmap(draw.fun)
        return jax.lax.platform_dependent(keys, cpu=one_by_one, default=at_once), True

    return draw(key)


def _uniform(key: Key[Array, ""], shape: tuple[int, ...], fan_in: int) -> Float[Array, "..."]:
    # PyTorch's default for linear layers and convolutions.
    limit = 1 / math.sqrt(fan_in)
    return jax.random.uniform(key, shape, minval=-limit, maxval=limit)


def _convolution(key: Key[Array, ""], channels: int) -> Layer:
    weight_key, bias_key = jax.random.split(key)
    shape = (FILTERS, channels, FILTER_SIDE, FILTER_SIDE)
    fan_in = math.prod(shape[1:])
    return Layer(_uniform(weight_key, shape, fan_in), _uniform(bias_key, (FILTERS, 1, 1), fan_in))


def _linear_layers(
    key: Key[Array, ""], sizes: list[int], config: Network, *, gain: float | None = None
) -> list[Layer]:
    """Linear layers of these sizes; `gain` is that of the initial weights."""
    # The root of 2 is the gain of hidden layers in OpenAI's baselines and in CleanRL.
    if gain is None:
        gain = math.sqrt(2.0) if config.ortho_init else 1.0
    layers = []
    for layer_key, size_in, size_out in zip(
        jax.random.split(key, len(sizes)), sizes, sizes[1:], strict=False
    ):
        if config.ortho_init:
            weight = _orthogonal(layer_key, (size_out, size_in), gain=gain)
        else:
            weight = gain * _uniform(jax.random.split(layer_key)[0], (size_out, size_in), size_in)
        layers.append(Layer(weight, jnp.zeros(size_out)))
    return layers


def _apply_linear(layer: Layer, x: Float[Array, "*batch features"]) -> Float[Array, "*batch out"]:
    return x @ jnp.transpose(layer.weight) + layer.bias


def _network(
    space: spaces.Space, widths: list[int], outputs: int, config: Network, *, head_gain: float
) -> OwnNetwork:
    """A torso, images through a small CNN and the rest as a vector, and a linear head on it."""
    activation = _ACTIVATIONS[config.activation]
    reads = config.images
    images = [shape_of(part) for part in leaf_spaces(space) if is_image(part, reads)]

    def init(key, obs):
        torso_key, head_key = jax.random.split(key)
        conv_key, layers_key = jax.random.split(torso_key)
        keys = jax.random.split(conv_key, len(images) + 1)
        convolutions = [_convolution(k, shape[-1]) for k, shape in zip(keys, images, strict=False)]
        size = features(convolutions, obs).shape[-1]
        layers = _linear_layers(layers_key, [size, *widths], config)
        head = _linear_layers(head_key, [widths[-1], outputs], config, gain=head_gain)
        return {"torso": Torso(convolutions, layers), "head": head}

    def features(convolutions, obs):
        """What the first linear layer reads, for observations with any leading axes."""
        vector, seen = flatten_obs(space, obs, reads)
        parts = [vector]
        for layer, image in zip(convolutions, seen, strict=True):
            leading = image.shape[:-3]
            # A convolution takes one leading axis and channels first; observations have any number
            # of axes.
            flat = jnp.moveaxis(image, -1, -3).reshape(-1, image.shape[-1], *image.shape[-3:-1])
            out = jax.lax.conv_general_dilated(flat, layer.weight, (1, 1), "VALID") + layer.bias
            parts.append(activation(out).reshape(*leading, -1))
        return jnp.concatenate(parts, axis=-1)

    def apply(params, obs):
        x = features(params["torso"].convolutions, obs)
        for layer in params["torso"].layers:
            x = activation(_apply_linear(layer, x))
        return _apply_linear(params["head"][0], x)

    return OwnNetwork(init, apply)


def _checked(own: OwnNetwork, outputs: int, role: str, space: spaces.Space) -> OwnNetwork:
    """A user's network whose outputs are refused where they are of another shape."""

    def init(key, obs):
        params = own.init(key, obs)
        for leaf in jax.tree.leaves(params):
            if jnp.result_type(leaf) not in (jnp.float32, jnp.float64):
                raise ConfigError(
                    f"own {role} network: its init gave a parameter of dtype "
                    f"{jnp.result_type(leaf)}; rules compute in float32: cast to another inside "
                    "apply"
                )
        return params

    def apply(params, obs):
        out = own.apply(params, obs)
        if not isinstance(out, jax.Array):
            raise ConfigError(
                f"own {role} network: apply must return one array, got {type(out).__name__}"
            )
        # A network may compute in less; what a rule does with its output is in float32.
        out = out.astype(jnp.promote_types(out.dtype, jnp.float32))
        # A critic of one's own may leave out the last axis, which has length 1. Its shape alone
        # does not tell: with one environment, the axis of environments has length 1 too.
        rows = jax.tree.leaves(obs)[0].ndim - jax.tree.leaves(example_obs(space))[0].ndim
        if outputs == 1 and out.ndim == rows:
            out = out[..., None]
        if not out.shape or out.shape[-1] != outputs:
            shapes = jax.tree.map(lambda leaf: tuple(leaf.shape), params)
            raise ConfigError(
                f"own {role} network: the last axis of its output must be {outputs}, got shape "
                f"{tuple(out.shape)}; its parameters are {shapes}"
            )
        return out

    return OwnNetwork(init, apply)


def build(
    spec: EnvSpec,
    config: Network,
    own_policy: OwnNetwork | None = None,
    own_critic: OwnNetwork | None = None,
    *,
    affine: bool = True,
) -> ActorCritic:
    """The policy and the critic of an environment, own networks in their places.

    `affine` says whether [-1, 1] is mapped onto a Box of actions that has a range. A ConfigError
    refuses a space that no network or head here fits.
    """
    if own_policy is None or own_critic is None:
        check_observations(spec, config.images)
    shared = config.shared_torso
    if shared and (own_policy or own_critic):
        raise ConfigError("network: shared_torso cannot be combined with own networks")
    space, kind = spec.observation_space, config.distribution
    head = make_head(spec.action_space, kind=kind, affine=affine)
    if kind != "gaussian" and not head.std_size:
        raise ConfigError(
            f"{spec.env_id}: --distribution {kind} is for Box actions, and these are "
            f"{spec.action_space}; leave it out"
        )
    widths = list(config.hidden)
    critic_widths = widths if shared else list(config.critic_hidden or widths)
    policy_net = _network(space, widths, head.size, config, head_gain=config.head_scale)
    if own_policy:
        policy_net = _checked(own_policy, head.size, "policy", space)
    critic_net = _network(space, critic_widths, 1, config, head_gain=1.0)
    if own_critic:
        critic_net = _checked(own_critic, 1, "critic", space)

    def init(key):
        policy_key, critic_key = jax.random.split(key)
        example = jax.tree.map(lambda leaf: leaf[None], example_obs(space))
        policy = {"net": policy_net.init(policy_key, example)}
        if head.std_size:
            less = 0.0 if config.std_per_dimension else 0.5 * math.log(head.std_size)
            policy["log_std"] = (config.log_std_init - less) * jnp.ones(head.std_size)
        critic = critic_net.init(critic_key, example)
        # A shared torso lives with the policy, so that of the critic the head alone is kept.
        return {"policy": policy, "critic": {"head": critic["head"]} if shared else critic}

    def policy(params, inputs):
        log_std = jnp.clip(params["log_std"], *LOG_STD_BOUNDS) if head.std_size else None
        out = policy_net.apply(params["net"], inputs.obs)
        return head.distribution(out, log_std, inputs.action_mask)

    def value(params, inputs):
        critic = params["critic"]
        if shared:
            critic = {"torso": params["policy"]["net"]["torso"], **critic}
        return critic_net.apply(critic, inputs.obs)[..., 0]

    return ActorCritic(init, policy, value, head.noise)


class Actor(NamedTuple):
    """What acting needs besides parameters: the networks and how observations and actions map.

    `act(policy, obs_stats, obs, action_mask, noise)` gives the action as sampled, as sent, and its
    log-probability; where `noise` is None the action is the policy's mode.
    """

    network: ActorCritic
    act: Callable[..., tuple[Any, Any, Any]]
    inputs: Callable[..., Inputs]


def make_actor(network: ActorCritic, action_space: Any, settings: Settings) -> Actor:
    """The actor of a run."""
    affine = settings.train.affine
    tanh = settings.network.distribution == "tanh-gaussian"

    def inputs(obs_stats, obs, action_mask):
        return Inputs(normalize_obs(obs_stats, obs, clip=settings.train.obs_clip), action_mask)

    def act(policy, obs_stats, obs, action_mask, noise):
        chosen = network.policy(policy, inputs(obs_stats, obs, action_mask))
        action = chosen.mode() if noise is None else chosen.sample(noise)
        sent = sent_action(action_space, action, affine=affine, tanh=tanh)
        return action, sent, chosen.log_prob(action)

    return Actor(network, act, inputs)
