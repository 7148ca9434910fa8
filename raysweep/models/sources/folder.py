"""A model folder, looked at without loading it: what is missing, damaged or of a kind that cannot be edited, by file and cure."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import TypedDict

from raysweep.errors import ModelError, nearest
from raysweep.models.layout import LAYOUTS

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
_AGAIN = "copy or fetch the model again"
_LARGEST_HEADER = 100 << 20  # bytes; safetensors itself allows no more
# A folder without config.json: what tells what it is, what that is, and the way to a model.
_OTHERS = (
    (
        "adapter_config.json",
        "a PEFT adapter, not a model",
        "merge it into its base model (merge_and_unload) and save that",
    ),
    ("*.gguf", "a folder with GGUF files", "give the file itself as model.path"),
    ("consolidated*.pth", "a checkpoint in Meta's own layout", "convert it to a Hugging Face folder"),
    ("model_index.json", "a diffusers pipeline", "give a causal language model"),
    ("tokenizer*", "a tokenizer only", "config.json and the weights belong beside it"),
)
# Weights of other programs, which are not read.
_FORMATS = ("*.h5", "*.msgpack", "*.onnx", "*.pth", "*.pt", "*.ckpt", "*.gguf")
_PACKED = ("F8_E4M3", "F8_E5M2", "F8_E8M0", "F4")


class StoredTensor(TypedDict):
    """What a safetensors header says of a tensor: how it is stored, its shape, and where its bytes begin and end."""

    dtype: str
    shape: list[int]
    data_offsets: list[int]


def read_json(file: Path) -> dict[str, object]:
    """Return the JSON object in *file*.

    Raises:
        ModelError: it cannot be read, is not JSON, or is no object.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"), parse_constant=_no_number)
    except (OSError, ValueError, RecursionError) as error:
        why = str(error) or type(error).__name__
        raise ModelError(f"{file}: not JSON: {why}", hint=_AGAIN) from error
    if not isinstance(value, dict):
        raise ModelError(f"{file}: a JSON object is needed, got {type(value).__name__}", hint=_AGAIN)
    return value


def read_config(folder: Path) -> dict[str, object]:
    """Return ``config.json``; of a model with more parts what it says of its language model, where that is loaded alone.

    Raises:
        ModelError: it cannot be read, is not JSON, or is no object.
    """
    config = read_json(folder / "config.json")
    text = config.get("text_config")
    if not isinstance(text, dict):
        return config
    kind = text.get("model_type")
    if isinstance(kind, str) and kind in LAYOUTS and LAYOUTS.get(kind).part_of == config.get("model_type", ""):
        # what stands outside holds where the part is silent
        return {**config, **text}
    return config


def _no_number(written: str) -> None:
    """Refuse ``NaN``, ``Infinity`` and ``-Infinity``: Python writes them, JSON has none, and no model is computed with one."""
    raise ValueError(f"{written} is no number of JSON")


def check_folder(folder: Path) -> tuple[Path, ...]:
    """Return the weight files of the model folder *folder*, sorted, having looked at their headers.

    Raises:
        ModelError: no configuration, tokenizer or weights; a shard is missing; a safetensors file is damaged.
    """
    if (folder / "adapter_config.json").is_file() and (folder / "config.json").is_file():
        problem = f"{folder}: holds an adapter (adapter_config.json), whose base model lies elsewhere"
        raise ModelError(problem, hint="merge it into the weights (peft: merge_and_unload) and save the whole model")
    check_config_there(folder)
    read_json(folder / "config.json")
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise ModelError(f"{folder}: no tokenizer", hint=f"one of {', '.join(TOKENIZERS)} must lie beside config.json")
    files = weight_files(folder)
    for file in files:
        if file.suffix == ".safetensors":
            read_header(file)
        else:
            check_archive(file)
    return files


