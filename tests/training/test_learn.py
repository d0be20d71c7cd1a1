"""One iteration of learning, the same laws for every rule on every kind of environment."""

from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from surefoot.config.settings import NPG, PPO, PPOKL, RULES, TRPO, VPG, Critic, Train
from surefoot.diagnostics.update_stats import diagnose
from surefoot.formulas.distributions import Categorical, kl
from surefoot.rules.rows import AllRows
from surefoot.training.batch import state_values
from surefoot.training.learn import read_rollout
from surefoot.training.random_keys import drawn_block
from surefoot.training.rollout_host import HostCollector
from surefoot.training.rollout_jax import collect_jax, start_jax_envs
from surefoot.training.state import without_open_episodes
from surefoot.training.steppers import as_arrays
from surefoot.types import Batch, Inputs
from tests.support.learners import learner_of
from tests.support.programs import quickly_built
from tests.support.scripted import host_env, scripted_jax, scripted_vector
from tests.support.trees import assert_same_bits, same_bits

NUM_ENVS, NUM_STEPS = 2, 16
RULES_HERE = {
    "vpg": VPG(),
    "npg": NPG(cg_iters=4),
    "trpo": TRPO(cg_iters=4, max_backtracks=4),
    "ppo-kl": PPOKL(num_epochs=2, num_minibatches=2),
    "ppo": PPO(num_epochs=2, num_minibatches=2),
}
HOST = ["discrete", "box"]


class Lesson(NamedTuple):
    """A rollout, the state it was collected in, and the compiled function that learns from it."""

    settings: Any
    learner: Any
    state: Any
    rollout: Any
    episodes: Any
    learn: Any


def padded(rollout):
    """As many final rows as a JAX-native rollout has: both are learned from in one program."""
    more = NUM_ENVS * NUM_STEPS - len(rollout.final_rows)
    return rollout._replace(
        final_obs=np.pad(rollout.final_obs, [(0, more), (0, 0)]),
        final_rows=np.pad(rollout.final_rows, (0, more), constant_values=NUM_ENVS * NUM_STEPS),
    )


@cache
def lesson(rule, kind):
    with quickly_built():
        return make_lesson(rule, kind)


def make_lesson(rule, kind):
    # Next-step autoreset, so that dummy rows are in every batch.
    env = (
        scripted_jax()
        if kind == "jax"
        else host_env(
            scripted_vector(AutoresetMode.NEXT_STEP, NUM_ENVS, action=kind), "Scripted", seed=0
        )
    )
    learner = learner_of(env, RULES_HERE[rule], Train(num_envs=NUM_ENVS, num_steps=NUM_STEPS))
    state = jax.jit(learner.init)(0)
    if kind == "jax":
        _, rollout, episodes = jax.jit(learner.collect)(state)
    else:
        collector = HostCollector(env, learner.actor, learner.settings)
        collector.reset(0)
        acting = state.learn.params["policy"], state.learn.obs_stats
        rollout, episodes, *_ = collector.collect(*acting, 0)
        rollout = padded(rollout)
    rollout, episodes = jax.tree.map(np.asarray, (rollout, episodes))
    learn = jax.jit(learner.learn)
    state = state._replace(env=None)
    learn(state, rollout, episodes)
    return Lesson(learner.settings, learner, state, rollout, episodes, learn)


every_rule = pytest.mark.parametrize("rule", list(RULES))
on_the_host = pytest.mark.parametrize("kind", HOST)
# Both together reach every line of the rules that matters there; the others are thorough.
TWO_RULES = [
    pytest.param(rule, marks=[] if rule in ("trpo", "ppo") else pytest.mark.thorough)
    for rule in RULES
]


@every_rule
@pytest.mark.parametrize(
    "kind",
    [
        "box",
        *(
            pytest.param(kind, marks=pytest.mark.thorough)
            for kind in [*HOST, "jax"]
            if kind != "box"
        ),
    ],
)
def test_one_iteration_moves_policy_and_critic_and_tells_finite_metrics(rule, kind):
    given = lesson(rule, kind)
    state, metrics = given.learn(given.state, given.rollout, given.episodes)
    unknown = [name for name, value in metrics.items() if not np.isfinite(value)]
    # The lens needs a rollout more, and a batch may have no action better or worse than expected.
    assert [n for n in unknown if not n.startswith(("lens/", "policy/log_ratio"))] == []
    judged = [n for n in unknown if n.startswith("lens/")]
    assert len(judged) == 11, "no update was judged before the first"
    for part in ("policy", "critic"):
        assert not same_bits(state.learn.params[part], given.state.learn.params[part]), part
    assert metrics["policy/kl_mean"] > 0
    assert metrics["update/finite"] == 1
    assert state.learn.iteration == 1
    assert metrics["policy/staleness"] < 1e-5


