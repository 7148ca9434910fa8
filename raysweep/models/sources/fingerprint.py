"""The fingerprint of a model's files: every byte that loading may read is in it, and nothing about where the files lie.

A folder is hashed whole but for what no loader reads (:data:`NEVER_READ`); so a file that this module has never heard of gives
another key, not another model under the old one.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from raysweep.atomic import write_file
from raysweep.hashing import canonical_json, digest, file_digest, text_digest
from raysweep.models.sources.folder import check_folder, check_magic, read_json

VOLATILE = ("transformers_version", "_name_or_path")  # keys of config.json that say nothing about the numbers
NEVER_READ = (
    *("*.md", "*.rst", "*.pdf", "*.html", "*.log", "*.lock", "LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*"),
    *("*.png", "*.jpg", "*.jpeg", "*.gif", "*.svg", "*.webp"),
    *("*.h5", "*.msgpack", "*.ot", "*.onnx", "*.tflite", "*.gguf", "*.ckpt", "*.pth"),  # weights of other programs
    *(
        "optimizer.*",
        "scheduler.*",
        "scaler.*",
        "rng_state*",
        "trainer_state.json",
        "training_args.bin",
        "events.out.*",
    ),
)
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt")
_BELOW = ("*.py", "*.jinja")  # what is read out of sub-folders: code, and chat templates
_LARGE = 16 << 20  # bytes; the hash of a larger file is remembered
_SETTLED = 2.0  # seconds; a file changed less long ago may change again within one tick of the clock


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a model is made of.

    Attributes:
        digest: 16 hex digits over everything.
        tokenizer: 16 hex digits over all but the weights: whatever decides how text becomes ids.
    """

    digest: str
    tokenizer: str


def fingerprint(path: Path, memory: Path | None = None) -> Fingerprint:
    """Return the fingerprint of a model folder or GGUF file.

    Args:
        path: the folder or file.
        memory: a folder in which the hashes of large files are remembered, by path, size, times and inode.

    Raises:
        ModelError: *path* is not a complete model.
    """
    hashes = FileHashes(memory)
    if path.is_file():
        check_magic(path)
        whole = digest({"gguf": hashes.hash_of(path)})
        return Fingerprint(whole, whole)
    # an incomplete folder has no fingerprint: it would be another model once the rest is there
    weights = check_folder(path)
    files = {file.relative_to(path).as_posix(): file for file in (*inputs(path), *weights)}
    hashed = {name: hashes.hash_of(file) for name, file in files.items()}
    config = read_json(path / "config.json")
    settings = canonical_json({key: value for key, value in config.items() if key not in VOLATILE})
    # the tokenizer may depend on any file but the weights, so all of them name it
    text = {name: hash_ for name, hash_ in hashed.items() if files[name] not in weights}
    return Fingerprint(digest({**hashed, "config.json": text_digest(settings)}), digest(text))


def inputs(folder: Path) -> tuple[Path, ...]:
    """Return every file of *folder* that loading may read, sorted.

    All files at the top but those of :data:`NEVER_READ` and hidden ones; of sub-folders, code and templates. Where there are
    safetensors, weights in other formats are not read.
    """
    top = [p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".") and not _never_read(p.name)]
    # with safetensors there, the same weights in another format are never read
    if any(p.suffix == ".safetensors" for p in top):
        top = [p for p in top if p.suffix == ".safetensors" or not _matches(p.name, _WEIGHTS)]
    below = [p for p in folder.rglob("*") if p.parent != folder and _matches(p.name, _BELOW) and p.is_file()]
    visible = [p for p in below if not any(_hidden(part) for part in p.relative_to(folder).parts)]
    return tuple(sorted({*top, *visible}))


def _never_read(name: str) -> bool:
    return _matches(name, NEVER_READ)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _hidden(part: str) -> bool:
    return part.startswith(".") or part == "__pycache__"


class FileHashes:
    """Hashes of whole files; those of large files are remembered in a folder, since reading a checkpoint takes a while.

    A remembered hash counts as long as path, size, inode and both times (content, status) are the same; the last cannot be set by
    hand, so a file that was written to is read again.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def hash_of(self, file: Path) -> str:
        """Return 32 hex digits over every byte of *file*."""
        stat = file.stat()
        if self.folder is None or stat.st_size <= _LARGE:
            return file_digest(file, length=32)
        path = str(file.absolute())
        record = {"path": path, **_status(stat)}
        place = self.folder / f"{text_digest(path)}.json"
        try:
            remembered = json.loads(place.read_text(encoding="utf-8"))
            # size, inode and both times as they were: the bytes are too
            if {key: remembered[key] for key in record} == record:
                return str(remembered["blake2b"])
        except (OSError, ValueError, KeyError, TypeError):
            pass
        began = time.time()
        hash_ = file_digest(file, length=32)
        # not if the file has only just been written: it may change again unseen
        if began - max(stat.st_mtime, stat.st_ctime) > _SETTLED and _status(file.stat()) == _status(stat):
            _remember(place, {**record, "blake2b": hash_})
        return hash_


def _status(stat: os.stat_result) -> dict[str, int | list[int]]:
    """Return what changes with a file's content: not the time of its last reading, which hashing itself may move."""
    return {"size": stat.st_size, "inode": stat.st_ino, "times": [stat.st_mtime_ns, stat.st_ctime_ns]}


def _remember(place: Path, value: Mapping[str, object]) -> None:
    with suppress(OSError):  # a folder that cannot be written remembers nothing
        write_file(place, json.dumps(value, indent=1, sort_keys=True) + "\n", sync=False)
