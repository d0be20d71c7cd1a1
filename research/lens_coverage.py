"""How often the interval of `lens/realised_gain` holds the true gain, on kinds of environment.

    python -m research.lens_coverage [--repeats 1000] [--out docs/results/lens-coverage.csv]

Of finite MDPs the gain is computed exactly. Of environments it is the difference of discounted
returns of fresh episodes, by code that shares nothing with the lens: two policies are those before
and after one update of a run, and each repetition plays rollouts under the first, until the
environments are anywhere in their episodes, then one more and one under the second policy. The
critic stands for what lies behind a time limit, on both sides. `known` is the share of repetitions
that have an interval.
"""

import argparse
import csv
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import surefoot as sf
from surefoot.diagnostics.episodes import episode_rows
from surefoot.diagnostics.groups import EpisodeSums, Layout, groups_of, interval_of, sum_by_group
from surefoot.diagnostics.lens import realised_gain, shows_gain
from surefoot.envs.source import as_host
from surefoot.formulas.intervals import Interval
from surefoot.formulas.running_stats import standard_deviation
from surefoot.training.batch import fresh_explained_variance, state_values, td_sums
from surefoot.training.callback import Callback
from surefoot.training.random_keys import Purpose, run_key
from surefoot.training.rollout_host import HostCollector
from surefoot.training.rollout_jax import start_jax_envs
from surefoot.types import Rollout

GAMMA = 0.99
_NAMES = {1.0: "its own", 0.0: "none"}


class Cell(NamedTuple):
    """One line of the table: shares are of repetitions, the gain is in discounted reward."""

    kind: str
    critic: str
    num_envs: int
    num_steps: int
    gain: float
    known: float
    held: float


def rollout_of(terminated: Any, truncated: Any, valid: Any) -> Rollout:
    """A rollout with nothing but its ends, and rewards of 0."""
    nothing, ends = jnp.zeros(()), [jnp.asarray(leaf) for leaf in (terminated, truncated)]
    rollout = Rollout(*5 * [nothing], *ends, nothing, nothing, jnp.asarray(valid))
    return rollout._replace(rewards=jnp.zeros(np.shape(valid)))


class World(NamedTuple):
    """A finite MDP with two actions that may end an episode, and when a time limit does."""

    transitions: np.ndarray
    rewards: np.ndarray
    ends: np.ndarray
    start: np.ndarray
    limit: int | None = None

    def gain(self, old: np.ndarray, new: np.ndarray, critic: np.ndarray) -> float:
        """The exact change of the return; the critic stands for what a time limit cuts off."""
        returns = []
        for chosen in (old, new):
            law = np.stack([1 - chosen, chosen], 1)
            reward = np.sum(law * self.rewards, 1)
            move = np.einsum("sa,sa,sat->st", law, 1 - self.ends, self.transitions)
            visits, total = self.start, 0.0
            for t in range(self.limit or 3000):
                total += GAMMA**t * visits @ reward
                visits = visits @ move
            returns.append(total + GAMMA ** (self.limit or 3000) * visits @ critic)
        return returns[1] - returns[0]

    def values(self, chosen: np.ndarray) -> np.ndarray:
        """The exact values under a policy, whatever the time limit."""
        law = np.stack([1 - chosen, chosen], 1)
        move = np.einsum("sa,sa,sat->st", law, 1 - self.ends, self.transitions)
        return np.linalg.solve(np.eye(len(move)) - GAMMA * move, np.sum(law * self.rewards, 1))


def random_world(ends: tuple[float, float], reward: float, seed: int = 2) -> World:
    """Eight states, the same reward for each step, and ends up to these chances per action."""
    rng = np.random.default_rng(seed)
    transitions = rng.dirichlet(np.full(8, 0.3), size=(8, 2))
    chances = np.stack([rng.uniform(0, end, 8) for end in ends], 1)
    return World(transitions, np.full((8, 2), reward), chances, rng.dirichlet(np.full(8, 0.2)))


