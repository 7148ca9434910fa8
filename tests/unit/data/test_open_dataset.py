"""Choosing records, and every message a user can get on the way."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from raysweep.config.schema import DataSpec
from raysweep.data import DATASETS, open_dataset, resolve
from raysweep.data.zsre import Zsre
from raysweep.errors import DataError, NameUnknownError, ProblemsError
from raysweep.records import ProbeKind
from raysweep.workspace import Workspace, package_share

SAMPLES = package_share() / "data"
CF = {
    "prompt": "The mother tongue of Ada Kern is",
    "target_new": "Valdish",
    "subject": "Ada Kern",
    "locality_prompt": "Bruno Vell speaks",
    "locality_ground_truth": "Osterran",
}


def spec(**values: Any) -> DataSpec:
    return DataSpec.model_validate({"name": "zsre", "path": str(SAMPLES / "ZsRE" / "sample.json"), **values})


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path, share=tmp_path / "share")


def write(path: Path, rows: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(rows if isinstance(rows, str) else json.dumps(rows), encoding="utf-8")
    return str(path)


def test_zsre_row_becomes_a_record(workspace: Workspace) -> None:
    record = open_dataset(spec(), workspace)[1]
    assert (record.id, record.subject, record.target) == ("zsre/000001", "Fennick Lantern", "Torrend Works")
    assert record.template == "What company makes the {}?"
    kinds = [(p.kind, p.against) for p in record.probes]
    assert kinds == [
        (ProbeKind.EFFICACY, "target"),
        (ProbeKind.PARAPHRASE, "target"),
        (ProbeKind.LOCALITY, "base"),
        (ProbeKind.PORTABILITY, "target"),
    ]
    assert record.probes[2].prompt.startswith("nq question: ")
    assert record.probes[3].target == "Lowmere"


def test_empty_portability_is_left_out_and_targets_keep_their_space(workspace: Workspace) -> None:
    records = open_dataset(spec(), workspace)
    assert [len(r.probes) for r in records] == [4, 4, 4, 3, 4, 3]
    assert records[4].target == " Juna Eskerly"


def test_original_counterfact_rows_become_records(workspace: Workspace) -> None:
    path = str(SAMPLES / "counterfact" / "sample.original.json")
    record = open_dataset(DataSpec(name="counterfact", path=path), workspace)[0]
    assert record.prompt == "The mother tongue of Ilva Torrend is"
    assert (record.target, record.template) == ("Osterran", "The mother tongue of {} is")
    found = [(p.kind.value, p.name, p.target) for p in record.probes]
    assert found == [
        ("efficacy", "", "Osterran"),
        *(("paraphrase", number, "Osterran") for number in "01"),
        *(("locality", number, "Valdish") for number in "012"),
    ]


def test_hallucination_has_no_paraphrase(workspace: Workspace) -> None:
    path = str(SAMPLES / "hallucination" / "sample.json")
    records = open_dataset(DataSpec(name="hallucination", path=path), workspace)
    assert {p.kind for r in records for p in r.probes} == {ProbeKind.EFFICACY, ProbeKind.LOCALITY}


def test_skip_and_size_choose_in_file_order(workspace: Workspace) -> None:
    assert [r.id for r in open_dataset(spec(skip=2, size=3), workspace)] == [f"zsre/{i:06d}" for i in (2, 3, 4)]
    assert len(open_dataset(spec(skip=2), workspace)) == 4


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"size": 7}, "data.size = 7 after data.skip = 0"),
        ({"skip": 4, "size": 3}, "data.skip = 4"),
        ({"skip": 6}, "data.skip = 6"),
    ],
)
def test_too_few_records_are_refused(values: dict[str, int], said: str, workspace: Workspace) -> None:
    for function in (open_dataset, resolve):
        with pytest.raises(DataError, match="holds 6 records, too few") as caught:
            function(spec(**values), workspace)
        assert said in caught.value.message


def test_resolve_fills_in_digest_and_size(workspace: Workspace) -> None:
    found = resolve(spec(skip=1), workspace)
    assert found.size == 5
    assert found.digest == Zsre().digest(Path(found.path))
    assert len(open_dataset(found, workspace)) == 5


def test_a_file_changed_since_the_plan_is_refused(tmp_path: Path, workspace: Workspace) -> None:
    path = tmp_path / "rows.json"
    shutil.copy(SAMPLES / "ZsRE" / "sample.json", path)
    planned = resolve(spec(path="rows.json"), workspace)
    path.write_text(path.read_text(encoding="utf-8").replace("Marnby", "Quessel"), encoding="utf-8")
    with pytest.raises(DataError, match="the plan saw"):
        open_dataset(planned, workspace)


def test_data_are_found_by_name_and_by_folder(tmp_path: Path, workspace: Workspace) -> None:
    place = tmp_path / "data" / "ZsRE" / "zsre_mend_edit.json"
    place.parent.mkdir(parents=True)
    shutil.copy(SAMPLES / "ZsRE" / "sample.json", place)
    dataset = Zsre()
    assert dataset.locate(DataSpec(name="zsre"), workspace) == place
    assert dataset.locate(DataSpec(name="zsre", path="data/ZsRE"), workspace) == place
    place.rename(place.with_name("other.json"))
    assert dataset.locate(DataSpec(name="zsre", path="data/ZsRE"), workspace).name == "other.json"
    write(place.with_name("more.jsonl"), "")
    with pytest.raises(DataError, match=r"is a folder with more.jsonl, other.json"):
        dataset.locate(DataSpec(name="zsre", path="data/ZsRE"), workspace)


def test_missing_data_say_where_they_belong(workspace: Workspace) -> None:
    with pytest.raises(DataError, match="dataset 'zsre' was not found") as caught:
        open_dataset(DataSpec(name="zsre"), workspace)
    assert "data/ZsRE/zsre_mend_edit.json" in caught.value.hint
    with pytest.raises(DataError, match=r"data.path '.*nowhere.json' does not exist"):
        open_dataset(spec(path="nowhere.json"), workspace)


def test_unknown_dataset_suggests_the_right_name(workspace: Workspace) -> None:
    with pytest.raises(NameUnknownError, match="unknown dataset 'counterfacts'") as caught:
        open_dataset(DataSpec(name="counterfacts"), workspace)
    assert "did you mean: counterfact?" in caught.value.hint


def test_the_world_takes_no_path(workspace: Workspace) -> None:
    with pytest.raises(DataError, match="dataset 'world' has no file"):
        open_dataset(DataSpec(name="world", path="x.json"), workspace)
    assert len(open_dataset(DataSpec(name="world", size=3), workspace)) == 3


def test_all_problems_of_a_file_are_reported_at_once(tmp_path: Path, workspace: Workspace) -> None:
    rows: list[Any] = [
        CF,
        {**CF, "subject": "Bruno Vell"},
        {**CF, "target_new": "  "},
        {**CF, "subject": "Kern {}", "prompt": "The tongue of Kern {} is"},
        {**CF, "prompt": "Ada Kern and Ada Kern speak"},
        {**CF, "locality_ground_truth": ""},
        {k: v for k, v in CF.items() if k != "subject"},
        {**CF, "target_new": 7},
        ["no object"],
        {
            "requested_rewrite": {
                "prompt": "no slot",
                "subject": "a",
                "target_new": {"str": "b"},
                "target_true": {"str": "c"},
            }
        },
        {"requested_rewrite": {"prompt": "{} is", "subject": "a", "target_new": {"str": "b"}}},
    ]
    path = write(tmp_path / "bad.json", rows)
    with pytest.raises(ProblemsError) as caught:
        open_dataset(DataSpec(name="counterfact", path=path), workspace)
    problems = caught.value.problems
    assert [p.file for p in problems] == [f"{path}:{i}" for i in (2, 5, 7, 8, 9, 10)]
    said = [p.message for p in problems]
    assert "target is empty" in said[0]
    assert "the locality probe has 'locality_prompt' but no 'locality_ground_truth'" in said[1]
    assert "field 'target_new' must be text, got int" in said[2]
    assert "must be an object" in said[3]
    assert "needs exactly one '{}'" in said[4]
    assert "field 'requested_rewrite.target_true.str' is missing" in said[5]
    assert str(caught.value).endswith("6 errors; nothing was run.")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.json", '[{"src": ', r"a.json:1:10: not JSON"),
        ("a.jsonl", '{"src": "x"}\n\n{"src"', r"a.jsonl:3:7: not JSON"),
        ("a.json", "{}", "a JSON array is needed, got dict"),
        ("a.json", "[]", "holds 0 records"),
        (
            "a.json",
            json.dumps([CF]),
            r"no row has the fields of dataset 'zsre': wanted .*'alt'.* found .*'locality_prompt'",
        ),
        ("a.json", "[1]", "found int"),
    ],
)
def test_unusable_files_are_refused(name: str, text: str, said: str, tmp_path: Path, workspace: Workspace) -> None:
    path = write(tmp_path / name, text)
    with pytest.raises(DataError, match=said):
        open_dataset(DataSpec(name="zsre", path=path), workspace)


def test_bytes_that_are_not_text_are_refused(tmp_path: Path, workspace: Workspace) -> None:
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read"):
        open_dataset(spec(path="a.json"), workspace)


def test_jsonl_equals_json_and_line_separators_stay_inside_a_record(tmp_path: Path, workspace: Workspace) -> None:
    row = {**CF, "locality_prompt": "one\u2028two"}
    array = write(tmp_path / "a.json", [row, CF])
    lines = write(tmp_path / "a.jsonl", "\n".join(json.dumps(r, ensure_ascii=False) for r in (row, CF)) + "\n")
    first = open_dataset(DataSpec(name="counterfact", path=array), workspace)
    assert first == open_dataset(DataSpec(name="counterfact", path=lines), workspace)


def test_warnings_are_counted_and_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [CF, {**CF, "target_new": " Osterran"}, {**CF, "prompt": CF["prompt"] + " "}]
    path = Path(write(tmp_path / "w.json", rows))
    with caplog.at_level(logging.INFO, logger="raysweep.data"):
        reading = DATASETS.get("counterfact")().read(path)
    assert len(reading.records) == 3
    assert [w.rpartition(": ")[2] for w in reading.warnings] == [
        "target begins with a space",
        "prompt ends with a space",
        "same prompt as counterfact/000000, another target",
    ]
    assert [r.getMessage().count("3 warnings") for r in caplog.records] == [1]


def test_counts_and_digests_follow_the_file(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "w.json", [CF]))
    dataset = DATASETS.get("counterfact")()
    before = dataset.count(path), dataset.digest(path)
    write(path, [CF, CF])
    assert dataset.count(path) == 2
    assert dataset.digest(path) != before[1]


def facts(*numbers: int) -> list[dict[str, str]]:
    changes = [
        {"subject": f"Ada {n}", "prompt": f"Ada {n} speaks", "locality_prompt": f"Bruno {n} says"} for n in numbers
    ]
    return [{**CF, **c} for c in changes]


def test_unrelated_text_comes_from_the_train_file_beside_it(workspace: Workspace, tmp_path: Path) -> None:
    """Record i gets the locality text of record i of the train file, which begins again when it is over (§1.4)."""
    values = {"name": "counterfact", "path": write(tmp_path / "x-edit.json", facts(0, 1, 2))}
    before = resolve(spec(**values), workspace).digest
    write(tmp_path / "x-train.json", [*facts(10), "no record", *facts(11)])
    records = open_dataset(spec(**values), workspace)
    assert [r.unrelated for r in records] == [f"Bruno {n} says Osterran" for n in (10, 11, 10)]
    assert resolve(spec(**values), workspace).digest != before


def test_without_a_train_file_unrelated_text_is_another_records_probe(workspace: Workspace, tmp_path: Path) -> None:
    """The record half the file away, or the next one whose text is not a probe of the record itself."""
    path = write(tmp_path / "x-edit.json", facts(0, 1, 2, 3))
    records = open_dataset(spec(name="counterfact", path=path), workspace)
    assert [r.unrelated for r in records] == [f"Bruno {n} says Osterran" for n in (2, 3, 0, 1)]
    same = [{**row, "locality_prompt": "Bruno says"} for row in facts(0, 1, 2)] + facts(3)
    records = open_dataset(spec(name="counterfact", path=write(tmp_path / "y-edit.json", same)), workspace)
    assert [r.unrelated for r in records] == ["Bruno 3 says Osterran"] * 3 + ["Bruno says Osterran"]
    (alone,) = open_dataset(spec(name="counterfact", path=write(tmp_path / "z.json", facts(0))), workspace)
    assert alone.unrelated == ""


def test_the_worlds_unrelated_text_is_about_another_subject(workspace: Workspace) -> None:
    for record in open_dataset(DataSpec(name="world"), workspace):
        assert record.unrelated
        assert record.subject not in record.unrelated
        assert all(f"{p.prompt} {p.target}" != record.unrelated for p in record.probes)
