"""UniEdit: facts of 25 domains, each with one question that follows and one that stays (``test/biology.json``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from raysweep.data.fields import Row, field, optional, standard_probes
from raysweep.data.files import JsonDataset
from raysweep.data.jsonrows import read_table
from raysweep.records import EditRecord, Probe, ProbeKind

_ASK = " The answer is (Yes/No):"  # put behind questions whether two things are the same, as published
_EDIT = ["h_e", "r_e", "t_e", "f"]  # the path of the edit itself, forwards


class UniEdit(JsonDataset):
    """Facts of Wikidata. A question over the edit's own path with its target is a paraphrase, any other one portability.

    A file is one domain, an object of records by id; a folder is all of its domains.
    """

    name: ClassVar[str] = "uniedit"
    version: ClassVar[int] = 1
    about: ClassVar[str] = (
        "UniEdit, facts of 25 domains (JSON by id); data.path = the folder, or the file of one domain"
    )
    places: ClassVar[tuple[str, ...]] = ("UniEdit/test",)
    required: ClassVar[tuple[frozenset[str], ...]] = (frozenset({"edit"}),)
    suffixes: ClassVar[tuple[str, ...]] = (".json",)
    folder_of: ClassVar[str] = ".json"

    def rows(self, file: Path) -> Sequence[object]:
        """Return the records of one domain."""
        return read_table(file)

    def record(self, row: Row, uid: str) -> EditRecord:
        """Map ``edit{prompt, target, subject}, generality{…}?, locality{…}?``."""
        prompt, target = field(row, "edit", "prompt"), field(row, "edit", "target")
        probes = [*standard_probes(prompt, target, "", None)]
        for name, entry in _entries(row, "generality"):
            kind = ProbeKind.PARAPHRASE if _is_rephrased(entry, target) else ProbeKind.PORTABILITY
            probes.append(Probe(kind=kind, prompt=_question(entry), target=field(entry, "target"), name=name))
        for name, entry in _entries(row, "locality"):
            question, answer = _question(entry), field(entry, "target")
            probes.append(Probe(kind=ProbeKind.LOCALITY, prompt=question, target=answer, against="base", name=name))
        return EditRecord(
            id=uid, subject=optional(row, "edit", "subject"), prompt=prompt, target=target, probes=tuple(probes)
        )


def _entries(row: Row, name: str) -> Iterator[tuple[str, Row]]:
    """Yield what *name* holds by number."""
    value = row.get(name)
    for key, entry in value.items() if isinstance(value, Mapping) else ():
        if isinstance(entry, Mapping):
            yield str(key), entry


def _question(entry: Row) -> str:
    return field(entry, "prompt") + (_ASK if entry.get("path_type") == "double" else "")


def _is_rephrased(entry: Row, target: str) -> bool:
    """Whether *entry* asks for the edited fact itself; the answer may be an alias, which a paraphrase is not measured by."""
    paths = entry.get("paths")
    one = paths[0] if entry.get("path_type") == "single" and isinstance(paths, list) and len(paths) == 1 else None
    return isinstance(one, list) and one[:4] == _EDIT and entry.get("target") == target
