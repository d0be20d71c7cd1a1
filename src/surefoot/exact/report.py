"""One exact update, with everything that can be said about it; and many in a row."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from surefoot import exact as t
from surefoot.errors import ConfigError
from surefoot.exact.line import Landmarks, Ray, landmarks
from surefoot.formulas.clipping import adapt_kl_coef

TARGET_KL = 0.01
"""What ppo-kl's weight adapts to over a curve, in nats."""


class Start(NamedTuple):
    """Where an update begins: an MDP, a family of policies, and parameters."""

    mdp: t.MDP
    family: t.Family
    theta: np.ndarray


Update = Callable[[Start, t.Solution, t.Step], np.ndarray]
"""Parameters after one update of a solved policy."""


def exact_update(rule: str) -> Update:
    """The exact form of a rule, by name.

    Raises:
        ConfigError: for an unknown rule, with the ones there are.
    """
    if rule not in t.EXACT:
        raise ConfigError(f"unknown rule {rule}; exact rules are {', '.join(t.EXACT)}")
    return lambda start, old, step: t.EXACT[rule](*start, old, step)


def start_at(
    mdp: t.MDP,
    *,
    p_old: float | None = None,
    policy: Float[np.ndarray, "..."] | None = None,
    table: bool = False,
) -> Start:
    """Where to begin: the uniform policy, a given one, or P(action 1) = `p_old` in every state.

    The ridge and the corridor share one parameter, 0.1 and 0.05 of going right, unless `table`.

    Raises:
        ConfigError: for a probability outside (0, 1), more actions than two, or two starts.
    """
    shared = {"ridge": 0.1, "corridor": 0.05}.get(mdp.name)
    if policy is not None and p_old is not None:
        raise ConfigError("a policy and p_old both say where to start: give one of them")
    if policy is not None:
        t.check_policy(mdp, policy)
        return Start(mdp, t.Tabular(), t.logits_of(policy))
    if p_old is None and shared is None:
        return Start(mdp, t.Tabular(), np.zeros((mdp.num_states, mdp.num_actions)))
    p = shared if p_old is None else p_old
    assert p is not None
    if not 0.0 < p < 1.0:
        raise ConfigError(f"p_old {p}: give a probability in (0, 1)")
    if mdp.num_actions != 2:
        raise ConfigError(
            f"p_old is the probability of the second of two actions; {mdp.name} has "
            f"{mdp.num_actions}"
        )
    logit = np.log(p) - np.log1p(-p)
    if shared is None or table:
        return Start(mdp, t.Tabular(), np.tile([0.0, logit], (mdp.num_states, 1)))
    return Start(mdp, t.one_parameter(mdp), np.array([logit]))


