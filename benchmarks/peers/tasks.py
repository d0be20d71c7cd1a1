"""What is timed: a task, who trains it, and settings that both sides are given alike."""

from typing import NamedTuple


class Duel(NamedTuple):
    """One line of the table.

    Attributes:
        name: of the line.
        peer: the library, as `HOME_OF` in `duel` knows it.
        env: the environment's id, without a prefix.
        ours: the id that surefoot is given.
        rule: ppo or trpo.
        num_envs: side by side.
        num_steps: of each between two updates.
        num_epochs: passes over a batch: of PPO's descent, or of TRPO's critic.
        minibatch: rows of one step of the descent.
        rounds: iterations of surefoot in one timed round; the peer gets `peer_rounds`.
        peer_rounds: iterations of the peer in one timed round.
        target: least ratio of steps a second that was aimed at; 0: none.
        own_defaults: surefoot keeps its own settings instead of the peer's.
    """

    name: str
    peer: str
    env: str
    ours: str
    rule: str
    num_envs: int
    num_steps: int
    num_epochs: int
    minibatch: int
    rounds: int
    peer_rounds: int
    target: float
    own_defaults: bool = False


def _cheetah(name: str, peer: str, rule: str, target: float, **other) -> Duel:
    epochs, minibatch = (10, 64) if rule == "ppo" else (10, 128)
    given = {"ours": "HalfCheetah-v5", "rounds": 30, "peer_rounds": 10} | other
    return Duel(
        name,
        peer,
        "HalfCheetah-v5",
        rule=rule,
        num_envs=8,
        num_steps=256,
        num_epochs=epochs,
        minibatch=minibatch,
        target=target,
        **given,
    )


_POOL = {"ours": "envpool:HalfCheetah-v5"}

DUELS = (
    _cheetah("ppo-cheetah", "sb3", "ppo", 3.5),
    _cheetah("ppo-cheetah-envpool", "sb3", "ppo", 5.0, **_POOL),
    _cheetah("ppo-cheetah-sbx", "sbx", "ppo", 2.8),
    _cheetah("ppo-cheetah-sbx-envpool", "sbx", "ppo", 4.0, **_POOL),
    _cheetah("trpo-cheetah", "sb3_contrib", "trpo", 1.6, peer_rounds=20),
    _cheetah("trpo-cheetah-envpool", "sb3_contrib", "trpo", 2.0, peer_rounds=20, **_POOL),
    _cheetah("trpo-cheetah-own", "sb3_contrib", "trpo", 0.0, peer_rounds=20, own_defaults=True),
    Duel("ppo-cartpole", "sb3", "CartPole-v1", "CartPole-v1", "ppo", 8, 256, 10, 64, 60, 10, 8.0),
    Duel(
        "ppo-gymnax-4", "rejax", "CartPole-v1", "gymnax:CartPole-v1",
        "ppo", 4, 128, 4, 128, 1000, 1000, 1.5,
    ),
    Duel(
        "ppo-gymnax-64", "rejax", "CartPole-v1", "gymnax:CartPole-v1",
        "ppo", 64, 128, 4, 2048, 100, 100, 1.5,
    ),
)  # fmt: skip
