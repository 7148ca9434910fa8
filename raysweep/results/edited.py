"""Edited models of finished trials as files: ``edited.safetensors``, and ``edited.json``, which names and checks it."""

from __future__ import annotations

from collections.abc import Iterable

from raysweep.errors import DamagedError
from raysweep.results.folder import Folder
from raysweep.results.snapshots import packed
from raysweep.results.state import checksum
from raysweep.results.statefiles import FORMAT, SnapshotFile, read_state
from raysweep.rows import EditedModel

EDITED, TENSORS = "edited.json", "edited.safetensors"


def write_edited(folder: Folder, key: str, step: int, edited: EditedModel) -> None:
    """Write what the trial *key* keeps of its model after *step* edits: the tensors, then the file that names them."""
    data = packed(edited.tensors)
    folder.write(f"{key}/{TENSORS}", data)
    about = {"format": FORMAT, "step": step, "file": TENSORS, "blake2b": checksum(data), "meta": dict(edited.meta)}
    folder.write_json(f"{key}/{EDITED}", about)


def read_edited(folder: Folder, key: str) -> EditedModel | None:
    """Return what the trial *key* has kept of its model; None if it kept nothing.

    Raises:
        DamagedError: a file is gone, or not as it was written.
    """
    from safetensors.torch import load

    about = read_state(folder, f"{key}/{EDITED}", SnapshotFile)
    if about is None:
        return None
    path, cure = f"{key}/{about.file}", "make the trial again: `raysweep run … --fresh`"
    try:
        data = folder.read(path)
    except OSError as error:
        raise DamagedError(f"{folder.path(path)} cannot be read: {error}", hint=cure) from error
    if checksum(data) != about.blake2b:
        raise DamagedError(f"{folder.path(path)} is not as it was written", hint=cure)
    return EditedModel(tensors=load(data), meta=about.meta)


def without_edited(folder: Folder, keys: Iterable[str]) -> list[str]:
    """Return those of *keys* whose trials kept no edited model."""
    return [key for key in keys if not folder.exists(f"{key}/{EDITED}")]
