"""The loop: collect, learn, log, evaluate, store; until the steps are done or someone stops it."""

import importlib.metadata
import math
import platform
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from surefoot.config import TRPO, Critic, Network, Rule, Settings, Train
from surefoot.envs import find_env
from surefoot.envs.host import HostEnv
from surefoot.envs.jax_native import JaxEnv
from surefoot.errors import CheckpointError, ConfigError, NotFiniteError
from surefoot.learner import Learner, LoopState
from surefoot.presets import settle
from surefoot.rollout_host import HostCollector
from surefoot.run import Checkpoint, RunDirectory, finite_row, name_arrays
from surefoot.trained import Evaluator, OwnNetworks, Run, begin, open_run

EPISODES_PER_CHECKPOINT = 10
"""Fewest episode limits between two scheduled checkpoints of a run that resets at them."""
DEFAULT_EPISODE_LIMIT = 1000


class Plan(NamedTuple):
    """When what happens, in iterations; `cut_share` bounds the episodes that resets cut short."""

    iterations: int
    chunk: int
    checkpoint_every: int
    evaluate_every: int
    cut_share: float


class Listener(Protocol):
    """A live display, or nothing: told what happens while a run goes on."""

    def started(self, run: Run, plan: Plan) -> None:
        """Settings are resolved and environments open."""
        ...

    def compiling(self, what: str) -> None:
        """A program is about to be built."""
        ...

    def row(self, row: Mapping[str, Any]) -> None:
        """An iteration is done."""
        ...

    def finished(self, run: Run) -> None:
        """The loop has ended, well or not."""
        ...


class Silence:
    """A listener that does nothing."""

    def started(self, run: Run, plan: Plan) -> None:
        """Nothing."""

    def compiling(self, what: str) -> None:
        """Nothing."""

    def row(self, row: Mapping[str, Any]) -> None:
        """Nothing."""

    def finished(self, run: Run) -> None:
        """Nothing."""


class StoppedBySignal(Exception):  # noqa: N818
    """SIGINT or SIGTERM ended the run after an iteration; its checkpoint is written."""

    def __init__(self, number: int, run: Run):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number, self.run = number, run


def make_plan(settings: Settings, run: Run) -> Plan:
    """Iterations, and how often to store and to evaluate, fixed before the start.

    A host run's scheduled checkpoints lie at least ten episode limits apart, because resetting
    at them cuts the episodes that are open.
    """
    train, spec = settings.train, run.learner.spec
    iterations, batch = settings.num_iterations, settings.batch_size
    chunk = min(train.dispatch, iterations) if spec.jax_native else 1
    limit = spec.max_episode_steps or DEFAULT_EPISODE_LIMIT
    every = math.ceil((train.checkpoint_every or train.steps / 10) / batch)
    if not spec.jax_native and train.reset_at_checkpoints:
        every = max(every, math.ceil(EPISODES_PER_CHECKPOINT * limit / train.num_steps))
    every = math.ceil(every / chunk) * chunk
    resets = not spec.jax_native and train.reset_at_checkpoints and every < iterations
    evaluate = math.ceil(math.ceil(train.eval_every / batch) / chunk) * chunk
    share = min(1.0, limit / (every * train.num_steps)) if resets else 0.0
    return Plan(iterations, chunk, every, evaluate, share)


class Compiled:
    """A function compiled ahead of time for each shape it meets, with the seconds that took."""

    def __init__(self, function: Callable[..., Any], what: str, listener: Listener):
        self._function, self._what, self._listener = jax.jit(function), what, listener
        self._programs: dict[Any, Any] = {}
        self.seconds = 0.0

    def __call__(self, *arguments: Any) -> Any:
        """The function's value; the first call with new shapes builds its program."""
        leaves = jax.tree.leaves(arguments)
        shapes = tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
        if shapes not in self._programs:
            self._listener.compiling(self._what)
            started = time.monotonic()
            self._programs[shapes] = self._function.lower(*arguments).compile()
            self.seconds += time.monotonic() - started
        return self._programs[shapes](*arguments)


class Stepper(Protocol):
    """Advances a run by one chunk of iterations."""

    def reset(self, iteration: int) -> None:
        """Start new episodes, where the environments live on the host."""
        ...

    def advance(self, state: LoopState) -> tuple[LoopState, list[dict[str, Any]]]:
        """The state after the chunk, and one row of metrics an iteration."""
        ...

    def close(self) -> None:
        """Let go of the environments."""
        ...


