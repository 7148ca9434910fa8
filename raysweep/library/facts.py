"""What people hand over to be written: records of a dataset, mappings, or three keywords."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from raysweep.errors import RecordError
from raysweep.records import EditRecord, check_record

Fact = EditRecord | Mapping[str, str]
"""What is written: a record of a dataset, or a mapping with ``prompt``, ``target`` and, where the editor needs it, ``subject``."""
_KEYS = ("prompt", "target", "subject", "id", "unrelated")


def records_of(facts: Sequence[Fact], single: Mapping[str, str], *, first: int = 0) -> list[EditRecord]:
    """Return *facts* as records, or the *single* one whose parts were given by keyword.

    Args:
        facts: what was given one by one.
        single: ``prompt``, ``target`` and ``subject``, each empty if it was not given.
        first: number of the first fact, from which its id is made where it has none.

    Raises:
        RecordError: there is no fact, or one is given both ways; a part is missing, empty or unknown.

    >>> [record.id for record in records_of([{"prompt": "The sky is", "target": "blue"}], {}, first=7)]
    ['fact-7']
    """
    said = {key: value for key, value in single.items() if value}
    if bool(facts) == bool(said):
        raise RecordError(
            "a fact is given both as an argument and by keywords" if facts else "there is no fact to write",
            hint="edit(record, …), or edit(prompt=…, target=…, subject=…)",
        )
    batch = [_record(fact, first + i) for i, fact in enumerate(facts or (said,))]
    for record in batch:
        check_record(record)
    return batch


def _record(fact: Fact, number: int) -> EditRecord:
    """Return *fact* as a record; a mapping becomes one without probes, called by its *number*."""
    if isinstance(fact, EditRecord):
        return fact
    wrong = [key for key in fact if key not in _KEYS]
    missing = [key for key in ("prompt", "target") if not fact.get(key)]
    if wrong or missing:
        what = f"has no {' and no '.join(missing)}" if missing else f"has an unknown key '{wrong[0]}'"
        raise RecordError(f"fact {number} {what}", hint=f"keys: {', '.join(_KEYS)}")
    texts = {"id": f"fact-{number}", "subject": "", **fact}
    return EditRecord(
        id=texts["id"], subject=texts["subject"], prompt=texts["prompt"], target=texts["target"], probes=(),
        unrelated=texts.get("unrelated", ""),
    )  # fmt: skip
