"""The policy's and the critic's functions, from spaces and settings; the one user of Equinox.

A network is a pair of pure functions: `init(key, obs) -> params` and `apply(params, obs)`, whose
output's last axis is the head's. Observations carry any leading axes.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import gymnasium.spaces as spaces
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from surefoot.config.settings import Network, OwnNetwork
from surefoot.errors import ConfigError
from surefoot.networks.heads import make_head
from surefoot.networks.spaces import (
    check_observations,
    example_obs,
    flatten_obs,
    is_image,
    leaf_spaces,
    shape_of,
)
from surefoot.types import EnvSpec, Inputs, Params

LOG_STD_BOUNDS = (-5.0, 2.0)

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


class MLP(eqx.Module):
    """Linear layers with a nonlinearity between them, and after the last where asked."""

    layers: list[eqx.nn.Linear]
    activation: str = eqx.field(static=True)
    activate_last: bool = eqx.field(static=True)

    def __call__(self, x: Float[Array, "*batch features"]) -> Float[Array, "*batch out"]:
        """Apply the layers to the last axis."""
        for position, layer in enumerate(self.layers):
            x = x @ jnp.transpose(layer.weight) + jnp.asarray(layer.bias)
            if self.activate_last or position < len(self.layers) - 1:
                x = _ACTIVATIONS[self.activation](x)
        return x


class Torso(eqx.Module):
    """Features of an observation: images through a small CNN, the rest as a vector, then an MLP.

    Source of the CNN's shape: Young & Tian 2019, arXiv:1903.03176 (MinAtar): 16 filters of 3 x 3.
    """

    convolutions: list[eqx.nn.Conv2d]
    mlp: MLP
    space: spaces.Space = eqx.field(static=True)

    def __call__(self, obs: PyTree) -> Float[Array, "*batch features"]:
        """Features of observations with any leading axes."""
        vector, images = flatten_obs(self.space, obs)
        parts = [vector]
        for convolution, image in zip(self.convolutions, images, strict=True):
            leading = image.shape[:-3]
            flat = jnp.moveaxis(image, -1, -3).reshape(-1, image.shape[-1], *image.shape[-3:-1])
            seen = _ACTIVATIONS[self.mlp.activation](jax.vmap(convolution)(flat))
            parts.append(seen.reshape(*leading, -1))
        return self.mlp(jnp.concatenate(parts, axis=-1))


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


def _linear(
    key: Key[Array, ""], size_in: int, size_out: int, *, gain: float, orthogonal: bool
) -> eqx.nn.Linear:
    layer = eqx.nn.Linear(size_in, size_out, key=key)
    weight = layer.weight * gain
    if orthogonal:
        weight = _orthogonal(key, (size_out, size_in), gain=gain)
    return eqx.tree_at(
        lambda linear: (linear.weight, linear.bias), layer, (weight, jnp.zeros(size_out))
    )


def _mlp(key: Key[Array, ""], sizes: list[int], config: Network, *, head_gain: float | None) -> MLP:
    """An MLP; with a `head_gain` its last layer is linear and starts at that gain."""
    keys = jax.random.split(key, len(sizes))
    gains = [math.sqrt(2.0) if config.ortho_init else 1.0] * (len(sizes) - 1)
    if head_gain is not None:
        gains[-1] = head_gain
    layers = [
        _linear(k, size_in, size_out, gain=gain, orthogonal=config.ortho_init)
        for k, size_in, size_out, gain in zip(keys, sizes, sizes[1:], gains, strict=False)
    ]
    return MLP(layers, config.activation, head_gain is None)


def _torso(key: Key[Array, ""], space: spaces.Space, widths: list[int], config: Network) -> Torso:
    conv_key, mlp_key = jax.random.split(key)
    images = [shape_of(s) for s in leaf_spaces(space) if is_image(s)]
    keys = jax.random.split(conv_key, len(images) + 1)
    convolutions = [
        eqx.nn.Conv2d(shape[-1], 16, 3, key=k) for shape, k in zip(images, keys, strict=False)
    ]
    vector, _ = jax.eval_shape(lambda obs: flatten_obs(space, obs), example_obs(space))
    features = vector.shape[-1] + sum(16 * (shape[0] - 2) * (shape[1] - 2) for shape in images)
    return Torso(convolutions, _mlp(mlp_key, [features, *widths], config, head_gain=None), space)


def _pure(make: Callable[[Key[Array, ""]], Any]) -> OwnNetwork:
    """The `(init, apply)` pair of an Equinox module: its arrays are the parameters."""
    shapes = eqx.filter_eval_shape(make, jax.random.key(0))
    static = eqx.filter(shapes, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct), inverse=True)
    return OwnNetwork(
        lambda key, obs: eqx.partition(make(key), eqx.is_array)[0],
        lambda params, x: eqx.combine(params, static)(x),
    )


def _network(
    space: spaces.Space, widths: list[int], outputs: int, config: Network, *, head_gain: float
) -> OwnNetwork:
    """A torso and a linear head on it."""
    torso = _pure(lambda key: _torso(key, space, widths, config))
    head = _pure(lambda key: _mlp(key, [widths[-1], outputs], config, head_gain=head_gain))

    def init(key, obs):
        torso_key, head_key = jax.random.split(key)
        return {"torso": torso.init(torso_key, obs), "head": head.init(head_key, obs)}

    return OwnNetwork(
        init, lambda params, obs: head.apply(params["head"], torso.apply(params["torso"], obs))
    )


def _checked(own: OwnNetwork, outputs: int, role: str) -> OwnNetwork:
    """A user's network whose outputs are refused where they are of another shape."""

    def apply(params, obs):
        out = own.apply(params, obs)
        if outputs == 1 and out.shape and out.shape[-1] != 1:
            out = out[..., None]
        if not out.shape or out.shape[-1] != outputs:
            shapes = jax.tree.map(lambda leaf: tuple(leaf.shape), params)
            raise ConfigError(
                f"own {role} network: the last axis of its output must be {outputs}, got shape "
                f"{tuple(out.shape)}; its parameters are {shapes}"
            )
        return out

    return OwnNetwork(own.init, apply)


