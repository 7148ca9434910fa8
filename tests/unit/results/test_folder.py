"""Deleting many folders is all or nothing, and what killed processes left is swept up."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from raysweep.errors import StoreError
from raysweep.results.folder import Folder


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    for name in ("a", "b/deep", "c", "kept"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").write_text(name)
    return Folder(tmp_path)


def files(folder: Folder) -> set[str]:
    assert folder.local is not None
    return {str(p.relative_to(folder.local)) for p in folder.local.rglob("*") if p.is_file()}


def test_all_are_deleted(folder: Folder) -> None:
    folder.delete_folders(["a", "b", "c", "never there", "a"])
    assert files(folder) == {"kept/file"}
    assert folder.folders() == ["kept"]
    folder.delete_folders([])


@pytest.mark.parametrize("why", ["no permission", "mount point", "cannot be moved"])
def test_one_that_cannot_be_deleted_keeps_them_all(folder: Folder, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert folder.local is not None
    before, deep = files(folder), str(folder.local / "b" / "deep")
    if why == "no permission":
        access = os.access
        monkeypatch.setattr(os, "access", lambda path, mode: path != deep and access(path, mode))
    elif why == "mount point":
        monkeypatch.setattr(os.path, "ismount", lambda path: path == deep)
    else:
        rename = Path.rename

        def refuse(path: Path, target: Path) -> Path:
            if path.name == "b":
                raise PermissionError(1, "Operation not permitted", str(path))
            return rename(path, target)

        monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(StoreError, match=r"cannot delete .*/b: .*; nothing was deleted"):
        folder.delete_folders(["a", "b", "c"])
    monkeypatch.undo()
    assert files(folder) == before
    assert folder.folders() == ["a", "b", "c", "kept"]


def test_what_killed_processes_left_is_removed(folder: Folder) -> None:
    assert folder.local is not None
    before = files(folder)
    (folder.local / ".probes-000002.parquet.0a1b2c3d.tmp").write_bytes(b"half")
    (folder.local / ".probe-12345678").write_bytes(b"")
    (folder.local / ".deleted-12345678" / "0").mkdir(parents=True)
    (folder.local / ".deleted-12345678" / "0" / "file").write_text("old")
    (folder.local / ".mine").write_text("not ours to judge")
    folder.drop_drafts()
    assert files(folder) == {*before, ".mine"}
