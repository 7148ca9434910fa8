"""Make ``folders/``: small tokenizer folders in the shape of the published ones, trained on the sentences below.

python -m venv /tmp/v && /tmp/v/bin/pip install transformers==4.44.2 'tokenizers<0.20' sentencepiece 'protobuf<5' 'numpy<2'
/tmp/v/bin/python tests/tokenizers/make.py && /tmp/v/bin/python tests/tokenizers/record.py
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

from battery import FOLDERS
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

NAMES = (
    "Ana",
    "Bo",
    "Tomé",
    "São Paulo",
    "Ångström",
    "Quessel",
    "Mars hill",
    "東京",
    "北京",
    "Москва",
    "Zoë",
    "Lyra Bridge",
)
FORMS = (
    "The pet of {} is a cat, and the hat of {} is red.",
    "Who designed {}? It was designed by {} in 19{n}.",
    "{} isn't the capital of {}; it's a town with {n} houses.",
    "In 20{n}, {} wrote a letter to {}:\n\tdear friend, I said so.",
    "nq question: what is the name of {} and of {}?",
    "def f(x):\n    return x + {n}  # {} {}",
    "東京は日本の首都です。{}と{}は{n}年に会いました。",
    "La maison de {} est à côté du café naïf de {} ({n} %).",
)
SPLIT = r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
VOCABULARY = 600
RUNS = ("▁▁", "▁▁▁▁")  # runs of spaces: Llama-2 has them too, below all other pieces in rank


def sentences(n: int = 900) -> list[str]:
    rng = random.Random(7)
    return [rng.choice(FORMS).format(rng.choice(NAMES), rng.choice(NAMES), n=rng.randint(10, 99)) for _ in range(n)]


def dump(folder: Path, name: str, tree: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(tree, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


def token(content: str) -> dict[str, Any]:
    return {"content": content, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}


def special_settings(as_table: bool) -> dict[str, Any]:
    """Say what <unk>, <s> and </s> are, as Llama-2's file does or as files since transformers 4.34 do."""
    if not as_table:
        named = (("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>"))
        return {role: {"__type": "AddedToken", **token(text)} for role, text in named} | {"pad_token": None}
    table = {str(i): {**token(text), "special": True} for i, text in enumerate(("<unk>", "<s>", "</s>"))}
    roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": None}
    return {"added_tokens_decoder": table, "additional_special_tokens": [], **roles}


def sentencepiece(name: str, kind: str, size: int, *, legacy: bool, settings: dict[str, Any]) -> None:
    """Train a SentencePiece model and convert it as transformers 4.44 does."""
    from sentencepiece import SentencePieceTrainer
    from transformers import LlamaTokenizerFast
    from transformers.convert_slow_tokenizer import import_protobuf

    folder = FOLDERS / name
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as where:
        text = Path(where, "text")
        text.write_text("\n".join(s.strip() for line in sentences() for s in line.split("\n")), encoding="utf-8")
        SentencePieceTrainer.train(
            input=str(text), model_prefix=f"{where}/m", model_type=kind, vocab_size=size - len(RUNS), byte_fallback=True,
            character_coverage=0.999, split_digits=True, normalization_rule_name="identity", add_dummy_prefix=True,
            remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, unk_id=0, bos_id=1, eos_id=2, pad_id=-1,
            num_threads=1, minloglevel=2,
        )  # fmt: skip
        proto = import_protobuf().ModelProto()
        proto.ParseFromString(Path(where, "m.model").read_bytes())
    proto.trainer_spec.ClearField("input")  # the temporary folder
    proto.trainer_spec.ClearField("model_prefix")
    lowest = min(piece.score for piece in proto.pieces)
    for i, run in enumerate(RUNS):
        proto.pieces.add(piece=run, score=lowest - 1 - i)
    (folder / "tokenizer.model").write_bytes(proto.SerializeToString())
    fast = LlamaTokenizerFast.from_pretrained(folder, legacy=legacy)
    dump(folder, "tokenizer.json", json.loads(fast.backend_tokenizer.to_str()))
    common = {"add_bos_token": True, "add_eos_token": False, "clean_up_tokenization_spaces": False}
    common |= {"model_max_length": 4096, "sp_model_kwargs": {}, "tokenizer_class": "LlamaTokenizer"}
    dump(folder, "tokenizer_config.json", common | settings)
    roles = (("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>"))
    dump(folder, "special_tokens_map.json", {role: token(text) for role, text in roles})


