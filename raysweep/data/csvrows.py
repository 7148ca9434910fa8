"""A CSV file with a header → rows: texts by column. Cells may hold commas, quotes and line breaks in quotes."""

from __future__ import annotations

import ast
import csv
import io
from pathlib import Path

from raysweep.data.jsonrows import read_text
from raysweep.errors import DataError, RecordError

_LONGEST_LITERAL = 10_000  # characters


def read_csv(path: Path) -> list[object]:
    """Return the rows of a CSV file as objects; a row with fewer cells lacks the last columns.

    A row with more cells than the header has columns is a list of its cells: nobody can tell which one is too many.

    Raises:
        DataError: the file cannot be read, is not UTF-8, has no header, a column twice, or a quote that is not closed.
    """
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        header = next(reader, [])
        if not any(name.strip() for name in header):
            raise DataError(f"{path}: no header", hint="the first line of a CSV file names its columns")
        twice = next((name for name in header if header.count(name) > 1), None)
        if twice is not None:
            raise DataError(f"{path}: the header has the column '{twice}' twice", hint="keep one of them")
        # An empty line is no row.
        return [
            cells if len(cells) > len(header) else dict(zip(header, cells, strict=False)) for cells in reader if cells
        ]
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not CSV: {error}", hint="is a quote not closed?") from error


def literal_texts(text: str, name: str) -> list[str]:
    """Return the list of texts that *text*, the field *name*, spells as Python does; nothing is evaluated but literals.

    >>> literal_texts("['one', 'two, or more']", "choices")
    ['one', 'two, or more']

    Raises:
        RecordError: it is no such list, or longer than 10,000 characters.
    """
    # Bounded, since the parser takes time and memory for what is nested or long.
    if len(text) > _LONGEST_LITERAL:
        raise RecordError(f"field '{name}' has {len(text):,} characters; a list has at most {_LONGEST_LITERAL:,}")
    try:
        value: object = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise RecordError(f"field '{name}' is no list of texts: {text[:80]!r}", hint="['one', 'two']") from error
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise RecordError(f"field '{name}' is no list of texts: {text[:80]!r}", hint="['one', 'two']")
    return value
