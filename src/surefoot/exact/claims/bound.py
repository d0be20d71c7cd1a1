"""The essay on the bound: what it says, how loose it is, and what it rests on."""

import numpy as np

from surefoot import exact
from surefoot.exact.bounds import mixture_bound, mixture_step
from surefoot.exact.claims.cases import Finding, finding, random_pairs
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
            if gamma == 0.99 and abs(gap) > 1e-8:
                ratios.append([bounds[name] / abs(gap) for name in ("B6", "B2", "B11")])
    schulman, cpo, entropic = np.median(ratios, axis=0)
    return finding(
        violations=violations,
        looseness_schulman=schulman,
        looseness_cpo=cpo,
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
        best = int(np.argmax(gain))
        numbers |= {f"{name}_gain": gain[best], f"{name}_kl": along.kl[best]}
    drawn = (
        ("η, the real gain", gains["real"], "#000000"),
        ("guaranteed: B6, Schulman 2015", gains["schulman"], "#0072B2"),
        ("guaranteed: B11", gains["entropic"], "#56B4E9"),
    )
    picture = LinePicture(
        title="corridor: what is sure, and what is real",
        xlabel="mean KL(old ‖ new), nats",
        ylabel="gain of return",
        lines=[PlottedLine(n, along.kl[gain > 0], gain[gain > 0], c) for n, gain, c in drawn],
        log=True,
    )
    return finding(picture, **numbers)


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


CLAIMS = (lower_bound, certified_reach, visitation_follows_kl)
