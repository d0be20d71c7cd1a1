"""Random cases of the laboratory's bench, and the laws of theory that each must obey.

`draw_case` draws an MDP, a family of policies, an old policy and a new one. A law asks surefoot's
functions for what it states, compares them with a computation that shares nothing with them (sums
over time by doubling, scores one by one, finite differences, linear programs), and returns how many
checks it made; 0 where it has nothing to say. I34 is held by test_returns.py; the quadrature and
the Hessian of I35 by test_distributions.py; I9, I11, I12 and I28 are held a second time, for the
rules that train, by test_surrogate.py, test_clip.py and test_natural_gradient.py.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import optimize, special
from surefoot.exact.maximisers import clipped_rows

from surefoot import exact as t
from surefoot.exact.updates import natural_direction

GAMMAS = (0.0, 0.3, 0.5, 0.8, 0.9, 0.95, 0.99)
KINDS = ("dense", "peaked", "deterministic", "ridge", "corridor")
NEWS = ("tiny", "medium", "unrelated", "towards advantage", "greedy")


class Sums(NamedTuple):
    """A policy's law, rewards, V, rho, return and advantages, by sums over time."""

    law: np.ndarray
    rewards: np.ndarray
    values: np.ndarray
    visits: np.ndarray
    eta: float
    advantages: np.ndarray


class Case(NamedTuple):
    """An MDP, a family with parameters, the policy there and a new one; both solved twice."""

    seed: int
    kind: str
    mdp: t.MDP
    family: t.Family
    theta: np.ndarray
    old: t.Solution
    new: t.Solution
    old_sums: Sums
    new_sums: Sums
    weights: np.ndarray

    def rng(self, law: int) -> np.random.Generator:
        """A law's own random numbers: the same whenever the law meets the case."""
        return np.random.default_rng((self.seed, law))

    @property
    def free(self) -> np.ndarray:
        """The states in which something happens."""
        return ~self.mdp.terminal

    @property
    def lift(self) -> np.ndarray:
        """Abar(s), by the sums over time."""
        return np.sum(self.new.policy * self.old_sums.advantages, axis=1)

    @property
    def smooth(self) -> bool:
        """Whether every action of the old policy is possible, so that all scores exist."""
        return bool(np.isfinite(self.theta).all())

    @property
    def flat(self) -> bool:
        """Whether nothing is to be gained where one goes: what advantages there are is rounding."""
        seen = self.old.advantages[self.weights > 0]
        return bool(np.abs(seen).max(initial=0.0) <= 1e-11 * self.size)

    @property
    def size(self) -> float:
        """The largest value that any policy could have, and 1 where that is less."""
        return max(1.0, self.mdp.horizon * float(np.abs(self.mdp.rewards).max()))


def forever(gamma, law, x):
    """Sum over time of gamma^t law^t x, by doubling: 8192 terms."""
    jump = gamma * law
    for _ in range(13):
        x = x + jump @ x
        jump = jump @ jump
    return x


def sums_over_time(mdp, policy):
    """What `solve` computes by solving, computed by summing."""
    law = np.sum(policy[:, :, None] * mdp.transitions, axis=1)
    rewards = np.sum(policy * mdp.rewards, axis=1)
    values = forever(mdp.gamma, law, rewards)
    visits = forever(mdp.gamma, law.T, mdp.start)
    ahead = np.sum(mdp.transitions * values[None, None, :], axis=2)
    advantages = mdp.rewards + mdp.gamma * ahead - values[:, None]
    advantages[mdp.terminal] = 0.0
    return Sums(law, rewards, values, visits, float(visits @ rewards), advantages)


def draw_mdp(rng):
    gamma, kind = float(rng.choice(GAMMAS)), str(rng.choice(KINDS, p=(0.3, 0.2, 0.25, 0.08, 0.17)))
    if kind == "ridge":
        return kind, t.ridge(B=float(rng.choice([0.0, 1.0, 2.0, 9.0])), gamma=gamma)
    if kind == "corridor":
        length, cost = int(rng.integers(2, 7)), float(10 ** rng.uniform(0, 3))
        return kind, t.corridor(m=length, B=cost, gamma=gamma, stay=bool(rng.integers(2)))
    base = t.random_mdp(
        int(rng.integers(2**31)),
        num_states=int(rng.integers(2, 8)),
        num_actions=int(rng.integers(2, 5)),
        gamma=gamma,
        concentration={"dense": 1.0, "peaked": 0.15, "deterministic": 0.0}[kind],
        reward_density=float(rng.choice([1.0, 0.3, 0.0], p=(0.6, 0.34, 0.06))),
    )
    start, terminal = base.start, None
    if rng.random() < 0.5:
        start = np.eye(base.num_states)[rng.integers(base.num_states)]
    if rng.random() < 0.25:
        kind, terminal = (
            kind + ", ends",
            np.arange(base.num_states) == rng.integers(base.num_states),
        )
    rewards = base.rewards * rng.choice([0.01, 1.0, 1.0, 30.0])
    made = t.make_mdp(base.transitions, rewards, gamma=gamma, start=start, terminal=terminal)
    return kind, made


