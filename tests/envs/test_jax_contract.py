"""JAX-native environments that break their contract are refused before the first update."""

import gymnasium.spaces as spaces
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import surefoot as sf
from surefoot.envs.jax_contract import check_jax_env, check_numbers
from surefoot.envs.jax_native import JaxEnv, JaxStep
from surefoot.envs.registry import find_env
from surefoot.errors import CheckpointError, EnvContractError, EnvCrashError
from surefoot.types import EnvSpec
from tests.support.cases import case
from tests.support.scripted import scripted_jax

pytestmark = pytest.mark.usefixtures("empty_directory")

TRAIN = sf.Train(num_envs=2, num_steps=8, steps=64, dispatch=2)
BRIEF = {"critic": sf.Critic(num_epochs=1, num_minibatches=1), "network": sf.Network(hidden=(4,))}
SOUND = scripted_jax()
NAN = jnp.float32(jnp.nan)


def changed(**parts):
    """The scripted environment whose step returns other parts: functions of the true ones."""

    def step(key, state, action):
        taken = SOUND.step(key, state, action)
        new = {name: change(getattr(taken, name)) for name, change in parts.items()}
        return taken._replace(**new)

    return SOUND._replace(step=step)


def shown(space, obs):
    """An environment that shows one thing at every step, in a space."""
    spec = EnvSpec("Shown", space, spaces.Discrete(2), 5, False, True)

    def step(key, time, action):
        out = time == 4
        return JaxStep(jnp.where(out, 0, time + 1), obs, jnp.ones(()), jnp.array(False), out, obs)

    return JaxEnv(spec, lambda key: (jnp.int32(0), obs), step)


def masked(mask):
    return SOUND._replace(
        spec=EnvSpec("Masked", SOUND.spec.observation_space, spaces.Discrete(3), 5, True, True),
        action_mask=mask,
    )


TWO = spaces.Box(-9, 9, (2,), np.float32)
BOTH = spaces.Dict({"a": TWO, "b": spaces.Discrete(3)})
BROKEN = {
    "reward of shape (1,)": (
        changed(reward=lambda x: x[None]),
        r"step: reward has shape \(1,\), expected \(\)",
    ),
    "complex reward": (
        changed(reward=lambda x: x + 1j),
        "step: reward has dtype complex64, expected floating",
    ),
    "end of shape (1,)": (
        changed(terminated=lambda x: x[None]),
        r"step: terminated has shape \(1,\), expected \(\)",
    ),
    "end as float32": (
        changed(terminated=lambda x: x.astype(jnp.float32)),
        "step: terminated has dtype float32, expected bool",
    ),
    "cut as int32": (
        changed(truncated=lambda x: x.astype(jnp.int32)),
        "step: truncated has dtype int32, expected bool",
    ),
    "longer observation": (
        changed(obs=lambda x: jnp.zeros(3)),
        r"step: observation has shape \(3,\), expected \(2,\)",
    ),
    "last observation of another shape": (
        changed(final_obs=lambda x: x[None]),
        r"step: final_obs has shape \(1, 2\), expected \(2,\)",
    ),
    "observation of another dtype than a reset's": (
        changed(obs=lambda x: x.astype(jnp.int32)),
        r"step, unlike reset: observation is int32 of shape \(2,\), expected float32",
    ),
    "state of another dtype": (
        changed(state=lambda x: (x[0].astype(jnp.float32), x[1])),
        r"step, unlike reset: state\[0\] is float32 of shape \(\), expected int32",
    ),
    "state of another structure": (
        changed(state=lambda x: x[0]),
        "step, unlike reset: state is PyTreeDef",
    ),
    "no JaxStep": (
        SOUND._replace(step=lambda key, state, action: tuple(SOUND.step(key, state, action))),
        "step returned a tuple, expected a JaxStep",
    ),
    "no pair": (
        SOUND._replace(reset=lambda key: SOUND.reset(key)[1]),
        r"reset returned a .*, expected \(state, observation\)",
    ),
    "numbers where choices are": (
        shown(spaces.Discrete(3), jnp.float32(1)),
        "reset: observation has dtype float32, expected int64",
    ),
    "numbers where bytes are": (
        shown(spaces.Box(0, 255, (2,), np.uint8), jnp.zeros(2)),
        "reset: observation has dtype float32, expected uint8",
    ),
    "an array where a dictionary is": (shown(BOTH, jnp.zeros(2)), r"expected \['a', 'b'\]"),
    "a key is missing": (shown(BOTH, {"a": jnp.zeros(2)}), r"is \['a'\], expected \['a', 'b'\]"),
    "a part of another shape": (
        shown(BOTH, {"a": jnp.zeros(()), "b": jnp.int32(0)}),
        r"reset: observation\['a'\] has shape \(\), expected \(2,\)",
    ),
    "a tuple too short": (
        shown(spaces.Tuple([TWO, TWO]), (jnp.zeros(2),)),
        "reset: observation is a tuple, expected a tuple of 2",
    ),
    "a short mask": (
        masked(lambda state: jnp.ones(2, bool)),
        r"reset: action mask is bool of shape \(2,\), expected bool of shape \(3,\)",
    ),
    "a mask of logits": (
        masked(lambda state: jnp.zeros(3)),
        "reset: action mask is float32 of shape",
    ),
    "no mask": (masked(None), "reset: action mask is PyTreeDef"),
    "nan in a first observation": (
        shown(TWO, jnp.array([0, NAN])),
        r"environment 0: observation\[1\] is nan",
    ),
    "no such choice": (
        shown(spaces.Discrete(3), jnp.int32(3)),
        r"environment 0: observation is 3, outside Discrete\(3\)",
    ),
    "no such choice in a part": (
        shown(BOTH, {"a": jnp.zeros(2), "b": jnp.int32(-1)}),
        r"observation\['b'\] is -1, outside",
    ),
    "nan in a later observation": (
        changed(obs=lambda x: jnp.where(x[1] == 2, NAN, x)),
        r"environment [01]: observation\[0\] is nan; at step [1-5]$",
    ),
    "an infinite reward": (
        changed(reward=lambda x: x / 0),
        "environment 0: reward is inf; at step 1$",
    ),
}


