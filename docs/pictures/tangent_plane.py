"""Draws `tangent_plane.png`: the surrogate, the true return and a trust region on two states.

The ridge: in state 0 the left action stays and the right one goes to state 1; in state 1 the left
action pays 1 and the right one costs B, and both go back. One parameter p is the probability of
going right in both states. Everything is exact:

    eta(p) = gamma p (1 - (1 + B) p) / ((1 - gamma) (1 + gamma p))

and the surrogate at p_old is eta's tangent there, because it is affine in the policy.

Run: python docs/pictures/tangent_plane.py
"""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

GAMMA, B, OLD, RADIUS = 0.95, 2.0, 0.1, 0.01
PROMISE, GOT, INSIDE = "#D55E00", "#111111", "#0072B2"
LEADER = {"arrowstyle": "-", "color": "#888888", "lw": 0.8, "shrinkB": 6}


def eta(p):
    return GAMMA * p * (1 - (1 + B) * p) / ((1 - GAMMA) * (1 + GAMMA * p))


def surrogate(p):
    h = 1e-6
    return eta(OLD) + (eta(OLD + h) - eta(OLD - h)) / (2 * h) * (p - OLD)


def kl(p):
    return OLD * np.log(OLD / p) + (1 - OLD) * np.log((1 - OLD) / (1 - p))


def mark_gap(axes, p, color):
    """From the promised return down to the one got, with a dot at either end."""
    axes.plot([p, p], [eta(p), surrogate(p)], color=color, lw=1.5, ls=":")
    axes.plot(p, surrogate(p), "o", color=PROMISE, ms=6)
    axes.plot(p, eta(p), "o", color=GOT, ms=6)


def main():
    p = np.linspace(0.02, 0.32, 601)
    inside = p[kl(p) <= RADIUS]
    edge, far = inside.max(), 0.29
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.axvspan(inside.min(), edge, color=INSIDE, alpha=0.12, lw=0)
    axes.plot(p, surrogate(p), color=PROMISE, lw=2.5)
    axes.plot(p, eta(p), color=GOT, lw=2.5)
    axes.plot(OLD, eta(OLD), "o", color=GOT, ms=8)
    axes.annotate(
        "old policy", (OLD, eta(OLD)), (0.085, 0.72), arrowprops=LEADER, ha="center"
    )  # fmt: skip
    axes.text(
        (inside.min() + edge) / 2, 2.62, "trust region: KL ≤ 0.01", ha="center", va="top",
        color=INSIDE,
    )  # fmt: skip
    mark_gap(axes, edge, INSIDE)
    axes.annotate(
        f"at the edge of trust:\npromised return {surrogate(edge):.2f},\ngot {eta(edge):.2f}",
        (edge, surrogate(edge)), (0.105, 2.3), color=INSIDE, ha="center", va="top",
        arrowprops=LEADER,
    )  # fmt: skip
    mark_gap(axes, far, PROMISE)
    axes.text(
        far - 0.004, 1.45, f"far away:\npromised return {surrogate(far):.2f},\ngot {eta(far):.2f}",
        color=PROMISE, ha="right", va="center",
    )  # fmt: skip
    axes.set(
        xlabel="probability of going right", ylabel="discounted return", xlim=(0.02, 0.32),
        ylim=(0, 2.7),
    )  # fmt: skip
    axes.text(0.19, 1.81, "what the surrogate promises, L", color=PROMISE, rotation=18)
    axes.text(0.184, 1.06, "what the policy gets, η", color=GOT, ha="center")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=130)


if __name__ == "__main__":
    main()
