"""The essay on PPO: the clip, what it bounds, and the cliff."""

import numpy as np

from surefoot import exact as t
from surefoot.analysis.plots import Line, plot_lines
from surefoot.config.settings import PPO
from surefoot.exact.claims.claim import Claim, Solved, corridors_that_fell, solved
from surefoot.exact.practice import training_update
from surefoot.exact.report import Start


def bandit(q: float) -> Solved:
    """One state, two actions; the second has probability q and pays 1."""
    mdp = t.make_mdp(np.ones((1, 2, 1)), np.array([[0.0, 1.0]]), gamma=0.0, name="bandit")
    theta = np.array([[0.0, np.log(q) - np.log1p(-q)]])
    start = Start(mdp, t.Tabular(), theta)
    return Solved(start, t.solve(mdp, start.family.policy(theta)))


def clip_bounds_no_ratio() -> Claim:
    """The clip bounds neither the ratio nor KL."""
    ratios = {}
    for q in (0.1, 0.01, 0.001):
        case = bandit(q)
        ratios[q] = float(case.after("ppo").policy[0, 1] / q)
    case = bandit(0.01)
    nearest = case.after("ppo").policy
    value = [
        t.clipped(case.mdp, case.old, p, clip_eps=0.2) for p in (nearest, np.array([[0.0, 1.0]]))
    ]
    grid = np.linspace(0.001, 0.5, 1000)
    walk = [np.array([[1 - p, p]]) for p in grid]

    def draw(path):
        promised = [t.surrogate(case.old, w) for w in walk]
        held = [t.clipped(case.mdp, case.old, w, clip_eps=0.2) for w in walk]
        plot_lines(
            [
                Line("the surrogate, E[r A]", grid, promised, "#D55E00"),
                Line("the clipped objective", grid, held, "#CC79A7"),
            ],
            path,
            xlabel="probability of the action that pays (before: 0.01)",
            ylabel="objective",
            title="one state: the clip is flat, it does not hold",
            ylim=(0.0095, 0.0165),
            dots=[(float(nearest[0, 1]), value[0])],
        )

    return Claim(
        title="The ratio can't go too far in either direction",
        says="The clipping prevents catastrophic updates: the ratio can't go too far in either "
        "direction.",
        experiment="The smallest case there is: one state, two actions, the second pays 1 and has "
        "probability q. PPO's clipped objective with ε = 0.2, all data, ascent to the nearest "
        "maximum. The clip should hold the ratio at 1.2.",
        numbers={f"ratio_{q}": r for q, r in ratios.items()}
        | {"value_nearest": value[0], "value_certain": value[1]},
        finding="The ratio ends at "
        + ", ".join(f"{r:.1f} for q = {q}" for q, r in ratios.items())
        + ". The other action has a ratio of its own, and pushes until that reaches 0.8. "
        f"Beyond, the objective is flat: at a probability of 1, infinitely far in KL, it has the "
        f"same value ({value[1]:.4f} and {value[0]:.4f}). Nothing pulls back.",
        verdict="fails: the clip removes the gradient of one side of one action. It bounds neither "
        "the ratio nor the KL",
        draw=draw,
        caption="The dot is where ascent arrives: the objective rises until there, slowly once the "
        "paying action is clipped at 0.012, and is flat from there to probability 1.",
        command="",
    )


def small_steps_do_not_help() -> Claim:
    """Many small first-order steps do not keep the policy near."""
    # Action 0 pays 1 in both states; action 1 pays nothing and loses probability.
    mdp = t.make_mdp(
        np.tile(np.array([0.5, 0.5]), (2, 2, 1)),
        np.array([[1.0, 0.0], [1.0, 0.0]]),
        gamma=0.0,
        start=np.array([0.5, 0.5]),
        name="two states, one parameter",
    )
    family, theta = t.Shared(np.array([[[0.0], [10.0]], [[0.0], [0.5]]])), np.zeros(1)
    old = t.solve(mdp, family.policy(theta))
    found = {}
    for steps in (320, 3000):
        config = PPO(
            num_epochs=steps,
            num_minibatches=1,
            learning_rate=1e-3,
            advantage_norm="none",
            max_grad_norm=0.0,
        )
        moved = family.policy(training_update(config)(Start(mdp, family, theta), old, t.Step()))
        found[steps] = (moved / old.policy)[:, 1], float(t.row_kl(old.policy, moved)[0])
    (early, early_kl), (late, late_kl) = found[320], found[3000]
    return Claim(
        title="First-order SGD, in small steps",
        says="No second-order optimisation, no line search: first-order SGD.",
        experiment="Two states, two actions, of which the first pays. One parameter serves both "
        "states, and the first state reacts to it twenty times as strongly. The PPO that trains "
        "elsewhere in this library follows its clipped objective on all data in small steps (Adam, "
        "step size 0.001). We watch the probability of the action that does not pay, as a ratio to "
        "its old one: the clip stops asking for less once it is 0.8.",
        numbers={
            "ratio_first_320": float(early[0]),
            "ratio_second_320": float(early[1]),
            "kl_320": early_kl,
            "ratio_first": float(late[0]),
            "ratio_second": float(late[1]),
            "kl": late_kl,
        },
        finding=f"After 320 steps, as many as a usual update takes, the ratio is {early[0]:.2f} in "
        f"the first state and {early[1]:.2f} in the second, which keeps pulling; after 3000, when "
        f"the second has reached {late[1]:.2f} and all is still, the first is at {late[0]:.4f}, "
        f"{late_kl:.2f} nats from where it was ({early_kl:.3f} after 320).",
        verdict="holds when it is not taken for a protection: a clipped state has no say and is "
        "dragged along. It is the number of steps that keeps a usual update near",
    )