@every_rule
@pytest.mark.parametrize("kind", ["box", pytest.param("jax", marks=pytest.mark.thorough)])
def test_the_realised_gain_is_the_change_of_the_discounted_td_errors_of_an_episode(rule, kind):
    given = lesson(rule, kind)
    state, first = given.learn(given.state, given.rollout, given.episodes)
    later = given.rollout._replace(rewards=given.rollout.rewards + 0.5)
    _, second = given.learn(state, later, given.episodes)
    gamma, scale = given.settings.train.gamma, float(first["normalize/return_scale"])
    means, age = [], np.zeros(given.settings.train.num_envs, int)
    for rollout in (given.rollout, later):
        values, next_values = (
            scale * np.asarray(v, np.float64)
            for v in state_values(
                given.learner.actor,
                given.state.learn.params,
                given.state.learn.obs_stats,
                rollout,
                AllRows(),
            )
        )
        onwards = np.where(rollout.terminated, 0.0, next_values)
        errors = rollout.rewards + gamma * onwards - values
        total = episodes = 0.0
        for t in range(len(errors)):
            ended = np.asarray(rollout.terminated[t] | rollout.truncated[t])
            discount = np.where(rollout.valid[t], gamma**age, 0.0)
            total += np.sum(discount * np.nan_to_num(errors[t]))
            episodes += np.sum(discount * (1 - gamma + gamma * ended))
            age = np.where(ended, 0, age + np.asarray(rollout.valid[t]))
        means.append(total / episodes)
    assert second["lens/promised_gain"] == first["surrogate/promised_gain"]
    np.testing.assert_allclose(second["lens/realised_gain"], means[1] - means[0], rtol=1e-4)
    # Two environments are too few to say how well it is known.
    assert np.isnan(second["lens/realised_low"])
    assert np.isnan(second["lens/realised_high"])


@pytest.mark.parametrize(("age", "shown"), [(0, True), (100, False)])
def test_a_critic_that_knows_nothing_shows_a_gain_only_in_episodes_that_the_rollout_has(age, shown):
    given = lesson("vpg", "box")
    no = np.zeros_like(given.rollout.terminated)
    rewards = np.random.default_rng(0).normal(size=no.shape).astype(np.float32)
    rollout = given.rollout._replace(terminated=no, truncated=no, rewards=rewards)
    ages = np.full_like(given.state.learn.ages, age)
    state = given.state._replace(learn=given.state.learn._replace(ages=ages))
    after, metrics = given.learn(state, rollout, given.episodes)
    assert metrics["lens/explained_variance"] < 0.1
    assert bool(after.lens.shows_gain) is shown


def test_a_joint_critics_loss_counts_vf_coef_times():
    def learner_with(vf_coef):
        return learner_of(
            scripted_jax(),
            PPO(num_epochs=1, num_minibatches=1),
            Train(num_envs=NUM_ENVS, num_steps=NUM_STEPS),
            critic=Critic(joint=True, vf_coef=vf_coef),
        )

    learner = learner_with(1.0)
    iterate, start = jax.jit(learner.iterate), learner.init(0)

    def loss(vf_coef):
        _, metrics = iterate(start, as_arrays(learner_with(vf_coef).traced))
        return float(metrics["update/loss"])

    with quickly_built():
        once, twice, fourfold = map(loss, (1.0, 2.0, 4.0))
    assert twice > once + 1e-3
    assert fourfold - twice == pytest.approx(2.0 * (twice - once), rel=1e-4)


@pytest.mark.parametrize("rule", TWO_RULES)
def test_what_is_learned_does_not_depend_on_what_the_lens_remembers(rule):
    given, random = lesson(rule, "box"), np.random.default_rng(0)

    def other(leaf):
        if leaf.dtype == bool:
            return ~leaf
        return (leaf + random.normal(1.0, 9.0, leaf.shape)).astype(leaf.dtype)

    strange = given.state._replace(lens=jax.tree.map(other, given.state.lens))
    plain, metrics = given.learn(given.state, given.rollout, given.episodes)
    found, others = given.learn(strange, given.rollout, given.episodes)
    assert_same_bits(found.learn, plain.learn)
    judged = "lens/realised_gain"
    assert np.isnan(metrics[judged])
    assert np.isfinite(others[judged]), "the lens reads what it remembers"


