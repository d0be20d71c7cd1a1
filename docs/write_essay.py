"""Writes `essay.md` and its pictures. Run: python docs/write_essay.py"""

from pathlib import Path

from surefoot.analysis.essay import essay_sections, judge_claims


def page(pictures: Path) -> str:
    """The whole essay as a page; draws the pictures into a folder beside it."""
    head, primer, *_, untried = essay_sections()
    paragraphs = [head, f"## {primer}"]
    for claim in judge_claims():
        paragraphs += [
            f"## {claim.number}. {claim.title}",
            f"> {claim.says}",
            claim.experiment,
            claim.finding,
            f"**Verdict: {claim.verdict}.**",
        ]
        file = pictures / f"claim-{claim.number}.png"
        if claim.draw(file):
            link = f"![{claim.caption}]({pictures.name}/{file.name})"
            paragraphs += [link, f"*{claim.caption}*"]
        paragraphs.append("Recompute: " + ", ".join(f"`{line}`" for line in claim.commands))
    return "\n\n".join([*paragraphs, f"## {untried}\n"])


if __name__ == "__main__":
    here = Path(__file__).parent
    (here / "essay").mkdir(exist_ok=True)
    (here / "essay.md").write_text(page(here / "essay"), encoding="utf-8")
