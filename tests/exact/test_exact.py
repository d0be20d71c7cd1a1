"""Exact quantities and updates: known figures, input validation, updates against closed forms.

The identities of docs/theory.md on random MDPs are in test_laws.py, exact trpo against SLSQP (I19)
and exact ppo against a linear program (I29) among them.
"""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, special

from surefoot.config.settings import NPG, TRPO
from surefoot.errors import ConfigError
from surefoot.exact import (
    LinearSoftmax,
    StartingPoint,
    StepSizes,
    TabularSoftmax,
    corridor,
    find_mdp,
    find_rule,
    fisher_matrix,
    gap_bounds,
    guaranteed_returns,
    kl_per_state,
    learning_curve,
    make_mdp,
    optimal_policy,
    random_mdp,
    report_update,
    ridge,
    solve,
    starting_point,
    time_limited_optimum,
    time_limited_return,
    update_path,
    updated,
)
from surefoot.exact.practice import policy_fn, table_batch, training_update
from surefoot.formulas.clipping import clipped_gains
from surefoot.formulas.conjugate_gradient import fisher_vector_product
from surefoot.formulas.distributions import Categorical
from surefoot.formulas.surrogate import likelihood_ratio, surrogate, weighted_mean
from surefoot.formulas.trust_region import mean_kl

PARAMETER_RULES = ("vpg", "npg", "trpo", "ppo-kl", "ppo")


def going_right(mdp, p):
    """The policy that goes right with probability p in every state."""
    return np.tile([1.0 - p, p], (mdp.num_states, 1))


def bernoulli_kl(p, q):
    return p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))


def random_start(seed, *, shared, gamma=0.9):
    mdp, rng = random_mdp(seed, gamma=gamma), np.random.default_rng(seed)
    if shared:
        return StartingPoint(
            mdp, LinearSoftmax(rng.normal(size=(6, 3, 4))), 0.5 * rng.normal(size=4)
        )
    return StartingPoint(mdp, TabularSoftmax(), rng.normal(size=(6, 3)))


def kl_of(old, policy):
    """Mean KL, by scipy."""
    return float(old.weights @ special.rel_entr(old.policy, policy).sum(axis=1))


def path_of(mdp, rule, **sizes):
    return update_path(starting_point(mdp), find_rule(rule), StepSizes(**sizes))


def test_exact_ppo_goes_over_the_edge_of_the_corridor():
    path = path_of(corridor(), "ppo")
    found = report_update(path)
    assert found.eta_old == pytest.approx(0.979, abs=1e-3)
    assert path.at(1.0)[:, 1] == pytest.approx(0.24, abs=1e-9)
    assert found.surrogate_new == pytest.approx(4.471, abs=1e-3)
    assert found.eta_new == pytest.approx(-4.052, abs=1e-3)
    assert found.promised_gain == pytest.approx(3.492, abs=1e-3)
    assert found.realised_gain == pytest.approx(-5.031, abs=1e-3)
    assert found.ratio_max == pytest.approx(4.8, abs=1e-6)
    assert found.kl_mean == pytest.approx(bernoulli_kl(0.05, 0.24), abs=1e-9)
    assert found.kl_mean == pytest.approx(0.134, abs=1e-3)


def test_the_corridors_edge_is_hardly_seen_before_and_often_after():
    mdp = corridor()
    before, after = (solve(mdp, going_right(mdp, p)) for p in (0.05, 0.24))
    np.testing.assert_allclose(before.advantages[:, 1], [0.93, 0.52, -8.1, -190], rtol=0.01)
    assert (1 - mdp.gamma) * before.visits[-1] == pytest.approx(1.0e-4, rel=0.05)
    assert (1 - mdp.gamma) * after.visits[-1] == pytest.approx(9.2e-3, rel=0.01)


def test_exact_trpo_stays_on_the_corridors_safe_side():
    path = path_of(corridor(), "trpo", max_kl=0.01)
    found = report_update(path)
    assert path.at(1.0)[:, 1] == pytest.approx(0.0869, abs=1e-4)
    assert found.kl_mean == pytest.approx(0.01, rel=1e-9)
    assert found.surrogate_new == pytest.approx(1.658, abs=1e-3)
    assert found.eta_new == pytest.approx(1.558, abs=1e-3)


