"""``raysweep data fetch wikidata5m`` against a server of our own: whole, broken off, resumed, damaged, offline."""

from __future__ import annotations

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from raysweep.belief.graph.wikidata_files import FILES
from raysweep.cli.main import main
from raysweep.data.fetch import WIKIDATA5M, Archive, fetch_wikidata5m
from raysweep.downloads import web as downloads
from raysweep.errors import DataError
from raysweep.workspace import Workspace
from tests.unit.downloads.server import Server


def tar(**members: str) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as packed:
        for name, text in members.items():
            info = tarfile.TarInfo(f"{name}.txt")
            info.size = len(text)
            packed.addfile(info, io.BytesIO(text.encode()))
    return raw.getvalue()


def archive(server: Server, name: str, content: bytes, *members: str) -> Archive:
    remote = server.remote(name, content)
    mirror = "http://elsewhere/x"
    return Archive(name=name, url=remote.url, mirror=mirror, size=remote.size, sha256=remote.sha256, members=members)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


@pytest.fixture
def two(web: Server) -> tuple[Archive, ...]:
    return (
        archive(web, "a.tar.gz", tar(train="Q1\tP1\tQ2\n", valid="no"), "train.txt"),
        archive(web, "b.tar.gz", tar(entity="Q1\tx\n", relation="P1\ty\n"), "entity.txt", "relation.txt"),
    )


def test_whole(web: Server, workspace: Workspace, two: tuple[Archive, ...]) -> None:
    out = fetch_wikidata5m(workspace, archives=two)
    assert sorted(p.name for p in out.iterdir()) == ["entity.txt", "relation.txt", "train.txt"]
    assert (out / "train.txt").read_text() == "Q1\tP1\tQ2\n"
    said: list[str] = []
    fetch_wikidata5m(workspace, archives=two, report=said.append)
    assert len(web.asked) == 2
    assert said == ["train.txt: already there", "entity.txt, relation.txt: already there"]


@pytest.mark.parametrize("ranges", [True, False])
def test_broken_off_and_continued(web: Server, workspace: Workspace, two: tuple[Archive, ...], ranges: bool) -> None:
    web.limit, web.ranges = 50, ranges
    with pytest.raises(DataError) as caught:
        fetch_wikidata5m(workspace, archives=two)
    assert f"50 of {two[0].size} bytes, which are kept" in caught.value.message
    assert "the same command again goes on" in caught.value.hint
    web.limit = 1 << 30
    out = fetch_wikidata5m(workspace, archives=two)
    assert [r for _, r, _ in web.asked] == ["", "bytes=50-", ""]
    assert (out / "train.txt").is_file()


def test_a_damaged_download_is_thrown_away(web: Server, workspace: Workspace, two: tuple[Archive, ...]) -> None:
    wrong = (replace(two[0], sha256="0" * 64),)
    with pytest.raises(DataError, match=r"a\.tar\.gz .*: sha256 is [0-9a-f]{64}, expected 0000.*deleted"):
        fetch_wikidata5m(workspace, archives=wrong)
    assert not any((workspace.data / "wikidata5m").iterdir())
    lacking = (replace(two[0], members=("other.txt",)),)
    with pytest.raises(DataError, match=r"does not hold other\.txt"):
        fetch_wikidata5m(workspace, archives=lacking)


def test_archives_by_hand(web: Server, workspace: Workspace, two: tuple[Archive, ...], tmp_path: Path) -> None:
    folder = tmp_path / "hand"
    folder.mkdir()
    (folder / "a.tar.gz").write_bytes(web.files["a.tar.gz"])
    with pytest.raises(DataError, match=r"b\.tar\.gz does not exist"):
        fetch_wikidata5m(workspace, archive=folder, archives=two)
    (folder / "b.tar.gz").write_bytes(web.files["a.tar.gz"])
    with pytest.raises(DataError, match="another edition"):
        fetch_wikidata5m(workspace, archive=folder, archives=two)
    (folder / "b.tar.gz").write_bytes(web.files["b.tar.gz"])
    fetch_wikidata5m(workspace, archive=folder, archives=two)
    assert not web.asked
    assert len(list(folder.iterdir())) == 2


def test_offline_the_message_names_files_links_and_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def unplugged(*_: object, **__: object) -> None:
        raise OSError("no route")

    monkeypatch.setattr(downloads, "_open", unplugged)
    monkeypatch.setenv("RAYSWEEP_ROOT", str(tmp_path))
    assert main(["data", "fetch", "wikidata5m"]) == 2
    err = capsys.readouterr().err
    for word in ("no route", "dropbox.com", "--archive", str(tmp_path / "data" / "wikidata5m"), *FILES):
        assert word in err
    assert {m for a in WIKIDATA5M for m in a.members} == set(FILES)


def test_ls_says_where_the_graph_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("RAYSWEEP_ROOT", str(tmp_path))
    assert main(["data", "ls"]) == 0
    assert "raysweep data fetch wikidata5m" in capsys.readouterr().out
    for name in FILES:
        (tmp_path / "data/wikidata5m").mkdir(parents=True, exist_ok=True)
        (tmp_path / "data/wikidata5m" / name).write_text("x")
    assert main(["data", "ls"]) == 0
    assert str(tmp_path / "data/wikidata5m") in capsys.readouterr().out
