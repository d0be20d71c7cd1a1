"""The runs of the suite: healthy cells and planted ones, and which part each belongs to.

A cell is eight runs side by side: one environment, one rule, one set of networks, epochs and
batch; the runs differ in seed, and in a healthy cell also in their dials. Faults are planted by
going on, with other settings, from a policy that has learned; there must be something to lose.

The split was fixed before any warning had been looked at: thresholds are fitted on the
environments and faults of `TRAINING`, and scored on environments and faults that are in neither.
"""

import zlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

RUNS, CHUNK, BATCH = 8, 10, 2048
"""Runs of a cell; iterations of a chunk, the unit of its phases; rows of a usual iteration."""
DIALS = {
    "rule": ("learning_rate", "clip_eps", "max_kl", "final_fraction"),
    "critic": ("learning_rate", "final_fraction"),
    "train": ("gae_lambda",),
}
"""Settings that the suite turns, all data of a program: runs that differ in them share it."""

Tables = Mapping[str, Mapping[str, Any]]


class Env(NamedTuple):
    """An environment's levels, and what suits it: returns of a random and of a good policy.

    `chunks` are those it takes to learn; `learning_rate` is ppo's.
    """

    random: float
    good: float
    chunks: int
    learning_rate: float
    tables: Tables = MappingProxyType({})


ENVS = {
    "gymnax:CartPole-v1": Env(21.0, 500.0, 3, 3e-4),
    "gymnax:Catch-bsuite": Env(-0.55, 1.0, 3, 3e-4),
    "gymnax:Pendulum-v1": Env(-1220.0, -200.0, 4, 1e-3, {"train": {"gamma": 0.9}}),
    "gymnax:Acrobot-v1": Env(-500.0, -85.0, 3, 3e-4),
    "gymnax:FrozenLake-misc": Env(0.015, 0.6, 5, 1e-3),
    "gymnax:PointRobot-misc": Env(0.3, 2.5, 4, 1e-3),
}
TRAINING_ENVS = ("gymnax:CartPole-v1", "gymnax:Catch-bsuite", "gymnax:Pendulum-v1")
TRAINING_FAULTS = ("step", "clip", "radius")


class Cell(NamedTuple):
    """Eight runs: through `before` for some chunks, then, if planted, through `after`."""

    name: str
    env: str
    rule: str
    fault: str
    before: Sequence[Tables]
    after: Sequence[Tables]
    chunks: tuple[int, int]
    seeds: tuple[int, ...]
    variant: str = "plain"

    @property
    def programs(self) -> set[str]:
        """A name for each program that the cell needs."""
        first = [self.before[0], *self.after[:1]]
        return {f"{self.variant} {self.env} {self.rule} {_undialled(tables)}" for tables in first}

    @property
    def env_steps(self) -> int:
        """Environment steps of all its runs."""
        phases = zip(self.chunks, (self.before[0], (self.after or self.before)[0]), strict=True)
        return len(self.seeds) * sum(CHUNK * n * _batch(tables) for n, tables in phases)

    @property
    def planted(self) -> int | None:
        """Row of the first update under the fault; None in a healthy cell."""
        return self.chunks[0] * CHUNK if self.after else None

    @property
    def part(self) -> str:
        """fit: environment and fault of the training part; held-out: neither is; else mixed.

        Healthy cells go with their environment.
        """
        known_env = self.env in TRAINING_ENVS
        known_fault = known_env if self.fault == "none" else self.fault in TRAINING_FAULTS
        return {(True, True): "fit", (False, False): "held-out"}.get(
            (known_env, known_fault), "mixed"
        )


def _constant(name: str, value: float) -> dict[str, float]:
    """A dial that keeps its value through the run."""
    return {name: value, "final_fraction": 1.0}


def _undialled(tables: Tables) -> str:
    dials = {name for names in DIALS.values() for name in names}
    return str(
        {
            section: {key: value for key, value in table.items() if key not in dials}
            for section, table in tables.items()
            if section != "env" and not set(table) <= dials
        }
    )


def _batch(tables: Tables) -> int:
    train = tables.get("train", {})
    return train.get("num_envs", 8) * train.get("num_steps", 256)