@pytest.mark.parametrize("rule", ["ppo", "trpo", "npg"])
def test_the_landmarks_of_the_corridor_do_not_depend_on_the_step_that_finds_them(rule):
    found = report_update(path_of(corridor(), rule))
    assert found.best_eta == pytest.approx(1.767, abs=1e-3)
    assert found.best_kl == pytest.approx(0.0283, abs=1e-4)
    assert found.edge_of_trust_kl == pytest.approx(0.0368, abs=1e-4)
    assert found.break_even_kl == pytest.approx(0.0672, abs=1e-4)


@pytest.mark.parametrize(("B", "gamma"), [(2.0, 0.95), (0.0, 0.5), (9.0, 0.99)])
def test_the_ridges_return_is_its_closed_form_and_its_surrogate_a_straight_line(B, gamma):
    mdp = ridge(B=B, gamma=gamma)
    policies = np.linspace(0.0, 1.0, 21)
    etas = [solve(mdp, going_right(mdp, p)).eta for p in policies]
    closed = gamma * policies * (1 - (1 + B) * policies) / ((1 - gamma) * (1 + gamma * policies))
    np.testing.assert_allclose(etas, closed, rtol=1e-10, atol=1e-12)
    old = solve(mdp, going_right(mdp, 0.1))
    promises = [old.surrogate(going_right(mdp, p)) for p in policies]
    np.testing.assert_allclose(np.diff(promises, 2), 0.0, atol=1e-10 * mdp.horizon)


def test_the_ridges_figures_are_those_of_theory():
    path = path_of(ridge(), "trpo", max_kl=0.01)
    found, marks, old = report_update(path), path.landmarks, path.old
    assert found.eta_old == pytest.approx(1.215, abs=1e-3)
    assert found.eta_new == pytest.approx(1.371, abs=1e-3)
    assert found.best_eta == pytest.approx(1.373, abs=1e-3)
    assert found.best_kl == pytest.approx(0.0130, abs=1e-4)
    assert path.at(marks.best)[0, 1] == pytest.approx(0.155, abs=1e-3)
    assert found.edge_of_trust_kl == pytest.approx(0.0125, abs=1e-4)
    assert path.at(marks.broken)[0, 1] == pytest.approx(0.213, abs=1e-3)
    far = going_right(old.mdp, 0.4)
    assert old.surrogate(far) == pytest.approx(2.98, abs=0.01)
    assert solve(old.mdp, far).eta == pytest.approx(-1.10, abs=0.01)


# The table of docs/theory.md, "How far each bound certifies": gain, and the mean KL where it is.
CERTIFIED = {
    ("ridge", "B6"): (3.8e-4, 9.3e-8),
    ("ridge", "B2"): (3.8e-3, 9.2e-6),
    ("ridge", "B10"): (1.7e-2, 1.8e-4),
    ("ridge", "B11"): (2.8e-2, 4.6e-4),
    ("ridge", "truth"): (1.59e-1, 1.3e-2),
    ("corridor", "B6"): (2.8e-5, 9.6e-11),
    ("corridor", "B2"): (5.6e-4, 3.8e-8),
    ("corridor", "B10"): (2.1e-3, 5.5e-7),
    ("corridor", "B11"): (4.9e-2, 2.1e-4),
    ("corridor", "truth"): (7.9e-1, 2.8e-2),
}


@pytest.mark.parametrize(("name", "bound"), CERTIFIED)
def test_each_certificate_reaches_as_far_as_theory_says(name, bound):
    mdp, p_old = {"ridge": (ridge(), 0.1), "corridor": (corridor(), 0.05)}[name]
    old = solve(mdp, going_right(mdp, p_old))

    def gain(log_move):
        new = solve(mdp, going_right(mdp, p_old + np.exp(log_move)))
        return (new.eta if bound == "truth" else guaranteed_returns(old, new)[bound]) - old.eta

    grid = np.linspace(np.log(1e-7), np.log(0.3), 200)
    top = grid[int(np.argmax([gain(x) for x in grid]))]
    found = optimize.minimize_scalar(
        lambda x: -gain(x), bounds=(top - 0.1, top + 0.1), method="bounded"
    )
    most, kl = CERTIFIED[name, bound]
    # Two digits are given; at a flat top KL follows the square of the place.
    assert -found.fun == pytest.approx(most, rel=0.03)
    assert bernoulli_kl(p_old, p_old + np.exp(found.x)) == pytest.approx(kl, rel=0.1)


