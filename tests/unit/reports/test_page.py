"""The report: it loads nothing, says only what its tables say, escapes every name, and is the same for the same store."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from raysweep.config.editor_schema import UnreadConfig
from raysweep.config.schema import DataSpec, EditorSpec, ModelSpec, ProtocolSpec, TrialSpec
from raysweep.errors import SpecError
from raysweep.reports.asked import chosen
from raysweep.reports.page.build import HERE, page
from raysweep.results.store import ResultStore
from raysweep.results.tables import Sweep
from raysweep.rows import EvalRound
from raysweep.workspace import Workspace
from tests.unit.reports.test_asked import LABEL, answer_row, value_row
from tests.unit.reports.test_retention_table import write

EVIL = "<script>alert(1)</script>"
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Elements(HTMLParser):
    """Every element of a page with its attributes and the text directly in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self._open: list[int] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), []))
        if tag not in ("meta", "input", "br", "use"):
            self._open.append(len(self.elements) - 1)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), []))

    def handle_endtag(self, tag: str) -> None:
        while self._open and self.elements[self._open.pop()][0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        # To all that are open: a cell's text may stand in a link within it.
        for i in self._open:
            self.elements[i][2].append(data)

    def text(self, i: int) -> str:
        return "".join(self.elements[i][2])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ResultStore:
    store = ResultStore(tmp_path_factory.mktemp("results") / "toy")
    for seed in (0, 1):
        write(store, "short", seed, 15 + 10 * seed)
        write(store, EVIL, seed, 100)
        write(store, "middle", seed, 30)
    return store


@pytest.fixture(scope="module")
def text(store: ResultStore, tmp_path_factory: pytest.TempPathFactory) -> str:
    return page(Sweep(store), Workspace(root=tmp_path_factory.mktemp("root")))


@pytest.fixture(scope="module")
def elements(text: str) -> Elements:
    return Elements(text)


def test_it_names_nothing_to_load(text: str, elements: Elements) -> None:
    for tag, attributes, _ in elements.elements:
        assert tag not in ("img", "image", "link", "iframe", "object", "embed", "base", "form")
        for name in ("src", "href", "xlink:href", "action", "data", "poster"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)
    assert not re.search(r"https?://|url\((?!#)|@import", text)


def test_its_policy_lets_only_its_own_script_run(text: str, elements: Elements) -> None:
    policy = next(a["content"] for tag, a, _ in elements.elements if a.get("http-equiv") == "Content-Security-Policy")
    script = next(elements.text(i) for i, (tag, a, _) in enumerate(elements.elements) if tag == "script" and not a)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert len(script) <= 3000
    assert script == (HERE / "report.js").read_text().strip()
    assert sum(tag == "script" for tag, _, _ in elements.elements) == 2, "the other one holds numbers"
    assert not any(name.startswith("on") for _, attributes, _ in elements.elements for name in attributes)


def test_every_number_of_a_sentence_is_that_of_its_cell(elements: Elements) -> None:
    cells = {a["id"]: elements.text(i) for i, (_, a, _) in enumerate(elements.elements) if a.get("id")}
    linked = [
        (a["href"] or "", elements.text(i)) for i, (_, a, _) in enumerate(elements.elements) if a.get("class") == "n"
    ]
    assert len(linked) >= 4
    for href, said in linked:
        assert cells[href[1:]] == said


def test_every_link_leads_somewhere(elements: Elements) -> None:
    ids = [a["id"] for _, a, _ in elements.elements if a.get("id")]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for _, a, _ in elements.elements if (a.get("href") or "").startswith("#")} <= {*ids}  # type: ignore[index]
    svg = [a for tag, a, _ in elements.elements if tag == "svg"]
    assert svg
    assert all(a["role"] == "img" and {*(a["aria-labelledby"] or "").split()} <= {*ids} for a in svg)


def test_the_sentences_answer_which_how_long_and_how_sure(elements: Elements) -> None:
    said = [elements.text(i) for i, (tag, _, _) in enumerate(elements.elements) if tag == "dd"]
    asked = [elements.text(i) for i, (tag, _, _) in enumerate(elements.elements) if tag == "dt"]
    assert asked == ["Which", "How long", "How sure"], "there are no seconds, and so no cost"
    assert said[0].startswith(f"After 40 edits {EVIL} has the highest Rel, 1.000 [")
    assert "It is better than" in said[0] or "nothing is shown" in said[0]
    assert said[1].startswith(
        f"{EVIL} still has more than half of the facts that were right, 40 edits on. middle has lost"
    )
    assert "short has lost half of its facts after 28 [" in said[1]
    assert said[2].startswith("By 40 records under 2 seeds. ")
    assert "corrected for all 3 pairs of arms (Holm)" in said[2]


