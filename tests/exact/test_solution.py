"""Exact quantities: what an end is, and that the unit of the rewards does not matter."""

import numpy as np
import pytest

from surefoot.exact import (
    LinearSoftmax,
    StartingPoint,
    StepSizes,
    TabularSoftmax,
    UpdatePath,
    corridor,
    find_mdp,
    find_rule,
    gap_bounds,
    make_mdp,
    optimal_policy,
    random_mdp,
    solve,
    starting_point,
    updated,
    visitation_tv,
)


def with_ends(seed, count):
    """A random MDP with `count` terminal states, and two policies on it, solved."""
    rng, base = np.random.default_rng(seed), random_mdp(seed, num_states=8)
    mdp = make_mdp(
        base.transitions, base.rewards, gamma=0.9, start=base.start, terminal=np.arange(8) < count
    )
    return [solve(mdp, rng.dirichlet(np.ones(3), size=8)) for _ in range(2)]


def merged(solved, count):
    """The same with one terminal state in the place of all `count`."""
    mdp = solved.mdp
    P = np.concatenate(
        [mdp.transitions[..., :count].sum(axis=-1, keepdims=True), mdp.transitions[..., count:]],
        axis=-1,
    )[count - 1 :]
    start = np.append(mdp.start[:count].sum(), mdp.start[count:])
    rewards, terminal = mdp.rewards[count - 1 :], mdp.terminal[count - 1 :]
    one = make_mdp(P, rewards, gamma=0.9, start=start, terminal=terminal)
    return solve(one, solved.policy[count - 1 :])


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ends_told_apart_and_ends_merged_give_the_same_shift_and_the_same_bounds(seed, count):
    old, new = with_ends(seed, count)
    old_merged, new_merged = (merged(each, count) for each in (old, new))
    assert visitation_tv(old, new) == pytest.approx(
        visitation_tv(old_merged, new_merged), abs=1e-12
    )
    apart, together = gap_bounds(old, new), gap_bounds(old_merged, new_merged)
    assert apart == pytest.approx(together, rel=1e-9)
    promised, realised = old.gains(new)
    assert abs(realised - promised) <= apart["B1"] + 1e-12


def test_holes_and_the_goal_of_frozen_lake_are_one_end():
    start = starting_point(find_mdp("FrozenLake-v1", {}))
    new = updated(start, "trpo")
    shift = new.visits - start.old.visits
    ends = start.mdp.terminal
    assert visitation_tv(start.old, new) == pytest.approx(0.0017, abs=5e-5)
    # Where an episode ended had counted as a state that is visited ever after.
    assert 0.005 * np.abs(shift).sum() == pytest.approx(0.0168, abs=5e-5)
    assert np.abs(shift[ends]).sum() > 10 * abs(shift[ends].sum())


def start_in_units(unit, *, shared):
    rng, base = np.random.default_rng(3), random_mdp(3)
    mdp = base._replace(rewards=unit * base.rewards)
    if shared:
        return StartingPoint(mdp, LinearSoftmax(rng.normal(size=(6, 3, 2))), rng.normal(size=2))
    return StartingPoint(mdp, TabularSoftmax(), rng.normal(size=(6, 3)))


RULES = [(rule, shared) for rule in ("npg", "trpo", "ppo", "ppo-kl") for shared in (False, True)]


@pytest.mark.parametrize("unit", [1e-20, 1e-14, 1e12])
@pytest.mark.parametrize(("rule", "shared"), [*RULES, ("cpi", False), ("pi", False)])
def test_an_update_does_not_depend_on_the_unit_of_the_rewards(unit, rule, shared):
    policies, kept = [], []
    for each in (1.0, unit):
        start = start_in_units(each, shared=shared)
        # ppo-kl's weight is in the unit of rewards per nat.
        new = updated(start, rule, StepSizes(kl_coef=0.3 * each))
        policies.append(new.policy)
        path = UpdatePath(start.old, new)
        promised, realised = start.old.gains(new)
        assert path.promises
        kept.append((realised / promised, path.landmarks.half, path.landmarks.best))
    assert np.abs(policies[0] - start.old.policy).max() > 1e-3
    np.testing.assert_allclose(policies[1], policies[0], atol=1e-6)
    assert kept[1][0] == pytest.approx(kept[0][0], rel=1e-4)


@pytest.mark.parametrize("unit", [1e-20, 1e-14, 1e12])
def test_the_optimum_and_the_landmarks_do_not_depend_on_the_unit_of_the_rewards(unit):
    for mdp in (random_mdp(1), find_mdp("FrozenLake-v1", {})):
        scaled = mdp._replace(rewards=unit * mdp.rewards)
        np.testing.assert_array_equal(optimal_policy(scaled), optimal_policy(mdp))
    plain, small = (
        UpdatePath(start.old, updated(start, "trpo")).landmarks
        for mdp in (corridor(), corridor()._replace(rewards=unit * corridor().rewards))
        for start in (starting_point(mdp),)
    )
    assert small == pytest.approx(plain, rel=1e-4)


def test_constant_rewards_of_any_size_are_nothing_to_gain():
    for unit in (1e-20, 1e-14, 1.0, 1e12):
        for shared in (False, True):
            start = start_in_units(1.0, shared=shared)
            flat = start.mdp._replace(rewards=np.full((6, 3), 1.7 * unit))
            start = StartingPoint(flat, start.family, start.theta)
            for rule in ("npg", "trpo", "ppo"):
                theta = find_rule(rule)(start, StepSizes())
                np.testing.assert_allclose(start.family.policy(theta), start.old.policy, atol=1e-9)
