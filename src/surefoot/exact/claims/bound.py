"""The essay on the bound and its region: what they guarantee, how loosely, and what is outside."""

from typing import Any

import numpy as np
from scipy import optimize

from surefoot import exact
from surefoot.exact.bounds import degradation_bound, mixture_bound, mixture_step
from surefoot.exact.claims.cases import (
    Finding,
    certified_steps,
    corridor_falls,
    finding,
    going_right,
    random_pairs,
)
from surefoot.exact.picture import LinePicture, PlottedLine
from surefoot.exact.updates import greedy_policy


def lower_bound() -> Finding:
    """Eta' >= L - C KLmax."""
    violations, ratios = 0, []
    for gamma in (0.9, 0.99):
        for old, new in random_pairs(300, gamma=gamma, seed=3):
            promised, realised = old.gains(new)
            gap, room = promised - realised, 1e-8 * (1 + abs(new.eta))
            bounds = exact.gap_bounds(old, new)
            violations += sum(gap > bound + room for bound in bounds.values())
            # The quotient of a gap near 0 would be rounding.
            if gamma == 0.99 and abs(gap) > 1e-8:
                ratios.append([bounds[name] / abs(gap) for name in ("B6", "B2", "B4", "B11")])
    schulman, mean_tv, mean_kl, entropic = np.median(ratios, axis=0)
    return finding(
        violations=violations,
        looseness_schulman=schulman,
        looseness_mean_tv=mean_tv,
        looseness_mean_kl=mean_kl,
        looseness_entropic=entropic,
        **_mixtures(),
    )


def _mixtures() -> dict[str, float]:
    """The mixture bound: violations, median share mixed in, median of real over guaranteed gain."""
    violations, shares, ratios = 0, [], []
    for old, _ in random_pairs(200, gamma=0.9, seed=10):
        target = greedy_policy(old)
        share = mixture_step(old, target)
        new = exact.solve(old.mdp, (1 - share) * old.policy + share * target)
        guaranteed = mixture_bound(old, target, share) - old.eta
        realised = new.eta - old.eta
        violations += realised < guaranteed - 1e-9
        # As above, a quotient of almost nothing would be rounding.
        if guaranteed > 1e-12:
            shares.append(share)
            ratios.append(realised / guaranteed)
    return {
        "mixture_violations": violations,
        "mixture_share": float(np.median(shares)),
        "mixture_looseness": float(np.median(ratios)),
    }


def certified_reach() -> Finding:
    """How small a step the bound certifies."""
    start = exact.starting_point(exact.corridor())
    steps = np.geomspace(1e-6, 1.0, 121)
    along = exact.walk(start.old, [start.family.policy(start.theta + step) for step in steps])
    lows = [exact.guaranteed_returns(start.old, new) for new in along.solved]
    gains = {
        "real": along.eta - start.old.eta,
        "schulman": np.array([low["B6"] for low in lows]) - start.old.eta,
        "entropic": np.array([low["B11"] for low in lows]) - start.old.eta,
    }
    numbers = {}
    for name, gain in gains.items():
        step = _best_step(start, name, steps[int(np.argmax(gain))])
        policy = start.family.policy(start.theta + step)
        numbers[f"{name}_gain"] = _gain_after(start, name, step)
        numbers[f"{name}_kl"] = start.old.kl(policy)
    drawn = (
        ("η, the real gain", gains["real"], "#000000"),
        ("guaranteed: B6, Schulman 2015", gains["schulman"], "#0072B2"),
        ("guaranteed: B11", gains["entropic"], "#56B4E9"),
    )
    picture = LinePicture(
        title="corridor: what is sure, and what is real",
        xlabel="mean KL(old ‖ new), nats",
        ylabel="gain of return",
        # Losses have no place on a logarithmic axis.
        lines=[PlottedLine(n, along.kl[gain > 0], gain[gain > 0], c) for n, gain, c in drawn],
        log=True,
    )
    return finding(picture, **numbers)


def _gain_after(start: exact.StartingPoint, name: str, step: float) -> float:
    """Gain after a step of the parameter: real, or guaranteed by `schulman` or `entropic`."""
    new = exact.solve(start.mdp, start.family.policy(start.theta + step))
    bound = {"schulman": "B6", "entropic": "B11"}.get(name)
    reached = exact.guaranteed_returns(start.old, new)[bound] if bound else new.eta
    return reached - start.old.eta


def _best_step(start: exact.StartingPoint, name: str, near: float) -> float:
    """The step of the largest gain between the neighbours of a point of the grid."""
    found: Any = optimize.minimize_scalar(
        lambda log_step: -_gain_after(start, name, np.exp(log_step)),
        bounds=(np.log(near) - 0.12, np.log(near) + 0.12),
        method="bounded",
        options={"xatol": 1e-9},
    )
    return float(np.exp(found.x))


