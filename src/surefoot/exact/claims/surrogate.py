"""The essay's first half: the data moves, the surrogate does not, and where they part."""

import numpy as np

from surefoot import exact as t
from surefoot.analysis.plots import Line, plot_lines
from surefoot.exact.claims.claim import Claim, random_pairs, right, solved
from surefoot.exact.line import Ray, landmarks
from surefoot.exact.practice import sampled_gains


def data_moves() -> Claim:
    """In RL, a step changes the data."""
    case = solved(t.corridor())
    new = case.after("ppo")
    share = [(1 - case.mdp.gamma) * s.visits[-1] for s in (case.old, new)]
    moved = t.visitation_tv(case.mdp, case.old, new)
    return Claim(
        title="A step changes the data",
        says="In supervised learning a step of the parameters leaves the data as it is. In "
        "reinforcement learning it changes which states are visited, and so the data.",
        experiment="The corridor: four states in a row. Right pays 1 and leads on; in the last "
        "state, the edge, it costs 200 and starts again. Left starts again and pays nothing. One "
        "number p is the probability of going right, the same in every state. We let PPO make one "
        "exact update from p = 0.05 and count, before and after, the share of all (discounted) "
        "visits that fall on each state.",
        numbers={
            "edge_share_before": share[0],
            "edge_share_after": share[1],
            "p_new": float(new.policy[0, 1]),
            "visitation_tv": moved,
        },
        finding=f"The update moves p from 0.05 to {new.policy[0, 1]:.2f}. The share of visits at "
        f"the edge goes from {share[0]:.6f} to {share[1]:.4f}, "
        f"{share[1] / share[0]:.0f} times as many; {100 * moved:.0f} % of all visits are elsewhere "
        "than before.",
        verdict="holds",
        command="surefoot exact corridor ppo",
    )


def landscape_is_fixed() -> Claim:
    """The landscape does not shift; the surrogate does."""
    mdp = t.corridor()
    points = (0.05, 0.1, 0.24)
    policies = [right(p, mdp.num_states) for p in points]
    olds = [t.solve(mdp, policy) for policy in policies]
    at = policies[-1]
    seen = [t.surrogate(old, at) for old in olds]
    grid = np.linspace(0.02, 0.3, 141)

    def draw(path):
        walk = [right(p, mdp.num_states) for p in grid]
        lines = [
            Line("η, one curve for ever", grid, [t.solve(mdp, w).eta for w in walk], "#000000")
        ]
        colors = ("#D55E00", "#E69F00", "#56B4E9")
        for p, old, color in zip(points, olds, colors, strict=True):
            lines.append(
                Line(f"L drawn at p = {p}", grid, [t.surrogate(old, w) for w in walk], color)
            )
        plot_lines(
            lines,
            path,
            xlabel="probability of going right",
            ylabel="discounted return",
            title="corridor: the return stays, its tangents move",
            dots=[(p, old.eta) for p, old in zip(points, olds, strict=True)],
        )

    return Claim(
        title="The landscape shifts under your feet",
        says="With every gradient step the optimisation landscape shifts under your feet.",
        experiment="The return η of a policy is the discounted reward that it collects on "
        "average. As a function of p it is one curve. The surrogate L is what data of one policy "
        "says about all others; we draw it from three policies and ask each about p = 0.24.",
        numbers={f"L_from_{p}": value for p, value in zip(points, seen, strict=True)}
        | {"eta": olds[-1].eta},
        finding=f"About p = 0.24, data from p = 0.05 says {seen[0]:.2f}, data from p = 0.1 says "
        f"{seen[1]:.2f}, and data from p = 0.24 itself says {seen[2]:.2f}, which is the truth "
        f"({olds[-1].eta:.2f}). The black curve never moved; the coloured lines did.",
        verdict="fails: the return is a fixed function of the parameters. What shifts is the "
        "sample, and with it the surrogate",
        draw=draw,
        caption="The return is one curve. Each surrogate is its tangent at the policy whose data "
        "it was made from.",
    )


