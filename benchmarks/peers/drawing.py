"""The duels as a picture: steps a second of both sides, pair by pair."""

import statistics
from pathlib import Path
from typing import Any

NAMES = {"sb3": "Stable-Baselines3", "sb3_contrib": "sb3-contrib", "sbx": "sbx", "rejax": "rejax"}


def label(found: dict[str, Any]) -> str:
    """What was trained on what, against whom."""
    given = found["settings"]
    own = ", own settings" if given["own_defaults"] else ""
    size = f", {given['num_envs']} x {given['num_steps']}" if given["peer"] == "rejax" else ""
    return f"{given['rule'].upper()} on {given['ours']}{size}{own}\nagainst {NAMES[given['peer']]}"


def draw(duels: dict[str, dict[str, Any]], picture: Path) -> None:
    """One row a duel: every pair's ratio, the median, and what was aimed at."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 1 + 0.6 * len(duels)), layout="constrained")
    for row, found in enumerate(duels.values()):
        ratios, middle = found["ratios"], statistics.median(found["ratios"])
        axes.plot(ratios, [row] * len(ratios), "o", color="C0", alpha=0.4)
        axes.plot(middle, row, "|", color="C0", markersize=18, markeredgewidth=2.5)
        mine, other = (statistics.median(found[side]["rates"]) for side in ("ours", "theirs"))
        axes.annotate(
            f"{middle:.1f} x  ({mine / 1e3:,.1f}k against {other / 1e3:,.1f}k steps/s)",
            (max(*ratios, found["settings"]["target"]), row),
            xytext=(10, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
        if found["settings"]["target"]:
            axes.plot(found["settings"]["target"], row, "k^", markersize=5, alpha=0.5)
    axes.axvline(1.0, color="0.6", linewidth=1)
    axes.set_yticks(range(len(duels)), [label(found) for found in duels.values()], fontsize=8)
    axes.set_ylim(len(duels) - 0.5, -0.5)
    axes.set_xlim(0, 1.6 * max(max(found["ratios"]) for found in duels.values()))
    axes.set_xlabel(
        "steps a second over the peer's: pairs (dots), median (bar), aim (triangle)", fontsize=9
    )
    axes.spines[["top", "right"]].set_visible(False)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=150)
