"""The essay on PPO: the clip, what it bounds, and the cliff."""

from dataclasses import replace

import numpy as np

from surefoot import exact
from surefoot.config.settings import PPO
from surefoot.exact.claims.cases import Finding, corridor_falls, finding, random_pairs
from surefoot.exact.claims.trpo import passes
from surefoot.exact.families import policy_gradient
from surefoot.exact.picture import LinePicture, PlottedLine, update_picture
from surefoot.exact.practice import training_update, update_costs
from surefoot.exact.updates import exact_ppo

# The whole batch in each step, raw advantages: PPO's small steps and nothing else.
FULL_BATCH = PPO(num_minibatches=1, advantage_norm="none")


def bandit(q: float) -> exact.StartingPoint:
    """One state, two actions; the second has probability q and pays 1."""
    mdp = exact.make_mdp(np.ones((1, 2, 1)), np.array([[0.0, 1.0]]), gamma=0.0, name="bandit")
    return exact.starting_point(mdp, p_old=q)


def clipped_objective() -> Finding:
    """The clipped objective: below L, and equal to it near the old policy."""
    family, rng, h = exact.TabularSoftmax(), np.random.default_rng(2), 1e-6
    above_surrogate = above_return = inside = 0
    worst_inside = worst_slope = 0.0
    pairs = list(random_pairs(300, gamma=0.9, seed=12))
    for old, new in pairs:
        value, surrogate = old.clipped(new.policy, clip_eps=0.2), old.surrogate(new.policy)
        above_surrogate += value > surrogate + 1e-9
        above_return += value > new.eta + 1e-9
        if np.abs(new.policy / old.policy - 1).max() <= 0.2:
            inside += 1
            worst_inside = max(worst_inside, abs(surrogate - value))
        direction, logits = rng.normal(size=old.policy.shape), exact.logits_of(old.policy)
        up, down = (
            old.clipped(family.policy(logits + s * h * direction), clip_eps=0.2) for s in (1, -1)
        )
        slope = float(np.sum(policy_gradient(family, old) * direction))
        worst_slope = max(worst_slope, abs((up - down) / (2 * h) - slope))
    return finding(
        pairs=len(pairs),
        above_surrogate=above_surrogate,
        above_return=above_return / len(pairs),
        inside=inside,
        worst_inside=worst_inside,
        worst_slope=worst_slope,
    )


def clip_bounds_no_ratio() -> Finding:
    """The clip bounds neither the ratio nor KL."""
    nearest = {q: exact.updated(bandit(q), "ppo").policy for q in (0.1, 0.01, 0.001)}
    old, certain = bandit(0.01).old, np.array([[0.0, 1.0]])
    value, value_certain = (
        old.clipped(policy, clip_eps=0.2) for policy in (nearest[0.01], certain)
    )
    grid = np.linspace(0.001, 0.5, 1000)
    along = exact.walk(old, [np.array([[1 - p, p]]) for p in grid])
    picture = LinePicture(
        title="one state: the clip is flat, it does not hold",
        xlabel="probability of the action that pays (before: 0.01)",
        ylabel="objective",
        lines=[
            PlottedLine("the surrogate, E[r A]", grid, along.surrogate, "#D55E00"),
            PlottedLine("the clipped objective", grid, along.clipped, "#CC79A7"),
        ],
        dots=[(float(nearest[0.01][0, 1]), value)],
        ylim=(0.0095, 0.0165),
    )
    ratios = {f"ratio_{q}": policy[0, 1] / q for q, policy in nearest.items()}
    return finding(picture, **ratios, value_nearest=value, value_certain=value_certain)


