"""The essay on PPO: the clip, what it bounds, and the cliff."""

from dataclasses import replace

import numpy as np

from surefoot.config.settings import PPO
from surefoot.exact.claims.cases import Finding, corridor_falls
from surefoot.exact.families import LinearSoftmax, StartingPoint, starting_point
from surefoot.exact.mdp import corridor, make_mdp, random_mdp
from surefoot.exact.path import update_path, walk
from surefoot.exact.picture import LinePicture, PlottedLine, update_picture
from surefoot.exact.practice import training_update
from surefoot.exact.solution import (
    exact_clipped_surrogate,
    exact_surrogate,
    kl_per_state,
    visited_kl,
)
from surefoot.exact.updates import StepSizes, exact_ppo, updated

# The whole batch in each step, raw advantages: PPO's small steps and nothing else.
FULL_BATCH = PPO(num_minibatches=1, advantage_norm="none")


def bandit(q: float) -> StartingPoint:
    """One state, two actions; the second has probability q and pays 1."""
    mdp = make_mdp(np.ones((1, 2, 1)), np.array([[0.0, 1.0]]), gamma=0.0, name="bandit")
    return starting_point(mdp, p_old=q)


def clip_bounds_no_ratio() -> Finding:
    """The clip bounds neither the ratio nor KL."""
    nearest = {q: updated(bandit(q), "ppo").policy for q in (0.1, 0.01, 0.001)}
    old, certain = bandit(0.01).old, np.array([[0.0, 1.0]])
    value, value_certain = (
        exact_clipped_surrogate(old, policy, clip_eps=0.2) for policy in (nearest[0.01], certain)
    )
    grid = np.linspace(0.001, 0.5, 1000)
    along = walk(old, [np.array([[1 - p, p]]) for p in grid])
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
    ratios = {f"ratio_{q}": float(policy[0, 1] / q) for q, policy in nearest.items()}
    return Finding(ratios | {"value_nearest": value, "value_certain": value_certain}, picture)


def small_steps_do_not_help() -> Finding:
    """Many small first-order steps do not keep the policy near."""
    # Action 0 pays 1 in both states; action 1 pays nothing and loses probability.
    mdp = make_mdp(
        np.full((2, 2, 2), 0.5),
        np.array([[1.0, 0.0], [1.0, 0.0]]),
        gamma=0.0,
        start=np.array([0.5, 0.5]),
        name="two states, one parameter",
    )
    family = LinearSoftmax(np.array([[[0.0], [10.0]], [[0.0], [0.5]]]))
    start, numbers = StartingPoint(mdp, family, np.zeros(1)), {}
    config = replace(FULL_BATCH, learning_rate=1e-3, max_grad_norm=0.0)
    for steps, suffix in ((320, "_320"), (3000, "")):
        theta = training_update(replace(config, num_epochs=steps))(start, StepSizes())
        new = family.policy(theta)
        ratios = new / start.old.policy
        numbers |= {
            f"ratio_first{suffix}": float(ratios[0, 1]),
            f"ratio_second{suffix}": float(ratios[1, 1]),
            f"kl{suffix}": float(kl_per_state(start.old.policy, new)[0]),
        }
    return Finding(numbers)


def cliff() -> Finding:
    """PPO jumps off the cliff."""
    start = starting_point(corridor())
    path = update_path(start, exact_ppo, StepSizes())
    old, ppo, trpo = path.old, path.new, updated(start, "trpo")
    kl = visited_kl(old, ppo.policy)
    usual = replace(FULL_BATCH, num_epochs=320)
    longer = replace(FULL_BATCH, num_epochs=20_000, learning_rate=3e-3, max_grad_norm=0.0)
    reached = {}
    for name, config in (("usual_p", usual), ("training_p", longer)):
        theta = training_update(config)(start, StepSizes())
        reached[name] = float(start.family.policy(theta)[0, 1])
    return Finding(
        {
            "ppo_promised": exact_surrogate(old, ppo.policy),
            "ppo_got": ppo.eta,
            "ppo_kl": kl,
            "ppo_p": float(ppo.policy[0, 1]),
            "trpo_promised": exact_surrogate(old, trpo.policy),
            "trpo_got": trpo.eta,
            "old": old.eta,
            "trpo_at_ppos_kl": updated(start, "trpo", StepSizes(max_kl=kl)).eta,
            "ppo_tight": updated(start, "ppo", StepSizes(clip_eps=0.05)).eta,
        }
        | reached,
        update_picture(path, rule="ppo", shared=True),
    )


def needs_no_guarantee() -> Finding:
    """PPO does not need guarantees."""
    corridors, rng = corridor_falls("ppo"), np.random.default_rng(0)
    fell, count = 0, 60
    for index in range(count):
        mdp = random_mdp(index, gamma=(0.5, 0.9, 0.95)[index % 3])
        family = LinearSoftmax(rng.normal(size=(6, 3, 2)))
        start = StartingPoint(mdp, family, rng.normal(size=2))
        fell += updated(start, "ppo").eta < start.old.eta - 1e-9
    return Finding(
        {
            "corridors": float(corridors.count),
            "corridor_fell": corridors.share,
            "random_fell": fell / count,
            "random_fell_count": float(fell),
        }
    )


CLAIMS = (clip_bounds_no_ratio, small_steps_do_not_help, cliff, needs_no_guarantee)
