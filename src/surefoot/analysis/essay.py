"""The essay on the road from TRPO to PPO: the text of essay.md, with the numbers computed.

A section of essay.md is headed by the name of its claim in `exact.claims` and has one paragraph
each for the claim (quoted), the trial, the finding and the verdict, then a caption where there is a
picture, and a command that recomputes the heart of it.
"""

import html
import json
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import numpy as np

from surefoot import exact
from surefoot.analysis.plots.exact import draw_lines, draw_update
from surefoot.analysis.plots.style import as_svg
from surefoot.analysis.text import data_url, picture_tag
from surefoot.exact.claims import bound, ppo, surrogate, trpo
from surefoot.exact.claims.cases import Finding, going_right
from surefoot.exact.picture import UpdatePicture
from surefoot.exact.updates import exact_trpo

CLAIMS: dict[str, Callable[[], Finding]] = {
    claim.__name__: claim for part in (surrogate, bound, trpo, ppo) for claim in part.CLAIMS
}
"""Every claim by name; essay.md puts them in the essay's order."""
IN_OUR_WORDS = "The essay, in our words:"
"""Before each sentence of the essay: none is quoted."""
KINDS = {"holds": "holds", "when": "holds when …", "fails": "fails"}
"""Verdicts as a table shows them."""


class JudgedClaim(NamedTuple):
    """A claim of the essay, numbered from 1, with the result of its trial.

    `finding` puts the numbers of `found` into sentences; `verdict` starts with `holds`, `holds
    when` or `fails`; `caption` and `command` may be empty.
    """

    number: int
    title: str
    says: str
    experiment: str
    finding: str
    verdict: str
    caption: str
    command: str
    found: Finding

    @property
    def commands(self) -> list[str]:
        """Every command that recomputes the claim."""
        own = f"surefoot essay --claim {self.number}"
        return [own, self.command] if self.command else [own]

    @property
    def kind(self) -> str:
        """The kind of the verdict: holds, when (it holds when) or fails."""
        if self.verdict.startswith("holds when"):
            return "when"
        return self.verdict.split()[0].rstrip(";:,.")

    def drawn(self, *, narrow: bool) -> str:
        """The picture as SVG, `narrow` for a phone; empty where there is none."""
        picture = self.found.picture
        if picture is None:
            return ""
        if isinstance(picture, UpdatePicture):
            return as_svg(draw_update(picture, narrow=narrow))
        return as_svg(draw_lines(picture, narrow=narrow))


def judge_claims(numbers: Sequence[int] | None = None) -> Iterator[JudgedClaim]:
    """Judge the claims with these numbers, from 1 on, or all; each is computed when reached."""
    for number in numbers or range(1, len(CLAIMS) + 1):
        # The head and the primer come before the claims.
        yield _judge(number, essay_sections()[number + 1])


@cache
def essay_sections() -> list[str]:
    """The sections of essay.md without their `##`: head, primer, the claims, what is not tried."""
    text = (Path(__file__).parent / "essay.md").read_text(encoding="utf-8")
    return [section.strip() for section in re.split(r"^## ", text, flags=re.MULTILINE)]


def _judge(number: int, section: str) -> JudgedClaim:
    name, _, section = section.partition(": ")
    found = CLAIMS[name]()

    def number_of(place: re.Match[str]) -> str:
        return format(found.numbers[place[1]], place[2]).replace("%", " %")

    # Before it is split: a number may stand in any paragraph.
    section = re.sub(r"\{([^:}]+):([^}]+)\}", number_of, section)
    title, says, experiment, finding, verdict, *rest = (
        " ".join(part.removeprefix("> ").replace("\n> ", " ").split())
        for part in section.split("\n\n")
    )
    verdict = verdict.removeprefix("**Verdict: ").removesuffix(".**")
    caption = "".join(text.strip("*") for text in rest if text.startswith("*"))
    command = "".join(text.strip("`") for text in rest if text.startswith("`"))
    return JudgedClaim(number, title, says, experiment, finding, verdict, caption, command, found)


def as_text(claim: JudgedClaim) -> str:
    """A claim for a terminal."""
    parts = (
        ("essay:", f"(in our words) {claim.says}"),
        ("trial:", claim.experiment),
        ("result:", claim.finding),
        ("verdict:", claim.verdict),
        ("see:", claim.command),
    )
    lines = [
        textwrap.fill(text, 94, initial_indent=f"  {head:9s}", subsequent_indent=" " * 11)
        for head, text in parts
        if text
    ]
    return "\n".join([f"{claim.number}. {claim.title}", *lines])