@pytest.mark.parametrize("gamma", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("alpha", [0.01, 0.1, 0.5])
def test_the_coupling_bound_is_attained_where_going_pays_once_and_costs_for_ever(alpha, gamma):
    X, P = 3.0, np.zeros((2, 2, 2))
    P[0, 0, 0] = P[0, 1, 1] = P[1, :, 1] = 1.0
    mdp = make_mdp(P, np.array([[0.0, X], [0.0, -X]]), gamma=gamma)
    old, new = (solve(mdp, going_right(mdp, p)) for p in (0.0, alpha))
    np.testing.assert_array_equal(old.advantages[:, 1], [X, -X])
    lie, bounds = old.surrogate(new.policy) - new.eta, gap_bounds(old, new)
    assert bounds["B9"] == pytest.approx(lie, rel=1e-10)
    slack = (1 - gamma * (1 - alpha)) / (1 - gamma)
    assert bounds["B2"] == pytest.approx(slack * lie, rel=1e-10)
    assert bounds["B5"] == pytest.approx(2 * slack * lie, rel=1e-10)


@pytest.mark.parametrize(("q", "ratio"), [(0.1, 2.8), (0.01, 20.8), (0.001, 200.8)])
def test_exact_ppo_bounds_neither_ratio_nor_kl(q, ratio):
    mdp = make_mdp(np.ones((1, 2, 1)), np.array([[0.0, 1.0]]), gamma=0.0)
    path = update_path(starting_point(mdp, p_old=q), find_rule("ppo"), StepSizes(clip_eps=0.2))
    found = report_update(path, clip_eps=0.2)
    assert found.ratio_max == pytest.approx(ratio, rel=1e-9)
    certain = np.array([[0.0, 1.0]])
    top = path.old.clipped(certain, clip_eps=0.2)
    assert top == pytest.approx(found.clipped_new, rel=1e-12)
    assert np.isinf(kl_per_state(path.old.policy, certain)).all()
    short = q * ratio - 1e-6
    assert path.old.clipped(np.array([[1 - short, short]]), clip_eps=0.2) < top


def good():
    return np.full((2, 2, 2), 0.5), np.zeros((2, 2))


def spoiled(which, index, value):
    tables = good()
    tables[which][index] = value
    return tables


@pytest.mark.parametrize(
    ("tables", "settings", "message"),
    [
        (spoiled(0, (1, 0, 1), 0.4), {}, r"transitions\[1, 0\] sums to 0.9; scale each row"),
        (spoiled(0, (1, 0, 1), -0.5), {}, r"transitions\[1, 0, 1\] is -0.5; give 0 or more"),
        (spoiled(0, (0, 1, 0), np.nan), {}, r"transitions\[0, 1, 0\] is nan; give 0 or more"),
        (spoiled(1, (1, 0), np.nan), {}, r"rewards\[1, 0\] is nan; give a finite number"),
        (spoiled(1, (0, 1), np.inf), {}, r"rewards\[0, 1\] is inf; give a finite number"),
        (good(), {"gamma": 1.0}, r"gamma is 1.0; give a discount in \[0, 1\)"),
        (good(), {"gamma": -0.1}, r"gamma is -0.1; give a discount in \[0, 1\)"),
        (good(), {"gamma": float("nan")}, r"gamma is nan; give a discount in \[0, 1\)"),
        (good(), {"start": np.array([0.5, 0.4])}, r"start sums to 0.9; scale it to sum to 1"),
        (good(), {"start": np.ones(3) / 3}, r"start has shape \(3,\); give \(2,\)"),
        (
            good(),
            {"terminal": np.array([True])},
            r"terminal has shape \(1,\); give \(2,\)",
        ),
        ((np.ones((2, 2)), np.zeros((2, 2))), {}, r"transitions have shape \(2, 2\); give \[state"),
        ((good()[0], np.zeros((2, 3))), {}, r"rewards have shape \(2, 3\); give \(2, 2\)"),
    ],
)
def test_an_invalid_table_is_refused_with_its_row_the_error_and_the_remedy(
    tables, settings, message
):
    with pytest.raises(ConfigError, match="mine: " + message):
        make_mdp(*tables, **({"gamma": 0.9, "name": "mine"} | settings))


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (np.full((2, 3), 1 / 3), r"the policy has shape \(2, 3\); give \(2, 2\)"),
        (np.array([[0.5, 0.5], [0.5, 0.6]]), r"policy\[1\] sums to 1.1; scale each row"),
        (np.array([[1.5, -0.5], [0.5, 0.5]]), r"policy\[0, 1\] is -0.5; give 0 or more"),
        (np.array([[np.nan, 0.5], [0.5, 0.5]]), r"policy\[0, 0\] is nan; give 0 or more"),
    ],
)
def test_an_invalid_policy_is_refused_with_its_row(policy, message):
    mdp = make_mdp(*good(), gamma=0.9, name="mine")
    with pytest.raises(ConfigError, match="mine: " + message):
        solve(mdp, policy)


