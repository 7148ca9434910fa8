"""One file from a server that breaks off, lies, redirects, refuses or never ends: what is no whole file never gets its name."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import urllib.request
from email.message import Message
from pathlib import Path

import pytest

from raysweep.downloads import web as downloads
from raysweep.downloads.web import DownloadError, Remote, download, only_one, part_of
from tests.unit.downloads.server import Server, server

CONTENT = bytes(range(256)) * 40
BLOB = hashlib.sha1(b"blob %d\0" % len(CONTENT) + CONTENT).hexdigest()


def refused(remote: Remote, place: Path) -> str:
    """Return why *remote* is not fetched; assert that nothing was taken for it."""
    with pytest.raises(DownloadError) as caught:
        download(remote, place)
    assert not place.exists()
    assert not list(place.parent.glob("*.lock"))
    return str(caught.value)


@pytest.mark.parametrize(
    "known",
    [{}, {"sha256": "", "blob": BLOB}, {"size": 0}, {"size": 0, "sha256": ""}, {"size": 0, "sha256": "", "blob": BLOB}],
)
def test_whole(web: Server, tmp_path: Path, known: dict[str, str | int]) -> None:
    remote, place = web.remote("f", CONTENT, **known), tmp_path / "deep" / "f"
    assert download(remote, place).read_bytes() == CONTENT
    assert [p.name for p in place.parent.iterdir()] == ["f"]
    download(remote, place)
    assert len(web.asked) == 1, "what is there is not fetched again"


@pytest.mark.parametrize("ranges", [True, False])
def test_broken_off_and_continued(web: Server, tmp_path: Path, ranges: bool) -> None:
    remote, place = web.remote("f", CONTENT), tmp_path / "f"
    web.limit, web.ranges = 1000, ranges
    assert "broke off after 1,000 of 10,240 bytes, which are kept" in refused(remote, place)
    assert part_of(place).stat().st_size == 1000
    web.limit = 1 << 40
    assert download(remote, place).read_bytes() == CONTENT
    assert [r for _, r, _ in web.asked] == ["", "bytes=1000-"]


def test_a_part_of_a_file_nobody_knows_is_not_continued(web: Server, tmp_path: Path) -> None:
    remote, place = web.remote("f", CONTENT, size=0, sha256=""), tmp_path / "f"
    web.limit = 1000
    assert "broke off after 1,000 of 10,240" in refused(remote, place)
    web.limit = 1 << 40
    download(remote, place)
    assert [r for _, r, _ in web.asked] == ["", ""]


def test_a_whole_part_is_examined_without_asking(web: Server, tmp_path: Path) -> None:
    remote, place = web.remote("f", CONTENT), tmp_path / "f"
    part_of(place).write_bytes(CONTENT)
    assert download(remote, place).read_bytes() == CONTENT
    assert not web.asked


def test_a_part_of_another_file_is_thrown_away(web: Server, tmp_path: Path) -> None:
    remote, place = web.remote("f", CONTENT), tmp_path / "f"
    part_of(place).write_bytes(b"x" * 100)
    assert "sha256 is" in refused(remote, place)
    assert not part_of(place).exists()
    longer = web.remote("f", CONTENT, size=0)
    part_of(place).write_bytes(b"x" * 20_000)
    assert download(longer, place).read_bytes() == CONTENT, "416: it begins anew"


@pytest.mark.parametrize("known", [{"sha256": "0" * 64}, {"sha256": "", "blob": "0" * 40}])
def test_a_wrong_digest(web: Server, tmp_path: Path, known: dict[str, str]) -> None:
    assert "expected 0000" in refused(web.remote("f", CONTENT, **known), tmp_path / "f")
    assert not list(tmp_path.iterdir())


def test_the_wrong_piece(web: Server, tmp_path: Path) -> None:
    remote, place = web.remote("f", CONTENT), tmp_path / "f"
    part_of(place).write_bytes(CONTENT[:100])
    web.headers = {"Content-Range": "bytes 7-99/100"}
    assert "asked for bytes from 100, got 'bytes 7-99/100'" in refused(remote, place)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("announced", ["99", "10241"])
def test_a_length_that_cannot_be_right_is_refused_before_anything_comes(
    web: Server, tmp_path: Path, announced: str
) -> None:
    web.headers = {"Content-Length": announced}
    assert "another edition?" in refused(web.remote("f", CONTENT), tmp_path / "f")
    assert not part_of(tmp_path / "f").exists()


@pytest.mark.parametrize(("announced", "known", "said"), [
    ("99", {"size": 0}, "sha256 is"),  # too short: what comes is cut there
    ("20000", {"size": 0}, "broke off after 10,240 of 20,000"),
    ("20000", {"size": 0, "sha256": ""}, "broke off after 10,240 of 20,000"),
    (None, {"size": 0, "sha256": ""}, "a part would pass for it"),
])  # fmt: skip
def test_a_length_that_lies(
    web: Server, tmp_path: Path, announced: str | None, known: dict[str, str | int], said: str
) -> None:
    web.headers = {"Content-Length": announced}
    assert said in refused(web.remote("f", CONTENT, **known), tmp_path / "f")


def test_an_endless_body_ends(web: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    web.headers = {"Content-Length": None}
    remote = web.remote("f", CONTENT)
    web.files["f"] = CONTENT * 1000
    assert "more than the 10,240 bytes that it may have" in refused(remote, tmp_path / "f")
    monkeypatch.setattr(downloads, "LARGEST", 5000)
    assert "more than the 5,000 bytes" in refused(web.remote("g", CONTENT, size=0), tmp_path / "g")
    assert all(p.stat().st_size == 0 for p in tmp_path.iterdir())


@pytest.mark.parametrize("to", ["file:///etc/passwd", "ftp://127.0.0.1/f", "data:,x", "FILE:/etc/passwd"])
def test_a_redirect_leads_to_the_web_only(web: Server, tmp_path: Path, to: str) -> None:
    web.redirects["f"] = to
    assert "is not followed" in refused(Remote(url=f"{web.root}/f", sha256="0" * 64), tmp_path / "f")
    with pytest.raises(DownloadError, match="not an address to fetch from"):
        download(Remote(url=to), tmp_path / "f")


def test_a_redirect_does_not_leave_https() -> None:
    request = urllib.request.Request("https://a.example/f")
    with pytest.raises(DownloadError, match=r"leads to http://a\.example/g, which is not followed"):
        downloads._Redirects("").redirect_request(request, None, 302, "", Message(), "http://a.example/g")


@pytest.mark.parametrize("to", ["http://[::", "http://127.0.0.1:port/"])
def test_a_redirect_to_nowhere(web: Server, tmp_path: Path, to: str) -> None:
    web.redirects["f"] = to
    assert f"{web.root}/f cannot be reached" in refused(Remote(url=f"{web.root}/f"), tmp_path / "f")


def test_a_redirect_loop_ends(web: Server, tmp_path: Path) -> None:
    web.redirects = {"f": "/g", "g": "/f"}
    assert "infinite loop" in refused(Remote(url=f"{web.root}/f"), tmp_path / "f")
    assert len(web.asked) < 12


def test_the_token_goes_to_its_host_alone(web: Server, tmp_path: Path) -> None:
    with server() as other:
        there = other.remote("cdn", CONTENT)
        web.redirects = {"f": "/same", "same": f"{other.root}/back", "again": "x"}
        other.redirects = {"back": f"{web.root}/last"}
        web.redirects["last"] = f"{other.root}/cdn"
        remote = Remote(url=f"{web.root}/f", size=there.size, sha256=there.sha256, token="secret")
        assert download(remote, tmp_path / "f").read_bytes() == CONTENT
        assert [(p, a) for p, _, a in web.asked] == [("f", "Bearer secret"), ("same", "Bearer secret"), ("last", "")]
        assert [(p, a) for p, _, a in other.asked] == [("back", ""), ("cdn", "")]


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500])
def test_a_refusal_says_its_number_and_no_secret(web: Server, tmp_path: Path, status: int) -> None:
    web.status["f"] = status
    with pytest.raises(DownloadError) as caught:
        download(Remote(url=f"{web.root}/f?sig=1", token="secret"), tmp_path / "f")
    assert caught.value.status == status
    assert f"{web.root}/f answers {status}" in caught.value.message
    assert "secret" not in repr(caught.value)
    assert "sig" not in str(caught.value)


@pytest.mark.parametrize("token", ["sec\nret", "geheim\u00e9\u4e00"])
def test_a_token_that_is_none_is_not_shown(web: Server, tmp_path: Path, token: str) -> None:
    said = refused(Remote(url=f"{web.root}/f", token=token), tmp_path / "f")
    assert "no token has" in said
    assert token[:3] not in said
    assert not web.asked


def test_a_packed_answer_is_refused(web: Server, tmp_path: Path) -> None:
    web.headers = {"Content-Encoding": "gzip"}
    assert "comes packed (gzip)" in refused(web.remote("f", CONTENT, sha256=""), tmp_path / "f")


def test_long_downloads_say_how_far_they_are(web: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "_SAID_EVERY", 4000)
    monkeypatch.setattr(downloads, "CHUNK", 1024)
    said: list[str] = []
    download(web.remote("f", CONTENT * 300), tmp_path / "f", said.append)
    assert said[0] == f"downloading {web.root}/f (3.1 MB)"
    assert "f: 2 MB of 3" in said


def test_nobody_answers(tmp_path: Path) -> None:
    with server() as gone:
        address = gone.root
    assert f"f: {address}/f cannot be reached: " in refused(Remote(url=f"{address}/f"), tmp_path / "f")


def test_a_full_disk(web: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remote, place = web.remote("f", CONTENT), tmp_path / "f"
    usage = shutil.disk_usage(tmp_path)

    def write(answer: object, file: object, *_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(downloads, "_copy", write)
        assert "the disk is full" in refused(remote, place)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
        assert "has 1,000 bytes left, 10,240 are needed" in refused(remote, place)
    assert download(remote, place).read_bytes() == CONTENT


def test_two_at_once(web: Server, tmp_path: Path) -> None:
    remote, place, said = web.remote("f", CONTENT), tmp_path / "f", []

    def second() -> None:
        with pytest.raises(DownloadError, match="is being fetched by another process") as caught:
            download(remote, place)
        said.append(caught.value)

    web.on_get = second
    assert download(remote, place).read_bytes() == CONTENT
    assert len(said) == len(web.asked) == 1
    with only_one(place):
        pass
    place.with_name(".f.lock").touch()  # as of a process that was killed
    with only_one(place):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_what_is_there_and_is_another_file_is_left_alone(web: Server, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("mine")
    with pytest.raises(DownloadError, match=r"is there, but is another file: 4 bytes, expected 10,240; delete it"):
        download(web.remote("f", CONTENT), tmp_path / "f")
    assert (tmp_path / "f").read_text() == "mine"
