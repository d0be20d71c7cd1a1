"""The result of a probe: for people as sentences and a picture, for programs as JSON."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from surefoot.formulas.edge_of_trust import Edge
from surefoot.formulas.intervals import Interval


class Point(NamedTuple):
    """One policy of a probe, at a fraction of the update or of a random direction.

    `kl` is mean KL(old || new) in nats. Gains are of discounted return over the old policy:
    promised on `fresh` episodes by the run's lambda, the same `clipped` as by PPO, promised on the
    training batch (`in_sample`), `realised` by so many `pairs` of episodes, and at least by each
    of the `certificates`, which are estimated from the rows.
    """

    fraction: float
    kl: Interval
    fresh: Interval
    clipped: Interval
    in_sample: Interval | None
    realised: Interval | None
    pairs: int
    certificates: dict[str, float]


class RequiredBudget(NamedTuple):
    """Pairs of episodes, and environment steps, at which a ratio becomes measurable."""

    pairs: int
    steps: int


@dataclass(frozen=True)
class Probe:
    """One policy update, measured on fresh episodes; gains are of discounted return.

    Attributes:
        source: where the two policies and the batch of `iteration` come from, in a sentence.
        paired: whether both policies had common random numbers.
        limit: step at which episodes are cut; the frozen critic stands for the rest.
        in_sample: gain promised on the update's own batch; if `recorded`, as in the run's log,
            scaled to the discounted length of an episode.
        fresh: gain promised on fresh episodes of the old policy, by the same formula.
        monte_carlo: the same with lambda = 1, unbiased under any critic.
        realised: gain of the new policy's episodes over the old one's.
        noise: in_sample - fresh, the estimation error.
        critic: fresh - monte_carlo, the bias of the critic and of lambda.
        visitation: monte_carlo - realised, the effect of moved state visits.
        ratio: realised over fresh; None if not measurable, which takes a budget as `needed`.
        ratio_monte_carlo: realised over monte_carlo, likewise.
        trust: the edge of trust; None without a sweep.
        update: points along the update.
        random: points along a random direction of equal mean KL.
        exact_kl: whether divergences are exact in each state.
        sentences: the findings, for `verdict`.
    """

    title: str
    iteration: int | None
    source: str
    paired: bool
    gamma: float
    gae_lambda: float
    clip_eps: float
    limit: int
    budget: int
    steps: int
    pairs: int
    in_sample: Interval | None
    recorded: bool
    fresh: Interval
    monte_carlo: Interval
    realised: Interval
    noise: Interval | None
    critic: Interval
    visitation: Interval
    ratio: Interval | None
    ratio_monte_carlo: Interval | None
    needed: RequiredBudget | None
    trust: Edge | None
    update: tuple[Point, ...]
    random: tuple[Point, ...]
    old_return: Interval
    exact_kl: bool
    sentences: tuple[str, ...] = ()

    def verdict(self) -> list[str]:
        """The findings in a few sentences."""
        return list(self.sentences)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; an interval is `{mean, low, high}`."""
        fields = {name: value for name, value in vars(self).items() if name != "sentences"}
        return _plain(fields | {"verdict": self.verdict()})

    def plot(self, path: str | Path) -> None:
        """Draw the waterfall and the sweep as PNG.

        Raises:
            StorageError: if the file cannot be written.
        """
        from surefoot.analysis.plots.probe import plot_probe

        plot_probe(self.to_dict(), Path(path))


def _plain(value: Any) -> Any:
    """Named tuples and NumPy's numbers as JSON has them; what is not finite is null."""
    if isinstance(value, Interval | Edge | RequiredBudget | Point):
        value = value._asdict()
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value
