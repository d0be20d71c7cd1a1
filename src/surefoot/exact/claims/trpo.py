"""The essay on TRPO: its objective, its geometry, its price."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from surefoot import exact as t
from surefoot.envs.tabular import find_mdp
from surefoot.exact.claims.claim import Claim, random_pairs, solved
from surefoot.formulas.conjugate_gradient import fisher_vector_product
from surefoot.formulas.distributions import DiagGaussian
from surefoot.types import Inputs


def objective_drops_factors() -> Claim:
    """E over rho_old drops a factor, and practice the discount."""
    quick = {gamma: _cosines(gamma, stay=0.0) for gamma in (0.9, 0.97, 0.99)}
    slow = {gamma: _cosines(gamma, stay=0.95) for gamma in (0.9, 0.97, 0.99)}
    lake = solved(find_mdp("FrozenLake8x8-v1", {}, gamma=0.9))
    on_lake = _practice_cosine(lake.mdp, lake.old)

    def told(medians):
        return ", ".join(f"{np.median(found):.3f} at γ = {g}" for g, found in medians.items())

    return Claim(
        title="The expectation over old states",
        says="TRPO maximises E over s ~ ρ_old, a ~ π_old of the ratio π(a|s) / π_old(a|s) times A.",
        experiment="An expectation needs a distribution, so the factor 1/(1-γ) of the sum is "
        "dropped; that changes lengths only. In practice γ^t is dropped as well: every step of an "
        "episode counts the same, although A is discounted. We compare the direction of that "
        "gradient, over 200 steps from one first state, with the gradient of the return: on random "
        "environments that soon forget where they began, on the same ones made to stay where they "
        "are 95 % of the time, and on FrozenLake 8x8.",
        numbers={f"cosine_{g}": float(np.median(c)) for g, c in quick.items()}
        | {f"slow_cosine_{g}": float(np.median(c)) for g, c in slow.items()}
        | {"lake": on_lake},
        finding=f"The cosine between the two directions has a median of {told(quick)}; where "
        f"changes are slow, {told(slow)}. On FrozenLake 8x8 at γ = 0.9 it is {on_lake:.2f}.",
        verdict="holds when the start is forgotten fast against 1/(1-γ); the direction everybody "
        "follows is not quite the gradient of the discounted return",
    )


def _cosines(gamma: float, *, stay: float) -> list[float]:
    """`_practice_cosine` of 150 random MDPs from one state, which stay put in a share of steps."""
    found = []
    for pair in random_pairs(150, gamma=gamma, seed=8):
        size = pair.mdp.num_states
        still = np.broadcast_to(np.eye(size)[:, None], pair.mdp.transitions.shape)
        mdp = pair.mdp._replace(
            start=np.eye(size)[0], transitions=stay * still + (1 - stay) * pair.mdp.transitions
        )
        found.append(_practice_cosine(mdp, t.solve(mdp, pair.old.policy)))
    return found


def _practice_cosine(mdp: t.MDP, old: t.Solution, steps: int = 200) -> float:
    """Cosine between the gradient of eta and the one that counts every step the same."""
    family, law = t.Tabular(), t.next_states(mdp, old.policy)
    here, seen = mdp.start, np.zeros(mdp.num_states)
    for _ in range(steps):
        seen, here = seen + here / steps, here @ law
    true = t.gradient(mdp, family, old).reshape(-1)
    practice = family.pull(old.policy, seen[:, None] * old.advantages).reshape(-1)
    return float(true @ practice / np.linalg.norm(true) / np.linalg.norm(practice))


def natural_direction() -> Claim:
    """The step direction is F^-1 g."""
    case = solved(find_mdp("FrozenLake-v1", {}))
    x, _ = t.natural_direction(case.mdp, case.start.family, case.old)
    radii, cosines, gains = np.geomspace(1e-6, 1.0, 7), [], []
    weights = np.sqrt(t.state_weights(case.mdp, case.old)[:, None] * case.old.policy)
    for radius in radii:
        moved = case.after("trpo", max_kl=float(radius)).policy
        step = t.logits_of(moved) - t.logits_of(case.old.policy)
        step -= np.sum(case.old.policy * step, axis=1, keepdims=True)
        one, other = weights * step, weights * x
        cosines.append(float(np.sum(one * other) / np.linalg.norm(one) / np.linalg.norm(other)))
        natural = case.after("npg", max_kl=float(radius)).policy
        base = case.old.eta
        gains.append(
            (t.surrogate(case.old, natural) - base) / (t.surrogate(case.old, moved) - base)
        )
    ridge = solved(t.ridge())
    scaled = t.Shared(10.0 * t.one_parameter(ridge.mdp).features)
    steps = {}
    for rule in ("vpg", "npg"):
        ends = [
            family.policy(t.EXACT[rule](ridge.mdp, family, theta, ridge.old, t.Step()))[0, 1]
            for family, theta in (
                (ridge.start.family, ridge.start.theta),
                (scaled, ridge.start.theta / 10.0),
            )
        ]
        steps[rule] = abs(float(ends[0] - ends[1]))
    return Claim(
        title="The step direction is the natural gradient",
        says="The direction of TRPO's step is approximately F⁻¹g, the natural gradient.",
        experiment="On FrozenLake the exact solution of TRPO's problem is known in closed form. "
        "We compare its direction with F⁻¹g for ever smaller radii, where F is the Fisher matrix "
        "and g the gradient. On the ridge we rescale the parameter by 10 and ask whether the "
        "policy after a step depends on it.",
        numbers={f"cosine_{r:.0e}": c for r, c in zip(radii, cosines, strict=True)}
        | {"vpg_depends": steps["vpg"], "npg_depends": steps["npg"]},
        finding=f"The cosine is {cosines[-1]:.3f} at a radius of 1 nat, {cosines[4]:.3f} at 0.01 "
        f"and {cosines[0]:.6f} at 1e-6. After rescaling, vanilla policy gradient "
        f"ends elsewhere (p differs by {steps['vpg']:.2f}), the natural one at the same policy "
        f"(difference {steps['npg']:.0e}).",
        verdict="holds when the radius is small; and it is a property of the policies, not of "
        "their parameters",
    )


def fisher_measures() -> Claim:
    """F measures how much the distribution changes."""
    case = solved(find_mdp("FrozenLake-v1", {}))
    family, theta = t.Tabular(), case.start.theta
    rng = np.random.default_rng(0)
    direction = rng.normal(size=theta.shape)
    weights = t.state_weights(case.mdp, case.old)
    flat = direction.reshape(-1)
    quadratic = 0.5 * float(flat @ t.fisher(case.mdp, family, case.old) @ flat)
    lengths, errors = np.geomspace(1e-2, 1e-1, 9), []
    for a in lengths:
        new = family.policy(theta + a * direction)
        kls = [
            float(weights @ t.row_kl(*pair))
            for pair in ((case.old.policy, new), (new, case.old.policy))
        ]
        errors.append([abs(kl - a**2 * quadratic) for kl in kls] + [abs(kls[0] - kls[1])])
    slopes = [float(np.polyfit(np.log(lengths), np.log(e), 1)[0]) for e in np.array(errors).T]
    moves = {where: _moved_visits(where) for where in ("first", "edge")}
    return Claim(
        title="F measures how much the distribution changes",
        says="The Fisher matrix F measures how much the distribution changes, not how much the "
        "parameters change.",
        experiment="KL(old || new) and KL(new || old) of a random step on FrozenLake, and half of "
        "the step squared under F: does their difference vanish faster than the step squared? "
        "(Slope 3 on doubly logarithmic axes.) Then, on the corridor with parameters of their own "
        "for every state, two steps of the same length under F (half the square is 0.0001): one in "
        "the first state, one at the edge.",
        numbers={
            "slope_forward": slopes[0],
            "slope_reverse": slopes[1],
            "slope_between": slopes[2],
            "visits_moved_first": moves["first"],
            "visits_moved_edge": moves["edge"],
        },
        finding=f"The slopes are {slopes[0]:.2f} and {slopes[1]:.2f}; the two directions of KL "
        f"part with slope {slopes[2]:.2f}. Of the two steps that F calls equally long, the one in "
        f"the first state moves {moves['first']:.1e} of all visits, the one at the edge "
        f"{moves['edge']:.0e}: there both actions lead to the same state.",
        verdict="holds to second order, for actions, averaged over old states; F is blind to what "
        "the change does to the visits",
    )


def _moved_visits(where: str) -> float:
    """Share of the corridor's visits moved by a step in one state with half its F-square 1e-4."""
    mdp, family = t.corridor(), t.Tabular()
    logits = t.logits_of(np.tile([0.95, 0.05], (4, 1)))
    old = t.solve(mdp, family.policy(logits))
    state = 0 if where == "first" else 3
    direction = np.zeros_like(logits)
    direction[state, 1] = 1.0
    flat = direction.reshape(-1)
    length = np.sqrt(2e-4 / (flat @ t.fisher(mdp, family, old) @ flat))
    new = t.solve(mdp, family.policy(logits + length * direction))
    return t.visitation_tv(mdp, old, new)


