"""Datasets by name, and the one function that opens them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raysweep.config.schema import DataSpec
from raysweep.config.selection import chosen, select
from raysweep.data.base import Dataset, Reading
from raysweep.errors import DataError, ProblemsError
from raysweep.records import EditRecord
from raysweep.registry import Registry

if TYPE_CHECKING:
    from pathlib import Path

    from raysweep.workspace import Workspace

__all__ = ["DATASETS", "Dataset", "Reading", "check_digest", "open_dataset", "resolve"]

DATASETS: Registry[type[Dataset]] = Registry(
    "dataset",
    {
        "zsre": "raysweep.data.zsre:Zsre",
        "counterfact": "raysweep.data.counterfact:Counterfact",
        "hallucination": "raysweep.data.hallucination:Hallucination",
        "qaedit": "raysweep.data.qaedit:QAEdit",
        "hallueditbench": "raysweep.data.hallueditbench:HalluEditBench",
        "mquake": "raysweep.data.mquake:MQuAKE",
        "wikibigedit": "raysweep.data.wikibigedit:WikiBigEdit",
        "knowedit": "raysweep.data.knowedit:KnowEdit",
        "rippleedits": "raysweep.data.rippleedits:RippleEdits",
        "uniedit": "raysweep.data.uniedit:UniEdit",
        "ultraeditbench": "raysweep.data.ultraeditbench:UltraEditBench",
        "zsre_rledit": "raysweep.data.zsre_rledit:ZsreRLEdit",
        "fever": "raysweep.data.fever:Fever",
        "belief": "raysweep.data.belief_points:BeliefPoints",
        "world": "raysweep.data.world:EmbeddedWorld",
    },
)


def resolve(spec: DataSpec, workspace: Workspace) -> DataSpec:
    """Return *spec* with ``digest`` filled in and ``size: 0`` replaced by the number of records left after ``skip``.

    With ``invalid: skip``, the rows that no editor could write are noted in ``left_out``.

    Raises:
        NameUnknownError: no such dataset.
        DataError: its file is missing or unreadable, or holds fewer records than asked for.
    """
    dataset = DATASETS.get(spec.name)()
    path = dataset.locate(spec, workspace)
    where = str(path or spec.name)
    filled_in = {"digest": dataset.digest(path)}
    # Counting rows needs no look into them; leaving some out does.
    if spec.invalid == "refuse":
        return spec.model_copy(update={**filled_in, "size": _size(spec, dataset.count(path), where)})
    selection = select(dataset.read(path).every, spec, lambda record: None, where)
    size = _size(spec, spec.skip + len(selection.records), where)
    return spec.model_copy(update={**filled_in, "size": size, "left_out": selection.left_out})


def open_dataset(spec: DataSpec, workspace: Workspace) -> tuple[EditRecord, ...]:
    """Return the records that *spec* chooses, in file order; rows that it does not choose may be anything.

    Raises:
        NameUnknownError: no such dataset.
        DataError: its file is missing or unreadable, changed since the plan, or holds fewer records than asked for.
        ProblemsError: rows that were to be used break rules; every one is listed as ``file:index``.
    """
    dataset, path = check_digest(spec, workspace)
    where = str(path or spec.name)
    # Reading refuses an empty file for its missing fields; that it holds too few records is the better message.
    reading = dataset.read(path) if dataset.count(path) else Reading(())
    selection = chosen(reading.every, spec)
    if selection.problems:
        raise ProblemsError(selection.problems)
    _size(spec, dataset.count(path) if spec.invalid == "refuse" else spec.skip + len(selection.records), where)
    return selection.records


def check_digest(spec: DataSpec, workspace: Workspace) -> tuple[Dataset, Path | None]:
    """Return the dataset of *spec* and its file, None where it has none, if the content is what the plan saw.

    Raises:
        NameUnknownError: no such dataset.
        DataError: its file is missing or unreadable, or changed since the plan.
    """
    dataset = DATASETS.get(spec.name)()
    path = dataset.locate(spec, workspace)
    actual = dataset.digest(path)
    # Workers open the data hours after the plan was made; other records would be filed under its keys.
    if spec.digest and spec.digest != actual:
        raise DataError(
            f"{path or spec.name}: its content has digest {actual}, the plan saw {spec.digest}",
            hint="the file changed meanwhile; restore it, or plan again",
        )
    return dataset, path


def _size(spec: DataSpec, count: int, where: str) -> int:
    """Return how many records *spec* chooses of *count*."""
    left = count - spec.skip
    # size 0 asks for all there are, and for one at least.
    if left < max(spec.size, 1):
        stated = f"data.size = {spec.size} after data.skip = {spec.skip}" if spec.size else f"data.skip = {spec.skip}"
        kind = "records" if spec.invalid == "refuse" else "records that can be used"
        raise DataError(f"{where} holds {count} {kind}, too few for {stated}", hint="lower them, or use a larger file")
    return spec.size or left