def visitation_follows_kl() -> Finding:
    """KL bounds the visitation shift."""
    violations, closest = 0, 0.0
    for old, new in random_pairs(300, gamma=0.99, seed=4):
        lemma = np.sqrt(old.mdp.gamma * old.mdp.horizon * old.kl(new.policy) / 2)
        shift = exact.visitation_tv(old, new)
        violations += shift > lemma + 1e-9
        closest = max(closest, shift / lemma)
    horizon, kl = 100.0, 0.01
    return finding(
        sharp=np.sqrt(0.99 * horizon * kl / 2),
        usual=0.99 * horizon * np.sqrt(kl / 2),
        violations=violations,
        closest=closest,
    )


def ball_guarantees() -> Finding:
    """A trust region by itself guarantees no improvement."""
    corridors, trpo_fell, _ = corridor_falls("trpo")
    _, ppo_fell, ppo_median_kl = corridor_falls("ppo")
    tilted_fell = sum(
        _tilted(old, size).eta < old.eta - 1e-9
        for old, _ in random_pairs(200, gamma=0.9, seed=11)
        for size in (1.0, 10.0, 1000.0)
    )
    example = exact.starting_point(exact.corridor(m=4, B=1000.0)).old
    after = exact.updated(exact.starting_point(example.mdp), "trpo", exact.StepSizes(max_kl=0.01))
    pairs = random_pairs(200, gamma=0.99, seed=5)
    certain, kept = certified_steps((old, _tilted(old, 1e-3)) for old, _ in pairs)
    return finding(
        corridors=corridors,
        trpo_fell=trpo_fell,
        ppo_fell=ppo_fell,
        ppo_median_kl=ppo_median_kl,
        example_promised=example.surrogate(after.policy),
        example_old=example.eta,
        example_got=after.eta,
        example_allowed=degradation_bound(example, after.policy, max_kl=0.01),
        certain=certain,
        kept=kept,
        tilted_fell=tilted_fell,
    )


def _tilted(old: exact.SolvedPolicy, size: float) -> exact.SolvedPolicy:
    """Every state's policy moved towards its own advantages."""
    logits = exact.logits_of(old.policy) + size * old.advantages
    return exact.solve(old.mdp, exact.TabularSoftmax().policy(logits))


def outside_the_region() -> Finding:
    """The surrogate outside the region."""
    old = exact.starting_point(exact.ridge()).old

    def certified_gain(p: float) -> float:
        new = exact.solve(old.mdp, going_right(old.mdp, p))
        return exact.guaranteed_returns(old, new)["B6"] - old.eta

    edge: Any = optimize.brentq(certified_gain, 0.1 + 1e-6, 0.12, xtol=1e-14)
    points = (0.105, 0.12, 0.15, 0.2, 0.25, 0.4)
    along = exact.walk(old, [going_right(old.mdp, p) for p in points])
    kept = (along.eta - old.eta) / (along.surrogate - old.eta)
    far = [
        np.prod(old.gains(new)) > 0
        for old, new in random_pairs(2000, gamma=0.9, seed=6)
        if old.kl(new.policy) > 1.0
    ]
    return finding(
        reach=old.kl(going_right(old.mdp, float(edge))),
        sign_known=np.mean(far),
        far_pairs=len(far),
        **{f"kept_{p}": share for p, share in zip(points, kept, strict=True)},
        **{f"kl_{p}": kl for p, kl in zip(points, along.kl, strict=True)},
    )


def pinsker() -> Finding:
    """TV^2 <= KL/2."""
    shares = []
    for old, new in random_pairs(300, gamma=0.5, seed=7):
        halves = exact.kl_per_state(old.policy, new.policy) / 2
        shares.append(exact.tv_per_state(old.policy, new.policy) ** 2 / np.maximum(halves, 1e-300))
    far = np.array([[0.999, 0.001]]), np.array([[0.001, 0.999]])
    kl = exact.kl_per_state(*far)[0]
    start = exact.starting_point(exact.corridor())
    bounds = exact.gap_bounds(start.old, exact.updated(start, "trpo"))
    return finding(
        tightest=np.max(shares),
        violations=np.sum(np.array(shares) > 1 + 1e-9),
        far_kl=kl,
        far_tv=exact.tv_per_state(*far)[0],
        pinsker_at_far=np.sqrt(kl / 2),
        c_ratio=bounds["B6"] / bounds["B7"],
    )


def mean_for_max() -> Finding:
    """TRPO constrains the mean, the theorem the maximum."""
    start = exact.starting_point(exact.find_mdp("FrozenLake-v1", {}))
    new = exact.updated(start, "trpo", exact.StepSizes(max_kl=0.01))
    mean = start.old.kl(new.policy)
    worst = exact.kl_per_state(start.old.policy, new.policy)[~start.mdp.terminal].max()
    return finding(mean=mean, worst=worst, worst_times=worst / mean)


CLAIMS = (
    lower_bound,
    certified_reach,
    visitation_follows_kl,
    ball_guarantees,
    outside_the_region,
    pinsker,
    mean_for_max,
)