def draw_family(rng, mdp):
    """A family, and parameters of a near-uniform, a plain or a near-deterministic policy."""
    shape, scale = (mdp.num_states, mdp.num_actions), float(rng.choice([0.1, 1.0, 5.0]))
    if mdp.name in ("ridge", "corridor") and rng.random() < 0.7:
        return t.one_parameter(mdp), rng.uniform(-4.0, 1.0, size=1)
    if rng.random() < 0.4:
        features = rng.normal(size=(*shape, int(rng.integers(1, 4))))
        return t.Shared(features), scale * rng.normal(size=features.shape[2])
    theta = scale * rng.normal(size=shape)
    if rng.random() < 0.08:
        out = rng.random(shape) < 0.3
        out[np.arange(mdp.num_states), rng.integers(mdp.num_actions, size=mdp.num_states)] = False
        theta = np.where(out, -np.inf, theta)
    return t.Tabular(), theta


def draw_new(rng, kind, family, theta, old):
    """A policy a little away, well away, anywhere, where the advantages point, or greedy."""
    if kind in ("tiny", "medium"):
        moved = theta + {"tiny": 1e-4, "medium": 0.5}[kind] * rng.normal(size=theta.shape)
        return family.policy(moved)
    if kind == "unrelated":
        rows = rng.dirichlet(np.full(old.policy.shape[1], rng.choice([0.15, 1.0])), len(old.policy))
        rows = np.maximum(rows, 1e-12)
        return rows / rows.sum(axis=1, keepdims=True)
    if kind == "greedy":
        return np.eye(old.policy.shape[1])[np.argmax(old.advantages, axis=1)]
    tilt = 10 ** rng.uniform(-3, 1) / max(float(np.abs(old.advantages).max()), 1e-12)
    with np.errstate(divide="ignore"):
        return special.softmax(np.log(old.policy) + tilt * old.advantages, axis=1)


def draw_case(rng: np.random.Generator) -> Case:
    """One case of the generators of the theory."""
    seed = int(rng.integers(2**62))
    kind, mdp = draw_mdp(rng)
    family, theta = draw_family(rng, mdp)
    old = t.solve(mdp, family.policy(theta))
    way = str(rng.choice(NEWS, p=(0.2, 0.25, 0.25, 0.25, 0.05)))
    new = t.solve(mdp, draw_new(rng, way, family, theta, old))
    old_sums, new_sums = sums_over_time(mdp, old.policy), sums_over_time(mdp, new.policy)
    seen = np.where(mdp.terminal, 0.0, old_sums.visits)
    weights = seen / seen.sum() if seen.sum() > 0 else seen
    return Case(seed, f"{kind}; {way}", mdp, family, theta, old, new, old_sums, new_sums, weights)


def close(got, expected, tol, *parts):
    """|got - expected| <= tol (1 + |expected| + the magnitudes that went in); 1 check."""
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.shape == expected.shape
    room = 1.0 + sum((float(np.abs(part).max(initial=0.0)) for part in (expected, *parts)), 0.0)
    error = float(np.abs(got - expected).max(initial=0.0))
    assert error <= tol * room, f"{got} is not {expected}: {error:.3g} > {tol * room:.3g}"
    return 1


def below(small, large, tol, *parts):
    """small <= large + tol (1 + |small| + the magnitudes that went in); 1 check."""
    room = 1.0 + sum((float(np.abs(part).max(initial=0.0)) for part in (small, *parts)), 0.0)
    worst = float(np.max(np.asarray(small) - np.asarray(large)))
    assert worst <= tol * room, f"{small} exceeds {large} by {worst:.3g} > {tol * room:.3g}"
    return 1


def scores(case):
    """Gradient of log pi(a|s) by the flat parameters, for every state and action, one by one."""
    policy, (S, A) = case.old.policy, case.old.policy.shape
    features = np.eye(S * A).reshape(S, A, -1)
    if isinstance(case.family, t.Shared):
        features = case.family.features
    found = np.empty(features.shape)
    for s in range(S):
        centre = sum(policy[s, a] * features[s, a] for a in range(A))
        for a in range(A):
            found[s, a] = features[s, a] - centre
    return found


def direction(case, rng):
    """A random direction of the parameters that moves no logit by more than 1, and its logits."""
    u = rng.normal(size=case.theta.shape)
    shared = isinstance(case.family, t.Shared)
    logits = case.family.features @ u if shared else u
    largest = np.abs(logits).max()
    return u / largest, logits / largest


def slope(function, h):
    """First derivative at 0, to fourth order in h."""
    return (8 * (function(h) - function(-h)) - function(2 * h) + function(-2 * h)) / (12 * h)


def bend(function, h):
    """Second derivative at 0, to fourth order in h."""
    near, far = function(h) + function(-h), function(2 * h) + function(-2 * h)
    return (16 * near - far - 30 * function(0.0)) / (12 * h * h)


