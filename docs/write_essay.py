"""Writes `essay.md` and its pictures. Run: python docs/write_essay.py"""

from pathlib import Path

from surefoot.analysis.essay import IN_OUR_WORDS, KINDS, JudgedClaim, essay_sections, judge_claims
from surefoot.analysis.text import picture_tag


def page(pictures: Path) -> str:
    """The whole essay as a page; draws the pictures into a folder beside it."""
    head, primer, *_, untried = essay_sections()
    claims = list(judge_claims())
    paragraphs = [head, "## The verdicts", verdicts(claims), f"## {primer}"]
    for claim in claims:
        paragraphs += [
            f'<a id="claim-{claim.number}"></a>',
            f"## {claim.number}. {claim.title}",
            f"> *{IN_OUR_WORDS}* {claim.says}",
            claim.experiment,
            claim.finding,
            f"**Verdict: {claim.verdict}.**",
        ]
        if claim.found.picture:
            paragraphs += [picture(claim, pictures), f"*{claim.caption}*"]
        paragraphs.append("Recompute: " + ", ".join(f"`{line}`" for line in claim.commands))
    return "\n\n".join([*paragraphs, f"## {untried}\n"])


def verdicts(claims: list[JudgedClaim]) -> str:
    """A table of all verdicts, each with a link to its claim."""
    rows = [
        f"| {claim.number} | [{claim.title}](#claim-{claim.number}) | {KINDS[claim.kind]} |"
        for claim in claims
    ]
    return "\n".join(["| | claim | verdict |", "|---|---|---|", *rows])


def picture(claim: JudgedClaim, folder: Path) -> str:
    """Draw a claim's picture, for wide screens and for narrow ones."""
    names = []
    for suffix, narrow in (("", False), ("-narrow", True)):
        file = folder / f"claim-{claim.number}{suffix}.svg"
        file.write_text(claim.drawn(narrow=narrow), encoding="utf-8")
        names.append(f"{folder.name}/{file.name}")
    return picture_tag(*names, alt=claim.caption)


if __name__ == "__main__":
    here = Path(__file__).parent
    (here / "essay").mkdir(exist_ok=True)
    (here / "essay.md").write_text(page(here / "essay"), encoding="utf-8")
