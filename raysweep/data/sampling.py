"""The order in which records are edited."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from raysweep.records import EditRecord


def order(records: Iterable[EditRecord], seed: int) -> tuple[EditRecord, ...]:
    """Return *records* permuted by *seed*; two records keep their relative order whatever the others are.

    Each record is placed by a hash of the seed and its id, so a dataset that grows (or a larger ``data.size``) only
    inserts records into the order.
    """

    def place(record: EditRecord) -> tuple[bytes, str]:
        # A hash of each record alone: a shuffle would move all of them when one is added. The id settles equal hashes.
        return hashlib.blake2b(f"{seed}/{record.id}".encode(), digest_size=16).digest(), record.id

    return tuple(sorted(records, key=place))
