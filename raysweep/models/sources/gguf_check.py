"""What the metadata of a GGUF file say of the model, and whether that is known here; no weight and no torch is needed for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from raysweep.errors import ModelError
from raysweep.models.sources.gguf_header import Header, MetadataValue
from raysweep.models.sources.gguf_tokenizer import PRE_TOKENIZERS, token_id

_CONVERT = "convert it to a Hugging Face folder and give that as model.path"
ARCHITECTURES = ("gpt2", "llama", "qwen2", "qwen3")  # those of transformers' reader that have a layout here
_NEEDED = ("attention.head_count", "embedding_length", "feed_forward_length", "block_count", "context_length")
_TEXT = ("tokenizer.ggml.tokens", "tokenizer.ggml.merges")
# What is read of ``<architecture>.*`` besides ``rope.scaling``; true but without effect: the two of the last line.
_HYPER = {
    *("block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size", "attention.head_count"),
    *("attention.head_count_kv", "attention.key_length", "attention.value_length"),
    *("rope.dimension_count", "rope.freq_base", "rope.scale_linear"),
    *("tensor_data_layout", "attention.causal"),
}


def check_header(header: Header, path: Path) -> None:
    """Refuse a GGUF file of a kind that is not known; its tensors are not looked at.

    Raises:
        ModelError: another architecture or tokenizer, scaled rotary embeddings, or metadata that are missing or not known.
    """
    values = header.values
    kind, family, pre = (values.get(k) for k in ("general.architecture", "tokenizer.ggml.model", "tokenizer.ggml.pre"))
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        supported = ", ".join(f"'{name}'" for name in ARCHITECTURES)
        raise ModelError(f"{path}: GGUF architecture {kind!r} is not supported, only {supported}", hint=_CONVERT)
    _check_known({**dict.fromkeys(header.lengths, True), **values}, header, kind, path)
    if family != "gpt2":
        what = f"GGUF tokenizer {family!r} is not supported, only byte-level BPE ('gpt2')"
        raise ModelError(f"{path}: {what}", hint=_CONVERT)
    if pre is not None and pre not in PRE_TOKENIZERS:
        raise ModelError(f"{path}: unknown pre-tokenizer {pre!r}", hint=f"known: {', '.join(sorted(PRE_TOKENIZERS))}")
    needed = [f"{kind}.{name}" for name in (*_NEEDED, f"attention.{_epsilon(kind)}")]
    missing = [k for k in (*needed, *_TEXT) if k not in values and k not in header.lengths]
    if missing:
        raise ModelError(f"{path}: the GGUF metadata lacks '{missing[0]}'", hint="download or convert it again")


def _epsilon(kind: str) -> str:
    return "layer_norm_epsilon" if kind == "gpt2" else "layer_norm_rms_epsilon"


def _check_known(values: Mapping[str, object], header: Header, kind: str, path: Path) -> None:
    """Raise :class:`ModelError` for hyper-parameters that would change the mathematics and are not modelled."""
    rope = f"{kind}.rope.scaling."
    has_type = f"{rope}type" in values  # then a factor belongs to it
    factor = values.get(f"{rope}factor", values.get(f"{kind}.rope.scale_linear", None if has_type else 0.0))
    scaling = values.get(f"{rope}type", "linear")  # so a factor alone scales
    # a factor of 1 scales nothing; nor does 0, which llama.cpp takes for 1
    scaled = scaling not in ("none", "linear") or (scaling == "linear" and factor not in (0.0, 1.0))
    if scaled or values.get(f"{rope}attn_factor", 1.0) != 1.0 or "rope_freqs.weight" in header.tensors:
        keys = [k for k in values if k.startswith(f"{kind}.rope.scal")]
        what = f"scaled rotary embeddings ({', '.join(keys) or 'rope_freqs'}) are not supported"
        raise ModelError(f"{path}: {what}", hint=_CONVERT)
    # a key that is false or zero switches nothing on, so an unknown one of that kind is let pass
    for key, value in values.items():
        name = key.removeprefix(f"{kind}.")
        is_known = name in _HYPER or name == f"attention.{_epsilon(kind)}" or key.startswith(rope)
        if name != key and not is_known and value:
            what = f"the GGUF metadata say {key} = {value}, which this reader does not know"
            raise ModelError(f"{path}: {what}", hint=_CONVERT)
        if name in _HYPER and key in header.lengths and key not in header.values:
            raise ModelError(f"{path}: {key} differs from block to block", hint=_CONVERT)
    if not values.get(f"{kind}.attention.causal", True):
        raise ModelError(f"{path}: attention is not causal", hint="edit a decoder, not an encoder")


def config_values(header: Header, path: Path) -> dict[str, object]:
    """Return the keyword arguments of transformers' configuration, ``model_type`` among them.

    Args:
        header: of a file that :func:`check_header` lets pass. What it does not state takes llama.cpp's default.
        path: the file, for messages.

    Raises:
        ModelError: a size is no size, heads are not as wide as their rotation, or a special token is not in the vocabulary.
    """
    kind = str(header.values["general.architecture"])
    sizes = {name: header.number(f"{kind}.{name}") for name in _NEEDED}
    count = header.lengths["tokenizer.ggml.tokens"]
    # tensors of blocks are called blk.<number>.<part>
    blocks = {name.split(".")[1] for name in header.tensors if name.startswith("blk.")}
    for name, size in sizes.items():
        if size <= 0:
            raise ModelError(f"{path}: {kind}.{name} is {header.values.get(f'{kind}.{name}')}, which is no size")
    if sizes["block_count"] != len(blocks):
        what = f"{kind}.block_count is {sizes['block_count']}, but there are tensors of {len(blocks)} blocks"
        raise ModelError(f"{path}: the tensors do not fit the metadata: {what}", hint="fetch or download it again")
    ends = {f"{role}_token_id": token_id(header.values, role, count, path) for role in ("bos", "eos")}
    common = {
        "model_type": kind,
        "vocab_size": count,
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "pad_token_id": token_id(header.values, "padding", count, path),
        "dtype": "float32",
        **ends,
    }
    epsilon = header.values[f"{kind}.attention.{_epsilon(kind)}"]
    return common | (_gpt2(sizes, epsilon) if kind == "gpt2" else _llama(header, kind, sizes, epsilon, path))


def _gpt2(sizes: Mapping[str, int], epsilon: MetadataValue) -> dict[str, object]:
    return {
        "n_positions": sizes["context_length"],
        "n_embd": sizes["embedding_length"],
        "n_layer": sizes["block_count"],
        "n_head": sizes["attention.head_count"],
        "n_inner": sizes["feed_forward_length"],
        "layer_norm_epsilon": epsilon,
    }


def _llama(
    header: Header, kind: str, sizes: Mapping[str, int], epsilon: MetadataValue, path: Path
) -> dict[str, object]:
    values, heads, width = header.values, sizes["attention.head_count"], sizes["embedding_length"]
    # three keys may state the width of a head; transformers has one for all of them
    head = values.get(f"{kind}.attention.key_length", width // heads)
    for key in (f"{kind}.attention.value_length", f"{kind}.rope.dimension_count"):
        if values.get(key, head) != head:
            raise ModelError(f"{path}: {key} is {values[key]}, but heads are {head} wide", hint=_CONVERT)
    return {
        "hidden_size": width,
        "intermediate_size": sizes["feed_forward_length"],
        "num_hidden_layers": sizes["block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": values.get(f"{kind}.attention.head_count_kv", heads),
        "head_dim": head,
        "max_position_embeddings": sizes["context_length"],
        "rms_norm_eps": epsilon,
        "rope_parameters": {"rope_type": "default", "rope_theta": values.get(f"{kind}.rope.freq_base", 10_000.0)},
    }