def instability_has_three_causes() -> Claim:
    """Visitation is one cause of instability among three."""
    case, step = solved(t.corridor()), t.Step(learning_rate=2.0)
    weights = t.state_weights(case.mdp, case.old)
    scaled = t.Shared(10.0 * t.one_parameter(case.mdp).features)
    ends = []
    for family, theta in (
        (case.start.family, case.start.theta),
        (scaled, case.start.theta / 10.0),
    ):
        policy = family.policy(t.EXACT["vpg"](case.mdp, family, theta, case.old, step))
        kl = float(weights @ t.row_kl(case.old.policy, policy))
        ends.append((kl, t.surrogate(case.old, policy), t.solve(case.mdp, policy).eta))
    (kl, promised, got), (kl_scaled, _, got_scaled) = ends
    sample, everywhere, realised = sampled_gains(
        t.random_mdp(7, num_states=20, num_actions=4, gamma=0.95),
        rows=256,
        repeats=100,
        max_kl=0.02,
    )
    return Claim(
        title="This is why vanilla policy gradient is unstable",
        says="Vanilla policy gradient is unstable because the visitation moves: a step that looks "
        "good under the current data may be catastrophic under the new.",
        experiment="Three trials. (a) One step of policy gradient on the corridor: θ, the log-odds "
        "of p, moves by 2 times the gradient. (b) The same again for a parameter that is θ / 10: "
        "the same policies, written in other units. (c) On a random environment of 20 states, "
        "a hundred steps of policy gradient of equal length (0.02 nats), each from a sample of 256 "
        "(state, action) pairs whose advantages are exact: what the sample promises, what all data "
        "would have promised for the same step, what is realised.",
        numbers={
            "kl": kl,
            "promised": promised,
            "got": got,
            "kl_rescaled": kl_scaled,
            "got_rescaled": got_scaled,
            "promised_in_sample": sample,
            "promised_by_all_data": everywhere,
            "realised": realised,
        },
        finding=f"(a) From {case.old.eta:.2f} the surrogate promised {promised:.2f}; the return is "
        f"{got:.2f}, because of visits that moved. (b) The same step is {kl:.3f} nats in one unit "
        f"and {kl_scaled:.0f} nats in the other, where it ends at {got_scaled:.0f}. (c) Of a "
        f"promise of {sample:.2f} only {everywhere:.2f} was there on all data: the sample took "
        f"{100 * (1 - everywhere / sample):.0f} %. Of that, {realised:.2f} was realised: the shift "
        f"of visits took {100 * (1 - realised / everywhere):.0f} %.",
        verdict="holds when visits are what moved: it is one of three causes. The units of the "
        "parameters and the noise of the sample are the others, and on a benign environment noise "
        "is the larger one",
    )


def performance_difference() -> Claim:
    """The performance difference lemma."""
    worst, factor = 0.0, []
    for pair in random_pairs(300, gamma=0.9):
        new = t.solve(pair.mdp, pair.new)
        lift = t.expected_advantages(pair.old, pair.new)
        sum_form = pair.old.eta + float(new.visits @ lift)
        worst = max(worst, abs(new.eta - sum_form) / (1 + abs(new.eta)))
        share = float((1 - pair.mdp.gamma) * new.visits @ lift)
        if abs(share) > 1e-3:
            factor.append((new.eta - pair.old.eta) / share)
    return Claim(
        title="The return of any policy, from the advantages of another",
        says="η(new) = η(old) + Σ ρ_new(s) Σ new(a|s) A_old(s, a).",
        experiment="The advantage A(s, a) is how much better it is to take action a in state s "
        "than to do what the old policy does; ρ(s) is how often a state is visited, a visit after "
        "t steps counted γ^t. Both sides computed exactly for 300 random MDPs and pairs of "
        "policies, near and far apart.",
        numbers={"largest_error": worst, "factor_if_normalised": float(np.median(factor))},
        finding=f"The two sides agree to {worst:.0e}. The essay does not say how ρ is normalised, "
        "and it matters: ρ must sum to 1/(1 - γ). With a probability distribution in its place "
        f"the right-hand gain is too small by a factor of {np.median(factor):.1f} at γ = 0.9.",
        verdict="holds when ρ is the unnormalised discounted count of visits",
    )


def the_lie() -> Claim:
    """The only difference is rho; the gradient is not a lie."""
    worst_gap = worst_gradient = 0.0
    family = t.Tabular()
    rng = np.random.default_rng(1)
    for pair in random_pairs(200, gamma=0.9, seed=1):
        new = t.solve(pair.mdp, pair.new)
        forms = t.gap_forms(pair.mdp, pair.old.policy, pair.new)
        gap = new.eta - t.surrogate(pair.old, pair.new)
        spread = max(abs(gap - value) for value in forms.values())
        worst_gap = max(worst_gap, spread / (1 + abs(new.eta)))
        direction = rng.normal(size=pair.new.shape)
        slope = float(np.sum(t.gradient(pair.mdp, family, pair.old) * direction))
        h, logits = 1e-5, t.logits_of(pair.old.policy)
        ends = [t.solve(pair.mdp, family.policy(logits + s * h * direction)).eta for s in (1, -1)]
        worst_gradient = max(worst_gradient, abs((ends[0] - ends[1]) / (2 * h) - slope))
    return Claim(
        title="The fundamental lie of policy gradient",
        says="The surrogate L is η with ρ_old in the place of ρ_new. It pretends that the state "
        "distribution does not change; this is the fundamental lie of policy gradient.",
        experiment="For 200 random pairs, the lie η - L in three forms: as the change of visits "
        "times the expected advantage; as old visits x change of the next state x what follows "
        "from there; and as old visits x change of the next state x change of the values. "
        "Beside it the slope of η in a random direction, by differences, against the policy "
        "gradient.",
        numbers={"largest_disagreement": worst_gap, "largest_slope_error": worst_gradient},
        finding=f"The three forms agree to {worst_gap:.0e}: the lie is an exact quantity. The "
        f"policy gradient is the slope of the true return (to {worst_gradient:.0e}, the error of "
        "the differences), although it holds ρ still.",
        verdict="holds when a step is finite. The gradient itself does not lie: at the old policy "
        "the change of ρ is multiplied by an expected advantage of zero",
    )


