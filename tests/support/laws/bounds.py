"""Divergences, bounds and what they guarantee: I21 to I27 and I36."""

import numpy as np
from scipy import special

from surefoot.exact import (
    BOUNDS,
    TabularSoftmax,
    gap_bounds,
    guaranteed_returns,
    kl_per_state,
    solve,
    tv_per_state,
    visitation_tv,
)
from surefoot.exact.bounds import degradation_bound, mixture_bound, mixture_step
from tests.support.laws.cases import below, close, kl_rows, mean_rows, moved, sums_over_time


def divergence(p, q):
    """KL(p || q) of two distributions over states."""
    return float(np.sum(special.rel_entr(p, q)))


def one_end(mdp, visits):
    """Visits with those of all terminal states added up in one."""
    return np.append(visits[~mdp.terminal], visits[mdp.terminal].sum())


def rows_of(case):
    """TV, KL(old || new), KL(new || old) by state, from scipy; terminal states are unchanged."""
    p, q = case.old.policy, case.new.policy
    tv = 0.5 * np.sum(np.abs(p - q), axis=1)
    forward, reverse = kl_rows(p, q), kl_rows(q, p)
    return tuple(np.where(case.free, rows, 0.0) for rows in (tv, forward, reverse))


def law_i21(case):
    """The shift of visits is bounded by mean TV, and its divergence by mean KL."""
    mdp, H, checks = case.mdp, case.mdp.horizon, 0
    for one, other, slow, far in (
        (case.old, case.new, case.old_sums, case.new_sums),
        (case.new, case.old, case.new_sums, case.old_sums),
    ):
        tv = np.where(case.free, tv_per_state(one.policy, other.policy), 0.0)
        kl = np.where(case.free, kl_per_state(one.policy, other.policy), 0.0)
        d, d_far = slow.visits / H, far.visits / H
        mean_kl = mean_rows(d, kl)
        variation = visitation_tv(one, other)
        moved_visits = np.abs(one_end(mdp, d) - one_end(mdp, d_far)).sum()
        checks += close(variation, 0.5 * moved_visits, 1e-10)
        checks += below(variation, 0.5 * np.abs(d - d_far).sum(), 1e-10)
        checks += below(np.abs(far.visits - slow.visits).sum(), 2 * mdp.gamma * H**2 * d @ tv, 1e-8)
        if np.isfinite(mean_kl):
            path_kl = mdp.gamma * H * mean_kl
            checks += below(variation, np.sqrt(path_kl / 2), 1e-8)
            checks += below(variation, np.sqrt(-np.expm1(-path_kl)), 1e-8)
            checks += below(divergence(d, d_far), path_kl, 1e-8)
    return checks


def bounds_by_the_book(case):
    """B1 to B10 from sums over time, term by term as they are written; infinity where unknown."""
    gamma, H = case.mdp.gamma, case.mdp.horizon
    tv, forward, reverse = rows_of(case)
    slow, far, lift = case.old_sums, case.new_sums, case.lift
    d = slow.visits / H
    eps, epsbar, span = np.abs(slow.advantages).max(), np.abs(lift).max(), lift.max() - lift.min()
    widest = max(row.max() - row.min() for row in slow.advantages)
    alpha, mean_tv, mean_kl = tv.max(), mean_rows(d, tv), mean_rows(d, forward)
    max_kl = float(min(forward.max(), reverse.max()))
    roots = [np.sqrt(gamma * H * mean_kl / 2), np.sqrt(1 - np.exp(-gamma * H * mean_kl))]
    with np.errstate(invalid="ignore"):
        book = {
            "B1": np.abs(one_end(case.mdp, far.visits - slow.visits)).sum() / 2 * span,
            "B2": 2 * gamma * H * (slow.visits @ tv) * epsbar,
            "B3": gamma * H * (slow.visits @ tv) * span,
            "B4": 2 * gamma / (1 - gamma) ** 2 * epsbar * np.sqrt(mean_kl / 2),
            "B5": 4 * eps * gamma / (1 - gamma) ** 2 * alpha**2,
            "B6": 4 * eps * gamma / (1 - gamma) ** 2 * max_kl,
            "B7": 2 * eps * gamma / (1 - gamma) ** 2 * max_kl,
            "B8": gamma * alpha * H * span / (1 - gamma * (1 - alpha)),
            "B9": 2 * gamma * alpha**2 * H * widest / (1 - gamma * (1 - alpha)),
            "B10": H * span * min(*roots, gamma * H * mean_tv),
        }
    return {name: np.inf if np.isnan(value) else float(value) for name, value in book.items()}