def as_record(claim: JudgedClaim) -> dict[str, Any]:
    """A claim for a program."""
    names = ("title", "says", "finding", "verdict")
    record = {name: getattr(claim, name) for name in names}
    return {"claim": claim.number, **record, "numbers": dict(claim.found.numbers)}


def as_html(claims: Sequence[JudgedClaim]) -> str:
    """The claims as one HTML page that needs nothing else; two of its pictures can be dragged.

    Every value that they show is computed here; the page only looks it up.
    """
    template = Template((Path(__file__).parent / "essay.html").read_text(encoding="utf-8"))
    _, primer, *_, untried = (section.partition("\n")[2] for section in essay_sections())
    boards = {
        "corridor": _board(exact.corridor(), 0.02, 0.28),
        "ridge": _board(exact.ridge(), 0.02, 0.42),
    }
    return template.substitute(
        verdicts="\n".join(_row(claim) for claim in claims),
        claims="\n".join(_section(claim) for claim in claims),
        primer=_paragraphs(primer),
        untried=_paragraphs(untried),
        data=json.dumps(boards, allow_nan=False),
    )


def _row(claim: JudgedClaim) -> str:
    """A row of the table of verdicts, which is the table of contents too."""
    return (
        f'<tr><td>{claim.number}</td><td><a href="#claim-{claim.number}">'
        f'{html.escape(claim.title)}</a></td><td><span class="kind {claim.kind}">'
        f"{KINDS[claim.kind]}</span></td></tr>"
    )


def _section(claim: JudgedClaim) -> str:
    say, picture = html.escape, ""
    wide, narrow = (claim.drawn(narrow=narrow) for narrow in (False, True))
    if wide:
        sources = [data_url("svg+xml", drawn.encode()) for drawn in (wide, narrow)]
        tag = picture_tag(*sources, alt=claim.caption)
        picture = f"<figure>{tag}<figcaption>{say(claim.caption)}</figcaption></figure>"
    commands, here = "\n".join(claim.commands), f"claim-{claim.number}"
    return (
        f'<section id="{here}"><h2><a href="#{here}">{claim.number}.</a> {say(claim.title)}</h2>'
        f"<blockquote><cite>{IN_OUR_WORDS}</cite> {say(claim.says)}</blockquote>"
        f"<p>{say(claim.experiment)}</p><p>{say(claim.finding)}</p>"
        f'<p class="verdict {claim.kind}">{say(claim.verdict)}</p>{picture}'
        f'<pre>{say(commands)}</pre><p class="back"><a href="#verdicts">All verdicts</a></p>'
        "</section>"
    )


def _paragraphs(text: str) -> str:
    """The few marks of essay.md as HTML."""
    text = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", html.escape(text, quote=False), flags=re.DOTALL)
    text = re.sub(r"\*(.+?)\*", r"<i>\1</i>", text, flags=re.DOTALL)
    return "\n".join(f"<p>{part}</p>" for part in text.strip().split("\n\n"))


def _board(mdp: exact.MDP, low: float, high: float) -> dict[str, Any]:
    """Values of an interactive picture at every p from `low` to `high`."""
    start = exact.starting_point(mdp)
    path = exact.update_path(start, exact_trpo, exact.StepSizes())
    ends = {"trpo": path.new, "ppo": exact.updated(start, "ppo")}
    p_old, half = float(start.old.policy[0, 1]), path.landmarks.half
    steps = {rule: float(new.policy[0, 1]) for rule, new in ends.items()}
    # The slider must be able to stop exactly at the old policy and at each rule's step.
    grid = np.unique([*np.linspace(low, high, 341), p_old, *steps.values()])
    along = exact.walk(start.old, [going_right(mdp, float(p)) for p in grid])
    columns = {
        "p": grid,
        "eta": along.eta,
        "surrogate": along.surrogate,
        "clipped": along.clipped,
        "kl": along.kl,
        "ratio": grid / p_old,
        "edge": np.array([(1 - mdp.gamma) * new.visits[-1] for new in along.solved]),
    }
    # Six decimals are finer than a pixel, and keep the page small.
    return {name: np.round(column, 6).tolist() for name, column in columns.items()} | {
        "p_old": p_old,
        "steps": steps,
        "last": {"corridor": "at the edge", "ridge": "on the crest"}[mdp.name],
        "half": None if half is None else float(path.at(half)[0, 1]),
    }
