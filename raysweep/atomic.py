"""The one writer of files and folders that must be whole: whoever looks finds the former content or the new one, never a half.

Both write a *draft* beside the place under another name, bring it to the disk (fsync), and rename it, which a file system does
at once. A process that is killed leaves at most a draft, whose name starts with a dot and ends in ``.tmp``.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_file(path: Path, data: bytes | str, *, sync: bool = True) -> None:
    """Write *data* as the file *path*, whole or not at all; its folder is made if it is missing.

    Args:
        path: of the file; replaced if it exists.
        data: its content; text is written as UTF-8.
        sync: wait until the disk has it. Without, a crash of the machine (not of the process) may leave an empty file.

    Raises:
        OSError: it cannot be written; the former file is as it was.
    """
    with file_draft(path, sync=sync) as draft:
        draft.write_bytes(data.encode() if isinstance(data, str) else data)


@contextmanager
def file_draft(path: Path, *, sync: bool = True) -> Iterator[Path]:
    """Yield where to write the file that becomes *path* when the block ends; after an error in the block nothing has changed.

    For what a library writes by path (safetensors), or what comes piece by piece (a download). Arguments as of
    :func:`write_file`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = _beside(path)
    try:
        yield draft
        replace_file(draft, path, sync=sync)
    finally:
        draft.unlink(missing_ok=True)


def replace_file(new: Path, path: Path, *, sync: bool = True) -> None:
    """Give the file *new* the name *path*, in the same folder, after all of it has reached the disk.

    Args:
        new: a file that nobody writes to any more.
        path: what it becomes; replaced if it exists.
        sync: as of :func:`write_file`.

    Raises:
        OSError: it cannot be done.
    """
    if sync:
        _sync(new)
    # Only now: a rename of bytes that are not on the disk yet could leave an empty file after a power cut.
    os.replace(new, path)
    if sync:
        # The new name itself is on the disk when its folder is.
        _sync(path.parent)


@contextmanager
def write_folder(path: Path, *, only_writer: bool = False) -> Iterator[Path]:
    """Yield an empty folder that becomes *path*, with all that was written into it, when the block ends.

    After an error in the block nothing has changed. A folder cannot take the place of another in one step: the former one is
    moved aside first, and removed when the new one stands.

    Args:
        path: of the folder; replaced if it exists.
        only_writer: no other process writes *path*. Then the names are ``<path>.draft`` and ``<path>.old``, so that the next call
            removes the draft of a killed process, and a reader may look into ``<path>.old`` where *path* is missing.

    Raises:
        OSError: it cannot be written.
    """
    # Fixed names can be found again after a kill, names of their own are safe from other writers.
    draft = path.with_name(f"{path.name}.draft") if only_writer else _beside(path)
    aside = path.with_name(f"{path.name}.old") if only_writer else _beside(path)
    if only_writer:
        shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        yield draft
        replace_folder(draft, path, aside)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def replace_folder(new: Path, path: Path, aside: Path | None = None) -> None:
    """Give the folder *new* the name *path*, on the same file system, after all of it has reached the disk.

    Args:
        new: a folder that nobody writes to any more.
        path: what it becomes; replaced if it exists.
        aside: where the former folder is in between; default a hidden name beside it.

    Raises:
        OSError: it cannot be done.
    """
    aside = aside or _beside(path)
    # A rename may reach the disk before the bytes of the files: after a power cut the folder would be full of empty ones.
    for folder, _, files in os.walk(new):
        for name in files:
            _sync(Path(folder, name))
        _sync(Path(folder))
    if path.exists():
        shutil.rmtree(aside, ignore_errors=True)
        # rename(2) replaces a file at once, but no folder that holds something.
        os.replace(path, aside)
    os.replace(new, path)
    _sync(path.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _beside(path: Path) -> Path:
    """Return a new name beside *path* that no listing of results shows and no other process takes."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")


def _sync(path: Path) -> None:
    """Wait until the disk has what was written to the file or folder *path*."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
