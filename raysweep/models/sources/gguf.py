"""GGUF files → an ordinary Llama model and tokenizer, with the ``gguf`` package alone (no accelerate, no llama.cpp).

A GGUF of the ``llama`` architecture differs from a Hugging Face checkpoint in four ways: names, quantised blocks,
rows of the query and key maps (stored for interleaved rotary embeddings), and a tokenizer spread over metadata.
Metadata that are not there take llama.cpp's default, which for BOS depends on the pre-tokenizer. Anything this reader does
not know (another architecture, SentencePiece, scaled rotary embeddings, a hyper-parameter it has never met) is refused.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from raysweep.errors import MissingExtraError, ModelError
from raysweep.models.sources import gguf_header

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}

_NEEDED = (
    *("llama.attention.head_count", "llama.embedding_length", "llama.feed_forward_length", "llama.block_count"),
    *(
        "llama.context_length",
        "llama.attention.layer_norm_rms_epsilon",
        "tokenizer.ggml.tokens",
        "tokenizer.ggml.merges",
    ),
)
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4  # gguf.TokenType
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_TIKTOKEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class PreTokenizer(NamedTuple):
    """What ``tokenizer.ggml.pre`` stands for.

    Attributes:
        patterns: what texts are split by, one after the other; matches and what lies between them are pieces.
        add_bos: llama.cpp's default where ``tokenizer.ggml.add_bos_token`` is not there.
        ignore_merges: a piece that is a token is one, whatever the merges say.
        nfc: texts are normalised first (the models' own tokenizers do it; llama.cpp does not).
    """

    patterns: tuple[str, ...]
    add_bos: bool = False
    ignore_merges: bool = False
    nfc: bool = False


_PRE: Mapping[str, PreTokenizer] = {
    "gpt-2": PreTokenizer((_GPT2,)),
    "smollm": PreTokenizer((r"\p{N}", _GPT2)),
    "qwen2": PreTokenizer((_TIKTOKEN % "",), nfc=True),
    "llama-bpe": PreTokenizer((_TIKTOKEN % "{1,3}",), add_bos=True, ignore_merges=True),
    "default": PreTokenizer((r"[\p{P}$+<=>^~|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),  # also where there is no name
}
# What is read of ``llama.*`` besides ``rope.scaling``; true but without effect: the two of the last line.
_HYPER = {
    "block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size", "attention.head_count",
    "attention.head_count_kv", "attention.key_length", "attention.value_length", "attention.layer_norm_rms_epsilon",
    "rope.dimension_count", "rope.freq_base", "rope.scale_linear",
    "tensor_data_layout", "attention.causal",
}  # fmt: skip


def read(path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the model (fp32, eval mode) and the tokenizer held in the GGUF file *path*.

    Raises:
        MissingExtraError: the ``gguf`` package is not installed.
        ModelError: the file is not GGUF, is truncated, or is of a kind this reader does not know.
    """
    check_header(gguf_header.read_header(path), path)
    reader = _open(path)
    meta = dict(reader.fields)
    config = _config(meta, reader, path)
    return _model(reader, config, path), _tokenizer(meta, path)


def read_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer held in the GGUF file *path*; its weights are not read.

    Raises:
        MissingExtraError, ModelError: see :func:`read`.
    """
    check_header(gguf_header.read_header(path), path)
    return _tokenizer(dict(_open(path).fields), path)


def convert(path: Path, out: Path, *, source: Mapping[str, str] | None = None) -> Path:
    """Write the GGUF file *path* as an ordinary fp32 Hugging Face folder *out*, whole or not at all.

    Args:
        path: the GGUF file.
        out: the folder to make; replaced if it exists.
        source: where the file came from, kept as ``source.json``.
    """
    model, tokenizer = read(path)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _save(model, partial)
        tokenizer.save_pretrained(partial)
        (partial / "source.json").write_text(json.dumps(dict(source or {}), indent=1, sort_keys=True) + "\n")
        if out.exists():
            shutil.rmtree(out)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def _save(model: PreTrainedModel, folder: Path) -> None:
    """Write config and weights (``save_pretrained`` would draw a progress bar)."""
    from safetensors.torch import save_file

    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    state = {name: value.contiguous() for name, value in model.state_dict().items() if name not in tied}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)


def _open(path: Path) -> Any:
    try:
        from gguf import GGUFReader
    except ImportError as error:
        message = "reading GGUF files needs the 'gguf' package"
        raise MissingExtraError(message, hint="pip install 'raysweep[gguf]'") from error
    try:
        return GGUFReader(path)
    except Exception as error:
        raise ModelError(f"{path}: not a readable GGUF file: {error}", hint="fetch or download it again") from error


def check_header(header: gguf_header.Header, path: Path) -> None:
    """Refuse a GGUF file of a kind that this reader does not know; its bytes are not looked at.

    Raises:
        ModelError: another architecture or tokenizer, or scaled rotary embeddings.
    """
    convert = "convert it to a Hugging Face folder and give that as model.path"
    told = header.values
    kind, family, pre = (told.get(k) for k in ("general.architecture", "tokenizer.ggml.model", "tokenizer.ggml.pre"))
    if kind != "llama":
        raise ModelError(f"{path}: GGUF architecture {kind!r} is not supported, only 'llama'", hint=convert)
    _check_known({**dict.fromkeys(header.lengths, True), **told}, header.tensors, path)
    if family != "gpt2":
        said = f"GGUF tokenizer {family!r} is not supported, only byte-level BPE ('gpt2')"
        raise ModelError(f"{path}: {said}", hint=convert)
    if pre is not None and pre not in _PRE:
        raise ModelError(f"{path}: unknown pre-tokenizer {pre!r}", hint=f"known: {', '.join(sorted(_PRE))}")
    lost = [k for k in _NEEDED if k not in told and k not in header.lengths]
    if lost:
        raise ModelError(f"{path}: the GGUF metadata lacks '{lost[0]}'", hint="this reader knows Llama-type GGUF files")


def _value(meta: Mapping[str, Any], key: str, default: Any = None) -> Any:
    return meta[key].contents() if key in meta else default


def _required(meta: Mapping[str, Any], key: str, path: Path) -> Any:
    if key not in meta:
        raise ModelError(f"{path}: the GGUF metadata lacks '{key}'", hint="this reader knows Llama-type GGUF files")
    return meta[key].contents()


def _config(meta: Mapping[str, Any], reader: Any, path: Path) -> Any:
    from transformers import LlamaConfig

    names = {t.name for t in reader.tensors}
    heads = int(_one(meta, "llama.attention.head_count", path))
    width = int(_required(meta, "llama.embedding_length", path))
    head = int(_value(meta, "llama.attention.key_length", width // heads))
    for key in ("llama.attention.value_length", "llama.rope.dimension_count"):
        if _value(meta, key, head) != head:
            raise ModelError(
                f"{path}: {key} is {_value(meta, key)}, but heads are {head} wide",
                hint="convert it to a Hugging Face folder and give that as model.path",
            )
    return LlamaConfig(
        vocab_size=len(_required(meta, "tokenizer.ggml.tokens", path)),
        hidden_size=width,
        intermediate_size=_one(meta, "llama.feed_forward_length", path),
        num_hidden_layers=_required(meta, "llama.block_count", path),
        num_attention_heads=heads,
        num_key_value_heads=_one(meta, "llama.attention.head_count_kv", path, heads),
        head_dim=head,
        max_position_embeddings=_required(meta, "llama.context_length", path),
        rms_norm_eps=_required(meta, "llama.attention.layer_norm_rms_epsilon", path),
        rope_parameters={"rope_type": "default", "rope_theta": _value(meta, "llama.rope.freq_base", 10_000.0)},
        tie_word_embeddings="output.weight" not in names,
        bos_token_id=_token_id(meta, "bos", path),
        eos_token_id=_token_id(meta, "eos", path),
        pad_token_id=_token_id(meta, "padding", path),
        dtype="float32",
    )


def _check_known(told: Mapping[str, Any], names: Collection[str], path: Path) -> None:
    """Raise :class:`ModelError` for hyper-parameters that would change the mathematics and are not modelled."""
    hint = "convert it to a Hugging Face folder and give that as model.path"
    stated = "llama.rope.scaling.type" in told  # then a factor belongs to it
    factor = told.get("llama.rope.scaling.factor", told.get("llama.rope.scale_linear", None if stated else 0.0))
    kind = told.get("llama.rope.scaling.type", "linear")  # so a factor alone scales
    scaled = kind not in ("none", "linear") or (kind == "linear" and factor not in (0.0, 1.0))
    if scaled or told.get("llama.rope.scaling.attn_factor", 1.0) != 1.0 or "rope_freqs.weight" in names:
        said = [k for k in told if k.startswith("llama.rope.scal")]
        raise ModelError(
            f"{path}: scaled rotary embeddings ({', '.join(said) or 'rope_freqs'}) are not supported", hint=hint
        )
    for key in told:
        known = key.removeprefix("llama.") in _HYPER or key.startswith("llama.rope.scaling.")
        if key.startswith("llama.") and not known and told.get(key):
            raise ModelError(
                f"{path}: the GGUF metadata say {key} = {told.get(key)}, which this reader does not know", hint=hint
            )
    if not told.get("llama.attention.causal", True):
        raise ModelError(f"{path}: attention is not causal", hint="edit a decoder, not an encoder")


def _token_id(meta: Mapping[str, Any], role: str, path: Path) -> int | None:
    """Return the id of a special token, None if there is none."""
    found, count = _value(meta, f"tokenizer.ggml.{role}_token_id"), len(_required(meta, "tokenizer.ggml.tokens", path))
    if found is not None and not 0 <= found < count:
        raise ModelError(f"{path}: tokenizer.ggml.{role}_token_id is {found}, but there are {count} tokens")
    return found  # type: ignore[no-any-return]


def _one(meta: Mapping[str, Any], key: str, path: Path, default: Any = None) -> Any:
    """Return a number that may also be given per block, if it is the same in all of them."""
    found = _required(meta, key, path) if default is None else _value(meta, key, default)
    each = set(found) if isinstance(found, list) else {found}
    if len(each) != 1:
        raise ModelError(
            f"{path}: {key} differs from block to block ({sorted(each)})",
            hint="convert it to a Hugging Face folder and give that as model.path",
        )
    return each.pop()


def hf_name(name: str) -> str:
    """Return the Hugging Face name of GGUF tensor *name*.

    >>> hf_name("blk.3.ffn_down.weight")
    'model.layers.3.mlp.down_proj.weight'

    Raises:
        KeyError: the tensor belongs to no Llama.
    """
    stem, _, leaf = name.rpartition(".")
    if stem.startswith("blk."):
        _, number, part = stem.split(".", 2)
        return f"model.layers.{number}.{_BLOCK[part]}.{leaf}"
    return f"{_TOP[stem]}.{leaf}"


def unpermute(weight: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Return the rows of a query or key map in Hugging Face's order (halves, not interleaved pairs).

    >>> unpermute(np.arange(4)[:, None], 1).ravel().tolist()
    [0, 2, 1, 3]
    """
    half = weight.shape[0] // heads // 2
    rows = weight.reshape(heads, half, 2, *weight.shape[1:])
    return rows.swapaxes(1, 2).reshape(weight.shape)


def _model(reader: Any, config: Any, path: Path) -> PreTrainedModel:
    import torch
    from gguf import dequantize
    from transformers import LlamaForCausalLM

    state = {}
    for tensor in reader.tensors:
        try:
            name = hf_name(tensor.name)
        except KeyError as error:
            raise ModelError(f"{path}: unexpected tensor '{tensor.name}' in a Llama GGUF") from error
        try:
            value = np.asarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        except NotImplementedError as error:
            raise ModelError(f"{path}: cannot dequantise {tensor.tensor_type.name} ('{tensor.name}')") from error
        if name.endswith("q_proj.weight"):
            value = unpermute(value, config.num_attention_heads)
        elif name.endswith("k_proj.weight"):
            value = unpermute(value, config.num_key_value_heads)
        state[name] = torch.from_numpy(np.array(value))
    # The meta device skips random initialisation; assign=True makes the tensors above the parameters.
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ModelError(f"{path}: the tensors do not fit the metadata: {error}") from error
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(config)  # its buffer was made on the meta device
    return model.eval()


def _tokenizer(meta: Mapping[str, Any], path: Path) -> PreTrainedTokenizerBase:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    family = _required(meta, "tokenizer.ggml.model", path)
    if family != "gpt2":
        raise ModelError(
            f"{path}: GGUF tokenizer '{family}' is not supported, only byte-level BPE ('gpt2')",
            hint="convert it to a Hugging Face folder and give that as model.path",
        )
    tokens = _required(meta, "tokenizer.ggml.tokens", path)
    merges = [tuple(m.split(" ", 1)) for m in _required(meta, "tokenizer.ggml.merges", path)]
    kinds = _value(meta, "tokenizer.ggml.token_type", [1] * len(tokens))
    pre = _pre_tokenizer(meta, path)
    backend = Tokenizer(
        models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges, ignore_merges=pre.ignore_merges)
    )
    if pre.nfc:
        backend.normalizer = normalizers.NFC()
    space = bool(_value(meta, "tokenizer.ggml.add_space_prefix", False))
    splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in pre.patterns]
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=space, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    for token, kind in zip(tokens, kinds, strict=True):
        if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED):
            added = AddedToken(token, normalized=False, special=kind != _USER_DEFINED)
            backend.add_special_tokens([added]) if added.special else backend.add_tokens([added])

    def named(role: str) -> str | None:
        number = _token_id(meta, role, path)
        return None if number is None else str(tokens[number])

    ends = {role: named(role) for role in ("bos", "eos")}
    backend.post_processor = _post_processor(meta, pre, ends, path)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=ends["bos"],
        eos_token=ends["eos"],
        unk_token=named("unknown"),
        pad_token=named("padding"),
        model_max_length=_required(meta, "llama.context_length", path),
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = _value(meta, "tokenizer.chat_template")
    return tokenizer


