"""The essay on PPO: the clip, what it bounds, and the cliff."""

from dataclasses import replace

import numpy as np

from surefoot import exact
from surefoot.config.settings import PPO
from surefoot.exact.claims.cases import Finding, corridor_falls, finding
from surefoot.exact.picture import LinePicture, PlottedLine, update_picture
from surefoot.exact.practice import training_update
from surefoot.exact.updates import exact_ppo

# The whole batch in each step, raw advantages: PPO's small steps and nothing else.
FULL_BATCH = PPO(num_minibatches=1, advantage_norm="none")


def bandit(q: float) -> exact.StartingPoint:
    """One state, two actions; the second has probability q and pays 1."""
    mdp = exact.make_mdp(np.ones((1, 2, 1)), np.array([[0.0, 1.0]]), gamma=0.0, name="bandit")
    return exact.starting_point(mdp, p_old=q)


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


def small_steps_do_not_help() -> Finding:
    """Many small first-order steps do not keep the policy near."""
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
    for steps, suffix in ((320, "_320"), (3000, "")):
        theta = training_update(replace(config, num_epochs=steps))(start, exact.StepSizes())
        new = family.policy(theta)
        ratios = new / start.old.policy
        numbers |= {
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


CLAIMS = (clip_bounds_no_ratio, small_steps_do_not_help, cliff, needs_no_guarantee)