def mean_rows(weights, rows):
    """Mean over states; a state without weight adds nothing, infinite or not."""
    return float(weights[weights > 0] @ rows[weights > 0])


def divergence(p, q):
    """KL(p || q) of two distributions over states."""
    return float(np.sum(special.rel_entr(p, q)))


def kl_rows(p, q):
    """KL(p || q) of each row; a sum of rounding is 0."""
    return np.maximum(special.rel_entr(p, q).sum(axis=1), 0.0)


def rows_of(case):
    """TV, KL(old || new), KL(new || old) by state, from scipy; terminal states are unchanged."""
    p, q = case.old.policy, case.new.policy
    tv = 0.5 * np.sum(np.abs(p - q), axis=1)
    forward, reverse = kl_rows(p, q), kl_rows(q, p)
    return tuple(np.where(case.free, rows, 0.0) for rows in (tv, forward, reverse))


def natural_x(case):
    """F+g in a table, from the closed form: A times all visits of states that are not ends."""
    seen = case.weights > 0
    total = case.old_sums.visits[case.free].sum()
    return np.where(seen[:, None], case.old_sums.advantages, 0.0) * total


def moved(case, rule, theta=None, **settings):
    """The policy after one exact update."""
    theta = case.theta if theta is None else theta
    update = t.EXACT[rule](case.mdp, case.family, theta, case.old, t.Step(**settings))
    return case.family.policy(update)


def law_i1(case):
    """V is the mean of Q, and Q the reward with the discounted mean of V, as sums over time say."""
    mdp, old, slow = case.mdp, case.old, case.old_sums
    ahead = np.einsum("sat,t->sa", mdp.transitions, old.values)
    checks = close(old.values, np.sum(old.policy * old.q_values, axis=1), 1e-10)
    checks += close(old.q_values, mdp.rewards + mdp.gamma * ahead, 1e-10)
    return checks + close(old.values, slow.values, 1e-10)


def law_i2(case):
    """The mean advantage of a policy's own actions is 0, and A is Q less V."""
    checks = close(np.sum(case.old.policy * case.old.advantages, axis=1), 0 * case.weights, 1e-10)
    return checks + close(case.old.advantages, case.old_sums.advantages, 1e-10, case.old.q_values)


def law_i3(case):
    """Visits sum to the horizon, flow through the law, and are the sum over time."""
    checks = 0
    for solved, slow in ((case.old, case.old_sums), (case.new, case.new_sums)):
        flow = case.mdp.start + case.mdp.gamma * slow.law.T @ solved.visits
        checks += close(solved.visits.sum(), case.mdp.horizon, 1e-10)
        checks += close(solved.visits, flow, 1e-10) + close(solved.visits, slow.visits, 1e-10)
        checks += close(t.next_states(case.mdp, solved.policy), slow.law, 1e-12)
    return checks


def law_i4(case):
    """The return is the start's value, and the visits' reward."""
    old = case.old
    checks = close(old.eta, case.mdp.start @ old.values, 1e-10, old.values)
    return checks + close(old.eta, case.old_sums.eta, 1e-10, old.values)


def law_i5(case):
    """The performance difference lemma: summed, state by state, and in reverse."""
    mdp, old, new, slow = case.mdp, case.old, case.new, case.new_sums
    lift = t.expected_advantages(old, new.policy)
    back = t.expected_advantages(new, old.policy)
    checks = close(old.eta + slow.visits @ lift, new.eta, 1e-9, old.values, new.values)
    checks += close(
        new.values - old.values, forever(mdp.gamma, slow.law, lift), 1e-9, old.values, new.values
    )
    gain = case.old_sums.visits @ back
    return checks + close(new.eta + gain, old.eta, 1e-9, old.values, new.values)


def law_i6(case):
    """L is eta at the old policy, a sum over states and actions, and affine in mixtures."""
    old, new = case.old, case.new.policy
    slow = case.old_sums
    weighted = sum(
        slow.visits[s] * new[s, a] * slow.advantages[s, a]
        for s in range(new.shape[0])
        for a in range(new.shape[1])
    )
    checks = close(t.surrogate(old, old.policy), slow.eta, 1e-9, old.values)
    checks += close(t.surrogate(old, new), slow.eta + weighted, 1e-9, old.values)
    for a in case.rng(6).random(2):
        mixed = t.surrogate(old, (1 - a) * old.policy + a * new)
        ends = (1 - a) * old.eta + a * t.surrogate(old, new)
        checks += close(mixed, ends, 1e-9, old.values)
    return checks


