"""Every run there is: of the comparison of settings, of the table, and of the peers."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from benchmarks.mujoco.settings import SETTINGS, Tables
from benchmarks.mujoco.tasks import BY_ENV, NINE, TASKS, TUNING, Task

MILLION = 1_000_000


class Planned(NamedTuple):
    """One run of a study; `setting` is a name in `SETTINGS`, or `default`, or `zoo`: a peer's."""

    study: str
    setting: str
    env: str
    rule: str
    seed: int
    steps: int

    @property
    def name(self) -> str:
        """Its path below the results, without the ending."""
        return f"{self.study}/{self.setting}/{self.env}-{self.rule}-{self.seed}"

    @property
    def tables(self) -> Tables:
        """What it changes of the library's defaults."""
        task = BY_ENV[self.env]
        tables = {} if self.setting == "default" else SETTINGS[self.setting].tables(task)
        return {**tables, "train": {**tables.get("train", {}), "gamma": task.gamma}}


def _runs(
    study: str,
    settings: Sequence[str],
    tasks: Sequence[Task],
    rules: Sequence[str],
    seeds: Sequence[int],
    steps: int = MILLION,
) -> Iterator[Planned]:
    # Seeds outermost: a study that is stopped early has every line with as many seeds.
    for seed in seeds:
        for setting in settings:
            for rule in rules:
                for task in tasks:
                    yield Planned(study, setting, task.env, rule, seed, steps)


def _screen() -> Iterator[Planned]:
    """Every setting on one seed of the four tuning tasks."""
    yield from _runs("screen", list(SETTINGS), TUNING, ["trpo"], [1000])


def _peers() -> Iterator[Planned]:
    """sb3-contrib's TRPO and Stable-Baselines3's PPO with the zoo's settings."""
    # One after the other: with small minibatches, as the zoo's, PPO takes several times as long.
    yield from _runs("peers", ["zoo"], NINE, ["sb3-contrib-trpo"], range(3))
    yield from _runs("peers", ["zoo"], NINE, ["sb3-ppo"], range(3))


def _table() -> Iterator[Planned]:
    """The table: nine tasks, every rule, and two beyond the goal."""
    yield from _runs("table", ["default"], NINE, ["trpo", "ppo"], range(5))
    yield from _runs("table", ["default"], NINE, ["npg", "ppo-kl", "vpg"], range(5))
    yield from _runs("table", ["default"], NINE, ["trpo", "ppo"], range(5, 10))
    beyond = [task for task in TASKS if task.bar is None]
    yield from _runs("table", ["default"], beyond, ["trpo", "ppo"], range(5))


def _long() -> Iterator[Planned]:
    """Humanoid and Ant at three million steps."""
    tasks = [BY_ENV["Humanoid-v5"], BY_ENV["Ant-v5"]]
    yield from _runs("long", ["default"], tasks, ["trpo", "ppo"], range(5), 3 * MILLION)


STUDIES: dict[str, Callable[[], Iterator[Planned]]] = {
    "screen": _screen,
    "peers": _peers,
    "table": _table,
    "long": _long,
}