def _check_squash(spec: EnvSpec, config: Network) -> None:
    """Refuse a distribution of Box actions where there are none."""
    boxes = [space for space in leaf_spaces(spec.action_space) if isinstance(space, spaces.Box)]
    if config.distribution == "tanh-gaussian" and not boxes:
        raise ConfigError(
            f"{spec.env_id}: --distribution tanh-gaussian is for Box actions, and these are "
            f"{spec.action_space}; leave it out"
        )


def build(
    spec: EnvSpec,
    config: Network,
    own_policy: OwnNetwork | None = None,
    own_critic: OwnNetwork | None = None,
) -> ActorCritic:
    """The policy and the critic of an environment, own networks in their places.

    Raises:
        ConfigError: for a space that no network or head here fits, or a distribution of Box
            actions where there are none.
    """
    _check_squash(spec, config)
    if own_policy is None or own_critic is None:
        check_observations(spec)
    shared = config.shared_torso
    if shared and (own_policy or own_critic):
        raise ConfigError("network: shared_torso cannot be combined with own networks")
    space = spec.observation_space
    head = make_head(spec.action_space, tanh=config.distribution == "tanh-gaussian")
    widths = list(config.hidden)
    critic_widths = widths if shared else list(config.critic_hidden or widths)
    policy_net = (
        _checked(own_policy, head.size, "policy")
        if own_policy
        else _network(space, widths, head.size, config, head_gain=config.head_scale)
    )
    critic_net = (
        _checked(own_critic, 1, "critic")
        if own_critic
        else _network(space, critic_widths, 1, config, head_gain=1.0)
    )

    def init(key):
        policy_key, critic_key = jax.random.split(key)
        example = jax.tree.map(lambda leaf: leaf[None], example_obs(space))
        policy = {"net": policy_net.init(policy_key, example)}
        if head.std_size:
            policy["log_std"] = config.log_std_init * jnp.ones(head.std_size)
        critic = critic_net.init(critic_key, example)
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
