"""How many rows of its data each arm passed over (``data.invalid: skip``): a count that belongs under its table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

COLUMN = "spec.data.left_out"


def left_out(rows: Sequence[Mapping[str, object]]) -> list[str]:
    """Return a note for each arm with rows that were left out.

    Args:
        rows: of the trials table.

    >>> left_out([{"arm": "rome", "spec.data.left_out": "[1, 4]"}, {"arm": "ft", "spec.data.left_out": None}])
    ['rome: 2 rows of the data were left out (data.invalid: skip)']
    """
    counts: dict[str, set[int]] = {}
    for row in rows:
        listed = json.loads(str(row.get(COLUMN) or "[]"))
        if listed:
            counts.setdefault(str(row["arm"]), set()).add(len(listed))
    return [
        f"{arm}: {' or '.join(map(str, sorted(numbers)))} rows of the data were left out (data.invalid: skip)"
        for arm, numbers in counts.items()
    ]
