"""Writes `essay.md` and its pictures. Run: python docs/write_essay.py"""

from pathlib import Path

from surefoot.analysis.essay import PRIMER, UNTRIED, as_markdown, judge

HEAD = """\
# From TRPO to PPO, claim by claim

An essay, "From TRPO to PPO", says what policy optimisation is about: a surrogate that is a tangent
plane to the truth, a bound that says how far it can be trusted, a rule that respects the bound and
a rule that clips instead. Here its claims, as far as they can be computed, are tried on
environments small enough to be solved, and judged. Every number on this page comes from
`surefoot essay`; a test holds them together. `surefoot essay --out page` writes the same as one
HTML page, in which two of the pictures can be dragged.

## What you need to know

"""


def page(pictures: Path) -> str:
    """The whole text; draws the pictures."""
    claims = as_markdown(list(judge()), pictures)
    return HEAD + PRIMER + "\n" + claims + "\n## Not tried\n\n" + UNTRIED


if __name__ == "__main__":
    here = Path(__file__).parent
    (here / "essay").mkdir(exist_ok=True)
    (here / "essay.md").write_text(page(here / "essay"), encoding="utf-8")