def test_names_are_text_wherever_they_stand(text: str, elements: Elements) -> None:
    assert EVIL not in text
    assert text.count("&lt;script&gt;alert(1)") > 5
    numbers = next(elements.text(i) for i, (_, a, _) in enumerate(elements.elements) if a.get("id") == "numbers")
    assert {row["arm"] for row in json.loads(numbers)} == {EVIL, "middle", "short"}


def test_the_same_store_gives_the_same_bytes(store: ResultStore, text: str, tmp_path: Path) -> None:
    assert page(Sweep(store), Workspace(root=tmp_path)) == text


def test_records_won_and_lost_come_with_their_answers(elements: Elements) -> None:
    summaries = [elements.text(i) for i, (tag, _, _) in enumerate(elements.elements) if tag == "summary"]
    assert f"short against {EVIL}, Rel: 0 won, 25 lost" in summaries
    assert f"{EVIL} against middle, Rel: 10 won, 0 lost" in summaries


def test_under_a_protocol_it_shows_what_was_written(tmp_path: Path) -> None:
    """Two arms, one of which wrote the right answer under the rule that does not cut targets."""
    store = ResultStore(tmp_path / "toy")
    for arm, right in (("good", 1.0), ("bad", 0.0)):
        trial = TrialSpec(
            study="lifelong", model=ModelSpec(), data=DataSpec(), editor=EditorSpec(name=arm, config=UnreadConfig()),
            protocol=ProtocolSpec(rounds=(2,), also=({"id": "wild-mirage", "prompt": "qa_inst"},)), seed=0,
        )  # fmt: skip
        run = {"raysweep": "0", "python": "3", "device": "cpu", "cpu": "toy"}
        store.begin(trial, arm=arm, point={}, provenance={"run": run})
        rows = [value_row(trial.key, "efficacy", record, f"whole_match@{LABEL}", right) for record in (1, 2)]
        rows += [value_row(trial.key, "efficacy", record, "token_match", 1.0) for record in (1, 2)]
        written = [answer_row(trial.key, record, affected=True, near_tie=False) for record in (1, 2)]
        answers = [replace(row, whole_match=right, raw_whole=f" <{arm}> C. N.") for row in written]
        store.write_round(trial.key, EvalRound(step=2, rows=rows, answers=answers))
        store.finish(trial.key, step=2)
    sweep = Sweep(store)
    selection = chosen("wild-mirage+whole_match", [sweep])
    found = Elements(page(sweep, Workspace(root=tmp_path), selection=selection))
    whole = found.text(0)
    assert "wild-mirage:qa_inst/1" in whole
    assert "good against bad, Rel: 2 won, 0 lost" in whole
    cells = [found.text(i) for i, (tag, _, _) in enumerate(found.elements) if tag == "td"]
    assert cells[cells.index(" <good> C. N. (1)") :][:2] == [" <good> C. N. (1)", " <bad> C. N. (0)"]
    assert "Q" in cells, "the question as it was sent"
    # Under the main asking both are right, and nobody won.
    assert "won, " not in page(sweep, Workspace(root=tmp_path))


def test_nothing_measured_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="nothing was measured yet"):
        page(Sweep(ResultStore(tmp_path / "none")), Workspace(root=tmp_path))


@pytest.fixture
def opened(text: str, tmp_path: Path) -> tuple[str, str]:
    """Return the page as a browser has it once its script ran, and what the browser complained of."""
    if BROWSER is None:
        pytest.skip("no Chromium on this machine")
    (tmp_path / "r.html").write_text(text, encoding="utf-8")
    found = subprocess.run(
        [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
            "--disable-background-networking", "--disable-component-update", "--enable-logging=stderr",
            f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", (tmp_path / "r.html").as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return found.stdout, found.stderr


def test_a_browser_runs_it_without_a_complaint(opened: tuple[str, str]) -> None:
    dom, complaints = opened
    assert "CONSOLE" not in complaints, complaints
    assert dom.count('<input type="checkbox"') == 3, "the script made its tools"
