"""Candidate warnings: how alarming the newest row of a run is, from its last rows alone.

A score is a number that is greater the worse things look, NaN where it cannot be told; a warning
is a score that reaches a threshold (`thresholds.py` finds it). `window` maps a metric's name to
its last values, `LOOKBACK` at most, newest last, NaN where a row has none. The scores know neither
the environment nor the rule, and nothing of what comes next.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

LOOKBACK = 20
WARMUP = 5
"""Rows at the start of a run in which nothing is flagged: the first updates are large by right."""

Window = Mapping[str, np.ndarray]
Score = Callable[[Window], float]


class Condition(NamedTuple):
    """A candidate: what it says in words, and its score."""

    says: str
    score: Score


def last(window: Window, name: str, count: int = 1) -> np.ndarray:
    """The finite ones of a metric's last `count` values."""
    values = window.get(name, np.zeros(0))[-count:]
    return values[np.isfinite(values)]


def newest(window: Window, name: str) -> float:
    """A metric's newest value; NaN where the newest row has none."""
    values = window.get(name, np.zeros(0))
    return float(values[-1]) if len(values) else np.nan


def mean(window: Window, name: str, count: int, fewest: int = 1) -> float:
    """Mean of a metric's last `count` rows; NaN of fewer than `fewest` values."""
    values = last(window, name, count)
    return float(np.mean(values)) if len(values) >= fewest else np.nan


def least(window: Window, name: str, count: int) -> float:
    """What a metric was at least, in each of the last `count` rows."""
    values = last(window, name, count)
    return float(np.min(values)) if len(values) == count else np.nan


def ratio(above: float, below: float, floor: float = 1e-12) -> float:
    """A quotient of figures that are 0 or more; NaN where the lower one is not above `floor`."""
    return above / below if below > floor else np.nan


def surge(window: Window, name: str) -> float:
    """A metric's newest value over the median of the rows before it."""
    earlier = last({name: window.get(name, np.zeros(0))[:-1]}, name, LOOKBACK)
    return ratio(newest(window, name), float(np.median(earlier))) if len(earlier) >= 5 else np.nan


def excess_kl(window: Window) -> float:
    """KL over the radius or target that the rule was given."""
    return ratio(newest(window, "policy/kl_mean"), newest(window, "update/radius"))


def entropy_fall(window: Window) -> float:
    """Nats of entropy lost over ten updates."""
    old = window.get("policy/entropy_old", np.zeros(0))
    return float(old[-10] - window["policy/entropy"][-1]) if len(old) >= 10 else np.nan


def entropy_jump(window: Window) -> float:
    """Nats by which the newest update changed the entropy, either way."""
    return abs(newest(window, "policy/entropy") - newest(window, "policy/entropy_old"))


def harm(window: Window, count: int = 10) -> float:
    """Share of the last rows whose realised gain is wholly below 0."""
    values = last(window, "lens/realised_high", count)
    return float(np.mean(values < 0)) if len(values) == count else np.nan


def broken_promise(window: Window, count: int) -> float:
    """What the last updates lost, as a share of what they had promised; below 0 if they gained."""
    realised = last(window, "lens/realised_gain", count)
    promised = last(window, "lens/promised_gain", count)
    if len(realised) < count or len(promised) < count:
        return np.nan
    return ratio(-float(np.sum(realised)), float(np.sum(np.abs(promised))))


def sure_harm(window: Window) -> float:
    """How far the newest update's realised gain is below 0, in half-widths of its interval."""
    gain, high = newest(window, "lens/realised_gain"), newest(window, "lens/realised_high")
    return ratio(-gain, high - gain)


def swelling_promise(window: Window) -> float:
    """Promise of the last five updates over that of the fifteen before."""
    values = window.get("surrogate/promised_gain", np.zeros(0))
    if len(values) < LOOKBACK:
        return np.nan
    return ratio(float(np.nanmean(values[-5:])), float(np.nanmean(values[:-5])))


def noise_share(window: Window) -> float:
    """1 less the share of the in-sample promise that survives on the other half of the data."""
    crossfit = last(window, "lens/crossfit_promise", LOOKBACK)
    insample = last(window, "lens/insample_promise", LOOKBACK)
    if len(crossfit) < 2:
        return np.nan
    return 1.0 - ratio(float(np.mean(crossfit)), float(np.mean(insample)))


def crossfit_negative(window: Window) -> float:
    """How far the cross-fit promise lies below 0 with its whole interval, in in-sample promises."""
    return ratio(
        -newest(window, "lens/crossfit_high"), newest(window, "lens/insample_promise"), 1e-9
    )


def critic_fall(window: Window) -> float:
    """What explained variance lost against its median over the rows before."""
    earlier = window.get("critic/explained_variance", np.zeros(0))[:-1]
    if len(earlier) < 5:
        return np.nan
    return float(np.median(earlier)) - newest(window, "critic/explained_variance")


def refused(window: Window) -> float:
    """Share of the last ten steps that the line search refused."""
    return 1.0 - mean(window, "update/accepted", 10, fewest=10)


def failing_returns(window: Window) -> float:
    """What the mean return of three rows fell below the best such mean, over the window's range.

    Not a lens but the yardstick: what anyone who plots returns would see.
    """
    values = last(window, "episode/return_mean", LOOKBACK)
    if len(values) < 6:
        return np.nan
    means = np.convolve(values, np.ones(3) / 3, mode="valid")
    return ratio(float(np.max(means) - means[-1]), float(np.max(values) - np.min(values)))


