"""The lens: every estimate on sampled data against the exact answer of a finite MDP."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from surefoot.config.settings import NPG
from surefoot.diagnostics.cross_fit import cross_fit
from surefoot.diagnostics.gradient_noise import gradient_noise, noise_metrics, unbiased_norms
from surefoot.diagnostics.groups import (
    EPISODE_GROUPS,
    EpisodeSums,
    Estimate,
    GroupSums,
    Layout,
    combine,
    groups_of,
    interval_of,
    mean_of,
    sum_by_group,
)
from surefoot.diagnostics.lens import (
    DRIFT,
    GAIN_NOISE,
    PRIOR_U,
    filter_gain,
    filtered_ratio,
    realised_gain,
    signal_share,
    start_filter,
    take_in_cross_fit,
)
from surefoot.diagnostics.state_shift import (
    NUM_STATES,
    sample_states,
    shift_metrics,
    visitation_shift,
)
from surefoot.diagnostics.update_stats import _quantiles, some_rows
from surefoot.exact import TabularSoftmax, random_mdp, solve
from surefoot.formulas.distributions import Categorical
from surefoot.parallel.mesh import rows_in
from surefoot.rules import UPDATE_RULES
from surefoot.rules.rows import AllRows
from surefoot.training.batch import fresh_explained_variance
from surefoot.types import Batch, Inputs, Rollout
from tests.support.programs import well_built

REPEATS = 1000
LOW, HIGH = 0.93, 0.97


def covers(low, high, truth):
    return float(np.mean((np.asarray(low) <= truth) & (truth <= np.asarray(high))))


@pytest.fixture(scope="module")
def pair():
    """An MDP of six states, its uniform policy solved, and a policy that is better."""
    mdp = random_mdp(5, gamma=0.9)
    old = solve(mdp, np.full((6, 3), 1 / 3))
    return mdp, old, solve(mdp, TabularSoftmax().policy(0.5 * old.advantages))


def sampled_td(mdp, solution, critic, *, groups, rows, rng):
    """TD errors [group, row] of rows drawn from d(s) pi(a|s) P(s'|s, a)."""
    law = (1 - mdp.gamma) * solution.visits[:, None] * solution.policy
    pairs = rng.choice(law.size, size=(groups, rows), p=law.reshape(-1) / law.sum())
    states, actions = np.divmod(pairs, mdp.num_actions)
    reach = np.cumsum(mdp.transitions, axis=-1)[states, actions]
    after = np.sum(rng.random((groups, rows, 1)) > reach, axis=-1).clip(max=mdp.num_states - 1)
    return mdp.rewards[states, actions] + mdp.gamma * critic[after] - critic[states]


def sums_of(errors, counts=None):
    """Sums of the first `counts` rows of each group, of a tenth of an episode each; None: of all.

    They are drawn from the discounted visits themselves, so that as many episodes begin.
    """
    counts = np.full(len(errors), errors.shape[1]) if counts is None else counts
    kept = np.arange(errors.shape[1]) < counts[:, None]
    episodes = jnp.asarray(0.1 * counts, jnp.float32)
    return EpisodeSums(jnp.asarray(np.sum(errors * kept, 1)), episodes, episodes)


@partial(jax.jit, static_argnames="paired")
def gained(before, after, paired):
    return interval_of(realised_gain(before, after, paired=paired).estimate)


@pytest.mark.parametrize("paired", [True, False], ids=["environments", "episodes"])
@pytest.mark.parametrize("quality", ["exact", "noisy", "nothing"])
def test_the_interval_of_the_realised_gain_covers_the_exact_gain_at_its_rate(quality, paired, pair):
    mdp, old, new = pair
    rng = np.random.default_rng(0)
    noise = {"exact": 0.0, "noisy": 1.0, "nothing": 0.0}[quality]
    critic = (0.0 if quality == "nothing" else 1.0) * old.values + noise * rng.normal(size=6)
    size = {"groups": 8, "rows": 200, "rng": rng}
    found = []
    for _ in range(REPEATS):
        # Episodes have lengths of their own; environments all have the same rows.
        counts = [None if paired else rng.integers(50, 200, size=8) for _ in range(2)]
        before, after = (
            sums_of(sampled_td(mdp, solution, critic, **size), count)
            for solution, count in zip((old, new), counts, strict=True)
        )
        found.append(gained(before, after, paired))
    low, high = np.array([[g.low, g.high] for g in found]).T
    assert LOW <= covers(low, high, new.eta - old.eta) <= HIGH


def test_a_good_critic_makes_the_interval_narrow_and_no_critic_moves_the_mean(pair):
    mdp, old, new = pair
    rng = np.random.default_rng(1)
    widths = []
    for critic in (old.values, old.values + 5.0 * rng.normal(size=6)):
        before, after = (
            sums_of(sampled_td(mdp, s, critic, groups=400, rows=400, rng=rng)) for s in (old, new)
        )
        found = gained(before, after, True)
        widths.append(float(found.high - found.low))
        assert abs(float(found.mean) - (new.eta - old.eta)) < 2 * widths[-1]
    assert widths[1] > 3 * widths[0]


def policy_fn(theta, inputs):
    return Categorical(theta[inputs.obs])


def table_batch(states, actions, advantages, groups):
    zeros = jnp.zeros(len(states))
    return Batch(
        inputs=Inputs(states, None),
        actions=actions,
        old_log_probs=zeros,
        advantages=advantages,
        values=zeros,
        value_targets=zeros,
        weights=jnp.ones(len(states)),
        visits=jnp.full(len(states), 10.0 / len(states)),
        groups=jnp.asarray(groups, jnp.int32),
        return_scale=jnp.asarray(1.0),
    )


def draw_rows(old, key, groups):
    """A row of each of these groups, in their order."""
    law = jnp.log(jnp.asarray((old.visits[:, None] * old.policy).reshape(-1)))
    pairs = jax.random.categorical(key, law, shape=(len(groups),))
    states, actions = jnp.divmod(pairs, old.policy.shape[1])
    advantages = jnp.asarray(old.advantages, jnp.float32)[states, actions]
    return table_batch(states, actions, advantages, groups)


@pytest.mark.thorough
@pytest.mark.parametrize("layout", [Layout(16, 1), Layout(16, 16)], ids=["together", "apart"])
def test_the_interval_of_the_cross_fit_promise_covers_what_the_halves_are_worth(pair, layout):
    _, old, _ = pair
    rule = UPDATE_RULES["npg"](NPG(advantage_norm="none", fisher_fraction=1.0), policy_fn, 1.0)
    theta, groups = jnp.zeros((6, 3)), jnp.arange(1600) % 16

    def update(half):
        return rule.update(rule.init(theta), theta, half, jax.random.key(0))[0]

    def worth(new):
        lift = jnp.sum(jax.nn.softmax(new) * jnp.asarray(old.advantages), axis=1)
        return jnp.asarray(old.visits) @ lift

    @jax.jit
    @jax.vmap
    def look(key):
        batch = draw_rows(old, key, groups)
        fit = cross_fit(update, policy_fn, theta, batch, layout)
        halves = [batch._replace(weights=1.0 * (groups % 2 == side)) for side in (0, 1)]
        truth = 0.5 * sum(worth(update(half)) for half in halves)
        return interval_of(fit.across), fit.insample, truth

    across, insample, truth = look(jax.random.split(jax.random.key(0), REPEATS))
    assert LOW <= covers(across.low, across.high, np.asarray(truth)) <= HIGH
    error = np.std(across.mean - truth) / REPEATS**0.5
    assert abs(np.mean(across.mean - truth)) < 4 * error
    assert np.mean(insample - truth) > 4 * error


def test_a_promise_of_a_half_weighs_its_rows_by_their_visits_and_a_guards_all_alike(pair):
    _, old, _ = pair
    rng, theta, groups = np.random.default_rng(0), jnp.zeros((6, 3)), jnp.arange(64) % 8
    batch = draw_rows(old, jax.random.key(0), groups)
    visits = rng.uniform(0.1, 2.0, 64)
    batch = batch._replace(visits=jnp.asarray(visits), return_scale=jnp.asarray(3.0))
    new = jnp.asarray(rng.normal(size=(6, 3)))
    fit = cross_fit(lambda half: new, policy_fn, theta, batch, Layout(8, 1))
    ratio = 3.0 * jax.nn.softmax(new)[batch.inputs.obs, batch.actions]
    gains = np.asarray(3.0 * (ratio - 1.0) * batch.advantages)
    halves = [np.asarray(groups) % 2 == side for side in (0, 1)]
    weighted = [np.average(gains[half], weights=visits[half]) for half in halves]
    np.testing.assert_allclose(fit.across.mean, visits.sum() * np.mean(weighted), rtol=1e-4)
    np.testing.assert_allclose(fit.insample, visits.sum() * np.mean(weighted), rtol=1e-4)
    np.testing.assert_allclose(fit.per_row, gains.mean(), rtol=1e-4)


def test_a_single_group_has_no_other_half_to_ask(pair):
    _, old, _ = pair
    theta = jnp.zeros((6, 3))
    for groups, known in ((jnp.zeros(64, int), False), (jnp.arange(64) // 32, True)):
        batch = draw_rows(old, jax.random.key(0), groups)
        fit = cross_fit(lambda half: theta + 0.1, policy_fn, theta, batch, Layout(1, 1))
        assert np.isfinite(fit.insample) == known
        assert np.isfinite(fit.across.mean) == known
        seen = take_in_cross_fit(start_filter(), fit.insample, fit.across.mean)
        assert np.isnan(signal_share(seen)) or known


def test_noise_promises_in_sample_and_not_across_halves():
    """A bandit of 200 states without any true advantage, and one with."""
    num_states, rows = 200, 800
    theta, groups = jnp.zeros((num_states, 2)), jnp.arange(800) % 8
    rule = UPDATE_RULES["npg"](NPG(advantage_norm="none", fisher_fraction=1.0), policy_fn, 1.0)

    def update(half):
        return rule.update(rule.init(theta), theta, half, jax.random.key(0))[0]

    @jax.jit
    def look(keys, signal):
        def one(key):
            s, a, n = jax.random.split(key, 3)
            states = jax.random.randint(s, (rows,), 0, num_states)
            actions = jax.random.randint(a, (rows,), 0, 2)
            advantages = signal * (2.0 * actions - 1.0) + jax.random.normal(n, (rows,))
            batch = table_batch(states, actions, advantages, groups)
            fit = cross_fit(update, policy_fn, theta, batch, Layout(8, 1))
            return fit.insample, fit.across.mean

        return jax.vmap(one)(keys)

    def mean_of_many(signal):
        found = np.array(look(jax.random.split(jax.random.key(1), 60), signal))
        return found.mean(axis=1), found.std(axis=1) / 60**0.5

    (insample, across), (_, error) = mean_of_many(0.0)
    assert insample > 20 * error
    assert abs(across) < 3 * error
    (insample, across), (_, error) = mean_of_many(1.0)
    assert insample > across > 5 * error


def gradient_law(old):
    """The exact gradient at the uniform policy, and the trace of one row's covariance."""
    law = np.asarray(old.visits / old.visits.sum())[:, None] * old.policy
    score = np.eye(3)[None] - old.policy[:, None, :]
    rowwise = np.zeros((6, 3, 6, 3))
    for s in range(6):
        rowwise[s, :, s] = old.advantages[s][:, None] * score[s]
    flat, weights = rowwise.reshape(18, 18), law.reshape(-1)
    truth = weights @ flat
    return truth, weights @ np.sum(flat**2, axis=1) - truth @ truth


def test_groups_of_different_sizes_tell_the_same_noise_as_equal_ones(pair):
    """Episodes of a single environment: the first and the last are cut short by the rollout."""
    _, old, _ = pair
    theta, rows, count = jnp.zeros((6, 3)), 48, 16
    groups = np.repeat(np.arange(count), np.tile([5, 1], count // 2))

    @jax.jit
    @jax.vmap
    def look(key):
        batch = draw_rows(old, key, groups)

        def part(group):
            return batch._replace(weights=1.0 * (batch.groups == group))

        return gradient_noise(policy_fn, theta, part, count, AllRows()).cosine

    truth, trace = gradient_law(old)
    expected = 1.0 / (1.0 + trace / (truth @ truth) / rows)
    assert 0.5 < expected < 0.99
    found = look(jax.random.split(jax.random.key(0), 1000))
    np.testing.assert_allclose(np.median(found), expected, atol=0.03)


@pytest.mark.parametrize("used", [0, 1])
def test_fewer_than_two_groups_tell_no_noise(pair, used):
    _, old, _ = pair
    batch = draw_rows(old, jax.random.key(0), np.repeat(np.arange(4), 3))

    def part(group):
        return batch._replace(weights=1.0 * ((batch.groups == group) & (group < used)))

    noise = gradient_noise(policy_fn, jnp.zeros((6, 3)), part, 4, AllRows())
    assert np.isnan(noise.cosine)
    assert np.isnan(noise.noise_scale)


def test_the_norms_of_the_gradient_are_unbiased_and_the_cosine_is_that_of_two_batches(pair):
    _, old, _ = pair
    theta, rows, groups = jnp.zeros((6, 3)), 512, 16
    truth, trace = gradient_law(old)

    @jax.jit
    @jax.vmap
    def look(key):
        batch = draw_rows(old, key, jnp.arange(rows) // (rows // groups))
        parted = jax.tree.map(
            lambda leaf: leaf.reshape(groups, rows // groups, *leaf.shape[1:]),
            batch._replace(return_scale=None),
        )

        def part(group):
            return jax.tree.map(lambda leaf: leaf[group], parted)._replace(
                return_scale=batch.return_scale
            )

        def gradient(batch):
            objective = lambda x: jnp.mean(  # noqa: E731
                policy_fn(x, batch.inputs).log_prob(batch.actions) * batch.advantages
            )
            return ravel_pytree(jax.grad(objective)(theta))[0]

        each = jax.vmap(lambda group: gradient(part(group)))(jnp.arange(groups))
        norms = unbiased_norms(
            jnp.mean(jnp.sum(each**2, axis=1)),
            jnp.sum(jnp.mean(each, axis=0) ** 2),
            rows / groups,
            rows,
        )
        noise = gradient_noise(policy_fn, theta, part, groups, AllRows())
        return norms, jnp.mean(each, axis=0), noise

    norms, gradients, noise = look(jax.random.split(jax.random.key(0), REPEATS))
    for found, exact in zip(norms, (truth @ truth, trace), strict=True):
        assert abs(np.mean(found) - exact) < 4 * np.std(found) / REPEATS**0.5
    unit = np.asarray(gradients) / np.linalg.norm(gradients, axis=1, keepdims=True)
    measured = np.mean(np.sum(unit[::2] * unit[1::2], axis=1))
    exact = 1 / (1 + trace / (truth @ truth) / rows)
    assert abs(measured - exact) < 0.05
    assert abs(np.median(noise.cosine) - exact) < 0.05
    scale = np.median(noise.noise_scale)
    assert abs(scale / (trace / (truth @ truth)) - 1) < 0.2


def states_of(law, key, rows=512, groups=8):
    states = jax.random.choice(key, len(law), shape=(rows // groups, groups), p=jnp.asarray(law))
    rollout = rollout_with(jnp.zeros(states.shape))
    return sample_states(jax.nn.one_hot(states, len(law)), rollout, key, AllRows())


@pytest.mark.thorough
@pytest.mark.parametrize("distance", [0.0, 0.2, 0.6, 1.0])
def test_the_shift_of_visits_is_below_the_exact_one_and_near_it_where_it_is_large(distance):
    law = np.full(10, 0.1)
    moved = law + distance * np.repeat([0.1, -0.1], 5)
    exact = 0.5 * np.abs(moved - law).sum()
    key = jax.random.key(7)

    @jax.jit
    @jax.vmap
    def look(key):
        a, b, c = jax.random.split(key, 3)
        return visitation_shift(states_of(law, a), states_of(moved, b), c)

    with well_built():
        found = look(jax.random.split(key, 100))
    error = np.std(found.bound) / 100**0.5
    assert np.mean(found.bound) < exact + 3 * error
    assert np.mean(found.bound) > 0.85 * exact - 0.06
    assert abs(np.mean(found.null)) < 0.02


def test_states_that_change_with_time_show_in_the_null_too():
    time = jnp.broadcast_to(jnp.arange(128.0)[:, None, None], (128, 8, 1))
    rollout = rollout_with(np.zeros((128, 8)))
    first = sample_states(time, rollout, jax.random.key(0), AllRows())
    second = sample_states(time + 128, rollout, jax.random.key(1), AllRows())
    found = visitation_shift(first, second, jax.random.key(2))
    assert found.bound > 0.9
    assert found.null > 0.9
    # The null is of the rollout before, whatever the newest one does.
    still = sample_states(0 * time, rollout, jax.random.key(1), AllRows())
    assert visitation_shift(first, still, jax.random.key(2)).null > 0.9
    assert visitation_shift(still, first, jax.random.key(2)).null < 0.1


def test_the_shift_is_unknown_before_there_are_states_of_a_rollout_before():
    rows = jax.random.normal(jax.random.key(0), (16, 8, 2))
    states = sample_states(rows, rollout_with(np.zeros((16, 8))), jax.random.key(1), AllRows())
    for known in (False, True):
        found = shift_metrics(states, states, jax.random.key(2), known=jnp.array(known))
        assert set(found) == {"lens/visitation_shift", "lens/visitation_null"}
        assert all(np.isfinite(value) == known for value in found.values())


def test_states_without_a_second_group_cannot_be_separation_on_held_out_ones():
    rows = jnp.zeros((8, 1, 1))
    one_episode = rollout_with(np.zeros((8, 1)))
    states = sample_states(rows, one_episode, jax.random.key(0), AllRows())
    assert len(states.groups) == NUM_STATES
    assert np.isnan(visitation_shift(states, states, jax.random.key(0)).bound)


def test_the_filters_band_covers_the_slope_that_made_the_gains():
    """Gains of the filter's own model: what is noise in one is taken back by the next."""
    updates, deviation, promised, kl = 60, 3.0, 1.0, 0.02

    @jax.jit
    @jax.vmap
    def look(key):
        u_key, noise_key, drift_key, model_key = jax.random.split(key, 4)
        u = PRIOR_U * (1.0 + jax.random.normal(u_key))
        noise = deviation * jax.random.normal(noise_key, (updates + 1,))
        drifts = DRIFT * PRIOR_U * jax.random.normal(drift_key, (updates,))
        rest = GAIN_NOISE * promised * jax.random.normal(model_key, (updates,))

        def step(carry, i):
            u, state = carry
            gain = promised * (1.0 - u * kl**0.5) + rest[i] + noise[i + 1] - noise[i]
            estimate = Estimate(gain, jnp.asarray(2 * deviation**2), jnp.asarray(7.0))
            state = filter_gain(state, estimate, jnp.asarray(promised), jnp.asarray(kl))
            return (u + drifts[i], state), None

        (u, state), _ = jax.lax.scan(step, (u, start_filter()), jnp.arange(updates))
        ratio, error = filtered_ratio(state, jnp.asarray(kl))
        return ratio, error, 1.0 - u * kl**0.5

    ratio, error, truth = map(np.asarray, look(jax.random.split(jax.random.key(0), REPEATS)))
    assert LOW <= covers(ratio - 1.96 * error, ratio + 1.96 * error, truth) <= HIGH
    before = PRIOR_U * kl**0.5
    assert np.mean(error) < 0.6 * before


def test_a_filter_that_learns_nothing_says_what_was_expected_before():
    state = start_filter()
    blind = filter_gain(
        state,
        Estimate(jnp.asarray(5.0), jnp.asarray(jnp.nan), jnp.asarray(1.0)),
        jnp.asarray(1.0),
        jnp.asarray(0.01),
    )
    assert blind.u == state.u
    np.testing.assert_allclose(filtered_ratio(state, jnp.asarray(0.03))[0], 0.5, rtol=1e-6)
    lost = filter_gain(
        state,
        Estimate(jnp.asarray(jnp.nan), jnp.asarray(1.0), jnp.asarray(1.0)),
        jnp.asarray(jnp.nan),
        jnp.asarray(jnp.nan),
    )
    assert np.isfinite(np.concatenate([np.ravel(leaf) for leaf in lost])).all()


def test_gains_below_the_promise_lower_the_expected_ratio_and_gains_at_the_promise_raise_it():
    ratios = []
    for kept in (0.0, 0.5, 1.0):
        state = start_filter()
        for _ in range(80):
            gain = Estimate(jnp.asarray(kept), jnp.asarray(0.02), jnp.asarray(7.0))
            state = filter_gain(state, gain, jnp.asarray(1.0), jnp.asarray(0.01))
        ratios.append(float(filtered_ratio(state, jnp.asarray(0.01))[0]))
    np.testing.assert_allclose(ratios, [0.0, 0.5, 1.0], atol=0.05)


def test_an_update_whose_gain_is_unknown_says_nothing_about_the_others():
    kl, promised = jnp.asarray(0.01), jnp.asarray(10.0)
    state, told = start_filter(), []
    for known in (True,) * 6 + (False,) * 3 + (True,) * 6:
        # Every promise is kept in full; a gain that cannot be told may be anything.
        gain = Estimate(
            jnp.asarray(10.0 if known else -40.0),
            jnp.asarray(1.0 if known else jnp.nan),
            jnp.asarray(7.0),
        )
        state = filter_gain(state, gain, promised, kl)
        told.append(float(filtered_ratio(state, kl)[0]))
    assert np.all(np.diff(told) > -1e-3)
    assert told[-1] > 0.95
    np.testing.assert_allclose(told[6:9], told[5], atol=1e-6)


def test_the_ratio_starts_anew_with_the_first_cross_fit_so_that_noise_is_not_blamed_on_distance():
    state, kl = start_filter(), jnp.asarray(0.03)
    gain = Estimate(jnp.asarray(1.0), jnp.asarray(0.01), jnp.asarray(7.0))
    for _ in range(10):
        # A tenth of the promise is signal, which nothing says yet: the rest looks like shift.
        state = filter_gain(state, gain, jnp.asarray(10.0), kl)
    assert filtered_ratio(state, kl)[0] < 0.2
    state = take_in_cross_fit(state, jnp.asarray(10.0), jnp.asarray(1.0))
    jax.tree.map(np.testing.assert_array_equal, state[:4], start_filter()[:4])
    for _ in range(10):
        state = filter_gain(state, gain, jnp.asarray(10.0), kl)
    before = filtered_ratio(state, kl)[0]
    np.testing.assert_allclose(before, 1.0, atol=0.1)
    again = take_in_cross_fit(state, jnp.asarray(10.0), jnp.asarray(1.0))
    np.testing.assert_array_equal(filtered_ratio(again, kl)[0], before)


def test_the_signal_share_is_unknown_before_the_first_cross_fit_and_a_share_afterwards():
    state = start_filter()
    assert np.isnan(signal_share(state))
    half = take_in_cross_fit(state, jnp.asarray(4.0), jnp.asarray(2.0))
    np.testing.assert_allclose(signal_share(half), 0.5)
    none = take_in_cross_fit(state, jnp.asarray(4.0), jnp.asarray(-2.0))
    assert signal_share(none) == 0.0
    same = take_in_cross_fit(half, jnp.asarray(jnp.nan), jnp.asarray(1.0))
    np.testing.assert_array_equal(signal_share(same), signal_share(half))


def test_one_group_has_a_mean_and_no_interval():
    one = mean_of(GroupSums(jnp.array([6.0, 0.0]), jnp.array([3.0, 0.0])))
    found = interval_of(one)
    assert float(found.mean) == 2.0
    assert np.isnan(found.low)
    assert np.isnan(found.high)


def test_dummy_rows_count_nowhere():
    rows = jnp.array([[1.0, jnp.nan], [3.0, 5.0]])
    valid = jnp.array([[True, False], [True, True]])
    groups = jnp.array([[0, 1], [0, 1]])
    sums = sum_by_group(rows, valid, groups, 2)
    np.testing.assert_array_equal(sums.totals, [4.0, 5.0])
    np.testing.assert_array_equal(sums.weights, [2.0, 1.0])


def test_the_error_of_a_difference_is_that_of_both_sides():
    a = Estimate(jnp.asarray(3.0), jnp.asarray(4.0), jnp.asarray(5.0))
    b = Estimate(jnp.asarray(1.0), jnp.asarray(1.0), jnp.asarray(5.0))
    both = combine(a, b, 2.0, -2.0)
    assert float(both.mean) == 4.0
    assert float(both.variance) == 20.0
    np.testing.assert_allclose(both.freedom, 20.0**2 / (16.0**2 / 5 + 4.0**2 / 5), rtol=1e-6)


def rollout_with(ends):
    ends = jnp.asarray(ends, bool)
    no = jnp.zeros_like(ends)
    rows = jnp.zeros(ends.shape)
    return Rollout(rows, rows, None, rows, rows, ends, no, (), jnp.zeros(0, int), ~no)


def test_groups_are_environments_or_the_episodes_of_a_single_one():
    many = groups_of(rollout_with(np.zeros((3, 2))))
    np.testing.assert_array_equal(many, [[0, 1], [0, 1], [0, 1]])
    one = groups_of(rollout_with(np.array([[0], [1], [0], [1], [0]])))
    np.testing.assert_array_equal(one[:, 0], [0, 0, 1, 1, 0])
    short = groups_of(rollout_with(np.ones((10, 1))))
    np.testing.assert_array_equal(short[:, 0], np.arange(10) % EPISODE_GROUPS)


@pytest.mark.parametrize(("num_envs", "blocks"), [(4, 1), (1, 1), (8, 2)])
def test_the_noise_of_a_batch_is_that_of_its_environments_or_episodes(num_envs, blocks, pair):
    """Rows go by time and environment: a slice that took the wrong ones would mix the groups."""
    _, old, _ = pair
    theta, count = jnp.zeros((6, 3)), 4 if num_envs > 1 else EPISODE_GROUPS
    access = rows_in(blocks)
    groups = jnp.arange(64).reshape(-1, num_envs) % num_envs
    if num_envs == 1:
        groups = jnp.arange(64).reshape(-1, 1) // 16
    batch = draw_rows(old, jax.random.key(3), access.flatten(groups))
    found = noise_metrics(policy_fn, theta, batch, Layout(num_envs, blocks), access)
    centred = batch._replace(advantages=batch.advantages - jnp.mean(batch.advantages))

    def part(group):
        # With blocks a group has an environment of each.
        own = batch.groups % (num_envs // blocks) if num_envs > 1 else batch.groups
        return centred._replace(weights=1.0 * (own == group))

    masked = gradient_noise(policy_fn, theta, part, count, AllRows())
    np.testing.assert_allclose(found["lens/noise_scale"], masked.noise_scale, rtol=1e-4)
    np.testing.assert_allclose(found["lens/expected_cosine"], masked.cosine, rtol=1e-4, atol=1e-6)


def test_the_filter_is_kalmans():
    """Against the textbook, two states, one observation of the first: the sum of the gains."""
    rng, state = np.random.default_rng(0), start_filter()
    mean, spread, total = np.array([0.0, PRIOR_U]), np.diag([0.0, PRIOR_U**2]), 0.0
    for k in range(6):
        promise, root, gain, variance = 1.0 + k, 0.1 + 0.02 * k, rng.normal(), 0.5 + k
        spread[0, 0] += 0.5 * variance if k == 0 else 0.0
        move = np.array([[1.0, -promise * root], [0.0, 1.0]])
        noise = np.diag([(GAIN_NOISE * promise) ** 2, (DRIFT * PRIOR_U) ** 2])
        mean, spread = move @ mean + [promise, 0.0], move @ spread @ move.T + noise
        total += gain
        weight = spread[:, 0] / (spread[0, 0] + 0.5 * variance)
        mean = mean + weight * (total - mean[0])
        spread = spread - np.outer(weight, spread[0])
        found = Estimate(jnp.asarray(gain), jnp.asarray(variance), jnp.asarray(7.0))
        state = filter_gain(state, found, jnp.asarray(promise), jnp.asarray(root**2))
        np.testing.assert_allclose([state.level, state.u], mean, rtol=1e-4)
        np.testing.assert_allclose(state.covariance, spread, rtol=1e-3, atol=1e-5)


def test_the_explained_variance_is_of_the_returns_that_followed():
    rng = np.random.default_rng(0)
    rewards, here = rng.normal(size=(2, 6, 2)).astype(np.float32)
    after = np.concatenate([here[1:], rng.normal(size=(1, 2)).astype(np.float32)])
    ended, cut = np.zeros((2, 6, 2), bool)
    ended[2, 0] = cut[3, 1] = True
    after[3, 1] = 5.0
    returns, onwards = np.zeros((6, 2)), after[-1]
    for i in reversed(range(6)):
        onwards = np.where(ended[i], 0.0, np.where(cut[i], after[i], onwards))
        onwards = rewards[i] + 0.9 * onwards
        returns[i] = onwards
    expected = 1.0 - np.var(returns - here) / np.var(returns)
    rollout = rollout_with(ended)._replace(truncated=jnp.asarray(cut))
    settings = SimpleNamespace(train=SimpleNamespace(gamma=0.9))
    values = (jnp.asarray(here), jnp.asarray(after))
    found = fresh_explained_variance(settings, rollout, jnp.asarray(rewards), values, AllRows())
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_quantiles_are_of_rows_of_every_environment():
    for num_envs in (1, 2, 3, 4, 6, 10, 14, 30, 100):
        for num_steps in (128, 256, 500, 512, 2048):
            by_env = jnp.arange(num_envs * num_steps) % num_envs
            shares = np.bincount(np.asarray(some_rows(by_env)), minlength=num_envs)
            assert shares.max() - shares.min() <= 1, (num_envs, num_steps)
            assert min(len(by_env), 200) <= shares.sum() <= 1024
    rows = 2048
    by_env = jnp.arange(rows, dtype=jnp.float32) % 4
    found = _quantiles(by_env, by_env, jnp.ones(rows), jnp.ones(rows, bool))
    assert found["policy/log_ratio_good_p10"] == 0.0
    assert found["policy/log_ratio_good_p90"] == 3.0
    assert np.isnan(found["policy/log_ratio_bad_p50"])
