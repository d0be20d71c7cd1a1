"""The same programs on an accelerator: thousands of agents at once, and updates of large batches.

    python -m benchmarks.accelerator [--quick] [--precision default] [--only updates] [--json FILE]

Throughput is of whole training runs, one an agent, all in one program: environment steps of all
agents over the seconds of the second call (the first one compiles). PureJaxRL reports 10.4M steps/s
for 2,048 CartPole agents and 7.9M for 256 Breakout agents, on an A100; it flattens Breakout's
pictures and reads them with two layers of 64, as "breakout, flat" does here, where surefoot's own
settings have a small CNN. Updates are the rules' own,
on a batch of random observations: PPO with 4 epochs of 4 minibatches and its critic inside, TRPO
with its defaults and a critic of as many passes. `--precision` is JAX's for products of float32
matrices: `default` is TF32 on recent NVIDIA cards, `highest` is float32 throughout.

It needs jax, safetensors, gymnasium and gymnax, and no network.
"""

import argparse
import dataclasses
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium.spaces as spaces
import jax
import jax.numpy as jnp
import numpy as np

import surefoot as sf
from surefoot.config.presets import settle
from surefoot.envs.jax_native import JaxEnv
from surefoot.envs.registry import find_env
from surefoot.networks.actor_critic import build
from surefoot.rules.critic import fit_critic, start_critic
from surefoot.training.state import make_rule
from surefoot.types import Batch, EnvSpec, Inputs

AGENTS = (
    # name, environment, agents, environments an agent, steps of each environment, iterations
    ("cartpole", "gymnax:CartPole-v1", 2048, 4, 128, 20),
    ("breakout", "gymnax:Breakout-MinAtar", 256, 64, 128, 10),
    ("breakout, flat", "gymnax:Breakout-MinAtar", 256, 64, 128, 10),
)
SIZES = (2_048, 65_536, 1_048_576)
OBSERVATIONS = {
    "mlp": spaces.Box(-np.inf, np.inf, (17,), np.float32),
    "cnn": spaces.Box(0, 1, (10, 10, 4), np.float32),
}
REPEATS = 5


def seconds_of(call: Callable[[], Any]) -> float:
    """Median seconds of a call that has been made once before."""
    times = []
    jax.block_until_ready(call())
    for _ in range(REPEATS):
        before = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - before)
    return statistics.median(times)


def flat(env: JaxEnv) -> JaxEnv:
    """An environment whose pictures are seen as vectors."""
    pixels = math.prod(env.spec.observation_space.shape)
    space = spaces.Box(0.0, 1.0, (pixels,), np.float32)

    def reset(key):
        state, obs = env.reset(key)
        return state, obs.reshape(-1)

    def step(drawn, state, action):
        step = env.step(drawn, state, action)
        return step._replace(obs=step.obs.reshape(-1), final_obs=step.final_obs.reshape(-1))

    spec = dataclasses.replace(env.spec, observation_space=space)
    return env._replace(spec=spec, reset=reset, step=step)


def throughput(env: JaxEnv, agents: int, num_envs: int, num_steps: int, iterations: int) -> float:
    """Environment steps a second of many agents' whole training, initial weights included."""
    steps = num_envs * num_steps * iterations
    train = sf.Train(num_envs=num_envs, num_steps=num_steps, steps=steps)
    rule = sf.PPO(num_epochs=4, num_minibatches=4)
    run = sf.make_train(env, rule, train=train, critic=sf.Critic(joint=True))
    program = jax.jit(jax.vmap(lambda seed: run(seed)[1]["episode/return_mean"][-1]))
    seeds = jnp.arange(agents, dtype=jnp.uint32)
    print(f"  their mean return at the end {jnp.nanmean(program(seeds)):.1f}", flush=True)
    return agents * steps / seconds_of(lambda: program(seeds))


def update_seconds(rule: Any, critic: sf.Critic, network: str, rows: int) -> float:
    """Seconds of one update of policy and critic on `rows` rows."""
    space, actions = OBSERVATIONS[network], spaces.Discrete(6)
    spec = EnvSpec(network, space, actions, 1000, masked=False, jax_native=True)
    settings = settle(network, rule, sf.Train(), sf.Network(images="all"), critic)
    net = build(spec, settings.network)
    update_rule, params = make_rule(settings, net), net.init(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), 4)
    inputs = Inputs(jax.random.normal(keys[0], (rows, *space.shape)), None)
    chosen = jax.random.randint(keys[1], (rows,), 0, int(actions.n))
    noise = jax.random.normal(keys[2], (rows,))
    batch = Batch(
        inputs=inputs,
        actions=chosen,
        old_log_probs=net.policy(params["policy"], inputs).log_prob(chosen),
        advantages=noise,
        values=jnp.zeros(rows),
        value_targets=noise,
        weights=jnp.ones(rows),
        visits=jnp.full(rows, 1.0 / rows),
        return_scale=jnp.ones(()),
    )

    def update(params, batch, key):
        if settings.critic.joint:
            return update_rule.update(update_rule.init(params), params, batch, key)[0]
        policy = update_rule.update(
            update_rule.init(params["policy"]), params["policy"], batch, key
        )[0]
        fitted = fit_critic(
            settings.critic,
            lambda own, inputs: net.value({"critic": own}, inputs),
            *(1, start_critic(settings.critic, params["critic"]), params["critic"], batch, key),
        )[0]
        return policy, fitted

    program = jax.jit(update)
    return seconds_of(lambda: program(params, batch, keys[3]))


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accelerator", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a hundredth of it, to see it run")
    parser.add_argument("--precision", default="default", choices=("default", "high", "highest"))
    parser.add_argument("--only", choices=("agents", "updates"), help="one of the two parts")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    jax.config.update("jax_default_matmul_precision", given.precision)
    device = jax.devices()[0]
    found: dict[str, Any] = {
        "device": f"{device.platform}: {device.device_kind}",
        "jax": jax.__version__,
        "precision": given.precision,
        "steps_per_second": {},
        "update_ms": {},
    }
    print(f"{found['device']}, products of float32 matrices at precision {given.precision}")

    def keep() -> None:
        if given.json:
            given.json.write_text(json.dumps(found, indent=1) + "\n")

    for name, env_id, agents, num_envs, num_steps, iterations in AGENTS:
        if given.only == "updates":
            break
        env = find_env(env_id, {}).jax_env
        if name.endswith("flat"):
            env = flat(env)
        if given.quick:
            agents, iterations = max(2, agents // 128), 2
        rate = throughput(env, agents, num_envs, num_steps, iterations)
        found["steps_per_second"][name] = round(rate)
        print(f"{name}: {agents} agents, {rate:,.0f} steps/s", flush=True)
        keep()
    passes = {"num_epochs": 4, "num_minibatches": 4}
    rules = {
        "ppo": (sf.PPO(**passes), sf.Critic(joint=True)),
        "trpo": (sf.TRPO(), sf.Critic(**passes)),
    }
    for network in OBSERVATIONS if given.only != "agents" else ():
        for rows in SIZES[: 1 if given.quick else None]:
            ms = {
                name: 1e3 * update_seconds(rule, critic, network, rows)
                for name, (rule, critic) in rules.items()
            }
            found["update_ms"][f"{network} {rows}"] = {k: round(v, 2) for k, v in ms.items()}
            print(
                f"{network}, {rows} rows: ppo {ms['ppo']:.1f} ms, trpo {ms['trpo']:.1f} ms, "
                f"ratio {ms['trpo'] / ms['ppo']:.2f}",
                flush=True,
            )
            keep()


if __name__ == "__main__":
    main()
