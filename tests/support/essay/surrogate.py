"""Claims 1 to 7 a second time."""

import numpy as np

from tests.support.essay.solver import (
    bisect,
    corridor,
    golden,
    kl,
    pairs,
    ppo_right,
    random_table,
    right,
    slope,
    softmax,
    solved,
    told,
)


def old_corridor(p=0.05):
    m = corridor()
    return m, solved(m, right(m, p))


def p_of(theta):
    return 1 / (1 + np.exp(-theta))


def theta_of(p):
    return np.log(p / (1 - p))


def odds_kl(p, x):
    """KL of two actions, p of the second to log-odds x, where 1 - p would round to 0."""
    return p * np.log(p) + (1 - p) * np.log(1 - p) + np.log1p(np.exp(-x)) + (1 - p) * x


def data_moves():
    m, old = old_corridor()
    p = ppo_right(old, 0.05)
    new = solved(m, right(m, p))
    return {
        "p_new": p,
        "edge_share_before": old.rho[-1] / m.H,
        "edge_share_after": new.rho[-1] / m.H,
        "edge_times": new.rho[-1] / old.rho[-1],
        "visitation_tv": abs(new.rho - old.rho).sum() / 2 / m.H,
    }


def landscape_is_fixed():
    m, _ = old_corridor()
    seen = {f"L_from_{p}": told(old_corridor(p)[1], right(m, 0.24)) for p in (0.05, 0.1, 0.24)}
    return seen | {"eta": old_corridor(0.24)[1].eta}


def instability_has_three_causes():
    m, old = old_corridor()
    h = 1e-6
    # The slope of eta in the log-odds, by differences.
    ends = [solved(m, right(m, p_of(theta_of(0.05) + s * h))).eta for s in (1, -1)]
    g = (ends[0] - ends[1]) / (2 * h)
    one, ten = (p_of(theta_of(0.05) + 2 * k * g) for k in (1, 100))
    sample, everywhere, realised = sampled_steps()
    return {
        "eta_old": old.eta,
        "promised": told(old, right(m, one)),
        "got": solved(m, right(m, one)).eta,
        "kl": kl(old, right(m, one)),
        "kl_rescaled": odds_kl(0.05, theta_of(0.05) + 200 * g),
        "got_rescaled": solved(m, right(m, ten)).eta,
        "promised_in_sample": sample,
        "promised_by_all_data": everywhere,
        "realised": realised,
        "lost_to_noise": 1 - everywhere / sample,
        "lost_to_visits": 1 - realised / everywhere,
    }


def sampled_steps():
    m = random_table(7, 20, 4, 0.95)
    old = solved(m, np.full((20, 4), 0.25))
    chance = (old.w[:, None] * old.pi).reshape(-1)
    rng, found = np.random.default_rng(0), []
    for _ in range(100):
        share = rng.multinomial(256, chance / chance.sum()).reshape(20, 4) / 256
        g = share * old.A - old.pi * (share * old.A).sum(1, keepdims=True)
        centred = g - (old.pi * g).sum(1, keepdims=True)
        curvature = old.w @ (old.pi * centred**2).sum(1)
        new = solved(m, softmax(np.sqrt(0.04 / curvature) * g))
        in_sample = m.H * (share * (new.pi / old.pi - 1) * old.A).sum()
        found.append([in_sample, told(old, new.pi) - old.eta, new.eta - old.eta])
    return np.mean(found, axis=0)


def performance_difference():
    factors, worst = [], 0.0
    for old, new in pairs(300, 0.9):
        right_side = new.rho @ (new.pi * old.A).sum(1)
        worst = max(worst, abs(new.eta - old.eta - right_side))
        if abs(right_side) > 1e-2:
            factors.append((new.eta - old.eta) / (0.1 * right_side))
    return {"largest_error": worst, "factor_if_normalised": np.median(factors)}


def the_lie():
    worst = off = 0.0
    rng, h = np.random.default_rng(1), 1e-5
    for old, new in pairs(200, 0.9, 1):
        gap, shift = (
            new.eta - told(old, new.pi),
            old.m.gamma * old.rho @ (new.law - old.law),
        )
        inverse = np.linalg.inv(np.eye(5) - old.m.gamma * new.law)
        lift = (new.pi * old.A).sum(1)
        forms = ((new.rho - old.rho) @ lift, shift @ inverse @ lift, shift @ (new.V - old.V))
        worst = max(worst, *(abs(gap - form) for form in forms))
        d = rng.normal(size=(5, 3))
        ends = [solved(old.m, softmax(np.log(old.pi) + s * h * d)).eta for s in (1, -1)]
        off = max(off, abs((ends[0] - ends[1]) / (2 * h) - (slope(old) * d).sum()))
    return {"largest_disagreement": worst, "largest_slope_error": off}


def tangent_plane():
    m, old = old_corridor()

    def promise(step):
        return told(old, right(m, p_of(theta_of(0.05) + step)))

    steps = 1e-4 * (4e4) ** (np.arange(9) / 24)
    gaps = [abs(promise(x) - solved(m, right(m, p_of(theta_of(0.05) + x))).eta) for x in steps]
    x, y = np.log(steps), np.log(gaps)
    near, far = promise(0.0), told(old, right(m, 0.9))
    flat = [
        abs(told(old, right(m, 0.05 + a * 0.85)) - near - a * (far - near)) for a in (0.1, 0.5, 0.7)
    ]
    return {
        "slope": ((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum(),
        "affine_error": max(flat),
        "bend": abs(promise(1.0) - (old.eta + promise(2.0)) / 2),
    }


def how_far():
    m, old = old_corridor()

    def realised(p):
        return solved(m, right(m, p)).eta - old.eta

    def promised(p):
        return told(old, right(m, p)) - old.eta

    half = bisect(lambda p: realised(p) - promised(p) / 2, 0.06, 0.3)
    broken = bisect(realised, 0.06, 0.4)
    best = golden(realised, 0.05, 0.3)
    gaps = np.array([told(old, new.pi) - new.eta for old, new in pairs(400, 0.9, 2)])
    return {
        "edge_of_trust_kl": kl(old, right(m, half)),
        "break_even_kl": kl(old, right(m, broken)),
        "best_kl": kl(old, right(m, best)),
        "best_eta": old.eta + realised(best),
        "over_promised": (gaps > 1e-12).mean(),
        "under_promised": (gaps < -1e-12).mean(),
    }


CLAIMS = (
    data_moves,
    landscape_is_fixed,
    instability_has_three_causes,
    performance_difference,
    the_lie,
    tangent_plane,
    how_far,
)