def law_i7(case):
    """The lie is the shift of visits times Abar, in every form, and exact along a mixture."""
    mdp, old, new = case.mdp, case.old, case.new
    slow, far = case.old_sums, case.new_sums
    lie = far.eta - (slow.eta + slow.visits @ case.lift)
    parts = (old.values, new.values, old.visits @ np.abs(case.lift))
    checks = sum(
        close(form, lie, 1e-9, *parts) for form in t.gap_forms(mdp, old.policy, new.policy).values()
    )
    D = far.law - slow.law
    shift = new.visits - old.visits
    checks += close(shift, mdp.gamma * forever(mdp.gamma, far.law.T, D.T @ slow.visits), 1e-9)
    checks += close(shift, mdp.gamma * forever(mdp.gamma, slow.law.T, D.T @ far.visits), 1e-9)
    for a in case.rng(7).random(2):
        mixed = t.solve(mdp, (1 - a) * old.policy + a * new.policy)
        gap = mixed.eta - t.surrogate(old, mixed.policy)
        tail = forever(mdp.gamma, slow.law + a * D, case.lift)
        checks += close(gap, a * a * mdp.gamma * slow.visits @ D @ tail, 1e-9, *parts)
        system = np.eye(len(D)) - mdp.gamma * (slow.law + a * D)
        checks += close(t.resolvent(mdp, mixed.policy), system, 1e-12)
    return checks


def law_i8(case):
    """Along a ray of parameters the lie is quadratic, with a coefficient known in advance."""
    mdp, old = case.mdp, case.old
    u, logits = direction(case, case.rng(8))
    turn = old.policy * (logits - np.sum(old.policy * logits, axis=1, keepdims=True))
    dP = np.einsum("sa,sat->st", turn, mdp.transitions)
    dlift = np.sum(turn * case.old_sums.advantages, axis=1)
    tail = forever(mdp.gamma, case.old_sums.law, dlift)
    c2 = mdp.gamma * case.old_sums.visits @ dP @ tail
    size = (
        mdp.gamma
        * case.old_sums.visits
        @ np.abs(dP)
        @ forever(mdp.gamma, case.old_sums.law, np.abs(dlift))
    )
    length = 2e-3 / mdp.horizon

    def gaps(a):
        """The even part of the gap, in each of its forms."""
        ahead = t.gap_forms(mdp, old.policy, case.family.policy(case.theta + a * u))
        behind = t.gap_forms(mdp, old.policy, case.family.policy(case.theta - a * u))
        return {name: (ahead[name] + behind[name]) / 2 for name in ahead}

    far, near, checks = gaps(length), gaps(length / 2), 0
    noise = 1e-14 * mdp.horizon * (1.0 + np.abs(old.values).max()) / length
    for name in far:
        room = 1e-4 * abs(c2) + 1e-5 * size + noise
        assert abs(near[name] / (length / 2) ** 2 - c2) <= room, (name, c2)
        checks += 1
        if abs(c2) > 0.05 * size + 1e4 * noise:
            order = np.log2(far[name] / near[name])
            assert abs(order - 2) <= 0.01, (name, order)
            checks += 1
    return checks


def law_i9(case):
    """At the old policy eta, L and the clipped objective have one slope: the gradient's."""
    mdp, old = case.mdp, case.old
    u, _ = direction(case, case.rng(9))
    expected = float(np.sum(t.gradient(mdp, case.family, old) * u))
    policy_at = lambda h: case.family.policy(case.theta + h * u)  # noqa: E731
    h = 1e-4 if mdp.horizon < 50 else 2e-5
    found = [
        slope(lambda h: sums_over_time(mdp, policy_at(h)).eta, h),
        slope(lambda h: t.surrogate(old, policy_at(h)), h),
        slope(lambda h: t.clipped(mdp, old, policy_at(h), clip_eps=0.2), h),
    ]
    return sum(close(each, expected, 2e-6, old.values) for each in found)


def law_i10(case):
    """The gradient is that of the scores, and a baseline of the state does not change it."""
    mdp, old = case.mdp, case.old
    baseline = 5.0 * case.rng(10).normal(size=(mdp.num_states, 1))
    g = t.gradient(mdp, case.family, old)
    weighted = (case.old_sums.visits[:, None] * old.policy * case.old_sums.advantages).reshape(-1)
    by_scores = weighted @ scores(case).reshape(weighted.size, -1)
    size = old.visits.max() * np.abs(old.values).max()
    checks = close(g.reshape(-1), by_scores, 1e-10, size)
    for advantages in (old.advantages + baseline, old.q_values, old.q_values - baseline):
        other = t.gradient(mdp, case.family, old._replace(advantages=advantages))
        checks += close(other, g, 1e-10, size, 20.0 * mdp.horizon)
    return checks


def law_i11(case):
    """The Fisher matrix is the Hessian of mean KL in both directions, whose gradient is 0."""
    if not case.smooth:
        return 0
    F, rng, checks = t.fisher(case.mdp, case.family, case.old), case.rng(11), 0
    weights, old = t.state_weights(case.mdp, case.old), case.old.policy
    checks += close(weights, case.weights, 1e-10)
    for _ in range(2):
        u, _ = direction(case, rng)
        expected = u.reshape(-1) @ F @ u.reshape(-1)
        policy_at = lambda h, u=u: case.family.policy(case.theta + h * u)  # noqa: E731
        forward = lambda h: float(weights @ t.row_kl(old, policy_at(h)))  # noqa: E731, B023
        reverse = lambda h: float(weights @ t.row_kl(policy_at(h), old))  # noqa: E731, B023
        for kl in (forward, reverse):
            error = abs(bend(kl, 1e-3) - expected)
            assert error <= 1e-5 * expected + 1e-9, (error, expected)
            # 1e-10 rather than 0: what is left of rounding, divided by h.
            assert abs(slope(kl, 1e-3)) <= 1e-10
            checks += 2
    return checks


