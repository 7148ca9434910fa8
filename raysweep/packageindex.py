"""Files out of package indexes, PyPI's and npm's, by their own interfaces: neither the program pip nor npm is called.

An environment made by ``uv`` has no pip, and a text corpus is no reason to install Node. Which index is asked is read where the two
programs read it: the variables ``PIP_INDEX_URL`` and ``NPM_CONFIG_REGISTRY``, ``pip.conf`` and ``.npmrc``. What comes is not
trusted: the caller knows its checksum.
"""

from __future__ import annotations

import configparser
import json
import os
import shutil
import ssl
import sys
import urllib.request
from base64 import b64encode
from collections.abc import Mapping
from html.parser import HTMLParser
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.parse import quote, unquote, urljoin, urlsplit, urlunsplit
from urllib.response import addinfourl

from raysweep.atomic import file_draft

PYPI = "https://pypi.org/simple"
NPM = "https://registry.npmjs.org"
_JSON = "application/vnd.pypi.simple.v1+json"
_SECONDS = 60.0  # without a byte
_CHUNK = 1 << 20


class PackageIndexError(Exception):
    """A file could not be had; the text says why, address by address."""


def fetch_wheel(project: str, file: str, folder: Path) -> Path:
    """Put the *file* of *project* (a wheel or sdist, by its whole name) into *folder*; return where it is.

    The simple repository interface (PEP 503 and 691) of each configured index is asked, the main one first.

    Raises:
        PackageIndexError: no index has it, or none can be reached.
    """
    failures = []
    for index in pip_indexes():
        # PEP 503 writes a project's name in lower case, with hyphens.
        page = f"{index.rstrip('/')}/{quote(project.lower().replace('_', '-').replace('.', '-'))}/"
        try:
            links = _links(page)
            if file in links:
                return _save(_with_login(links[file], page), folder / file)
            failures.append(f"{_bare(page)}: no {file}")
        except (OSError, ValueError, HTTPException) as error:  # URLError, time-outs and broken connections are OSErrors
            failures.append(f"{_bare(page)}: {error}")
    raise PackageIndexError("; ".join(failures))


def fetch_npm(package: str, version: str, folder: Path) -> Path:
    """Put the tarball of the npm *package* into *folder*, as ``<package>-<version>.tgz``; return where it is.

    Raises:
        PackageIndexError: the registry does not have it, or cannot be reached.
    """
    registry = npm_registry()
    page = f"{registry.rstrip('/')}/{quote(package, safe='@')}/{quote(version)}"
    try:
        with _open(page) as answer:
            url = json.load(answer)["dist"]["tarball"]
        if url.startswith(f"{NPM}/"):  # a mirror passes the metadata through; npm looks for the tarball there too
            url = f"{registry.rstrip('/')}/{url.removeprefix(f'{NPM}/')}"
        return _save(_with_login(url, page), folder / f"{package.rpartition('/')[2]}-{version}.tgz")
    except (KeyError, TypeError, AttributeError) as error:
        raise PackageIndexError(f"{_bare(page)}: names no tarball") from error
    except (OSError, ValueError, HTTPException) as error:
        raise PackageIndexError(f"{_bare(page)}: {error}") from error


def pip_indexes(environ: Mapping[str, str] | None = None) -> list[str]:
    """Return the addresses of the indexes that pip would ask, the main one first.

    A variable goes before the files; of the files, that of the environment before the user's before the system's.
    """
    variables = os.environ if environ is None else environ
    main = _pip("index-url", variables) or PYPI
    return list(dict.fromkeys([*main.split()[:1], *_pip("extra-index-url", variables).split()]))


def npm_registry(environ: Mapping[str, str] | None = None) -> str:
    """Return the address of the registry that npm would ask."""
    variables = os.environ if environ is None else environ
    for name, value in variables.items():
        # npm takes its variables in capitals and in small letters.
        if name.lower() == "npm_config_registry" and value:
            return value
    for file in (Path(variables.get("NPM_CONFIG_USERCONFIG") or _home(variables) / ".npmrc"), Path("/etc/npmrc")):
        for line in _text(file).splitlines():
            key, _, value = line.partition("=")
            if key.strip() == "registry" and value.strip():
                return value.strip().strip("\"'")
    return NPM


