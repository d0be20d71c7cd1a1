"""The essay on TRPO: its objective, its geometry, its price."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from surefoot import exact
from surefoot.config.settings import PPO, TRPO
from surefoot.exact.claims.cases import (
    Finding,
    Pair,
    certified_steps,
    corridor_family,
    finding,
    random_pairs,
)
from surefoot.exact.claims.surrogate import rescaled
from surefoot.exact.families import policy_gradient
from surefoot.exact.practice import training_update, update_costs
from surefoot.exact.solution import next_states
from surefoot.exact.updates import exact_npg, natural_gradient

GAMMAS = (0.9, 0.97, 0.99)
RADIUS = 0.01
# F itself and all of the states, so that only the number of products is short.
UNDAMPED = TRPO(
    max_kl=RADIUS, damping=0.0, fisher_fraction=1.0, cg_tolerance=1e-9, advantage_norm="none"
)


def objective_drops_factors() -> Finding:
    """E over rho_old drops a factor, and practice the discount."""
    lake = exact.starting_point(exact.find_mdp("FrozenLake8x8-v1", {}, gamma=0.9)).old
    return finding(
        **{f"cosine_{gamma}": _median_cosine(gamma, stay=0.0) for gamma in GAMMAS},
        **{f"slow_cosine_{gamma}": _median_cosine(gamma, stay=0.95) for gamma in GAMMAS},
        lake=_practice_cosine(lake),
    )


def _median_cosine(gamma: float, *, stay: float) -> float:
    """Median `_practice_cosine` of 150 random MDPs from one state that repeat it with `stay`."""
    found = []
    for old, _ in random_pairs(150, gamma=gamma, seed=8):
        eye = np.eye(old.mdp.num_states)
        repeat = np.broadcast_to(eye[:, None], old.mdp.transitions.shape)
        transitions = stay * repeat + (1 - stay) * old.mdp.transitions
        mdp = old.mdp._replace(start=eye[0], transitions=transitions)
        found.append(_practice_cosine(exact.solve(mdp, old.policy)))
    return float(np.median(found))


def _practice_cosine(old: exact.SolvedPolicy, steps: int = 200) -> float:
    """Cosine between the gradient of eta and the one that weights every step alike."""
    family, law = exact.TabularSoftmax(), next_states(old.mdp, old.policy)
    here, seen = old.mdp.start, np.zeros(old.mdp.num_states)
    for _ in range(steps):
        seen, here = seen + here / steps, here @ law
    practice = family.vjp(old.policy, seen[:, None] * old.advantages)
    return _cosine(policy_gradient(family, old), practice)


def _cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.sum(one * other) / np.linalg.norm(one) / np.linalg.norm(other))


def step_is_natural() -> Finding:
    """The step direction is F^-1 g."""
    start = exact.starting_point(exact.find_mdp("FrozenLake-v1", {}))
    old = start.old
    x, _ = natural_gradient(start.family, old)
    # In these weights the Euclidean length of a step is its length under F.
    root = np.sqrt(old.weights[:, None] * old.policy)
    radii = np.geomspace(1e-6, 1.0, 7)
    numbers: dict[str, float] = {}
    for radius in radii:
        new = exact.updated(start, "trpo", exact.StepSizes(max_kl=float(radius)))
        step = exact.logits_of(new.policy) - exact.logits_of(old.policy)
        # A constant added to all logits of a state changes nothing.
        step -= np.sum(old.policy * step, axis=1, keepdims=True)
        numbers[f"cosine_{radius:.0e}"] = _cosine(root * step, root * x)
    hill = exact.starting_point(exact.ridge())
    for rule in ("vpg", "npg"):
        one, other = (exact.updated(each, rule).policy[0, 1] for each in (hill, rescaled(hill)))
        numbers[f"{rule}_depends"] = abs(one - other)
    return finding(**numbers)


def fisher_is_a_metric() -> Finding:
    """F defines a metric: it is singular."""
    start = exact.starting_point(exact.find_mdp("FrozenLake-v1", {}))
    lengths, axes = np.linalg.eigh(exact.fisher_matrix(start.family, start.old))
    seen = lengths > 1e-10 * lengths.max()
    blind = start.theta + 100.0 * axes[:, ~seen].sum(axis=1).reshape(start.theta.shape)
    # Left in the second state of the corridor for certain: no one sees the third.
    policy = np.tile([0.5, 0.5], (4, 1))
    policy[1] = [1.0, 0.0]
    walled = exact.starting_point(exact.corridor(), policy=policy).old
    F = exact.fisher_matrix(exact.TabularSoftmax(), walled)
    direction = np.zeros((4, 2))
    direction[2, 1] = 10.0
    flat = direction.reshape(-1)
    changed = exact.TabularSoftmax().policy(np.log(np.maximum(policy, 1e-300)) + direction)
    return finding(
        parameters=len(lengths),
        rank=seen.sum(),
        free=(start.old.weights > 0).sum() * (start.mdp.num_actions - 1),
        least=lengths[seen].min(),
        blind_kl=start.old.kl(start.family.policy(blind)),
        walled_parameters=len(F),
        walled_rank=np.linalg.matrix_rank(F, hermitian=True),
        unseen_length=flat @ F @ flat,
        unseen_tv=exact.tv_per_state(policy, changed)[2],
    )


def fisher_measures() -> Finding:
    """F measures how much the distribution changes."""
    start = exact.starting_point(exact.find_mdp("FrozenLake-v1", {}))
    old, weights, family = start.old, start.old.weights, exact.TabularSoftmax()
    direction = np.random.default_rng(0).normal(size=start.theta.shape)
    flat = direction.reshape(-1)
    quadratic = 0.5 * float(flat @ exact.fisher_matrix(family, old) @ flat)
    lengths, errors = np.geomspace(1e-2, 1e-1, 9), []
    for a in lengths:
        new = family.policy(start.theta + a * direction)
        forward = float(weights @ exact.kl_per_state(old.policy, new))
        reverse = float(weights @ exact.kl_per_state(new, old.policy))
        model = a**2 * quadratic
        errors.append([abs(forward - model), abs(reverse - model), abs(forward - reverse)])
    slopes = np.polyfit(np.log(lengths), np.log(errors), 1)[0]
    return finding(
        slope_forward=slopes[0],
        slope_reverse=slopes[1],
        slope_between=slopes[2],
        **_moved_visits(0, "first"),
        **_moved_visits(3, "edge"),
    )


def _moved_visits(state: int, name: str) -> dict[str, float]:
    """A step in one state of the corridor, half its F-square 1e-8: visits moved, and its true KL.

    So short that the edge, with 1e-4 of the visits, is still where half the square is KL.
    """
    start, family = exact.starting_point(exact.corridor(), tabular=True), exact.TabularSoftmax()
    direction = np.zeros_like(start.theta)
    direction[state, 1] = 1.0
    flat = direction.reshape(-1)
    length = np.sqrt(2e-8 / (flat @ exact.fisher_matrix(family, start.old) @ flat))
    new = exact.solve(start.mdp, family.policy(start.theta + length * direction))
    moved, kl = exact.visitation_tv(start.old, new), start.old.kl(new.policy)
    return {f"visits_moved_{name}": moved, f"kl_{name}": kl}


def parameters_mislead() -> Finding:
    """Large steps may do nothing, tiny ones flip the policy."""
    low, high = (exact.TabularSoftmax().policy(np.array([[logit, 0.0]])) for logit in (20.0, 60.0))
    steep = exact.LinearSoftmax(np.array([[[0.0], [1000.0]]]))
    before, after = (steep.policy(np.array([x])) for x in (-0.003, 0.003))
    return finding(
        small_kl=exact.kl_per_state(low, high)[0],
        large_kl=exact.kl_per_state(before, after)[0],
        p_before=before[0, 1],
        p_after=after[0, 1],
    )


def cg_and_line_search() -> Finding:
    """Solved via conjugate gradient and a line search."""
    start = exact.starting_point(exact.find_mdp("FrozenLake-v1", {}))
    best = start.old.promised_gain(exact.updated(start, "trpo").policy)
    numbers = {}
    for products in (1, 3, 10):
        theta = training_update(replace(UNDAMPED, cg_iters=products))(start, exact.StepSizes())
        new = start.family.policy(theta)
        numbers[f"kept_{products}"] = start.old.promised_gain(new) / best
    searched = [_searched(each) for each in corridor_family()]
    full_kls, tries = np.transpose(searched)
    return finding(
        **numbers,
        corridors=len(searched),
        beyond=np.mean(full_kls > RADIUS),
        farthest=full_kls.max() / RADIUS,
        most_tries=tries.max(),
    )


def _searched(start: exact.StartingPoint) -> tuple[float, int]:
    """The natural step, shortened by 0.8 until KL is within the radius and L has risen.

    Mean KL of the full step, and the number of tries.
    """
    old = start.old
    full = exact_npg(start, exact.StepSizes(max_kl=RADIUS)) - start.theta

    def after(tries: int) -> exact.Policy:
        return start.family.policy(start.theta + 0.8 ** (tries - 1) * full)

    tries = 1
    while old.kl(after(tries)) > RADIUS or old.promised_gain(after(tries)) <= 0:
        tries += 1
    return old.kl(after(1)), tries


def passes(cost: Mapping[str, float], *, share: float, products: int) -> float:
    """Forward passes of one TRPO update with so many products, each on this share of the states."""
    # A gradient, a rescaling to the radius, and two trials of the line search.
    fixed = cost["gradient"] + cost["rescale"] + 2
    return fixed + share * (cost["linearise"] + products * cost["product"])


def price() -> Finding:
    """Fisher-vector products are the bottleneck."""
    cost, usual = update_costs(), TRPO()
    return finding(
        **cost,
        ppo=PPO().num_epochs * cost["gradient"],
        trpo_textbook=passes(cost, share=1.0, products=10),
        share=usual.fisher_fraction,
        products=usual.cg_iters,
        trpo=passes(cost, share=usual.fisher_fraction, products=usual.cg_iters),
        trpo_15=passes(cost, share=usual.fisher_fraction, products=15),
        critic=10 * cost["critic_gradient"],
    )


def exact_optimisation() -> Finding:
    """The guarantee does not need exact optimisation."""
    certain, kept = certified_steps(_random_steps())
    return finding(certain=certain, kept=kept)


def _random_steps() -> Iterator[Pair]:
    """Twenty steps of random direction and length on each of 100 random MDPs."""
    rng, family = np.random.default_rng(0), exact.TabularSoftmax()
    for old, _ in random_pairs(100, gamma=0.5, seed=9):
        logits = exact.logits_of(old.policy)
        for _ in range(20):
            noise = rng.normal(size=logits.shape)
            size = 10.0 ** rng.uniform(-6, -2)
            yield old, exact.solve(old.mdp, family.policy(logits + size * noise))


CLAIMS = (
    objective_drops_factors,
    step_is_natural,
    fisher_is_a_metric,
    fisher_measures,
    parameters_mislead,
    cg_and_line_search,
    price,
    exact_optimisation,
)
