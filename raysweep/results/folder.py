"""A folder reached through ``pyarrow.fs``: a local path and ``s3://bucket/prefix`` are the same code."""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from pyarrow import fs

from raysweep.atomic import write_file
from raysweep.errors import StoreError, UnwritableError

K = TypeVar("K")
T = TypeVar("T")
REQUESTS = 16  # at once, where trials are asked for one by one in storage that is not local
_PROBE, _ASIDE = ".probe-", ".deleted-"  # beginnings of names that a reader never lists


class Folder:
    """A folder in which every file appears complete or not at all.

    Locally a file is written under another name, synced and renamed; an object store's put is atomic by itself.
    """

    def __init__(self, location: str | Path, filesystem: fs.FileSystem | None = None) -> None:
        self.location = str(location)
        if filesystem is not None:
            self.filesystem, self.base = filesystem, self.location.rstrip("/")
        elif "://" in self.location:
            try:
                self.filesystem, base = fs.FileSystem.from_uri(self.location)
            except (OSError, ValueError) as error:
                raise StoreError(f"cannot open storage {self.location}: {error}") from error
            self.base = base.rstrip("/")
        else:
            self.filesystem, self.base = fs.LocalFileSystem(), str(Path(location).absolute())

    @property
    def local(self) -> Path | None:
        """The folder as a local path, or None on an object store."""
        return Path(self.base) if isinstance(self.filesystem, fs.LocalFileSystem) else None

    def path(self, name: str) -> str:
        """Return the path of *name* inside the file system."""
        return f"{self.base}/{name}" if name else self.base

    def sub(self, name: str) -> Folder:
        """Return the folder *name* below this one."""
        return Folder(self.path(name), self.filesystem)

    def exists(self, name: str = "") -> bool:
        """Tell whether *name* exists."""
        return bool(self.filesystem.get_file_info(self.path(name)).type != fs.FileType.NotFound)

    def files(self, name: str = "", *, recursive: bool = False) -> list[str]:
        """Return the files below *name*, relative to this folder, sorted; unfinished ones are left out."""
        return self._list(name, fs.FileType.File, recursive)

    def folders(self, name: str = "") -> list[str]:
        """Return the folders in *name*, relative to this folder, sorted."""
        return self._list(name, fs.FileType.Directory, False)

    def sizes(self, name: str) -> dict[str, int]:
        """Return the files in *name*, by their names there, with their bytes."""
        return {i.base_name: int(i.size) for i in self._infos(name, fs.FileType.File, False)}

    def modified(self, name: str) -> dict[str, float]:
        """Return the files in *name*, relative to this folder, with the times at which they were written."""
        return {i.path[len(self.base) + 1 :]: _seconds(i) for i in self._infos(name, fs.FileType.File, False)}

    def modified_at(self, name: str) -> float:
        """Return when the file *name* was written, in seconds since 1970 by the storage's clock.

        Raises:
            FileNotFoundError: there is no such file.
        """
        info = self.filesystem.get_file_info(self.path(name))
        if info.type == fs.FileType.NotFound:
            raise FileNotFoundError(self.path(name))
        return _seconds(info)

    def _list(self, name: str, kind: fs.FileType, recursive: bool) -> list[str]:
        return sorted(i.path[len(self.base) + 1 :] for i in self._infos(name, kind, recursive))

    def _infos(self, name: str, kind: fs.FileType, recursive: bool) -> list[fs.FileInfo]:
        # Drafts, probes and folders on their way out begin with a dot: no reader may take one of them for results.
        chosen = fs.FileSelector(self.path(name), recursive=recursive, allow_not_found=True)
        return [i for i in self.filesystem.get_file_info(chosen) if i.type == kind and not i.base_name.startswith(".")]

    def read(self, name: str) -> bytes:
        """Return the bytes of *name*.

        Raises:
            FileNotFoundError: there is no such file.
        """
        with self.filesystem.open_input_stream(self.path(name)) as stream:
            return bytes(stream.read())

    def write(self, name: str, data: bytes) -> None:
        """Write *data* as *name*, whole or not at all.

        Raises:
            UnwritableError: the storage cannot be written.
        """
        try:
            if self.local is None:
                self._put(name, data)
            else:
                write_file(Path(self.path(name)), data)
        except OSError as error:
            reason = f"cannot write {self.path(name)}: {error}"
            raise UnwritableError(reason, hint="choose another --storage") from error

    def write_json(self, name: str, value: Mapping[str, object]) -> None:
        """Write *value* as indented JSON."""
        self.write(name, (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode())

    def touch(self, name: str) -> None:
        """Make the file *name* count as written now; locally it is not brought back by that if it is just being taken away.

        Raises:
            FileNotFoundError: there is no such file.
        """
        if self.local is None:
            self._put(name, self.read(name))
        else:
            # utime makes no file, so a folder that is just being removed does not come back.
            os.utime(self.path(name))

    def delete(self, name: str) -> None:
        """Delete the file *name* if it is there."""
        try:
            self.filesystem.delete_file(self.path(name))
        except FileNotFoundError:
            return

    def delete_folder(self, name: str) -> None:
        """Delete the folder *name* with everything in it, if it is there."""
        if self.exists(name):
            self.filesystem.delete_dir(self.path(name))

    def delete_folders(self, names: Iterable[str]) -> None:
        """Delete the folders *names* with everything in them: those that are there, and all of them or none.

        Locally they are first moved aside, which tells whether they can be deleted; an object store has no such step and promises
        only that an error is raised.

        Raises:
            StoreError: one of them cannot be deleted; nothing was.
        """
        existing = [name for name in dict.fromkeys(names) if self.exists(name)]
        if self.local is None:
            for name in existing:
                self.filesystem.delete_dir(self.path(name))
        elif existing:
            aside = f"{_ASIDE}{uuid.uuid4().hex[:8]}"
            # Deleting file by file could fail half-way; renaming a folder either works or changes nothing.
            move_aside([Path(self.path(name)) for name in existing], Path(self.path(aside)))
            shutil.rmtree(self.path(aside))

    def drop_drafts(self, name: str = "") -> None:
        """Delete what a killed process left in the folder *name*: half-written files, and folders it was about to delete."""
        if self.local is None:
            return  # an object store shows no half-written file
        # Names that begin with a dot are never listed, so nobody has read these.
        for pattern in (".*.tmp", f"{_PROBE}*", f"{_ASIDE}*"):
            for path in Path(self.path(name)).glob(pattern):
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)

    def drop_if_empty(self, name: str) -> None:
        """Delete the folder *name* if nothing is in it; an object store has no empty folders."""
        if self.local is not None:
            with suppress(OSError):
                Path(self.path(name)).rmdir()

    def rename(self, old: str, new: str) -> None:
        """Give a file another name, if it is there."""
        # pyarrow's move raises where there is no such file.
        if self.exists(old):
            self.filesystem.move(self.path(old), self.path(new))

    def check_writable(self) -> None:
        """Raise :class:`UnwritableError` unless a file can be written here and deleted again."""
        probe = f"{_PROBE}{uuid.uuid4().hex[:8]}"
        self.write(probe, b"raysweep")
        self.delete(probe)

    def _put(self, name: str, data: bytes) -> None:
        # An object appears when its stream is closed, all of it at once.
        self.filesystem.create_dir(self.path(name).rpartition("/")[0], recursive=True)
        with self.filesystem.open_output_stream(self.path(name)) as stream:
            stream.write(data)


