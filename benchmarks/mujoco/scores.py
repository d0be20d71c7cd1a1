"""Read the records of a study, and compare settings by them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.mujoco.tasks import BY_ENV, TUNING

MOST = 1.2
"""A share of the bar counts up to this: no task can make up for another."""


class Standing(NamedTuple):
    """How a setting does on the tuning tasks.

    Attributes:
        setting: its name.
        seeds: how many runs there are of the task that has fewest.
        shares: mean of min(final / bar, 1.2) over seeds, by task.
        kept: mean of final over best evaluation, over all runs whose best is above 0.
    """

    setting: str
    seeds: int
    shares: dict[str, float]
    kept: float

    @property
    def score(self) -> float:
        """Mean over tasks, by which settings are ranked."""
        return float(np.mean(list(self.shares.values())))

    @property
    def worst(self) -> float:
        """The worst task's, which decides between equals."""
        return min(self.shares.values())


def read(results: Path, study: str) -> list[dict[str, Any]]:
    """Every record of a study, in the order of its files."""
    return [json.loads(path.read_text()) for path in sorted((results / study).rglob("*.json"))]


def share(record: Mapping[str, Any]) -> float:
    """min(final / bar, 1.2) of one run."""
    bar = BY_ENV[record["env"]].bar
    assert bar is not None
    return min(record["final"]["mean"] / bar, MOST)


def best(record: Mapping[str, Any]) -> float:
    """The highest evaluation of a run, its final one included."""
    return max([mean for _, mean, _ in record["evaluations"]] + [record["final"]["mean"]])


def standings(records: Sequence[Mapping[str, Any]]) -> list[Standing]:
    """Settings with a run on every tuning task, best first."""
    found = []
    for setting in dict.fromkeys(record["setting"] for record in records):
        by_task = {
            task.env: [r for r in records if r["setting"] == setting and r["env"] == task.env]
            for task in TUNING
        }
        if not all(by_task.values()):
            continue
        shares = {env: float(np.mean([share(r) for r in of])) for env, of in by_task.items()}
        ratios = [
            r["final"]["mean"] / best(r) for of in by_task.values() for r in of if best(r) > 0
        ]
        found.append(
            Standing(setting, min(map(len, by_task.values())), shares, float(np.mean(ratios)))
        )
    return sorted(found, key=lambda s: (round(s.score, 3), s.worst), reverse=True)


def as_table(found: Sequence[Standing]) -> str:
    """Standings in Markdown."""
    names = [task.env.removesuffix("-v5") for task in TUNING]
    lines = [
        f"| setting | seeds | score | {' | '.join(names)} | final / best |",
        "|" + "---|" * (len(names) + 4),
    ]
    for each in found:
        shares = " | ".join(f"{value:.2f}" for value in each.shares.values())
        lines.append(
            f"| {each.setting} | {each.seeds} | **{each.score:.3f}** | {shares} | {each.kept:.2f} |"
        )
    return "\n".join(lines)