def _merged(*layers: Tables) -> dict[str, dict[str, Any]]:
    tables: dict[str, dict[str, Any]] = {}
    for layer in layers:
        for section, table in layer.items():
            tables[section] = tables.get(section, {}) | dict(table)
    return tables


def _cell(name: str, env_id: str, rule: str, fault: str, **parts: Any) -> Cell:
    """A cell whose seeds follow from its name, so that no two cells share a run."""
    first = 1000 * (zlib.crc32(f"{env_id} {name}".encode()) % 1_000_000)
    seeds = tuple(range(first, first + RUNS))
    short = env_id.removeprefix("gymnax:").lower()
    return Cell(f"{short}-{name}", env_id, rule, fault, seeds=seeds, **parts)


def _healthy(env_id: str, env: Env, name: str, rule: str, *layers: Any) -> Cell:
    """A cell with nothing planted; of `layers`, a list has one table of dials a run."""
    batch = _batch(_merged(*(layer for layer in layers if not isinstance(layer, list))))
    chunks = max(2, round(env.chunks * BATCH / batch))
    run = {"train": {"steps": env.chunks * CHUNK * BATCH}}
    runs = [
        _merged(
            env.tables, run, *(layer[i] if isinstance(layer, list) else layer for layer in layers)
        )
        for i in range(RUNS)
    ]
    return _cell(name, env_id, rule, "none", before=runs, after=(), chunks=(chunks, 0))