def each(folder: Folder, keys: Iterable[K], ask: Callable[[K], T]) -> dict[K, T]:
    """Return what *ask* says of each of *keys*, in their order; by several threads where each question is a request."""
    keys = tuple(keys)
    if folder.local is not None:
        return {key: ask(key) for key in keys}
    with ThreadPoolExecutor(REQUESTS) as pool:
        return dict(zip(keys, pool.map(ask, keys), strict=True))


def move_aside(folders: Sequence[Path], aside: Path) -> None:
    """Move every one of *folders* into the new folder *aside*, from where it can be deleted, or leave all as they are.

    Raises:
        StoreError: one of them, or something in it, cannot be deleted.
    """
    moved: list[tuple[Path, Path]] = []
    try:
        for folder in folders:
            for inner, _, _ in os.walk(folder, onerror=_raise):
                # A folder can be renamed though something in it cannot be deleted; better to find out before anything moved.
                if not os.access(inner, os.W_OK | os.X_OK) or (Path(inner) != folder and os.path.ismount(inner)):
                    raise PermissionError(f"{inner} is read-only or a mount point")
        aside.mkdir()
        for number, folder in enumerate(folders):
            target = aside / str(number)
            folder.rename(target)
            moved.append((folder, target))
    except OSError as error:
        # Put back what was moved, last one first.
        for original, target in reversed(moved):
            target.rename(original)
        with suppress(OSError):
            aside.rmdir()
        hint = "mend its permissions, or delete it by hand"
        raise StoreError(f"cannot delete {folder}: {error}; nothing was deleted", hint=hint) from error


def _raise(error: OSError) -> None:
    raise error


def _seconds(info: fs.FileInfo) -> float:
    """Return when a file was written; a storage that does not say counts as saying now."""
    return info.mtime_ns / 1e9 if info.mtime_ns is not None else time.time()
