"""The essay's trust region: what the bound says, what it does not, and what it costs."""

import numpy as np
from jaxtyping import Float

from surefoot import tabular as t
from surefoot.envs.tabular import find_mdp
from surefoot.laboratory.claims.claim import (
    Claim,
    RandomPair,
    corridors_that_fell,
    random_pairs,
    right,
    solved,
)
from surefoot.plots import Line, plot_lines

PAIRS = 300


def lower_bound() -> Claim:
    """Eta' >= L - C KLmax."""
    broken = {name: 0 for name in t.BOUNDS}
    loose = []
    for gamma in (0.9, 0.99):
        for pair in random_pairs(PAIRS, gamma=gamma, seed=3):
            new = t.solve(pair.mdp, pair.new)
            gap = abs(new.eta - t.surrogate(pair.old, pair.new))
            bounds = t.gap_bounds(pair.mdp, pair.old, new)
            for name in t.BOUNDS:
                reach = t.surrogate(pair.old, pair.new) - bounds[name]
                broken[name] += new.eta < reach - 1e-8 * (1 + abs(new.eta))
            if gamma == 0.99 and gap > 1e-8:
                loose.append((bounds["B6"] / gap, bounds["B2"] / gap, bounds["B11"] / gap))
    b6, b2, b11 = np.median(loose, axis=0)
    mixture = _mixture()
    return Claim(
        title="The bound",
        says="Kakade and Langford (2002) gave the answer: η(new) ≥ L(new) - C max KL(old || new).",
        experiment="The bound with C = 4 ε γ / (1 - γ)², where ε is the largest |advantage| and "
        "the KL is that of the worst state (in either direction), on 600 random pairs; and ten "
        "others from the literature. A bound is loose when it allows for a gap far larger than the "
        "real one. Beside them Kakade and Langford's own theorem: mix the old policy with the "
        "greedy one in the share that their bound likes best, on 200 random MDPs.",
        numbers={
            "violations": float(sum(broken.values())),
            "looseness_schulman": float(b6),
            "looseness_cpo": float(b2),
            "looseness_entropic": float(b11),
            "mixture_violations": float(mixture[0]),
            "mixture_share": mixture[1],
            "mixture_looseness": mixture[2],
        },
        finding=f"{sum(broken.values())} violations of eleven bounds in 600 pairs. At γ = 0.99 the "
        f"penalty is, in the median, {b6:,.0f} times the real gap; with the mean in place of the "
        f"maximum (Achiam et al. 2017) {b2:,.0f} times; the sharpest one here {b11:,.0f} times. "
        f"The mixtures (a share of {mixture[1]:.4f} in the median, at γ = 0.9) gained at least "
        f"what was guaranteed in all but {mixture[0]} cases, and in the median {mixture[2]:.1f} "
        "times as much.",
        verdict="holds; but in this form it is Schulman et al.'s of 2015. Kakade and Langford "
        "bounded mixtures of two policies, in the square of the mixing share",
        command="surefoot exact corridor trpo",
    )


def _mixture() -> tuple[int, float, float]:
    """Violations of the mixture bound, the median share mixed in, real over guaranteed gain."""
    broken, shares, ratios = 0, [], []
    for pair in random_pairs(200, gamma=0.9, seed=10):
        target = t.greedy(pair.old)
        share = t.mixture_step(pair.mdp, pair.old, target)
        new = t.solve(pair.mdp, (1 - share) * pair.old.policy + share * target)
        sure = t.mixture_bound(pair.mdp, pair.old, target, share) - pair.old.eta
        real = new.eta - pair.old.eta
        broken += real < sure - 1e-9
        if sure > 1e-12:
            shares.append(share)
            ratios.append(real / sure)
    return broken, float(np.median(shares)), float(np.median(ratios))