def spoil(rollout, what):
    """The rollout with one valid row that is no number, or without bound."""
    at = next((t, 1) for t in range(5, NUM_STEPS) if rollout.valid[t, 1])
    spoilt = np.array(rollout.obs if what == "observation" else rollout.rewards)
    spoilt[at] = np.inf if what == "infinite reward" else np.nan
    return rollout._replace(**{"obs" if what == "observation" else "rewards": spoilt})


@pytest.mark.parametrize("rule", TWO_RULES)
@on_the_host
@pytest.mark.parametrize(
    "what",
    [
        "reward",
        *(pytest.param(w, marks=pytest.mark.thorough) for w in ("observation", "infinite reward")),
    ],
)
def test_a_refused_update_leaves_everything_learned_bit_for_bit(rule, kind, what):
    given = lesson(rule, kind)
    state, metrics = given.learn(given.state, spoil(given.rollout, what), given.episodes)
    assert metrics["update/finite"] == 0
    for part in ("params", "rule", "critic"):
        assert_same_bits(getattr(state.learn, part), getattr(given.state.learn, part))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.learn.obs_stats))
    assert np.isfinite(state.learn.return_stats.mean)
    assert state.learn.refusals == 1
    again, _ = given.learn(state, spoil(given.rollout, what), given.episodes)
    assert again.learn.refusals == 2
    whole = without_open_episodes(state)
    recovered, metrics = given.learn(whole, given.rollout, given.episodes)
    assert metrics["update/finite"] == 1
    assert recovered.learn.refusals == 0


def batch_of(given):
    def make(state, rollout):
        return read_rollout(given.learner.parts, state, rollout)[0]

    return jax.jit(make)(given.state.learn, given.rollout)


