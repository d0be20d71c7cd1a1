"""Shapes are checked on every call, and one toy problem serves every test of an update."""

from jaxtyping import install_import_hook

LADDER = "distributions returns surrogate trust_region natural_gradient clip"
CHECKED = [f"surefoot.{module}" for module in f"{LADDER} update critic normalize".split()]
install_import_hook(CHECKED, "beartype.beartype")

from typing import Any, NamedTuple  # noqa: E402

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

from surefoot.distributions import Categorical, DiagGaussian  # noqa: E402
from surefoot.types import Batch, Inputs  # noqa: E402

settings.register_profile(
    "surefoot",
    deadline=None,
    max_examples=25,
    derandomize=True,
    database=None,
    # The only fixture met by a property test is `x64`, which has no state to leak.
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile("surefoot")

STRICT = {f"test_{module}" for module in f"{LADDER} update critic".split()}


class Toy(NamedTuple):
    """A policy with one hidden layer, and a batch of rows that it sampled."""

    policy_fn: Any
    params: Any
    batch: Batch


def _features(params, inputs):
    hidden = jnp.tanh(inputs.obs @ params["hidden"])
    return hidden @ params["out"] + jnp.broadcast_to(params["bias"], (len(hidden), 3))


def discrete_policy(params, inputs):
    return Categorical(_features(params, inputs))


def gaussian_policy(params, inputs):
    mean = _features(params, inputs)
    return DiagGaussian(mean, jnp.broadcast_to(params["log_std"], mean.shape))


POLICIES = {"discrete": discrete_policy, "gaussian": gaussian_policy}


def make_toy(kind="discrete", seed=0, num_rows=64):
    keys = jax.random.split(jax.random.key(seed), 8)
    params = {
        "hidden": jax.random.normal(keys[0], (3, 4)),
        "out": jax.random.normal(keys[1], (4, 3)),
        "bias": 0.1 * jax.random.normal(keys[2], (3,)),
    }
    if kind == "gaussian":
        params["log_std"] = jnp.array([-0.5, 0.0, 0.5])
    policy_fn = POLICIES[kind]
    inputs = Inputs(jax.random.normal(keys[3], (num_rows, 3)), None)
    old = policy_fn(params, inputs)
    draw = jax.random.gumbel if kind == "discrete" else jax.random.normal
    actions = old.sample(draw(keys[4], (num_rows, 3)))
    batch = Batch(
        inputs=inputs,
        actions=actions,
        old_log_probs=old.log_prob(actions),
        advantages=jax.random.normal(keys[5], (num_rows,)),
        values=jax.random.normal(keys[6], (num_rows,)),
        value_targets=jax.random.normal(keys[7], (num_rows,)),
        weights=jnp.ones(num_rows),
        return_scale=jnp.ones(()),
    )
    return Toy(policy_fn, params, batch)


@pytest.fixture(autouse=True)
def rank_promotion(request):
    """In the mathematics no array is broadcast to a higher rank by accident."""
    name = request.module.__name__.rpartition(".")[2]
    with jax.numpy_rank_promotion("raise" if name in STRICT else "allow"):
        yield


@pytest.fixture
def toy():
    """`toy(kind, seed, num_rows)`: a small problem, discrete or gaussian."""
    return make_toy


@pytest.fixture
def x64():
    """The test runs in float64, where an oracle's digits are worth comparing."""
    with jax.enable_x64(True):
        yield