def certified_reach() -> Claim:
    """How small a step the bound certifies."""
    case = solved(t.corridor())
    theta = case.start.theta
    steps = np.geomspace(1e-6, 1.0, 121)
    weights = t.state_weights(case.mdp, case.old)
    rows = []
    for step in steps:
        new = t.solve(case.mdp, case.policy(theta + step))
        sure = t.guaranteed(case.mdp, case.old, new)
        kl = float(weights @ t.row_kl(case.old.policy, new.policy))
        rows.append((kl, new.eta - case.old.eta, *(sure[n] - case.old.eta for n in ("B6", "B11"))))
    kl, real, schulman, entropic = np.array(rows).T
    best = [int(np.argmax(gain)) for gain in (real, schulman, entropic)]

    def draw(path):
        lines = [
            ("η, the real gain", real, "#000000"),
            ("sure by Schulman 2015", schulman, "#0072B2"),
            ("sure, entropic", entropic, "#56B4E9"),
        ]
        plot_lines(
            [Line(label, kl[gain > 0], gain[gain > 0], color) for label, gain, color in lines],
            path,
            xlabel="mean KL(old ‖ new), nats",
            ylabel="gain of return",
            title="corridor: what is sure, and what is real",
            log=True,
        )

    return Claim(
        title="How far the bound reaches",
        says="The bound tells how far the tangent plane may be followed.",
        experiment="Along the corridor's direction: the largest gain that the bound guarantees "
        "and the KL where it does, beside the largest gain there is.",
        numbers={
            "schulman_gain": schulman[best[1]],
            "schulman_kl": kl[best[1]],
            "entropic_gain": entropic[best[2]],
            "entropic_kl": kl[best[2]],
            "real_gain": real[best[0]],
            "real_kl": kl[best[0]],
        },
        finding=f"The essay's bound guarantees {schulman[best[1]]:.1e} at KL {kl[best[1]]:.0e}; "
        f"the sharpest one {entropic[best[2]]:.3f} at KL {kl[best[2]]:.0e}. To be had were "
        f"{real[best[0]]:.2f} at KL {kl[best[0]]:.3f}. Nobody trains with the C of the theorem.",
        verdict="holds when one accepts steps too small to be of use",
        draw=draw,
        caption="Gains along the corridor. Only what is above zero can be drawn.",
    )


def visitation_follows_kl() -> Claim:
    """KL bounds the visitation shift."""
    broken, worst = 0, 0.0
    for pair in random_pairs(PAIRS, gamma=0.99, seed=4):
        new = t.solve(pair.mdp, pair.new)
        mean_kl = float((pair.old.visits / pair.mdp.horizon) @ t.row_kl(pair.old.policy, pair.new))
        sharp = np.sqrt(pair.mdp.gamma * pair.mdp.horizon * mean_kl / 2)
        shift = t.visitation_tv(pair.mdp, pair.old, new)
        broken += shift > sharp + 1e-9
        worst = max(worst, shift / sharp)
    horizon, kl = 100.0, 0.01
    sharp, usual = np.sqrt(0.99 * horizon * kl / 2), 0.99 * horizon * np.sqrt(kl / 2)
    return Claim(
        title="KL bounds how far the visits move",
        says="The KL divergence bounds how much the visitation frequencies can diverge.",
        experiment="TV(d, d') is the share of visits that moved. The usual lemma bounds it by "
        "γ/(1-γ) times the mean total variation of the actions; a sharper one, by the chain rule "
        "of KL along a trajectory, by √(γ KL / (2 (1-γ))). Both for a mean KL of 0.01 at γ = 0.99; "
        "the sharper one tried on 300 random pairs.",
        numbers={
            "sharp": float(sharp),
            "usual": float(usual),
            "violations": float(broken),
            "closest": worst,
        },
        finding=f"The usual lemma says {usual:.1f}, which for a quantity below 1 is nothing; the "
        f"sharper one {sharp:.2f}. It had {broken} violations; the closest case reached "
        f"{100 * worst:.0f} % of it.",
        verdict="holds, and can be made sharp: with the square root of the horizon, not the "
        "horizon",
    )


