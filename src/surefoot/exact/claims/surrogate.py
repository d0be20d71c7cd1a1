"""The essay's first half: the data moves, the surrogate does not, and where they part."""

import numpy as np

from surefoot import exact
from surefoot.exact.claims.cases import Finding, finding, going_right, random_pairs
from surefoot.exact.families import one_parameter, policy_gradient
from surefoot.exact.picture import LinePicture, PlottedLine
from surefoot.exact.solution import gap_forms
from surefoot.exact.updates import exact_trpo


def data_moves() -> Finding:
    """In RL, a step changes the data."""
    start = exact.starting_point(exact.corridor())
    new = exact.updated(start, "ppo")
    before, after = ((1 - start.mdp.gamma) * s.visits[-1] for s in (start.old, new))
    return finding(
        edge_share_before=before,
        edge_share_after=after,
        edge_times=after / before,
        p_new=new.policy[0, 1],
        visitation_tv=exact.visitation_tv(start.old, new),
    )


def landscape_is_fixed() -> Finding:
    """The landscape does not shift; the surrogate does."""
    mdp, points, grid = exact.corridor(), (0.05, 0.1, 0.24), np.linspace(0.02, 0.3, 141)
    olds = [exact.solve(mdp, going_right(mdp, p)) for p in points]
    walks = [exact.walk(old, [going_right(mdp, p) for p in grid]) for old in olds]
    tangents = zip(points, walks, ("#D55E00", "#E69F00", "#56B4E9"), strict=True)
    picture = LinePicture(
        title="corridor: the return stays, its tangents move",
        xlabel="probability of going right",
        ylabel="discounted return",
        lines=[
            PlottedLine("η, one curve for ever", grid, walks[0].eta, "#000000"),
            *(PlottedLine(f"L drawn at p = {p}", grid, w.surrogate, c) for p, w, c in tangents),
        ],
        dots=[(p, old.eta) for p, old in zip(points, olds, strict=True)],
    )
    last = olds[-1]
    seen = {f"L_from_{p}": old.surrogate(last.policy) for p, old in zip(points, olds, strict=True)}
    return finding(picture, **seen, eta=last.eta)


def instability_has_three_causes() -> Finding:
    """Visitation is one cause of instability among three."""
    start, sizes = exact.starting_point(exact.corridor()), exact.StepSizes(learning_rate=2.0)
    new = exact.updated(start, "vpg", sizes)
    scaled = exact.updated(rescaled(start), "vpg", sizes)
    sample, everywhere, realised = sampled_gains(
        exact.random_mdp(7, num_states=20, num_actions=4, gamma=0.95),
        rows=256,
        repeats=100,
        max_kl=0.02,
    )
    return finding(
        eta_old=start.old.eta,
        kl=start.old.kl(new.policy),
        promised=start.old.surrogate(new.policy),
        got=new.eta,
        kl_rescaled=start.old.kl(scaled.policy),
        got_rescaled=scaled.eta,
        promised_in_sample=sample,
        promised_by_all_data=everywhere,
        realised=realised,
        lost_to_noise=1 - everywhere / sample,
        lost_to_visits=1 - realised / everywhere,
    )


def rescaled(start: exact.StartingPoint) -> exact.StartingPoint:
    """The same policy with one parameter in units ten times as large."""
    family = exact.LinearSoftmax(10.0 * one_parameter(start.mdp).features)
    return exact.StartingPoint(start.mdp, family, start.theta / 10.0)


def sampled_gains(
    mdp: exact.MDP, *, rows: int, repeats: int, max_kl: float
) -> tuple[float, float, float]:
    """Mean gain of sampled gradient steps: promised by the sample, by all data, and realised.

    States and actions are sampled under the uniform policy, advantages are exact, and each step
    has the same quadratic KL. The first difference is the noise of the sample, the second the
    shift of visits.
    """
    family, theta = exact.TabularSoftmax(), np.zeros((mdp.num_states, mdp.num_actions))
    old = exact.solve(mdp, family.policy(theta))
    fisher = exact.fisher_matrix(family, old)
    law = (old.weights[:, None] * old.policy).reshape(-1)
    visited = old.visits[~mdp.terminal].sum()
    rng = np.random.default_rng(0)
    gains = []
    for _ in range(repeats):
        share = rng.multinomial(rows, law / law.sum()).reshape(old.policy.shape) / rows
        gradient = family.vjp(old.policy, share * old.advantages / old.policy).reshape(-1)
        curvature = gradient @ fisher @ gradient
        step = np.sqrt(2 * max_kl / curvature) * gradient if curvature > 0 else 0 * gradient
        new = exact.solve(mdp, family.policy(theta + step.reshape(theta.shape)))
        promised = visited * np.sum(share * (new.policy / old.policy - 1) * old.advantages)
        gains.append((float(promised), old.promised_gain(new.policy), new.eta - old.eta))
    promised, everywhere, realised = np.mean(gains, axis=0)
    return float(promised), float(everywhere), float(realised)


