"""The essay on staying inside: what a trust region guarantees, and what is known outside."""

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

PAIRS = 300


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


CLAIMS = (ball_guarantees, outside_the_region, pinsker, mean_for_max)
