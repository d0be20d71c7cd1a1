"""What became of a run, as one page for people: figures from its rows, pictures, and advice.

Only `config.json`, `metrics.jsonl` and the folder `probe/` of the run are read; the environment is
neither opened nor imported.
"""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from surefoot.analysis.report.appendix import newest_probe, probe_section, settings_section
from surefoot.analysis.report.critic import critic_section
from surefoot.analysis.report.distance import distance_section, guard_section
from surefoot.analysis.report.figures import Score, score, totals
from surefoot.analysis.report.gains import cumulative, lies_section, promise_section
from surefoot.analysis.report.learning import (
    beside_best,
    ended_at,
    learning_section,
    warnings_section,
)
from surefoot.analysis.report.page import as_page
from surefoot.analysis.report.section import Facts, Section
from surefoot.analysis.report.solver import solver_section
from surefoot.analysis.report.table import table_of
from surefoot.config.presets import read_settings
from surefoot.diagnostics.warnings import ALARMS
from surefoot.errors import CheckpointError
from surefoot.storage.run_directory import RunDirectory


class Report(NamedTuple):
    """A page, and what it says, for programs."""

    page: str
    summary: dict[str, Any]


def report(
    path: Path,
    *,
    commands: Sequence[tuple[str, str]] = (),
    alarms: Mapping[str, Any] = ALARMS,
) -> Report:
    """The report of a run directory; nothing is written.

    Args:
        path: the run directory.
        commands: what else can be done with the run: a purpose and a command line each.
        alarms: the known warnings by name, each with its `level`, `what` and `remedy`.

    Raises:
        CheckpointError: where there is no run, or no row of metrics yet.
        ConfigError: where its settings are not ours.
    """
    directory = RunDirectory(path)
    config = directory.config
    settings = read_settings(config, path / "config.json")
    table = table_of(directory.rows())
    if not len(table.steps):
        raise CheckpointError(
            f"{path} has no row of metrics yet: no update is done; try again once training has "
            "begun",
            name="NO-ROWS",
        )
    facts = Facts(path, settings, config, table, alarms)
    found = score(table, settings.train.eval_episodes)
    sums = totals(table, settings.train.num_envs)
    guard = guard_section(facts)
    sections = [
        learning_section(facts, found),
        promise_section(facts, sums),
        lies_section(facts),
        distance_section(facts),
        solver_section(facts),
        critic_section(facts),
        warnings_section(facts),
        probe_section(newest_probe(path)),
        *([guard] if guard else []),
        settings_section(facts, commands),
    ]
    verdict = (_what_was_trained(facts), _where_it_ended(found), _look_at(sections))
    summary = _about(facts) | {
        "score": found._asdict() if found else None,
        "gains": cumulative(sums) if sums else None,
        "verdict": list(verdict),
        "sections": {
            each.name: {"level": each.level, "finding": each.finding} for each in sections
        },
    }
    return Report(as_page(facts, verdict, sections), summary)


def _about(facts: Facts) -> dict[str, Any]:
    """What the run is and how far it is, for programs."""
    settings, names = facts.settings, itertools.chain(*facts.table.warnings)
    return {
        "env": settings.env,
        "rule": settings.rule.name,
        "seed": settings.train.seed,
        "env_steps": int(facts.last_step),
        "iterations": int(facts.table.iterations[-1]),
        "planned_iterations": settings.num_iterations,
        "finished": facts.finished,
        "warnings": dict(Counter(names)),
    }


def _what_was_trained(facts: Facts) -> str:
    """Rule, environment and amount, in a sentence."""
    settings, done = facts.settings, int(facts.table.iterations[-1])
    made = (
        f"{settings.train.num_envs} environments"
        if settings.train.num_envs > 1
        else "1 environment"
    )
    text = (
        f"{settings.rule.name} trained on {settings.env} for {facts.last_step:,.0f} steps in "
        f"{made} (seed {settings.train.seed})"
    )
    if facts.finished:
        return f"{text}, all of its {done:,} updates."
    planned = settings.num_iterations
    return f"{text}: {done:,} of {planned:,} updates; it is still going on, or was stopped."


def _where_it_ended(found: Score | None) -> str:
    if found is None:
        return "No episode has ended, so nothing can be said of its return."
    text = f"{ended_at(found)}, {beside_best(found)}."
    return text[0].upper() + text[1:]


def _look_at(sections: Sequence[Section]) -> str:
    """The one thing to look at: the worst section, the first of several."""
    # A warning is calibrated on other runs and names its remedy: it goes first.
    ordered = sorted(sections, key=lambda each: each.name != "warnings")
    said = {"red": "Look first at", "amber": "Nothing asks for action; worth a look is"}
    for level, words in said.items():
        for section in ordered:
            if section.level == level:
                advice = section.advice.split(". ")[0].rstrip(".")
                return f"{words} “{section.title}” below: {advice}."
    return "Nothing below asks for attention."