def parameters_mislead() -> Claim:
    """Large steps may do nothing, tiny ones flip the policy."""
    before, after = np.array([[20.0, 0.0]]), np.array([[60.0, 0.0]])
    family = t.Tabular()
    small = float(t.row_kl(family.policy(before), family.policy(after))[0])
    steep = t.Shared(np.array([[[0.0], [1000.0]]]))
    ends = [steep.policy(np.array([x])) for x in (-0.003, 0.003)]
    large = float(t.row_kl(*ends)[0])
    return Claim(
        title="Large steps that do nothing, tiny ones that flip the policy",
        says="A large change of the parameters that barely affects the output is small in this "
        "metric; a tiny one that flips the policy is large.",
        experiment="Two policies of two actions. The first has a logit of 20, which we raise to "
        "60. The second multiplies its parameter by 1000, and we move it from -0.003 to 0.003.",
        numbers={
            "small_kl": small,
            "large_kl": large,
            "p_before": float(ends[0][0, 1]),
            "p_after": float(ends[1][0, 1]),
        },
        finding=f"A step of 40 is {small:.0e} nats. A step of 0.006 is {large:.1f} nats: it takes "
        f"an action's probability from {ends[0][0, 1]:.2f} to {ends[1][0, 1]:.2f}.",
        verdict="holds",
    )