def climb(limit: int | None) -> World:
    """Twenty states from worst to best, climbed slowly: what is visited depends on the time."""
    up, same = np.eye(20, k=1), np.eye(20)
    up[-1, -1], down = 1.0, up[::-1, ::-1]
    moves = np.stack([p * up + 0.05 * down + (0.95 - p) * same for p in (0.05, 0.15)], 1)
    rewards = np.repeat(np.linspace(-1, 0, 20)[:, None], 2, 1)
    return World(moves, rewards, np.zeros((20, 2)), np.eye(20)[0], limit)


WORLDS = {
    "ends, rewards above 0": random_world((0.10, 0.02), 1.0),
    "ends, rewards below 0": random_world((0.01, 0.04), -1.0),
    "a time limit": climb(200),
    "no end": climb(None),
}


def simulate(
    world: World, chosen: Any, critic: Any, state: Any, age: Any, key: Any, num_steps: int
) -> tuple[Any, Any, tuple[EpisodeSums, Any]]:
    """Rollouts of many runs side by side: their sums, and where their environments are then.

    With the sums comes the share of the episodes that began before a rollout.
    """
    laws = jnp.cumsum(jnp.asarray(world.transitions), -1)
    start = jnp.cumsum(jnp.asarray(world.start))

    def step(carry, key):
        state, age = carry
        drawn = jax.random.uniform(key, (4, *state.shape))
        action = (drawn[0] < chosen[state]).astype(int)
        ended = drawn[1] < jnp.asarray(world.ends)[state, action]
        after = jnp.sum(drawn[2][..., None] * laws[..., -1:].max() > laws[state, action], -1)
        fresh = jnp.sum(drawn[3][..., None] > start, -1)
        onwards = jnp.where(ended, 0.0, critic[after])
        error = jnp.asarray(world.rewards)[state, action] + GAMMA * onwards - critic[state]
        late = (age + 1 >= world.limit) & ~ended if world.limit else jnp.zeros_like(ended)
        done = ended | late
        carry = jnp.where(done, fresh, after), jnp.where(done, 0, age + 1)
        return carry, (error, ended, late)

    (last, last_age), rows = jax.lax.scan(step, (state, age), jax.random.split(key, num_steps))

    def sums(error, ended, late, age):
        rollout = rollout_of(ended, late, jnp.ones_like(ended))._replace(rewards=error)
        found, _ = episode_rows(rollout, age, GAMMA)
        count = Layout(error.shape[1], 1).num_groups
        add = partial(sum_by_group, groups=groups_of(rollout), count=count)
        totals = add(error, found.discounts).totals
        begins = found.begins.astype(error.dtype)
        shares, begun = (add(x, jnp.ones_like(error)).totals for x in (found.shares, begins))
        return EpisodeSums(totals, shares, begun), found.carried_share

    return last, last_age, jax.vmap(sums, in_axes=(1, 1, 1, 0))(*rows, age)


