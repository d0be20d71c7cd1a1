"""Exact updates are optimal, and improve: I18 to I20, I28 and I29."""

import numpy as np
from scipy import optimize, special

from surefoot.exact import (
    StartingPoint,
    StepSizes,
    TabularSoftmax,
    kl_per_state,
    make_mdp,
    optimal_policy,
    solve,
)
from surefoot.exact.families import policy_gradient
from surefoot.exact.maximisers import clipped_policy
from surefoot.exact.updates import EXACT_UPDATES, natural_gradient
from tests.support.laws.cases import (
    below,
    close,
    kl_rows,
    mean_rows,
    moved,
    natural_x,
    sums_over_time,
)


def law_i18(case):
    """Exponential weights solve the reverse penalty, b pi / (nu - A) the forward; both help."""
    if not isinstance(case.family, TabularSoftmax) or case.flat:
        return 0
    mdp, old, rng = case.mdp, case.old, case.rng(18)
    A, policy, seen = old.advantages, old.policy, case.weights > 0
    radius, x = 10 ** rng.uniform(-5, 0), natural_x(case)
    curvature = np.sum(case.weights[:, None] * policy * x**2)
    if curvature <= 1e-22 * case.size**2:
        return 0
    tilted = moved(case, "npg", max_kl=radius)
    rate = np.sqrt(2 * radius / curvature)
    rate *= old.visits[case.free].sum()
    top = special.logsumexp(rate * A, b=policy, axis=1) / rate
    reached = np.sum(tilted * A, axis=1) - kl_per_state(tilted, policy) / rate
    checks = close(reached[seen], top[seen], 1e-8, A)
    coef = float(np.abs(A).max() * 10 ** rng.uniform(-3, 3))
    held = moved(case, "ppo-kl", kl_coef=coef)
    with np.errstate(divide="ignore", invalid="ignore"):
        nu = np.where(policy > 0, coef * policy / held + A, np.nan)[seen]
    checks += close(np.nanmax(nu, axis=1), np.nanmin(nu, axis=1), 1e-8, coef, A)
    best = np.sum(held * A, axis=1) - coef * kl_per_state(policy, held)
    for other in (special.softmax(rng.normal(size=A.shape), axis=1), case.new.policy + 1e-9):
        # What softmax has ruled out stays so: no logit brings it back.
        other = np.where(policy > 0, other, 0.0)
        other = other / other.sum(axis=1, keepdims=True)
        rows = np.sum(other * A, axis=1) - coef * kl_rows(policy, other)
        checks += below(rows[seen], best[seen], 1e-8, A, coef)
        rows = np.sum(other * A, axis=1) - kl_rows(other, policy) / rate
        checks += below(rows[seen], reached[seen], 1e-8, A)
    for new in (tilted, held):
        checks += close(new.sum(axis=1), np.ones(mdp.num_states), 1e-12)
        checks += below(0.0, old.expected_advantages(new), 1e-10, A)
        checks += below(case.old_sums.values, sums_over_time(mdp, new).values, 1e-8)
    return checks


def surrogate_by_slsqp(case, radius):
    """The most that L gains within the radius, over all policies, by a general solver."""
    policy, seen = np.maximum(case.old.policy, 1e-300), case.weights > 0
    w, A = case.weights[seen, None], case.old_sums.advantages[seen]
    shape, pi = A.shape, policy[seen]
    scale = max(float(np.sum(w * pi * np.abs(A))), 1e-300)
    kl = lambda p: float(np.sum(w * special.rel_entr(pi, p.reshape(shape))))  # noqa: E731
    found = optimize.minimize(
        lambda p: -np.sum(w * p.reshape(shape) * A) / scale,
        pi.reshape(-1),
        jac=lambda p: -(w * A).reshape(-1) / scale,
        bounds=[(1e-9 * x, 1.0) for x in pi.reshape(-1)],
        constraints=[
            {
                "type": "eq",
                "fun": lambda p: p.reshape(shape).sum(axis=1) - 1.0,
                "jac": lambda p: np.kron(np.eye(shape[0]), np.ones(shape[1])),
            },
            {
                "type": "ineq",
                "fun": lambda p: 1.0 - kl(p) / radius,
                "jac": lambda p: (w * pi / p.reshape(shape)).reshape(-1) / radius,
            },
        ],
        method="SLSQP",
        options={"maxiter": 300, "ftol": 1e-12},
    )
    rows = np.clip(found.x.reshape(shape), 1e-9 * pi, 1.0)
    rows = rows / rows.sum(axis=1, keepdims=True)
    inside = lambda a: kl(pi + a * (rows - pi)) - radius  # noqa: E731
    share = 1.0 if inside(1.0) <= 0 else optimize.brentq(inside, 0.0, 1.0)
    return share * float(np.sum(w * (rows - pi) * A))


