"""Tokenizers from the files of a checkpoint, with the ids of their publication.

transformers 5 builds most tokenizers by class and takes little more than the vocabulary from ``tokenizer.json``: Llama-2's then
loses the stand-alone space piece, Qwen2's class puts its own splitting rule in place of the file's, and ``add_bos_token`` is not
read. Here ``tokenizer.json`` is read as it is, whatever class is declared, and changed only in what ``tokenizer_config.json``
decided in transformers 4.44, the version of the published experiments: default special tokens, the BOS and EOS template of some
classes, and the space before a text. ``tests/tokenizers`` holds the ids that 4.44 gives for many folders.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from raysweep.errors import ModelError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PretrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

SPACE = "▁"  # how SentencePiece writes a space
_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


@dataclass(frozen=True, slots=True)
class ClassDefaults:
    """What a tokenizer class of transformers 4.44 adds to its files.

    Attributes:
        special: special tokens by role, unless the settings name others.
        add_bos: where ``add_bos_token`` and ``add_eos_token`` replace the file's template: whether BOS is added if nothing is said.
            None: the file's own template stays.
        prefix: what ``add_prefix_space`` is about: ``bytes`` (False if nothing is said, whatever the file has) or ``pieces`` (as
            the file has it if nothing is said). Empty: not read.
    """

    special: Mapping[str, str] = field(default_factory=dict)
    add_bos: bool | None = None
    prefix: str = ""


_PIECES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_END = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
_CLASSES = {
    "LlamaTokenizer": ClassDefaults(_PIECES, add_bos=True, prefix="pieces"),
    "CodeLlamaTokenizer": ClassDefaults(_PIECES, add_bos=True),
    "GemmaTokenizer": ClassDefaults(
        {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}, add_bos=True
    ),
    "CohereTokenizer": ClassDefaults(
        {"bos_token": "<BOS_TOKEN>", "eos_token": "<|END_OF_TURN_TOKEN|>", "unk_token": "<UNK>"}, add_bos=True
    ),
    "GPTNeoXTokenizer": ClassDefaults(_END, add_bos=False, prefix="bytes"),
    "GPT2Tokenizer": ClassDefaults(_END, prefix="bytes"),
    "CodeGenTokenizer": ClassDefaults(_END, prefix="bytes"),
    "Qwen2Tokenizer": ClassDefaults(dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>")),
}
_BY_MODEL = {"gpt2": "GPT2Tokenizer", "gptj": "GPT2Tokenizer", "qwen2": "Qwen2Tokenizer", "qwen3": "Qwen2Tokenizer"}
_BY_MODEL |= {"llama": "LlamaTokenizer", "mistral": "LlamaTokenizer"}


def read_tokenizer(
    where: Path | str, config: PretrainedConfig, options: Mapping[str, object]
) -> PreTrainedTokenizerBase:
    """Return the tokenizer of the checkpoint *where*, with the ids that transformers 4.44 gives.

    Args:
        where: a folder, or an id on the hub.
        config: the model's configuration; its ``model_type`` decides where no class is declared.
        options: for transformers and the hub (``trust_remote_code``, ``local_files_only``, ``revision``).

    Raises:
        ModelError: there is no ``tokenizer.json``, and what there is cannot be read with the published ids.
        OSError, ValueError: files are missing or damaged.
    """
    from transformers import AutoTokenizer, GPT2Tokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    settings = get_tokenizer_config(str(where), **options)
    if not isinstance(settings, dict):
        raise ValueError("tokenizer_config.json holds no object")
    # a tokenizer with code of its own is what its code says
    code = settings.get("auto_map") or {}
    if options.get("trust_remote_code") and (isinstance(code, list) or "AutoTokenizer" in code):
        return _read(AutoTokenizer.from_pretrained, where, options)
    # from vocab.json and merges.txt these two build the published ids
    byte_level = {
        "GPT2Tokenizer": GPT2Tokenizer.from_pretrained,
        "Qwen2Tokenizer": Qwen2Tokenizer.from_pretrained,
    }
    declared = _declared(settings, config)
    # an undeclared or unknown class adds nothing to its files
    defaults = _CLASSES.get(declared, ClassDefaults())
    model_file = _file(where, "tokenizer.model", options)
    if _file(where, "tokenizer.json", options):
        tokenizer = _read(PreTrainedTokenizerFast.from_pretrained, where, options)
        _set_prefix(tokenizer.backend_tokenizer, defaults, settings, sentencepiece=model_file is not None)
    # SentencePiece only: made into a tokenizer.json first, as 4.44 does
    elif declared == "LlamaTokenizer" and model_file:
        tokenizer = _from_sentencepiece(where, model_file, settings, options)
    elif declared in byte_level and all(_file(where, name, options) for name in ("vocab.json", "merges.txt")):
        return _read(byte_level[declared], where, options)
    else:
        raise ModelError(
            f"{where}: there is no tokenizer.json, and none can be made from the other files with the ids of {declared}",
            hint="write it with transformers 4.44: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)",
        )
    _add_special_tokens(tokenizer, defaults.special)
    if (
        defaults.add_bos is not None and "backend" not in settings
    ):  # transformers 5 leaves the settings out: the file says all
        _set_template(tokenizer, settings, defaults.add_bos)
    return tokenizer


def _read(
    from_pretrained: Callable[..., PreTrainedTokenizerFast], where: Path | str, options: Mapping[str, object]
) -> PreTrainedTokenizerFast:
    try:
        return from_pretrained(where, **options)
    except (OSError, ValueError):
        raise
    except Exception as error:  # of a damaged file the tokenizers package says nothing more precise
        raise ValueError(f"the tokenizer's files cannot be read: {error}") from error


def _declared(settings: Mapping[str, object], config: PretrainedConfig) -> str:
    """Return the declared class without ``Fast``, or the one of the architecture."""
    declared = settings.get("tokenizer_class") or getattr(config, "tokenizer_class", None)
    return str(declared or _BY_MODEL.get(config.model_type, "PreTrainedTokenizer")).removesuffix("Fast")


def _file(where: Path | str, name: str, options: Mapping[str, object]) -> Path | None:
    """Return the path of a checkpoint's file, fetched if it is on the hub; None if there is none."""
    if isinstance(where, Path):
        return where / name if (where / name).is_file() else None
    from transformers.utils.hub import cached_file

    remote = {key: value for key, value in options.items() if key != "trust_remote_code"}
    path = cached_file(where, name, _raise_exceptions_for_missing_entries=False, **remote)
    return None if path is None else Path(path)