def law_i12(case):
    """The Fisher matrix is the mean outer product of the score, and has no negative curvature."""
    F = t.fisher(case.mdp, case.family, case.old)
    score = scores(case)
    mass = case.weights[:, None] * case.old.policy
    outer = np.einsum("sa,sap,saq->pq", mass, score, score)
    checks = close(F, outer, 1e-12, np.abs(score).max() ** 2)
    checks += close(F, F.T, 1e-14, np.abs(F).max())
    assert np.linalg.eigvalsh(F).min() >= -1e-12 * (1.0 + np.abs(F).max())
    return checks + 1


def law_i13(case):
    """The two directions of KL part at third order, by a sixth of the logits' third moment."""
    if not case.smooth:
        return 0
    u, logits = direction(case, case.rng(13))
    old, weights = case.old.policy, case.weights
    centred = logits - np.sum(old * logits, axis=1, keepdims=True)
    expected = -float(weights @ np.sum(old * centred**3, axis=1)) / 6

    def split(a):
        """The odd part of KL(old || new) - KL(new || old)."""
        found = []
        for h in (a, -a):
            new = case.family.policy(case.theta + h * u)
            found.append(float(weights @ (t.row_kl(old, new) - t.row_kl(new, old))))
        return (found[0] - found[1]) / 2

    far, near, checks = split(2e-2), split(1e-2), 0
    assert abs(near / 1e-6 - expected) <= 1e-3 * abs(expected) + 1e-4, (near, expected)
    checks += 1
    if abs(expected) > 1e-3:
        assert abs(np.log2(far / near) - 3) <= 0.05
        checks += 1
    return checks


def law_i14(case):
    """In a table the natural gradient is the advantage times the horizon, and solves Fx = g."""
    mdp, old = case.mdp, case.old
    if not isinstance(case.family, t.Tabular):
        return 0
    x, curvature = natural_direction(mdp, case.family, old)
    F, g = t.fisher(mdp, case.family, old), t.gradient(mdp, case.family, old)
    total = old.visits[case.free].sum()
    mean_square = total * np.sum(case.old_sums.visits[:, None] * old.policy * old.advantages**2)
    checks = close(x, natural_x(case), 1e-6)
    checks += close(F @ x.reshape(-1), g.reshape(-1), 1e-6 / (1.0 + np.abs(g).max()))
    checks += close(curvature, mean_square, 1e-6)
    return checks + close(np.sum(g * x), mean_square, 1e-6)


def law_i15(case):
    """npg's step is at the radius of the quadratic model, and no other step there gains more."""
    if not case.smooth or case.flat:
        return 0
    mdp, rng = case.mdp, case.rng(15)
    radius = 10 ** rng.uniform(-6, 0)
    moved_to = t.EXACT["npg"](mdp, case.family, case.theta, case.old, t.Step(max_kl=radius))
    step = (moved_to - case.theta).reshape(-1)
    F = t.fisher(mdp, case.family, case.old)
    g = t.gradient(mdp, case.family, case.old).reshape(-1)
    if np.abs(g).max() <= 1e-12 * case.size * mdp.horizon:
        return 0
    x = np.linalg.lstsq(F, g, rcond=1e-13)[0]
    gain = float(g @ step)
    checks = close(0.5 * step @ F @ step / radius, 1.0, 1e-6)
    checks += close(gain / np.sqrt(2 * radius * (g @ x)), 1.0, 1e-6)
    for _ in range(3):
        other = rng.normal(size=step.shape)
        other *= np.sqrt(2 * radius / (other @ F @ other))
        checks += below(g @ other / gain, 1.0, 1e-6)
    return checks


def law_i16(case):
    """The natural gradient is the regression of A times the horizon on the scores."""
    if not case.smooth:
        return 0
    spectrum = np.linalg.eigvalsh(t.fisher(case.mdp, case.family, case.old))
    # A direction that hardly counts, but is not cut off, is lost to rounding in both.
    if ((spectrum > 1e-13 * spectrum[-1]) & (spectrum < 1e-10 * spectrum[-1])).any():
        return 0
    x, curvature = natural_direction(case.mdp, case.family, case.old)
    root = np.sqrt(case.weights[:, None] * case.old.policy).reshape(-1)
    design = root[:, None] * scores(case).reshape(root.size, -1)
    total = case.old_sums.visits[case.free].sum()
    target = root * case.old_sums.advantages.reshape(-1) * total
    w = np.linalg.lstsq(design, target, rcond=1e-10)[0]
    checks = close(design @ x.reshape(-1), design @ w, 1e-6)
    return checks + close(curvature, np.sum((design @ w) ** 2), 1e-6)