def check_archive(file: Path) -> None:
    """Refuse a file that ``torch.save`` cannot have written: cut short (a zip ends with its table), or a pointer to one.

    Raises:
        ModelError: it is no whole PyTorch file.
    """
    try:
        with file.open("rb") as handle:
            start = handle.read(4)
        # a pickle begins with its protocol, a zip archive with PK and ends with its table
        is_whole = start[:2] == b"\x80\x02" or (start == b"PK\x03\x04" and zipfile.is_zipfile(file))
    except OSError as error:
        raise ModelError(f"{file}: cannot be read: {error}", hint=_AGAIN) from error
    if not is_whole:
        raise ModelError(f"{file}: not a whole PyTorch file", hint=f"{_AGAIN} (a Git LFS pointer is a small text file)")


def weight_files(folder: Path) -> tuple[Path, ...]:
    """Return the weight files of *folder*, sorted, of the format that transformers takes: safetensors first, then PyTorch's.

    Only the index of the format in use has to be right: a download often leaves the other one's behind.

    Raises:
        ModelError: there are none, or the index names a file that is not there.
    """
    shards: set[Path] = set()
    for stem, ending in (("model", ".safetensors"), ("pytorch_model", ".bin")):
        index = folder / f"{stem}{ending}.index.json"
        # its shards, if it has some too, are left alone
        if (folder / f"{stem}{ending}").is_file():
            break
        if index.is_file():
            shards = _named_by(index, folder)
            break
    else:
        raise _no_weights(folder)
    pattern = "*.safetensors" if ending == ".safetensors" else "pytorch_model*.bin"
    return tuple(sorted({*folder.glob(pattern), *shards}))


def _no_weights(folder: Path) -> ModelError:
    """Return the error of a folder without weights that can be read, with the likely cure."""
    shards = sorted(p.name for pattern in ("*.safetensors", "*.bin") for p in folder.glob(pattern))
    others = sorted(p.name for pattern in _FORMATS for p in folder.glob(pattern))
    hint = "a clone without Git LFS leaves them out; fetch or copy them into the folder"
    if shards:
        hint = f"{shards[0]} is there, but neither a whole model.safetensors nor an index of its parts (*.index.json)"
    elif others:
        hint = f"{', '.join(others[:3])} cannot be read here; convert to safetensors"
    return ModelError(f"{folder}: no weights (*.safetensors or pytorch_model*.bin)", hint=hint)


def _named_by(index: Path, folder: Path) -> set[Path]:
    """Return the files that *index* names, having looked whether they are there."""
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not all(isinstance(name, str) and name for name in table.values()):
        raise ModelError(f"{index}: no table 'weight_map' of file names", hint=_AGAIN)
    names = set(table.values())
    # an index that climbs out of its folder would read files that no fingerprint covers
    outside = sorted(name for name in names if PurePath(name).is_absolute() or ".." in PurePath(name).parts)
    if outside:
        raise ModelError(f"{index}: names a file outside the folder: {outside[0]!r}", hint="do not use this folder")
    lost = sorted(name for name in names if not (folder / name).is_file())
    if lost:
        raise ModelError(f"{folder}: missing weight files: {', '.join(lost)}", hint=f"{index.name} asks for them")
    return {folder / name for name in names}


