"""The one writer: whole or not at all."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

import pytest

from raysweep.atomic import file_draft, replace_folder, write_file, write_folder


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_file_appears_with_its_folder_and_leaves_no_draft(tmp_path: Path) -> None:
    write_file(tmp_path / "a/b.json", "ü")
    write_file(tmp_path / "a/b.json", b"2", sync=False)
    assert (tmp_path / "a/b.json").read_bytes() == b"2"
    assert names(tmp_path / "a") == ["b.json"]


def test_a_file_and_a_folder_have_the_modes_of_the_umask(tmp_path: Path) -> None:
    mask = os.umask(0o022)
    try:
        write_file(tmp_path / "f", b"")
        with write_folder(tmp_path / "d"):
            pass
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o644
    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o755


def test_after_an_error_the_former_file_is_there(tmp_path: Path) -> None:
    write_file(tmp_path / "f", b"old")
    with suppress(KeyboardInterrupt), file_draft(tmp_path / "f") as draft:
        draft.write_bytes(b"ha")
        raise KeyboardInterrupt
    assert (tmp_path / "f").read_bytes() == b"old"
    assert names(tmp_path) == ["f"]


@pytest.mark.parametrize("only_writer", [False, True])
def test_a_folder_takes_the_place_of_another(tmp_path: Path, only_writer: bool) -> None:
    for content in ("1", "2"):
        with write_folder(tmp_path / "d", only_writer=only_writer) as draft:
            (draft / content).write_text(content)
    assert names(tmp_path / "d") == ["2"]
    assert names(tmp_path) == ["d"]


@pytest.mark.parametrize("only_writer", [False, True])
def test_after_an_error_the_former_folder_is_there(tmp_path: Path, only_writer: bool) -> None:
    with write_folder(tmp_path / "d") as draft:
        (draft / "old").touch()
    with suppress(ValueError), write_folder(tmp_path / "d", only_writer=only_writer) as draft:
        (draft / "new").touch()
        raise ValueError("no")
    assert names(tmp_path / "d") == ["old"]
    assert names(tmp_path) == ["d"]


def test_the_only_writer_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    (tmp_path / "d.draft").mkdir()
    (tmp_path / "d.draft/half").touch()
    with write_folder(tmp_path / "d", only_writer=True) as draft:
        assert not names(draft)


def test_a_folder_that_cannot_be_moved_in_leaves_the_former_one_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "new").mkdir()
    moves = []

    def replace(old: Path, new: Path) -> None:
        moves.append((old.name, new.name))
        if len(moves) == 2:
            raise OSError("killed here")
        old.rename(new)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match="killed"):
        replace_folder(tmp_path / "new", tmp_path / "d", tmp_path / "d.old")
    assert names(tmp_path) == ["d.old", "new"]