def law_i17(case):
    """The natural step is the same policy, whatever parameters describe it."""
    if not case.smooth or case.flat:
        return 0
    mdp, rng = case.mdp, case.rng(17)
    (S, A), radius = case.old.policy.shape, 10 ** rng.uniform(-5, -1)
    features = np.eye(S * A).reshape(S, A, -1)
    if isinstance(case.family, t.Shared):
        features = case.family.features
    size = features.shape[2]
    left, right = (np.linalg.qr(rng.normal(size=(size, size)))[0] for _ in range(2))
    B = left @ np.diag(np.geomspace(0.3, 3.0, size)) @ right
    family = t.Shared(features @ B)
    phi = np.linalg.solve(B, case.theta.reshape(-1))
    step = t.Step(max_kl=radius)
    new = family.policy(t.EXACT["npg"](mdp, family, phi, case.old, step))
    same = case.family.policy(t.EXACT["npg"](mdp, case.family, case.theta, case.old, step))
    # On visited states: where nobody goes, the shortest of equal steps differs.
    return close(mean_rows(case.weights, np.abs(new - same).sum(axis=1)), 0.0, 1e-4)


def law_i18(case):
    """Exponential weights solve the reverse penalty, b pi / (nu - A) the forward; both help."""
    if not isinstance(case.family, t.Tabular) or case.flat:
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
    reached = np.sum(tilted * A, axis=1) - t.row_kl(tilted, policy) / rate
    checks = close(reached[seen], top[seen], 1e-8, A)
    coef = float(np.abs(A).max() * 10 ** rng.uniform(-3, 3))
    held = moved(case, "ppo-kl", kl_coef=coef)
    with np.errstate(divide="ignore", invalid="ignore"):
        nu = np.where(policy > 0, coef * policy / held + A, np.nan)[seen]
    checks += close(np.nanmax(nu, axis=1), np.nanmin(nu, axis=1), 1e-8, coef, A)
    best = np.sum(held * A, axis=1) - coef * t.row_kl(policy, held)
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
        checks += below(0.0, t.expected_advantages(old, new), 1e-10, A)
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
    g = t.gradient(mdp, case.family, old)
    if np.abs(g).max() <= 1e-10 * case.size:
        return 0
    new = moved(case, "trpo", max_kl=radius)
    gain = float(case.weights @ np.sum(new * case.old_sums.advantages, axis=1))
    kl = mean_rows(case.weights, kl_rows(old.policy, new))
    size = float(np.sum(case.weights[:, None] * old.policy * np.abs(case.old_sums.advantages)))
    checks = below(kl / radius, 1.0, 1e-6)
    if isinstance(case.family, t.Tabular):
        checks += below(surrogate_by_slsqp(case, radius) / size, gain / size, 1e-5)
        checks += below(case.old_sums.values, sums_over_time(mdp, new).values, 1e-8)
        greedy = float(case.weights @ old.advantages.max(axis=1))
        assert kl >= radius * (1 - 1e-6) or gain >= greedy - 1e-6 * size
        return checks + 1
    if case.theta.size == 1:
        return checks + below(surrogate_by_search(case, radius) / size, gain / size, 1e-5)
    x, _ = natural_direction(mdp, case.family, old)

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
    mdp = t.make_mdp(
        mdp.transitions,
        (mdp.rewards - low) / span,
        gamma=mdp.gamma,
        start=mdp.start,
        terminal=mdp.terminal,
    )
    H, rate, family = mdp.horizon, float(10 ** rng.uniform(-1, 2)), t.Tabular()
    best = mdp.start @ best_by_value_iteration(mdp)
    checks = close(t.solve(mdp, t.best_policy(mdp)).eta, best, 1e-9, H)
    theta = np.zeros((mdp.num_states, mdp.num_actions))
    solved = t.solve(mdp, family.policy(theta))
    for step in range(1, 13):
        _, curvature = natural_direction(mdp, family, solved)
        visited = solved.visits[~mdp.terminal].sum()
        if visited == 0 or curvature <= 1e-18 * H**2:
            break
        # The radius at which the step along F+g is rate H / (visits of states that are no ends).
        radius = 0.5 * (rate * H / visited) ** 2 * curvature
        theta = t.EXACT["npg"](mdp, family, theta, solved, t.Step(max_kl=float(radius)))
        after = t.solve(mdp, family.policy(theta))
        checks += below(solved.eta, after.eta, 1e-9, H)
        proved = np.log(mdp.num_actions) / (rate * step) + H**2 / step
        checks += below(best - after.eta, proved, 1e-9)
        solved = after
    return checks


