"""Rows in use must hold, the others may be anything; what a row lacks is absent, not zero; foreign layouts have a name."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from raysweep.cli.main import main
from raysweep.config.plan import plan
from raysweep.config.planned_trial import Plan
from raysweep.config.schema import DataSpec
from raysweep.config.sweep import parse_search_space
from raysweep.data import open_dataset, resolve
from raysweep.data.files import train_file
from raysweep.data.zsre import Zsre
from raysweep.errors import DataError, ProblemsError, RecordError
from raysweep.records import EditRecord, ProbeKind, length_error, subject_error
from raysweep.workspace import Workspace, package_share

GOOD = {
    "subject": "Mora Quay",
    "src": "Where is Mora Quay?",
    "rephrase": "In which town is Mora Quay?",
    "alt": "Dellwick",
    "loc": "nq question: who wrote the blue songs",
    "loc_ans": "Ann Poe",
}
TWICE = {**GOOD, "subject": "York", "src": "Is New York larger than York?"}
BARE = {"src": "Who sails?", "alt": "Bo"}
EMPTY = {**GOOD, "alt": " "}


def named(number: int) -> dict[str, str]:
    return {key: value.replace("Mora Quay", f"Mora Quay {number}") for key, value in GOOD.items()}


def write(folder: Path, rows: Any, name: str = "rows.json") -> str:
    (folder / name).write_text(rows if isinstance(rows, str) else json.dumps(rows), encoding="utf-8")
    return str(folder / name)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path, share=package_share())


def planned(workspace: Workspace, rows: Any, arms: dict[str, Any], **data: Any) -> Plan:
    path = write(workspace.root, rows)
    tree = {
        "sweep": "s",
        "base": {"model": "embedded", "data": {"name": "zsre", "path": path, **data}},
        "arms": {name: {"editor": editor} for name, editor in arms.items()},
    }
    return plan(parse_search_space(tree, file="s.yaml"), workspace)


def complaints(workspace: Workspace, rows: Any, arms: dict[str, Any], **data: Any) -> list[str]:
    with pytest.raises(ProblemsError) as caught:
        planned(workspace, rows, arms, **data)
    return [str(p) for p in caught.value.problems]


def test_a_row_that_is_not_used_may_be_anything(workspace: Workspace) -> None:
    """One odd record refused the whole file (case 9)."""
    rows = [named(0), named(1), EMPTY, 7, TWICE, {"src": 3}]
    found = planned(workspace, rows, {"rome": "rome"}, size=2)
    assert found.trials[0].trial.data.size == 2
    records = open_dataset(DataSpec(name="zsre", path=str(workspace.root / "rows.json"), size=2), workspace)
    assert [r.id for r in records] == ["zsre/000000", "zsre/000001"]
    assert len(complaints(workspace, rows, {"rome": "rome"})) == 4


def test_each_editor_refuses_what_it_cannot_write_and_no_more(workspace: Workspace) -> None:
    rows = [named(0), TWICE, BARE, {**GOOD, "subject": "mora quay"}, {**GOOD, "src": "What is f{x} of Mora Quay?"}]
    for name in ("ft", "grace", "lora", "null"):
        editor: Any = {"name": name, "layer": 1} if name == "grace" else name
        assert planned(workspace, rows, {name: editor}).trials[0].trial.data.size == 5
    for name in ("rome", "memit", "alphaedit"):
        found = complaints(workspace, rows, {name: name})
        assert [one.partition("rows.json:")[2][0] for one in found] == ["1", "2", "3", "4"], found
        assert "occurs 2 times" in found[0]
        assert "there is no subject" in found[1]
        assert "it is there with other capitals" in found[2]
        assert "contains a brace" in found[3]


def test_wise_needs_a_text_that_must_stay(workspace: Workspace) -> None:
    """The trial failed at its first edit; now the plan tells."""
    wise = {"name": "wise", "layer": 1}
    rows = [{**BARE, "src": f"Who sails {i}?"} for i in range(3)]
    found = complaints(workspace, rows, {"wise": wise})
    assert len(found) == 3
    assert "wise cannot write zsre/000000: no unrelated text to keep out of the side memory" in found[0]
    assert planned(workspace, rows, {"wise": {**wise, "unrelated": "The sky is blue"}}).trials
    assert planned(workspace, [named(0), named(1) | {"loc": "another"}], {"wise": wise}).trials


def test_mend_needs_a_fold_with_something_that_must_stay(workspace: Workspace) -> None:
    mend = {"name": "mend", "layers": [1], "train": {"data": {"name": "zsre", "skip": 0, "size": 0}, "steps": 1}}
    rows = [{**BARE, "src": f"Who sails {i}?"} for i in range(3)]
    found = complaints(workspace, rows, {"mend": mend})
    assert any("3 records, 0 of them with a locality probe, are too few to train on" in one for one in found), found


def test_a_record_longer_than_the_model_s_positions_is_named(workspace: Workspace) -> None:
    """It was an IndexError without the record, or silence where positions are rotary."""
    long = {**named(1), "loc": "word " * 700}
    found = complaints(workspace, [named(0), long], {"ft": "ft"})
    assert len(found) == 1
    assert "rows.json:1  zsre/000001: its locality probe is" in found[0]
    assert "the model has 512 positions" in found[0]
    assert planned(workspace, [named(0), long], {"ft": "ft"}, size=1).trials


def test_tokens_are_counted_where_bytes_do_not_tell() -> None:
    record = EditRecord(id="r", subject="", prompt="abc", target="de", probes=())
    assert length_error(record, 0, None) is None
    assert length_error(record, 100, None) is None
    assert length_error(record, 6, len) is None
    assert length_error(record, 5, len) is not None
    assert length_error(record, 6, len, before=1) is not None
    assert length_error(record, 5, None) is None, "nobody can count here; the run will"


class TestSkip:
    ROWS = (named(0), EMPTY, TWICE, named(3), BARE, named(5), named(6))

    def test_the_editor_s_rows_are_counted_and_noted(self, workspace: Workspace) -> None:
        found = planned(workspace, list(self.ROWS), {"ft": "ft", "rome": "rome"}, size=3, invalid="skip")
        by_arm = {t.arm: t.trial.data for t in found.trials}
        assert by_arm["ft"].left_out == (1,)
        assert by_arm["rome"].left_out == (1, 2, 4)
        for arm, ids in {"ft": (0, 2, 3), "rome": (0, 3, 5)}.items():
            records = open_dataset(by_arm[arm], workspace)
            assert [int(r.id[-6:]) for r in records] == list(ids)
        assert any("arm 'rome' leaves out 3 rows of its data" in note and "rows.json:1" in note for note in found.notes)

    def test_size_and_skip_count_what_is_left(self, workspace: Workspace) -> None:
        (trial,) = planned(workspace, list(self.ROWS), {"rome": "rome"}, skip=1, invalid="skip").trials
        assert (trial.trial.data.size, trial.trial.data.left_out) == (3, (1, 2, 4))
        records = open_dataset(trial.trial.data, workspace)
        assert [int(r.id[-6:]) for r in records] == [3, 5, 6]
        found = complaints(workspace, list(self.ROWS), {"rome": "rome"}, size=5, invalid="skip")
        assert any("leaves 4 of the 4 records that arm 'rome' can use" in one for one in found)

    def test_it_is_in_the_key_only_where_it_is_used(self, workspace: Workspace) -> None:
        rows = [named(0), named(1)]
        (refuse,) = planned(workspace, rows, {"ft": "ft"}).trials
        (skip,) = planned(workspace, rows, {"ft": "ft"}, invalid="skip").trials
        assert refuse.key != skip.key
        assert set(refuse.trial.identity()["data"]) == {"name", "size", "skip", "order", "digest"}, "as it always was"
        assert skip.trial.identity()["data"]["left_out"] == []

    def test_without_a_plan_the_rows_no_editor_could_write_are_left_out(self, workspace: Workspace) -> None:
        spec = DataSpec(name="zsre", path=write(workspace.root, list(self.ROWS)), invalid="skip")
        found = resolve(spec, workspace)
        assert (found.size, found.left_out) == (6, (1,))
        assert len(open_dataset(found, workspace)) == len(open_dataset(spec, workspace)) == 6
        with pytest.raises(DataError, match=r"holds 6 records that can be used, too few for data\.size = 7"):
            resolve(spec.model_copy(update={"size": 7}), workspace)


def test_many_bad_rows_are_listed_in_part(workspace: Workspace) -> None:
    found = complaints(workspace, [EMPTY] * 50, {"ft": "ft"})
    assert len(found) == 21
    assert any("30 more rows cannot be used" in one for one in found)


@pytest.mark.parametrize(
    ("dataset", "row", "kinds"),
    [
        ("zsre", BARE, {ProbeKind.EFFICACY}),
        ("zsre", {**BARE, "rephrase": " ", "loc": None, "loc_ans": ""}, {ProbeKind.EFFICACY}),
        ("zsre", {**BARE, "loc": "q", "loc_ans": "a"}, {ProbeKind.EFFICACY, ProbeKind.LOCALITY}),
        ("counterfact", {"prompt": "P", "target_new": "T"}, {ProbeKind.EFFICACY}),
        ("hallucination", {"prompt": "P", "target_new": "T"}, {ProbeKind.EFFICACY}),
    ],
)
def test_what_a_row_lacks_is_absent(
    dataset: str, row: dict[str, Any], kinds: set[ProbeKind], workspace: Workspace
) -> None:
    """Questions and answers without a subject could not be read at all (case 10)."""
    (record,) = open_dataset(DataSpec(name=dataset, path=write(workspace.root, [row])), workspace)
    assert {p.kind for p in record.probes} == kinds
    assert record.subject == ""
    with pytest.raises(RecordError, match="there is no subject"):
        _ = record.template


KNOWEDIT = {
    "subject": "Mora Quay",
    "prompt": "The town of Mora Quay is",
    "target_new": "Dellwick",
    "locality": {"Relation_Specificity": [{"prompt": "Mora Quay was built in", "ground_truth": [[]]}]},
}


@pytest.mark.parametrize(
    ("row", "name"),
    [
        (KNOWEDIT, "KnowEdit"),
        ({**KNOWEDIT, "locality": "text", "portability": {"Reasoning": []}}, "KnowEdit"),
        ({"tag": "x", "subject": "M", "update": "Where?", "ans": "D", "personas": "…", "loc": "q"}, "WikiBigEdit"),
        ({"requested_rewrite": [{"prompt": "{}"}], "questions": ["a"]}, "MQuAKE"),
        ({"example_type": "recent", "edit": {"prompt": "x"}}, "RippleEdits"),
        ({"input": "Who?", "output": [{"answer": "x"}], "id": "1"}, "the original zsRE"),
    ],
)
@pytest.mark.parametrize("dataset", ["zsre", "counterfact", "hallucination"])
def test_a_layout_that_is_not_read_is_called_by_its_name(
    dataset: str, row: dict[str, Any], name: str, workspace: Workspace
) -> None:
    """ "Is data.name right?" sent people looking in the wrong place (cases 11 and 13)."""
    with pytest.raises(DataError, match=f"these are rows of {name}") as caught:
        open_dataset(DataSpec(name=dataset, path=write(workspace.root, [row])), workspace)
    assert caught.value.hint


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.txt"])
@pytest.mark.parametrize("form", ["array", "lines", "one line"])
def test_the_content_tells_lines_from_an_array(name: str, form: str, workspace: Workspace) -> None:
    """JSON lines are often called .json (case 20)."""
    rows = [named(0)] if form == "one line" else [named(0), named(1)]
    text = json.dumps(rows, indent=1) if form == "array" else "\n".join(map(json.dumps, rows)) + "\n"
    found = open_dataset(DataSpec(name="zsre", path=write(workspace.root, "\ufeff" + text, name)), workspace)
    assert len(found) == len(rows)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty"),
        (b" \n ", "the file is empty"),
        (json.dumps([GOOD]).encode("utf-16"), "UTF-16 text"),
        ('["\xe9"]'.encode("latin-1"), "rows.json:1: cannot be read: byte 2 is not UTF-8"),
        (b"\x1f\x8b\x08", "a gzip archive"),
        (b"PAR1....", "a Parquet file"),
        (b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer"),
        (b'{"data": [1], "x": 2\n}', "a JSON array is needed, got dict\n    the array under 'data'"),
        (b"[" * 100_000, "nested too deep"),
        (b"[" + b"9" * 5000 + b"]", "not JSON"),
    ],
)
def test_a_file_of_another_kind_is_told_so(content: bytes, said: str, workspace: Workspace) -> None:
    (workspace.root / "rows.json").write_bytes(content)
    with pytest.raises(DataError) as caught:
        open_dataset(DataSpec(name="zsre", path="rows.json"), workspace)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"src": "a\\ud800", "alt": "b"}', "field 'src' holds U+D800, half of a character"),
        ('{"src": "a", "alt": "b", "alt": "c"}', "the row has the key 'alt' twice"),
        ('{"src": "a", "alt": NaN}', "field 'alt' must be text, got float"),
        ('{"src": "a", "alt": "b", "loc": "q"}', "has 'loc' but no 'loc_ans'"),
        ('{"src": "a", "alt": "b", "loc_ans": "q"}', "has 'loc_ans' but no 'loc'"),
        (
            '{"src": "a", "alt": "b", "portability": {"New Question": 3, "New Answer": "x"}}',
            "'portability.New Question'",
        ),
    ],
)
def test_a_field_that_cannot_be_used_is_named(row: str, said: str, workspace: Workspace) -> None:
    path = write(workspace.root, f"[{json.dumps(GOOD)}, {row}]")
    with pytest.raises(ProblemsError) as caught:
        open_dataset(DataSpec(name="zsre", path=path), workspace)
    (problem,) = caught.value.problems
    assert (problem.file, said in problem.message) == (f"{path}:1", True), problem


def test_a_subject_in_another_unicode_form_is_told_so() -> None:
    nfc, nfd = (unicodedata.normalize(form, "Café Élan") for form in ("NFC", "NFD"))
    error = subject_error(EditRecord(id="r", subject=nfd, prompt=f"Where is {nfc}?", target="x", probes=()))
    assert error is not None
    assert "different Unicode forms" in error.hint


@pytest.mark.parametrize(
    ("edit", "train"),
    [
        ("knowedit_zsre_edit.json", "knowedit_zsre_train.json"),
        ("zsre_mend_edit.json", "zsre_mend_train.json"),
        ("edit-edited-edit.jsonl", "edit-edited-train.jsonl"),
    ],
)
def test_only_the_last_edit_of_a_name_says_which_file_it_is(edit: str, train: str, tmp_path: Path) -> None:
    """Every "edit" was replaced, so the train file was not found, without a word (case 23)."""
    (tmp_path / train).write_text("[]")
    assert train_file(tmp_path / edit) == tmp_path / train
    assert train_file(tmp_path / "rows.json") is None


def test_odd_rows_lend_no_unrelated_text_and_move_no_other_s(workspace: Workspace) -> None:
    rows = [named(i) | {"loc": f"question {i}"} for i in range(4)]
    before = Zsre().read(Path(write(workspace.root, rows, "a.json"))).records
    rows[1] = {"src": 3}
    after = Zsre().read(Path(write(workspace.root, rows, "b.json"))).records
    assert [r.unrelated for r in after] == [before[0].unrelated, before[2].unrelated, "question 2 Ann Poe"]


def test_data_check_lists_all(workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(workspace.root)
    path = write(workspace.root, [named(0), EMPTY, TWICE, BARE])
    assert main(["data", "check", "zsre", "--path", path]) == 2
    err = capsys.readouterr().err
    assert "rows.json:1  (zsre/000001): target is empty" in err
    assert "rows.json:2  (zsre/000002): subject 'York' occurs 2 times" in err
    assert "only editors that look it up need it" in err
    assert "2 errors" in err
    assert main(["data", "check", "zsre", "--path", write(workspace.root, [named(0), BARE])]) == 0
    assert "1 of the records name no subject" in capsys.readouterr().out