def _newest(name: str, sign: float = 1.0) -> Score:
    return lambda window: sign * newest(window, name)


def _sustained(name: str, count: int) -> Score:
    return lambda window: least(window, name, count)


CONDITIONS: dict[str, Condition] = {
    "kl-large": Condition("mean KL of the update", _newest("policy/kl_mean")),
    "kl-twice": Condition("mean KL of two updates running", _sustained("policy/kl_mean", 2)),
    "kl-surge": Condition(
        "mean KL over its median of the rows before", lambda w: surge(w, "policy/kl_mean")
    ),
    "kl-excess": Condition("mean KL over the rule's radius", excess_kl),
    "kl-tail": Condition(
        "KL of the worst 1 % over the mean",
        lambda w: ratio(newest(w, "policy/kl_p99"), newest(w, "policy/kl_mean")),
    ),
    "kl-p99": Condition("KL that 99 % of states stay below", _newest("policy/kl_p99")),
    "kl-worst-state": Condition("KL of the worst state", _newest("policy/kl_worst_state")),
    "kl-worst-share": Condition("share of KL in the worst 1 %", _newest("policy/kl_worst_share")),
    "kl-sides": Condition(
        "KL(old || new) over KL(new || old)",
        lambda w: ratio(newest(w, "policy/kl_mean"), newest(w, "policy/kl_reverse_mean"), 1e-6),
    ),
    "kl-off-median": Condition(
        "mean KL over the median state's",
        lambda w: ratio(newest(w, "policy/kl_mean"), newest(w, "policy/kl_median"), 1e-9),
    ),
    "tv": Condition("mean total variation", _newest("policy/tv_mean")),
    "ratio-max": Condition("greatest probability ratio", _newest("policy/ratio_max")),
    "few-rows": Condition(
        "1 less the effective sample size", lambda w: 1.0 - newest(w, "policy/ess_fraction")
    ),
    "clip": Condition("rows outside 1 ± 0.2", _newest("policy/clip_fraction")),
    "unprotected": Condition(
        "rows that the clip leaves unprotected", _newest("policy/unprotected_fraction")
    ),
    "unprotected-twice": Condition(
        "the same, of two updates running", _sustained("policy/unprotected_fraction", 2)
    ),
    "good-actions-lost": Condition(
        "log ratio that 10 % of good actions fall below, negated",
        _newest("policy/log_ratio_good_p10", -1.0),
    ),
    "bad-actions-gain": Condition(
        "log ratio that 10 % of bad actions rise above", _newest("policy/log_ratio_bad_p90")
    ),
    "critic": Condition(
        "explained variance of five rows, negated",
        lambda w: -mean(w, "critic/explained_variance", 5, fewest=5),
    ),
    "critic-fresh": Condition(
        "explained variance of fresh returns, five rows, negated",
        lambda w: -mean(w, "lens/explained_variance", 5, fewest=5),
    ),
    "critic-fall": Condition("fall of explained variance", critic_fall),
    "entropy-fall": Condition("entropy lost in ten updates", entropy_fall),
    "entropy-jump": Condition("change of entropy in one update", entropy_jump),
    "harm": Condition("share of ten updates that surely did harm", harm),
    "sure-harm": Condition("realised loss in half-widths of its interval", sure_harm),
    "broken-promise-5": Condition(
        "lost over promised, five updates", lambda w: broken_promise(w, 5)
    ),
    "broken-promise-10": Condition(
        "lost over promised, ten updates", lambda w: broken_promise(w, 10)
    ),
    "filtered-ratio": Condition(
        "upper end of the filtered ratio, negated", _newest("lens/filtered_high", -1.0)
    ),
    "swelling-promise": Condition("promise over that of the rows before", swelling_promise),
    "noise": Condition("share of the promise that is noise", noise_share),
    "signal-share": Condition(
        "smoothed share of signal, negated", _newest("lens/signal_share", -1)
    ),
    "crossfit-negative": Condition(
        "upper end of the cross-fit promise over the in-sample one, negated", crossfit_negative
    ),
    "cosine": Condition(
        "expected cosine of two gradients, negated", _newest("lens/expected_cosine", -1.0)
    ),
    "visitation": Condition(
        "shift of the states visited, less its null",
        lambda w: newest(w, "lens/visitation_shift") - newest(w, "lens/visitation_null"),
    ),
    "refused": Condition("steps refused of the last ten", refused),
    "gradient-surge": Condition(
        "gradient norm over its median before", lambda w: surge(w, "update/gradient_norm")
    ),
    "obs-drift": Condition("KL that normalisation alone causes", _newest("normalize/kl")),
    "returns": Condition("fall of the return itself (no lens)", failing_returns),
}


def scores_of(metrics: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every candidate's score at every row of one run; NaN during the warm-up.

    Args:
        metrics: one value an iteration, by metric name.
    """
    length = len(metrics["policy/kl_mean"])
    scores = {name: np.full(length, np.nan) for name in CONDITIONS}
    for t in range(WARMUP, length):
        window = {
            name: values[max(0, t + 1 - LOOKBACK) : t + 1] for name, values in metrics.items()
        }
        for name, condition in CONDITIONS.items():
            scores[name][t] = condition.score(window)
    return scores
