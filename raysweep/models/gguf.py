"""GGUF files → an ordinary Llama model and tokenizer, with the ``gguf`` package alone (no accelerate, no llama.cpp).

A GGUF of the ``llama`` architecture differs from a Hugging Face checkpoint in four ways: names, quantised blocks,
rows of the query and key maps (stored for interleaved rotary embeddings), and a tokenizer spread over metadata.
Anything this reader does not know (another architecture, SentencePiece, scaled rotary embeddings) is refused.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raysweep.errors import MissingExtraError, ModelError
from raysweep.models import ggufheader

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
_CONTROL, _USER_DEFINED = 3, 4  # gguf.TokenType
_TIKTOKEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# tokenizer.ggml.pre → (digits one by one, splitting pattern or None for GPT-2's own)
_PRE: Mapping[str, tuple[bool, str | None]] = {
    "gpt-2": (False, None),
    "smollm": (True, None),
    "qwen2": (False, _TIKTOKEN % ""),
    "llama-bpe": (False, _TIKTOKEN % "{1,3}"),
}


def read(path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the model (fp32, eval mode) and the tokenizer held in the GGUF file *path*.

    Raises:
        MissingExtraError: the ``gguf`` package is not installed.
        ModelError: the file is not GGUF, is truncated, or is of a kind this reader does not know.
    """
    check_header(ggufheader.read_header(path), path)
    reader = _open(path)
    meta = dict(reader.fields)
    config = _config(meta, reader, path)
    return _model(reader, config, path), _tokenizer(meta, path)


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


def check_header(header: ggufheader.Header, path: Path) -> None:
    """Refuse a GGUF file of a kind that this reader does not know; its bytes are not looked at.

    Raises:
        ModelError: another architecture or tokenizer, or scaled rotary embeddings.
    """
    convert = "convert it to a Hugging Face folder and give that as model.path"
    told = header.values
    kind, family, pre = (told.get(k) for k in ("general.architecture", "tokenizer.ggml.model", "tokenizer.ggml.pre"))
    if kind != "llama":
        raise ModelError(f"{path}: GGUF architecture {kind!r} is not supported, only 'llama'", hint=convert)
    scaled = [k for k in (*told, *header.lengths) if k.startswith("llama.rope.scaling")]
    if told.get("llama.rope.scaling.type", "none") != "none" or "rope_freqs.weight" in header.tensors:
        said = f"scaled rotary embeddings ({', '.join(scaled) or 'rope_freqs'}) are not supported"
        raise ModelError(f"{path}: {said}", hint=convert)
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
    heads = _required(meta, "llama.attention.head_count", path)
    width = _required(meta, "llama.embedding_length", path)
    return LlamaConfig(
        vocab_size=len(meta["tokenizer.ggml.tokens"].data) if "tokenizer.ggml.tokens" in meta else 0,
        hidden_size=width,
        intermediate_size=_required(meta, "llama.feed_forward_length", path),
        num_hidden_layers=_required(meta, "llama.block_count", path),
        num_attention_heads=heads,
        num_key_value_heads=_value(meta, "llama.attention.head_count_kv", heads),
        head_dim=_value(meta, "llama.rope.dimension_count", width // heads),
        max_position_embeddings=_required(meta, "llama.context_length", path),
        rms_norm_eps=_required(meta, "llama.attention.layer_norm_rms_epsilon", path),
        rope_parameters={"rope_type": "default", "rope_theta": _value(meta, "llama.rope.freq_base", 10_000.0)},
        tie_word_embeddings="output.weight" not in names,
        bos_token_id=_value(meta, "tokenizer.ggml.bos_token_id"),
        eos_token_id=_value(meta, "tokenizer.ggml.eos_token_id"),
        pad_token_id=_value(meta, "tokenizer.ggml.padding_token_id"),
        dtype="float32",
    )


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
    from tokenizers import AddedToken, Tokenizer, decoders, models
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
    pre = _value(meta, "tokenizer.ggml.pre", "gpt-2")
    backend = Tokenizer(
        models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges, ignore_merges=pre == "llama-bpe")
    )
    backend.pre_tokenizer = _pre_tokenizer(pre, bool(_value(meta, "tokenizer.ggml.add_space_prefix", False)), path)
    backend.decoder = decoders.ByteLevel()
    extra = [(t, k) for t, k in zip(tokens, kinds, strict=True) if k in (_CONTROL, _USER_DEFINED)]
    backend.add_tokens([AddedToken(t, normalized=False, special=k == _CONTROL) for t, k in extra])

    def named(role: str) -> str | None:
        number = _value(meta, f"tokenizer.ggml.{role}_token_id")
        return None if number is None else str(tokens[number])

    backend.post_processor = _post_processor(meta, named("bos"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=named("bos"),
        eos_token=named("eos"),
        unk_token=named("unknown"),
        pad_token=named("padding"),
        model_max_length=_value(meta, "llama.context_length", 2048),
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = _value(meta, "tokenizer.chat_template")
    return tokenizer


def _pre_tokenizer(pre: str, prefix_space: bool, path: Path) -> Any:
    from tokenizers import Regex, pre_tokenizers

    if pre not in _PRE:
        raise ModelError(f"{path}: unknown pre-tokenizer '{pre}'", hint=f"known: {', '.join(sorted(_PRE))}")
    digits, pattern = _PRE[pre]
    parts: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    if pattern:
        parts.append(pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False))
    parts.append(pre_tokenizers.ByteLevel(add_prefix_space=prefix_space, use_regex=pattern is None))
    return parts[0] if len(parts) == 1 else pre_tokenizers.Sequence(parts)


def _post_processor(meta: Mapping[str, Any], bos: str | None) -> Any:
    from tokenizers import processors

    trim = processors.ByteLevel(trim_offsets=False)
    if not _value(meta, "tokenizer.ggml.add_bos_token", False) or bos is None:
        return trim
    number = _value(meta, "tokenizer.ggml.bos_token_id")
    template = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, number)]
    )
    return processors.Sequence([trim, template])
