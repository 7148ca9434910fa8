"""The header of a GGUF file: its metadata and the places of its tensors, read with a bound on every count.

The format is that of ggml's ``docs/gguf.md``: magic, version, two counts, then keys with typed values, then one entry per
tensor. Only versions 2 and 3, little-endian, are read. Nothing is trusted: a count is compared with the bytes that are left
before anything is made of it.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from raysweep.errors import MissingExtraError, ModelError

if TYPE_CHECKING:
    import numpy as np

_MAGIC = b"GGUF"
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_DEPTH = 4  # of arrays inside arrays
_DIMENSIONS = 8
_BLOCKS = 4096  # more blocks no model has
_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
_OTHER = "model.path is a model folder or a .gguf file"
_AGAIN = "fetch or download it again"


class Stored(NamedTuple):
    """How a tensor is stored: the number of its ggml type, and its shape with the slowest axis first, as in torch."""

    kind: int
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Header:
    """What a GGUF file says of itself.

    Attributes:
        values: scalars and texts by key; also a number that is given block by block, if it is the same in all of them.
        lengths: lengths of arrays by key; their contents are not kept.
        tensors: the tensors by name.
    """

    values: Mapping[str, Any]
    lengths: Mapping[str, int]
    tensors: Mapping[str, Stored]

    def number(self, key: str) -> int:
        """Return the whole number under *key*; 0 where there is none."""
        value = self.values.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else 0


def read_header(file: Path) -> Header:
    """Return the header of *file*, which is a whole model.

    Raises:
        MissingExtraError: the ``gguf`` package is not installed.
        ModelError: it is not GGUF, of a version that is not read, damaged or cut short, or one part of a split model.
    """
    sizes = _block_sizes()
    try:
        with file.open("rb") as handle:
            header, beyond = _Reader(handle, file.stat().st_size, sizes).header()
    except OSError as error:
        raise ModelError(f"{file}: cannot be read: {error}", hint=_AGAIN) from error
    except _NotGgufError as error:
        raise ModelError(f"{file}: not a readable GGUF file: {error}", hint=_OTHER) from error
    except (ValueError, struct.error, UnicodeDecodeError) as error:
        raise ModelError(f"{file}: not a readable GGUF file: {error}", hint=_AGAIN) from error
    parts, named = header.number("split.count"), _SPLIT.search(file.name)
    if parts > 1 or (named and int(named[2]) > 1):
        number = header.number("split.no") + 1 if parts > 1 else int(named[1]) if named else 1
        raise ModelError(
            f"{file}: this is part {number} of {parts or (named and int(named[2]))} of a split GGUF model",
            hint=f"join the parts into one file: llama-gguf-split --merge {file.name} whole.gguf",
        )
    if beyond > 0:
        said = f"it ends {beyond:,} bytes before its last tensor does"
        raise ModelError(f"{file}: not a readable GGUF file: {said}", hint=_AGAIN)
    return header


def _block_sizes() -> Mapping[int, tuple[int, int]]:
    """Return, for each type of tensor, how many numbers a block of it holds in how many bytes."""
    try:
        from gguf import GGML_QUANT_SIZES
    except ImportError as error:
        message = "reading GGUF files needs the 'gguf' package"
        raise MissingExtraError(message, hint="pip install 'raysweep[gguf]'") from error
    return {int(kind): (int(numbers), int(width)) for kind, (numbers, width) in GGML_QUANT_SIZES.items()}


def empty_block(kind: int) -> np.ndarray[Any, Any]:
    """Return one block of zeros of ggml type *kind*, ``[1, bytes]``."""
    import numpy as np

    return np.zeros((1, _block_sizes()[kind][1]), np.uint8)


class _NotGgufError(Exception):
    """The file is something else."""


class _Reader:
    """Reads from *handle*, a file of *size* bytes; *sizes* tells for each type of tensor how many numbers take how many bytes."""

    def __init__(self, handle: BinaryIO, size: int, sizes: Mapping[int, tuple[int, int]]) -> None:
        self.handle, self.size, self.sizes = handle, size, sizes

    def header(self) -> tuple[Header, int]:
        """Return the header, and by how many bytes at least the file is too short for its tensors."""
        if self.handle.read(4) != _MAGIC:
            raise _NotGgufError("it does not begin with 'GGUF'")
        (version,) = self.unpack("I")
        if version not in (2, 3):
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            order = " of the other byte order" if swapped in (2, 3) else ""
            raise _NotGgufError(f"it is of version {swapped if order else version}{order}; versions 2 and 3 are read")
        tensors, keys = self.unpack("QQ")
        self.fits(keys, 13)
        values: dict[str, Any] = {}
        lengths: dict[str, int] = {}
        for _ in range(keys):
            key, (kind,) = self.text(), self.unpack("I")
            if kind == _ARRAY:
                begin = self.handle.tell()
                lengths[key] = self.skip_array(0)
                if not key.startswith("tokenizer.") and (same := self.repeated(begin)) is not None:
                    values[key] = same
            else:
                values[key] = self.value(kind)
        self.fits(tensors, 24)
        places = [self.tensor() for _ in range(tensors)]
        end = max((end for *_, end in places), default=0)
        header = Header(values, lengths, {name: stored for name, stored, _ in places})
        return header, (self.handle.tell() + end - self.size if places else 0)

    def tensor(self) -> tuple[str, Stored, int]:
        """Return a tensor's name, how it is stored, and where its bytes end, counted from where the tensors begin."""
        name, (dimensions,) = self.text(), self.unpack("I")
        if dimensions > _DIMENSIONS:
            raise ValueError(f"tensor '{name}' has {dimensions} dimensions")
        lengths = self.unpack(f"{dimensions}Q")
        kind, offset = self.unpack("IQ")
        if kind not in self.sizes:
            raise ValueError(f"tensor '{name}' has the unknown type {kind}")
        numbers, width = self.sizes[kind]
        return name, Stored(kind, lengths[::-1]), offset + math.prod(lengths) // numbers * width

    def unpack(self, form: str) -> tuple[Any, ...]:
        length = struct.calcsize(f"<{form}")
        return struct.unpack(f"<{form}", self.handle.read(length))

    def fits(self, count: int, least: int) -> None:
        """Refuse a *count* of things of at least *least* bytes that the rest of the file cannot hold."""
        if count * least > self.size - self.handle.tell():
            raise ValueError(f"it announces {count:,} entries, more than its {self.size:,} bytes can hold")

    def text(self) -> str:
        (length,) = self.unpack("Q")
        self.fits(length, 1)
        return str(self.handle.read(length), "utf-8")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind not in _SCALARS:
            raise ValueError(f"a value has the unknown type {kind}")
        return self.unpack(_SCALARS[kind])[0]

    def repeated(self, begin: int) -> Any:
        """Return the number of which the short array at *begin* consists; None if it holds several, or something else."""
        end = self.handle.tell()
        self.handle.seek(begin)
        kind, count = self.unpack("IQ")
        numbers = set(self.unpack(f"{count}{_SCALARS[kind]}")) if kind in _SCALARS and 0 < count <= _BLOCKS else set()
        self.handle.seek(end)
        return numbers.pop() if len(numbers) == 1 else None

    def skip_array(self, depth: int) -> int:
        kind, count = self.unpack("IQ")
        if kind in _SCALARS:
            width = struct.calcsize(f"<{_SCALARS[kind]}")
            self.fits(count, width)
            self.handle.seek(count * width, 1)
        elif kind == _STRING:
            self.fits(count, 8)
            for _ in range(count):
                (length,) = self.unpack("Q")
                self.fits(length, 1)
                self.handle.seek(length, 1)
        elif kind == _ARRAY and depth < _DEPTH:
            self.fits(count, 12)
            for _ in range(count):
                self.skip_array(depth + 1)
        else:
            raise ValueError(f"an array has the unknown type {kind}")
        return int(count)
