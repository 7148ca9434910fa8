"""Snapshots of trials as files: the tensors under a name of their own, and ``snapshot.json``, which names and checks them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from raysweep.errors import DamagedError, NewerFormatError, SnapshotError
from raysweep.results.folder import Folder
from raysweep.results.schema import TIMING
from raysweep.results.state import altered_files, checksum
from raysweep.results.statefiles import SNAPSHOT, TRIAL, SnapshotFile, TableFile, read_state, read_trial
from raysweep.results.tablefiles import scan
from raysweep.rows import Snapshot

if TYPE_CHECKING:
    from torch import Tensor

# The folder of the tensors that the trials of an edit group share. It has the name of an older word for an edit group, "pass", and
# keeps it: the snapshots of unfinished trials hold paths below it, so with another name for new ones there would be two folders to
# read, to tidy and to delete for ever, and the name is nobody's to type.
GROUP_SNAPSHOTS = "_passes"


def tensor_file(key: str, name: str) -> str:
    """Return the file of a snapshot's tensors, relative to the store: the trial's own, or its edit group's."""
    return name if name.startswith(f"{GROUP_SNAPSHOTS}/") else f"{key}/{name}"


def packed(tensors: Mapping[str, Tensor]) -> bytes:
    """Return *tensors* as the content of a safetensors file."""
    from safetensors.torch import save

    # clone: safetensors refuses tensors that share memory, as tied weights do.
    data: bytes = save({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()})
    return data


def read_snapshot(folder: Folder, key: str) -> tuple[Snapshot, tuple[TableFile, ...]] | None:
    """Return the verified snapshot of the trial *key*, and the trial's files up to its step; None if there is no snapshot.

    Raises:
        SnapshotError: a file does not match its checksum or cannot be parsed.
        FileNotFoundError: the tensor file is gone.
    """
    from safetensors.torch import load

    try:
        about = read_state(folder, f"{key}/{SNAPSHOT}", SnapshotFile)
        begun = read_trial(folder, key) if about is not None else None
    except DamagedError as error:
        raise SnapshotError(error.message) from error
    if about is None:
        return None
    if begun is None:
        raise SnapshotError(f"{folder.path(f'{key}/{TRIAL}')} is missing")
    # To go on from tensors whose rows are gone or altered would leave a hole in the tables that nobody sees.
    files = about.files if about.files is not None else scan(folder, key, about.step)
    altered = altered_files(folder, key, files)
    if altered:
        raise SnapshotError(f"{folder.path(f'{key}/{altered[0]}')} is not as it was written")
    name = tensor_file(key, about.file)
    data = folder.read(name)
    if checksum(data) != about.blake2b:
        raise SnapshotError(f"{folder.path(name)} does not match its checksum")
    times = scan(folder, key, about.step, [TIMING])  # these differ between runs, so no snapshot lists them
    return Snapshot(step=about.step, tensors=load(data), meta=about.meta), (*files, *times)


def delete_unnamed_tensors(folder: Folder, group: str, keys: Iterable[str]) -> None:
    """Delete the tensors of the edit group *group* that the snapshot of none of the trials *keys* names."""
    place = f"{GROUP_SNAPSHOTS}/{group}"
    named = set()
    for key in keys:
        try:
            about = read_state(folder, f"{key}/{SNAPSHOT}", SnapshotFile)
        except (DamagedError, NewerFormatError):
            continue  # whoever goes on from it sets it aside
        named |= {about.file} if about is not None else set()
    # What a trial would go on from stays, whoever wrote it.
    still_named = [name for name in folder.files(place) if name in named]
    if not still_named:
        folder.delete_folder(place)
    for name in set(folder.files(place)) - set(still_named):
        folder.delete(name)