def first_order_suffices() -> Finding:
    """First-order steps reach the maximum of the clipped objective, and hold no ratio."""
    # Action 0 pays 1 in both states; action 1 pays nothing and loses probability.
    mdp = exact.make_mdp(
        np.full((2, 2, 2), 0.5),
        np.array([[1.0, 0.0], [1.0, 0.0]]),
        gamma=0.0,
        start=np.array([0.5, 0.5]),
        name="two states, one parameter",
    )
    family = exact.LinearSoftmax(np.array([[[0.0], [10.0]], [[0.0], [0.5]]]))
    start, numbers = exact.StartingPoint(mdp, family, np.zeros(1)), {}
    config = replace(FULL_BATCH, learning_rate=1e-3, max_grad_norm=0.0)

    def gained(policy: exact.Policy) -> float:
        return start.old.clipped(policy, clip_eps=config.clip_eps) - start.old.eta

    top = gained(exact.updated(start, "ppo").policy)
    for steps, suffix in ((320, "_320"), (3000, "")):
        theta = training_update(replace(config, num_epochs=steps))(start, exact.StepSizes())
        new = family.policy(theta)
        ratios = new / start.old.policy
        numbers |= {
            f"reached{suffix}": gained(new) / top,
            f"ratio_first{suffix}": ratios[0, 1],
            f"ratio_second{suffix}": ratios[1, 1],
            f"kl{suffix}": exact.kl_per_state(start.old.policy, new)[0],
        }
    return finding(**numbers)


def cliff() -> Finding:
    """PPO jumps off the cliff."""
    start = exact.starting_point(exact.corridor())
    path = exact.update_path(start, exact_ppo, exact.StepSizes())
    old, ppo, trpo = path.old, path.new, exact.updated(start, "trpo")
    kl = old.kl(ppo.policy)
    # As many steps as ten epochs of 32 minibatches.
    usual = replace(FULL_BATCH, num_epochs=320)
    longer = replace(FULL_BATCH, num_epochs=20_000, learning_rate=3e-3, max_grad_norm=0.0)
    reached = {}
    for name, config in (("usual_p", usual), ("training_p", longer)):
        theta = training_update(config)(start, exact.StepSizes())
        reached[name] = start.family.policy(theta)[0, 1]
    return finding(
        update_picture(path, rule="ppo", shared=True),
        ppo_promised=old.surrogate(ppo.policy),
        ppo_got=ppo.eta,
        ppo_kl=kl,
        ppo_p=ppo.policy[0, 1],
        trpo_promised=old.surrogate(trpo.policy),
        trpo_got=trpo.eta,
        old=old.eta,
        trpo_at_ppos_kl=exact.updated(start, "trpo", exact.StepSizes(max_kl=kl)).eta,
        ppo_tight=exact.updated(start, "ppo", exact.StepSizes(clip_eps=0.05)).eta,
        **reached,
    )


def needs_no_guarantee() -> Finding:
    """PPO does not need guarantees."""
    corridors, corridor_fell, _ = corridor_falls("ppo")
    fell, count, rng = 0, 60, np.random.default_rng(0)
    for index in range(count):
        mdp = exact.random_mdp(index, gamma=(0.5, 0.9, 0.95)[index % 3])
        family = exact.LinearSoftmax(rng.normal(size=(6, 3, 2)))
        start = exact.StartingPoint(mdp, family, rng.normal(size=2))
        fell += exact.updated(start, "ppo").eta < start.old.eta - 1e-9
    return finding(
        corridors=corridors,
        corridor_fell=corridor_fell,
        random_fell=fell / count,
        random_fell_count=fell,
    )


def cheap_at_scale() -> Finding:
    """Cheap enough to run at scale."""
    usual, numbers = PPO(), {}
    for width in (64, 1024):
        cost = update_costs(width)
        numbers[f"ppo_{width}"] = usual.num_epochs * cost["gradient"]
        numbers[f"trpo_{width}"] = passes(cost, share=1.0, products=10)
    return finding(
        **numbers,
        steps=usual.num_epochs * usual.num_minibatches,
        # A gradient, ten products, a rescaling and two tries.
        sweeps=1 + 10 + 1 + 2,
    )


CLAIMS = (
    clipped_objective,
    clip_bounds_no_ratio,
    first_order_suffices,
    needs_no_guarantee,
    cliff,
    cheap_at_scale,
)