class HostStepper:
    """One iteration a chunk: a rollout stepped by Python, then the compiled learning."""

    def __init__(self, env: HostEnv, learner: Learner, settings: Settings, listener: Listener):
        self._env, self._settings = env, settings
        self._collector = HostCollector(env, learner.actor, settings)
        self._learn = Compiled(learner.learn, "the update", listener)
        self._listener, self._warm = listener, False

    def reset(self, iteration: int) -> None:
        """New episodes everywhere."""
        self._collector.reset(iteration)

    def advance(self, state: LoopState) -> tuple[LoopState, list[dict[str, Any]]]:
        """One rollout and one update."""
        compiled, warming = self._learn.seconds, self._warm_up(state)
        started = time.monotonic()
        host = self._collector.collect(
            state.params["policy"], state.obs_stats, int(state.iteration)
        )
        before = time.monotonic()
        state, metrics = self._learn(state, host.rollout, host.episodes)
        metrics = jax.device_get(metrics)
        compiling = self._learn.seconds - compiled
        now = time.monotonic()
        row = metrics | _info_means(host.infos, self._settings.train.info_keys)
        row |= {
            "time/env": host.env_seconds,
            "time/policy": host.policy_seconds,
            "time/update": now - before - compiling,
            "time/compile": compiling + warming,
            "time/iteration": now - started - compiling,
        }
        return state, [row]

    def _warm_up(self, state: LoopState) -> float:
        """Compile what acting needs before the first rollout; the seconds that took."""
        if self._warm:
            return 0.0
        started, self._warm = time.monotonic(), True
        self._listener.compiling("the policy")
        self._collector.warm_up(state.params["policy"], state.obs_stats)
        return time.monotonic() - started

    def close(self) -> None:
        """Close the environments."""
        self._env.close()


def _info_means(infos: list[dict[str, float]], keys: tuple[str, ...]) -> dict[str, float]:
    """Means of `is_success` and of the chosen keys over the episodes that ended."""
    means = {}
    for key in ("is_success", *keys):
        values = [info[key] for info in infos if key in info]
        if values:
            means[f"episode/{key}"] = sum(values) / len(values)
    return means


class JaxStepper:
    """Several iterations a chunk, collected and learned from in one program."""

    def __init__(self, learner: Learner, settings: Settings, plan: Plan, listener: Listener):
        self._plan = plan
        self._run = Compiled(chunk_of(learner, plan.chunk), "the whole iteration", listener)

    def reset(self, iteration: int) -> None:
        """Nothing: the environments' states are part of the loop's."""

    def advance(self, state: LoopState) -> tuple[LoopState, list[dict[str, Any]]]:
        """As many iterations as the chunk holds and the plan has left."""
        compiled, started = self._run.seconds, time.monotonic()
        count = min(self._plan.chunk, self._plan.iterations - int(state.iteration))
        state, metrics = self._run(state, jnp.int32(count))
        metrics = jax.device_get(metrics)
        compiling = self._run.seconds - compiled
        seconds = (time.monotonic() - started - compiling) / count
        rows = [
            {name: values[i] for name, values in metrics.items()}
            | {"time/iteration": seconds, "time/compile": compiling if i == 0 else 0.0}
            for i in range(count)
        ]
        return state, rows

    def close(self) -> None:
        """Nothing to close."""


def chunk_of(learner: Learner, chunk: int) -> Callable[..., tuple[LoopState, dict[str, Any]]]:
    """`(state, count) -> (state, metrics)`: the first `count` of `chunk` iterations.

    One program serves a full chunk and the last, shorter one, so that both give the same bits.
    """
    iterate = learner.iterate
    assert iterate is not None

    def run(state, count):
        shapes = jax.eval_shape(iterate, state)[1]
        empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

        def step(state, index):
            return jax.lax.cond(index < count, iterate, lambda state: (state, empty), state)

        return jax.lax.scan(step, state, jnp.arange(chunk))

    return run


class _Signals:
    """Notes SIGINT and SIGTERM instead of dying; a second one stops at once."""

    def __init__(self) -> None:
        self.caught: int | None = None
        self._old: dict[int, Any] = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.caught is not None:
            raise KeyboardInterrupt
        self.caught = number

    def __enter__(self) -> "_Signals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)


def versions() -> dict[str, str]:
    """Versions that a bit-for-bit resume depends on."""
    names = ("surefoot", "jax", "jaxlib", "numpy", "gymnasium")
    found = {name: importlib.metadata.version(name) for name in names}
    return {"python": platform.python_version(), **found}


