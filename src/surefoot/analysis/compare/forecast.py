"""How long the cells of a comparison will take, from a short trial of each kind."""

from collections.abc import Sequence
from functools import partial

from surefoot.analysis.compare.cells import Group, Workers, trial
from surefoot.analysis.text import duration
from surefoot.parallel.jobs import Outcome, side_by_side


def forecast(groups: Sequence[Group], total: int, workers: Workers) -> str:
    """The expected duration in words, of `total` cells of which those in `groups` are missing.

    Trials run as many at a time as the cells will, so that they share the machine alike. The part
    of an interrupted cell that is done already is counted again.
    """
    kinds = {_kind(group): group for group in groups}
    outcomes: dict[tuple[str, str, int], Outcome] = {}
    names, jobs = list(kinds), workers.jobs
    side_by_side(
        partial(trial, devices=workers.devices),
        list(kinds.values()),
        jobs=jobs,
        done=lambda position, outcome: outcomes.update({names[position]: outcome}),
    )
    found = [outcomes[_kind(group)] for group in groups]
    known = [outcome.value for outcome in found if outcome.error is None]
    count = sum(map(len, groups))
    text = f"{count} cells"
    if known:
        seconds = max(sum(known) / min(jobs, len(groups)), *known)
        text += f", about {duration(seconds)} with {jobs} job{'s' if jobs > 1 else ''}"
    if len(groups) < count:
        text += "; the seeds of a JAX-native environment are trained as one program"
    if count < total:
        text += f"; {total - count} of {total} are finished already"
    for (env, rule, _), outcome in outcomes.items():
        if outcome.error is not None:
            text += f"\nthe trial of {rule} on {env} failed: {outcome.error}"
    return text


def _kind(group: Group) -> tuple[str, str, int]:
    """Groups of one kind take equally long."""
    return group[0].settings.env, group[0].settings.rule.name, len(group)