def entropic_by_the_book(case):
    """The return that B11 makes sure of, over a fine grid of rates."""
    slow, H = case.old_sums, case.mdp.horizon
    cost = case.mdp.gamma * H * float(rows_of(case)[2].max())
    scale = np.abs(case.lift).max()
    if scale <= 1e-13 * case.size:
        return slow.eta
    if not np.isfinite(cost):
        return -np.inf
    share = slow.visits / H

    def losses(log_rates):
        rates = np.exp(log_rates)[:, None] / scale
        powers = np.where(share > 0, -rates * case.lift, -np.inf)
        top = powers.max(axis=1, keepdims=True)
        moments = np.log(np.exp(powers - top) @ share) + top[:, 0]
        return H / rates[:, 0] * (cost + moments)

    grid = np.linspace(-14, 14, 281)
    best = grid[np.argmin(losses(grid))]
    return slow.eta - float(losses(np.linspace(best - 0.1, min(best + 0.1, 14.0), 201)).min())


def law_i22(case):
    """Every bound holds, on both sides but for B11, and is the one that is written."""
    mdp, old, new = case.mdp, case.old, case.new
    found, sure = gap_bounds(old, new), guaranteed_returns(old, new)
    reached = case.old_sums.eta + case.old_sums.visits @ case.lift
    parts = (old.values, new.values, reached)
    checks = 0
    assert list(found) == list(BOUNDS) == list(sure)
    for name, written in bounds_by_the_book(case).items():
        checks += below(abs(case.new_sums.eta - reached), found[name], 1e-9, *parts)
        if np.isinf(written) or np.isinf(found[name]):
            assert written == found[name], (name, written, found[name])
            checks += 1
            continue
        checks += close(found[name], written, 1e-9, *parts)
        checks += close(sure[name], reached - written, 1e-9, *parts)
    book = entropic_by_the_book(case)
    checks += below(sure["B11"], case.new_sums.eta, 1e-9, *parts)
    if np.isinf(book):
        assert sure["B11"] == book
        return checks + 1
    # A search of rates is a little short of the best one.
    checks += below(book, sure["B11"], 1e-5, *parts)
    # Nor is the search; it may look a little past the last rate, e^14 / max |Abar|.
    cost = float(np.abs(case.lift).max()) * float(rows_of(case)[2].max()) * mdp.horizon**2
    if not np.isfinite(cost):
        return checks
    return checks + below(sure["B11"] - book, cost * np.exp(-13.0), 1e-6, book - old.eta)


def law_i23(case):
    """|Abar| is at most TV times the span of the state's advantages, and twice TV times eps."""
    A = case.old_sums.advantages
    lift = np.abs(case.old.expected_advantages(case.new.policy))
    tv = tv_per_state(case.old.policy, case.new.policy)
    span = A.max(axis=1) - A.min(axis=1)
    checks = below(lift, tv * span, 1e-9, A)
    return checks + below(tv * span, 2 * tv * np.abs(A).max(), 1e-9, A)


def law_i24(case):
    """A mixture keeps Kakade and Langford's promise, at any share and at the best one."""
    mdp, old, H, rng = case.mdp, case.old, case.mdp.horizon, case.rng(24)
    gamma, slow, checks = mdp.gamma, case.old_sums, 0
    greedy = np.eye(mdp.num_actions)[np.argmax(slow.advantages, axis=1)]
    for target in (case.new.policy, greedy):
        lift = np.sum(target * slow.advantages, axis=1)
        gain, epsbar = float(slow.visits @ lift), float(np.abs(lift).max())
        parts = (old.values, gain, H**2 * epsbar)
        best = mixture_step(old, target)
        assert 0.0 <= best <= 1.0
        for share in (*rng.random(2), best):
            mixed = (1 - share) * old.policy + share * target
            eta = sums_over_time(mdp, mixed).eta
            written = 2 * epsbar * gamma * share**2 / ((1 - gamma) * (1 - gamma * (1 - share)))
            sure = mixture_bound(old, target, float(share))
            checks += below(sure, eta, 1e-9, old.values, gain)
            checks += close(sure, slow.eta + share * gain - written, 1e-9, *parts)
            checks += close(old.surrogate(mixed) - old.eta, share * gain, 1e-9, *parts)
        rounded = lambda a: a * gain - 2 * epsbar * gamma * a**2 * H**2  # noqa: E731, B023
        shares = np.linspace(0.0, 1.0, 101)
        checks += below(rounded(shares), rounded(best), 1e-9, *parts)
        if 0.0 < best < 1.0 and epsbar > 1e-12 * case.size:
            checks += close(rounded(best), gain**2 / (8 * gamma * epsbar * H**2), 1e-9, *parts)
            reached = sums_over_time(mdp, (1 - best) * old.policy + best * target).eta
            checks += below(slow.eta + rounded(best), reached, 1e-9, old.values)
        top = float(np.ptp(np.append(mdp.rewards, 0.0)))
        mean_lift = gain / H
        # In the paper's units, values times (1 - gamma) and rewards in [0, R].
        if mean_lift > 0 and top > 0 and not mdp.terminal.any():
            normal = (1 - gamma) * mean_lift
            share = min(1.0, (1 - gamma) * normal / (4 * top))
            mixed = solve(mdp, (1 - share) * old.policy + share * target)
            sure = (
                share
                / (1 - gamma)
                * (normal - 2 * share * gamma * (1 - gamma) * epsbar / (1 - gamma * (1 - share)))
            )
            checks += below(sure, (1 - gamma) * (mixed.eta - old.eta), 1e-9, old.values)
            checks += below(normal**2 / (8 * top), sure, 1e-9, old.values)
    if isinstance(case.family, TabularSoftmax):
        cpi = sums_over_time(mdp, moved(case, "cpi")).eta
        checks += below(slow.eta, cpi, 1e-9, old.values)
    return checks


