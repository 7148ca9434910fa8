"""Records for people who write Python: a dataset by name."""

from __future__ import annotations

from pathlib import Path

from raysweep.config.schema import DataSpec
from raysweep.data import open_dataset as open_chosen
from raysweep.records import EditRecord
from raysweep.workspace import Workspace, resolve_from_cwd


def open_dataset(
    data: str | DataSpec, workspace: Workspace | None = None, *, path: str | Path = "", size: int = 0, skip: int = 0
) -> tuple[EditRecord, ...]:
    """Return records of a dataset, in the order of its file.

    Args:
        data: a name of ``raysweep ls datasets``, or a whole specification, beside which the other arguments say nothing.
        workspace: where named datasets lie; None = the current folder (``Workspace.here``).
        path: its file; empty = found by name.
        size: how many records; 0 = all that are left after *skip*.
        skip: how many records to leave out first.

    Raises:
        NameUnknownError: no such dataset.
        DataError: its file is missing or unreadable, or holds fewer records than asked for.
        ProblemsError: records break rules; every one is listed as ``file:index``.

    >>> import raysweep
    >>> [record.subject for record in raysweep.open_dataset("world", size=2)]
    ['Kaleis Natger', 'Zefi Bofman']
    """
    if isinstance(data, str):
        where = resolve_from_cwd(str(path)) if path else ""
        data = DataSpec.model_validate({"name": data.lower(), "path": where, "size": size, "skip": skip})
    return open_chosen(data, workspace or Workspace.here())