def ball_guarantees() -> Claim:
    """A trust region by itself guarantees no improvement."""
    count, fell = corridors_that_fell()
    tilted = sum(
        t.solve(pair.mdp, _tilted(pair, size)).eta < pair.old.eta - 1e-9
        for pair in random_pairs(200, gamma=0.9, seed=11)
        for size in (1.0, 10.0, 1000.0)
    )
    example = solved(t.corridor(m=4, B=1000.0), p_old=0.05)
    after = example.after("trpo", max_kl=0.01)
    certain = kept = 0
    for gamma in (0.3, 0.5, 0.8):
        for pair in random_pairs(200, gamma=gamma, seed=5):
            new = t.solve(pair.mdp, _tilted(pair, 1e-3))
            if t.guaranteed(pair.mdp, pair.old, new)["B6"] > pair.old.eta:
                certain, kept = certain + 1, kept + (new.eta > pair.old.eta)
    return Claim(
        title="Stay within the trust region, and improvement is guaranteed",
        says="Stay within the trust region, and monotonic improvement is guaranteed.",
        experiment=f"A family of {count} corridors: every length, cost of the edge, discount and "
        "start of a fixed grid whose policy earns something. One exact TRPO update with radius "
        "0.01 (everything known, nothing sampled), one exact PPO update beside it. Then policies "
        "for which L - C KL itself lies above the old return. Then steps without any region, in "
        "which each state has parameters of its own and moves towards its advantages, 1, 10 or "
        "1000 times as far, on 200 random MDPs.",
        numbers={
            "corridors": float(count),
            "trpo_fell": fell["trpo"] / count,
            "ppo_fell": fell["ppo"] / count,
            "example_promised": t.surrogate(example.old, after.policy),
            "example_old": example.old.eta,
            "example_got": after.eta,
            "certain": float(certain),
            "kept": float(kept),
            "tilted_fell": float(tilted),
        },
        finding=f"TRPO's return fell in {100 * fell['trpo'] / count:.1f} % of them, PPO's in "
        f"{100 * fell['ppo'] / count:.1f} %. With an edge that costs 1000, TRPO inside its radius "
        f"was promised {t.surrogate(example.old, after.policy):.2f} and went from "
        f"{example.old.eta:.2f} to {after.eta:.2f}. Of {certain} policies that the bound "
        f"itself put above the old return, {kept} were better. Of the 600 steps without a region "
        f"{tilted} lowered the return: where no state can spoil another and the advantages are "
        "exact, none is needed.",
        verdict="fails for a ball of any fixed radius: there only the harm is bounded. Improvement "
        "is guaranteed where L - C max KL exceeds the old return",
        command="surefoot exact corridor trpo --B 1000",
    )


def _tilted(pair: RandomPair, size: float) -> Float[np.ndarray, "state action"]:
    """Every state's policy moved towards its own advantages."""
    return t.Tabular().policy(t.logits_of(pair.old.policy) + size * pair.old.advantages)


def outside_the_region() -> Claim:
    """The surrogate outside the region."""
    case = solved(t.ridge())
    certified, edge = 9.3e-8, 0.0
    probes = []
    weights = t.state_weights(case.mdp, case.old)
    for p in (0.105, 0.12, 0.15):
        new = t.solve(case.mdp, right(p, 2))
        edge = float(weights @ t.row_kl(case.old.policy, new.policy))
        promised = t.surrogate(case.old, new.policy) - case.old.eta
        probes.append((edge, (new.eta - case.old.eta) / promised))
    agree = total = 0
    for pair in random_pairs(2000, gamma=0.9, seed=6):
        kl = float((pair.old.visits / pair.mdp.horizon) @ t.row_kl(pair.old.policy, pair.new))
        if kl > 1.0:
            promised = t.surrogate(pair.old, pair.new) - pair.old.eta
            real = t.solve(pair.mdp, pair.new).eta - pair.old.eta
            total, agree = total + 1, agree + (promised * real > 0)
    return Claim(
        title="Outside, the surrogate says nothing",
        says="Step outside, and the surrogate gives no information about the true objective.",
        experiment="On the ridge (two states, a slope that pays until it is climbed too often) "
        "the bound certifies steps up to KL 9e-8. We go a thousand to a hundred thousand times "
        "farther and compare what L promised with what came. Then random pairs more than 1 nat "
        "apart: does L at least know whether the new policy is better?",
        numbers={f"kept_{i}": kept for i, (_, kept) in enumerate(probes)}
        | {f"kl_{i}": kl for i, (kl, _) in enumerate(probes)}
        | {"sign_known": agree / total, "far_pairs": float(total)},
        finding="At KL "
        + ", ".join(f"{kl:.1e} ({kl / certified:,.0f} times as far)" for kl, _ in probes)
        + " the ridge kept "
        + ", ".join(f"{100 * kept:.0f} %" for _, kept in probes)
        + f" of the promise. Of {total} pairs more than 1 nat apart L had the sign of the change "
        f"right in {100 * agree / total:.0f} %.",
        verdict="fails: the bound says nothing there; the surrogate still does, and how much has "
        "to be measured",
        command="surefoot exact ridge trpo",
    )


