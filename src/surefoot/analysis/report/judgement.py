"""Verdicts on the figures of a run: each is decided here once, and read by every section.

Two sections that each had bounds of their own could judge one thing differently.
"""

import math
from typing import NamedTuple

import numpy as np

from surefoot.analysis.report.learning import ReturnSummary, is_settled
from surefoot.analysis.report.section import Facts, smaller_steps
from surefoot.analysis.report.table import Table
from surefoot.analysis.report.totals import Totals, totals
from surefoot.formulas.intervals import Interval

MUCH_NOISE = 0.2
"""Signal share below which an update's own promise is five times too large."""
HALF_KEPT = 0.5
SHIFTED = 0.2
"""Lower bound on the total variation of visits, above its null, that is worth a look."""
FEWEST_GAINS = 10
"""Measured gains below which the filtered ratio is mostly the guess that it starts from."""
AGREEING = 0.1
"""Expected cosine of two batches' gradients below which they hardly agree."""
FAIR_CRITIC = 0.5
SHARE, RATIO, SHIFT = "lens/signal_share", "lens/filtered_ratio", "lens/visitation_shift"
NULL, COSINE = "lens/visitation_null", "lens/expected_cosine"
BAND = ("lens/filtered_low", "lens/filtered_high")
OWN, FRESH = "critic/explained_variance", "lens/explained_variance"


class Judgement(NamedTuple):
    """The verdicts that sections share.

    `settled`: the return stays near its best, so that updates have little left to gain.
    `equal_returns`: the one return of all newest training episodes, or None. `noisy`: promises are
    mostly noise. `kept`: share of the whole run's signal, or of its promise, that was realised, or
    None. `ratios`: the table with the filtered ratio of rows that rest on enough gains.
    `promises`: advice about promises that are not realised, or "". `late`: sums over the newest
    updates, or None.
    """

    settled: bool
    equal_returns: float | None
    noisy: bool
    kept: Interval | None
    ratios: Table
    promises: str
    late: Totals | None


def judge(facts: Facts, found: ReturnSummary | None, sums: Totals | None) -> Judgement:
    """Decide every verdict that more than one section speaks of."""
    table = facts.table
    share = table.recent(SHARE)
    # The cosine is of one batch, the share of many: it decides only where there is no share.
    noisy = table.recent(COSINE) < AGREEING if math.isnan(share) else share < MUCH_NOISE
    kept = None if sums is None else sums.realised_share()
    ratios = _measured_ratio(table)
    late = totals(table.newest_tenth(), facts.settings.train.num_envs, whole=False)
    # One gain alone is too noisy for a sentence.
    late = None if late is None or len(late.steps) < 2 else late
    # What was realised was no noise, whatever the halves of a batch have in common.
    noisy = bool(noisy) and not _came_true(late or sums)
    promises = _noise_remedy(facts) if noisy else ""
    if sums is not None:
        promises = _about_gains(facts, sums, late, noisy=noisy, ratio=ratios.recent(RATIO))
    equal = _equal_returns(table)
    # A run too short for a trend may be solved as well.
    best = found is not None and found.final >= found.best > found.start
    still = (best and equal is not None) or is_settled(table, found)
    # A warning that is still raised counts, however high the return.
    settled = still and not any(table.newest_tenth().warnings)
    return Judgement(settled, equal, noisy, kept, ratios, promises, late)


def _came_true(sums: Totals | None) -> bool:
    """Whether more of the promise was realised, beyond its interval, than noise leaves of it."""
    return sums is not None and bool(sums.gain().low > MUCH_NOISE * max(sums.promised[-1], 0.0))


def _about_gains(
    facts: Facts, sums: Totals, late: Totals | None, *, noisy: bool, ratio: float
) -> str:
    """Advice about what the updates promised and gained, the gravest verdict alone."""
    kept = sums.realised_share()
    shorter = f"Take smaller steps: {smaller_steps(facts.settings)}."
    moved = "even the signal is not realised, because the new policy visits other states."
    if sums.gain().high < 0:
        return f"The updates did more harm than good. {shorter}"
    if late is not None and late.gain().high < 0:
        return f"The newest updates did harm in sum. {shorter}"
    if noisy:
        return _noise_remedy(facts)
    if kept is None and (sums.promised if sums.signal is None else sums.signal)[-1] < 0:
        return f"Updates promised losses even on their own batches. {shorter}"
    if kept is None:
        return "Nothing was promised. Is the step size 0, or the reward constant?"
    # No interval has NaN for its ends.
    whole = kept.mean < HALF_KEPT and not kept.high >= 1.0
    if sums.signal is None:
        return _EITHER if whole or ratio < HALF_KEPT else ""
    if whole and ratio >= HALF_KEPT:
        return _EARLIER
    if whole or ratio < HALF_KEPT:
        return f"{shorter[:-1]}; {moved}"
    return ""


_EITHER = (
    "A probe (`surefoot probe`) can tell whether noise or visitation shift took more than half of "
    "the promise: against noise use more steps per batch, against shift a smaller step."
)
_EARLIER = (
    "Over the whole run less than half of the signal was realised, in the newest updates more. If "
    "the run goes on, leave the step as it is; begin a new one with smaller steps."
)


def _noise_remedy(facts: Facts) -> str:
    """What helps against noise with this rule and this critic."""
    rule, ways = facts.settings.rule, ["more steps per batch (--num-steps, --num-envs)"]
    if getattr(rule, "damping", None) is not None:
        ways.append("more damping")
    if getattr(rule, "num_epochs", 1) > 1:
        ways.append("fewer epochs")
    if not accuracy_of_critic(facts.table)[0] >= FAIR_CRITIC:
        ways.append("a better critic")
    listed = ways[0] if len(ways) == 1 else f"{', '.join(ways[:-1])} or {ways[-1]}"
    return f"Most of the promise is noise: use {listed}."


def accuracy_of_critic(table: Table) -> tuple[float, str]:
    """The newest explained variance of the critic, and on what; NaN where it is unknown."""
    # Fresh returns judge the critic better, but few runs and rows have them.
    explained = table.recent(FRESH)
    if math.isnan(explained):
        return table.recent(OWN), "its own targets"
    return explained, "fresh returns"


def _measured_ratio(table: Table) -> Table:
    """The table with the filtered ratio of those rows alone that rest on enough gains.

    The ratio starts anew with the first signal share: before it noise was taken for signal.
    """
    known, share = (np.isfinite(table.column(key)) for key in ("lens/realised_low", SHARE))
    if share.any():
        known[: int(np.argmax(share)) + 1] = False
    rests = np.cumsum(known) >= FEWEST_GAINS
    masked = {key: np.where(rests, table.column(key), np.nan) for key in (RATIO, *BAND)}
    return table._replace(columns={**table.columns, **masked})


def _equal_returns(table: Table) -> float | None:
    """The return of all newest training episodes where they are equal."""
    newest = table.newest_tenth()
    low, high = (newest.known(f"episode/return_{end}") for end in ("min", "max"))
    if not len(low) or not len(high) or low.min() != high.max():
        return None
    return float(low.min())
