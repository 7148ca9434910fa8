"""What the rows of published sets become: the traps of each layout, one by one."""

from __future__ import annotations

import json
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from raysweep.cli.main import main
from raysweep.config.schema import DataSpec
from raysweep.data import DATASETS, open_dataset
from raysweep.data.counterfact import Counterfact
from raysweep.data.csvrows import literal_texts, read_csv
from raysweep.data.jsonrows import read_table
from raysweep.data.manifests import published_sets
from raysweep.data.rippleedits import RippleEdits
from raysweep.errors import DataError, ProblemsError, RecordError
from raysweep.hashing import digest
from raysweep.records import EditRecord, Fact, Probe, ProbeKind, check_record, subject_error
from raysweep.workspace import Workspace, package_share
from tests.contracts.test_datasets import sample_path

PORT, LOC, PARA = ProbeKind.PORTABILITY, ProbeKind.LOCALITY, ProbeKind.PARAPHRASE


def records(name: str, sample: str) -> list[EditRecord]:
    return list(DATASETS.get(name)().load(sample_path(sample)))


def probes(record: EditRecord, kind: ProbeKind) -> dict[str, Probe]:
    return {p.name: p for p in record.probes if p.kind is kind}


def test_spaces_around_a_target_stay_and_null_fields_are_absent() -> None:
    first, second, third = records("qaedit", "qaedit.json")
    assert (first.target, second.target) == (" Ada Kern", "1948 ")
    assert [p.prompt for p in probes(first, LOC).values()] == ["who sings harbour lights"], "the first of several"
    assert not probes(third, PARA)
    assert not probes(third, LOC)
    assert subject_error(third) is not None, "a subject that is not in the prompt is kept, and refused by who needs it"


def test_cells_hold_line_breaks_and_a_mark_before_the_header_is_no_column() -> None:
    first, second, third = records("hallueditbench", "hallueditbench")
    assert probes(first, PARA)[""].prompt == "From what\nmaterial is Lyra Bridge, the old one, made?"
    follows = {name: p.target for name, p in probes(first, PORT).items()}
    assert follows == {f"{n}hop": f"step {n}, or so" for n in range(2, 7)} | {
        "yes": "Yes",
        "no": "No",
        "reversed": "Lyra Bridge",
    }
    assert probes(first, PORT)["reversed"].prompt == 'What is made from "marble"?'
    assert probes(first, LOC)[""].against == "base"
    assert not probes(second, LOC), "no question, no probe"
    assert sorted(probes(second, PORT)) == ["2hop", "no", "reversed", "yes"]
    assert third.prompt == "What is the river of Marnby?", "the second file of the folder"


def test_a_folder_of_files_has_one_digest_and_problems_in_the_file_they_are_in(tmp_path: Path) -> None:
    dataset = DATASETS.get("hallueditbench")()
    for name, lines in (("a", "question,object\nWho?,Bo\n"), ("b", "question,object\nWhere?,\nWhen?,1802\n")):
        (tmp_path / f"{name}.csv").write_text(lines)
    before = dataset.digest(tmp_path)
    reading = dataset.read(tmp_path)
    assert [r.id for r in reading.records] == ["hallueditbench/000000", "hallueditbench/000002"]
    assert [p.file for p in reading.problems] == [f"{tmp_path / 'b.csv'}:0"]
    (tmp_path / "b.csv").rename(tmp_path / "c.csv")
    assert dataset.digest(tmp_path) != before, "the names order the rows"
    (tmp_path / "a.csv").unlink()
    assert dataset.digest(tmp_path) not in ("", before)
    assert dataset.count(tmp_path) == 2