def check_config_there(folder: Path) -> None:
    """Refuse a folder without a configuration, saying what it is instead.

    Raises:
        ModelError: there is no ``config.json``.
    """
    if (folder / "config.json").is_file():
        return
    for pattern, what, cure in _OTHERS:
        if next(iter(folder.glob(pattern)), None) is not None:
            raise ModelError(f"{folder}: no config.json: this is {what}", hint=cure)
    raise ModelError(f"{folder}: no config.json", hint="a model folder holds config.json, tokenizer and weights")


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Return the header of a safetensors file: dtype, shape and place of each tensor.

    Raises:
        ModelError: it is damaged, or the file is not as long as it says.
    """
    hint = "copy or fetch the file again (a Git LFS pointer is a small text file)"
    try:
        size = file.stat().st_size
        with file.open("rb") as handle:
            start = handle.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            # the first eight bytes say how long the header is; a pointer file makes that nonsense
            if not 2 <= length <= min(size - 8, _LARGEST_HEADER):
                raise ModelError(f"{file}: not a safetensors file", hint=hint)
            tree = json.loads(handle.read(length))
        header = {name: entry for name, entry in tree.items() if name != "__metadata__"}
        ends = [0, *(int(entry["data_offsets"][1]) for entry in header.values())]
        for entry in header.values():
            if not isinstance(entry["dtype"], str) or not all(isinstance(n, int) for n in entry["shape"]):
                raise ValueError("a tensor without dtype or shape")
    except OSError as error:
        raise ModelError(f"{file}: cannot be read: {error}", hint=_AGAIN) from error
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError) as error:
        raise ModelError(f"{file}: the safetensors header is damaged", hint=hint) from error
    # a download that broke off has the right header and too few bytes
    if size != 8 + length + max(ends):
        raise ModelError(f"{file}: {size:,} bytes, but its header promises {8 + length + max(ends):,}", hint=hint)
    return header


def check_kind(folder: Path, config: Mapping[str, object], *, trusted: bool) -> None:
    """Refuse a folder whose architecture is not known, or whose weights cannot be edited.

    Args:
        folder: the model folder, complete.
        config: its ``config.json``.
        trusted: whether code that comes with the weights may run.

    Raises:
        ModelError: why not.
    """
    file, kind = folder / "config.json", config.get("model_type")
    if not isinstance(kind, str) or not kind:
        raise ModelError(f"{file}: no model_type", hint=f"known: {', '.join(sorted(LAYOUTS.names()))}")
    if kind not in LAYOUTS:
        layout = f"add raysweep/models/layouts/{kind}.py and a line in models/layout.py"
        if config.get("auto_map"):
            trust = "" if trusted else "; its code runs only with model.trust_remote_code: true"
            raise ModelError(
                f"{file}: model_type '{kind}' comes with code of its own (auto_map), and no layout tells where its parts are",
                hint=f"{layout}{trust}",
            )
        raise ModelError(
            f"{file}: no layout for model_type '{kind}'", hint=f"{nearest(kind, LAYOUTS.names())}; {layout}"
        )
    _check_not_quantised(folder, config)


def _check_not_quantised(folder: Path, config: Mapping[str, object]) -> None:
    """Refuse packed weights: an edit adds a small change to them, which their few levels cannot hold."""
    cure = "give the unquantised checkpoint (model.dtype: bfloat16 halves its memory)"
    settings = config.get("quantization_config")
    for name in ("quantize_config.json", "quant_config.json"):
        if not settings and (folder / name).is_file():
            settings = read_json(folder / name)
    if settings:
        # what is no table has no name for its method either
        table = settings if isinstance(settings, Mapping) else {}
        method_names = (table.get(key) for key in ("quant_method", "quant_algo", "method"))
        method = next((str(name) for name in method_names if name), "some method")
        raise ModelError(f"{folder}: the weights are quantised ({method}) and cannot be edited", hint=cure)
    for file in sorted(folder.glob("*.safetensors")):
        for name, entry in read_header(file).items():
            packed = name.endswith((".weight", ".qweight", ".weight_packed"))
            # integer matrices are packed weights; integer vectors may be anything
            is_integer_matrix = entry["dtype"] in ("I8", "U8", "I32", "I16") and len(entry["shape"]) == 2
            if entry["dtype"] in _PACKED or (packed and is_integer_matrix):
                raise ModelError(
                    f"{file}: '{name}' is stored as {entry['dtype']}: quantised weights cannot be edited", hint=cure
                )


def check_magic(file: Path) -> None:
    """Refuse a file that is no GGUF file by its first bytes.

    Raises:
        ModelError: it is something else.
    """
    with file.open("rb") as handle:
        magic = handle.read(4)
    if magic != b"GGUF":
        raise ModelError(f"{file}: not a GGUF file", hint="model.path is a model folder or a .gguf file")
