"""Datasets by name, and the one function that opens them."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from raysweep.config.schema import DataSpec
from raysweep.data.base import Dataset, Reading
from raysweep.errors import DataError
from raysweep.records import EditRecord
from raysweep.registry import Registry

if TYPE_CHECKING:
    from raysweep.workspace import Workspace

__all__ = ["DATASETS", "Dataset", "Reading", "open_dataset", "resolve"]

DATASETS: Registry[type[Dataset]] = Registry(
    "dataset",
    {
        "zsre": "raysweep.data.zsre:Zsre",
        "counterfact": "raysweep.data.counterfact:Counterfact",
        "hallucination": "raysweep.data.hallucination:Hallucination",
        "belief": "raysweep.data.belief:Belief",
        "world": "raysweep.data.world:EmbeddedWorld",
    },
)


def resolve(spec: DataSpec, workspace: Workspace) -> DataSpec:
    """Return *spec* with ``digest`` filled in and ``size: 0`` replaced by the number of records left after ``skip``.

    Raises:
        NameUnknownError: no such dataset.
        DataError: its file is missing or unreadable, or holds fewer records than asked for.
    """
    dataset = DATASETS.get(spec.name)()
    path = dataset.locate(spec, workspace)
    size = _size(spec, dataset.count(path), str(path or spec.name))
    return spec.model_copy(update={"digest": dataset.digest(path), "size": size})


def open_dataset(spec: DataSpec, workspace: Workspace) -> tuple[EditRecord, ...]:
    """Return the records that *spec* chooses, in file order.

    Raises:
        NameUnknownError: no such dataset.
        DataError: its file is missing or unreadable, changed since the plan, or holds fewer records than asked for.
        ProblemsError: records break rules; every one of the file's is listed as ``file:index``.
    """
    dataset = DATASETS.get(spec.name)()
    path = dataset.locate(spec, workspace)
    where = str(path or spec.name)
    found = dataset.digest(path)
    if spec.digest and spec.digest != found:
        raise DataError(
            f"{where}: its content has digest {found}, the plan saw {spec.digest}",
            hint="the file changed meanwhile; restore it, or plan again",
        )
    size = _size(spec, dataset.count(path), where)
    return tuple(islice(dataset.load(path), spec.skip, spec.skip + size))


def _size(spec: DataSpec, count: int, where: str) -> int:
    """Return how many records *spec* chooses of *count*."""
    left = count - spec.skip
    if left < max(spec.size, 1):
        asked = f"data.size = {spec.size} after data.skip = {spec.skip}" if spec.size else f"data.skip = {spec.skip}"
        raise DataError(f"{where} holds {count} records, too few for {asked}", hint="lower them, or use a larger file")
    return spec.size or left