def test_a_corridor_of_one_state_is_refused():
    with pytest.raises(ConfigError, match="m is 1; a corridor needs at least 2 states"):
        corridor(m=1)


def test_rewards_by_successor_are_averaged_and_nothing_happens_in_a_terminal_state():
    P, r = np.full((2, 2, 2), 0.5), np.zeros((2, 2, 2))
    P[0, 1], r[0, 1] = [0.25, 0.75], [4.0, 8.0]
    mdp = make_mdp(P, r + 1.0, gamma=0.9, terminal=np.array([False, True]))
    np.testing.assert_array_equal(mdp.rewards, [[1.0, 8.0], [0.0, 0.0]])
    np.testing.assert_array_equal(mdp.transitions[1], [[0.0, 1.0], [0.0, 1.0]])
    old = solve(mdp, going_right(mdp, 0.5))
    assert old.values[1] == 0.0
    np.testing.assert_array_equal(old.weights, [1.0, 0.0])


@pytest.mark.parametrize("max_kl", [1e-6, 0.01, 0.3])
@pytest.mark.parametrize("shared", [False, True])
def test_exact_trpo_ends_on_the_edge_of_its_radius(shared, max_kl):
    for seed in range(3):
        start = random_start(seed, shared=shared)
        old = start.old
        new = updated(start, "trpo", StepSizes(max_kl=max_kl)).policy
        assert kl_of(old, new) == pytest.approx(max_kl, rel=1e-6)
        assert old.surrogate(new) > old.eta


@pytest.mark.parametrize(("size", "seed"), [(1, 103), (2, 35), (3, 3)])
def test_exact_trpo_stays_inside_its_radius_where_a_state_is_never_visited(size, seed):
    rng, back = np.random.default_rng(seed), np.zeros((2, 2, 2))
    back[:, :, 0] = 1.0
    mdp = make_mdp(back, rng.normal(size=(2, 2)), gamma=0.9)
    start = StartingPoint(
        mdp, LinearSoftmax(3 * rng.normal(size=(2, 2, size))), rng.normal(size=size)
    )
    old = start.old
    new = updated(start, "trpo", StepSizes(max_kl=0.1)).policy
    assert special.rel_entr(old.policy[0], new[0]).sum() == pytest.approx(0.1, rel=1e-6)


@pytest.mark.parametrize(("size", "seed"), [(1, 39), (3, 158), (3, 203)])
def test_exact_trpo_loses_nothing_near_a_deterministic_policy(size, seed):
    rng, mdp = np.random.default_rng(seed), random_mdp(seed, num_states=2, gamma=0.0)
    start = StartingPoint(
        mdp, LinearSoftmax(rng.normal(size=(2, 3, size))), 5 * rng.normal(size=size)
    )
    old = start.old
    new = updated(start, "trpo", StepSizes(max_kl=0.05)).policy
    assert old.surrogate(new) >= old.eta
    assert kl_of(old, new) <= 0.05 * (1 + 1e-6)


