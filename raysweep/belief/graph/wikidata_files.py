"""The three files of Wikidata5m (KEPLER, Wang et al. 2021), read as streams of integers and of the names that are needed.

| file | a line |
|---|---|
| train | ``Q<subject> \t P<relation> \t Q<object>`` |
| entity | ``Q<id> \t name \t another name …`` |
| relation | ``P<id> \t name \t another name …`` |

Ids are held without their letter.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from raysweep.belief.graph.graph import Ints
from raysweep.errors import DataError

TRAIN = "wikidata5m_transductive_train.txt"
ENTITY = "wikidata5m_entity.txt"
RELATION = "wikidata5m_relation.txt"
FILES = (TRAIN, ENTITY, RELATION)

_ID_BYTES = 10  # a letter and nine digits: tables of ids stay below 1 GB


def find_files(folder: Path) -> tuple[Path, Path, Path]:
    """Return the train, entity and relation file of *folder*.

    Raises:
        DataError: one is missing; the hint names all three and where to put them.
    """
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise DataError(
            f"Wikidata5m: {folder} lacks {', '.join(missing)}",
            hint=f"get it: raysweep data fetch wikidata5m; or put {', '.join(FILES)} into {folder}",
        )
    return folder / TRAIN, folder / ENTITY, folder / RELATION


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield number (from 1) and bytes of each line that is not blank."""
    with path.open("rb") as handle:
        for number, line in enumerate(handle, 1):
            content = line.rstrip(b"\r\n")
            if content:
                yield number, content


def _is_id(field: bytes, letter: bytes) -> bool:
    """Say whether *field* is *letter* and a number."""
    return field[:1] == letter and field[1:].isdigit() and len(field) <= _ID_BYTES


def _broken_line(path: Path, number: int, line: bytes, expected: str) -> DataError:
    excerpt = line[:60].decode("utf-8", errors="backslashreplace")
    return DataError(
        f"{path}:{number}: expected {expected}, found {excerpt!r}", hint="the file is damaged; fetch it again"
    )


def read_relation_names(path: Path) -> dict[int, tuple[str, ...]]:
    """Return the names of every relation by id, in file order.

    Raises:
        DataError: the file is empty, or a line of it is broken.
    """
    names: dict[int, tuple[str, ...]] = {}
    for number, line in _lines(path):
        head, *aliases = line.split(b"\t")
        if not _is_id(head, b"P") or not aliases:
            raise _broken_line(path, number, line, "P<number> and names, tab-separated")
        # A relation that is listed twice keeps its first line, and with it its place in the order.
        names.setdefault(int(head[1:]), _decode_names(path, number, line, aliases))
    if not names:
        raise DataError(f"{path} is empty", hint="fetch it again: raysweep data fetch wikidata5m")
    return names


def _decode_names(path: Path, number: int, line: bytes, aliases: Sequence[bytes]) -> tuple[str, ...]:
    try:
        # White space within a name is one space, since sentences join names by spaces.
        names = (" ".join(alias.decode().split()) for alias in aliases)
        return tuple(dict.fromkeys(n for n in names if n))
    except UnicodeDecodeError as error:
        raise _broken_line(path, number, line, "UTF-8 text") from error


def read_entity_ids(path: Path) -> Ints:
    """Return the ids of entities with a name, int64, sorted, each once.

    Raises:
        DataError: the file is empty, or a line of it is broken.
    """
    # An array of machine integers: a Python list would take seven times the memory of five million ids.
    ids = array("q")
    for number, line in _lines(path):
        head, _, rest = line.partition(b"\t")
        if not _is_id(head, b"Q"):
            raise _broken_line(path, number, line, "Q<number> and names, tab-separated")
        if rest.strip():
            ids.append(int(head[1:]))
    if not ids:
        raise DataError(f"{path} is empty", hint="fetch it again: raysweep data fetch wikidata5m")
    return np.unique(np.frombuffer(ids, dtype=np.int64))


def read_triples(path: Path, limit: int) -> Ints:
    """Return subject, relation and object of at most *limit* lines (all if negative), int64 [N, 3].

    Raises:
        DataError: a line is broken.
    """
    numbers = array("q")
    for number, line in _lines(path):
        if 0 <= limit < number:
            break
        fields = line.split(b"\t")
        if len(fields) != 3:
            raise _broken_line(path, number, line, "subject, relation and object, tab-separated")
        subject, relation, obj = fields
        if not (_is_id(subject, b"Q") and _is_id(relation, b"P") and _is_id(obj, b"Q")):
            raise _broken_line(path, number, line, "Q<number>, P<number>, Q<number>")
        numbers.extend((int(subject[1:]), int(relation[1:]), int(obj[1:])))
    return np.frombuffer(numbers, dtype=np.int64).reshape(-1, 3)


def read_first_names(path: Path, ids: Ints) -> dict[int, str]:
    """Return the first name of each of *ids*; one without a name is left out."""
    needed = np.zeros(int(ids.max()) + 1, dtype=np.bool_)  # by id: a lookup that costs a byte each
    needed[ids] = True
    first_names: dict[int, str] = {}
    for number, line in _lines(path):
        head, _, rest = line.partition(b"\t")
        # read_entity_ids has looked at every line of this file: the ids are ids.
        identity = int(head[1:])
        if identity < len(needed) and needed[identity] and identity not in first_names:
            names = _decode_names(path, number, line, rest.split(b"\t"))
            if names:
                first_names[identity] = names[0]
    return first_names
