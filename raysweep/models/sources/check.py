"""A model on this machine, examined file by file without loading it: everything that is missing or damaged, at once."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ParamSpec, TypeVar

from raysweep.downloads.record import read_record
from raysweep.errors import ModelError, Problem
from raysweep.models.layout import LAYOUTS
from raysweep.models.sizes import size_from_config
from raysweep.models.sources import facts, gguf_check, gguf_header
from raysweep.models.sources import folder as folders
from raysweep.models.sources.folder import TOKENIZERS, StoredTensor

P = ParamSpec("P")
T = TypeVar("T")
_FETCH = "fetch it again, or copy the file from where the folder came from"


class _Findings:
    """Problems as they are found: what one step finds does not keep the next from looking."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def attempt(self, step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """Return what *step* returns; None if it found a problem, which is noted."""
        try:
            return step(*args, **kwargs)
        except ModelError as error:
            # only what is wrong with the model is noted: a mistake of ours must stay loud
            self.problems.append(Problem(code=error.code, message=error.message, hint=error.hint))
        return None

    def add(self, file: Path, message: str, hint: str = _FETCH) -> None:
        """Note that something is wrong with *file*."""
        self.problems.append(Problem(code=ModelError.code, message=f"{file}: {message}", hint=hint))


def problems(where: Path, *, trusted: bool = False) -> list[Problem]:
    """Return what is wrong with the model folder or GGUF file *where*, and why it could not be edited.

    Args:
        where: the folder or file.
        trusted: whether code that comes with the weights may run.

    Raises:
        MissingExtraError: a GGUF file without the ``gguf`` package.
    """
    if where.is_file():
        return _gguf_problems(where)
    found = _Findings()
    found.problems = damage(where)
    # Of a damaged folder, a second look would tell of the same files again.
    if not found.problems:
        config = folders.read_config(where)
        found.attempt(folders.check_kind, where, config, trusted=trusted)
    return found.problems


def damage(folder: Path) -> list[Problem]:
    """Return what is missing from the model folder *folder*, or damaged: whatever kind of model it is."""
    found = _Findings()
    found.attempt(folders.check_config_there, folder)
    has_config = (folder / "config.json").is_file()
    config = found.attempt(folders.read_config, folder) if has_config else None
    if config is not None:
        found.attempt(facts.check_sizes, config, folder / "config.json")
    if not any((folder / name).is_file() for name in TOKENIZERS):
        found.add(folder, "no tokenizer", f"one of {', '.join(TOKENIZERS)} must lie beside config.json")
    # Of a folder with missing shards, those that are there are looked at all the same.
    weights = found.attempt(folders.weight_files, folder) or tuple(sorted(folder.glob("*.safetensors")))
    headers = {file: found.attempt(folders.read_header, file) for file in weights if file.suffix == ".safetensors"}
    for file in weights:
        if file.suffix != ".safetensors":
            # an archive's frame only: to unpickle it would run whatever code is in it
            found.attempt(folders.check_archive, file)
    _check_index(folder, headers, found)
    if config is not None:
        whole = len(headers) == len(weights) and None not in headers.values() and not found.problems
        _check_sizes(folder, config, headers, found, whole=whole)
    _check_record(folder, found)
    return found.problems


def _gguf_problems(file: Path) -> list[Problem]:
    found = _Findings()
    header = found.attempt(gguf_header.read_header, file)
    if header is None:
        return found.problems
    found.attempt(gguf_check.check_header, header, file)
    stored, tokens = header.tensors.get("token_embd.weight"), header.lengths.get("tokenizer.ggml.tokens", 0)
    if stored is None:
        found.add(file, "no embedding (token_embd.weight)")
    # more rows than tokens are no fault: embeddings are padded to round sizes
    elif stored.shape[0] < tokens:
        found.add(file, f"the vocabulary has {tokens:,} tokens, the embedding only {stored.shape[0]:,} rows")
    return found.problems


Headers = Mapping[Path, Mapping[str, StoredTensor] | None]


def _check_index(folder: Path, headers: Headers, found: _Findings) -> None:
    """Note tensors that the index promises and their shard does not have."""
    index = folder / "model.safetensors.index.json"
    # transformers takes the single file where there is one, and does not look at the index
    if not index.is_file() or (folder / "model.safetensors").is_file():
        return
    try:
        promised = folders.read_json(index).get("weight_map")
    except ModelError:
        return  # noted when the weights were looked for
    lost: dict[str, list[str]] = {}
    for tensor, shard in promised.items() if isinstance(promised, Mapping) else ():
        header = headers.get(folder / str(shard))
        if header is not None and tensor not in header:
            lost.setdefault(str(shard), []).append(tensor)
    for shard, tensors in sorted(lost.items()):
        found.add(folder / shard, f"lacks {len(tensors)} tensors that {index.name} promises, such as '{tensors[0]}'")


def _check_sizes(
    folder: Path, config: Mapping[str, object], headers: Headers, found: _Findings, *, whole: bool
) -> None:
    """Note sizes in the configuration, the weights and the tokenizer that do not belong together."""
    size, kind = size_from_config(config), config.get("model_type")
    if size is None or not isinstance(kind, str) or kind not in LAYOUTS:
        return
    layout, file = LAYOUTS.get(kind), folder / "config.json"
    shapes = {name: entry["shape"] for header in headers.values() if header for name, entry in header.items()}
    embed = f"{layout.embed.rpartition('.')[2]}.weight"
    # by the last two parts: a checkpoint may have another prefix than the model once loaded, or none
    rows = next((shape[0] for name, shape in shapes.items() if name.split(".")[-2:] == embed.split(".")), None)
    if rows is not None and rows != size.vocab:
        found.add(file, f"vocab_size is {size.vocab:,}, but the embedding in the weights has {rows:,} rows")
    list_name = re.escape(layout.blocks.rpartition(".")[2])
    numbers = {int(m[1]) for name in shapes if (m := re.search(rf"(?:^|\.){list_name}\.(\d+)\.", name))}
    # Of incomplete weights, the blocks that are missing are told of by file.
    if whole and shapes and len(numbers) != size.layers:
        found.add(file, f"{size.layers} blocks, but the weights have {len(numbers)}")
    tokenizer = folder / "tokenizer.json"
    if tokenizer.is_file():
        # the rows in the weights count where they are known: an id beyond them has no embedding
        found.attempt(facts.token_counter, tokenizer, rows or size.vocab)


def _check_record(folder: Path, found: _Findings) -> None:
    """Note files that are not as they were fetched."""
    for path, known in read_record(folder).items():
        file = folder / path
        fault = known.fault_of(file) if file.is_file() else "was fetched, and is not there any more"
        if fault:
            found.add(file, fault)
