"""``raysweep data fetch`` of published sets: their files from the web and the hub, or a hub dataset through ``datasets``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from raysweep.atomic import file_draft
from raysweep.data.manifests import PublishedFile, PublishedSet, rows_fault, with_record
from raysweep.downloads import hub
from raysweep.downloads.record import known_of, write_record
from raysweep.downloads.web import DownloadError, Log, Remote, bare, download
from raysweep.errors import DataError, MissingExtraError, nearest

if TYPE_CHECKING:
    from raysweep.workspace import Workspace


def fetch_set(
    published: PublishedSet, workspace: Workspace, *, files: Sequence[str] = (), report: Log = lambda _: None
) -> list[Path]:
    """Put the files of *published* into its folder; return them. What broke off is gone on with, what is there is examined.

    Args:
        published: the set.
        workspace: where ``data`` is.
        files: paths or patterns of those that are wanted; empty = all but the extra ones.
        report: told what is being done.

    Raises:
        DataError: no such file; or one could not be had, with its address and its place.
    """
    folder = published.place(workspace)
    # What is known of a file since it was first fetched must still hold.
    chosen = with_record(_chosen(published, files), folder)
    try:
        remotes = _expand(published, chosen, files)
    except DownloadError as error:
        page = f"{hub.HUB}/datasets/{published.hub}/tree/main"
        hint = f"{_cure(published, error)}by hand: get {_names(chosen)} from {page}, and put them into {folder}"
        raise DataError(error.message, hint=hint) from error
    rows = {file.path: file.rows for file in chosen}
    for path, remote in remotes.items():
        place = folder / path
        was_there = place.exists()
        try:
            download(remote, place, report)
            # What was there may be the user's own.
            if not was_there:
                _check_unknown(remote, place, rows.get(path, 0))
            # At once: the next file may fail, and what was asked of the hub would be lost.
            write_record(folder, {path: known_of(remote, place)})
        except (DownloadError, OSError) as error:
            cure = _cure(published, error) if remote.url.startswith(hub.endpoint()) else ""
            hint = f"{cure}the same command again goes on; by hand: get {bare(remote.url)}, and put it at {place}"
            raise DataError(str(error), hint=hint) from error
    return [folder / path for path in remotes]


def _check_unknown(remote: Remote, place: Path, rows: int) -> None:
    """Refuse what came for a file that has no digest, if it does not have the rows that it should: a page that says sorry, say.

    Raises:
        DownloadError: it was deleted.
    """
    fault = rows_fault(place, rows) if rows and not remote.sha256 and not remote.blob else ""
    if fault:
        place.unlink()
        raise DownloadError(f"{place.name} from {bare(remote.url)}: {fault}; it was deleted")


def _chosen(published: PublishedSet, wanted: Sequence[str]) -> tuple[PublishedFile, ...]:
    """Return the files that *wanted* names, or all but the extra ones."""
    if not wanted:
        return tuple(file for file in published.files if not file.extra)
    for name in wanted:
        # A file of a pattern is known to the hub only, a pattern may stand for files.
        if not any(_overlap(name, file.path) for file in published.files):
            known = [file.path for file in published.files]
            raise DataError(f"'{published.name}' has no file '{name}'", hint=nearest(name, known))
    return tuple(file for file in published.files if any(_overlap(name, file.path) for name in wanted))


def _overlap(name: str, path: str) -> bool:
    return fnmatchcase(path, name) or fnmatchcase(name, path)


def _expand(published: PublishedSet, chosen: tuple[PublishedFile, ...], wanted: Sequence[str]) -> dict[str, Remote]:
    """Return the files to get by path; those on the hub with the address, size and digest that the hub has for them."""
    remotes = {file.path: file.remote for file in chosen if file.remote.url}
    on_hub = [file for file in chosen if not file.remote.url]
    if not on_hub:
        return remotes
    listing = hub.look_up("datasets", published.hub, published.revision)
    named = {file.path: file for file in published.files if not file.is_pattern}
    for file in on_hub:
        matching = [p for p in listing.files if (fnmatchcase(p, file.path) if file.is_pattern else p == file.path)]
        if file.is_pattern:
            matching = [p for p in matching if p not in named and (not wanted or any(_overlap(w, p) for w in wanted))]
        if not matching:
            raise DownloadError(f"hub dataset '{published.hub}' has no {file.path} (any more)", 404)
        for path in matching:
            found, known = listing.files[path], file.remote.sha256
            # What is known of a file without the hub holds against what the hub says.
            remotes[path] = replace(found, sha256=known, blob="") if known else found
    return remotes


def _names(files: tuple[PublishedFile, ...]) -> str:
    return ", ".join(file.path for file in files if not file.remote.url)


def _cure(published: PublishedSet, error: Exception) -> str:
    cure = hub.cure("datasets", published.hub, error) if published.hub and isinstance(error, DownloadError) else ""
    return f"{cure}; " if cure else ""


class _Loaded(Protocol):
    """What is used of a ``datasets.IterableDatasetDict``."""

    def items(self) -> Iterable[tuple[str, Iterable[Mapping[str, object]]]]: ...


def fetch_hub_dataset(name: str, workspace: Workspace, report: Log = lambda _: None) -> list[Path]:
    """Write every split of the hub dataset *name* as ``data/<owner>/<name>/<split>.json``; return the files.

    The package ``datasets`` reads it, whatever its files are (Parquet, CSV, archives); the rows are what it gives.

    Args:
        name: ``owner/name``, or ``owner/name:configuration``.
        workspace: where ``data`` is.
        report: told what is being done.

    Raises:
        MissingExtraError: ``datasets`` is not installed.
        DataError: it cannot be read, or has rows that JSON cannot spell.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise MissingExtraError(
            f"hub dataset '{name}' is read by the package 'datasets'", hint="pip install 'raysweep[datasets]'"
        ) from error
    repository, _, configuration = name.partition(":")
    folder = workspace.data / repository / configuration
    report(f"reading {repository} from the hub")
    try:
        splits = cast("_Loaded", load_dataset(repository, configuration or None, streaming=True))
        return [_write_split(rows, folder / f"{split}.json") for split, rows in splits.items()]
    # What the package raises of its own derives from these; several configurations are a ValueError that lists them.
    except (OSError, ValueError, TypeError) as error:
        why = " ".join(str(error).split())
        hint = f"one of several configurations is named so: {repository}:NAME; or put JSON rows into data/ by hand"
        raise DataError(f"hub dataset '{name}' cannot be read: {why}", hint=hint) from error


def _write_split(rows: Iterable[Mapping[str, object]], place: Path) -> Path:
    with file_draft(place) as draft, draft.open("w", encoding="utf-8") as file:
        file.writelines(_array(rows))
    return place


def _array(rows: Iterable[Mapping[str, object]]) -> Iterator[str]:
    """Yield a JSON array, a row a line."""
    between = "[\n"
    for row in rows:
        yield f"{between}{json.dumps(row, ensure_ascii=False)}"
        between = ",\n"
    yield "\n]\n" if between != "[\n" else "[]\n"
