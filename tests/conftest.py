"""Shapes are checked on every call, and one toy problem serves every test of an update."""

import json
import os
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

# Programs are compiled once and kept, for subprocesses and later sessions too.
PROGRAMS = Path(__file__).parents[1] / ".pytest_cache" / "programs"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(PROGRAMS))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# Most run more briefly than they are compiled, so that is made short: by half, in subprocesses too.
# `XLA_FLAGS= JAX_DISABLE_MOST_OPTIMIZATIONS=false pytest` tests what users run.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
if version("jaxlib").startswith("0.10."):  # later ones do not know the flag
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")

from jaxtyping import install_import_hook  # noqa: E402

CHECKED = [f"surefoot.{room}" for room in ("formulas", "exact", "rules")]
install_import_hook(CHECKED, "beartype.beartype")

from functools import partial  # noqa: E402
from typing import Any, NamedTuple  # noqa: E402

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

from surefoot.cli.parser import main  # noqa: E402
from surefoot.formulas.clipped_gaussian import ClippedGaussian  # noqa: E402
from surefoot.formulas.distributions import Categorical, DiagGaussian  # noqa: E402
from surefoot.types import Batch, Inputs  # noqa: E402
from tests.support.shell import SMALL, Ended  # noqa: E402

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

# Two devices, as two cores of a CPU; a program uses one unless it is told otherwise.
jax.config.update("jax_num_cpu_devices", 2)

STRICT = ("formulas", "rules")


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


def clipped_policy(params, inputs):
    mean, log_std = gaussian_policy(params, inputs)
    return ClippedGaussian(mean, log_std, low=(-1.0,) * 3, high=(1.0, 0.2, np.inf))


POLICIES = {"discrete": discrete_policy, "gaussian": gaussian_policy, "clipped": clipped_policy}


@partial(jax.jit, static_argnums=0)
def act(policy_fn, params, inputs, noise):
    old = policy_fn(params, inputs)
    actions = old.sample(noise)
    return actions, old.log_prob(actions)


def make_toy(kind="discrete", seed=0, num_rows=64):
    rng = np.random.default_rng(seed)
    params = {
        "hidden": rng.normal(size=(3, 4)),
        "out": rng.normal(size=(4, 3)),
        "bias": 0.1 * rng.normal(size=3),
    }
    if kind != "discrete":
        params["log_std"] = np.array([-0.5, 0.0, 0.5])
    params = jax.tree.map(jnp.asarray, params)
    inputs = Inputs(jnp.asarray(rng.normal(size=(num_rows, 3))), None)
    draw = rng.gumbel if kind == "discrete" else rng.normal
    actions, log_probs = act(POLICIES[kind], params, inputs, draw(size=(num_rows, 3)))
    advantages, values, value_targets = jnp.asarray(rng.normal(size=(3, num_rows)))
    batch = Batch(
        inputs=inputs,
        actions=actions,
        old_log_probs=log_probs,
        advantages=advantages,
        values=values,
        value_targets=value_targets,
        weights=jnp.ones(num_rows),
        visits=jnp.full(num_rows, 1.0 / num_rows),
        groups=jnp.arange(num_rows, dtype=jnp.int32) % 8,
        return_scale=jnp.ones(()),
    )
    return Toy(POLICIES[kind], params, batch)


@pytest.fixture(autouse=True)
def rank_promotion(request):
    """In the mathematics no array is broadcast to a higher rank by accident."""
    file = Path(request.module.__file__)
    strict = file.parent.name in STRICT and file.stem != "test_running_stats"
    with jax.numpy_rank_promotion("raise" if strict else "allow"):
        yield


@pytest.fixture(autouse=True, scope="module")
def programs_let_go():
    """A module's programs do not stay in memory behind it: all together they take gigabytes."""
    yield
    jax.clear_caches()


@pytest.fixture
def toy():
    """`toy(kind, seed, num_rows)`: a small problem, discrete, gaussian or clipped."""
    return make_toy


@pytest.fixture
def x64():
    """The test runs in float64, where an oracle's digits are worth comparing."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def empty_directory(tmp_path, monkeypatch):
    """Where commands run; the modules beside the tests can be named."""
    monkeypatch.chdir(tmp_path)
    warnings.simplefilter("ignore", UserWarning)  # what is told of environments that break
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parent / "support"), *sys.path])
    return tmp_path


@pytest.fixture
def command(capsys, empty_directory):
    """`command(*words) -> Ended`, in this process."""

    def run(*words: object) -> Ended:
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        records = [json.loads(line) for line in out.splitlines() if "--json" in words]
        return Ended(code, (err.strip().splitlines() or [""])[-1], records)

    return run


@pytest.fixture
def train(command):
    """`train(env, *flags) -> Ended`: eight small iterations of vpg into the directory `run`."""

    def run(env: str, *flags: object, steps: int = 256) -> Ended:
        flags = tuple(flags) if "--out" in flags else ("--out", "run", *flags)
        return command("train", env, "vpg", "--steps", steps, *SMALL, *flags, "--json")

    return run