def _save(run: Run, *, exact: bool, folder: str = "checkpoints") -> None:
    if run.directory is None:
        return
    checkpoint = Checkpoint(name_arrays(run.state), run.iteration, run.env_steps, exact, versions())
    keep = 1 if folder == "best" else run.settings.train.keep_checkpoints
    run.directory.save(checkpoint, keep=keep, folder=folder)


def _check_finite(run: Run, row: Mapping[str, Any]) -> None:
    limit = run.settings.train.max_refusals
    if row["update/refusals"] >= limit:
        kept = run.directory.checkpoints()[-1:] if run.directory else []
        hint = f"; the last good checkpoint is {kept[0]}" if kept else ""
        raise NotFiniteError(
            f"{limit} updates in a row were not finite, the last at iteration "
            f"{row['iteration']}; the policy is as it was before the first of them{hint}; "
            "look at the rewards and observations, or lower the learning rate"
        )


def _loop(
    run: Run,
    stepper: Stepper,
    plan: Plan,
    listener: Listener,
    on_update: Callable[[dict[str, Any]], Any] | None,
) -> Run:
    """Iterate until the plan is done, `on_update` says stop, or a signal comes."""
    resets = not run.learner.spec.jax_native and run.settings.train.reset_at_checkpoints
    evaluator = None
    if plan.evaluate_every:
        evaluator = Evaluator(
            run.settings, run.source, run.learner, run.settings.train.eval_episodes
        )
    best = max((row.get("eval/return_mean", -math.inf) for row in run.rows), default=-math.inf)
    stop, stepped = False, run.iteration
    with _Signals() as signals:
        while not run.finished and not stop and signals.caught is None:
            run.state, metrics = stepper.advance(run.state)
            for offset, values in enumerate(metrics):
                run.env_steps += int(values["env_steps"])
                row = {"iteration": stepped + offset + 1} | finite_row(values)
                row["env_steps"] = run.env_steps
                row["time/steps_per_second"] = int(values["env_steps"]) / values["time/iteration"]
                run.rows.append(row)
            new, stepped = run.rows[-len(metrics) :], run.iteration
            if evaluator and (stepped % plan.evaluate_every == 0 or run.finished):
                result = evaluator(run.state, run.settings.train.seed + stepped, stochastic=False)
                names = ("return_mean", "return_std", "length_mean", "success_rate")
                new[-1] |= {f"eval/{name}": result[name] for name in names if name in result}
                if result["return_mean"] > best:
                    best = result["return_mean"]
                    _save(run, exact=False, folder="best")
            for row in new:
                if run.directory:
                    run.directory.append(row)
                listener.row(row)
                stop = bool(on_update and on_update(row)) or stop
                _check_finite(run, row)
            if stepped % plan.checkpoint_every == 0 or run.finished:
                if resets:
                    run.state = run.state._replace(
                        returns_so_far=jnp.zeros_like(run.state.returns_so_far)
                    )
                _save(run, exact=run.learner.spec.jax_native or resets)
                if resets and not run.finished:
                    stepper.reset(stepped)
            elif stop or signals.caught is not None:
                _save(run, exact=run.learner.spec.jax_native)
    if evaluator:
        evaluator.__exit__()
    if signals.caught is not None and not run.finished:
        raise StoppedBySignal(signals.caught, run)
    return run


def _drive(run: Run, env: JaxEnv | HostEnv, listener: Listener | None, on_update: Any) -> Run:
    """Run the loop over opened environments, and close them whatever happens."""
    listener = listener or Silence()
    plan = make_plan(run.settings, run)
    stepper: Stepper
    if isinstance(env, HostEnv):
        stepper = HostStepper(env, run.learner, run.settings, listener)
    else:
        stepper = JaxStepper(run.learner, run.settings, plan, listener)
    try:
        stepper.reset(run.iteration)
        listener.started(run, plan)
        return _loop(run, stepper, plan, listener, on_update)
    finally:
        listener.finished(run)
        stepper.close()