def performance_difference() -> Finding:
    """The performance difference lemma."""
    worst, factor = 0.0, []
    for old, new in random_pairs(300, gamma=0.9):
        gain = float(new.visits @ old.expected_advantages(new.policy))
        worst = max(worst, abs(new.eta - old.eta - gain) / (1 + abs(new.eta)))
        normalised = (1 - old.mdp.gamma) * gain
        # The quotient of two gains near 0 would be rounding.
        if abs(normalised) > 1e-3:
            factor.append((new.eta - old.eta) / normalised)
    return finding(largest_error=worst, factor_if_normalised=np.median(factor))


def the_lie() -> Finding:
    """The only difference is rho; the gradient is not a lie."""
    worst_gap = worst_slope = 0.0
    family, rng, h = exact.TabularSoftmax(), np.random.default_rng(1), 1e-5
    for old, new in random_pairs(200, gamma=0.9, seed=1):
        promised, realised = old.gains(new)
        gap = realised - promised
        spread = max(abs(gap - form) for form in gap_forms(old, new).values())
        worst_gap = max(worst_gap, spread / (1 + abs(new.eta)))
        direction = rng.normal(size=old.policy.shape)
        slope = float(np.sum(policy_gradient(family, old) * direction))
        logits = exact.logits_of(old.policy)
        up, down = (
            exact.solve(old.mdp, family.policy(logits + s * h * direction)).eta for s in (1, -1)
        )
        worst_slope = max(worst_slope, abs((up - down) / (2 * h) - slope))
    return finding(largest_disagreement=worst_gap, largest_slope_error=worst_slope)


def tangent_plane() -> Finding:
    """L is a tangent plane."""
    start = exact.starting_point(exact.corridor())
    old, steps = start.old, np.geomspace(1e-4, 4.0, 25)

    def surrogate_after(step: float) -> float:
        return old.surrogate(start.family.policy(start.theta + step))

    along = exact.walk(old, [start.family.policy(start.theta + step) for step in steps])
    gaps = np.abs(along.surrogate - along.eta)
    # Only the shortest steps: further out higher orders bend the line.
    slope = np.polyfit(np.log(steps[:9]), np.log(gaps[:9]), 1)[0]
    near, far = going_right(old.mdp, 0.05), going_right(old.mdp, 0.9)
    bends = [
        abs(
            old.surrogate((1 - a) * near + a * far)
            - (1 - a) * old.surrogate(near)
            - a * old.surrogate(far)
        )
        for a in (0.1, 0.5, 0.7)
    ]
    curvature = surrogate_after(1.0) - 0.5 * (old.eta + surrogate_after(2.0))
    picture = LinePicture(
        title="corridor: the lie is of second order",
        xlabel="step of the parameter",
        ylabel="error of the surrogate",
        lines=[
            PlottedLine("|L - η|", steps, gaps, "#D55E00"),
            PlottedLine("slope 2", steps, gaps[0] * (steps / steps[0]) ** 2, "#555555"),
        ],
        log=True,
    )
    bend = abs(curvature)
    return finding(picture, slope=slope, affine_error=max(bends), curvature=curvature, bend=bend)


def how_far() -> Finding:
    """Near accurate, far wrong: how far, and which way."""
    path = exact.update_path(exact.starting_point(exact.corridor()), exact_trpo, exact.StepSizes())
    half, broken, best = path.landmarks
    assert half is not None
    assert broken is not None
    gains = [old.gains(new) for old, new in random_pairs(400, gamma=0.9, seed=2)]
    gaps = np.subtract(*np.transpose(gains))
    return finding(
        edge_of_trust_kl=path.kl(half),
        break_even_kl=path.kl(broken),
        best_kl=path.kl(best),
        best_eta=path.old.eta + path.realised(best),
        over_promised=np.mean(gaps > 1e-12),
        under_promised=np.mean(gaps < -1e-12),
    )


CLAIMS = (
    data_moves,
    landscape_is_fixed,
    instability_has_three_causes,
    performance_difference,
    the_lie,
    tangent_plane,
    how_far,
)