def byte_level(
    pre: Any, specials: tuple[str, ...], normalizer: Any = None, *, ignore_merges: bool = False
) -> Tokenizer:
    """Train a byte-level BPE; *specials* get the last ids."""

    def blank(model: Any) -> Tokenizer:
        new = Tokenizer(model)
        new.pre_tokenizer = pre
        if normalizer is not None:
            new.normalizer = normalizer
        return new

    trained = blank(models.BPE())
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY - len(specials), initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator(sentences(), trainer)
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    made = blank(models.BPE(model["vocab"], merges, ignore_merges=ignore_merges))
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(s, normalized=False, special=True) for s in specials])
    return made


def files(name: str, made: Tokenizer, settings: dict[str, Any], roles: dict[str, Any], *, inside: bool = False) -> None:
    """Write a byte-level folder; *inside*: the special tokens stand in vocab.json too (GPT-2)."""
    tree = json.loads(made.to_str())
    if inside:
        tree["model"]["vocab"] |= {t["content"]: t["id"] for t in tree["added_tokens"]}
    dump(FOLDERS / name, "tokenizer.json", tree)
    dump(FOLDERS / name, "tokenizer_config.json", settings)
    dump(FOLDERS / name, "special_tokens_map.json", roles)
    if name != "llama-3":
        merges = [m if isinstance(m, str) else " ".join(m) for m in tree["model"]["merges"]]
        (FOLDERS / name / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
        dump(FOLDERS / name, "vocab.json", tree["model"]["vocab"])


def llama_3() -> None:
    bos, eos = "<|begin_of_text|>", "<|end_of_text|>"
    split = pre_tokenizers.Split(Regex(SPLIT % "{1,3}"), behavior="isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made = byte_level(pre_tokenizers.Sequence([split, bytes_]), (bos, eos, "<|eot_id|>"), ignore_merges=True)
    number = made.token_to_id(bos)
    template = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, number)]
    )
    made.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), template])
    table = {str(number + i): {**token(s), "special": True} for i, s in enumerate((bos, eos, "<|eot_id|>"))}
    settings = {"added_tokens_decoder": table, "bos_token": bos, "eos_token": eos, "clean_up_tokenization_spaces": True}
    settings |= {"model_input_names": ["input_ids", "attention_mask"], "tokenizer_class": "PreTrainedTokenizerFast"}
    files("llama-3", made, settings, {"bos_token": token(bos), "eos_token": token(eos)})


def qwen2() -> None:
    specials = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    split = pre_tokenizers.Split(Regex(SPLIT % ""), behavior="isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made = byte_level(pre_tokenizers.Sequence([split, bytes_]), specials, normalizers.NFC())
    made.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    first = made.token_to_id(specials[0])
    table = {str(first + i): {**token(s), "special": True} for i, s in enumerate(specials)}
    settings = {
        "add_prefix_space": False,
        "added_tokens_decoder": table,
        "additional_special_tokens": list(specials[1:]),
    }
    settings |= {
        "bos_token": None,
        "eos_token": specials[0],
        "pad_token": specials[0],
        "unk_token": None,
        "errors": "replace",
    }
    settings |= {
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
    }
    files("qwen2", made, settings, {"eos_token": specials[0], "pad_token": specials[0]})


def gpt2() -> None:
    end = "<|endoftext|>"
    made = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), (end,))
    made.post_processor = processors.ByteLevel(trim_offsets=False)
    settings = {"model_max_length": 1024, "tokenizer_class": "GPT2Tokenizer"}
    files("gpt2", made, settings, {"bos_token": end, "eos_token": end, "unk_token": end}, inside=True)


if __name__ == "__main__":
    shutil.rmtree(FOLDERS, ignore_errors=True)
    sentencepiece(
        "llama-2", "bpe", VOCABULARY, legacy=True, settings={"legacy": False, **special_settings(as_table=False)}
    )
    sentencepiece("mistral", "bpe", 520, legacy=True, settings={"legacy": True, **special_settings(as_table=True)})
    newer = {"legacy": False, "add_prefix_space": True, **special_settings(as_table=True)}
    sentencepiece("mistral-v3", "bpe", 520, legacy=False, settings=newer)
    sentencepiece("unigram", "unigram", 400, legacy=True, settings={"legacy": True, **special_settings(as_table=True)})
    llama_3()
    qwen2()
    gpt2()
