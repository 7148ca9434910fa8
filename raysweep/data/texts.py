"""Text from which second moments of keys are taken: a dataset's own, Brown, local files, or Wikipedia from the hub."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from raysweep.config.schema import DataSpec, TextSpec
from raysweep.data import DATASETS
from raysweep.errors import DataError, MissingExtraError, nearest
from raysweep.hashing import digest, file_digest

if TYPE_CHECKING:
    from raysweep.workspace import Workspace

_VERSION = 1  # bump when the same file would yield other texts
_HUB: Mapping[str, tuple[str, str]] = {
    "wikipedia": ("wikimedia/wikipedia", "20231101.en"),
    "wikitext": ("Salesforce/wikitext", "wikitext-103-raw-v1"),
}
_SUFFIXES = (".txt", ".jsonl", ".parquet")
_SURROGATE = re.compile("[\ud800-\udfff]")
_BROWN_FILES = 500
_PASSAGE_WORDS = 100
SOURCES = ("dataset", "brown", *_HUB)


class _HubCorpus(Protocol):
    """What is used of a corpus that the ``datasets`` package streams."""

    def shuffle(self, *, seed: int, buffer_size: int) -> Iterable[Mapping[str, str]]:
        """Return its rows in an order that *seed* and *buffer_size* determine."""
        ...


def resolve(text: TextSpec, data: DataSpec, workspace: Workspace) -> TextSpec:
    """Return *text* with ``digest`` filled in: it covers the content, and how texts are cut from it.

    For hub corpora it covers name, edition and shuffling, since their content is not here.

    Raises:
        DataError: the text is not there, or no source has this name.
    """
    if not text.path and text.name == "dataset":
        dataset = DATASETS.get(data.name)()
        content: object = {
            "dataset": data.name,
            "version": dataset.version,
            "content": dataset.digest(dataset.locate(data, workspace)),
        }
    elif not text.path and text.name in _HUB:
        content = {"hub": _HUB[text.name], "shuffle": 1}
    else:
        files = _files(text, workspace)
        if text.path:
            _check_first(files)
        content = [(file.suffix, file_digest(file)) for file in files]  # the suffix says how it is cut
    return text.model_copy(update={"digest": digest({"texts": _VERSION, "source": content})})


def _check_first(files: list[Path]) -> None:
    """Raise :class:`DataError` unless the first text can be read: what is wrong with a file mostly is so from the start."""
    for file in files:
        if next(_file(file), None) is not None:
            return
    raise DataError(f"{files[0]}: holds no text", hint="paragraphs, or rows with a field 'text'")


def open_texts(text: TextSpec, data: DataSpec, workspace: Workspace) -> Iterator[str]:
    """Yield the texts of *text*, in an order that depends on nothing else; ``text.tokens`` is the caller's business.

    What is computed from them is kept under ``text.digest``, so with another content nothing is.

    Raises:
        DataError: the text is not there, cannot be read, changed since the plan, or no source has this name.
        MissingExtraError: a hub corpus without the ``datasets`` package.
    """
    # A text without a digest (a hub corpus) cannot be compared; what comes of it is not kept either.
    here = resolve(text, data, workspace).digest if text.digest else ""
    if text.digest != here:
        raise DataError(
            f"text '{text.path or text.name}': its content has digest {here}, the plan saw {text.digest}",
            hint="the file changed meanwhile; restore it, or plan again",
        )
    if not text.path and text.name == "dataset":
        dataset = DATASETS.get(data.name)()
        return dataset.texts(dataset.locate(data, workspace))
    if not text.path and text.name in _HUB:
        return _hub(text.name)
    files = _files(text, workspace)
    if not text.path:
        return _brown(files)
    return (passage for file in files for passage in _file(file))


def brown_folder(workspace: Workspace) -> Path | None:
    """Return the folder of the fetched Brown corpus, or None."""
    folder = workspace.find("data", "brown")
    return folder if folder is not None and (folder / "ca01").is_file() else None


def _files(text: TextSpec, workspace: Workspace) -> list[Path]:
    if text.path:
        return _files_at(workspace.resolve(text.path))
    if text.name != "brown":
        hint = f"{nearest(text.name, SOURCES)}; or give text.path"
        raise DataError(f"unknown text source '{text.name}'", hint=hint)
    folder = brown_folder(workspace)
    if folder is None:
        raise DataError(
            f"the Brown corpus is not in {workspace.data / 'brown'}",
            hint="fetch it: raysweep data fetch brown; or use text.name: dataset",
        )
    files = sorted(p for p in folder.iterdir() if re.fullmatch(r"c[a-r]\d\d", p.name))
    if len(files) != _BROWN_FILES:
        raise DataError(
            f"{folder}: {len(files)} of {_BROWN_FILES} files", hint="fetch it again: raysweep data fetch brown"
        )
    return files


def _files_at(path: Path) -> list[Path]:
    kinds = ", ".join(_SUFFIXES)
    if path.is_dir():
        # A folder's own order differs between file systems, and second moments depend on the order of texts.
        files = sorted(p for p in path.rglob("*") if p.suffix in _SUFFIXES)
        if not files:
            raise DataError(f"text.path '{path}' holds no {kinds} file", hint="name a file, or another folder")
        return files
    if not path.is_file():
        raise DataError(f"text.path '{path}' does not exist", hint=f"give a {kinds} file or a folder of them")
    if path.suffix not in _SUFFIXES:
        raise DataError(f"text.path '{path}' ends in none of {kinds}", hint="rename or convert it")
    return [path]


def _file(path: Path) -> Iterator[str]:
    """Yield the paragraphs of a text file (split at blank lines), or the ``text`` fields of JSONL or Parquet rows.

    Raises:
        DataError: the file cannot be read, or a text cannot be encoded.
    """
    kinds = {".parquet": _parquet, ".jsonl": _jsonl}
    try:
        for number, text in enumerate(kinds.get(path.suffix, _paragraphs)(path), 1):
            odd = _SURROGATE.search(text)
            if odd is not None:
                message = f"text {number} holds U+{ord(odd[0]):04X}, half of a character"
                raise DataError(f"{path}: {message}", hint="the text was cut or damaged")
            yield text
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}", hint="text files are UTF-8") from error


def _paragraphs(path: Path) -> Iterator[str]:
    yield from (p.strip() for p in re.split(r"\n\s*\n", path.read_text(encoding="utf-8-sig")) if p.strip())


def _jsonl(path: Path) -> Iterator[str]:
    # Only \n ends a line; a lone \r may stand inside one.
    with path.open(encoding="utf-8-sig", newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                # It is a ValueError too, but what is wrong then is the encoding, which `_file` reports.
                if isinstance(error, UnicodeDecodeError):
                    raise
                raise DataError(f"{path}:{number}: not JSON", hint="one JSON object or string per line") from error
            value = row.get("text") if isinstance(row, dict) else row
            if not isinstance(value, str):
                raise DataError(f"{path}:{number}: no field 'text'", hint='each line: {"text": "…"} or a string')
            if value.strip():
                yield value


def _parquet(path: Path) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        columns = file.schema_arrow.names
        if "text" not in columns:
            raise DataError(f"{path}: no column 'text'", hint=f"columns: {', '.join(columns)}")
        kind = file.schema_arrow.field("text").type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise DataError(f"{path}: the column 'text' holds {kind}, not text", hint="cast it to string")
        # Batch by batch: a corpus may be larger than memory.
        for batch in file.iter_batches(columns=["text"]):
            yield from (value for value in batch.column(0).to_pylist() if value and value.strip())
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file: {error}", hint="was it cut short?") from error


def untag(tagged: str) -> str:
    """Return a sentence of the Brown corpus as plain English.

    >>> untag("``/`` Well/uh ,/, he/pps didn't/dod* go/vb ''/'' ./.")
    '"Well, he didn\\'t go".'
    """
    # Tokens are "word/tag"; the last slash separates, since words may hold slashes.
    words = " ".join(token.rpartition("/")[0] for token in tagged.split())
    words = re.sub(r"(``|\() ?", lambda m: {"``": '"', "(": "("}[m[1]], words)
    words = re.sub(r" ?(''|\))", lambda m: {"''": '"', ")": ")"}[m[1]], words)
    words = re.sub(r" ([,.;:?!])", r"\1", words)
    return re.sub(r"([,.;:?!])\1+", r"\1", words)  # the corpus doubles the stop of some sentences


def _brown(files: list[Path]) -> Iterator[str]:
    """Yield passages of about 100 words, the first of each of the 500 files, then the second of each, and so on.

    Going round the files gives every genre its share however few tokens are taken.
    """
    queues = [_passages(file) for file in files]
    # Round robin over the files that still have passages.
    while queues:
        alive = []
        for queue in queues:
            passage = next(queue, None)
            if passage is not None:
                yield passage
                alive.append(queue)
        queues = alive


def _passages(file: Path) -> Iterator[str]:
    words: list[str] = []
    for line in file.read_text(encoding="utf-8", errors="replace").split("\n"):
        if line.strip():
            words += untag(line).split()
            # Whole lines only: a passage ends with the line that reaches the length.
            if len(words) >= _PASSAGE_WORDS:
                yield " ".join(words)
                words = []
    if words:
        yield " ".join(words)


def _hub(name: str) -> Iterator[str]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise MissingExtraError(
            f"text '{name}' needs the 'datasets' package and a network",
            hint="pip install 'raysweep[datasets]'; offline: text.name: brown or dataset, or text.path",
        ) from error
    return _stream(name, load_dataset)


def _stream(name: str, load_dataset: Callable[..., _HubCorpus]) -> Iterator[str]:
    repository, edition = _HUB[name]
    try:
        # A stream is shuffled within a buffer, so seed and size of the buffer make the order: raise "shuffle" in
        # `resolve` with them.
        rows = load_dataset(repository, edition, split="train", streaming=True).shuffle(seed=1, buffer_size=10_000)
        for row in rows:
            if row["text"].strip():
                yield row["text"]
    except OSError as error:
        raise DataError(
            f"text '{name}' ({repository}) cannot be read from the hub: {error}",
            hint="offline: text.name: brown or dataset, or text.path",
        ) from error
