"""Claims 15 to 22 a second time."""

import numpy as np

from tests.support.essay.solver import (
    bisect,
    corridor,
    corridors,
    fisher,
    kl,
    kls,
    lake,
    pairs,
    ridge,
    right,
    slope,
    softmax,
    solved,
    table,
    told,
)


def trpo_table(old, delta):
    """The largest surrogate within mean KL delta in a table: bisections within a bisection."""

    def row(pi, A, b):
        # p = b pi / (nu - A) for the nu above every A at which p sums to 1.
        gap = A.max() - A
        low, high = np.log(b) - 60, np.log(b)
        log_x = bisect(lambda x: (b * pi / (np.exp(x) + gap)).sum() - 1, low, high, 100)
        p = b * pi / (np.exp(log_x) + gap)
        return p / p.sum()

    def policy(log_b):
        rows = [
            row(pi, A, np.exp(log_b)) if w > 0 and np.ptp(A) > 0 else pi
            for pi, A, w in zip(old.pi, old.A, old.w, strict=True)
        ]
        return np.array(rows)

    middle = np.log(abs(old.A).max())
    return policy(bisect(lambda x: kl(old, policy(x)) - delta, middle - 20, middle + 20, 70))


def cosine(a, b):
    return (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())


def practice_cosine(old):
    here, seen = old.m.mu, np.zeros(len(old.pi))
    for _ in range(200):
        seen, here = seen + here, here @ old.law
    return cosine(slope(old), seen[:, None] * old.pi * old.A)


def objective_drops_factors():
    numbers = {}
    for name, stay in (("cosine", 0.0), ("slow_cosine", 0.95)):
        for gamma in (0.9, 0.97, 0.99):
            found = []
            for old, _ in pairs(150, gamma, 8):
                P = stay * np.eye(5)[:, None] + (1 - stay) * old.m.P
                found.append(practice_cosine(solved(table(P, old.m.r, gamma), old.pi)))
            numbers[f"{name}_{gamma}"] = np.median(found)
    old = solved(lake("FrozenLake8x8-v1", 0.9), np.full((64, 4), 0.25))
    return numbers | {"lake": practice_cosine(old)}


def step_is_natural():
    old, numbers = solved(lake(), np.full((16, 4), 0.25)), {}
    root = np.sqrt(old.w[:, None] * old.pi)
    for radius in (1e-6, 1e-2, 1.0):
        step = np.log(trpo_table(old, radius) / old.pi)
        step -= (old.pi * step).sum(1, keepdims=True)
        numbers[f"cosine_{radius:.0e}"] = cosine(root * step, root * old.A)
    m, p = ridge(), 0.1
    hill, odds = solved(m, right(m, p)), np.log(p / (1 - p))
    g = (hill.rho @ hill.A[:, 1] - hill.rho @ hill.A[:, 0]) * p * (1 - p)
    # Steps of the log-odds in units of 1 and of 10, by the gradient and by F^-1 g.
    plain = [1 / (1 + np.exp(-odds - k**2 * g)) for k in (1, 10)]
    F = p * (1 - p)
    natural = [
        1 / (1 + np.exp(-odds - k * np.sqrt(0.02 / (k * k * F)) * np.sign(g))) for k in (1, 10)
    ]
    return numbers | {
        "vpg_depends": abs(plain[0] - plain[1]),
        "npg_depends": abs(natural[0] - natural[1]),
    }


def fisher_is_a_metric():
    old = solved(lake(), np.full((16, 4), 0.25))
    F = fisher(old)
    sizes = np.linalg.svd(F, compute_uv=False)
    rank = (sizes > 1e-12 * sizes[0]).sum()
    # What F does not see: a state's logits all alike, and the logits of ends.
    blind = 100 * np.where(old.m.ends[:, None], np.arange(4.0), np.ones((16, 4)))
    pi = np.full((4, 2), 0.5)
    pi[1] = [1, 0]
    walled = solved(corridor(), pi)
    seen = fisher(walled)
    moved = 1 / (1 + np.exp(-10.0))
    return {
        "parameters": F.shape[0],
        "rank": rank,
        "free": 3 * ((old.rho > 0) & ~old.m.ends).sum(),
        "least": sizes[rank - 1],
        "blind_kl": kl(old, softmax(np.log(old.pi) + blind)),
        "walled_parameters": seen.shape[0],
        "walled_rank": (np.linalg.svd(seen, compute_uv=False) > 1e-12).sum(),
        "unseen_length": 100 * seen[5, 5],
        "unseen_tv": moved - 0.5,
    }


