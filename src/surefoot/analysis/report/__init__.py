"""Report a run as one page for people: figures, findings and advice, from its metrics alone.

Only `config.json`, `metrics.jsonl` and the folder `probe/` of the run are read; the environment is
neither opened nor imported. The page loads nothing and needs no script.
"""

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

from surefoot.analysis.plots.grouping import group_size
from surefoot.analysis.plots.report import Extent, RaisedWarning, draw_panels, draw_timeline
from surefoot.analysis.report.appendix import (
    newest_probe,
    probe_section,
    raised_warnings,
    settings_section,
    warnings_section,
)
from surefoot.analysis.report.critic import critic_section
from surefoot.analysis.report.judgement import judge
from surefoot.analysis.report.learning import (
    ReturnSummary,
    describe_end,
    learning_section,
    summarize_returns,
)
from surefoot.analysis.report.promises import lies_section, promise_section
from surefoot.analysis.report.section import Facts, Section
from surefoot.analysis.report.steps import distance_section, guard_section, solver_section
from surefoot.analysis.report.table import table_of
from surefoot.analysis.report.totals import Totals, totals
from surefoot.analysis.text import data_url, picture_tag
from surefoot.errors import CheckpointError
from surefoot.storage.run_directory import RunDirectory

_CLASSES = {"red": "act", "amber": "look", "green": "well", "": ""}
_SPOKEN = {
    "red": "asks for action",
    "amber": "worth a look",
    "green": "healthy",
    "": "nothing to judge",
}


class RunReport(NamedTuple):
    """A page for people, and its content for programs."""

    page: str
    summary: dict[str, Any]


def report(path: Path, *, commands: Sequence[tuple[str, str]] = ()) -> RunReport:
    """Report a run; nothing is written.

    Args:
        path: the run directory.
        commands: next steps with the run: a purpose and a command line each.

    Raises:
        CheckpointError: where there is no run, or no row of metrics yet.
        ConfigError: where its settings are invalid.
    """
    directory = RunDirectory(path)
    history, table = directory.history, table_of(directory.rows())
    if not len(table.steps):
        raise CheckpointError(
            f"{path} has no row of metrics yet, as no update is done; try again after the first "
            "one",
            name="NO-ROWS",
        )
    facts, settings = Facts(path, history, directory.config, table), history.now
    raised = raised_warnings(table)
    found = summarize_returns(facts)
    sums = totals(table, settings.train.num_envs)
    sections = _sections(facts, found, sums, raised, commands)
    verdict = [_what_was_trained(facts), _how_it_ended(found), _where_to_look(sections)]
    verdict[1:1] = [f"Settings changed: {change.text}." for change in history.changes()]
    summary = {
        "env": settings.env,
        "rule": settings.rule.name,
        "seed": settings.train.seed,
        "env_steps": int(facts.last_step),
        "iterations": int(table.iterations[-1]),
        "planned_iterations": settings.num_iterations,
        "settings_changes": [change._asdict() for change in history.changes()],
        "finished": facts.finished,
        "warnings": dict(Counter(itertools.chain(*table.warnings))),
        "score": found._asdict() if found else None,
        "gains": sums.to_dict() if sums else None,
        "verdict": verdict,
        "sections": {
            each.name: {"level": each.level, "finding": each.finding} for each in sections
        },
    }
    return RunReport(_page(facts, verdict, sections, raised), summary)


def _sections(
    facts: Facts,
    found: ReturnSummary | None,
    sums: Totals | None,
    raised: list[RaisedWarning],
    commands: Sequence[tuple[str, str]],
) -> list[Section]:
    """All sections in the order of the page; those that share a verdict read it from one place."""
    judgement = judge(facts, found, sums)
    of_updates = [
        promise_section(facts, sums, judgement),
        lies_section(facts, judgement),
        distance_section(facts),
        solver_section(facts),
        critic_section(facts, judgement),
    ]
    alarms = warnings_section(raised)
    if judgement.settled:
        of_updates = [each.at_rest() for each in of_updates]
        alarms = alarms.at_rest()
    return [
        learning_section(facts, found),
        *of_updates,
        alarms,
        probe_section(newest_probe(facts.path)),
        *guard_section(facts),
        settings_section(facts, commands),
    ]


