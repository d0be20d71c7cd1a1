"""Claims 23 to 28 a second time."""

import numpy as np

from tests.support.essay.bound import falls
from tests.support.essay.solver import (
    clip,
    corridor,
    kl,
    kls,
    pairs,
    ppo_right,
    random_table,
    right,
    slope,
    softmax,
    solved,
    table,
    told,
    trpo_right,
)
from tests.support.essay.trpo import counted, passes


def clipped_objective():
    above = over = inside = 0
    worst = off = 0.0
    rng, h = np.random.default_rng(2), 1e-6
    for old, new in pairs(300, 0.9, 12):
        value, promise = clip(old, new.pi), told(old, new.pi)
        above, over = above + (value > promise + 1e-9), over + (value > new.eta + 1e-9)
        if abs(new.pi / old.pi - 1).max() <= 0.2:
            inside, worst = inside + 1, max(worst, abs(value - promise))
        d = rng.normal(size=(5, 3))
        ends = [clip(old, softmax(np.log(old.pi) + s * h * d)) for s in (1, -1)]
        off = max(off, abs((ends[0] - ends[1]) / (2 * h) - (slope(old) * d).sum()))
    return {
        "pairs": 300,
        "above_surrogate": above,
        "above_return": over / 300,
        "inside": inside,
        "worst_inside": worst,
        "worst_slope": off,
    }


def clip_bounds_no_ratio():
    # The other action's ratio stops at 0.8.
    ends = {q: 1 - 0.8 * (1 - q) for q in (0.1, 0.01, 0.001)}
    one = table(np.ones((1, 2, 1)), np.array([[0.0, 1.0]]), 0.0)
    old = solved(one, np.array([[0.99, 0.01]]))
    near, certain = (clip(old, np.array([[1 - p, p]])) for p in (ends[0.01], 1.0))
    for below in (ends[0.01] - 1e-3, 0.012):
        assert clip(old, np.array([[1 - below, below]])) < near - 1e-6
    return {f"ratio_{q}": p / q for q, p in ends.items()} | {
        "value_nearest": near,
        "value_certain": certain,
    }


def adam(gradient, x, steps, rate, max_norm=np.inf):
    """Adam upwards, as Kingma and Ba have it, with epsilon 1e-5, on one number."""
    mean = square = 0.0
    for step in range(1, steps + 1):
        g = gradient(x)
        g = g if abs(g) < max_norm else np.sign(g) * max_norm
        mean, square = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g * g
        x += rate * mean / (1 - 0.9**step) / (np.sqrt(square / (1 - 0.999**step)) + 1e-5)
    return x


def clipped_slope(old, stiff):
    """Slope of the clipped objective in x, where the log-odds of state s move by stiff[s] x."""
    odds = np.log(old.pi[:, 1] / old.pi[:, 0])

    def at(x):
        p = 1 / (1 + np.exp(-odds - stiff * x))
        pi = np.stack([1 - p, p], axis=1)
        ratio, A = pi / old.pi, old.A
        live = np.where(A > 0, ratio < 1.2, ratio > 0.8) & (A != 0)
        turn = p * (1 - p) * stiff
        return float(old.w @ ((live * A) @ np.array([-1.0, 1.0]) * turn))

    return at


def first_order_suffices():
    m = table(np.full((2, 2, 2), 0.5), np.array([[1.0, 0], [1, 0]]), 0.0, np.full(2, 0.5))
    old, stiff, numbers = solved(m, np.full((2, 2), 0.5)), np.array([10.0, 0.5]), {}
    # Nothing is left to gain once no ratio of the second action is above 0.8.
    top = clip(old, right(m, 0.4)) - old.eta
    for steps, suffix in ((320, "_320"), (3000, "")):
        x = adam(clipped_slope(old, stiff), 0.0, steps, 1e-3)
        p = 1 / (1 + np.exp(-stiff * x))
        new = np.stack([1 - p, p], axis=1)
        numbers |= {
            f"reached{suffix}": (clip(old, new) - old.eta) / top,
            f"ratio_first{suffix}": p[0] / 0.5,
            f"ratio_second{suffix}": p[1] / 0.5,
            f"kl{suffix}": kls(old.pi, new)[0],
        }
    return numbers


def climb(old, features, theta):
    """Plain ascent of the clipped objective from theta: uphill steps, halved where none is."""

    def value(x):
        return clip(old, softmax(features @ x))

    length, here = 1e-2, value(theta)
    spread = np.abs(features).max()
    for _ in range(4000):
        pi = softmax(features @ theta)
        ratio = pi / old.pi
        live = np.where(old.A > 0, ratio < 1.2, ratio > 0.8) * old.A * old.rho[:, None]
        centred = live - (pi * live).sum(1, keepdims=True)
        g = np.einsum("sa,sak->k", pi * centred, features)
        step = length / spread * g / max(np.sqrt(g @ g), 1e-300)
        # Across a kink the way up may be along it: try also either side of the gradient.
        turned = np.array([-step[1], step[0]])
        best = max((step, turned, -turned), key=lambda s: value(theta + s))
        if value(theta + best) > here:
            theta, here, length = theta + best, value(theta + best), min(1.5 * length, 1e-2)
        elif length > 1e-7:
            length /= 2
        else:
            break
    return softmax(features @ theta)


def needs_no_guarantee():
    rng, fell = np.random.default_rng(0), 0
    for index in range(60):
        m = random_table(index, gamma=(0.5, 0.9, 0.95)[index % 3])
        features = rng.normal(size=(6, 3, 2))
        theta = rng.normal(size=2)
        old = solved(m, softmax(features @ theta))
        fell += solved(m, climb(old, features, theta)).eta < old.eta - 1e-9
    return {
        "corridors": len(falls()),
        "corridor_fell": falls()[:, 1].mean(),
        "random_fell": fell / 60,
        "random_fell_count": fell,
    }


def cliff():
    m = corridor()
    old, odds = solved(m, right(m, 0.05)), np.log(0.05 / 0.95)
    ppo, trpo, tight = ppo_right(old, 0.05), trpo_right(old, 0.05, 0.01), ppo_right(old, 0.05, 0.05)
    far = kl(old, right(m, ppo))
    slope_at = clipped_slope(old, np.ones(4))
    usual = adam(slope_at, 0.0, 320, 3e-4, 0.5)
    longer = adam(slope_at, 0.0, 20_000, 3e-3)

    def got(p):
        return solved(m, right(m, p)).eta

    return {
        "old": old.eta,
        "ppo_promised": told(old, right(m, ppo)),
        "ppo_got": got(ppo),
        "ppo_kl": far,
        "ppo_p": ppo,
        "trpo_promised": told(old, right(m, trpo)),
        "trpo_got": got(trpo),
        "trpo_at_ppos_kl": got(trpo_right(old, 0.05, far)),
        "ppo_tight": got(tight),
        "usual_p": 1 / (1 + np.exp(-odds - usual)),
        "training_p": 1 / (1 + np.exp(-odds - longer)),
    }


def cheap_at_scale():
    return {
        "ppo_64": 10 * counted(64)["gradient"],
        "ppo_1024": 10 * counted(1024)["gradient"],
        "trpo_64": passes(64, 1, 10),
        "trpo_1024": passes(1024, 1, 10),
        "steps": 10 * 32,
        "sweeps": 1 + 10 + 1 + 2,
    }


CLAIMS = (
    clipped_objective,
    clip_bounds_no_ratio,
    first_order_suffices,
    needs_no_guarantee,
    cliff,
    cheap_at_scale,
)