def _pre_tokenizer(meta: Mapping[str, Any], path: Path) -> PreTokenizer:
    """Return the pre-tokenizer of the metadata; ``default`` if none is named, as in llama.cpp."""
    name = _value(meta, "tokenizer.ggml.pre", "default")
    if name not in _PRE:
        raise ModelError(f"{path}: unknown pre-tokenizer '{name}'", hint=f"known: {', '.join(sorted(_PRE))}")
    return _PRE[name]


def _post_processor(meta: Mapping[str, Any], pre: PreTokenizer, ends: Mapping[str, str | None], path: Path) -> Any:
    """Return what puts BOS before a text and EOS behind it: as the metadata say, else as llama.cpp does by default."""
    from tokenizers import processors

    before = after = ""
    used = []
    for role, default in (("bos", pre.add_bos), ("eos", False)):
        if not _value(meta, f"tokenizer.ggml.add_{role}_token", default):
            continue
        token = ends[role]
        if token is None:
            raise ModelError(
                f"{path}: {role.upper()} belongs to every text, but the metadata lack tokenizer.ggml.{role}_token_id",
                hint=f"set it, or tokenizer.ggml.add_{role}_token to false, and convert the model again",
            )
        before, after = (f"{token} ", after) if role == "bos" else (before, f" {token}")
        used.append((token, meta[f"tokenizer.ggml.{role}_token_id"].contents()))
    trim = processors.ByteLevel(trim_offsets=False)
    if not used:
        return trim
    one, two = f"{before}$A{after}", f"{before}$B{after}"
    template = processors.TemplateProcessing(single=one, pair=f"{one} {two}", special_tokens=used)
    return processors.Sequence([trim, template])