def _what_was_trained(facts: Facts) -> str:
    """Rule, environment and amount, in a sentence."""
    settings, done = facts.settings, int(facts.table.iterations[-1])
    count, planned = settings.train.num_envs, settings.num_iterations
    text = (
        f"{settings.rule.name} trained on {settings.env} for {facts.last_step:,.0f} steps in "
        f"{count} environment{'s' if count > 1 else ''} (seed {settings.train.seed})"
    )
    if facts.finished:
        return f"{text}, all of its {done:,} updates."
    return f"{text}: {done:,} of {planned:,} updates; it is still running, or was stopped."


def _how_it_ended(found: ReturnSummary | None) -> str:
    if found is None:
        return "No episode has ended, so there is no return."
    text = describe_end(found)
    # `capitalize` would also change all other letters.
    return f"{text[0].upper()}{text[1:]}."


def _where_to_look(sections: Sequence[Section]) -> str:
    """The one thing to look at: the worst section, the first of several."""
    # A warning is calibrated on other runs and names its remedy: it goes first.
    ordered = sorted(sections, key=lambda each: each.name != "warnings")
    openings = {"red": "Look first at", "amber": "No action is needed; worth a look is"}
    for level, words in openings.items():
        for section in ordered:
            if section.level == level:
                advice = section.advice.split(". ")[0].rstrip(".")
                return f"{words} “{section.title}” below: {advice}."
    return "Nothing below asks for attention."


def _page(
    facts: Facts,
    verdict: Sequence[str],
    sections: Sequence[Section],
    raised: Sequence[RaisedWarning],
) -> str:
    """The page as HTML."""
    template = Template((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))
    settings, size = facts.settings, group_size(len(facts.table.steps))
    return template.substitute(
        title=escape(f"{settings.rule.name} on {settings.env}"),
        state="" if facts.finished else '<span class="state">not finished</span>',
        run=escape(str(facts.path)),
        grouped=f"; a point of a curve stands for {size} updates" if size > 1 else "",
        verdict="".join(f"<p>{_text(sentence)}</p>" for sentence in verdict),
        contents="".join(_link(section) for section in sections),
        sections="\n".join(
            _section(section, _picture(section, facts, raised)) for section in sections
        ),
    )


def _link(section: Section) -> str:
    spoken = _SPOKEN[section.level]
    return (
        f'<li><a href="#{section.name}"><span class="dot {_CLASSES[section.level]}" '
        f'title="{spoken}"></span>{escape(section.title)}<span class="aside">: {spoken}</span>'
        "</a></li>"
    )


def _section(section: Section, picture: str) -> str:
    level, finding = _CLASSES[section.level], _text(section.finding)
    caption = f"<p class='finding'>{finding}</p>"
    if picture:
        caption = f"<figure>{picture}<figcaption class='finding'>{finding}</figcaption></figure>"
    advice = f"<p class='advice {level}'>{_text(section.advice)}</p>" if section.advice else ""
    paragraphs = section.meaning.split("\n\n") if section.meaning else ()
    meaning = "".join(f"<p class='meaning'>{_text(part)}</p>" for part in paragraphs)
    heading = f"<h2><span class='dot {level}'></span>{escape(section.title)}</h2>"
    return (
        f"<section id='{section.name}'>{heading}{caption}{advice}{meaning}{section.extra}</section>"
    )


def _text(words: str) -> str:
    """Words as HTML; backquotes mark code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(words))


def _picture(section: Section, facts: Facts, raised: Sequence[RaisedWarning]) -> str:
    """The section's figure, for wide screens and for phones, or nothing."""
    extent = Extent(facts.last_step, facts.changed_at)
    if section.panels:
        # Once, above the figure that is read first; their own section has the timeline.
        marks = raised if section.name == "learning" else ()
        drawn = [
            draw_panels(section.panels, extent, marks, narrow=narrow) for narrow in (False, True)
        ]
    elif section.name == "warnings" and raised:
        drawn = [draw_timeline(raised, extent, narrow=narrow) for narrow in (False, True)]
    else:
        return ""
    wide, narrow = (data_url("svg+xml", svg.encode()) for svg in drawn)
    return picture_tag(wide, narrow, alt=section.finding)