def price() -> Claim:
    """Fisher-vector products are the bottleneck."""
    units = _units()
    ppo = 10 * units["gradient"]
    full = units["gradient"] + units["linearise"] + 10 * units["product"] + units["rescale"] + 2
    lean = (
        units["gradient"]
        + 0.25 * (units["linearise"] + 5 * units["product"])
        + units["rescale"]
        + 2
    )
    critic = 10 * units["critic"]
    return Claim(
        title="The Fisher-vector products are the bottleneck",
        says="TRPO is elegant but expensive: the Fisher-vector products are the bottleneck.",
        experiment="The arithmetic (not the seconds) of one update of a network 17-64-64-6 on 2048 "
        "states. The compiler counts the operations of a gradient, of a Fisher-vector product (the "
        "network linearised once, then a forward-mode and a backward pass a product), of the "
        "rescaling to the radius on all states, and of the critic's gradient, in units of one "
        "forward pass; we put them together, with two tries of the line search. TRPO as published: "
        "ten products on all states. TRPO as here: five on a random quarter. PPO: ten epochs.",
        numbers={**units, "ppo": ppo, "trpo_textbook": full, "trpo": lean, "critic": critic},
        finding=f"A gradient costs {units['gradient']:.1f} passes, a product "
        f"{units['product']:.1f}. TRPO with ten products on all states: {full:.0f} passes; with "
        f"five on a quarter: {lean:.0f}; PPO's ten epochs: {ppo:.0f}. Fitting the critic for ten "
        f"epochs costs {critic:.0f} either way, more than the whole of the lean TRPO update.",
        verdict="holds when TRPO is done as published: the products are most of it. With five of "
        "them on a quarter of the states the critic is the bottleneck, and TRPO's step is cheaper "
        "than PPO's",
    )