@pytest.mark.core
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_every_truncated_row_is_worth_its_own_true_successor_however_many_there_are(share):
    given = lesson("ppo", "discrete")
    random, shape = np.random.default_rng(3), (50, 5)
    obs = random.normal(size=(51, 5, *given.rollout.obs.shape[2:])).astype(np.float32)
    final = random.normal(size=(250, *obs.shape[2:])).astype(np.float32)
    truncated = random.random(250) < share
    rows = np.flatnonzero(truncated)
    rollout = given.rollout._replace(
        obs=obs,
        truncated=truncated.reshape(shape),
        final_rows=np.concatenate([rows, np.full(250 - len(rows), 250)]),
        final_obs=np.concatenate([final[rows], np.full_like(final[: 250 - len(rows)], np.nan)]),
    )
    actor, state = given.learner.actor, given.state
    acting = state.learn.params, state.learn.obs_stats
    here, after = state_values(actor, *acting, rollout, AllRows())

    def value(obs):
        return actor.network.value(
            state.learn.params, actor.inputs(state.learn.obs_stats, obs, None)
        )

    expected = np.where(truncated, value(final), value(obs[1:]).reshape(-1)).reshape(shape)
    np.testing.assert_allclose(here, value(obs[:-1]), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(after, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.core
@on_the_host
def test_the_ratio_is_exactly_one_on_the_full_batch_before_the_first_step(kind):
    given = lesson("trpo", kind)
    policy, params = given.learner.actor.network.policy, given.state.learn.params["policy"]
    batch = batch_of(given)
    again = jax.jit(lambda batch: policy(params, batch.inputs).log_prob(batch.actions))(batch)
    counted = np.asarray(batch.weights) > 0
    np.testing.assert_allclose(again[counted], batch.old_log_probs[counted], atol=1e-6)
    unmoved = jax.jit(lambda batch: diagnose(policy, params, params, batch))(batch)
    for name in ("policy/ratio_min", "policy/ratio_max", "policy/ess_fraction"):
        assert unmoved[name] == 1.0, name
    for name in ("policy/kl_mean", "policy/tv_mean", "surrogate/promised_gain"):
        assert unmoved[name] == 0.0, name


def test_the_effective_sample_size_survives_a_ratio_whose_square_overflows():
    old = jnp.zeros((8, 2)).at[0].set(jnp.array([-60.0, 0.0]))
    batch = Batch(
        Inputs(jnp.arange(8), None),
        *(jnp.zeros(8, int), jnp.zeros(8), jnp.ones(8), jnp.zeros(8), jnp.zeros(8)),
        *(jnp.ones(8), jnp.ones(8) / 8),
        jnp.arange(8),
        jnp.ones(()),
    )
    found = diagnose(
        lambda logits, inputs: Categorical(logits[inputs.obs]),
        *(old, jnp.zeros((8, 2)), batch),
    )
    np.testing.assert_allclose(found["policy/ess_fraction"], 1 / 8, rtol=1e-5)


@pytest.mark.core
def test_every_figure_of_an_update_is_that_of_the_rows_that_count():
    rng, rows = np.random.default_rng(1), 400
    old, new = rng.normal(size=(2, rows, 3))
    new[:4] += 4.0
    new = np.where(np.arange(rows)[:, None] < 4, new, old + 0.3 * new)
    actions, weights = rng.integers(3, size=rows), rng.integers(0, 2, size=rows).astype(float)
    weights[:4], visits = 1.0, rng.uniform(size=rows)
    advantages = np.where(weights > 0, rng.normal(size=rows), np.nan)
    batch = Batch(
        Inputs(jnp.arange(rows), None),
        jnp.asarray(actions),
        jnp.full(rows, -0.5),
        jnp.asarray(advantages, jnp.float32),
        jnp.zeros(rows),
        jnp.zeros(rows),
        jnp.asarray(weights, jnp.float32),
        jnp.asarray(weights * visits, jnp.float32),
        jnp.arange(rows),
        jnp.ones(()),
    )
    found = diagnose(
        lambda logits, inputs: Categorical(logits[inputs.obs]),
        *(jnp.asarray(x, jnp.float32) for x in (old, new)),
        batch,
    )
    p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (old, new))
    kls, counted = np.sum(p * np.log(p / q), 1), weights > 0
    worst = kls >= np.quantile(kls[counted], 0.99)
    share = np.sum((kls * weights)[worst]) / np.sum(kls * weights)
    np.testing.assert_allclose(found["policy/kl_worst_share"], share, rtol=1e-4)
    least = kls[counted & worst].min()
    np.testing.assert_allclose(found["policy/kl_p99"], least, rtol=1e-4)
    ratio = (q / p)[np.arange(rows), actions]
    promise = np.sum(((ratio - 1) * advantages * visits)[counted])
    np.testing.assert_allclose(found["surrogate/promised_gain"], promise, rtol=1e-4)
    variation = 0.5 * np.abs(p - q).sum(1)
    for name, expected in {
        "kl_mean": kls[counted].mean(),
        "kl_reverse_mean": np.sum(q * np.log(q / p), 1)[counted].mean(),
        "tv_mean": variation[counted].mean(),
        "entropy_old": -np.sum(p * np.log(p), 1)[counted].mean(),
        "entropy": -np.sum(q * np.log(q), 1)[counted].mean(),
        "kl_worst_state": kls[counted].max(),
        "tv_worst_state": variation[counted].max(),
        "ratio_min": ratio[counted].min(),
        "ratio_max": ratio[counted].max(),
        "staleness": np.abs(-0.5 - np.log(p[np.arange(rows), actions]))[counted].max(),
    }.items():
        np.testing.assert_allclose(found[f"policy/{name}"], expected, rtol=1e-4, err_msg=name)
    ess = np.mean(ratio[counted]) ** 2 / np.mean(ratio[counted] ** 2)
    np.testing.assert_allclose(found["policy/ess_fraction"], ess, rtol=1e-4)
    columns = {"kl_median": (kls, counted, 0.5)}
    for name, side in (("good", advantages > 0), ("bad", advantages < 0)):
        for percent in (10, 50, 90):
            rows_of_sign = (np.log(ratio), counted & side, percent / 100)
            columns[f"log_ratio_{name}_p{percent}"] = rows_of_sign
    for name, (values, which, level) in columns.items():
        # One rank either way: half-way between two rows, either is the nearest.
        low, high = np.sort(values[which])[[int(level * (sum(which) - 1)) + i for i in (0, 1)]]
        assert low - 1e-5 <= found[f"policy/{name}"] <= high + 1e-5, name
    # How many rows each pair of signs has differs, so that none can stand for another.
    low, high = ratio < 0.8, ratio > 1.2
    pairs = [(side & end & counted).sum() for side in (advantages > 0, advantages < 0)
             for end in (low, high)]  # fmt: skip
    assert len(set(pairs)) == 4
    hurt = np.where(advantages > 0, low, high)
    expected = np.sum(hurt * weights) / weights.sum()
    assert 0.05 < expected < 0.6
    np.testing.assert_allclose(found["policy/unprotected_fraction"], expected, rtol=1e-5)
    outside = np.sum((np.abs(ratio - 1) > 0.2) * weights) / weights.sum()
    np.testing.assert_allclose(found["policy/clip_fraction"], outside, rtol=1e-5)


def test_rows_of_a_batch_are_what_the_policy_read_when_it_acted():
    given = lesson("trpo", "discrete")
    after, metrics = given.learn(given.state, given.rollout, given.episodes)
    policy = given.learner.actor.network.policy
    obs = jax.tree.map(lambda leaf: leaf[:-1], given.rollout.obs)
    inputs = [
        given.learner.actor.inputs(state.learn.obs_stats, obs, None)
        for state in (given.state, after)
    ]
    drift = kl(*(policy(after.learn.params["policy"], each) for each in inputs))
    expected = np.mean(drift[given.rollout.valid])
    np.testing.assert_allclose(metrics["normalize/kl"], expected, rtol=1e-3)
    assert expected > 0, "the next statistics differ"
    batch = batch_of(given)
    raw = given.rollout.obs[:-1].reshape(NUM_STEPS * NUM_ENVS, -1)
    np.testing.assert_array_equal(batch.inputs.obs, np.clip(raw, -10, 10))
    np.testing.assert_array_equal(batch.actions, given.rollout.actions.reshape(-1))
    np.testing.assert_array_equal(batch.weights, given.rollout.valid.reshape(-1))


def all_differ(noise):
    """No draw comes twice, but for rounding: noise is what is left without the policy's mean."""
    return len(np.unique(np.round(noise, 4))) > 0.99 * noise.size


def noise_of(given, rollout):
    """What was added to the policy's mean: actions alone differ because observations do."""
    obs = jax.tree.map(lambda leaf: leaf[:-1], rollout.obs)
    actor, state = given.learner.actor, given.state
    inputs = actor.inputs(state.learn.obs_stats, obs, None)
    chosen = actor.network.policy(state.learn.params["policy"], inputs)
    return np.asarray(rollout.actions - chosen.mode())


def test_a_large_rollout_draws_its_noise_in_blocks_and_none_of_it_twice(monkeypatch):
    given = lesson("trpo", "box")
    monkeypatch.setattr("surefoot.training.random_keys.DRAWN_BYTES", 1)
    env = host_env(scripted_vector(AutoresetMode.SAME_STEP, NUM_ENVS, action="box"), "S", seed=0)
    collector = HostCollector(env, given.learner.actor, given.settings)
    collector.reset(0)
    host = collector.collect(given.state.learn.params["policy"], given.state.learn.obs_stats, 0)
    assert all_differ(noise_of(given, host.rollout))


@pytest.mark.parametrize(("limit", "block"), [(1, 1), (10**9, NUM_STEPS)])
def test_a_jax_native_rollout_uses_no_noise_and_no_key_twice(monkeypatch, limit, block):
    given, twin = lesson("trpo", "box"), scripted_jax(action="box")

    def step(drawn, state, action):
        key, chance = drawn
        return twin.step(key, state, action)._replace(reward=chance)

    env = twin._replace(step=step, draw=lambda key: (key, jax.random.uniform(key)))
    monkeypatch.setattr("surefoot.training.random_keys.DRAWN_BYTES", limit)
    noise = given.learner.actor.network.noise(jax.random.key(0), (1, NUM_ENVS))
    assert drawn_block(noise, NUM_STEPS) == block
    action_key, step_key, reset_key = jax.random.split(jax.random.key(0), 3)

    @jax.jit
    def collect(policy, obs_stats, loop):
        how = {"keys": (action_key, step_key), "rows": AllRows()}
        return collect_jax(env, given.learner.actor, given.settings, policy, obs_stats, loop, **how)

    _, rollout, _ = collect(
        given.state.learn.params["policy"],
        given.state.learn.obs_stats,
        start_jax_envs(env, NUM_ENVS, reset_key),
    )
    assert all_differ(noise_of(given, rollout))
    assert len(np.unique(rollout.rewards)) == rollout.rewards.size