def surrogate_by_search(case, radius):
    """The most that L gains within the radius over one parameter, by trying 2001 of them."""
    w, A, policy = case.weights, case.old_sums.advantages, case.old.policy

    def at(x):
        return case.family.policy(case.theta + x)

    def kl(x):
        return float(w @ special.rel_entr(policy, at(x)).sum(axis=1)) - radius

    ends = []
    for sign in (-1.0, 1.0):
        far = 1e-3
        while kl(sign * far) < 0 and far < 1e3:
            far *= 2
        ends.append(sign * optimize.brentq(lambda x: kl(sign * x), 0.0, far) if far < 1e3 else 0.0)  # noqa: B023
    return max(float(w @ np.sum(at(x) * A, axis=1)) for x in np.linspace(*ends, 2001))


def law_i19(case):
    """Exact trpo is inside its radius, and no solver or search finds a better policy there."""
    if not case.smooth or case.flat or not case.weights.any():
        return 0
    mdp, old, rng = case.mdp, case.old, case.rng(19)
    radius = 10 ** rng.uniform(-4, -1)
    g = policy_gradient(case.family, old)
    if np.abs(g).max() <= 1e-10 * case.size:
        return 0
    new = moved(case, "trpo", max_kl=radius)
    gain = float(case.weights @ np.sum(new * case.old_sums.advantages, axis=1))
    kl = mean_rows(case.weights, kl_rows(old.policy, new))
    size = float(np.sum(case.weights[:, None] * old.policy * np.abs(case.old_sums.advantages)))
    checks = below(kl / radius, 1.0, 1e-6)
    if isinstance(case.family, TabularSoftmax):
        checks += below(surrogate_by_slsqp(case, radius) / size, gain / size, 1e-5)
        checks += below(case.old_sums.values, sums_over_time(mdp, new).values, 1e-8)
        greedy = float(case.weights @ old.advantages.max(axis=1))
        assert kl >= radius * (1 - 1e-6) or gain >= greedy - 1e-6 * size
        return checks + 1
    if case.theta.size == 1:
        return checks + below(surrogate_by_search(case, radius) / size, gain / size, 1e-5)
    x, _ = natural_gradient(case.family, old)

    def excess(a):
        policy = case.family.policy(case.theta + a * x)
        return mean_rows(case.weights, kl_rows(old.policy, policy)) - radius

    far = 1e-6 / np.abs(x).max()
    while excess(far) < 0:
        far *= 2
    on_ray = case.family.policy(case.theta + optimize.brentq(excess, 0.0, far) * x)
    ray_gain = float(case.weights @ np.sum(on_ray * case.old_sums.advantages, axis=1))
    return checks + below(ray_gain / size, gain / size, 1e-5)


def best_by_value_iteration(mdp):
    """The optimal values, by sums that forget where they began."""
    values = np.zeros(mdp.num_states)
    for _ in range(10_000):
        better = np.max(mdp.rewards + mdp.gamma * (mdp.transitions @ values), axis=1)
        change, values = np.abs(better - values).max(), better
        if change <= 1e-13 * (1.0 + np.abs(values).max()):
            break
    return values


def law_i20(case):
    """Natural gradient in a table climbs at every step, at the rate that is proved for it."""
    mdp, rng = case.mdp, case.rng(20)
    low, high = mdp.rewards[case.free].min(initial=0.0), mdp.rewards.max(initial=0.0)
    span = high - low if high > low else 1.0
    mdp = make_mdp(
        mdp.transitions,
        (mdp.rewards - low) / span,
        gamma=mdp.gamma,
        start=mdp.start,
        terminal=mdp.terminal,
    )
    H, rate, family = mdp.horizon, float(10 ** rng.uniform(-1, 2)), TabularSoftmax()
    best = mdp.start @ best_by_value_iteration(mdp)
    checks = close(solve(mdp, optimal_policy(mdp)).eta, best, 1e-9, H)
    start = StartingPoint(mdp, family, np.zeros((mdp.num_states, mdp.num_actions)))
    for step in range(1, 13):
        _, curvature = natural_gradient(family, start.old)
        visited = start.old.visits[~mdp.terminal].sum()
        if visited == 0 or curvature <= 1e-18 * H**2:
            break
        # The radius at which the step along F+g is rate H / (visits of states that are no ends).
        radius = float(0.5 * (rate * H / visited) ** 2 * curvature)
        theta = EXACT_UPDATES["npg"](start, StepSizes(max_kl=radius))
        after = StartingPoint(mdp, family, theta)
        checks += below(start.old.eta, after.old.eta, 1e-9, H)
        proved = np.log(mdp.num_actions) / (rate * step) + H**2 / step
        checks += below(best - after.old.eta, proved, 1e-9)
        start = after
    return checks