def counting(monkeypatch, most):
    """Fail where an update asks for more gradients than an ascent of fixed steps could need."""
    vjp, count = LinearSoftmax.vjp, [0]

    def counted(self, policy, rows):
        count[0] += 1
        assert count[0] <= most, f"no end after {most} gradients"
        return vjp(self, policy, rows)

    monkeypatch.setattr(LinearSoftmax, "vjp", counted)


@pytest.mark.parametrize("seed", range(6))
def test_exact_ppo_ends_at_a_local_maximum_where_states_share_parameters(monkeypatch, seed):
    rng = np.random.default_rng(seed)
    start = random_start(seed, shared=True)
    old = start.old
    counting(monkeypatch, 50_000)
    theta = find_rule("ppo")(start, StepSizes())

    def objective(theta):
        return old.clipped(start.family.policy(theta), clip_eps=0.2)

    top = objective(theta)
    assert top > old.eta
    for length in (1e-3, 1e-2):
        for push in length * rng.normal(size=(200, theta.size)):
            assert objective(theta + push) <= top + 1e-7 * (top - old.eta)


@pytest.mark.parametrize(
    ("rule", "shared"),
    [("cpi", False), *((rule, shared) for rule in PARAMETER_RULES for shared in (False, True))],
)
@pytest.mark.parametrize("reward", [0.0, 1.7])
def test_where_nothing_is_to_be_gained_no_rule_moves(reward, rule, shared):
    for gamma in (0.0, 0.5, 0.9, 0.99):
        start = random_start(1, shared=shared, gamma=gamma)
        flat = make_mdp(start.mdp.transitions, np.full((6, 3), reward), gamma=gamma)
        start = replace(start, mdp=flat)
        old = start.old
        new = updated(start, rule).policy
        np.testing.assert_allclose(new, old.policy, atol=1e-10)


@pytest.mark.parametrize("rule", ["cpi", "pi"])
def test_the_rules_that_leave_a_shared_family_say_so(rule):
    start = starting_point(corridor())
    with pytest.raises(ConfigError, match=f"{rule}: .* give each state its own with --tabular"):
        find_rule(rule)(start, StepSizes())


TABLES = {
    "FrozenLake-v1": (0.999, 0.740, 0.7442),
    "FrozenLake8x8-v1": (0.999, 0.886, 0.9132),
    "CliffWalking-v1": (0.99, -13.0, -13.0),
    "Taxi-v4": (0.99, 7.93, 7.93),
}


@cache
def table(name):
    return find_mdp(name, {}, gamma=TABLES[name][0])


@cache
def optimal_return(name):
    """By value iteration, until nothing changes."""
    mdp = table(name)
    values, change = np.zeros(mdp.num_states), np.inf
    while change > 1e-14 * (1.0 + np.abs(values).max()):
        better = np.max(mdp.rewards + mdp.gamma * (mdp.transitions @ values), axis=1)
        change, values = np.abs(better - values).max(), better
    return float(mdp.start @ values)


@pytest.mark.parametrize("name", TABLES)
def test_the_best_policy_of_a_gymnasium_table_scores_what_is_known_of_it(name):
    _, limited, optimum = TABLES[name]
    mdp = table(name)
    steps = mdp.max_steps or 200
    best = time_limited_return(mdp, optimal_policy(mdp), max_steps=steps)
    assert best == pytest.approx(limited, abs=6e-4)
    assert time_limited_optimum(mdp, max_steps=steps) == pytest.approx(optimum, abs=6e-5)


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        *((name, rule) for name in list(TABLES)[:3] for rule in ("npg", "trpo", "ppo", "pi")),
        pytest.param("Taxi-v4", "npg", marks=pytest.mark.thorough),
        ("Taxi-v4", "pi"),
    ],
)
def test_without_noise_every_rule_reaches_the_optimum_of_a_gymnasium_table(name, rule):
    start, best = starting_point(table(name)), optimal_return(name)
    updates = {"pi": 10, "npg": 40, "trpo": 30, "ppo": 60}[rule]
    found = learning_curve(start, rule, find_rule(rule), StepSizes(), iterations=updates)
    assert found.etas[0] < best - 1e-3
    assert found.etas[-1] == pytest.approx(best, abs=1e-8 * (1.0 + abs(best)))
    assert min(np.diff(found.etas)) >= -1e-9 * (1.0 + abs(best))