def law_i25(case):
    """Where a bound promises more than the old return, the new policy keeps the promise."""
    mdp, old, checks = case.mdp, case.old, 0
    policies = [case.new.policy]
    if case.smooth and not case.flat:
        radius = 10 ** case.rng(25).uniform(-12, -2)
        policies.append(moved(case, "npg", max_kl=radius))
    for policy in policies:
        sure = guaranteed_returns(old, solve(mdp, policy))
        eta = sums_over_time(mdp, policy).eta
        room = 1e-12 * case.size
        for promise in sure.values():
            if promise > old.eta + room:
                assert eta > old.eta, (promise, eta, old.eta)
                checks += 1
    return checks


def law_i26(case):
    """Within mean KL delta, a policy that L prefers loses at most Achiam's bound."""
    mdp, old, slow, checks = case.mdp, case.old, case.old_sums, 0
    policies = [case.new.policy]
    if case.smooth and not case.flat:
        policies.append(moved(case, "npg", max_kl=0.01))
    for policy in policies:
        delta = mean_rows(slow.visits / mdp.horizon, kl_rows(old.policy, policy))
        lift = np.sum(policy * slow.advantages, axis=1)
        if not np.isfinite(delta) or old.surrogate(policy) < old.eta:
            continue
        most = degradation_bound(old, policy, max_kl=delta)
        written = np.sqrt(2 * delta) * mdp.gamma * np.abs(lift).max() / (1 - mdp.gamma) ** 2
        checks += close(most, written, 1e-9)
        checks += below(slow.eta - most, sums_over_time(mdp, policy).eta, 1e-9, old.values)
    return checks


def law_i27(case):
    """Divergences are those of scipy, obey their inequalities, and are means over old actions."""
    checks = 0
    for p, q in (
        (case.old.policy, case.new.policy),
        (case.new.policy, case.old.policy),
    ):
        kl, tv, written = kl_per_state(p, q), tv_per_state(p, q), kl_rows(p, q)
        finite = np.isfinite(written)
        assert np.array_equal(np.isfinite(kl), finite)
        checks += 1 + close(kl[finite], written[finite], 1e-10)
        checks += close(tv, np.maximum(p - q, 0.0).sum(axis=1), 1e-10)
        checks += below(0.0, kl, 0.0) + below(tv, 1.0, 1e-12)
        checks += below(tv**2, kl / 2, 1e-10) + below(tv**2, -np.expm1(-kl), 1e-10)
        checks += below(tv, 1 - np.exp(-kl) / 2, 1e-10)
    p, q = case.old.policy, case.new.policy
    if (p == 0).any() or (q == 0).any():
        return checks
    r = q / p
    chi2 = np.sum(p * (r - 1) ** 2, axis=1)
    checks += close(np.sum(p * r, axis=1), np.ones(len(p)), 1e-10)
    checks += close(np.sum(p * np.abs(r - 1), axis=1), 2 * tv_per_state(p, q), 1e-10)
    checks += close(np.sum(p * -np.log(r), axis=1), kl_per_state(p, q), 1e-10)
    checks += close(np.sum(p * (r - 1 - np.log(r)), axis=1), kl_per_state(p, q), 1e-10)
    checks += close(np.sum(p * r * np.log(r), axis=1), kl_per_state(q, p), 1e-10)
    checks += below(kl_per_state(q, p), np.log1p(chi2), 1e-10)
    return checks + below(4 * tv_per_state(p, q) ** 2, chi2, 1e-10)


def law_i36(case):
    """Mean KL is at most the largest, and the effective sample size is 1 / (1 + chi²)."""
    weights, kl = case.old.weights, kl_per_state(case.old.policy, case.new.policy)
    seen = weights > 0
    if not seen.any():
        assert not weights.any()
        return 1
    checks = close(weights.sum(), 1.0, 1e-12)
    mean, largest = mean_rows(weights, kl), kl[seen].max()
    assert np.isinf(mean) == np.isinf(largest)
    checks += 1 + (below(mean, largest, 1e-9) if np.isfinite(mean) else 0)
    p, q = case.old.policy[seen], case.new.policy[seen]
    if (p == 0).any():
        return checks
    mass, r = weights[seen, None] * p, q / p
    chi2 = float(weights[seen] @ np.sum(p * (r - 1) ** 2, axis=1))
    share = np.sum(mass * r) ** 2 / np.sum(mass * r**2)
    return checks + close(share * (1 + chi2), 1.0, 1e-9)
