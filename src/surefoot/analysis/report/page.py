"""A report as one HTML page that loads nothing and needs no script."""

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template

from surefoot.analysis.plots.report import RaisedWarning, draw_panels, draw_timeline
from surefoot.analysis.plots.style import group_size
from surefoot.analysis.report.section import Facts, Section
from surefoot.analysis.text import data_url

_CLASSES = {"red": "act", "amber": "look", "green": "well", "": ""}
_SPOKEN = {
    "red": "asks for action",
    "amber": "worth a look",
    "green": "healthy",
    "": "nothing to judge",
}


def render_page(
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
            _section(section, _picture(section, facts.last_step, raised)) for section in sections
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
        caption = (
            f"<figure><img alt='{escape(section.finding, quote=True)}' src='{picture}'>"
            f"<figcaption class='finding'>{finding}</figcaption></figure>"
        )
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


def _picture(section: Section, last_step: float, raised: Sequence[RaisedWarning]) -> str:
    """The section's figure as an image's data URL, or nothing."""
    if section.panels:
        # Once, above the figure that is read first; their own section has the timeline.
        marks = raised if section.name == "learning" else ()
        drawn = draw_panels(section.panels, last_step, marks)
    elif section.name == "warnings" and raised:
        drawn = draw_timeline(raised, last_step)
    else:
        return ""
    return data_url("svg+xml", drawn.encode())
