"""The essay on staying inside: what a trust region guarantees, and what is known outside."""

from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import optimize

from surefoot import exact as t
from surefoot.envs.tabular import find_mdp
from surefoot.exact.claims.claim import (
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
    count, fell, kls = corridors_that_fell()
    tilted = sum(
        t.solve(pair.mdp, _tilted(pair, size)).eta < pair.old.eta - 1e-9
        for pair in random_pairs(200, gamma=0.9, seed=11)
        for size in (1.0, 10.0, 1000.0)
    )
    example = solved(t.corridor(m=4, B=1000.0), p_old=0.05)
    after = example.after("trpo", max_kl=0.01)
    promised = t.surrogate(example.old, after.policy)
    allowed = t.degradation_bound(example.mdp, example.old, after.policy, max_kl=0.01)
    certain = kept = 0
    for pair in random_pairs(200, gamma=0.99, seed=5):
        new = t.solve(pair.mdp, _tilted(pair, 1e-3))
        if t.guaranteed(pair.mdp, pair.old, new)["B6"] > pair.old.eta:
            certain, kept = certain + 1, kept + (new.eta > pair.old.eta)
    return Claim(
        title="Stay within the trust region, and improvement is guaranteed",
        says="Stay within the trust region, and monotonic improvement is guaranteed.",
        experiment="A grid of corridors: 5 lengths, 5 costs of the edge, 3 discounts, 6 starts, "
        f"left that starts again or stays; the {count} whose old policy earns something. One exact "
        "TRPO update with radius 0.01 (everything known, nothing sampled), one exact PPO update "
        "beside it. Then 200 small steps on random environments: for how many does L - C max KL "
        "itself lie above the old return, and how many of those are better? Then steps without any "
        "region, in which each state has parameters of its own and moves towards its advantages, 1, "
        "10 or 1000 times as far.",
        numbers={
            "corridors": float(count),
            "trpo_fell": fell["trpo"] / count,
            "ppo_fell": fell["ppo"] / count,
            "ppo_median_kl": kls["ppo"],
            "example_promised": promised,
            "example_old": example.old.eta,
            "example_got": after.eta,
            "example_allowed": allowed,
            "certain": float(certain),
            "kept": float(kept),
            "tilted_fell": float(tilted),
        },
        finding=f"TRPO's return fell in {100 * fell['trpo'] / count:.1f} % of them, PPO's in "
        f"{100 * fell['ppo'] / count:.1f} % (its steps are longer: {kls['ppo']:.3f} nats in the "
        "median). With an edge that costs 1000, TRPO inside its radius was promised "
        f"{promised:.2f} and went from {example.old.eta:.2f} to {after.eta:.2f}. What theory "
        "promises of a radius alone, a loss of at most √(2δ) γ max|Ā| / (1-γ)², allowed for "
        f"{allowed:,.0f}. Of the 200 small steps {certain} had a bound above the old return, and "
        f"{kept} of those were better. Of the 600 steps without a region {tilted} lowered the "
        "return: where no state can spoil another and the advantages are exact, none is needed.",
        verdict="fails for a ball of any fixed radius: there theory only bounds the harm, and says "
        "nothing useful. Improvement is guaranteed where L - C max KL exceeds the old return",
        command="surefoot exact corridor trpo --B 1000",
    )


def _tilted(pair: RandomPair, size: float) -> Float[np.ndarray, "state action"]:
    """Every state's policy moved towards its own advantages."""
    return t.Tabular().policy(t.logits_of(pair.old.policy) + size * pair.old.advantages)


def outside_the_region() -> Claim:
    """The surrogate outside the region."""
    case = solved(t.ridge())
    weights = t.state_weights(case.mdp, case.old)

    def certified(p: float) -> float:
        new = t.solve(case.mdp, right(p, 2))
        return t.guaranteed(case.mdp, case.old, new)["B6"] - case.old.eta

    def kl_at(p: float) -> float:
        return float(weights @ t.row_kl(case.old.policy, right(p, 2)))

    root: Any = optimize.brentq(certified, 0.1 + 1e-6, 0.12, xtol=1e-14)
    reach = kl_at(float(root))
    points = (0.105, 0.12, 0.15, 0.2, 0.25, 0.4)
    kept = []
    for p in points:
        new = t.solve(case.mdp, right(p, 2))
        promised = t.surrogate(case.old, new.policy) - case.old.eta
        kept.append((new.eta - case.old.eta) / promised)
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
        experiment="The ridge: two states, a slope that pays until it is climbed too often (right "
        "leads to the crest; there left pays 1 and right costs 2). We find the KL up to which the "
        "bound guarantees any gain, go far beyond, and compare what L promised with what came. Then "
        "random pairs more than 1 nat apart: does L know whether the new policy is better?",
        numbers={"reach": reach, "sign_known": agree / total, "far_pairs": float(total)}
        | {f"kept_{p}": share for p, share in zip(points, kept, strict=True)},
        finding=f"The bound reaches to KL {reach:.1e}. The ridge kept "
        + ", ".join(
            f"{100 * share:.0f} % at {kl_at(p):.1e}" for p, share in zip(points, kept, strict=True)
        )
        + f" of the promise. Of {total} random pairs more than 1 nat apart L had the sign of the "
        f"change right in {100 * agree / total:.0f} %.",
        verdict="fails: the bound says nothing there, the surrogate still does. What it says fades "
        "with distance, and on an environment with an edge it can be the opposite of the truth",
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
        f"{worst / mean:.0f} times as much. The mean lets the states with the widest advantages "
        "move most, however often they are visited.",
        verdict="holds when KL is read as a mean over old states; the theorem asks for the maximum",
        command="surefoot exact FrozenLake-v1 trpo",
    )


CLAIMS = (ball_guarantees, outside_the_region, pinsker, mean_for_max)
