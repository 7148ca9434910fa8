"""The order in which records are edited."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from raysweep.records import EditRecord


def arranged(records: Sequence[EditRecord], how: str, seed: int) -> Sequence[EditRecord]:
    """Return *records* in the order that ``data.order`` names; every order but ``file`` is drawn by *seed*.

    ``clustered`` and ``dispersed`` look at a fact's kind: its prompt without its subject, which facts of one relation mostly share.
    Editors see the same facts either way, so what differs is what their order does: similar keys in a row, or far apart.

    Args:
        records: in the file's order.
        how: ``file``, ``seeded`` (:func:`order`), ``clustered`` (facts of a kind together, kinds in a drawn order) or ``dispersed``
            (facts of a kind as evenly spread over the run as can be).
        seed: of the draw.
    """
    if how == "file":
        return records
    drawn = order(records, seed)
    if how == "seeded":
        return drawn
    kinds: dict[str, list[EditRecord]] = {}
    for record in drawn:
        kinds.setdefault(kind_of(record), []).append(record)
    if how == "clustered":
        return tuple(record for kind in sorted(kinds, key=lambda kind: _hash(seed, kind)) for record in kinds[kind])
    # Fact i of n of a kind belongs at (i + u) / n of the run; u is the kind's own, or all kinds would begin together.
    places = []
    for kind, members in kinds.items():
        begin = int.from_bytes(_hash(seed, kind)[:8], "big") / 2**64
        places += [((i + begin) / len(members), record.id, record) for i, record in enumerate(members)]
    return tuple(record for *_, record in sorted(places, key=lambda place: place[:2]))


def kind_of(record: EditRecord) -> str:
    """Return the prompt of *record* without its subject.

    >>> kind_of(EditRecord(id="a", subject="Ana", prompt="The pet of Ana is", target="cat", probes=()))
    'The pet of {} is'
    """
    return record.prompt.replace(record.subject, "{}") if record.subject else record.prompt


def _hash(seed: int, text: str) -> bytes:
    return hashlib.blake2b(f"{seed}/{text}".encode(), digest_size=16).digest()


def order(records: Iterable[EditRecord], seed: int) -> tuple[EditRecord, ...]:
    """Return *records* permuted by *seed*; two records keep their relative order whatever the others are.

    Each record is placed by a hash of the seed and its id, so a dataset that grows (or a larger ``data.size``) only
    inserts records into the order.
    """

    def place(record: EditRecord) -> tuple[bytes, str]:
        # A hash of each record alone: a shuffle would move all of them when one is added. The id settles equal hashes.
        return _hash(seed, record.id), record.id

    return tuple(sorted(records, key=place))
