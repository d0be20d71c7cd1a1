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


def eta(p):
    return GAMMA * p * (1 - (1 + B) * p) / ((1 - GAMMA) * (1 + GAMMA * p))


def surrogate(p):
    h = 1e-6
    return eta(OLD) + (eta(OLD + h) - eta(OLD - h)) / (2 * h) * (p - OLD)


def kl(p):
    return OLD * np.log(OLD / p) + (1 - OLD) * np.log((1 - OLD) / (1 - p))


def main():
    p = np.linspace(0.02, 0.32, 601)
    inside = p[kl(p) <= RADIUS]
    edge, far = inside.max(), 0.29
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.axvspan(inside.min(), edge, color="#0072B2", alpha=0.12, lw=0)
    axes.plot(p, surrogate(p), color="#D55E00", lw=2.5)
    axes.plot(p, eta(p), color="#111111", lw=2.5)
    axes.plot(OLD, eta(OLD), "o", color="#111111", ms=8)
    axes.annotate("old policy", (OLD, eta(OLD)), (0.07, 0.72), arrowprops={"arrowstyle": "-"})
    axes.text(
        (inside.min() + edge) / 2, 2.62, "trust region: KL ≤ 0.01", ha="center", va="top",
        color="#0072B2",
    )  # fmt: skip
    axes.plot([edge, edge], [eta(edge), surrogate(edge)], color="#0072B2", lw=1.5)
    axes.annotate(
        f"inside: promised {surrogate(edge):.2f}, got {eta(edge):.2f}",
        (edge, (eta(edge) + surrogate(edge)) / 2), (0.105, 0.32), color="#0072B2",
        arrowprops={"arrowstyle": "-", "color": "#0072B2"},
    )  # fmt: skip
    axes.plot([far, far], [eta(far), surrogate(far)], color="#D55E00", lw=1.5, ls=":")
    axes.annotate(
        f"far: promised {surrogate(far):.2f},\ngot {eta(far):.2f}",
        (far, 1.3), (0.225, 0.25), color="#D55E00",
        arrowprops={"arrowstyle": "-", "color": "#D55E00"},
    )  # fmt: skip
    axes.set(
        xlabel="probability of going right", ylabel="discounted return", xlim=(0.02, 0.32),
        ylim=(0, 2.7),
    )  # fmt: skip
    axes.text(0.19, 1.83, "what the surrogate promises, L", color="#D55E00", rotation=20)
    axes.text(0.152, 1.44, "what the policy gets, η", color="#111111")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=130)


if __name__ == "__main__":
    main()
