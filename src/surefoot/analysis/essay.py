"""The essay on the road from TRPO to PPO: the text of essay.md, with the numbers computed.

A section of essay.md is headed by the name of its claim in `exact.claims` and has one paragraph
each for the claim (quoted), the trial, the finding and the verdict, then a caption where there is a
picture, and a command that recomputes the heart of it.
"""

import base64
import html
import json
import re
import string
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from surefoot.analysis.plots import plot_lines, plot_update
from surefoot.exact.claims import bound, ppo, region, surrogate, trpo
from surefoot.exact.claims.cases import Finding, going_right
from surefoot.exact.families import starting_point
from surefoot.exact.mdp import MDP, corridor, ridge
from surefoot.exact.path import UpdatePath, walk
from surefoot.exact.picture import UpdatePicture
from surefoot.exact.updates import updated

CLAIMS: dict[str, Callable[[], Finding]] = {
    claim.__name__: claim for part in (surrogate, bound, region, trpo, ppo) for claim in part.CLAIMS
}
"""Every claim by name; essay.md puts them in the essay's order."""


class JudgedClaim(NamedTuple):
    """A claim of the essay, numbered from 1, with the result of its trial.

    `finding` puts the numbers of `found` into sentences; `verdict` starts with `holds`, `holds
    when` or `fails`; `caption` and `command` may be empty.
    """

    number: int
    title: str
    says: str
    experiment: str
    found: Finding
    finding: str
    verdict: str
    caption: str
    command: str

    @property
    def commands(self) -> list[str]:
        """Every command that recomputes the claim."""
        own = f"surefoot essay --claim {self.number}"
        return [own, self.command] if self.command else [own]


def judge_claims(numbers: Sequence[int] | None = None) -> Iterator[JudgedClaim]:
    """Judge the claims with these numbers, from 1 on, or all; each is computed when reached."""
    for number in numbers or range(1, len(CLAIMS) + 1):
        yield _judge(number, _sections()[number + 1])


@cache
def _sections() -> list[str]:
    """The sections of essay.md without their `##`: head, primer, the claims, what is not tried."""
    text = (Path(__file__).parent / "essay.md").read_text(encoding="utf-8")
    return [section.strip() for section in re.split(r"^## ", text, flags=re.MULTILINE)]


def _judge(number: int, section: str) -> JudgedClaim:
    heading, says, *paragraphs = (" ".join(part.split()) for part in section.split("\n\n"))
    name, _, title = heading.partition(": ")
    found = CLAIMS[name]()
    experiment, finding, verdict, *rest = (
        _Numbers().vformat(text, (), found.numbers) for text in paragraphs
    )
    return JudgedClaim(
        number,
        title,
        says.replace("> ", ""),
        experiment,
        found,
        finding,
        verdict.removeprefix("**Verdict: ").removesuffix(".**"),
        caption="".join(text.strip("*") for text in rest if text.startswith("*")),
        command="".join(text.strip("`") for text in rest if text.startswith("`")),
    )


class _Numbers(string.Formatter):
    """Puts numbers into text: names may hold dots (`ratio_0.1`), a percent sign has a space."""

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        return kwargs[field_name], field_name

    def format_field(self, value: Any, format_spec: str) -> str:
        return super().format_field(value, format_spec).replace("%", " %")


def as_text(claim: JudgedClaim) -> str:
    """A claim for a terminal."""
    parts = {
        "essay:": claim.says,
        "trial:": claim.experiment,
        "result:": claim.finding,
        "verdict:": claim.verdict,
        "see:": claim.command,
    }
    lines = [
        textwrap.fill(text, 94, initial_indent=f"  {head:9s}", subsequent_indent=" " * 11)
        for head, text in parts.items()
        if text
    ]
    return "\n".join([f"{claim.number}. {claim.title}", *lines])


def as_record(claim: JudgedClaim) -> dict[str, Any]:
    """A claim for a program."""
    return {
        "claim": claim.number,
        "title": claim.title,
        "says": claim.says,
        "finding": claim.finding,
        "verdict": claim.verdict,
        "numbers": dict(claim.found.numbers),
    }