def _rates(base: float, factors: Sequence[float]) -> list[Tables]:
    """Step sizes: the first half falls to 0 over the run, as the presets have it."""
    return [
        {"rule": {"learning_rate": base * f, "final_fraction": 0.0 if i < RUNS // 2 else 1.0}}
        for i, f in enumerate(factors)
    ]


def _radii(radii: Sequence[float]) -> list[Tables]:
    """Radii: the first half falls to a tenth over the run, as the presets have it."""
    return [
        {"rule": {"max_kl": r, "final_fraction": 0.1 if i < RUNS // 2 else 1.0}}
        for i, r in enumerate(radii)
    ]


def healthy_cells(env_id: str) -> list[Cell]:
    """Defaults of every rule, and sensible departures from them."""
    env = ENVS[env_id]
    rate, wide, narrow = env.learning_rate, [0.5, 0.7, 1, 2, 0.5, 0.7, 1, 2], [0.5, 0.7, 1, 1] * 2
    radii = [0.005, 0.01, 0.03, 0.05, 0.005, 0.01, 0.02, 0.03]
    few = {"rule": {"num_epochs": 4, "num_minibatches": 8}}
    small = {"train": {"num_steps": 64}, "rule": {"num_minibatches": 8}}
    return [
        _healthy(env_id, env, "ppo", "ppo"),
        _healthy(env_id, env, "ppo-rates", "ppo", _rates(rate, wide)),
        _healthy(env_id, env, "ppo-few-epochs", "ppo", few, _rates(rate, [1, 2, 3, 4] * 2)),
        _healthy(env_id, env, "ppo-small-batch", "ppo", small, _rates(rate, narrow)),
        _healthy(env_id, env, "ppo-kl", "ppo-kl", _rates(rate, wide)),
        _healthy(env_id, env, "ppo-again", "ppo"),
        _healthy(env_id, env, "trpo", "trpo"),
        _healthy(env_id, env, "trpo-again", "trpo"),
        _healthy(env_id, env, "trpo-radii", "trpo", _radii(radii)),
        _healthy(env_id, env, "npg-radii", "npg", _radii(radii)),
        _healthy(env_id, env, "vpg-rates", "vpg", _rates(5e-3, [0.5, 1, 2, 3] * 2)),
    ]


def _planted(
    env_id: str, fault: str, rule: str, before: Tables, after: Tables, dials: Sequence[Tables]
) -> Cell:
    """A cell that turns to `after`, and to one table of dials a run, once it has learned."""
    env = ENVS[env_id]
    # Schedules are constant here, so the length of the run decides nothing: the healthy cells'
    # shares their programs.
    run = {"train": {"steps": env.chunks * CHUNK * BATCH}}
    start = _merged(env.tables, run, before)
    chunks = (env.chunks, max(3, round(3 * BATCH / _batch(_merged(start, after)) / 4)))
    return _cell(
        f"{fault}-{rule}",
        env_id,
        rule,
        fault,
        before=[start] * RUNS,
        after=[_merged(start, after, dials[i]) for i in range(RUNS)],
        chunks=chunks,
    )


def planted_cells(env_id: str) -> list[Cell]:
    """Faults of several severities, each switched on once something has been learned."""
    rate = ENVS[env_id].learning_rate
    steady, vanilla = ({"rule": _constant("learning_rate", r)} for r in (rate, 5e-3))
    radius = {"rule": _constant("max_kl", 0.01)}
    deep = {"network": {"hidden": (64,) * 5}}
    unclipped = {"rule": {"clip_eps": 100.0}}
    shared = {
        "train": {"return_norm": False},
        "network": {"shared_torso": True},
        "critic": {"joint": True},
    }
    tiny = {
        "train": {"num_steps": 16},
        "rule": {"num_minibatches": 8},
        "critic": {"num_minibatches": 8},
    }

    def rates(base: float, *factors: float) -> list[Tables]:
        pairs = [f for f in factors for _ in range(RUNS // len(factors))]
        return [{"rule": _constant("learning_rate", base * f)} for f in pairs]

    def radii(*values: float) -> list[Tables]:
        pairs = [v for v in values for _ in range(RUNS // len(values))]
        return [{"rule": _constant("max_kl", v)} for v in pairs]

    scales = [{"env": {"reward_scale": s}} for s in (30.0, 100.0, 300.0, 1000.0) for _ in "ab"]
    return [
        _planted(env_id, "step", "ppo", steady, {}, rates(rate, 30, 60, 100, 200)),
        _planted(env_id, "clip", "ppo", steady, unclipped, rates(rate, 5, 10, 20, 40)),
        _planted(env_id, "radius", "trpo", radius, {}, radii(1.0, 3.0, 10.0, 30.0)),
        _planted(
            env_id,
            "epochs",
            "ppo",
            steady,
            {"rule": {"num_epochs": 30}},
            rates(rate, 5, 10, 20, 40),
        ),
        _planted(env_id, "batch", "ppo", steady, tiny, rates(rate, 5, 10, 30, 60)),
        _planted(env_id, "deep", "ppo", _merged(deep, steady), {}, rates(rate, 10, 20, 30, 60)),
        _planted(env_id, "vanilla", "vpg", vanilla, {}, rates(5e-3, 20, 40, 80, 160)),
        _planted(env_id, "natural", "npg", radius, {}, radii(1.0, 3.0, 10.0, 30.0)),
        _planted(env_id, "scale", "ppo", _merged(shared, steady), {}, scales),
        _planted(
            env_id,
            "penalty",
            "ppo-kl",
            steady,
            {"rule": {"target_kl": 1.0}},
            rates(rate, 30, 60, 100, 200),
        ),
    ]


VARIANTS: dict[str, Tables] = {
    "plain": {},
    "guard": {"train": {"guard": True}},
}
"""Settings laid over every cell, to measure a remedy on the same runs."""


def varied(cell: Cell, variant: str) -> Cell:
    """The same cell, seeds included, with a remedy."""
    if variant == "plain":
        return cell
    lay = lambda runs: [_merged(tables, VARIANTS[variant]) for tables in runs]  # noqa: E731
    return cell._replace(variant=variant, before=lay(cell.before), after=lay(cell.after))


def all_cells() -> list[Cell]:
    """The whole suite, without a remedy: no fault of one part on an environment of the other."""
    cells = [cell for env in ENVS for cell in (*healthy_cells(env), *planted_cells(env))]
    return [cell for cell in cells if cell.part != "mixed"]


def quick_cells() -> list[Cell]:
    """Two cells on one environment, to see that everything works."""
    env = "gymnax:Catch-bsuite"
    return [healthy_cells(env)[0], *planted_cells(env)[:1]]