def _add_special_tokens(tokenizer: PreTrainedTokenizerFast, special: Mapping[str, str]) -> None:
    """Give roles that the settings say nothing of the class's tokens, if the vocabulary has them: no id is ever made."""
    from tokenizers import AddedToken

    # tokens of the vocabulary are not cut out of texts by themselves; added ones are
    vocabulary, cut_out = tokenizer.get_vocab(), tokenizer.added_tokens_encoder
    for role, token in special.items():
        if role in tokenizer.init_kwargs or token not in vocabulary:
            continue
        # the file's own flags stay where it has the token already
        if token not in cut_out:
            tokenizer.backend_tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True)])
        setattr(tokenizer, role, token)


def _set_template(tokenizer: PreTrainedTokenizerFast, settings: Mapping[str, object], add_bos: bool) -> None:
    """Let every text begin with BOS and end with EOS, or not, as the settings say.

    Raises:
        ValueError: they ask for a token that the tokenizer does not have.
    """
    from tokenizers.processors import TemplateProcessing

    before, after, ids = "", "", []
    for role, is_added in (
        ("bos", settings.get("add_bos_token", add_bos)),
        ("eos", settings.get("add_eos_token", False)),
    ):
        token = getattr(tokenizer, f"{role}_token")
        if not is_added:
            continue
        if token is None:
            if f"add_{role}_token" in settings:
                raise ValueError(f"tokenizer_config.json says add_{role}_token, but there is no {role}_token")
            # nothing was said, and the class's own token is not in this vocabulary: the file's template stays
            return
        before, after = (f"{token}:%d ", after) if role == "bos" else (before, f" {token}:%d")
        ids.append((token, getattr(tokenizer, f"{role}_token_id")))
    # a pair is two whole texts, numbered 0 and 1 by their types
    one, two = (f"{before}${letter}:%d{after}".replace("%d", str(i)) for i, letter in enumerate("AB"))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=one, pair=f"{one} {two}", special_tokens=ids)


def _set_prefix(
    backend: Tokenizer, defaults: ClassDefaults, settings: Mapping[str, object], *, sentencepiece: bool
) -> None:
    """Put a space before every text, or none, where class and settings decide that and not the file.

    With a ``tokenizer.model`` beside it, transformers 4.44 made the tokenizer of a Llama class from that, in the form that
    ``legacy`` asks for, as soon as ``add_prefix_space`` was stated.
    """
    from tokenizers.pre_tokenizers import ByteLevel

    add_prefix = settings.get("add_prefix_space")
    if defaults.prefix == "bytes" and isinstance(backend.pre_tokenizer, ByteLevel):
        part = backend.pre_tokenizer
        part.add_prefix_space = bool(add_prefix)
        backend.pre_tokenizer = part
    elif defaults.prefix == "pieces" and add_prefix is not None:
        form = _piece_form(backend)
        if form is None:
            return
        legacy = bool(settings.get("legacy", True)) if sentencepiece else form[0]
        if (legacy, bool(add_prefix)) != form:
            _set_piece_form(backend, legacy=legacy, prefix=bool(add_prefix))