def fisher_measures():
    old = solved(lake(), np.full((16, 4), 0.25))
    d = np.random.default_rng(0).normal(size=(16, 4))
    centred = d - (old.pi * d).sum(1, keepdims=True)
    half = old.w @ (old.pi * centred**2).sum(1) / 2
    lengths, errors = 10 ** (-2 + np.arange(9) / 8), []
    for a in lengths:
        new = softmax(a * d)
        one, other = old.w @ kls(old.pi, new), old.w @ kls(new, old.pi)
        errors.append([abs(one - a * a * half), abs(other - a * a * half), abs(one - other)])
    x, y = np.log(lengths), np.log(errors)
    x = x - x.mean()
    slopes = (x[:, None] * (y - y.mean(0))).sum(0) / (x @ x)
    numbers = dict(zip(("slope_forward", "slope_reverse", "slope_between"), slopes, strict=True))
    m = corridor()
    here, odds = solved(m, right(m, 0.05)), np.log(0.05 / 0.95)
    for state, name in ((0, "first"), (3, "edge")):
        step = np.sqrt(2e-8 / (here.w[state] * 0.05 * 0.95))
        pi = right(m, 0.05)
        p = 1 / (1 + np.exp(-odds - step))
        pi[state] = [1 - p, p]
        numbers[f"kl_{name}"] = kl(here, pi)
        numbers[f"visits_moved_{name}"] = abs(solved(m, pi).rho - here.rho).sum() / 40
    return numbers


def parameters_mislead():
    a = 1 / (1 + np.exp(20.0))
    b, p = 1 / (1 + np.exp(60.0)), 1 / (1 + np.exp(3.0))
    return {
        "small_kl": (1 - a) * (np.log1p(-a) - np.log1p(-b)) + a * np.log(a / b),
        "large_kl": (1 - 2 * p) * np.log((1 - p) / p),
        "p_before": p,
        "p_after": 1 - p,
    }


def cg_and_line_search():
    old = solved(lake(), np.full((16, 4), 0.25))
    F, g, numbers = fisher(old), (old.w[:, None] * old.pi * old.A).reshape(-1), {}
    best = told(old, trpo_table(old, 0.01)) - old.eta
    x, r = np.zeros(64), g
    d = r
    for products in range(1, 11):
        Fd = F @ d
        a = (r @ r) / (d @ Fd)
        x, new_r = x + a * d, r - a * Fd
        d, r = new_r + (new_r @ new_r) / (r @ r) * d, new_r
        if products in (1, 3, 10):
            # Nine tenths of the radius by the quadratic, and inside the radius in truth.
            step = np.sqrt(0.018 / (x @ F @ x)) * x.reshape(16, 4)
            new = softmax(step)
            assert kl(old, new) <= 0.01
            numbers[f"kept_{products}"] = (told(old, new) - old.eta) / best
    far, most = [], 0
    for m, p, at in corridors():
        sign = np.sign(told(at, right(m, p + 1e-3)) - at.eta)
        full, tries = sign * np.sqrt(0.02 / (p * (1 - p))), 1

        def after(t, m=m, p=p, full=full):
            return right(m, 1 / (1 + (1 - p) / p * np.exp(-(0.8 ** (t - 1)) * full)))

        far.append(kl(at, after(1)) / 0.01)
        while kl(at, after(tries)) > 0.01 or told(at, after(tries)) <= at.eta:
            tries += 1
        most = max(most, tries)
    far = np.array(far)
    return numbers | {
        "corridors": len(far),
        "beyond": (far > 1).mean(),
        "farthest": far.max(),
        "most_tries": most,
    }


def counted(width):
    """Multiplications of matrices alone, in forward passes of a network 17-width-width-6."""
    first, forward = 17 * width, 17 * width + width**2 + 6 * width
    critic = forward - 5 * width
    # Backwards a layer costs twice: its weights, and its inputs but for the first layer's.
    return {
        "gradient": 3 - first / forward,
        "product": 4 - 2 * first / forward,
        "rescale": 3 - first / forward,
        "critic": (3 * critic - first) / forward,
    }


def passes(width, share, products):
    cost = counted(width)
    return cost["gradient"] + cost["rescale"] + 2 + share * (1 + products * cost["product"])


def price():
    cost = counted(64)
    return {
        "gradient": cost["gradient"],
        "product": cost["product"],
        "products": 10,
        "share": 0.25,
        "trpo_textbook": passes(64, 1, 10),
        "trpo": passes(64, 0.25, 10),
        "trpo_15": passes(64, 0.25, 15),
        "ppo": 10 * cost["gradient"],
        "critic": 10 * cost["critic"],
    }


def exact_optimisation():
    rng, certain, kept = np.random.default_rng(0), 0, 0
    for old, _ in pairs(100, 0.5, 9):
        for _ in range(20):
            noise = rng.normal(size=(5, 3))
            new = solved(old.m, softmax(np.log(old.pi) + 10 ** rng.uniform(-6, -2) * noise))
            near = min(kls(old.pi, new.pi).max(), kls(new.pi, old.pi).max())
            if told(old, new.pi) - 8 * abs(old.A).max() * near > old.eta:
                certain += 1
                kept += new.eta > old.eta
    return {"certain": certain, "kept": kept}


CLAIMS = (
    objective_drops_factors,
    step_is_natural,
    fisher_is_a_metric,
    fisher_measures,
    parameters_mislead,
    cg_and_line_search,
    price,
    exact_optimisation,
)