def law_i21(case):
    """The shift of visits is bounded by mean TV, and its divergence by mean KL."""
    mdp, H, checks = case.mdp, case.mdp.horizon, 0
    for one, other, slow, far in (
        (case.old, case.new, case.old_sums, case.new_sums),
        (case.new, case.old, case.new_sums, case.old_sums),
    ):
        tv = np.where(case.free, t.row_tv(one.policy, other.policy), 0.0)
        kl = np.where(case.free, t.row_kl(one.policy, other.policy), 0.0)
        d, d_far = slow.visits / H, far.visits / H
        mean_kl = mean_rows(d, kl)
        variation = t.visitation_tv(mdp, one, other)
        checks += close(variation, 0.5 * np.abs(d - d_far).sum(), 1e-10)
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
            "B1": np.abs(far.visits - slow.visits).sum() / 2 * span,
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
    found, sure = t.gap_bounds(mdp, old, new), t.guaranteed(mdp, old, new)
    reached = case.old_sums.eta + case.old_sums.visits @ case.lift
    parts = (old.values, new.values, reached)
    checks = 0
    assert list(found) == list(t.BOUNDS) == list(sure)
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
    lift = np.abs(t.expected_advantages(case.old, case.new.policy))
    tv = t.row_tv(case.old.policy, case.new.policy)
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
        best = t.mixture_step(mdp, old, target)
        assert 0.0 <= best <= 1.0
        for share in (*rng.random(2), best):
            mixed = (1 - share) * old.policy + share * target
            eta = sums_over_time(mdp, mixed).eta
            written = 2 * epsbar * gamma * share**2 / ((1 - gamma) * (1 - gamma * (1 - share)))
            sure = t.mixture_bound(mdp, old, target, float(share))
            checks += below(sure, eta, 1e-9, old.values, gain)
            checks += close(sure, slow.eta + share * gain - written, 1e-9, *parts)
            checks += close(t.surrogate(old, mixed) - old.eta, share * gain, 1e-9, *parts)
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
            mixed = t.solve(mdp, (1 - share) * old.policy + share * target)
            sure = (
                share
                / (1 - gamma)
                * (normal - 2 * share * gamma * (1 - gamma) * epsbar / (1 - gamma * (1 - share)))
            )
            checks += below(sure, (1 - gamma) * (mixed.eta - old.eta), 1e-9, old.values)
            checks += below(normal**2 / (8 * top), sure, 1e-9, old.values)
    if isinstance(case.family, t.Tabular):
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
        sure = t.guaranteed(mdp, old, t.solve(mdp, policy))
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
        if not np.isfinite(delta) or t.surrogate(old, policy) < old.eta:
            continue
        most = t.degradation_bound(mdp, old, policy, max_kl=delta)
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
        kl, tv, written = t.row_kl(p, q), t.row_tv(p, q), kl_rows(p, q)
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
    checks += close(np.sum(p * np.abs(r - 1), axis=1), 2 * t.row_tv(p, q), 1e-10)
    checks += close(np.sum(p * -np.log(r), axis=1), t.row_kl(p, q), 1e-10)
    checks += close(np.sum(p * (r - 1 - np.log(r)), axis=1), t.row_kl(p, q), 1e-10)
    checks += close(np.sum(p * r * np.log(r), axis=1), t.row_kl(q, p), 1e-10)
    checks += below(t.row_kl(q, p), np.log1p(chi2), 1e-10)
    return checks + below(4 * t.row_tv(p, q) ** 2, chi2, 1e-10)


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
        found = t.clipped(case.mdp, old, new, clip_eps=float(eps))
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
    rows = clipped_rows(old, eps)
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
        t.clipped(case.mdp, old, median, clip_eps=eps), t.surrogate(old, median), 1e-9, old.values
    )
    if isinstance(case.family, t.Tabular):
        held, seen = moved(case, "ppo", clip_eps=eps), case.weights > 0
        checks += close(held[seen], rows[seen], 1e-10) + close(
            held[~seen], old.policy[~seen], 1e-10
        )
        top = t.clipped(case.mdp, old, held, clip_eps=eps)
        for other in (median, case.new.policy, old.policy):
            reached = t.clipped(case.mdp, old, other, clip_eps=eps)
            checks += below(reached, top, 1e-9, old.values)
    return checks


def law_i30(case):
    """KL between the laws of whole paths is the sum over time of mean KL where they pass."""
    mdp, p, q = case.mdp, case.old.policy, case.new.policy
    rows = np.where(case.free, t.row_kl(p, q), 0.0)
    p, q = (np.where(case.free[:, None], x, p) for x in (p, q))
    # Paths s0 a0 s1 a1 s2 a2, one at a time in each entry.
    one = np.einsum(
        "s,sa,sat,tb,tbu,uc->satbuc", mdp.start, p, mdp.transitions, p, mdp.transitions, p
    )
    other = np.einsum(
        "s,sa,sat,tb,tbu,uc->satbuc", mdp.start, q, mdp.transitions, q, mdp.transitions, q
    )
    written = float(special.rel_entr(one, other).sum())
    states, chain = mdp.start, 0.0
    for _ in range(3):
        chain += mean_rows(states, rows)
        states = states @ t.next_states(mdp, p)
    if np.isinf(written) or np.isinf(chain):
        assert written == chain
        return 1
    return close(chain, written, 1e-10)