def cliff() -> Claim:
    """PPO jumps off the cliff."""
    case = solved(t.corridor())
    weights = t.state_weights(case.mdp, case.old)
    ppo, trpo = case.after("ppo"), case.after("trpo")
    promised = {
        name: t.surrogate(case.old, new.policy) for name, new in (("ppo", ppo), ("trpo", trpo))
    }
    kl = float(weights @ t.row_kl(case.old.policy, ppo.policy))
    wide, tight = case.after("trpo", max_kl=kl), case.after("ppo", clip_eps=0.05)
    reached = {}
    for name, settings in (
        ("long", {"num_epochs": 20_000, "learning_rate": 3e-3, "max_grad_norm": 0.0}),
        ("usual", {"num_epochs": 320}),
    ):
        config = PPO(num_minibatches=1, advantage_norm="none", **settings)
        policy = case.policy(training_update(config)(case.start, case.old, t.Step()))
        reached[name] = float(policy[0, 1])
    return Claim(
        title="A mechanism that prevents the policy from jumping off a cliff",
        says="What PPO has is a mechanism that prevents the policy from jumping off a cliff.",
        experiment="The corridor again, whose edge is a cliff: one exact update of PPO with ε = 0.2 "
        "and of TRPO with δ = 0.01; of TRPO with the KL that PPO went, and of PPO with ε = 0.05. "
        "And the PPO that trains elsewhere in this library, on all data: twenty thousand small "
        "steps, and the 320 steps of 0.0003 that a usual update has.",
        numbers={
            "ppo_promised": promised["ppo"],
            "ppo_got": ppo.eta,
            "trpo_promised": promised["trpo"],
            "trpo_got": trpo.eta,
            "old": case.old.eta,
            "trpo_at_ppos_kl": wide.eta,
            "ppo_tight": tight.eta,
            "training_p": reached["long"],
            "usual_p": reached["usual"],
        },
        finding=f"From {case.old.eta:.3f} the surrogate promises PPO {promised['ppo']:.3f}, and "
        f"the return is {ppo.eta:.3f}. TRPO is promised {promised['trpo']:.3f} and gets "
        f"{trpo.eta:.3f}; with PPO's KL ({kl:.3f}) it would get {wide.eta:.3f}, and PPO with "
        f"ε = 0.05 gets {tight.eta:.3f}. The training code arrives at p = {reached['long']:.3f} "
        f"after twenty thousand steps, as the exact update does ({ppo.policy[0, 1]:.3f}); after "
        f"320 usual ones it is at {reached['usual']:.3f}.",
        verdict="fails: the corridor is a cliff it walks off in one exact update. Nor does TRPO's "
        "rule know of the cliff: its radius is in nats, where PPO's clip is not, and somebody has "
        "to choose it",
        draw=_draw_corridor,
        caption="PPO's update on the corridor. The surrogate promises the orange dot, the policy "
        "gets the black one. Shaded: where at least half of the promise is kept. Dotted: the return "
        "that three of the bounds guarantee.",
        command="surefoot exact corridor ppo --plot",
    )


def _draw_corridor(path):
    from surefoot.analysis.exact_picture import plane
    from surefoot.analysis.plots import plot_plane
    from surefoot.exact.report import exact_update, report, start_at

    start, step = start_at(t.corridor()), t.Step()
    found, ray, marks = report(start, exact_update("ppo"), step)
    plot_plane(plane(start, found, ray, marks, rule="ppo", clip_eps=step.clip_eps), path)


def needs_no_guarantee() -> Claim:
    """PPO does not need guarantees."""
    total, by_rule, _ = corridors_that_fell()
    fell = by_rule["ppo"]
    benign = count = 0
    rng = np.random.default_rng(0)
    for index in range(60):
        mdp = t.random_mdp(index, gamma=(0.5, 0.9, 0.95)[index % 3])
        family = t.Shared(rng.normal(size=(6, 3, 2)))
        theta = rng.normal(size=2)
        old = t.solve(mdp, family.policy(theta))
        new = t.solve(mdp, family.policy(t.EXACT["ppo"](mdp, family, theta, old, t.Step())))
        count, benign = count + 1, benign + (new.eta < old.eta - 1e-9)
    return Claim(
        title="It doesn't need the guarantees",
        says="PPO doesn't have TRPO's guarantees, and doesn't need them: they were already broken "
        "in practice.",
        experiment=f"One exact PPO update on the {total} corridors of before, and on 60 random "
        "MDPs whose states share two parameters. How often does the return fall, with all data "
        "and no noise? (That the broken guarantee is why PPO exists is the essay's reading; "
        "Schulman et al. 2017 give other reasons: TRPO is complicated, and does not go together "
        "with dropout or shared parameters.)",
        numbers={"corridor_fell": fell / total, "random_fell": benign / count},
        finding=f"It fell in {100 * fell / total:.1f} % of the corridors and in "
        f"{100 * benign / count:.1f} % of the random environments ({benign} of {count}).",
        verdict="holds when the problem is benign; one with an edge needs someone to look at what "
        "was really gained",
    )


CLAIMS = (clip_bounds_no_ratio, small_steps_do_not_help, cliff, needs_no_guarantee)