def _units() -> dict[str, float]:
    """Floating-point operations of the parts of an update, in forward passes."""
    sizes, rows = (17, 64, 64, 6), 2048
    params = [(jnp.ones((a, b)) / a, jnp.zeros(b)) for a, b in itertools.pairwise(sizes)]
    log_std = jnp.zeros(sizes[-1])
    theta, unravel = ravel_pytree((params, log_std))
    inputs, actions = Inputs(jnp.ones((rows, sizes[0])), None), jnp.ones((rows, sizes[-1]))

    def policy(params, inputs):
        layers, log_std = params
        hidden = inputs.obs
        for weight, bias in layers[:-1]:
            hidden = jnp.tanh(hidden @ weight + bias)
        mean = hidden @ layers[-1][0] + layers[-1][1]
        return DiagGaussian(mean, jnp.broadcast_to(log_std, mean.shape))

    def loss(theta):
        return jnp.mean(policy(unravel(theta), inputs).log_prob(actions))

    def product(theta, vector):
        made = fisher_vector_product(policy, unravel(theta), inputs, jnp.ones(rows))
        return ravel_pytree(made(unravel(vector)))[0]

    def forward(theta):
        return policy(unravel(theta), inputs).mean

    def rescale(theta, vector):
        return jax.jvp(forward, (theta,), (vector,))

    last = (jnp.ones((sizes[-2], 1)) / sizes[-2], jnp.zeros(1))
    values, back = ravel_pytree([*params[:-1], last])

    def critic_loss(values):
        hidden = inputs.obs
        *layers, (weight, bias) = back(values)
        for inner, shift in layers:
            hidden = jnp.tanh(hidden @ inner + shift)
        return jnp.mean((hidden @ weight + bias - 1.0) ** 2)

    def count(function, *arguments):
        cost: Any = jax.jit(function).lower(*arguments).compile().cost_analysis()
        return float(cost["flops"])

    one = count(forward, theta)
    return {
        "gradient": count(jax.grad(loss), theta) / one,
        "linearise": 1.0,
        "product": count(product, theta, theta) / one - 1.0,
        "rescale": count(rescale, theta, theta) / one,
        "critic": count(jax.grad(critic_loss), values) / one,
    }


def exact_optimisation() -> Claim:
    """The guarantee does not need exact optimisation."""
    certain = kept = 0
    rng = np.random.default_rng(0)
    family = t.Tabular()
    for pair in random_pairs(100, gamma=0.5, seed=9):
        logits = t.logits_of(pair.old.policy)
        for _ in range(20):
            noise = rng.normal(size=logits.shape)
            size = 10.0 ** rng.uniform(-6, -2)
            new = t.solve(pair.mdp, family.policy(logits + size * noise))
            if t.guaranteed(pair.mdp, pair.old, new)["B6"] > pair.old.eta:
                certain, kept = certain + 1, kept + (new.eta > pair.old.eta)
    return Claim(
        title="The guarantee requires exact optimisation",
        says="TRPO's monotonic improvement guarantee requires exact optimisation of the "
        "surrogate, so minibatches and samples have already broken it.",
        experiment="Steps in purely random directions and of random lengths, nothing optimised at "
        "all, on 100 random MDPs. We keep those whose bound L - C max KL happens to lie above the "
        "old return, and look whether the return rose.",
        numbers={"certain": float(certain), "kept": float(kept)},
        finding=f"{certain} random steps had a bound above the old return; {kept} of them raised "
        "the return.",
        verdict="fails: any step that raises the bound will do. What practice breaks is the mean "
        "for the maximum, δ for C, and estimates for advantages",
    )


CLAIMS = (
    objective_drops_factors,
    natural_direction,
    fisher_measures,
    parameters_mislead,
    price,
    exact_optimisation,
)