def law_i31(case):
    """A shift, a scale and a potential of the reward change A and npg's step as they should."""
    mdp, old, rng, checks = case.mdp, case.old, case.rng(31), 0
    c, scale = float(rng.normal()), float(10 ** rng.uniform(-2, 2))
    parts = (old.values, mdp.horizon)

    def with_rewards(rewards):
        changed = t.make_mdp(
            mdp.transitions, rewards, gamma=mdp.gamma, start=mdp.start, terminal=mdp.terminal
        )
        return t.solve(changed, old.policy)

    if not mdp.terminal.any():
        shifted = with_rewards(mdp.rewards + c)
        checks += close(shifted.advantages, old.advantages, 1e-9, *parts)
        checks += close(shifted.eta, old.eta + c * mdp.horizon, 1e-9, *parts)
    scaled = with_rewards(scale * mdp.rewards)
    checks += close(scaled.advantages, scale * old.advantages, 1e-9, scale * old.values)
    checks += close(scaled.eta, scale * old.eta, 1e-9, scale * old.values)
    potential = np.where(mdp.terminal, 0.0, rng.normal(size=mdp.num_states))
    shaping = mdp.gamma * mdp.transitions @ potential - potential[:, None]
    shaped = with_rewards(mdp.rewards + shaping)
    checks += close(shaped.advantages, old.advantages, 1e-9, *parts)
    checks += close(shaped.eta, old.eta - mdp.start @ potential, 1e-9, *parts)
    if case.smooth and not case.flat:
        g = t.gradient(mdp, case.family, old)
        if np.abs(g).max() > 1e-10 * case.size:
            step, there = t.Step(max_kl=0.01), (mdp, case.family, case.theta)
            one, other = (
                case.family.policy(t.EXACT["npg"](*there, solved, step)) for solved in (old, scaled)
            )
            gap = mean_rows(case.weights, np.abs(other - one).sum(axis=1))
            checks += close(gap, 0.0, 1e-6)
    return checks


def law_i32(case):
    """Other names for states and actions change names, and nothing else."""
    mdp, old, new, rng = case.mdp, case.old, case.new, case.rng(32)
    states, actions = rng.permutation(mdp.num_states), rng.permutation(mdp.num_actions)
    table = np.ix_(states, actions)
    renamed = t.make_mdp(
        mdp.transitions[np.ix_(states, actions, states)],
        mdp.rewards[table],
        gamma=mdp.gamma,
        start=mdp.start[states],
        terminal=mdp.terminal[states],
    )
    one, other = t.solve(renamed, old.policy[table]), t.solve(renamed, new.policy[table])
    checks = close(one.advantages, old.advantages[table], 1e-10, old.values)
    checks += close(one.q_values, old.q_values[table], 1e-10, old.values)
    checks += close(one.values, old.values[states], 1e-10)
    checks += close(one.visits, old.visits[states], 1e-10)
    checks += close(one.eta, old.eta, 1e-10, old.values)
    known, found = t.gap_bounds(mdp, old, new), t.gap_bounds(renamed, one, other)
    for name, bound in known.items():
        if np.isinf(bound):
            assert np.isinf(found[name])
            checks += 1
            continue
        # B11 is found by a search, to the square root of rounding in its rate.
        checks += close(found[name], bound, 1e-7 if name == "B11" else 1e-10, old.values)
    if isinstance(case.family, t.Tabular) and case.smooth and not case.flat:
        theta, step = case.theta[table], t.Step()
        for rule in ("vpg", "npg", "ppo-kl"):
            now = case.family.policy(t.EXACT[rule](renamed, case.family, theta, one, step))
            gap = np.abs(now - moved(case, rule)[table]).sum(axis=1)
            checks += close(mean_rows(case.weights[states], gap), 0.0, 1e-7)
    return checks


def law_i33(case):
    """Fresh visits and any critic give the new return, less what the critic said of the start."""
    mdp, new, rng = case.mdp, case.new, case.rng(33)
    critic = 10.0 * rng.normal(size=mdp.num_states)
    errors = case.new_sums.rewards + mdp.gamma * t.next_states(mdp, new.policy) @ critic - critic
    got = new.visits @ errors
    expected = case.new_sums.eta - mdp.start @ critic
    return close(got, expected, 1e-9, new.values, 10 * mdp.horizon)


def law_i36(case):
    """Mean KL is at most the largest, and the effective sample size is 1 / (1 + chi²)."""
    weights, kl = t.state_weights(case.mdp, case.old), t.row_kl(case.old.policy, case.new.policy)
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


LAWS: dict[str, Callable[[Case], int]] = {
    f"I{number}": globals()[f"law_i{number}"] for number in (*range(1, 34), 36)
}
"""The identities and inequalities of the theory, by its numbers."""
COSTLY = ("I19", "I29")
"""What calls a solver for every state or policy: on one case in five of the exhaustive run."""
