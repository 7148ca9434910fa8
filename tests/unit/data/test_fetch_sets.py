"""``raysweep data fetch/ls/check`` of published sets against servers of our own, and the table that is shipped."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from raysweep.cli.main import main
from raysweep.data import DATASETS, manifests
from raysweep.data.fetch_sets import fetch_hub_dataset, fetch_set
from raysweep.data.manifests import PublishedFile, PublishedSet, published_sets
from raysweep.downloads.record import read_record
from raysweep.downloads.web import Remote, part_of
from raysweep.errors import DataError, MissingExtraError
from raysweep.workspace import Workspace, package_share
from tests.unit.downloads.hubserver import Hub
from tests.unit.downloads.server import Server

SAMPLE = (package_share() / "data/ZsRE/sample.json").read_bytes()
ROWS = b'[{"a": 1}, {"a": 2}]'
BLOB = hashlib.sha1(b"blob %d\0" % len(ROWS) + ROWS).hexdigest()


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv("RAYSWEEP_ROOT", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "400")
    return Workspace(tmp_path)


def published(*files: PublishedFile, **more: Any) -> PublishedSet:
    about = {"name": "toy", "about": "a toy", "licence": "none", "version": "1", "folder": "Toy"}
    return PublishedSet(**{**about, **more}, files=files)


def test_files_come_once_and_extra_ones_only_when_named(web: Server, workspace: Workspace) -> None:
    toy = published(
        PublishedFile(path="a.json", remote=web.remote("x/a.json", ROWS, size=0, sha256="", blob=BLOB), rows=2),
        PublishedFile(path="deep/b.csv", remote=web.remote("b.csv", b'q\n"1\n2"\n', sha256=""), rows=1),
        PublishedFile(path="more.json", remote=web.remote("more.json", ROWS), extra=True),
    )
    folder = workspace.data / "Toy"
    assert fetch_set(toy, workspace) == [folder / "a.json", folder / "deep/b.csv"]
    assert not toy.problems(workspace)
    fetch_set(toy, workspace, files=["more*"])
    assert [p for p, _, _ in web.asked] == ["x/a.json", "b.csv", "more.json"]
    with pytest.raises(DataError, match="has no file 'mroe") as caught:
        fetch_set(toy, workspace, files=["mroe.json"])
    assert "did you mean: more.json" in caught.value.hint
    # What nobody knew of a file is known since it came.
    (folder / "deep/b.csv").write_text("q\n9\n10\n")
    (folder / "more.json").write_text("[]")
    faults = {Path(p.file).name: p.message for p in toy.problems(workspace)}
    assert faults == {"b.csv": "7 bytes, expected 8", "more.json": "2 bytes, expected 20"}


def test_a_page_that_says_sorry_is_not_taken_for_a_file_without_digest(web: Server, workspace: Workspace) -> None:
    toy = published(PublishedFile(path="a.json", remote=web.remote("a.json", b"<html>", size=0, sha256=""), rows=2))
    with pytest.raises(DataError, match=r"a\.json from .*: cannot be read: .*; it was deleted"):
        fetch_set(toy, workspace)
    assert not list(toy.place(workspace).iterdir())
    (toy.place(workspace) / "a.json").write_text("my own")
    fetch_set(toy, workspace)
    assert (toy.place(workspace) / "a.json").read_text() == "my own"


def test_what_fails_is_said_with_its_address_and_its_place(web: Server, workspace: Workspace) -> None:
    remote = web.remote("a.json", ROWS)
    toy = published(PublishedFile(path="a.json", remote=remote))
    place = workspace.data / "Toy" / "a.json"
    web.limit = 5
    for said in ("broke off after 5 of 20 bytes", "404"):
        with pytest.raises(DataError) as caught:
            fetch_set(toy, workspace)
        assert said in caught.value.message
        assert f"by hand: get {remote.url}, and put it at {place}" in caught.value.hint
        assert not place.exists()
        assert part_of(place).stat().st_size == 5
        assert not toy.here(workspace), "a part is not here"
        web.status["a.json"] = 404
    web.status.clear()
    web.limit = 100
    fetch_set(toy, workspace)
    assert web.asked[-1][1] == "bytes=5-"


def test_files_of_the_hub_are_looked_up_and_what_is_learned_is_kept(mirror: Hub, workspace: Workspace) -> None:
    files = {"test/a.json": ROWS, "test/b c.json": b"[1]", "train/a.json": ROWS, "README.md": b"#"}
    mirror.add("some/set", files, kind="datasets", large="a.json")
    patterns = (PublishedFile(path="test/*.json", remote=Remote(url="")),
                PublishedFile(path="train/*.json", remote=Remote(url=""), extra=True))  # fmt: skip
    toy = published(*patterns, hub="some/set")
    fetch_set(toy, workspace)
    folder = toy.place(workspace)
    assert [f.path for f in toy.here(workspace)] == ["test/a.json", "test/b c.json"]
    assert {len(about.sha256 or about.blob) for about in read_record(folder).values()} == {40, 64}
    (folder / "test/b c.json").write_bytes(b"[2]")
    assert [Path(p.file).name for p in toy.problems(workspace)] == ["b c.json"]
    fetch_set(toy, workspace, files=["train/a.json"])
    assert (folder / "train/a.json").read_bytes() == ROWS
    wrong = published(PublishedFile(path="README.md", remote=Remote(url="", sha256="0" * 64)), hub="some/set")
    with pytest.raises(DataError, match="expected 0000"):
        fetch_set(wrong, workspace)
    gone = published(PublishedFile(path="gone.json", remote=Remote(url="")), hub="some/set")
    with pytest.raises(DataError, match=r"has no gone\.json"):
        fetch_set(gone, workspace)


def test_a_gated_set_and_offline(mirror: Hub, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    mirror.status["api/datasets/some/set/revision/main"] = 401
    toy = published(PublishedFile(path="a.json", remote=Remote(url="")), hub="some/set")
    with pytest.raises(DataError) as caught:
        fetch_set(toy, workspace)
    assert "accept the licence at https://huggingface.co/datasets/some/set; then set HF_TOKEN" in caught.value.hint
    assert "get a.json from https://huggingface.co/datasets/some/set/tree/main, and put them into" in caught.value.hint
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match="HF_HUB_OFFLINE is set"):
        fetch_set(toy, workspace)


def test_from_the_shell(
    web: Server, workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    remote = web.remote("zsre_mend_edit.json", SAMPLE)
    about = 'about = "a"\nlicence = "CC0"\nversion = "1"\n'
    known = f'path = "zsre_mend_edit.json", rows = 6, size = {remote.size}, sha256 = "{remote.sha256}"'
    table = workspace.root / "table.toml"
    table.write_text(f'[zsre]\n{about}folder = "ZsRE"\nbase = "{web.root}/"\nfiles = [{{ {known} }}]\n'
                     f'[other]\n{about}folder = "Other"\nhub = "a/b"\nfiles = [{{ path = "x.json" }}]\n')  # fmt: skip
    monkeypatch.setattr(manifests, "TABLE", table)

    def run(*argv: str) -> str:
        code, (out, err) = main(["data", *argv]), capsys.readouterr()
        return f"{code} {out}{err}"

    place = workspace.data / "ZsRE"
    assert "absent" in run("ls", "ZsRE")
    assert run("fetch", "zsre").startswith(f"0 {place}\n")
    listed = run("ls")
    assert re.search(rf"CC0 +0\.0 +1 +{place}\n", listed)
    assert f"raysweep data fetch other; or put them into {workspace.data / 'Other'}" in listed
    assert " here" in run("ls", "zsre")
    checked = run("check", "zsre")
    assert "zsre_mend_edit.json: as published" in checked
    assert "6 records, 22 probes" in checked
    (place / "zsre_mend_edit.json").write_bytes(SAMPLE[:-9])
    assert "1 (1 of another size)" in run("ls")
    assert f"expected {remote.size:,}\n    delete it and fetch it again" in run("check", "zsre")
    assert "is there, but is another file" in run("fetch", "zsre")
    assert "no file of 'other' is in" in run("check", "other")
    assert "--file: 'brown'" in run("fetch", "brown", "--file", "x")
    assert "--archive: 'zsre'" in run("fetch", "zsre", "--archive", "x")
    assert "did you mean: zsre?" in run("ls", "zsree")


def test_the_shipped_table() -> None:
    sets = published_sets()
    assert {
        "zsre",
        "counterfact",
        "hallucination",
        "qaedit",
        "hallueditbench",
        "mquake",
        "wikibigedit",
        "knowedit",
    } < set(sets)
    for one in sets.values():
        assert one.about
        assert one.licence
        assert one.version
        paths = [file.path for file in one.files]
        assert len(set(paths)) == len(paths)
        assert any(not file.extra for file in one.files), "nothing would come"
        for file in one.files:
            assert file.remote.url.startswith("https://") or (one.hub and not file.remote.url), file.path
            assert re.fullmatch(r"([0-9a-f]{64})?", file.remote.sha256)
            assert re.fullmatch(r"([0-9a-f]{40})?", file.remote.blob)
            assert ".." not in file.path
            # An address with a commit in it always gives the same bytes, so they can be known.
            if re.search(r"/[0-9a-f]{40}/", file.remote.url):
                assert file.remote.sha256 or file.remote.blob, file.path
    for name in sets.keys() & set(DATASETS.names()):
        # What is fetched lies where the dataset of that name looks for it.
        first = DATASETS.get(name).places[0]  # type: ignore[attr-defined]
        assert first.partition("/")[0] == sets[name].folder


class Splits(dict[str, Any]):
    """What ``datasets.load_dataset`` returns of a stream."""


def test_a_hub_dataset_is_read_by_the_package_datasets(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError):
        fetch_hub_dataset("some/set", workspace)
    package = ModuleType("datasets")
    rows = [{"prompt": "Zoë?", "n": 1}, {"prompt": "x", "n": 2}]

    def load_dataset(name: str, configuration: str | None, *, streaming: bool) -> Any:
        assert (name, streaming) == ("some/set", True)
        if configuration is None:
            raise ValueError("Config name is missing: pick one of ['one']")
        return Splits(train=iter(rows), empty=iter([]), bad=iter([*rows, {"image": object()}]))

    package.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", package)
    with pytest.raises(DataError, match="pick one of") as caught:
        fetch_hub_dataset("some/set", workspace)
    assert "some/set:NAME" in caught.value.hint
    assert main(["data", "fetch", "some/set:one"]) == 2
    assert "not JSON serializable" in capsys.readouterr().err
    folder = workspace.data / "some/set/one"
    assert sorted(p.name for p in folder.iterdir()) == ["empty.json", "train.json"], (
        "the split that failed is not there"
    )
    assert json.loads((folder / "train.json").read_text(encoding="utf-8")) == rows
    assert json.loads((folder / "empty.json").read_text()) == []
