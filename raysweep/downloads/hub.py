"""Repositories of the Hugging Face hub: which files a revision has, with sizes and digests, and fetching them.

The hub is asked by its own web interface. Its Python client would do for plain downloads, but takes its time to say that nobody
answers, drops the last part of what broke off, and keeps files in a cache where nobody finds them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal
from urllib.parse import quote, urlsplit

from raysweep.downloads.web import DownloadError, Remote, read_text

HUB = "https://huggingface.co"
_LARGEST_LISTING = 64 << 20  # bytes
_COMMIT = re.compile(r"[0-9a-f]{40}")
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
Kind = Literal["models", "datasets"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """What a repository holds at one commit.

    Attributes:
        name: its id, ``owner/name``.
        commit: 40 hex digits.
        files: by path.
    """

    name: str
    commit: str
    files: Mapping[str, Remote]


def endpoint(environ: Mapping[str, str] = os.environ) -> str:
    """Return the address of the hub: ``HF_ENDPOINT``, where a mirror has it, else the hub's own.

    Raises:
        DownloadError: the variable holds no web address.
    """
    address = (environ.get("HF_ENDPOINT") or HUB).rstrip("/")
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise DownloadError(f"HF_ENDPOINT is {address!r}, which is no web address such as {HUB}")
    return address


def mirrored(url: str) -> str:
    """Return *url*, which may be on the hub, on the mirror if there is one.

    >>> mirrored("https://example.org/x")
    'https://example.org/x'
    """
    return f"{endpoint()}/{url.removeprefix(f'{HUB}/')}" if url.startswith(f"{HUB}/") else url


def is_offline(environ: Mapping[str, str] = os.environ) -> bool:
    """Tell whether ``HF_HUB_OFFLINE`` or ``TRANSFORMERS_OFFLINE`` forbids to ask the hub."""
    return any(
        # the spellings that huggingface_hub takes for true
        environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )


def is_id(name: str) -> bool:
    """Tell whether *name* could be a repository's id.

    >>> is_id("Qwen/Qwen2.5-7B"), is_id("../x"), is_id("gpt2")
    (True, False, False)
    """
    return _ID.fullmatch(name) is not None


def address(kind: Kind, name: str, commit: str, path: str) -> str:
    """Return where the file *path* of a repository is to be fetched."""
    return f"{endpoint()}/{'datasets/' if kind == 'datasets' else ''}{name}/resolve/{commit}/{quote(path)}"


def look_up(kind: Kind, name: str, revision: str = "") -> Repository:
    """Ask the hub what a repository holds.

    Args:
        kind: of repository.
        name: its id.
        revision: a commit, branch or tag; empty = ``main``.

    Raises:
        DownloadError: offline, the hub does not answer, has no such repository, or wants to know who asks.
    """
    if is_offline():
        raise DownloadError(f"hub repository '{name}' was not asked for: HF_HUB_OFFLINE is set")
    token = os.environ.get("HF_TOKEN", "").strip()
    # A branch's name may hold a slash, hence `safe`; with `blobs` the hub tells sizes and digests too.
    url = f"{endpoint()}/api/{kind}/{name}/revision/{quote(revision or 'main', safe='')}?blobs=true"
    try:
        answer = json.loads(read_text(Remote(url=url, token=token), largest=_LARGEST_LISTING))
        commit, entries = answer["sha"], answer["siblings"]
        # Files are addressed by commit: of a branch that moves meanwhile, two states would be mixed.
        if not _COMMIT.fullmatch(commit):
            raise ValueError(f"{commit!r} is no commit")
        files = {str(entry["rfilename"]): entry for entry in entries}
        return Repository(
            name=name,
            commit=commit,
            files={path: _remote(address(kind, name, commit, path), entry, token) for path, entry in files.items()},
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DownloadError(
            f"hub repository '{name}': {url.partition('?')[0]} does not answer as the hub does"
        ) from error


def cure(kind: Kind, name: str, error: DownloadError) -> str:
    """Return what to do about *error*; empty = nothing that only the hub would need."""
    page = f"{HUB}/{'datasets/' if kind == 'datasets' else ''}{name}"
    # the hub answers alike for all three, so that nobody learns which private repositories there are
    if error.status in (401, 403):
        account = (
            "the token in HF_TOKEN must be of an account that did"
            if os.environ.get("HF_TOKEN")
            else "then set HF_TOKEN"
        )
        return f"gated, private or not there: accept the licence at {page}; {account}"
    if error.status == 404:
        return f"is the id right, and does it have this revision? see {page}"
    return "the hub is asked too often: wait some minutes" if error.status == 429 else ""


def _remote(url: str, entry: Mapping[str, object], token: str) -> Remote:
    path = PurePosixPath(str(entry["rfilename"]))
    # What leads out of the folder would be written elsewhere.
    if path.is_absolute() or ".." in path.parts or "\\" in str(path):
        raise ValueError(f"a file called {path}")
    stored = entry.get("lfs")
    # A large file has a sha256; a small one is a git blob.
    sha256 = str(stored["sha256"]) if isinstance(stored, Mapping) else ""
    size, blob = entry.get("size"), entry.get("blobId")
    return Remote(
        url=url,
        size=size if isinstance(size, int) else 0,
        sha256=sha256,
        # of a large file the blob is its pointer's, not its content's
        blob=str(blob) if isinstance(blob, str) and not sha256 else "",
        token=token,
    )
