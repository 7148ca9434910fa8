"""The tokenizer inside a GGUF file, whose vocabulary and rules are spread over the metadata.

transformers builds one too (``integrations/gguf/gguf_tokenizer_mapping.py``), but gives other ids than the model's own tokenizer
does: it adds GPT-2's ``<|endoftext|>`` to vocabularies that do not have it, does not normalise (``qwen2``), knows no split of
``smollm`` and ``default``, takes an absent BOS flag for false, cuts control tokens that are not written in the byte alphabet to
pieces, and merges within pieces that are tokens (``llama-bpe``). When that is mended, ``test_gguf_families.py`` fails.
Metadata that are not there take llama.cpp's default, which for BOS depends on the pre-tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from raysweep.errors import ModelError

if TYPE_CHECKING:
    from tokenizers.processors import PostProcessor
    from transformers import PreTrainedTokenizerBase

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


PRE_TOKENIZERS: Mapping[str, PreTokenizer] = {
    "gpt-2": PreTokenizer((_GPT2,)),
    "smollm": PreTokenizer((r"\p{N}", _GPT2)),
    "qwen2": PreTokenizer((_TIKTOKEN % "",), nfc=True),
    "llama-bpe": PreTokenizer((_TIKTOKEN % "{1,3}",), add_bos=True, ignore_merges=True),
    "default": PreTokenizer((r"[\p{P}$+<=>^~|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),  # also where there is no name
}


def build(meta: Mapping[str, Any], length: int, path: Path) -> PreTrainedTokenizerBase:
    """Return the byte-level BPE tokenizer that the metadata *meta* describe.

    Args:
        meta: values by key, arrays whole; of a file that :func:`raysweep.models.sources.gguf.check_header` lets pass.
        length: the longest text in tokens.
        path: the file, for messages.

    Raises:
        ModelError: a special token is not in the vocabulary, or texts begin with a BOS that the file does not name.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = meta["tokenizer.ggml.tokens"]
    merges = [tuple(m.split(" ", 1)) for m in meta["tokenizer.ggml.merges"]]
    kinds = meta.get("tokenizer.ggml.token_type", [1] * len(tokens))
    pre = PRE_TOKENIZERS[meta.get("tokenizer.ggml.pre", "default")]
    backend = Tokenizer(
        models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges, ignore_merges=pre.ignore_merges)
    )
    if pre.nfc:
        backend.normalizer = normalizers.NFC()
    space = bool(meta.get("tokenizer.ggml.add_space_prefix", False))
    # `use_regex=False` below: ByteLevel would split again, by the rule of GPT-2
    splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in pre.patterns]
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=space, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    # control tokens are cut out of texts before anything else; the vocabulary lists them among ordinary ones
    for token, kind in zip(tokens, kinds, strict=True):
        if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED):
            added = AddedToken(token, normalized=False, special=kind != _USER_DEFINED)
            backend.add_special_tokens([added]) if added.special else backend.add_tokens([added])
    ids = {role: token_id(meta, role, len(tokens), path) for role in ("bos", "eos", "unknown", "padding")}
    token_of_role = {role: None if number is None else str(tokens[number]) for role, number in ids.items()}
    backend.post_processor = _post_processor(meta, pre, {r: (token_of_role[r], ids[r]) for r in ("bos", "eos")}, path)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=token_of_role["bos"],
        eos_token=token_of_role["eos"],
        unk_token=token_of_role["unknown"],
        pad_token=token_of_role["padding"],
        model_max_length=length,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = meta.get("tokenizer.chat_template")
    return tokenizer


def token_id(meta: Mapping[str, object], role: str, count: int, path: Path) -> int | None:
    """Return the id of the special token *role* (``bos``, ``eos``, …) among *count* tokens, None if there is none.

    Raises:
        ModelError: there is no token of that id.
    """
    number = meta.get(f"tokenizer.ggml.{role}_token_id")
    if number is None:
        return None
    if not isinstance(number, int) or not 0 <= number < count:
        raise ModelError(f"{path}: tokenizer.ggml.{role}_token_id is {number}, but there are {count} tokens")
    return number


def _post_processor(
    meta: Mapping[str, object], pre: PreTokenizer, ends: Mapping[str, tuple[str | None, int | None]], path: Path
) -> PostProcessor:
    """Return what puts BOS before a text and EOS behind it: as the metadata say, else as llama.cpp does by default."""
    from tokenizers import processors

    before = after = ""
    used = []
    for role, default in (("bos", pre.add_bos), ("eos", False)):
        if not meta.get(f"tokenizer.ggml.add_{role}_token", default):
            continue
        token, number = ends[role]
        if token is None:
            raise ModelError(
                f"{path}: {role.upper()} belongs to every text, but the metadata lack tokenizer.ggml.{role}_token_id",
                hint=f"set it, or tokenizer.ggml.add_{role}_token to false, and convert the model again",
            )
        before, after = (f"{token} ", after) if role == "bos" else (before, f" {token}")
        used.append((token, number))
    # offsets keep the space that a token begins with
    trim = processors.ByteLevel(trim_offsets=False)
    if not used:
        return trim
    # a pair is two whole texts, each with its own ends
    one, two = f"{before}$A{after}", f"{before}$B{after}"
    template = processors.TemplateProcessing(single=one, pair=f"{one} {two}", special_tokens=used)
    return processors.Sequence([trim, template])
