"""What a plan has to know of a model before it is loaded: how many blocks and positions, and how many tokens a text has.

Nothing of torch is imported. :func:`facts` asks what loading (:mod:`.load`) will ask, and refuses what that would
refuse: an architecture that is not known, packed weights, a tokenizer of another model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from raysweep.config.components import ModelFacts
from raysweep.config.schema import ModelSpec
from raysweep.errors import ModelError, nearest
from raysweep.models import attention
from raysweep.models.layout import LAYOUTS
from raysweep.models.sizes import positions_of, size_from_config
from raysweep.models.sources import catalogue, folder, gguf_check, gguf_header
from raysweep.models.sources.base import MODEL_RECIPES, ModelRecipe

if TYPE_CHECKING:
    from raysweep.workspace import Workspace

_SIZES = (
    *("hidden_size", "n_embd", "num_hidden_layers", "n_layer", "num_attention_heads", "n_head", "vocab_size"),
    *("intermediate_size", "n_inner", "num_key_value_heads", "head_dim", "max_position_embeddings", "n_positions"),
)
# Of each of these one must be stated: what transformers would take instead is another model's size.
_STATED = (
    ("hidden_size", "n_embd"),
    ("num_hidden_layers", "n_layer"),
    ("num_attention_heads", "n_head"),
    ("vocab_size",),
)
_LARGEST = 1 << 31  # of any size in a configuration; more is a slip of the pen or an attack


def facts(spec: ModelSpec, workspace: Workspace) -> ModelFacts:
    """Return what is known of the model of *spec*; nothing (zeros) of a hub model that is not in the catalogue.

    Raises:
        MissingExtraError: a GGUF file without the ``gguf`` package.
        ModelError: the model cannot be loaded or edited; the message names the file and says what to do.
    """
    where = catalogue.locate(spec, workspace)
    if isinstance(where, str):
        entry = catalogue.CATALOGUE.get(spec.name)
        size = entry.model_size if entry is not None else None
        known = _of_layout(entry.sizes.get("model_type") if entry is not None else None)
        return replace(known, blocks=size.layers, positions=size.positions) if size else known
    if where.suffix in MODEL_RECIPES:
        return ModelFacts(*ModelRecipe.open(where, workspace).blocks_and_positions())
    return _of_gguf(where) if where.is_file() else _of_folder(where, spec.bos, trusted=spec.trust_remote_code)


def _of_gguf(file: Path) -> ModelFacts:
    header = gguf_header.read_header(file)
    gguf_check.check_header(header, file)
    kind = header.values["general.architecture"]
    blocks, positions = header.number(f"{kind}.block_count"), header.number(f"{kind}.context_length")
    return replace(_of_layout(kind), blocks=blocks, positions=positions)


def _of_folder(where: Path, bos: str, *, trusted: bool) -> ModelFacts:
    folder.check_folder(where)
    config = folder.read_config(where)
    folder.check_kind(where, config, trusted=trusted)
    check_sizes(config, where / "config.json")
    size = size_from_config(config)
    if size is None or not all(any(config.get(name) is not None for name in names) for names in _STATED):
        raise ModelError(
            f"{where / 'config.json'}: the sizes of the model are missing (hidden_size, num_hidden_layers, vocab_size …)",
            hint="copy or fetch the model again",
        )
    tokenizer = where / "tokenizer.json"
    count = token_counter(tokenizer, size.vocab, bos) if tokenizer.is_file() else None
    known = _of_layout(config["model_type"])
    return replace(known, blocks=size.layers, positions=positions_of(config), count=count)


def _of_layout(kind: object) -> ModelFacts:
    """Return what the layout for *kind*, a ``model_type``, tells; nothing where there is none."""
    if not isinstance(kind, str) or kind not in LAYOUTS:
        return ModelFacts()
    layout = LAYOUTS.get(kind)
    return ModelFacts(parts=layout.parts(), kind=kind, lacks=layout.lacks)


def check_sizes(config: Mapping[str, object], file: Path) -> None:
    """Refuse a configuration whose sizes are no sizes.

    Raises:
        ModelError: one of them is not a whole number above 0.
    """
    sizes: dict[str, int] = {}
    for name in _SIZES:
        value = config.get(name)
        if value is None:
            continue
        # a bool is an int in Python
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < _LARGEST:
            raise ModelError(
                f"{file}: {name} is {value!r}; a whole number from 1 to {_LARGEST - 1:,} is needed",
                hint="copy or fetch the model again",
            )
        sizes[name] = value
    # a family has one of the two names
    hidden = sizes.get("hidden_size") or sizes.get("n_embd")
    heads = sizes.get("num_attention_heads") or sizes.get("n_head")
    if hidden and heads and "head_dim" not in sizes and hidden % heads:
        raise ModelError(
            f"{file}: hidden_size {hidden} is not a multiple of the {heads} heads", hint="copy or fetch the model again"
        )


def token_counter(file: Path, rows: int, bos: str = "tokenizer") -> Callable[[str], int]:
    """Return what counts the tokens of a text, by the tokenizer in *file*, with its special tokens.

    Args:
        file: a ``tokenizer.json``.
        rows: of the embedding.
        bos: as ``model.bos``.

    Raises:
        ModelError: the file is damaged, does not know the token *bos*, or has tokens of the vocabulary itself without a row (see
            :mod:`raysweep.models.embedding_rows` for added ones).
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(file))
        # added tokens without a row are taken out on loading; the vocabulary's own cannot be
        highest = max(tokenizer.get_vocab(with_added_tokens=False).values(), default=0)
    except BaseException as error:  # Rust's panics are no Exceptions
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise ModelError(f"{file}: not a tokenizer: {error}", hint="copy or fetch the model again") from error
    if highest >= rows:
        raise ModelError(
            f"{file}: the vocabulary goes up to id {highest}, the embedding has only {rows} rows",
            hint="tokenizer and weights belong to different models",
        )
    if bos not in ("auto", "tokenizer", "none") and tokenizer.token_to_id(bos) is None:
        special = sorted(token.content for token in tokenizer.get_added_tokens_decoder().values())
        raise ModelError(f"model.bos {bos!r} is not a token of this tokenizer", hint=nearest(bos, special))
    return lambda text: len(tokenizer.encode(text).ids)


def attention_row_limit(spec: ModelSpec, workspace: Workspace) -> tuple[int, str] | None:
    """Return :func:`raysweep.models.attention.row_limit` of a model, from its ``config.json`` alone.

    None too where there is no such file to be read here.

    Raises:
        ModelError: the model is not there, or a block attends in a way that is not modelled.
    """
    where = catalogue.locate(spec, workspace)
    file = None if isinstance(where, str) else where / "config.json"
    if file is None or not file.is_file():
        return None
    config = folder.read_config(file.parent)
    attention.windows(config)
    return attention.row_limit(config)