@pytest.mark.parametrize("shared", [False, True])
def test_the_formulas_and_the_exact_quantities_agree_on_an_exact_batch(x64, shared):
    start = random_start(5, shared=shared)
    mdp, family, theta = start.mdp, start.family, start.theta
    old = start.old
    other = theta + 0.3 * np.random.default_rng(1).normal(size=theta.shape)
    new, batch, fn = family.policy(other), table_batch(old), policy_fn(family)
    before, after = fn(jnp.asarray(theta), batch.inputs), fn(jnp.asarray(other), batch.inputs)
    assert isinstance(before, Categorical)
    log_probs = after.log_prob(batch.actions)
    gain = surrogate(log_probs, batch.old_log_probs, batch.advantages, batch.weights)
    ratio = likelihood_ratio(log_probs, batch.old_log_probs)
    held = weighted_mean(clipped_gains(ratio, batch.advantages, clip_eps=0.2), batch.weights)
    promised = old.surrogate(new) - old.eta
    assert mdp.horizon * gain == pytest.approx(promised, rel=1e-9)
    clipped = old.clipped(new, clip_eps=0.2) - old.eta
    assert mdp.horizon * held == pytest.approx(clipped, rel=1e-9)
    expected = old.kl(new)
    assert mean_kl(before, after, batch.weights) == pytest.approx(expected, rel=1e-9)
    product = fisher_vector_product(fn, jnp.asarray(theta), batch.inputs, batch.weights)
    dense = jax.vmap(lambda v: product(v.reshape(theta.shape)).reshape(-1))(jnp.eye(theta.size))
    np.testing.assert_allclose(dense, fisher_matrix(family, old), atol=1e-12)


EXACTLY = {
    "damping": 0.0,
    "fisher_fraction": 1.0,
    "cg_iters": 200,
    "cg_tolerance": 1e-13,
    "advantage_norm": "none",
}
# Schedules are kept in float32, which holds powers of two without error.
RADII = (2.0**-7, 2.0**-13, 2.0**-19)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("max_kl", RADII)
def test_the_npg_that_trains_takes_the_closed_forms_step_on_an_exact_batch(shared, max_kl):
    start = random_start(7, shared=shared)
    old = start.old
    theta = training_update(NPG(max_kl=max_kl, **EXACTLY))(start, StepSizes())
    new, F = start.family.policy(theta), fisher_matrix(start.family, old)
    closed = find_rule("npg")(start, StepSizes(max_kl=max_kl))
    np.testing.assert_allclose(new, start.family.policy(closed), atol=1e-8)
    step = (theta - start.theta).reshape(-1)
    assert 0.5 * step @ F @ step == pytest.approx(max_kl, rel=1e-8)
    if shared:
        np.testing.assert_allclose(theta, closed, atol=1e-8)


@pytest.mark.parametrize("shared", [False, True])
def test_the_trpo_that_trains_becomes_exact_as_its_radius_shrinks(shared):
    start = random_start(7, shared=shared)
    old = start.old
    misses = []
    for max_kl in RADII:
        theta = training_update(TRPO(max_kl=max_kl, **EXACTLY))(start, StepSizes())
        ahead = find_rule("npg")(start, StepSizes(max_kl=max_kl))
        F = fisher_matrix(start.family, old)
        step, natural = ((x - start.theta).reshape(-1) for x in (theta, ahead))
        along = (step @ F @ natural) ** 2 / ((step @ F @ step) * (natural @ F @ natural))
        assert along == pytest.approx(1.0, abs=1e-10)
        new = start.family.policy(theta)
        kl = kl_of(old, new)
        assert kl <= max_kl * (1 + 1e-6)
        best = updated(start, "trpo", StepSizes(max_kl=max_kl)).policy
        gains = [old.surrogate(policy) - old.eta for policy in (new, best)]
        assert gains[0] <= gains[1] * (1 + 1e-6)
        misses.append((abs(kl / max_kl - 0.9), abs(gains[0] / (np.sqrt(0.9) * gains[1]) - 1.0)))
    for near, far in zip(misses[1:], misses, strict=False):
        assert near[0] < 0.5 * far[0]
        assert near[1] < 0.5 * far[1]
    assert max(misses[-1]) < 2e-3