def train(
    env: Any,
    rule: Rule | None = None,
    *,
    steps: int | None = None,
    seed: int | None = None,
    out: str | Path | None = None,
    preset: str = "auto",
    train: Train | None = None,
    network: Network | OwnNetworks | None = None,
    critic: Critic | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    tables: Mapping[str, Any] | None = None,
    shared_only: bool = False,
    on_update: Callable[[dict[str, Any]], Any] | None = None,
    listener: Listener | None = None,
) -> Run:
    """Train a policy.

    Args:
        env: an id (`CartPole-v1`, `module:id`, `module:factory`, `gymnax:ID`), a gymnasium.Env, a
            function that makes one, a VectorEnv, or a JaxEnv.
        rule: VPG, NPG, TRPO, PPOKL or PPO, with the settings that matter to you; TRPO by default.
        steps: environment steps, rounded up to whole iterations.
        seed: of every random number of the run.
        out: a new directory for settings, metrics and checkpoints; None keeps nothing.
        preset: auto, none, plain, sb3, sb3-contrib or cleanrl.
        train: the run's settings.
        network: settings, or your own networks.
        critic: the critic's settings.
        env_kwargs: arguments for an environment named by its id.
        tables: a parsed configuration file.
        shared_only: of the preset, only what holds for every rule (for comparisons).
        on_update: called with each row of metrics; returning True stops the run.
        listener: a live display.

    Returns:
        The run, with its policy and its rows of metrics.

    Raises:
        ConfigError: before anything is built, for settings that are wrong or do not fit.
        EnvContractError, EnvCrashError: where the environment misbehaves.
        NotFiniteError: after `max_refusals` updates in a row that were not finite.
        StorageError: where `out` cannot be written.
        StoppedBySignal: after SIGINT or SIGTERM, with the checkpoint written.
    """
    rule = rule if rule is not None else TRPO()
    own = network if isinstance(network, OwnNetworks) else OwnNetworks()
    source = find_env(env, env_kwargs or {})
    given = train if train is not None else Train()
    changes = {"steps": steps, "seed": seed}
    given = Train(**{**vars(given), **{k: v for k, v in changes.items() if v is not None}})
    settings = settle(
        source.env_id,
        rule,
        given,
        network if isinstance(network, Network) else Network(),
        critic if critic is not None else Critic(),
        preset=preset,
        tables=tables,
        env_kwargs=env_kwargs,
        shared_only=shared_only,
    )
    run, opened = begin(settings, source, own)
    if out is not None:
        config = settings.to_dict() | {
            "env_from_python": not isinstance(env, str),
            "own_networks": own != OwnNetworks(),
            "observation_space": str(run.learner.spec.observation_space),
            "action_space": str(run.learner.spec.action_space),
            "versions": versions(),
        }
        try:
            run.directory = RunDirectory.create(Path(out), config)
        except BaseException:
            if isinstance(opened, HostEnv):
                opened.close()
            raise
    return _drive(run, opened, listener, on_update)


def resume(
    path: str | Path,
    *,
    env: Any = None,
    network: OwnNetworks | None = None,
    exact: bool = False,
    on_update: Callable[[dict[str, Any]], Any] | None = None,
    listener: Listener | None = None,
) -> Run:
    """Go on with a run from its newest good checkpoint.

    On the same versions it equals never having stopped, bit for bit, from any checkpoint of a
    JAX-native run and from a scheduled one of a host run; `exact` insists on such a one.

    Raises:
        CheckpointError: where there is no run, or no checkpoint to go on from.
    """
    run, opened = open_run(path, env=env, own=network, exact=exact)
    assert run.directory is not None
    if run.finished:
        if isinstance(opened, HostEnv):
            opened.close()
        return run
    run.rows = run.directory.trim(run.iteration)
    return _drive(run, opened, listener, on_update)


def train_or_resume(
    path: str | Path, settings: Settings, start: Callable[[], Run], **how: Any
) -> Run:
    """Go on with the run at `path` where it matches `settings`, else `start` one there.

    Raises:
        ConfigError: where the run there has other settings; they are listed.
        CheckpointError: where the run there has none to go on from.
    """
    directory = RunDirectory(Path(path))
    if not (directory.path / "config.json").exists():
        return start()
    old, new = directory.config, settings.to_dict()
    differences = [
        f"{section}.{name} is {old.get(section, {}).get(name)!r} there and {value!r} here"
        for section in ("rule", "train", "network", "critic")
        for name, value in new[section].items()
        if _plain(old.get(section, {}).get(name)) != _plain(value)
    ]
    if old.get("env") != settings.env:
        differences.insert(0, f"env is {old.get('env')} there and {settings.env} here")
    if differences:
        raise ConfigError(f"{path} holds another run: {'; '.join(differences[:5])}")
    if not directory.checkpoints():
        raise CheckpointError(f"{path} has a configuration and no checkpoint; remove it to restart")
    return resume(path, **how)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
