"""The essay: the page in the repository says what the code computes."""

import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path

import jaxtyping
import pytest
from matplotlib.text import Text

from surefoot.analysis.essay import CLAIMS, IN_OUR_WORDS, as_html, essay_sections, judge_claims
from surefoot.analysis.plots.exact import draw_lines, draw_update
from surefoot.analysis.plots.style import as_svg
from surefoot.cli.parser import main
from surefoot.config.settings import TRPO
from surefoot.exact.picture import UpdatePicture
from tests.support.essay import SECOND

DOCS = Path(__file__).parents[2] / "docs"
NUMBER = re.compile(r"-?\d[\d,]*\.?\d*(?:e[-+]?\d+)?")


@pytest.fixture(scope="module")
def written():
    """The module that writes the page."""
    spec = importlib.util.spec_from_file_location("write_essay", DOCS / "write_essay.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def unchecked_shapes():
    """Checks of shapes would take most of the time; tests/exact checks the same functions."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def numbers(text):
    return [float(found.replace(",", "")) for found in NUMBER.findall(text)]


@pytest.mark.thorough
@pytest.mark.usefixtures("unchecked_shapes")
def test_every_number_of_the_page_is_what_the_code_computes(written, tmp_path):
    (tmp_path / "essay").mkdir()
    fresh = written.page(tmp_path / "essay")
    kept = (DOCS / "essay.md").read_text(encoding="utf-8")
    assert NUMBER.sub("#", fresh) == NUMBER.sub("#", kept)
    for now, then in zip(numbers(fresh), numbers(kept), strict=True):
        # Errors of rounding differ between machines; all else agrees to the digits shown.
        assert now == pytest.approx(then, rel=0.02) or max(abs(now), abs(then)) < 1e-8
    drawn = {file.name for file in (tmp_path / "essay").iterdir()}
    assert drawn == {file.name for file in (DOCS / "essay").iterdir()}
    assert drawn == set(re.findall(r"\"essay/(claim-\d+(?:-narrow)?\.svg)\"", kept))


def printed(section, page):
    """Every number of a section of essay.md, as (name, format, as the page prints it)."""
    for paragraph in section.split("\n\n"):
        text = " ".join(paragraph.removeprefix("> ").replace("\n> ", " ").split())
        parts = re.split(r"\{([^:}]+):([^}]+)\}", text)
        figure = r"(-?[\d.,]+(?:e[-+]\d+)?(?: %)?)"
        pattern = [re.escape(part) for part in parts[::3]]
        found = re.search(figure.join(pattern), page)
        assert found, text
        yield from zip(parts[1::3], parts[2::3], found.groups(), strict=True)


COUNTS = ("price", "cheap_at_scale")
"""The second solver counts the products of matrices, which are nearly all of the arithmetic."""


@pytest.mark.thorough
@pytest.mark.parametrize("name", CLAIMS)
def test_a_second_solver_prints_the_same_numbers(name):
    page = " ".join((DOCS / "essay.md").read_text(encoding="utf-8").split())
    (section,) = (part for part in essay_sections() if part.startswith(f"{name}: "))
    second, count = SECOND[name](), 0
    for key, form, shown in printed(section.partition("\n\n")[2], page):
        count += 1
        value = float(second[key])
        again = format(value, form).replace("%", " %")
        if again == shown:
            continue
        found, digits = numbers(shown)[0], len(shown.partition(".")[2])
        if name in COUNTS:
            assert abs(found - value) <= 0.02 * value + 0.5 * 0.1**digits, key
        else:
            # What is rounding here is rounding there, but not the same.
            assert max(abs(found), abs(value)) < 1e-8, f"{key}: {shown} and {again}"
    assert count >= 1


def test_a_claim_is_selected_by_its_number_as_text_and_as_json(capsys):
    assert main(["essay", "--claim", "19", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["claim"] == 19
    assert record["verdict"] == "holds"
    assert record["numbers"]["small_kl"] < 1e-6 < 1 < record["numbers"]["large_kl"]
    assert main(["essay", "--claim", "19"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("19. Large steps")
    assert "(in our words)" in text
    assert main(["essay", "--claim", str(len(CLAIMS) + 1)]) == 2
    assert f"1 to {len(CLAIMS)}" in capsys.readouterr().err


def test_every_verdict_is_one_of_three_kinds():
    kept = (DOCS / "essay.md").read_text(encoding="utf-8")
    verdicts = re.findall(r"\*\*Verdict: (.+?)\.\*\*", kept)
    assert len(verdicts) == len(CLAIMS)
    assert all(re.match(r"holds($|[ ,;])|fails( |:)", verdict) for verdict in verdicts)


def test_the_page_needs_nothing_but_itself():
    text = as_html(list(judge_claims([9, 19])))
    assert not re.search(r"(src|srcset|href)=(?![\"']?(data:|#))", text)
    assert not re.search(r"fetch\(|XMLHttpRequest|import\(|https?://(?!www\.w3\.org)", text)
    assert "$" not in text.replace("$data", "").split("<script>")[0]


def test_the_best_gain_of_the_corridor_is_searched_and_not_read_off_a_grid():
    (claim,) = judge_claims([9])
    found = claim.found.numbers
    # As tests/exact/test_exact.py has them, and docs/theory.md.
    assert found["real_gain"] == pytest.approx(0.7874, abs=5e-5)
    assert found["real_kl"] == pytest.approx(0.02834, abs=5e-6)
    assert found["schulman_kl"] == pytest.approx(9.62e-11, rel=1e-3)
    assert "0.787 at KL 0.0283" in claim.finding


def test_the_price_is_of_as_many_products_as_the_default_runs():
    (claim,) = judge_claims([21])
    found, usual = claim.found.numbers, TRPO()
    fixed = found["gradient"] + found["rescale"] + 2
    each = usual.fisher_fraction * found["product"]
    assert found["products"] == usual.cg_iters
    assert found["trpo"] == pytest.approx(
        fixed + usual.fisher_fraction + usual.cg_iters * each, rel=1e-9
    )
    assert found["trpo_15"] - found["trpo"] == pytest.approx((15 - usual.cg_iters) * each)


def test_steps_of_one_length_under_the_fisher_matrix_have_one_kl():
    (claim,) = judge_claims([18])
    found = claim.found.numbers
    assert found["kl_first"] == pytest.approx(1e-8, rel=0.03)
    assert found["kl_edge"] == pytest.approx(1e-8, rel=0.03)
    assert found["visits_moved_edge"] == 0.0 < found["visits_moved_first"]


def test_every_sentence_of_the_essay_is_tried_or_listed_and_said_to_be_ours():
    *_, untried = essay_sections()
    for words in ("geometry of F", "any framework", "whatever works", "good algorithm"):
        assert words in " ".join(untried.split())
    titles = " ".join(section.partition("\n")[0] for section in essay_sections())
    for name in ("fisher_is_a_metric", "cg_and_line_search", "clipped_objective", "cheap_at_scale"):
        assert f"{name}: " in titles
    kept = (DOCS / "essay.md").read_text(encoding="utf-8")
    quotes = re.findall(r"^> .*", kept, flags=re.MULTILINE)
    assert len(quotes) == len(CLAIMS)
    assert all(quote.startswith(f"> *{IN_OUR_WORDS}* ") for quote in quotes)


def test_every_claim_of_the_page_is_linked_from_the_table_of_verdicts():
    kept = (DOCS / "essay.md").read_text(encoding="utf-8")
    numbered = [str(number) for number in range(1, len(CLAIMS) + 1)]
    assert re.findall(r"\]\(#claim-(\d+)\)", kept) == numbered
    assert re.findall(r'<a id="claim-(\d+)">', kept) == numbered
    text = as_html(list(judge_claims([9, 19])))
    targets = set(re.findall(r'id="([\w-]+)"', text))
    links = re.findall(r'href="#([\w-]+)"', text)
    assert {"claim-9", "claim-19", "verdicts", "primer", "boards", "untried"} <= set(links)
    assert set(links) <= targets
    assert text.count(f"<blockquote><cite>{IN_OUR_WORDS}</cite>") == 2
    assert "prefers-color-scheme: dark" in text
    assert '<source media="(max-width: 600px)"' in text


@pytest.mark.parametrize("number", [2, 6, 9, 24, 27])
def test_the_pictures_of_a_phone_fit_it_and_their_text_is_of_11_pixels(number):
    (claim,) = judge_claims([number])
    draw = draw_update if isinstance(claim.found.picture, UpdatePicture) else draw_lines
    figure = draw(claim.found.picture, narrow=True)
    svg = as_svg(figure)
    width = float(re.search(r'width="([\d.]+)pt"', svg)[1]) * 96 / 72
    # A screen of 390 pixels less the margins of the page.
    shown = min(1.0, 358 / width)
    assert width <= 390
    figure.draw_without_rendering()
    frame = figure.bbox
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text():
            assert text.get_fontsize() * 96 / 72 * shown >= 11, text.get_text()
    for text in (figure._suptitle, *(each for each in figure.legends[0].get_texts())):
        box = text.get_window_extent()
        assert frame.x0 <= box.x0, text.get_text()
        assert box.x1 <= frame.x1, text.get_text()


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on this machine")
def test_the_page_draws_itself_and_reads_the_corridor_in_a_browser(tmp_path):
    file = tmp_path / "essay.html"
    file.write_text(as_html(list(judge_claims([19]))), encoding="utf-8")
    quiet = ("no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync")
    quiet += ("disable-background-networking", "disable-component-update")
    command = ["chromium", "--headless", *(f"--{flag}" for flag in quiet), "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", file.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    read = dict(re.findall(r'data-name="([^"]+)">([^<]+)</b>', shown.partition('id="ridge"')[0]))
    assert read["p"] == "0.240"
    assert read["L"] == "4.471"
    assert read["η"] == "-4.052"
    assert read["realised gain"] == "-5.031"
    assert shown.count("<polyline") == 6
    ticks = re.findall(
        r'<text x="[\d.]+" y="[\d.]+" text-anchor="(?:middle|end)">(-?[\d.]+)<', shown
    )
    assert {"-10", "-5", "0", "5", "0.05", "0.10", "0.15", "0.20", "0.25"} <= set(ticks)
    assert len(ticks) < 40