def _pip(option: str, environ: Mapping[str, str]) -> str:
    """Return a global option of pip: from the environment, else from the first file that states it, else ``""``."""
    if stated := environ.get(f"PIP_{option.upper().replace('-', '_')}"):
        return stated
    if environ.get("PIP_CONFIG_FILE") == os.devnull:  # pip's own way to say: no files
        return ""
    home = _home(environ)
    files = (
        *([Path(environ["PIP_CONFIG_FILE"])] if environ.get("PIP_CONFIG_FILE") else []),
        Path(sys.prefix) / "pip.conf",
        Path(environ.get("XDG_CONFIG_HOME") or home / ".config") / "pip" / "pip.conf",
        home / ".pip" / "pip.conf",
        home / "Library" / "Application Support" / "pip" / "pip.conf",
        Path("/etc/pip.conf"),
        Path("/etc/xdg/pip/pip.conf"),
    )
    for file in files:
        # Raw: a % in an address is no interpolation.
        parser = configparser.RawConfigParser()
        try:
            parser.read_string(_text(file))
        except configparser.Error:  # not ours to mend
            continue
        # As pip has it: the section of the command goes before the global one; `pip download` is what is done here.
        for section in ("download", "global"):
            if value := parser.get(section, option, fallback=""):
                return value
    return ""


def _home(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("HOME") or Path.home())


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def _links(page: str) -> dict[str, str]:
    """Return the addresses of the files on a project's *page*, by file name."""
    local = urlsplit(page).scheme == "file"
    # A folder of files, as `pip --index-url file:…` reads it, has its page under this name.
    page = urljoin(page, "index.html") if local else page
    with _open(page, accept=f"{_JSON}, text/html;q=0.1") as answer:
        text, base = answer.read().decode("utf-8", errors="replace"), page if local else answer.geturl()
        kind = answer.headers.get_content_type()
    if kind in (_JSON, "application/json"):
        # PEP 691; any other answer is the HTML of PEP 503.
        return {entry["filename"]: urljoin(base, entry["url"]) for entry in json.loads(text)["files"]}
    parser = _Anchors()
    parser.feed(text)
    urls = [urljoin(base, address).partition("#")[0] for address in parser.addresses]
    return {unquote(urlsplit(url).path.rpartition("/")[2]): url for url in urls}


class _Anchors(HTMLParser):
    """Collects what the links of a page point at."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep the address of a link."""
        self.addresses += [value for name, value in attrs if tag == "a" and name == "href" and value]


def _save(url: str, place: Path) -> Path:
    with _open(url) as answer, file_draft(place, sync=False) as draft, draft.open("wb") as file:
        shutil.copyfileobj(answer, file, _CHUNK)
    return place


def _open(url: str, accept: str = "*/*") -> HTTPResponse | addinfourl:
    """Open *url*, whose user and password, if it names some, go into a header: urllib takes them for a part of the host."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https", "file"):
        raise ValueError(f"not an address to fetch from: {_bare(url)}")
    request = urllib.request.Request(_bare(url), headers={"Accept": accept})
    if parts.username:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        request.add_unredirected_header("Authorization", f"Basic {b64encode(pair.encode()).decode()}")
    bundle = _pip("cert", os.environ) if parts.scheme == "https" else ""
    context = ssl.create_default_context(cafile=bundle) if bundle else None
    answer: HTTPResponse | addinfourl = urllib.request.urlopen(request, timeout=_SECONDS, context=context)
    return answer


def _with_login(url: str, page: str) -> str:
    """Return *url* with the user and password of *page*, where both lie on the same host."""
    parts, host = urlsplit(url), urlsplit(page).netloc
    return urlunsplit(parts._replace(netloc=host)) if parts.netloc == urlsplit(_bare(page)).netloc else url


def _bare(url: str) -> str:
    """Return *url* without user and password, which are no part of a message."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