def law_i28(case):
    """The clipped objective is L less a hinge on ratios, and never above L."""
    old, new, slow, checks = case.old, case.new.policy, case.old_sums, 0
    p, A = old.policy, slow.advantages
    possible = p > 0
    ratio = np.where(possible, new, 0.0) / np.where(possible, p, 1.0)
    covered = slow.eta + slow.visits @ np.sum(np.where(possible, new * A, 0.0), axis=1)
    for eps in case.rng(28).uniform(0.01, 0.9, size=2):
        hinge = np.abs(A) * np.maximum(0.0, np.sign(A) * (ratio - 1) - eps)
        written = covered - slow.visits @ np.sum(p * hinge, axis=1)
        found = old.clipped(new, clip_eps=float(eps))
        checks += close(found, written, 1e-9, old.values, slow.visits @ np.abs(A).max(axis=1))
        checks += below(found, covered, 1e-9, old.values, slow.visits @ np.abs(A).max(axis=1))
    return checks


FINE = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}


def clip_by_lp(policy, advantages, eps):
    """The top of one state's clipped objective, as a linear program over p and what p earns."""
    n = len(policy)
    earned, p = np.eye(n), np.diag(advantages)
    upper = np.block([[earned, -p], [earned, np.zeros((n, n))]])
    # min(pA, clip(p)A): the clip cuts only the side that earns, so pA and the limit there are it.
    limit = policy * advantages * np.where(advantages > 0, 1 + eps, 1 - eps)
    found = optimize.linprog(
        np.append(-np.ones(n), np.zeros(n)),
        A_ub=upper,
        b_ub=np.append(np.zeros(n), limit),
        A_eq=np.append(np.zeros(n), np.ones(n))[None],
        b_eq=[1.0],
        bounds=[(None, None)] * n + [(0.0, 1.0)] * n,
        options=FINE,
    )
    return -found.fun


def box_by_lp(policy, advantages, eps):
    """The top of one state's surrogate with all ratios in 1 ± eps, as a linear program."""
    box = [((1 - eps) * x, (1 + eps) * x) for x in policy]
    found = optimize.linprog(
        -advantages, A_eq=np.ones((1, len(box))), b_eq=[1.0], bounds=box, options=FINE
    )
    return -found.fun


def by_the_median(policy, advantages, eps):
    """1 + eps above the median advantage under the policy, 1 - eps below, the rest at it."""
    order = np.argsort(advantages)
    mass = np.cumsum(policy[order])
    rows = np.where(mass <= 0.5, 1 - eps, 1 + eps) * policy[order]
    middle = int(np.argmax(mass > 0.5))
    rows[middle] = 0.0
    rows[middle] = 1.0 - rows.sum()
    return rows[np.argsort(order)]


def law_i29(case):
    """Exact ppo reaches the top of its objective in every state; the median rule tops the box."""
    old, eps, checks = case.old, float(case.rng(29).uniform(0.05, 0.5)), 0
    if not case.smooth or case.flat:
        return 0
    rows = clipped_policy(old, eps)
    checks += close(rows.sum(axis=1), np.ones(len(rows)), 1e-12)
    median = np.array(
        [by_the_median(p, A, eps) for p, A in zip(old.policy, old.advantages, strict=True)]
    )
    for s in range(len(rows)):
        p, A = old.policy[s], old.advantages[s]
        scale = np.abs(A).max()
        if scale <= 1e-11 * case.size:
            continue
        earned = np.minimum(rows[s] * A, np.clip(rows[s] / p, 1 - eps, 1 + eps) * p * A)
        top, box = clip_by_lp(p, A / scale, eps), box_by_lp(p, A / scale, eps)
        checks += close(earned.sum() / scale, top, 1e-8)
        checks += close(median[s] @ A / scale, box, 1e-8) + below(box, top, 1e-8)
    # Inside the box nothing is clipped.
    checks += close(
        old.clipped(median, clip_eps=eps),
        old.surrogate(median),
        1e-9,
        old.values,
    )
    if isinstance(case.family, TabularSoftmax):
        held, seen = moved(case, "ppo", clip_eps=eps), case.weights > 0
        checks += close(held[seen], rows[seen], 1e-10) + close(
            held[~seen], old.policy[~seen], 1e-10
        )
        top = old.clipped(held, clip_eps=eps)
        for other in (median, case.new.policy, old.policy):
            reached = old.clipped(other, clip_eps=eps)
            checks += below(reached, top, 1e-9, old.values)
    return checks
