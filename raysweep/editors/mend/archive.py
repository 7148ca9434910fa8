"""Archives of hypernetworks: ours (safetensors with JSON metadata) and the published ones (``torch.save``), read safely."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from raysweep.artifacts import ArtifactRequest
from raysweep.atomic import file_draft, write_file
from raysweep.errors import ArtifactError
from raysweep.hashing import canonical, canonical_json, file_digest

if TYPE_CHECKING:
    from raysweep.artifacts import Built
    from raysweep.models.lm import LanguageModel

METADATA = "raysweep"


class _Ignored:
    """Stands for an object of an archive that is not a tensor (a model's configuration, say): nothing of it is run."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def build(lm: LanguageModel, requests: Sequence[ArtifactRequest], texts: Iterator[str]) -> list[Built]:
    """Read the archive of each request.

    Raises:
        ArtifactError: a file is missing, unreadable, or not the one the plan saw.
    """
    made: list[Built] = []
    for request in requests:
        path, planned = Path(request.where["path"]), request.inputs["archive"]
        tensors, meta = read(path)
        if planned and file_digest(path) != planned:
            raise ArtifactError(f"{path}: its digest is not {planned}, which the plan saw", hint="plan again")
        made.append((tensors, meta))
    return made


def digest_of(path: Path) -> str:
    """Return the hash of an archive.

    Raises:
        ArtifactError: there is no such file.
    """
    if not path.is_file():
        raise _missing(path)
    return file_digest(path)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Return the tensors (published names) and metadata of an archive of either kind.

    Raises:
        ArtifactError: the file is missing or not such an archive.
    """
    if not path.is_file():
        raise _missing(path)
    # Ours carry JSON in their header; the published ones are pickles of a whole checkpoint.
    published = path.suffix != ".safetensors"
    tensors, meta = (_published(path), dict[str, object](source=path.name)) if published else unpack(path)
    network = {name: tensor for name, tensor in tensors.items() if name == "edit_lrs" or name.startswith("mend.")}
    if "edit_lrs" not in network or len(network) == 1:
        raise ArtifactError(f"{path}: holds no 'edit_lrs' and 'mend.…' tensors", hint="is it an archive of MEND?")
    return network, meta


def _missing(path: Path) -> ArtifactError:
    return ArtifactError(f"{path}: no such archive of a hypernetwork", hint="train one: raysweep train-mend --out FILE")


def write(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, object]) -> None:
    """Write an archive in one move.

    Args:
        path: of the safetensors file.
        tensors: by their published names.
        meta: plain data; becomes the file's metadata, and ``FILE.json`` beside it for people.
    """
    pack(path, tensors, meta)
    text = json.dumps(canonical(meta), indent=1, ensure_ascii=False)
    write_file(path.with_suffix(".json"), f"{text}\n")


def pack(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, object]) -> None:
    """Write tensors and JSON as one safetensors file, in one move."""
    from safetensors.torch import save_file

    header = {METADATA: canonical_json(meta)}
    with file_draft(path) as draft:
        save_file({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, draft, header)


def unpack(path: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Return what :func:`pack` wrote.

    Raises:
        ArtifactError: it is not a safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            return tensors, json.loads((file.metadata() or {}).get(METADATA, "{}"))
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: not a safetensors file: {error}", hint="was it cut short?") from error


def _published(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a ``torch.save`` archive: ``{"model": {…}}`` or the tensors themselves.

    Only tensors and plain containers are restored; every other class in the file becomes :class:`_Ignored`.
    """
    try:
        # Every class that the pickle names is replaced by an inert one, so loading runs no code of the file's.
        unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        with torch.serialization.safe_globals([(_Ignored, name) for name in unsafe]):
            whole = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # an archive of a stranger's: torch and pickle raise whatever they stumble over
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ArtifactError(f"{path}: cannot be read safely: {first}", hint="is it an archive of MEND?") from error
    # A checkpoint of the published trainer, or its tensors alone.
    part = whole.get("model", whole) if isinstance(whole, Mapping) else {}
    return {str(n): t for n, t in part.items() if isinstance(t, Tensor)} if isinstance(part, Mapping) else {}
