"""A file of records → rows: a JSON array, or one JSON value a line, whatever the file is called."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from raysweep.errors import DataError, RecordError

# What a file begins with that is no text, and what it is then.
_MAGIC = {
    b"\x1f\x8b": ("a gzip archive", "unpack it first"),
    b"PK\x03\x04": ("a zip archive", "unpack it first"),
    b"PAR1": ("a Parquet file", "write its rows as JSON lines"),
    b"ARROW1": ("an Arrow file", "write its rows as JSON lines"),
    b"\xff\xfe": ("UTF-16 text", "save it as UTF-8"),
    b"\xfe\xff": ("UTF-16 text", "save it as UTF-8"),
    b"version https://git-lfs": ("a Git LFS pointer", "fetch the file itself: git lfs pull"),
}


class JsonObject(dict[str, object]):
    """A JSON object that knows which of its keys were written more than once (JSON itself takes the last, silently)."""

    repeated: tuple[str, ...] = ()


def _object(pairs: list[tuple[str, object]]) -> JsonObject:
    # json hands over the pairs as written; a dict keeps the last of two equal keys without a word.
    made = JsonObject(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        made.repeated = tuple(dict.fromkeys(k for k, _ in pairs if k in seen or seen.add(k)))  # type: ignore[func-returns-value]
    return made


def read_rows(path: Path) -> list[object]:
    """Return the elements of a JSON array, or the values of a file with one JSON value a line.

    The content decides, not the ending: JSON lines are often called ``.json``.

    Raises:
        DataError: the file cannot be read, is not UTF-8, not JSON, or neither an array nor lines.
    """
    text = read_text(path)
    if not text.strip():
        raise DataError(f"{path}: the file is empty", hint="it must hold a JSON array of objects, or one object a line")
    # The ending is believed where the content does not speak against it.
    if path.suffix == ".jsonl" and not text.lstrip().startswith("["):
        return list(_lines(text, path))
    try:
        rows = _parse(text, path)
    except DataError:
        # No JSON as a whole; if its first line is an object by itself, these are JSON lines with another ending.
        first = next(line for line in text.split("\n") if line.strip())
        if not _is_object(first):
            raise
        return list(_lines(text, path))
    if isinstance(rows, JsonObject) and rows and "\n" not in text.strip():
        return [rows]  # one line of JSON lines
    if not isinstance(rows, list):
        inside = [k for k, v in rows.items() if isinstance(v, list)] if isinstance(rows, Mapping) else []
        hint = f"the array under '{inside[0]}' alone, perhaps" if inside else "one object per record"
        raise DataError(f"{path}: a JSON array is needed, got {type_name(rows)}", hint=hint)
    return rows


def read_table(path: Path) -> list[object]:
    """Return the values of a file that holds one JSON object of objects, in file order, or its rows if it holds an array.

    Raises:
        DataError: the file cannot be read, is not UTF-8, not JSON, or neither of both.
    """
    text = read_text(path)
    if not text.lstrip().startswith("{"):
        return read_rows(path)
    table = _parse(text, path)
    if not isinstance(table, JsonObject) or not all(isinstance(value, Mapping) for value in table.values()):
        raise DataError(f"{path}: an object of records by id is needed", hint='{"0": {…}, "1": {…}}, or an array')
    if table.repeated:
        raise DataError(f"{path}: the id '{table.repeated[0]}' comes twice", hint="keep one of the records")
    return list(table.values())


def type_name(value: object) -> str:
    """Return the name of the type that *value* has in Python; a JSON object is a ``dict``."""
    return "dict" if isinstance(value, dict) else type(value).__name__


def check_keys(row: object) -> None:
    """Raise :class:`RecordError` if an object in *row* has a key twice: which of the values is meant, nobody can tell."""
    if isinstance(row, JsonObject) and row.repeated:
        raise RecordError(f"the row has the key '{row.repeated[0]}' twice", hint="keep one of them")
    below = row.values() if isinstance(row, Mapping) else row if isinstance(row, list) else ()
    for value in below:
        if isinstance(value, Mapping | list):
            check_keys(value)


def read_text(path: Path) -> str:
    """Return the text of a file without a byte order mark.

    Raises:
        DataError: it cannot be read, is no text, or not UTF-8.
    """
    try:
        raw = path.read_bytes()
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}", hint="give a file of JSON that you may read") from error
    for magic, (what, cure) in _MAGIC.items():
        if raw.startswith(magic):
            raise DataError(f"{path}: cannot be read: this is {what}", hint=f"{cure}; data files are UTF-8 text")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}:{line}: cannot be read: byte {error.start} is not UTF-8", hint="data files are UTF-8 text"
        ) from error


def _lines(text: str, path: Path) -> Iterator[object]:
    # Not splitlines(): it also breaks at characters that a JSON text may hold, such as U+2028.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield _parse(line, path, number)


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _parse(text: str, path: Path, first_line: int = 1) -> object:
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError as error:
        raise DataError(
            f"{path}:{first_line}: nested too deep to be a record", hint="one flat object per record"
        ) from error
    except ValueError as error:
        line = first_line + getattr(error, "lineno", 1) - 1
        column = getattr(error, "colno", 1)
        detail = getattr(error, "msg", str(error).partition(";")[0])
        raise DataError(f"{path}:{line}:{column}: not JSON: {detail}", hint="was the file cut short?") from error
