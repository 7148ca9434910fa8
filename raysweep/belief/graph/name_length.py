"""How long a name is, and how to shorten it: by words, or by the tokens of a ``tokenizer.json``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from raysweep.belief.graph.graph import Ints
from raysweep.errors import DataError

_BATCH = 4096


class NameTokens(Protocol):
    """Counts and cuts; both are pure."""

    def lengths(self, texts: Sequence[str]) -> Ints:
        """Return the number of tokens of each text, int64 [N], without special tokens."""

    def shorten(self, texts: Sequence[str], limit: int) -> list[str]:
        """Return each text cut to at most *limit* tokens; a shorter one comes back unchanged."""


class WordNameTokens:
    """A token is a word between white space."""

    def lengths(self, texts: Sequence[str]) -> Ints:
        """Return the number of words of each text."""
        return np.array([len(t.split()) for t in texts], dtype=np.int64)

    def shorten(self, texts: Sequence[str], limit: int) -> list[str]:
        """Return the first *limit* words of each text."""
        return [" ".join(w[:limit]) if len(w := t.split()) > limit else t for t in texts]


class FileNameTokens:
    """Tokens of a ``tokenizer.json`` (any fast tokenizer).

    Raises:
        DataError: there is no such file, or it is none.
    """

    def __init__(self, path: Path) -> None:
        file = path / "tokenizer.json" if path.is_dir() else path
        if not file.is_file():
            raise DataError(
                f"tokenizer '{file}' does not exist", hint="give 'words', or a tokenizer.json or its folder"
            )
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the package raises nothing more precise
            raise DataError(f"{file} is not a tokenizer: {error}", hint="give a tokenizer.json") from error
        # A tokenizer.json may truncate or pad, and lengths would lie.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def lengths(self, texts: Sequence[str]) -> Ints:
        """Return the number of tokens of each text."""
        return np.array([len(ids) for ids in self._ids(texts)], dtype=np.int64)

    def shorten(self, texts: Sequence[str], limit: int) -> list[str]:
        """Return each text's first *limit* tokens decoded; a character cut in half is left out."""
        cut = []
        for text, ids in zip(texts, self._ids(texts), strict=True):
            # A byte-level token may end within a character, which decodes to U+FFFD.
            short = self._tokenizer.decode(ids[:limit]).strip("\ufffd ") if len(ids) > limit else text
            # A cut that leaves nothing would be no name: the whole text stays.
            cut.append(short or text)
        return cut

    def _ids(self, texts: Sequence[str]) -> Iterator[list[int]]:
        # In batches: encodings take far more memory than the ids that are kept of them.
        for start in range(0, len(texts), _BATCH):
            for encoded in self._tokenizer.encode_batch(list(texts[start : start + _BATCH]), add_special_tokens=False):
                yield encoded.ids


def tokenizer_file(path: Path) -> Path:
    """Return the ``tokenizer.json`` that *path* is, or that lies in it.

    Raises:
        DataError: there is none.
    """
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise DataError(
            f"tokenizer '{file}' does not exist",
            hint=f"give 'words', or a tokenizer.json or its folder; the published one is mistralai/Mistral-7B-v0.1's "
            f"tokenizer.json, from its hub page: put it at {file}",
        )
    return file


def open_tokens(name: str, root: Path) -> NameTokens:
    """Return the tokens called *name*: ``words``, or a path (a relative one counts from *root*).

    Raises:
        DataError: no such file.
    """
    return WordNameTokens() if name == "words" else FileNameTokens(root / Path(name).expanduser())