def test_a_set_for_several_models_is_not_guessed(tmp_path: Path) -> None:
    for place in ("llama_2_7b_chat_hf", "meta_llama_3_8b_instruct"):
        folder = tmp_path / "data" / "HalluEditBench" / place
        folder.mkdir(parents=True)
        (folder / "a.csv").write_text("question,object\nWho?,Bo\n")
        (folder / "b.csv").write_text("question,object\nWho?,Bo\n")
        if place.startswith("llama"):
            assert len(open_dataset(DataSpec(name="hallueditbench"), Workspace(tmp_path))) == 2
    with pytest.raises(DataError, match="is here for several models") as caught:
        open_dataset(DataSpec(name="hallueditbench"), Workspace(tmp_path))
    assert "data.path: data/HalluEditBench/llama_2_7b_chat_hf" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the file is empty|no header"),
        ("a,b,a\n1,2,3\n", "the column 'a' twice"),
        ('a,b\n"open,2\n', r":2: not CSV|:3: not CSV"),
        ('a,b\n"x"y,2\n', "not CSV"),
        ("a,b\n" + "x" * 200_000 + ",1\n", "field larger than field limit"),
    ],
)
def test_a_damaged_table_says_where(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(DataError, match=said):
        read_csv(tmp_path / "x.csv")


def test_a_row_with_too_many_cells_is_refused_and_one_with_too_few_lacks_the_last(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("question,object,yes_question\nWho, then?,Bo,Is it?,Bo?\nWho?,Bo\n\n")
    reading = DATASETS.get("hallueditbench")().read(tmp_path / "x.csv")
    assert [r.prompt for r in reading.records] == ["Who?"]
    assert [p.file for p in reading.problems] == [f"{tmp_path / 'x.csv'}:0"]
    assert "got list" in reading.problems[0].message


@pytest.mark.parametrize("text", ["__import__('os')", "['a', 1]", "'a'", "[" * 5000, "['a'" + ",'a'" * 4000 + "]", "["])
def test_a_list_literal_is_bounded_and_nothing_is_run(text: str) -> None:
    with pytest.raises(RecordError, match="choices"):
        literal_texts(text, "choices")


def test_an_object_that_is_no_choice_is_worth_a_warning() -> None:
    reading = DATASETS.get("hallueditbench")().read(sample_path("hallueditbench"))
    assert reading.warnings == (), "capitals do not count"
    row = {"question": "Who?", "object": "Bo", "multiple_choices": "['Al', 'Cy']"}
    assert list(DATASETS.get("hallueditbench")().remarks(row)) == [
        "the object 'Bo' is not among the choices ['Al', 'Cy']"
    ]


def test_a_case_holds_its_edits_apart_and_any_question_counts() -> None:
    two, one = records("mquake", "mquake.json")
    assert [(e.subject, e.prompt, e.target) for e in two.edits] == [
        ("Lowmere Club", "Lowmere Club is associated with the sport of", "curling"),
        ("curling", "curling was created in the country of", "Osterra"),
    ]
    assert all(subject_error(edit) is None for edit in two.edits)
    assert one.edits == (one,)
    follows = probes(two, PORT)["multi_hop"]
    asked = [(follows.prompt, follows.target), *follows.alternatives]
    assert len(asked) == len(set(asked)) == 6, (
        "three questions, the answer and its alias; an alias that repeats it is none"
    )
    assert {answer for _, answer in asked} == {"Quessel", "City of Quessel"}


def test_an_empty_fact_among_several_is_found() -> None:
    record = records("mquake", "mquake.json")[0]
    with pytest.raises(RecordError, match="target is empty"):
        check_record(replace(record, further=(Fact(subject="x", prompt="y", target=" "),)))


def test_null_and_nan_are_absent() -> None:
    full, null, nan = records("wikibigedit", "wikibigedit.json")
    assert sorted(probes(full, PORT)) == ["mhop", "personas"]
    assert probes(full, PORT)["personas"].target == full.target
    assert not probes(null, PORT)
    assert not probes(null, LOC)
    assert subject_error(null) is not None, "'Torrend, Ilva' is not in the prompt as it is spelled"
    assert sorted(probes(nan, PORT)) == ["personas_formal"]


def test_answers_in_lists_of_lists_become_a_target_and_alternatives() -> None:
    first, second = records("knowedit", "knowedit.json")
    follows = probes(first, PORT)
    assert sorted(follows) == ["Logical_Generalization/0", "Reasoning/0", "Subject_Aliasing/0"], "no answer, no probe"
    alive = follows["Logical_Generalization/0"]
    assert (alive.target, alive.alternatives) == ("no", ((alive.prompt, "incorrect"), (alive.prompt, "false")))
    stays = probes(first, LOC)
    assert {name: p.target for name, p in stays.items()} == {
        "Relation_Specificity/0": "Al Marn",
        "Forgetfulness/0": "Dell",
    }
    assert not any(p.alternatives for p in stays.values())
    assert probes(second, PARA)[""].prompt == "What family are Epasp?"
    (bio,) = records("knowedit", "knowedit.wikibio.json")
    assert (bio.subject, bio.target) == ("ilva torrend", "She built the Lyra Bridge."), "the other spelling of the keys"


def test_a_sentence_is_cut_into_prompt_subject_and_target() -> None:
    popular, recent = records("rippleedits", "rippleedits.json")
    assert (popular.subject, popular.target) == ("Bo of Dell", "Osterra")
    assert popular.prompt == "The name of the country of citizenship of Bo of Dell is"
    assert (recent.subject, recent.target) == ("Ann Poe", "calm")
    assert sorted(probes(recent, LOC)) == ["Relation_Specificity/0"], "the README's spelling"


@pytest.mark.parametrize(
    ("sentence", "relation", "before", "wanted"),
    [
        ("The place of birth of Bo of Dell is Marnby.", "PLACE_OF_BIRTH", "", ("Bo of Dell", "Marnby")),
        ("The names of the siblings of Bo are Al.", "SIBLING", "", ("Bo", "Al")),
        ("The name of the capital city of Osterra is Lind.", "CAPITAL", "", ("Osterra", "Lind")),
        ("The gender of Bo is male.", "SEX_OR_GENDER", "", ("Bo", "male")),
        ("The number of children Bo has is 3.", "NUMBER_OF_CHILDREN", "", ("Bo", "3")),
        ("The name of the award Bo won is X Prize.", "AWARD_RECEIVED", "", ("Bo", "X Prize")),
        ("The name of the sports team which Bo is a member of is Dell F.C..", "T", "", ("Bo", "Dell F.C.")),
        ("Life is Long is followed by Wind.", "FOLLOWED_BY", "", ("Life is Long", "Wind")),
        ("Life is Long follows Wind.", "FOLLOWS", "", ("Life is Long", "Wind")),
        (
            "The name of the author of Ox is Love is All.",
            "AUTHOR",
            "The name of the author of Ox is Wim.",
            ("Ox", "Love is All"),
        ),
    ],
)
def test_other_phrases(sentence: str, relation: str, before: str, wanted: tuple[str, str]) -> None:
    edit = {"prompt": sentence, "relation": relation} | ({"original_fact": {"prompt": before}} if before else {})
    record = RippleEdits().record({"edit": edit}, "x")
    assert (record.subject, record.target) == wanted
    assert subject_error(record) is None
    assert f"{record.prompt} {record.target}." == sentence


def test_a_sentence_without_a_place_to_cut_is_refused() -> None:
    with pytest.raises(RecordError, match="cannot be cut"):
        RippleEdits().record({"edit": {"prompt": "Bo was here."}}, "x")


def test_conditions_and_aliases_of_tests() -> None:
    record = records("rippleedits", "rippleedits.json")[0]
    follows = probes(record, PORT)
    alias = follows["Subject_Aliasing/0"]
    assert (alias.target, alias.alternatives) == ("Osterra", ((alias.prompt, "OS"),))
    assert [[answer for _, answer in pairs] for pairs in alias.known] == [["Valdene", "VD"], ["Irma Dell"]]
    either = follows["Compositionality_I/0"]
    assert {prompt for prompt, _ in either.alternatives} == {either.prompt, "Bo of Dell's country has the capital"}
    assert sorted(n for n in follows if n.startswith("Compositionality_II/")) == [
        "Compositionality_II/0.0",
        "Compositionality_II/0.1",
    ], "all of an AND are asked, one by one; a query without an answer is not"
    assert sorted(probes(record, LOC)) == ["Forgetfulness/0", "Relation_Specificity/0"]


def test_records_by_id_and_questions_with_yes_or_no(tmp_path: Path) -> None:
    first, second = records("uniedit", "uniedit.json")
    assert probes(first, PARA)["0"].prompt == "The designer of Lyra Bridge is"
    assert probes(second, PORT)["0"].prompt.endswith(" as that of the Dell Mill? The answer is (Yes/No):")
    for text, said in (('{"0": 1}', "records by id"), ('{"0": {}, "0": {}}', "'0' comes twice")):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(DataError, match=said):
            read_table(tmp_path / "x.json")


def test_the_third_target_has_a_dataset_of_its_own() -> None:
    path = sample_path("zsre_rledit.json")
    first, second = records("zsre_rledit", "zsre_rledit.json")
    assert first.target == "Ada M. Kern"
    assert probes(first, LOC)[""].prompt == "nq question: how many gates does the wall have?"
    assert not probes(second, LOC), "no question mark behind nothing"
    reading = DATASETS.get("zsre")().read(path)
    assert [r.target for r in reading.records] == ["Ada Kern", "Marnby"]
    assert len(reading.warnings) == 2
    assert "data.name: zsre_rledit" in reading.warnings[0]


def test_each_rewording_of_a_claim_is_asked() -> None:
    first, second = records("fever", "fever.json")
    assert sorted(probes(first, PARA)) == ["0", "1"]
    assert not probes(second, PARA)
    assert (first.subject, first.target) == ("", "REFUTES")


SPACE = """\
sweep: s
base:
  model: embedded
  data: {name: NAME, path: FILE, size: 2, order: file}
  protocol: {rounds: [0, 2]}
arms: {one: {editor: EDITOR}}
"""


@pytest.mark.parametrize("name", ["ultraeditbench", "fever"])
@pytest.mark.parametrize("editor", ["rome", "memit", "alphaedit", "ft"])
def test_without_subjects_editors_that_need_one_refuse_by_name(
    name: str, editor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    space = SPACE.replace("NAME", name).replace("FILE", str(sample_path(f"{name}.json"))).replace("EDITOR", editor)
    Path("s.yaml").write_text(space)
    code = main(["validate", "s.yaml"])
    said = capsys.readouterr()
    if editor == "ft":
        assert code == 0, said.err
    else:
        assert code != 0
        assert f"{editor} cannot write {name}/000000: there is no subject" in " ".join((said.out + said.err).split())


def test_a_known_layout_is_named_with_the_dataset_that_reads_it(tmp_path: Path) -> None:
    """Whatever dataset is asked for, the hint says which one the rows are for."""
    workspace = Workspace(tmp_path, share=package_share())
    for name, sample in (
        ("mquake", "mquake.json"),
        ("qaedit", "qaedit.json"),
        ("ultraeditbench", "ultraeditbench.json"),
    ):
        with pytest.raises((DataError, ProblemsError)) as caught:
            open_dataset(DataSpec(name="counterfact", path=str(sample_path(sample))), workspace)
        assert f"data.name: {name} reads it" in str(caught.value.hint)
    rows = json.loads(Path(str(sample_path("uniedit.json"))).read_text(encoding="utf-8"))
    (tmp_path / "rows.json").write_text(json.dumps(list(rows.values())))
    assert len(open_dataset(DataSpec(name="uniedit", path=str(tmp_path / "rows.json")), workspace)) == len(rows)


def test_what_is_fetched_is_what_is_looked_for() -> None:
    """Each set of the manifests has a dataset of its name, which finds the files where fetching puts them."""
    for name, published in published_sets().items():
        paths = [f"{published.folder}/{file.path}" for file in published.files if not file.extra]
        places = DATASETS.get(name).places
        assert any(fnmatchcase(p, path) or path.startswith(f"{p}/") for p in places for path in paths), (name, places)


def test_counterfact_says_what_was_true_in_both_of_its_formats() -> None:
    """For ``memit_compat``; it is in no hash, so records have the digest that they had."""
    flat = {"prompt": "Bo plays", "target_new": "chess", "ground_truth": "golf", "subject": "Bo"}
    rewrite = {"prompt": "{} plays", "subject": "Bo", "target_new": {"str": "chess"}, "target_true": {"str": "golf"}}
    for row in (flat, {"requested_rewrite": rewrite}):
        record = Counterfact().record(row, "c/0")
        assert record.target_true == "golf"
        assert digest(record) == digest(replace(record, target_true=""))
    assert Counterfact().record({k: v for k, v in flat.items() if k != "ground_truth"}, "c/0").target_true == ""