def pinsker() -> Claim:
    """TV^2 <= KL/2."""
    worst, broken = 0.0, 0
    for pair in random_pairs(PAIRS, gamma=0.5, seed=7):
        kl, tv = t.row_kl(pair.old.policy, pair.new), t.row_tv(pair.old.policy, pair.new)
        share = tv**2 / np.maximum(kl / 2, 1e-300)
        broken += int(np.sum(share > 1 + 1e-9))
        worst = max(worst, float(share.max()))
    far = np.array([[0.999, 0.001]]), np.array([[0.001, 0.999]])
    kl, tv = float(t.row_kl(*far)[0]), float(t.row_tv(*far)[0])
    case = solved(t.corridor())
    bounds = t.gap_bounds(case.mdp, case.old, case.after("trpo"))
    return Claim(
        title="Pinsker's inequality",
        says="TV² ≤ ½ KL.",
        experiment="TV is the largest difference between the probabilities that two policies give "
        "to any set of actions. On the 1500 states of 300 random pairs; on two policies that have "
        "almost nothing in common; and in the constant C, where Schulman et al. used TV² ≤ KL.",
        numbers={
            "tightest": worst,
            "violations": float(broken),
            "far_kl": kl,
            "far_tv": tv,
            "pinsker_at_far": float(np.sqrt(kl / 2)),
            "c_ratio": bounds["B6"] / bounds["B7"],
        },
        finding=f"{broken} violations; the tightest pair had {worst:.3f} of what is allowed. Far "
        f"apart (KL {kl:.1f}) it says TV ≤ {np.sqrt(kl / 2):.1f}, where TV is {tv:.3f}: there "
        f"1 - exp(-KL) is the better bound on TV². Used in C it makes the penalty "
        f"{bounds['B6'] / bounds['B7']:.0f} times smaller than the theorem's.",
        verdict="holds",
    )


def mean_for_max() -> Claim:
    """TRPO constrains the mean, the theorem the maximum."""
    start = solved(find_mdp("FrozenLake-v1", {}))
    new = start.after("trpo", max_kl=0.01)
    weights = t.state_weights(start.mdp, start.old)
    rows = t.row_kl(start.old.policy, new.policy)
    mean, worst = float(weights @ rows), float(rows[~start.mdp.terminal].max())
    return Claim(
        title="Subject to KL ≤ δ",
        says="TRPO maximises the surrogate subject to KL(old || new) ≤ δ.",
        experiment="One exact TRPO update on FrozenLake with δ = 0.01, from the policy that moves "
        "at random. The constraint of TRPO is on the mean over visited states, that of the theorem "
        "on the worst state.",
        numbers={"mean": mean, "worst": worst},
        finding=f"The mean is {mean:.4f}, as asked. In the worst state it is {worst:.3f}, "
        f"{worst / mean:.0f} times as much: rarely visited states cost the mean little.",
        verdict="holds when KL is read as a mean over old states; the theorem asks for the maximum",
        command="surefoot exact FrozenLake-v1 trpo",
    )


CLAIMS = (
    lower_bound,
    certified_reach,
    visitation_follows_kl,
    ball_guarantees,
    outside_the_region,
    pinsker,
    mean_for_max,
)
