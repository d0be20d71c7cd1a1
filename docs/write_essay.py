"""Writes `essay.md` and its pictures. Run: python docs/write_essay.py"""

from pathlib import Path

from surefoot.analysis.essay import as_markdown, judge_claims


def page(pictures: Path) -> str:
    """The whole text; draws the pictures."""
    return as_markdown(list(judge_claims()), pictures)


if __name__ == "__main__":
    here = Path(__file__).parent
    (here / "essay").mkdir(exist_ok=True)
    (here / "essay.md").write_text(page(here / "essay"), encoding="utf-8")