def as_markdown(claims: Sequence[JudgedClaim], pictures: Path) -> str:
    """The whole essay as a page; pictures go into the folder `pictures`, beside the page."""
    sections = []
    for claim in claims:
        paragraphs = [
            f"## {claim.number}. {claim.title}",
            f"> {claim.says}",
            claim.experiment,
            claim.finding,
            f"**Verdict: {claim.verdict}.**",
        ]
        if claim.found.picture:
            file = pictures / f"claim-{claim.number}.png"
            _draw(claim, file)
            link = f"{pictures.name}/{file.name}"
            paragraphs += [f"![{claim.caption}]({link})", f"*{claim.caption}*"]
        paragraphs.append("Recompute: " + ", ".join(f"`{line}`" for line in claim.commands))
        sections.append("\n\n".join(paragraphs))
    head, primer, *_, untried = _sections()
    return "\n\n".join([head, f"## {primer}", *sections, f"## {untried}\n"])


def _draw(claim: JudgedClaim, file: Path) -> None:
    picture = claim.found.picture
    if isinstance(picture, UpdatePicture):
        plot_update(picture, file)
    elif picture:
        plot_lines(picture, file)


def as_html(claims: Sequence[JudgedClaim]) -> str:
    """The claims as one HTML page that needs nothing else; two of its pictures can be dragged.

    Every value that they show is computed here; the page only looks it up.
    """
    template = string.Template((Path(__file__).parent / "essay.html").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        sections = "\n".join(_section(claim, Path(folder)) for claim in claims)
    _, primer, *_, untried = (section.partition("\n")[2] for section in _sections())
    boards = {"corridor": _board(corridor(), 0.02, 0.28), "ridge": _board(ridge(), 0.02, 0.42)}
    return template.substitute(
        claims=sections,
        primer=_paragraphs(primer),
        untried=_paragraphs(untried),
        data=json.dumps(boards, allow_nan=False),
    )


def _section(claim: JudgedClaim, folder: Path) -> str:
    say, picture = html.escape, ""
    if claim.found.picture:
        file = folder / f"{claim.number}.png"
        _draw(claim, file)
        data = base64.b64encode(file.read_bytes()).decode()
        picture = (
            f'<figure><img alt="{say(claim.caption)}" src="data:image/png;base64,{data}">'
            f"<figcaption>{say(claim.caption)}</figcaption></figure>"
        )
    kind = claim.verdict.split()[0].rstrip(";:,.")
    kind = "when" if claim.verdict.startswith("holds when") else kind
    return (
        f'<section id="claim-{claim.number}"><h2>{claim.number}. {say(claim.title)}</h2>'
        f"<blockquote>{say(claim.says)}</blockquote><p>{say(claim.experiment)}</p>"
        f"<p>{say(claim.finding)}</p>"
        f'<p class="verdict {kind}">{say(claim.verdict)}</p>{picture}'
        f"<pre>{say(chr(10).join(claim.commands))}</pre></section>"
    )


def _paragraphs(text: str) -> str:
    """The few marks of essay.md as HTML."""
    text = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", html.escape(text, quote=False), flags=re.DOTALL)
    text = re.sub(r"\*(.+?)\*", r"<i>\1</i>", text, flags=re.DOTALL)
    return "\n".join(f"<p>{part}</p>" for part in text.strip().split("\n\n"))


def _board(mdp: MDP, low: float, high: float) -> dict[str, Any]:
    """What a picture to be dragged shows at every p from `low` to `high`."""
    start = starting_point(mdp)
    trpo_step, ppo_step = updated(start, "trpo"), updated(start, "ppo")
    p_old, p_trpo, p_ppo = (float(s.policy[0, 1]) for s in (start.old, trpo_step, ppo_step))
    grid = np.unique([*np.linspace(low, high, 341), p_old, p_trpo, p_ppo])
    along = walk(start.old, [going_right(mdp, float(p)) for p in grid])
    columns = {
        "p": grid,
        "eta": along.eta,
        "surrogate": along.surrogate,
        "clipped": along.clipped,
        "kl": along.kl,
        "ratio": grid / p_old,
        "edge": np.array([(1 - mdp.gamma) * new.visits[-1] for new in along.solved]),
    }
    path = UpdatePath(start.old, trpo_step)
    half = path.landmarks.half
    return {name: np.round(column, 6).tolist() for name, column in columns.items()} | {
        "p_old": p_old,
        "steps": {"trpo": p_trpo, "ppo": p_ppo},
        "last": {"corridor": "at the edge", "ridge": "on the crest"}[mdp.name],
        "half": None if half is None else float(path.at(half)[0, 1]),
    }