def coverage(
    kind: str,
    *,
    quality: float,
    num_envs: int,
    num_steps: int,
    staggered: bool = False,
    repeats: int = 1000,
) -> Cell:
    """How often there is an interval, and how often it holds the exact gain."""
    world = WORLDS[kind]
    size = len(world.start)
    rng = np.random.default_rng(size)
    logits = 0.3 * rng.normal(size=size)
    old, new = (1 / (1 + np.exp(-x)) for x in (logits, logits + 0.4))
    critic = quality * world.values(old)
    shape = (repeats, num_envs)
    age = jnp.zeros(shape, jnp.int32)
    if staggered:
        assert world.limit is not None
        age = jax.random.randint(jax.random.key(1), shape, 0, world.limit)
    play = jax.jit(partial(simulate, world, num_steps=num_steps))
    state, key = jnp.full(shape, int(np.argmax(world.start))), jax.random.key(0)
    for index in range(1000 // num_steps + 1):
        state, age, _ = play(old, critic, state, age, jax.random.fold_in(key, index))
    state, age, (before, carried) = play(old, critic, state, age, jax.random.fold_in(key, 10**6))
    _, _, (after, _) = play(new, critic, state, age, jax.random.fold_in(key, 10**7))
    explained = jnp.full(repeats, 1 - (1 - quality) ** 2)
    found = jax.vmap(partial(_interval, paired=num_envs > 1))(before, after, explained, carried)
    kind = f"{kind}, staggered" if staggered else kind
    critic_name = {1.0: "exact", 0.5: "half", 0.0: "none"}[quality]
    gain = world.gain(old, new, critic)
    return _cell(kind, critic_name, num_envs, num_steps, gain, found)


def _interval(
    before: EpisodeSums, after: EpisodeSums, explained: Any, carried: Any, *, paired: bool = True
) -> Interval:
    """The interval of a gain, as a run has it."""
    found = realised_gain(before, after, paired=paired).estimate
    shown = shows_gain(explained, carried)
    return interval_of(found._replace(variance=jnp.where(shown, found.variance, jnp.nan)))


def _cell(kind: str, critic: str, num_envs: int, num_steps: int, gain: float, found: Any) -> Cell:
    known = np.isfinite(found.low)
    held = (np.asarray(found.low) <= gain) & (gain <= np.asarray(found.high))
    share = float(held[known].mean()) if known.any() else float("nan")
    return Cell(kind, critic, num_envs, num_steps, gain, float(known.mean()), share)


def of_a_run(
    env_id: str,
    update: int,
    *,
    num_envs: int,
    num_steps: int,
    quality: float,
    repeats: int,
    staggered: bool,
) -> Cell:
    """One update of a run on a JAX-native environment, judged over and over."""
    batch = num_envs * num_steps
    run = sf.train(env_id, "trpo", steps=update * batch, num_envs=num_envs, num_steps=num_steps,
                   gamma=GAMMA)  # fmt: skip
    learner, env, settings = run.learner, run.source.jax_env, run.settings
    assert env is not None
    limit = env.spec.max_episode_steps
    assert limit is not None
    new = run.state
    # The update before the last one is made again, from the run's own seed.
    states = [jax.jit(learner.init)(np.int32(settings.train.seed))]
    for _ in range(update):
        states.append(jax.jit(learner.iterate)(states[-1])[0])
    old = states[-2]
    critic = jax.tree.map(lambda leaf: quality * leaf, old.learn.params["critic"])
    frozen = {**old.learn.params, "critic": critic}
    stats, scale = old.learn.obs_stats, standard_deviation(new.learn.return_stats)
    rows = learner.parts.rows

    def play(policy: Any, seed: Any, iteration: Any, loop: Any, ages: Any) -> tuple:
        learn = old.learn._replace(seed=seed, iteration=iteration, params=policy)
        loop, rollout, _ = learner.collect(old._replace(learn=learn, env=loop))
        found, ages = episode_rows(rollout, ages, GAMMA)
        values = state_values(learner.actor, frozen, stats, rollout, rows)
        sums = td_sums(
            settings, values, scale, rollout, found, groups_of(rollout).reshape(-1), rows
        )
        explained = fresh_explained_variance(
            settings, rollout, rollout.rewards / scale, values, rows
        )
        return loop, ages, sums, explained, found.carried_share

    def once(seed: Any) -> Any:
        stagger = run_key(seed, 0, Purpose.STAGGER) if staggered else None
        loop = start_jax_envs(env, num_envs, run_key(seed, 0, Purpose.RESET), stagger)
        ages = jnp.zeros(num_envs, jnp.int32)

        def burn(carry: tuple, index: Any) -> tuple:
            return play(old.learn.params, seed, index, *carry)[:2], None

        count = 2 * limit // num_steps + 1
        (loop, ages), _ = jax.lax.scan(burn, (loop, ages), jnp.arange(count))
        loop, ages, before, explained, carried = play(old.learn.params, seed, count, loop, ages)
        _, _, after, *_ = play(new.learn.params, seed, count + 1, loop, ages)
        return _interval(before, after, explained, carried)

    found = jax.jit(lambda seeds: jax.lax.map(once, seeds, batch_size=16))(
        jnp.arange(10**6, 10**6 + repeats, dtype=jnp.uint32)
    )
    gain = _fresh_gain(learner, env, old, new, frozen, scale, limit)
    kind = f"{env_id}, update {update}" + ("" if staggered else ", in step")
    return _cell(kind, _NAMES[quality], num_envs, num_steps, gain, found)


def _fresh_gain(
    learner: Any, env: Any, old: Any, new: Any, frozen: Any, scale: Any, limit: int
) -> float:
    """The difference of the discounted returns of fresh episodes."""
    actor, stats, count = learner.actor, old.learn.obs_stats, 20_000

    def mean_return(policy: Any) -> Any:
        state, obs = jax.vmap(env.reset)(jax.random.split(jax.random.key(1), count))
        start = state, obs, jnp.ones(count, bool), jnp.zeros(count)

        def step(carry: tuple, t: Any) -> tuple:
            state, obs, running, total = carry
            action_key, step_key = jax.random.split(jax.random.fold_in(jax.random.key(2), t))
            noise = actor.network.noise(action_key, (count,))
            _, sent, _ = actor.act(policy, stats, obs, None, noise)
            keys = jax.vmap(env.draw)(jax.random.split(step_key, count))
            taken = jax.vmap(env.step)(keys, state, sent)
            cut = taken.truncated & ~taken.terminated
            ahead = actor.network.value(frozen, actor.inputs(stats, taken.final_obs, None))
            reward = taken.reward + GAMMA * jnp.where(cut, scale * ahead, 0.0)
            total = total + GAMMA**t * jnp.where(running, reward, 0.0)
            running = running & ~(taken.terminated | taken.truncated)
            return (taken.state, taken.obs, running, total), None

        (*_, total), _ = jax.lax.scan(step, start, jnp.arange(limit))
        return jnp.mean(total)

    first, second = (
        float(jax.jit(mean_return)(state.learn.params["policy"])) for state in (old, new)
    )
    return second - first


class _Kept(Callback):
    """The states of a run after its last two updates."""

    def __init__(self) -> None:
        self.states: list[Any] = []

    def on_row(self, run: sf.Run, row: Any) -> bool:
        """Keep the newest state."""
        self.states = [*self.states[-1:], jax.device_get(run.state.learn)]
        return False


def of_a_gymnasium_run(
    env_id: str, update: int, *, num_envs: int, num_steps: int, repeats: int
) -> Iterator[Cell]:
    """One update of a run on a Gymnasium environment, judged over and over, with two critics.

    The same environments play on. Of the rollouts of a repetition, all but the last under the first
    policy, two forget the policy before them and two are judged.
    """
    kept = _Kept()
    run = sf.train(env_id, "trpo", steps=update * num_envs * num_steps, num_envs=num_envs,
                   num_steps=num_steps, gamma=GAMMA, callback=kept)  # fmt: skip
    old, new = kept.states
    actor, rows = run.learner.actor, run.learner.parts.rows
    settings, policies = run.settings.with_train(seed=10**6), [old.params["policy"]] * 3
    stats, scale = old.obs_stats, standard_deviation(new.return_stats)
    env = as_host(run.source.open(num_envs, seed=10**6))
    collector = HostCollector(env, actor, settings)
    collector.reset(0)
    collector.warm_up(policies[0], stats)

    @jax.jit
    def sums_of(params: Any, rollout: Rollout, ages: Any) -> tuple[Any, Any]:
        found, ages = episode_rows(rollout, ages, GAMMA)
        values, groups = state_values(actor, params, stats, rollout, rows), groups_of(rollout)
        sums = td_sums(settings, values, scale, rollout, found, groups.reshape(-1), rows)
        explained = fresh_explained_variance(
            settings, rollout, rollout.rewards / scale, values, rows
        )
        return (sums, explained, found.carried_share), ages

    judge = jax.jit(_interval)
    frozen = {
        quality: {
            **old.params,
            "critic": jax.tree.map(partial(jnp.multiply, quality), old.params["critic"]),
        }
        for quality in _NAMES
    }
    ages, found = jnp.zeros(num_envs, jnp.int32), {quality: [] for quality in _NAMES}
    for repeat in range(repeats):
        judged = []
        for index, policy in enumerate([*policies, new.params["policy"]]):
            rollout = collector.collect(policy, stats, 4 * repeat + index).rollout
            sums = {quality: sums_of(frozen[quality], rollout, ages) for quality in _NAMES}
            judged.append({quality: one for quality, (one, _) in sums.items()})
            ages = sums[1.0][1]
        for quality, intervals in found.items():
            (before, explained, carried), (after, *_) = (one[quality] for one in judged[-2:])
            intervals.append(judge(before, after, explained, carried))
    env.close()
    first, second = (_fresh_return(run, each.params["policy"], stats) for each in (old, new))
    for quality, intervals in found.items():
        stacked = jax.tree.map(lambda *each: np.stack(each), *intervals)
        kind = f"{env_id}, update {update}"
        yield _cell(kind, _NAMES[quality], num_envs, num_steps, second - first, stacked)


def _fresh_return(run: sf.Run, policy: Any, stats: Any, episodes: int = 60) -> float:
    """The discounted return of fresh episodes, so many in each of fifty environments.

    What lies behind a limit of 1,000 steps is discounted to nothing.
    """
    count, actor = 50, run.learner.actor
    env = as_host(run.source.open(count, seed=10**7))
    act = jax.jit(lambda obs, noise: actor.act(policy, stats, obs, None, noise)[1])
    draw = jax.jit(
        lambda t: actor.network.noise(jax.random.fold_in(jax.random.key(3), t), (count,))
    )
    obs, _ = env.reset([10**7 + i for i in range(count)])
    totals, ages, done = np.zeros(count), np.zeros(count), [[] for _ in range(count)]
    t = 0
    while min(map(len, done)) < episodes:
        step = env.step(np.asarray(act(obs, draw(t))))
        totals, ages, t, obs = totals + GAMMA**ages * step.rewards, ages + 1, t + 1, step.obs
        for i in np.flatnonzero(step.terminated | step.truncated):
            done[i].append(totals[i])
            totals[i] = ages[i] = 0.0
    env.close()
    # The same number of each: the first to end are short ones.
    return float(np.mean([each[:episodes] for each in done]))


def cells(repeats: int) -> Iterator[Cell]:
    """Every line of the table."""
    for kind in WORLDS:
        for quality in (1.0, 0.5, 0.0):
            for num_envs, num_steps in ((16, 128), (8, 256), (1, 2048)):
                size = {"num_envs": num_envs, "num_steps": num_steps, "repeats": repeats}
                yield coverage(kind, quality=quality, **size)
                if WORLDS[kind].limit and num_envs > 1:
                    yield coverage(kind, quality=quality, staggered=True, **size)
    for env_id, updates in (
        ("gymnax:CartPole-v1", (1, 4, 12)),
        ("gymnax:Acrobot-v1", (4, 16)),
        ("gymnax:Pendulum-v1", (4,)),
    ):
        for update in updates:
            for quality in (1.0, 0.0):
                size = {"num_envs": 16, "num_steps": 128, "quality": quality}
                size["repeats"] = max(1, repeats // 2)
                yield of_a_run(env_id, update, staggered=True, **size)
                if env_id == "gymnax:Pendulum-v1":
                    yield of_a_run(env_id, update, staggered=False, **size)
    for update in (2, 20):
        size = {"num_envs": 8, "num_steps": 256, "repeats": max(1, repeats // 4)}
        yield from of_a_gymnasium_run("Hopper-v5", update, **size)


def main(words: list[str] | None = None) -> None:
    """Write the table, a line as soon as it is known."""
    parser = argparse.ArgumentParser(description="coverage of the realised gain's interval")
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("docs/results/lens-coverage.csv"))
    options = parser.parse_args(words)
    with options.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(Cell._fields)
        for cell in cells(options.repeats):
            writer.writerow([*cell[:4], *(f"{value:.4f}" for value in cell[4:])])
            file.flush()
            print(*cell[:4], *(f"{value:.3f}" for value in cell[4:]), file=sys.stderr)


if __name__ == "__main__":
    main()
