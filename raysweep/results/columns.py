"""What a table is: columns with meaning, unit and presence, and how rows become one.

Rows become tables column by column, from dataclasses: ``pa.Table.from_pylist`` would drop unknown keys and accept
missing values.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import pyarrow as pa

from raysweep.errors import StoreError
from raysweep.rows import TableRow

VERSION_KEY = b"raysweep.schema"


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its name, Arrow type, unit and meaning; ``presence`` says when it is null (empty = never)."""

    name: str
    type: pa.DataType
    unit: str
    doc: str
    presence: str = ""

    @property
    def nullable(self) -> bool:
        """Whether the column may hold nulls."""
        return bool(self.presence)


@dataclass(frozen=True, slots=True)
class TableSchema:
    """One table: its columns, the dataclass its rows come from, and the columns that fix the order of its rows."""

    name: str
    version: int
    doc: str
    row: type | None
    columns: tuple[Column, ...]
    order: tuple[str, ...] = ()

    @property
    def tag(self) -> str:
        """``probes/1``, as stored in each file's metadata."""
        return f"{self.name}/{self.version}"

    @property
    def arrow(self) -> pa.Schema:
        """The Arrow schema, with its tag as metadata."""
        parts = [pa.field(c.name, c.type, nullable=c.nullable) for c in self.columns]
        return pa.schema(parts, metadata={VERSION_KEY: self.tag.encode()})

    def build(self, rows: Sequence[TableRow]) -> pa.Table:
        """Return *rows* as a table in the schema's row order.

        Raises:
            StoreError: a row of another class, a value of another type, or a null where none may be.
        """
        assert self.row is not None, self.name
        if {f.name for f in fields(self.row)} != {c.name for c in self.columns}:
            raise StoreError(f"table {self.tag} and {self.row.__name__} do not have the same fields")
        wrong = {type(r).__name__ for r in rows if type(r) is not self.row}
        if wrong:
            raise StoreError(f"table {self.tag} is built from {self.row.__name__}, got {', '.join(sorted(wrong))}")
        # The order is the schema's: the same rows are the same bytes, in whatever order they were measured.
        ordered = sorted(rows, key=lambda r: tuple(_rank(getattr(r, name)) for name in self.order))
        return pa.Table.from_arrays([self._convert(c, [getattr(r, c.name) for r in ordered]) for c in self.columns],
                                    schema=self.arrow)  # fmt: skip

    def _convert(self, column: Column, values: list[object]) -> pa.Array:
        plain = _PLAIN[column.type]
        # By exact type, since bool is an int in Python: True in a column of numbers is a mistake of whoever made the
        # row.
        kinds = {type(v) for v in values}
        bad = [k.__name__ for k in kinds if not (k is type(None) or plain.accepts(k))]
        if bad:
            raise StoreError(f"{self.tag}.{column.name} holds {column.type}, got {', '.join(sorted(bad))}")
        if type(None) in kinds and not column.nullable:
            raise StoreError(f"{self.tag}.{column.name} may not be null")
        # from_pandas would turn NaN into null; here NaN is a value that is undefined, null one that there is none of.
        return pa.array([None if v is None else plain.make(v) for v in values], type=column.type, from_pandas=False)


@dataclass(frozen=True, slots=True)
class _Plain:
    accepts: Callable[[type], bool]
    make: Callable[..., object]


def _rank(value: object) -> tuple[bool, object]:
    # Nulls first: None cannot be compared with a number.
    return (value is not None, value if value is not None else 0)


# What a column of each Arrow type takes, and what it becomes: an enum its value, an int among floats a float.
_PLAIN: dict[pa.DataType, _Plain] = {
    pa.string(): _Plain(lambda k: issubclass(k, str), lambda v: str(getattr(v, "value", v))),
    pa.int64(): _Plain(lambda k: issubclass(k, int) and k is not bool, int),
    pa.float64(): _Plain(lambda k: issubclass(k, int | float) and k is not bool, float),
    pa.bool_(): _Plain(lambda k: k is bool, bool),
}


def text_column(name: str, doc: str, presence: str = "") -> Column:
    """Return a column of text, which has no unit."""
    return Column(name, pa.string(), "", doc, presence)


KEY = Column(
    "trial_key", pa.string(), "16 hex digits", "key of the trial: the hash of everything its numbers depend on"
)


def inferred(values: list[object]) -> pa.Array:
    """Return *values* in the one type they share, numbers as float64 if mixed, anything else as JSON text."""
    kinds = {type(v) for v in values if v is not None}
    # Arrow columns have one type, and a swept key may be an integer in one arm and a float in another.
    if kinds == {int, float}:
        values = [float(v) if isinstance(v, int | float) else None for v in values]
    elif len(kinds) > 1:
        values = [None if v is None else json.dumps(v) for v in values]
    return pa.array(values, type=pa.string() if not kinds else None)
