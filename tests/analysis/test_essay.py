"""The essay: the page in the repository says what the code computes."""

import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path

import jaxtyping
import pytest

from surefoot.analysis.essay import CLAIMS, as_html, judge_claims
from surefoot.cli.parser import main

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
    assert drawn == set(re.findall(r"\(essay/(claim-\d+\.png)\)", kept))


def test_a_claim_is_selected_by_its_number_as_text_and_as_json(capsys):
    assert main(["essay", "--claim", "18", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["claim"] == 18
    assert record["verdict"] == "holds"
    assert record["numbers"]["small_kl"] < 1e-6 < 1 < record["numbers"]["large_kl"]
    assert main(["essay", "--claim", "18"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("18. Large steps")
    assert main(["essay", "--claim", str(len(CLAIMS) + 1)]) == 2
    assert f"1 to {len(CLAIMS)}" in capsys.readouterr().err


def test_every_verdict_is_one_of_three_kinds():
    kept = (DOCS / "essay.md").read_text(encoding="utf-8")
    verdicts = re.findall(r"\*\*Verdict: (.+?)\.\*\*", kept)
    assert len(verdicts) == len(CLAIMS)
    assert all(re.match(r"holds($|[ ,;])|fails( |:)", verdict) for verdict in verdicts)


def test_the_page_needs_nothing_but_itself():
    text = as_html(list(judge_claims([18])))
    assert not re.search(r"(src|href)=[\"']?(?!data:)", text)
    assert not re.search(r"fetch\(|XMLHttpRequest|import\(|https?://(?!www\.w3\.org)", text)
    assert "$" not in text.replace("$data", "").split("<script>")[0]


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on this machine")
def test_the_page_draws_itself_and_reads_the_corridor_in_a_browser(tmp_path):
    file = tmp_path / "essay.html"
    file.write_text(as_html(list(judge_claims([18]))), encoding="utf-8")
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