def tangent_plane() -> Claim:
    """L is a tangent plane."""
    case = solved(t.corridor())
    fractions = np.geomspace(1e-4, 4.0, 25)
    theta = case.start.theta
    gaps, affine = [], 0.0
    for a in fractions:
        policy = case.policy(theta + a)
        gaps.append(abs(t.surrogate(case.old, policy) - t.solve(case.mdp, policy).eta))
    slope = float(np.polyfit(np.log(fractions[:9]), np.log(gaps[:9]), 1)[0])
    ends = right(0.05, 4), right(0.9, 4)
    for a in (0.1, 0.5, 0.7):
        mixed = t.surrogate(case.old, (1 - a) * ends[0] + a * ends[1])
        straight = (1 - a) * t.surrogate(case.old, ends[0]) + a * t.surrogate(case.old, ends[1])
        affine = max(affine, abs(mixed - straight))
    middle = t.surrogate(case.old, case.policy(theta + 1.0))
    chord = 0.5 * (case.old.eta + t.surrogate(case.old, case.policy(theta + 2.0)))

    def draw(path):
        plot_lines(
            [
                Line("|L - η|", fractions, gaps, "#D55E00"),
                Line("slope 2", fractions, gaps[0] * (fractions / fractions[0]) ** 2, "#555555"),
            ],
            path,
            xlabel="step of the parameter",
            ylabel="error of the surrogate",
            title="corridor: the lie is of second order",
            log=True,
        )

    return Claim(
        title="L is a tangent plane",
        says="L is a first-order approximation, a tangent plane to η at the old policy.",
        experiment="On the corridor we take smaller and smaller steps of θ, the log-odds of p, and watch "
        "the error |L - η| on doubly logarithmic axes: a line of slope 2 means that halving the "
        "step divides the error by four. Then we ask whether L is flat: in the probabilities, and "
        "in the parameter behind them.",
        numbers={"slope": slope, "affine_error": affine, "curvature": middle - chord},
        finding=f"The slope is {slope:.3f}: value and gradient agree, and what is left is of "
        f"second order. In the probabilities L is flat to {affine:.0e}. In the parameter it bends: "
        f"half way along a step of 2 it lies {abs(middle - chord):.2f} away from the chord.",
        verdict="holds when seen in the space of policies; in the parameters L only touches η, and is "
        "curved itself",
        draw=draw,
        caption="Error of the surrogate against the length of the step.",
    )


def how_far() -> Claim:
    """Near accurate, far wrong: how far, and which way."""
    case = solved(t.corridor())
    new = case.after("trpo")
    ray = Ray(case.mdp, case.old, new.policy)
    marks = landmarks(ray)
    assert marks.half is not None
    assert marks.broken is not None
    over = under = 0
    for pair in random_pairs(400, gamma=0.9, seed=2):
        gap = t.surrogate(pair.old, pair.new) - t.solve(pair.mdp, pair.new).eta
        over, under = over + (gap > 1e-12), under + (gap < -1e-12)
    half, broken, best = ray.kl(marks.half), ray.kl(marks.broken), ray.kl(marks.best)
    return Claim(
        title="How far can you go before the lie breaks?",
        says="Near the old policy the tangent plane is accurate; far from it, it diverges from "
        "reality.",
        experiment="Along the corridor's only direction we look for three places: where half of "
        "the promised gain is kept (the edge of trust), where nothing of it is left, and where the "
        "return is best. Distance is KL(old || new), the information that tells the two policies' "
        "actions apart, in nats. On 400 random MDPs we ask which way L errs.",
        numbers={
            "edge_of_trust_kl": half,
            "break_even_kl": broken,
            "best_kl": best,
            "best_eta": case.old.eta + ray.realised(marks.best),
            "over_promised": over / 400,
            "under_promised": under / 400,
        },
        finding=f"Half the promise is kept at KL {half:.4f}, nothing at {broken:.4f}; the best "
        f"return is {case.old.eta + ray.realised(marks.best):.3f} at KL {best:.4f}, close to the "
        f"edge of trust. In random MDPs L promised too much in {100 * over / 400:.0f} % and too "
        f"little in {100 * under / 400:.0f} % of pairs.",
        verdict="holds; but the error has no fixed sign, and where it matters depends on the "
        "environment, not on a universal distance",
        command="surefoot exact corridor trpo",
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