def _piece_form(backend: Tokenizer) -> tuple[bool, bool] | None:
    """Return whether spaces are replaced before special tokens are cut out (``legacy``), and whether one is put in front.

    None: this tokenizer does not replace spaces.
    """
    normalizer, split = (
        json.loads(part.__getstate__()) if part is not None else {}
        for part in (backend.normalizer, backend.pre_tokenizer)
    )
    steps = [step["type"] for step in normalizer.get("normalizers", [normalizer]) if step]
    if "Replace" in steps:
        return True, "Prepend" in steps
    return (False, split["prepend_scheme"] != "never") if split.get("type") == "Metaspace" else None


def _set_piece_form(backend: Tokenizer, *, legacy: bool, prefix: bool) -> None:
    """Write spaces as SentencePiece does: before (*legacy*) or after special tokens are cut out, with one in front or not."""
    from tokenizers import decoders, normalizers, pre_tokenizers

    if legacy:
        front = [normalizers.Prepend(SPACE)] if prefix else []
        backend.normalizer = normalizers.Sequence([*front, normalizers.Replace(" ", SPACE)])
        backend.pre_tokenizer = None
    else:
        scheme = "first" if prefix else "never"
        backend.normalizer = None
        backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme=scheme, split=False)
    # decoding undoes the front: spaces back, bytes joined, and the space in front taken off
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, *([decoders.Strip(content=" ", left=1)] if prefix else [])])


def _from_sentencepiece(
    where: Path | str, model_file: Path, settings: Mapping[str, object], options: Mapping[str, object]
) -> PreTrainedTokenizerFast:
    """Return the tokenizer that ``tokenizer.model`` stands for: as if its ``tokenizer.json`` had been made first."""
    from transformers import PreTrainedTokenizerFast

    backend = _convert_sentencepiece(model_file)
    prefix = settings.get("add_prefix_space")
    _set_piece_form(backend, legacy=bool(settings.get("legacy", True)), prefix=prefix is None or bool(prefix))
    with tempfile.TemporaryDirectory() as folder:
        for name in _SETTINGS:
            if file := _file(where, name, options):
                shutil.copy(file, Path(folder, name))
        backend.save(str(Path(folder, "tokenizer.json")))
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)


def _convert_sentencepiece(model_file: Path) -> Tokenizer:
    """Return pieces, merges and control tokens of a SentencePiece file; how spaces are written is left to the caller.

    Raises:
        ModelError: the file is of another kind.
    """
    from tokenizers import AddedToken, Tokenizer, models
    from transformers.convert_slow_tokenizer import import_protobuf
    from transformers.tokenization_utils_base import generate_merges, import_protobuf_decode_error

    proto = import_protobuf().ModelProto()
    try:
        proto.ParseFromString(model_file.read_bytes())
    except import_protobuf_decode_error() as error:
        raise ModelError(
            f"{model_file}: not a SentencePiece file: {error}",
            hint="write tokenizer.json with the transformers version that made the checkpoint",
        ) from error
    # merges are not in the file: they follow from the scores of the pieces
    scores = {piece.piece: piece.score for piece in proto.pieces}
    ids = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    unknown, kind = proto.trainer_spec.unk_piece, proto.trainer_spec.model_type
    if kind == proto.trainer_spec.BPE:
        merges = generate_merges(ids, scores)
        model: models.Model = models.BPE(ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    elif kind == proto.trainer_spec.UNIGRAM:
        pieces = [(piece.piece, piece.score) for piece in proto.pieces]
        model = models.Unigram(pieces, unk_id=ids[unknown], byte_fallback=True)
    else:
        raise ModelError(
            f"{model_file}: SentencePiece model of type {kind}, only BPE and Unigram are known",
            hint="write tokenizer.json with transformers 4.44: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)",
        )
    backend = Tokenizer(model)
    kinds = proto.SentencePiece
    for piece in proto.pieces:
        if piece.type in (kinds.CONTROL, kinds.USER_DEFINED):
            token = AddedToken(piece.piece, normalized=False, special=piece.type == kinds.CONTROL)
            backend.add_special_tokens([token]) if token.special else backend.add_tokens([token])
    return backend