@case(109)
@pytest.mark.parametrize("how", ["train", pytest.param("train_many", marks=pytest.mark.thorough)])
@pytest.mark.parametrize("broken", BROKEN)
def test_what_a_jax_native_environment_breaks_is_said_before_the_first_update(broken, how):
    env, said = BROKEN[broken]
    more = {"out": "run"} if how == "train" else {"seeds": [0, 1]}
    with pytest.raises(EnvContractError, match=f"^{env.spec.env_id}: .*{said}") as caught:
        getattr(sf, how)(env, sf.VPG(), train=TRAIN, **more, **BRIEF)
    assert caught.value.code == 3
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError):
        sf.load("run")  # nothing is left, so the command can be given again


@case(109)
@pytest.mark.parametrize("part", ["reset", "step"])
def test_what_a_jax_native_environment_raises_is_told_with_its_place(part):
    def raises(*arguments):
        raise RuntimeError("no\nwind")

    with pytest.raises(EnvCrashError, match=rf"its {part} raised RuntimeError: no wind \(.*line"):
        sf.train(SOUND._replace(**{part: raises}), sf.VPG(), train=TRAIN, **BRIEF)


@case(109)
@pytest.mark.parametrize(
    "env",
    [
        SOUND,
        changed(reward=lambda x: 1),
        changed(reward=lambda x: x > 1),
        changed(terminated=lambda x: False, truncated=lambda x: np.bool_(True)),
        shown(TWO, jnp.zeros(2, jnp.int32)),
        shown(TWO, jnp.zeros(2, bool)),
        shown(TWO, jnp.zeros(2, jnp.bfloat16)),
        shown(spaces.Discrete(3), jnp.uint8(2)),
        shown(spaces.MultiBinary(2), jnp.zeros(2, bool)),
        shown(BOTH, {"b": jnp.int32(0), "a": jnp.zeros(2)}),
        masked(lambda state: jnp.ones(3, bool)),
    ],
)
def test_what_fits_passes(env, recwarn):
    check_jax_env(env)
    obs = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 3))[1]
    check_numbers(env.spec, obs, strict=True)


@case(109)
def test_an_observation_outside_its_box_is_one_warning_or_an_error():
    env = shown(TWO, jnp.array([0.0, 9.5]))
    with pytest.warns(UserWarning, match=r"observation\[1\] lies outside its space, -9 to 9"):
        sf.train(env, sf.VPG(), train=TRAIN, **BRIEF)
    strict = sf.Train(num_envs=2, num_steps=8, steps=64, strict_env=True)
    with pytest.raises(EnvContractError, match=r"observation\[1\] is 9.5, outside -9 to 9"):
        sf.train(env, sf.VPG(), train=strict, **BRIEF)


@case(109)
def test_every_environment_of_gymnax_passes():
    gymnax = pytest.importorskip("gymnax")
    for name in gymnax.registered_envs:
        if "MNIST" not in name:  # which is fetched from the network
            check_jax_env(find_env(f"gymnax:{name}", {}).jax_env)
