"""The Fisher matrix and the natural gradient: I11 to I17."""

import numpy as np

from surefoot.exact import (
    LinearSoftmax,
    StartingPoint,
    StepSizes,
    TabularSoftmax,
    fisher_matrix,
    kl_per_state,
    updated,
)
from surefoot.exact.families import policy_gradient
from surefoot.exact.updates import EXACT_UPDATES, natural_gradient
from tests.support.laws.cases import (
    below,
    bend,
    close,
    direction,
    mean_rows,
    moved,
    natural_x,
    scores,
    slope,
)


def law_i11(case):
    """The Fisher matrix is the Hessian of mean KL in both directions, whose gradient is 0."""
    if not case.smooth:
        return 0
    F, rng, checks = fisher_matrix(case.family, case.old), case.rng(11), 0
    weights, old = case.old.weights, case.old.policy
    checks += close(weights, case.weights, 1e-10)
    for _ in range(2):
        u, _ = direction(case, rng)
        expected = u.reshape(-1) @ F @ u.reshape(-1)
        policy_at = lambda h, u=u: case.family.policy(case.theta + h * u)  # noqa: E731
        forward = lambda h: float(weights @ kl_per_state(old, policy_at(h)))  # noqa: E731, B023
        reverse = lambda h: float(weights @ kl_per_state(policy_at(h), old))  # noqa: E731, B023
        for kl in (forward, reverse):
            error = abs(bend(kl, 1e-3) - expected)
            assert error <= 1e-5 * expected + 1e-9, (error, expected)
            # 1e-10 rather than 0: what is left of rounding, divided by h.
            assert abs(slope(kl, 1e-3)) <= 1e-10
            checks += 2
    return checks


def law_i12(case):
    """The Fisher matrix is the mean outer product of the score, and has no negative curvature."""
    F = fisher_matrix(case.family, case.old)
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
            found.append(float(weights @ (kl_per_state(old, new) - kl_per_state(new, old))))
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
    old = case.old
    if not isinstance(case.family, TabularSoftmax):
        return 0
    x, curvature = natural_gradient(case.family, old)
    F, g = fisher_matrix(case.family, old), policy_gradient(case.family, old)
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
    moved_to = EXACT_UPDATES["npg"](case.start, StepSizes(max_kl=radius))
    step = (moved_to - case.theta).reshape(-1)
    F = fisher_matrix(case.family, case.old)
    g = policy_gradient(case.family, case.old).reshape(-1)
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
    spectrum = np.linalg.eigvalsh(fisher_matrix(case.family, case.old))
    # A direction that hardly counts, but is not cut off, is lost to rounding in both.
    if ((spectrum > 1e-13 * spectrum[-1]) & (spectrum < 1e-10 * spectrum[-1])).any():
        return 0
    x, curvature = natural_gradient(case.family, case.old)
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
    if isinstance(case.family, LinearSoftmax):
        features = case.family.features
    size = features.shape[2]
    left, right = (np.linalg.qr(rng.normal(size=(size, size)))[0] for _ in range(2))
    B = left @ np.diag(np.geomspace(0.3, 3.0, size)) @ right
    family = LinearSoftmax(features @ B)
    phi = np.linalg.solve(B, case.theta.reshape(-1))
    new = updated(StartingPoint(mdp, family, phi), "npg", StepSizes(max_kl=radius)).policy
    same = moved(case, "npg", max_kl=radius)
    # On visited states: where nobody goes, the shortest of equal steps differs.
    return close(mean_rows(case.weights, np.abs(new - same).sum(axis=1)), 0.0, 1e-4)
