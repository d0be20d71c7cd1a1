"""What an update gained where episodes end: on simulated rollouts, against exact returns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.lens_coverage import GAMMA, World, coverage, rollout_of, simulate
from surefoot.analysis.probe.rows import episode_ages
from surefoot.diagnostics.episodes import episode_rows
from surefoot.diagnostics.groups import EpisodeSums, GroupSums, mean_by_group, mean_of
from surefoot.diagnostics.lens import realised_gain

LOW, HIGH = 0.93, 0.97


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.1, 0.5]), st.sampled_from([0.9, 0.99, 1]))
def test_ages_are_those_of_a_loop_and_shares_of_an_episode_add_up_to_one(seed, ends, gamma):
    rng = np.random.default_rng(seed)
    ended = rng.random((40, 3)) < ends
    terminated = ended & (rng.random((40, 3)) < 0.5)
    # A dummy row follows an end, as in next-step autoreset.
    valid = ~np.concatenate([np.zeros((1, 3), bool), ended[:-1]]) | (rng.random((40, 3)) < 0.5)
    ended &= valid
    terminated &= valid
    start = rng.integers(0, 9, 3)
    found, after = episode_rows(
        rollout_of(terminated, ended & ~terminated, valid), jnp.asarray(start, jnp.int32), gamma
    )
    ages, episodes, last = episode_ages(ended, valid, start)
    np.testing.assert_array_equal(after, last)
    np.testing.assert_allclose(found.discounts, np.where(valid, gamma**ages, 0.0), rtol=1e-4)
    np.testing.assert_array_equal(found.begins, valid & (ages == 0))
    for number in np.unique(episodes):
        rows = (episodes == number) & valid
        if (ended & rows).any() and (np.asarray(found.begins) & rows).any():
            assert np.sum(np.asarray(found.shares)[rows]) == pytest.approx(1.0, rel=1e-4)


def test_where_episodes_never_end_all_rows_count_alike():
    never = np.zeros((50, 2), bool)
    rollout = rollout_of(never, never, ~never)
    found, after = episode_rows(rollout, jnp.full(2, 10**6, jnp.int32), GAMMA)
    assert len(np.unique(found.discounts)) == 1
    assert float(jnp.sum(found.discounts) / jnp.sum(found.shares)) == pytest.approx(100.0, rel=1e-3)
    np.testing.assert_array_equal(after, 10**6 + 50)


QUALITIES = [
    pytest.param(1.0, id="exact", marks=pytest.mark.thorough),
    pytest.param(0.5, id="half", marks=pytest.mark.thorough),
    pytest.param(0.0, id="nothing"),
]


@pytest.mark.thorough
@pytest.mark.parametrize("quality", QUALITIES)
@pytest.mark.parametrize(
    "kind",
    ["ends, rewards above 0", "ends, rewards below 0"],
)
@pytest.mark.parametrize(
    ("num_envs", "num_steps"),
    [(8, 512), (1, 2048)],
    ids=["environments", "one"],
)
def test_the_interval_covers_the_exact_gain_where_episodes_end(kind, quality, num_envs, num_steps):
    cell = coverage(kind, quality=quality, num_envs=num_envs, num_steps=num_steps)
    assert cell.known >= 0.93
    assert LOW <= cell.held <= HIGH


@pytest.mark.thorough
def test_the_parts_of_episodes_at_both_ends_of_a_rollout_do_not_widen_the_interval():
    cell = coverage("a time limit", quality=0.0, num_envs=1, num_steps=2048)
    assert cell.known == 1.0
    assert LOW <= cell.held <= HIGH


@pytest.mark.thorough
def test_environments_that_a_time_limit_keeps_in_step_have_no_interval_and_others_do():
    size = {"quality": 0.5, "num_envs": 16, "num_steps": 128, "repeats": 400}
    assert coverage("a time limit", **size).known == 0.0
    assert coverage("no end", **size).known == 0.0
    cell = coverage("a time limit", staggered=True, **size)
    assert cell.known > 0.95
    assert cell.held >= LOW


@pytest.mark.thorough
def test_without_a_critic_a_gain_has_an_interval_only_where_episodes_fit_into_rollouts():
    size = {"quality": 0.0, "num_envs": 16, "repeats": 400}
    assert coverage("a time limit", num_steps=64, staggered=True, **size).known < 0.05
    assert coverage("ends, rewards above 0", num_steps=1024, **size).known > 0.9


def test_episodes_that_began_before_a_rollout_are_told_from_others():
    ends = jnp.zeros((4, 3), bool).at[1, 0].set(True).at[0, 1].set(True).at[3, 1].set(True)
    rows, _ = episode_rows(rollout_of(ends, jnp.zeros_like(ends), ~jnp.zeros_like(ends)),
                           jnp.array([0, 7, 1]), 0.9)  # fmt: skip
    np.testing.assert_array_equal(rows.carried.T, [[False] * 4, [True, *[False] * 3], [True] * 4])
    shares = np.asarray(rows.shares)
    wanted = (shares[0, 1] + shares[:, 2].sum()) / shares.sum()
    assert float(rows.carried_share) == pytest.approx(wanted, rel=1e-5)


def test_a_reward_of_one_a_step_and_no_critic_gain_what_longer_episodes_gain():
    """One state: an action ends the episode with probability 0.5, the other one with 0.05."""
    world = World(np.ones((1, 2, 1)), np.ones((1, 2)), np.array([[0.5, 0.05]]), np.ones(1))
    gain = world.gain(np.array([0.5]), np.array([1.0]), np.zeros(1))
    closed = [1 / (1 - GAMMA * (0.5 + 0.45 * p)) for p in (0.5, 1.0)]
    assert gain == pytest.approx(closed[1] - closed[0], rel=1e-6)
    shape, key = (1, 64), jax.random.key(0)
    state, age, sums = jnp.zeros(shape, int), jnp.zeros(shape, jnp.int32), []
    # The first is left out: there all environments begin together.
    for index, p in enumerate((0.5, 0.5, 1.0)):
        chosen = jnp.array([p])
        state, age, (found, _) = simulate(
            world, chosen, jnp.zeros(1), state, age, jax.random.fold_in(key, index), 2000
        )
        sums.append(jax.tree.map(lambda leaf: leaf[0], found))
    found = realised_gain(*sums[1:]).estimate
    assert float(found.mean) == pytest.approx(gain, abs=4 * float(found.variance) ** 0.5)
    assert float(found.variance) ** 0.5 < 0.5


def test_groups_of_unequal_weight_tell_as_much_as_fewer_of_equal_weight():
    equal = mean_of(GroupSums(jnp.arange(8.0), jnp.full(8, 3.0)))
    assert int(equal.freedom) == 7
    weights = jnp.array([8.0, 4.0, 2.0, 1.0, 1.0])
    unequal = mean_of(GroupSums(jnp.arange(5.0), weights))
    assert float(unequal.freedom) == pytest.approx(16.0**2 / 86.0 - 1.0, rel=1e-3)


def test_a_gain_is_known_as_well_as_the_side_of_fewer_equal_groups():
    def sums(shares):
        return EpisodeSums(jnp.arange(5.0), jnp.asarray(shares), jnp.asarray(shares))

    even, uneven = sums([2.0] * 5), sums([2.0, 1.5, 1.0, 1.0, 0.5])
    fewer = 6.0**2 / 8.5 - 1.0
    for pair in ((even, uneven), (uneven, even)):
        assert float(realised_gain(*pair).estimate.freedom) == pytest.approx(fewer, rel=1e-3)


def test_what_a_group_makes_of_a_mean_is_what_leaving_it_out_changes():
    rng = np.random.default_rng(0)
    totals, weights = rng.normal(size=50), rng.uniform(0.9, 1.1, 50)
    sums = GroupSums(jnp.asarray(totals), jnp.asarray(weights))
    found = np.asarray(mean_by_group(sums))
    assert found.mean() == pytest.approx(float(mean_of(sums).mean), rel=1e-5)
    without = (totals.sum() - totals) / (weights.sum() - weights)
    jackknife = 50 * totals.sum() / weights.sum() - 49 * without
    np.testing.assert_allclose(found, jackknife, atol=0.02)


WHOLE = [1.1, 0.9, 1.2, 0.8, 1.0, 1.0]
"""Episodes by their rows' shares, of which one began in each environment."""


@pytest.mark.parametrize(
    "episodes",
    [[0.5] * 6, [1.5, 1.4, 1.6, 1.5, 1.4, 1.6], [6.0, 0.01, 0.01, 0.01, 0.01, 0.01], [1.0, 1.0]],
    ids=["more begin", "fewer begin", "one environment has all", "two environments"],
)
@pytest.mark.parametrize("side", ["before", "after"])
def test_a_gain_has_no_interval_where_one_rollout_does_not_stand_for_episodes(episodes, side):
    def sums(shares):
        count, shares = len(episodes), jnp.asarray(shares[: len(episodes)])
        begun = jnp.ones(count) if len(set(episodes)) > 1 or count == 6 else shares
        return EpisodeSums(jnp.arange(count) * 1.0, shares, begun)

    whole, part = sums(WHOLE), sums(episodes)
    before, after = (part, whole) if side == "before" else (whole, part)
    found = realised_gain(before, after)
    assert np.isnan(found.estimate.variance)
    assert np.isfinite(found.estimate.mean)
    if len(episodes) == 6:
        assert np.isfinite(realised_gain(whole, whole).estimate.variance)
