"""Finite MDPs, their validation, and the families that test the essay."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from surefoot.errors import ConfigError

ROW_TOLERANCE = 1e-8
"""Largest deviation of a row of probabilities from a sum of 1."""


class MDP(NamedTuple):
    """A finite MDP with exact tables, in float64. Make one with `make_mdp`, which checks it.

    Attributes:
        transitions: P(s' | s, a). A terminal state's row leads back to itself.
        rewards: expected reward of (s, a), in the environment's units; 0 in terminal states.
        gamma: discount per step, in [0, 1).
        start: distribution of the first state.
        terminal: states that end an episode.
        max_steps: the environment's time limit, or None. Exact quantities ignore it: a time limit
            cuts an episode, it does not end the MDP.
        name: its name in tables and pictures.
    """

    transitions: Float[np.ndarray, "state action state"]
    rewards: Float[np.ndarray, "state action"]
    gamma: float
    start: Float[np.ndarray, " state"]
    terminal: Bool[np.ndarray, " state"]
    max_steps: int | None = None
    name: str = "mdp"

    @property
    def num_states(self) -> int:
        """Number of states, terminal ones included."""
        return self.transitions.shape[0]

    @property
    def num_actions(self) -> int:
        """Number of actions, the same in every state."""
        return self.transitions.shape[1]

    @property
    def horizon(self) -> float:
        """1 / (1 - gamma), the total weight of all steps."""
        return 1.0 / (1.0 - self.gamma)


def make_mdp(
    transitions: np.ndarray,
    rewards: np.ndarray,
    *,
    gamma: float,
    start: np.ndarray | None = None,
    terminal: np.ndarray | None = None,
    max_steps: int | None = None,
    name: str = "mdp",
) -> MDP:
    """Validate tables and make an MDP; rows of terminal states become self-loops without reward.

    Arguments are those of `MDP`. `rewards` may also be of shape [state, action, state], and are
    then averaged. By default episodes start in state 0 and no state is terminal.

    Raises:
        ConfigError: an invalid table; names the first bad row, its sum, and the remedy.
    """
    # Copies: rows of terminal states are overwritten below.
    P, r = np.array(transitions, np.float64), np.array(rewards, np.float64)
    if P.ndim != 3 or P.shape[0] != P.shape[2] or 0 in P.shape:
        raise _wrong(name, f"transitions have shape {P.shape}", "give [state, action, state]")
    num_states, num_actions, _ = P.shape
    ends = np.zeros(num_states, bool) if terminal is None else np.array(terminal, bool)
    _check_shape(name, "terminal has", ends, (num_states,))
    if ends.all():
        raise _wrong(name, "every state is terminal", "leave at least one that is not")
    # Before rows are checked: whatever a table says of terminal states is replaced.
    P[ends], P[ends, :, ends] = 0.0, 1.0
    _check_rows(name, "transitions", P, "scale each row P(. | state, action) to sum to 1")
    if r.shape == P.shape:
        r = np.sum(P * r, axis=2)
    _check_shape(name, "rewards have", r, (num_states, num_actions))
    r[ends] = 0.0
    if not np.isfinite(r).all():
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(r))[0])
        raise _wrong(name, f"rewards{list(where)} is {r[where]}", "give a finite number")
    if not 0.0 <= gamma < 1.0:
        raise _wrong(name, f"gamma is {gamma}", "give a discount in [0, 1), such as 0.99")
    mu = np.eye(num_states)[0] if start is None else np.array(start, np.float64)
    _check_shape(name, "start has", mu, (num_states,))
    _check_rows(name, "start", mu, "scale it to sum to 1")
    return MDP(P, r, float(gamma), mu, ends, max_steps, name)


def check_policy(mdp: MDP, policy: Float[np.ndarray, "..."]) -> None:
    """Validate a policy of an MDP.

    Raises:
        ConfigError: a wrong shape, or a row that is not a distribution.
    """
    _check_shape(mdp.name, "the policy has", policy, (mdp.num_states, mdp.num_actions))
    _check_rows(mdp.name, "policy", policy, "scale each row pi(. | state) to sum to 1")


def _check_shape(name: str, what: str, array: np.ndarray, wanted: tuple[int, ...]) -> None:
    if array.shape != wanted:
        raise _wrong(name, f"{what} shape {array.shape}", f"give {wanted}")


def _check_rows(name: str, what: str, rows: Float[np.ndarray, "..."], remedy: str) -> None:
    # Negated, here and below, so that NaN counts as wrong.
    bad = ~(rows >= 0.0)
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        raise _wrong(name, f"{what}{list(where)} is {rows[where]}", "give 0 or more")
    sums = rows.sum(axis=-1)
    off = ~(np.abs(sums - 1.0) <= ROW_TOLERANCE)
    if off.any():
        where = tuple(int(i) for i in np.argwhere(off)[0])
        row = f"{what}{list(where)}" if where else what
        raise _wrong(name, f"{row} sums to {float(sums[where]):.10g}", remedy)


def _wrong(name: str, what: str, remedy: str) -> ConfigError:
    return ConfigError(f"{name}: {what}; {remedy}", name="MDP")


def ridge(*, B: float = 2.0, gamma: float = 0.95) -> MDP:
    """Two states: a slope that pays until it is climbed too often.

    In state 0 action 0 (left) stays and action 1 (right) goes to state 1, the crest. There left
    pays 1 and right costs `B`; both go back. Meant for policies with one P(right) for all states.
    """
    _check_cost("ridge", B)
    P = np.zeros((2, 2, 2))
    P[0, 0, 0] = P[0, 1, 1] = P[1, :, 0] = 1.0
    return make_mdp(P, np.array([[0.0, 0.0], [1.0, -B]]), gamma=gamma, name="ridge")


def corridor(*, m: int = 4, B: float = 200.0, gamma: float = 0.95, stay: bool = False) -> MDP:
    """A walk along `m` states to an edge that is rarely visited from the start.

    Action 1 (right) pays 1 and goes on; in the last state it costs `B` and starts again. Action 0
    (left) pays nothing and starts again, or stays where it is with `stay`. Meant for policies with
    one P(right) for all states: going right pays early and costs late.
    """
    if m < 2:
        raise _wrong("corridor", f"m is {m}", "a corridor needs at least 2 states")
    _check_cost("corridor", B)
    P, r = np.zeros((m, 2, m)), np.zeros((m, 2))
    for state in range(m):
        P[state, 0, state if stay else 0] = 1.0
        last = state == m - 1
        P[state, 1, 0 if last else state + 1] = 1.0
        r[state, 1] = -B if last else 1.0
    return make_mdp(P, r, gamma=gamma, name="corridor")


def _check_cost(name: str, B: float) -> None:
    # Not `B < 0`: NaN must be refused too.
    if not B >= 0:
        raise _wrong(name, f"B is {B}", "give a cost of at least 0")


def random_mdp(
    seed: int,
    *,
    num_states: int = 6,
    num_actions: int = 3,
    gamma: float = 0.9,
    concentration: float = 1.0,
    reward_density: float = 1.0,
) -> MDP:
    """A random MDP with Dirichlet rows and normal rewards; benign, as random MDPs are.

    `concentration` 0 gives deterministic transitions, small numbers give few likely successors.
    `reward_density` is the share of (s, a) that pay; 0 gives an MDP without rewards.
    """
    for what, value, maximum in (
        ("concentration", concentration, np.inf),
        ("reward_density", reward_density, 1.0),
    ):
        if not 0 <= value <= maximum:
            raise _wrong(f"random:{seed}", f"{what} is {value}", f"give 0 to {maximum:g}")
    if min(num_states, num_actions) < 1:
        raise _wrong(f"random:{seed}", "it has no state or no action", "give at least 1 of each")
    rng = np.random.default_rng(seed)
    shape = (num_states, num_actions)
    if concentration == 0:
        P = np.eye(num_states)[rng.integers(num_states, size=shape)]
    else:
        P = rng.dirichlet(np.full(num_states, concentration), size=shape)
        P /= P.sum(axis=-1, keepdims=True)
    rewards = rng.normal(size=shape) * (rng.random(shape) < reward_density)
    start = rng.dirichlet(np.ones(num_states))
    start /= start.sum()
    return make_mdp(P, rewards, gamma=gamma, start=start, name=f"random:{seed}")
