"""Finite MDPs in plain NumPy: tables, their solution, one-dimensional searches, cases."""

import itertools
from types import SimpleNamespace

import gymnasium
import numpy as np


def table(P, r, gamma, mu=None, ends=None):
    ends = np.zeros(len(P), bool) if ends is None else ends
    mu = np.eye(len(P))[0] if mu is None else mu
    return SimpleNamespace(P=P, r=r, gamma=gamma, mu=mu, ends=ends, H=1 / (1 - gamma))


def solved(m, pi):
    """A policy with V, Q, A, rho and eta, by one inverse."""
    law = sum(pi[:, a, None] * m.P[:, a] for a in range(pi.shape[1]))
    inverse = np.linalg.inv(np.eye(len(law)) - m.gamma * law)
    V = inverse @ (pi * m.r).sum(1)
    Q = m.r + m.gamma * np.einsum("sat,t->sa", m.P, V)
    A = np.where(m.ends[:, None], 0.0, Q - V[:, None])
    rho = m.mu @ inverse
    free = np.where(m.ends, 0.0, rho)
    return SimpleNamespace(
        m=m, pi=pi, V=V, Q=Q, A=A, rho=rho, eta=m.mu @ V, law=law, w=free / free.sum()
    )


def told(old, pi):
    """L: the return of pi as the old policy's visits and advantages tell it."""
    return old.eta + old.rho @ (pi * old.A).sum(1)


def kls(p, q):
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(p > 0, p * np.log(p / q), 0.0).sum(1)


def kl(old, pi):
    return sum(w * each for w, each in zip(old.w, kls(old.pi, pi), strict=True) if w > 0)


def tvs(p, q):
    return abs(p - q).sum(1) / 2


def clip(old, pi, eps=0.2):
    ratio = pi / old.pi
    part = np.minimum(ratio * old.A, np.minimum(np.maximum(ratio, 1 - eps), 1 + eps) * old.A)
    return old.eta + old.rho @ (old.pi * part).sum(1)


def softmax(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def bisect(f, low, high, halvings=200):
    """Where f changes its sign between low and high."""
    sign = f(low) > 0
    for _ in range(halvings):
        middle = (low + high) / 2
        low, high = (middle, high) if (f(middle) > 0) == sign else (low, middle)
    return (low + high) / 2


def golden(f, low, high, rounds=120):
    """Where f is largest between low and high, if it has one top there."""
    g = (np.sqrt(5) - 1) / 2
    for _ in range(rounds):
        a, b = high - g * (high - low), low + g * (high - low)
        low, high = (a, high) if f(a) < f(b) else (low, b)
    return (low + high) / 2


def right(m, p):
    return np.tile([1 - p, p], (len(m.P), 1))


def corridor(m=4, B=200.0, gamma=0.95, stay=False):
    P, r = np.zeros((m, 2, m)), np.zeros((m, 2))
    for s in range(m):
        P[s, 0, s if stay else 0] = 1
        P[s, 1, (s + 1) % m] = 1
        r[s, 1] = 1
    r[-1, 1] = -B
    return table(P, r, gamma)


def ridge():
    P = np.zeros((2, 2, 2))
    P[0, 0, 0] = P[0, 1, 1] = P[1, 0, 0] = P[1, 1, 0] = 1
    return table(P, np.array([[0, 0], [1, -2.0]]), 0.95)


def corridors():
    """Every corridor of the page's grid with its old p and solution, where that earns something."""
    costs, starts = (1, 10, 50, 200, 1000), (0.02, 0.05, 0.1, 0.2, 0.4, 0.6)
    for stay, m, B, gamma, p in itertools.product(
        (False, True), (2, 3, 4, 5, 7), costs, (0.9, 0.95, 0.99), starts
    ):
        made = corridor(m, B, gamma, stay)
        old = solved(made, right(made, p))
        if old.eta > 0:
            yield made, p, old


def lake(name="FrozenLake-v1", gamma=0.99):
    """FrozenLake's own table: holes and the goal are where its letters say."""
    env = gymnasium.make(name).unwrapped
    letters, n = env.desc.reshape(-1), env.observation_space.n
    P, r = np.zeros((n, 4, n)), np.zeros((n, 4))
    ends = np.isin(letters, [b"H", b"G"])
    for s, a in itertools.product(range(n), range(4)):
        for probability, to, reward, _ in env.P[s][a]:
            P[s, a, s if ends[s] else to] += probability
            r[s, a] += 0 if ends[s] else probability * reward
    return table(P, r, gamma, ends=ends)


def random_table(seed, states=6, actions=3, gamma=0.9, concentration=1.0):
    rng, shape = np.random.default_rng(seed), (states, actions)
    if concentration == 0:
        P = np.eye(states)[rng.integers(states, size=shape)]
    else:
        P = rng.dirichlet(np.full(states, concentration), size=shape)
        P = P / P.sum(-1, keepdims=True)
    r = rng.normal(size=shape)
    rng.random(shape)
    mu = rng.dirichlet(np.ones(states))
    return table(P, r, gamma, mu / mu.sum())


def pairs(count, gamma, seed=0):
    rng = np.random.default_rng(seed)
    for index in range(count):
        m = random_table(
            int(rng.integers(2**31)), 5, 3, gamma, concentration=(1.0, 0.15, 0.0)[index % 3]
        )
        x = rng.normal(size=(5, 3)) * rng.choice([0.3, 1.0, 3.0])
        y = x + rng.normal(size=(5, 3)) * rng.choice([0.05, 0.5, 2.0])
        yield solved(m, softmax(x)), solved(m, softmax(y))


def slope(old):
    """Gradient of eta in the logits of a table."""
    return old.rho[:, None] * old.pi * old.A


def fisher(old):
    """Mean Fisher matrix of a table, from the scores of every action one by one."""
    n, k = old.pi.shape
    F = np.zeros((n * k, n * k))
    for s, a in itertools.product(range(n), range(k)):
        score = np.zeros((n, k))
        score[s] = -old.pi[s]
        score[s, a] += 1
        F += old.w[s] * old.pi[s, a] * np.outer(score, score)
    return F


def trpo_right(old, p, delta):
    """The p within KL delta where L, a straight line in p, is highest."""
    m = old.m
    up = told(old, right(m, p + 1e-3)) > told(old, right(m, p))
    far = (lambda t: p + t * (1 - 1e-15 - p)) if up else (lambda t: p * (1 - t) + 1e-300)
    return far(bisect(lambda t: kl(old, right(m, far(t))) - delta, 0.0, 1.0))


def ppo_right(old, p, eps=0.2):
    """The nearest p where the clipped objective, straight between its kinks, rises no more."""
    m = old.m

    def value(q):
        return clip(old, right(m, q), eps)

    up = value(p + 1e-9) > value(p)
    kinks = {p * (1 + eps), p * (1 - eps), 1 - (1 - p) * (1 - eps), 1 - (1 - p) * (1 + eps)}
    ahead = sorted((q for q in kinks if 0 < q < 1 and (q > p) == up), reverse=not up)
    for here, there in zip(ahead, [*ahead[1:], 1.0 if up else 0.0], strict=True):
        middle = (here + there) / 2
        if value(middle) <= value(here) + 1e-12 * abs(value(middle) - value(p)):
            return here
    return there