@dataclass(frozen=True)
class Report:
    """One update, promised against realised. Returns are discounted, from the start; KL in nats.

    Attributes:
        eta_old: return of the old policy.
        eta_new: return of the new one.
        surrogate_new: what L said it would be.
        promised_gain: surrogate_new - eta_old.
        realised_gain: eta_new - eta_old.
        ratio: realised over promised; None where nothing was promised.
        clipped_new: PPO's objective at the new policy, in units of return.
        kl_mean: mean KL(old || new) over visited states.
        kl_max: largest KL(old || new) of any state that is not terminal; None if infinite.
        kl_reverse_max: the same of KL(new || old).
        tv_max: largest total variation of a state's actions.
        ratio_max: largest pi_new / pi_old of any action.
        visitation_tv: total variation between the two state distributions.
        bounds: the return that each of B1 to B11 guarantees; None where it guarantees none.
        edge_of_trust_kl: mean KL where half the promise is kept, on the way of this update.
        break_even_kl: mean KL where nothing of it is.
        best_kl: mean KL of the best policy on the way.
        best_eta: its return.
        optimum: the largest return of any policy.
    """

    eta_old: float
    eta_new: float
    surrogate_new: float
    promised_gain: float
    realised_gain: float
    ratio: float | None
    clipped_new: float
    kl_mean: float | None
    kl_max: float | None
    kl_reverse_max: float | None
    tv_max: float
    ratio_max: float
    visitation_tv: float
    bounds: dict[str, float | None]
    edge_of_trust_kl: float | None
    break_even_kl: float | None
    best_kl: float | None
    best_eta: float
    optimum: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def report(start: Start, update: Update, step: t.Step) -> tuple[Report, Ray, Landmarks]:
    """One update of `start`, its report, and the ray along it."""
    mdp, old = start.mdp, t.solve(start.mdp, start.family.policy(start.theta))
    new = t.solve(mdp, start.family.policy(update(start, old, step)))
    ray = Ray(mdp, old, new.policy)
    marks, free = landmarks(ray), ~mdp.terminal
    promised, realised = t.surrogate(old, new.policy) - old.eta, new.eta - old.eta
    # A promise of rounding is none.
    some = abs(promised) > 1e-12 * (1.0 + abs(old.eta))
    taken = free[:, None] & (old.policy > 0)
    ratios = new.policy[taken] / old.policy[taken]
    at = lambda a: None if a is None else ray.kl(a)  # noqa: E731
    found = Report(
        eta_old=old.eta,
        eta_new=new.eta,
        surrogate_new=old.eta + promised,
        promised_gain=promised,
        realised_gain=realised,
        ratio=realised / promised if some else None,
        clipped_new=t.clipped(mdp, old, new.policy, clip_eps=step.clip_eps),
        kl_mean=_finite(ray.kl(1.0)),
        kl_max=_finite(t.row_kl(old.policy, new.policy)[free].max()),
        kl_reverse_max=_finite(t.row_kl(new.policy, old.policy)[free].max()),
        tv_max=float(t.row_tv(old.policy, new.policy)[free].max()),
        ratio_max=float(ratios.max()),
        visitation_tv=t.visitation_tv(mdp, old, new),
        bounds={name: _finite(low) for name, low in t.guaranteed(mdp, old, new).items()},
        edge_of_trust_kl=at(marks.half) if some else None,
        break_even_kl=at(marks.broken) if some else None,
        best_kl=_finite(ray.kl(marks.best)),
        best_eta=old.eta + ray.realised(marks.best),
        optimum=t.solve(mdp, t.best_policy(mdp)).eta,
    )
    return found, ray, marks


def _finite(number: float) -> float | None:
    return float(number) if np.isfinite(number) else None


class Curve(NamedTuple):
    """Exact returns over updates, the start first, and the policy at the end.

    `promised` is the surrogate's gain of each update, `kls` the mean KL(old || new) it went.
    """

    rule: str
    etas: list[float]
    promised: list[float]
    kls: list[float]
    policy: Float[np.ndarray, "state action"]


def curve(start: Start, rule: str, update: Update, step: t.Step, *, iterations: int) -> Curve:
    """Update after update. ppo-kl's weight adapts by the paper's rule."""
    etas, promised, kls = [], [], []
    solution = t.solve(start.mdp, start.family.policy(start.theta))
    weights = t.state_weights(start.mdp, solution)
    for _ in range(iterations):
        theta = update(start, solution, step)
        policy = start.family.policy(theta)
        kl = float(weights[weights > 0] @ t.row_kl(solution.policy, policy)[weights > 0])
        etas.append(solution.eta)
        promised.append(t.surrogate(solution, policy) - solution.eta)
        kls.append(kl)
        if rule == "ppo-kl":
            adapted = adapt_kl_coef(jnp.asarray(step.kl_coef), jnp.asarray(kl), target_kl=TARGET_KL)
            step = replace(step, kl_coef=float(adapted))
        start = start._replace(theta=theta)
        solution = t.solve(start.mdp, policy)
        weights = t.state_weights(start.mdp, solution)
    return Curve(rule, [*etas, solution.eta], promised, kls, solution.policy)
