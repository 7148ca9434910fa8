"""What was learned of files when they came, kept in their folder: addresses, sizes and digests to examine them by later."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from raysweep.atomic import write_file
from raysweep.downloads.web import Remote, digest_of

RECORD = ".fetched.json"  # hidden: no part of what it describes


def read_record(folder: Path) -> dict[str, Remote]:
    """Return what is known of the files of *folder* since they were fetched, by path; empty where nothing was."""
    files = _read(folder).get("files")
    known = files if isinstance(files, dict) else {}
    return {path: _remote(about) for path, about in known.items() if isinstance(about, dict)}


def commit_of(folder: Path) -> str:
    """Return the commit that *folder* was fetched at; empty = not known."""
    commit = _read(folder).get("commit")
    return commit if isinstance(commit, str) else ""


def write_record(folder: Path, learned: Mapping[str, Remote], *, commit: str = "") -> None:
    """Add what was *learned* of files, by path, to the record in *folder*; with *commit*, they are all of that commit."""
    files: dict[str, dict[str, str | int]] = {}
    for path, remote in {**read_record(folder), **learned}.items():
        # The token is nobody's business.
        known: dict[str, str | int] = {"url": remote.url, "size": remote.size}
        known |= {"sha256": remote.sha256, "blob": remote.blob}
        files[path] = {key: value for key, value in known.items() if value}
    record = {"files": files, **({"commit": commit} if commit else {})}
    write_file(folder / RECORD, json.dumps(record, indent=1, sort_keys=True) + "\n")


def known_of(remote: Remote, file: Path) -> Remote:
    """Return *remote* with the size and, if it has no digest, the sha256 of *file*, which was just fetched from it."""
    sha256 = remote.sha256 or ("" if remote.blob else digest_of(file))
    return replace(remote, size=file.stat().st_size, sha256=sha256)


def completed(known: Remote, learned: Remote | None) -> Remote:
    """Return *known* with what it leaves open and *learned* says."""
    if learned is None:
        return known
    if not known.sha256 and not known.blob:
        known = replace(known, sha256=learned.sha256, blob=learned.blob)
    return replace(known, size=known.size or learned.size)


def _read(folder: Path) -> dict[str, object]:
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _remote(about: Mapping[str, object]) -> Remote:
    url, size, sha256, blob = (about.get(key) for key in ("url", "size", "sha256", "blob"))
    texts = [value if isinstance(value, str) else "" for value in (url, sha256, blob)]
    return Remote(url=texts[0], size=size if isinstance(size, int) else 0, sha256=texts[1], blob=texts[2])
