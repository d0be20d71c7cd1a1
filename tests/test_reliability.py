"""Every case of what may go wrong has a test, and the page names it."""

import re
from pathlib import Path

import pytest

from tests.support.cases import CASES, names_by_case

ROOT = Path(__file__).parents[1]


FOUND = names_by_case()


def page():
    return (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("number", CASES)
def test_a_case_has_tests_and_the_page_names_them(number):
    row = re.search(rf"^\| {number} \| .*$", page(), re.M)[0]
    assert CASES[number].promise in row
    named = set(re.findall(r"`(test_\w+)`", row))
    assert FOUND[number] == named
    assert named


def test_the_page_says_that_every_case_is_kept():
    assert f"**{len(CASES)} of {len(CASES)}** cases are kept" in page()
