"""Random cases of exact MDPs, each computed a second way, and checks with tolerances."""

from typing import Any, NamedTuple

import numpy as np
from scipy import special

from surefoot.exact import (
    MDP,
    LinearSoftmax,
    SolvedPolicy,
    StartingPoint,
    StepSizes,
    TabularSoftmax,
    corridor,
    make_mdp,
    random_mdp,
    ridge,
    solve,
    updated,
)
from surefoot.exact.families import one_parameter

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
    start: StartingPoint
    new: SolvedPolicy
    old_sums: Sums
    new_sums: Sums
    weights: np.ndarray

    @property
    def mdp(self) -> MDP:
        return self.start.mdp

    @property
    def family(self) -> Any:
        return self.start.family

    @property
    def theta(self) -> np.ndarray:
        return self.start.theta

    @property
    def old(self) -> SolvedPolicy:
        return self.start.old

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
        return kind, ridge(B=float(rng.choice([0.0, 1.0, 2.0, 9.0])), gamma=gamma)
    if kind == "corridor":
        length, cost = int(rng.integers(2, 7)), float(10 ** rng.uniform(0, 3))
        return kind, corridor(m=length, B=cost, gamma=gamma, stay=bool(rng.integers(2)))
    base = random_mdp(
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
        # Two ends where there is room: an episode may end in either.
        ends = rng.integers(base.num_states, size=1 + (base.num_states > 2))
        kind, terminal = kind + ", ends", np.isin(np.arange(base.num_states), ends)
    rewards = base.rewards * rng.choice([0.01, 1.0, 1.0, 30.0])
    made = make_mdp(base.transitions, rewards, gamma=gamma, start=start, terminal=terminal)
    return kind, made


def draw_family(rng, mdp):
    """A family, and parameters of a near-uniform, a plain or a near-deterministic policy."""
    shape, scale = (mdp.num_states, mdp.num_actions), float(rng.choice([0.1, 1.0, 5.0]))
    if mdp.name in ("ridge", "corridor") and rng.random() < 0.7:
        return one_parameter(mdp), rng.uniform(-4.0, 1.0, size=1)
    if rng.random() < 0.4:
        features = rng.normal(size=(*shape, int(rng.integers(1, 4))))
        return LinearSoftmax(features), scale * rng.normal(size=features.shape[2])
    theta = scale * rng.normal(size=shape)
    if rng.random() < 0.08:
        out = rng.random(shape) < 0.3
        out[np.arange(mdp.num_states), rng.integers(mdp.num_actions, size=mdp.num_states)] = False
        theta = np.where(out, -np.inf, theta)
    return TabularSoftmax(), theta


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
    start = StartingPoint(mdp, family, theta)
    old = start.old
    way = str(rng.choice(NEWS, p=(0.2, 0.25, 0.25, 0.25, 0.05)))
    new = solve(mdp, draw_new(rng, way, family, theta, old))
    old_sums, new_sums = sums_over_time(mdp, old.policy), sums_over_time(mdp, new.policy)
    seen = np.where(mdp.terminal, 0.0, old_sums.visits)
    weights = seen / seen.sum() if seen.sum() > 0 else seen
    return Case(seed, f"{kind}; {way}", start, new, old_sums, new_sums, weights)


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
    if isinstance(case.family, LinearSoftmax):
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
    shared = isinstance(case.family, LinearSoftmax)
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


def kl_rows(p, q):
    """KL(p || q) of each row; a sum of rounding is 0."""
    return np.maximum(special.rel_entr(p, q).sum(axis=1), 0.0)


def natural_x(case):
    """F+g in a table, from the closed form: A times all visits of states that are not ends."""
    seen = case.weights > 0
    total = case.old_sums.visits[case.free].sum()
    return np.where(seen[:, None], case.old_sums.advantages, 0.0) * total


def moved(case, rule, **sizes):
    """The policy after one exact update."""
    return updated(case.start, rule, StepSizes(**sizes)).policy
