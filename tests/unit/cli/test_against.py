"""``raysweep compare --against``: our lines beside the published numbers of the same arm, and nothing else."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raysweep.cli.main import main
from raysweep.config.editor_schema import UnreadConfig
from raysweep.config.schema import DataSpec, EditorSpec, ModelSpec, ProtocolSpec, TrialSpec, WrapSpec
from raysweep.results.store import ResultStore
from raysweep.rows import EvalRound, ProbeRow
from raysweep.workspace import package_share

KINDS = {"token_match": ("efficacy", "paraphrase"), "agreement": ("locality",), "ppl": ("efficacy",)}
Compare = Callable[..., tuple[int, str, str]]


def write(
    root: Path,
    arm: str,
    editor: str,
    *,
    lam: Any = None,
    model: str = "llama-2-7b",
    data: str = "zsre",
    steps: tuple[int, ...] = (1000,),
    value: float = 0.5,
    **config: Any,
) -> None:
    """Write one finished trial: two records per round, everything measured as *value* and *value* + 0.25."""
    trial = TrialSpec(
        study="lifelong",
        model=ModelSpec(name=model),
        data=DataSpec(name=data, order="file"),
        editor=EditorSpec(
            name=editor,
            config=UnreadConfig(**config),
            wrap=(WrapSpec(name="simie", config=UnreadConfig(lam=lam)),) if lam else (),
        ),
        protocol=ProtocolSpec(rounds=steps),
        seed=0,
    )
    store = ResultStore(root / "results" / "ours")
    run = {"raysweep": "0", "python": "3", "device": "cpu", "cpu": "toy"}
    store.begin(trial, arm=arm, point={"seed": 0}, provenance={"run": run})
    for step in steps:
        rows = [
            ProbeRow(
                trial_key=trial.key, step=step, record_id=f"r{i}", edit_step=i, superseded_step=None, probe_kind=kind,
                probe_name="", probe_index=j, metric=metric, value=value + i / 4, n_tokens=1, prompt_digest="", answer="",
            )
            for i in (0, 1)
            for metric, kinds in KINDS.items()
            for j, kind in enumerate(kinds)
        ]  # fmt: skip
        store.write_round(trial.key, EvalRound(step=step, rows=rows))
    store.finish(trial.key, step=steps[-1])


@pytest.fixture
def compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Compare:
    def call(*flags: str) -> tuple[int, str, str]:
        code = main(["--root", str(tmp_path), "compare", "ours", *flags])
        return (code, *capsys.readouterr())

    return call


def table(out: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(out)))


def test_ours_theirs_and_the_difference(tmp_path: Path, compare: Compare) -> None:
    write(tmp_path, "rome+simie", "rome", lam=50)
    write(tmp_path, "own", "null")
    code, out, _ = compare("--against", "simie-table1")
    assert code == 0
    (line,) = (x for x in out.splitlines() if " Rel " in x)
    said = "rome+simie ROME+SimIE llama-2-7b zsre 1000 Rel .625 [.12, .95] 0.64 -0.015 2"
    assert line.split() == said.split()
    assert sum(x.lstrip().startswith("rome+simie") for x in out.splitlines()) == 4
    assert "note: theirs: Guo et al. 2025 (SimIE), ICML, PMLR 267:20793-20824, Table 1\n" in out
    assert "note: theirs is given without a standard error, to ±0.005\n" in out
    assert "on the model after edit T. Ours: Rel, retained (efficacy/token_match)\n" in out
    assert "note: where n is below edits" in out
    assert "note: without a published counterpart: own\n" in out
    assert "λ is" not in out


@pytest.mark.parametrize("how", ["csv", "json", "markdown", "latex"])
def test_other_formats_keep_their_notes_apart(tmp_path: Path, compare: Compare, how: str) -> None:
    write(tmp_path, "rome+simie", "rome", lam=50)
    code, out, err = compare("--against", "simie-table1", "--format", how)
    assert (code, "note:" in out) == (0, False)
    assert "note: theirs: Guo" in err
    if how in ("csv", "json"):
        rows = table(out) if how == "csv" else json.loads(out)
        assert [r["metric"] for r in rows] == ["Rel", "Gen", "Loc", "Avg"]
        first = {k: float(rows[0][k]) for k in ("ours", "ours_se", "theirs", "their_uncertainty", "lam", "their_lam")}
        wanted = {
            "ours": 0.625,
            "ours_se": 0.125,
            "theirs": 0.64,
            "their_uncertainty": 0.005,
            "lam": 50,
            "their_lam": 50,
        }
        assert first == pytest.approx(wanted)
        assert float(rows[0]["difference"]) == pytest.approx(0.625 - 0.64)
    else:
        assert "0.64" in out


def test_another_model_is_refused_unless_loosely(tmp_path: Path, compare: Compare) -> None:
    write(tmp_path, "rome", "rome", model="embedded", data="world", steps=(5, 10))
    code, out, err = compare("--against", "simie-table1")
    assert (code, out) == (2, "")
    assert "model: ours embedded, published llama-2-7b, mistral-7b; data: ours world" in err
    assert "edits: ours 5, 10, published 1000" in err
    assert "--loosely" in err
    code, out, err = compare("--against", "simie-table1", "--loosely", "--format", "csv")
    assert code == 0
    rows = table(out)
    assert {(r["model"], r["data"], r["edits"], r["their_edits"]) for r in rows} == {
        ("embedded", "world", "10", "1000")
    }
    cells = [(m, d) for d in ("zsre", "counterfact") for m in ("llama-2-7b", "mistral-7b")]
    assert list(dict.fromkeys((r["their_model"], r["their_data"]) for r in rows)) == cells
    assert {r["published_arm"] for r in rows} == {"ROME"}
    assert "model, data, edits and λ need not be the same here" in err


def test_the_page_shows_the_table_there_is(tmp_path: Path, compare: Compare) -> None:
    write(tmp_path, "mend", "mend", model="embedded", data="world", steps=(10,))
    _, out, _ = compare("--against", "simie-fig2", "--loosely", "--format", "markdown")
    page = (package_share() / "docs/results.md").read_text(encoding="utf-8").splitlines()
    shown = page.index(out.splitlines()[0])
    ours, theirs = out.splitlines()[2].split(" | "), page[shown + 2].split(" | ")
    assert (ours[:9], ours[10]) == (theirs[:9], theirs[10])


def test_loosely_prefers_our_model_our_data_and_our_edits(tmp_path: Path, compare: Compare) -> None:
    write(tmp_path, "rome", "rome", model="org/Mistral-7B", steps=(10, 50))
    _, out, _ = compare("--against", "simie-table1", "--loosely", "--format", "csv")
    assert {(r["their_model"], r["their_data"], r["edits"]) for r in table(out)} == {("mistral-7b", "zsre", "50")}
    _, out, _ = compare("--against", "simie-fig2", "--loosely", "--format", "csv")
    assert [(r["edits"], r["their_edits"]) for r in table(out)] == [("10", "10"), ("50", "50")]
    _, out, _ = compare("--against", "simie-fig2", "--loosely", "--format", "csv", "--at", "50")
    assert [r["edits"] for r in table(out)] == ["50"]


def test_the_telling_keys_of_an_arm(tmp_path: Path, compare: Compare) -> None:
    write(tmp_path, "with", "alphaedit", pre=1)
    write(tmp_path, "without", "alphaedit", pre=0)
    _, out, _ = compare("--against", "simie-table1", "--format", "csv")
    assert {r["arm"]: r["published_arm"] for r in table(out)} == {"with": "AlphaEdit", "without": "AlphaEdit⁻"}


def test_another_lambda_is_another_arm(tmp_path: Path, compare: Compare) -> None:
    write(tmp_path, "rome+simie", "rome", lam=10)
    code, _, err = compare("--against", "simie-table1")
    assert (code, "λ: ours 10, published 50, 30, 5" in err) == (2, True)
    code, out, _ = compare("--against", "simie-table1", "--loosely")
    assert (code, "note: rome+simie: our λ is 10, theirs 50 (llama-2-7b, zsre)\n" in out) == (0, True)


def test_a_table_that_sweeps_lambda_is_matched_by_lambda(tmp_path: Path, compare: Compare) -> None:
    for lam in (5.0, 7.0, 10.0):
        write(tmp_path, f"rome+simie {lam:g}", "rome", lam=lam, model="embedded", data="world", steps=(10,))
    _, out, err = compare("--against", "simie-figs7to10", "--loosely", "--format", "csv")
    rows = table(out)
    assert {(r["lam"], r["their_lam"]) for r in rows} == {("5.0", "5.0"), ("10.0", "10.0")}
    assert {r["their_sign"] for r in rows} == {"≈"}
    assert "without a published counterpart: rome+simie 7" in err
    assert "read off a figure to ±0.02" in err


def test_a_bound_has_no_difference_and_generated_answers_are_noted(tmp_path: Path, compare: Compare) -> None:
    write(tmp_path, "ft-l", "ft", model="gpt2-xl", data="hallucination", steps=(50,), objective="prompt_last")
    _, out, _ = compare("--against", "simie-table7")
    (line,) = (x for x in out.splitlines() if " PPL " in x and "note" not in x)
    assert line.split()[-3:] == [">1000", "–", "2"]
    assert "Ours: PPL, retained (efficacy/ppl)" in out
    write(tmp_path, "grace", "grace")
    _, out, _ = compare("--against", "simie-table1")
    assert "note: grace: theirs asks by generation, ours by teacher_forced (protocol.asking)" in out


def test_wrong_use(tmp_path: Path, compare: Compare) -> None:
    write(tmp_path, "floor", "null")
    for flags, said in (
        (["--loosely"], "add --against NAME"),
        (["--against", "simie-table1", "--phase", "immediate"], "leave out --by and --phase"),
        (["--against", "simie-tabel1"], "did you mean: simie-table1"),
        (["--against", "simie-table1"], "no arm in common: ours null; published FT-L, MEND"),
        (["--against", "simie-table1", "--loosely"], "no arm in common"),
        (["--against", "simie-table1", "--at", "7"], "nothing was measured at 7 edits"),
    ):
        code, out, err = compare(*flags)
        assert (code, out, said in err) == (2, "", True), (flags, err)
    assert "--loosely" not in compare("--against", "simie-table1")[2]


def test_they_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["--root", str(tmp_path), "ls", "published"]) == 0
    out = capsys.readouterr().out
    (line,) = (x for x in out.splitlines() if "simie-table4" in x)
    assert line.split() == ["simie-table4", "104", "SimIE", "Table", "4", "gpt2-xl", "zsre,", "counterfact"]


@pytest.mark.parametrize(
    ("lam", "text"), [({"energy": 0.1}, "0.1 mean energies"), ("gcv", "gcv"), ({"energy": 2.0}, "2 mean energies")]
)
def test_a_lambda_in_other_units_is_said_not_compared(lam: Any, text: str, tmp_path: Path, compare: Compare) -> None:
    """It was a TypeError, or for ``gcv`` a ValueError, for the whole table."""
    write(tmp_path, "rome+simie", "rome", lam=lam)
    code, _, err = compare("--against", "simie-table1")
    assert (code, f"λ: ours {text}, published 50" in err) == (2, True), err
    code, out, _ = compare("--against", "simie-table1", "--loosely")
    assert (code, f"note: rome+simie: our λ is {text}, theirs 50" in out) == (0, True), out
    code, out, _ = compare("--against", "simie-table1", "--loosely", "--format", "csv")
    assert (code, {row["lam"] for row in table(out)}) == (0, {text})
