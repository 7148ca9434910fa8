"""Texts, and folders made of the shipped tokenizer folders by leaving files out and changing settings.

Only the standard library: ``record.py`` runs this under another version of transformers.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
FOLDERS = HERE / "folders"
RECORDED = HERE / "recorded.json"
LEFT_OUT = object()  # a setting that is taken away

TEXTS = (
    "",
    " ",
    "  ",
    "   three",
    "a",
    " a",
    "  a",
    "The pet of Ana is",
    "The pet of Ana is Mars hill",
    " Mars hill",
    "  Mars hill",
    "Mars  hill",
    "Mars hill ",
    "Mars hill  ",
    "\n",
    "\n\n",
    "line one\nline two",
    " \nline",
    "line \n two",
    "tab\there",
    "\r\nwindows",
    "nq question: who wrote it?",
    "It's Tomé's, isn't it?",
    "Tomé",
    " São Tomé",
    "Tome\u0301",
    "Ångström, naïve café",
    "東京",
    " 東京",
    "東京は日本の首都です。",
    "北京 是 中国",
    "서울",
    "Москва",
    "مرحبا",
    "🙂",
    " 🙂 ok",
    "👩‍👩‍👧 family",
    "1234 5 67",
    " 1999-12-31",
    "$3.50 (100%)",
    "def f(x):\n    return x + 1",
    "▁ already",
    "a▁b",
    "\u00a0no break",
    "zero\u200bwidth",
    "ALL CAPS",
    "<s>",
    " <s> inside </s> of",
    "text<s>text",
    "<s>Mars",
    "</s> Mars",
    "<unk>",
    "<|endoftext|>",
    "a <|endoftext|> b",
    "<|begin_of_text|>Mars<|end_of_text|>",
    "<|im_start|>user\nhi<|im_end|>",
    "<0x41>",
    "[INST] hi [/INST]",
)


@dataclass(frozen=True)
class Variant:
    """One of ``folders/`` with files left out, settings of tokenizer_config.json and keys of tokenizer.json changed."""

    folder: str
    model_type: str
    without: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    tokenizer: dict[str, Any] = field(default_factory=dict)

    def write(self, out: Path) -> Path:
        """Make the folder *out*, with no more in config.json than the model's type."""
        out.mkdir(parents=True)
        for file in sorted((FOLDERS / self.folder).iterdir()):
            if file.name not in self.without:
                shutil.copy(file, out / file.name)
        for name, changes in (("tokenizer_config.json", self.settings), ("tokenizer.json", self.tokenizer)):
            if changes:
                tree = json.loads((out / name).read_text(encoding="utf-8")) | changes
                tree = {key: value for key, value in tree.items() if value is not LEFT_OUT}
                (out / name).write_text(json.dumps(tree), encoding="utf-8")
        (out / "config.json").write_text(json.dumps({"model_type": self.model_type}), encoding="utf-8")
        return out


CONFIG = ("tokenizer_config.json", "special_tokens_map.json")
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
OLD_S = [  # <unk>, <s> and </s> as in the first Llama files: matched after normalisation
    {"id": i, "content": c, "single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": True}
    for i, c in enumerate(("<unk>", "<s>", "</s>"))
]
CUT = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
FILL = {
    "strategy": {"Fixed": 9}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 2, "pad_type_id": 0,
    "pad_token": "</s>",
}  # fmt: skip


def llama(*without: str, folder: str = "llama-2", **settings: Any) -> Variant:
    return Variant(folder, "llama", without, settings)


def gpt2(*without: str, **settings: Any) -> Variant:
    return Variant("gpt2", "gpt2", without, settings)


def qwen2(*without: str, **settings: Any) -> Variant:
    return Variant("qwen2", "qwen2", without, settings)


JSON, MODEL = "tokenizer.json", "tokenizer.model"
VARIANTS: dict[str, Variant] = {
    "llama-2": llama(),
    "llama-2, fast class": llama(tokenizer_class="LlamaTokenizerFast"),
    "llama-2, generic class": llama(tokenizer_class="PreTrainedTokenizerFast"),
    "llama-2, no class": llama(tokenizer_class=LEFT_OUT),
    "llama-2, no settings": llama(*CONFIG),
    "llama-2, Code Llama's class": llama(tokenizer_class="CodeLlamaTokenizer"),
    "llama-2, Gemma's class": llama(tokenizer_class="GemmaTokenizer"),
    "llama-2, T5's class": llama(tokenizer_class="T5Tokenizer", additional_special_tokens=[], extra_ids=0),
    "llama-2, GPT-NeoX's class": llama(tokenizer_class="GPTNeoXTokenizerFast"),
    "llama-2, legacy": llama(legacy=True),
    "llama-2, no template": Variant("llama-2", "llama", tokenizer={"post_processor": None}),
    "llama-2, generic class, no template": Variant(
        "llama-2", "llama", (), {"tokenizer_class": "PreTrainedTokenizerFast"}, {"post_processor": None}
    ),
    "llama-2, no BOS": llama(add_bos_token=False),
    "llama-2, BOS and EOS": llama(add_eos_token=True),
    "llama-2, BOS not stated": llama(add_bos_token=LEFT_OUT, add_eos_token=LEFT_OUT),
    "llama-2, generic class, no BOS": llama(tokenizer_class="PreTrainedTokenizerFast", add_bos_token=False),
    "llama-2, prefix": llama(add_prefix_space=True),
    "llama-2, no prefix": llama(add_prefix_space=False),
    "llama-2, prefix, legacy": llama(add_prefix_space=True, legacy=True),
    "llama-2, no prefix, legacy": llama(add_prefix_space=False, legacy=True),
    "llama-2, no prefix, legacy not stated": llama(add_prefix_space=False, legacy=LEFT_OUT),
    "llama-2, cut and filled": Variant("llama-2", "llama", tokenizer={"truncation": CUT, "padding": FILL}),
    "llama-2, old special tokens": Variant("llama-2", "llama", tokenizer={"added_tokens": OLD_S}),
    "llama-2, old special tokens, no settings": Variant("llama-2", "llama", CONFIG, {}, {"added_tokens": OLD_S}),
    "llama-2, one more token": llama(
        added_tokens_decoder={"7": {"content": "<0x04>", "lstrip": True, "normalized": False, "special": True}}
    ),
    "llama-2, special tokens split": llama(split_special_tokens=True),
    "llama-2, model file": llama(JSON),
    "llama-2, model file, legacy": llama(JSON, legacy=True),
    "llama-2, model file, no settings": llama(JSON, *CONFIG),
    "llama-2, model file, no class": llama(JSON, tokenizer_class=LEFT_OUT),
    "llama-2, model file, no prefix": llama(JSON, add_prefix_space=False),
    "llama-2, model file, no prefix, legacy": llama(JSON, add_prefix_space=False, legacy=True),
    "llama-2, model file, no BOS, EOS": llama(JSON, add_bos_token=False, add_eos_token=True),
    "unigram": Variant("unigram", "llama"),
    "unigram, model file": Variant("unigram", "llama", (JSON,)),
    "mistral": Variant("mistral", "mistral"),
    "mistral, no class": Variant("mistral", "mistral", (), {"tokenizer_class": LEFT_OUT}),
    "mistral, no settings": Variant("mistral", "mistral", CONFIG),
    "mistral, no model file": Variant("mistral", "mistral", (MODEL,)),
    "mistral, model file": Variant("mistral", "mistral", (JSON,)),
    "mistral-v3": Variant("mistral-v3", "mistral"),
    "mistral-v3, no settings": Variant("mistral-v3", "mistral", (*CONFIG, MODEL)),
    "mistral-v3, prefix not stated": Variant("mistral-v3", "mistral", (MODEL,), {"add_prefix_space": LEFT_OUT}),
    "mistral-v3, no prefix": Variant("mistral-v3", "mistral", (), {"add_prefix_space": False}),
    "mistral-v3, legacy not stated": Variant("mistral-v3", "mistral", (), {"legacy": LEFT_OUT}),
    "llama-3": llama(folder="llama-3"),
    "llama-3, generic class, no BOS": llama(folder="llama-3", add_bos_token=False),
    "llama-3, no template": Variant("llama-3", "llama", tokenizer={"post_processor": BYTES}),
    "llama-3, Llama's class": llama(folder="llama-3", tokenizer_class="LlamaTokenizerFast"),
    "llama-3, Llama's class, no template": Variant(
        "llama-3", "llama", (), {"tokenizer_class": "LlamaTokenizerFast"}, {"post_processor": BYTES}
    ),
    "llama-3, Llama's class, no BOS": llama(
        folder="llama-3", tokenizer_class="LlamaTokenizer", add_bos_token=False, legacy=True
    ),
    "llama-3, GPT-2's class": llama(folder="llama-3", tokenizer_class="GPT2Tokenizer"),
    "llama-3, Qwen2's class": llama(folder="llama-3", tokenizer_class="Qwen2Tokenizer"),
    "qwen2": qwen2(),
    "qwen2, fast class": qwen2(tokenizer_class="Qwen2TokenizerFast"),
    "qwen2, generic class": qwen2(tokenizer_class="PreTrainedTokenizerFast"),
    "qwen2, no class": qwen2(tokenizer_class=LEFT_OUT),
    "qwen2, no settings": qwen2(*CONFIG),
    "qwen2, prefix": qwen2(add_prefix_space=True),
    "qwen2, BOS stated": qwen2(add_bos_token=True, bos_token="<|im_start|>"),
    "qwen2, another splitting rule": Variant("qwen2", "qwen2", tokenizer={"normalizer": None, "pre_tokenizer": BYTES}),
    "qwen2, vocabulary and merges": qwen2(JSON),
    "qwen2, vocabulary and merges, no class": qwen2(JSON, tokenizer_class=LEFT_OUT),
    "qwen2, vocabulary and merges, prefix": qwen2(JSON, add_prefix_space=True),
    "gpt2": gpt2(),
    "gpt2, fast class": gpt2(tokenizer_class="GPT2TokenizerFast"),
    "gpt2, generic class": gpt2(tokenizer_class="PreTrainedTokenizerFast"),
    "gpt2, no class": gpt2(tokenizer_class=LEFT_OUT),
    "gpt2, no settings": gpt2(*CONFIG),
    "gpt2, prefix": gpt2(add_prefix_space=True),
    "gpt2, generic class, prefix": gpt2(tokenizer_class="PreTrainedTokenizerFast", add_prefix_space=True),
    "gpt2, BOS stated": gpt2(add_bos_token=True),
    "gpt2, prefix in the file": Variant(
        "gpt2", "gpt2", tokenizer={"pre_tokenizer": {**BYTES, "add_prefix_space": True}}
    ),
    "gpt2, prefix in the file, generic class": Variant(
        "gpt2", "gpt2", (), {"tokenizer_class": "PreTrainedTokenizerFast"},
        {"pre_tokenizer": {**BYTES, "add_prefix_space": True}},
    ),
    "gpt2, vocabulary and merges": gpt2(JSON),
    "gpt2, vocabulary and merges, no settings": gpt2(JSON, *CONFIG),
    "gpt2, vocabulary and merges, prefix": gpt2(JSON, add_prefix_space=True),
    "gpt2, vocabulary and merges, BOS": gpt2(JSON, add_bos_token=True),
    "gpt2, GPT-NeoX's class": gpt2(tokenizer_class="GPTNeoXTokenizerFast"),
    "gpt2, GPT-NeoX's class, BOS": gpt2(tokenizer_class="GPTNeoXTokenizerFast", add_bos_token=True),
    "gpt2 in a gptj folder": Variant("gpt2", "gptj"),
    "gpt2 in a llama folder": Variant("gpt2", "llama"),
    "gpt2 in a mistral folder, vocabulary and merges": Variant("gpt2", "mistral", (JSON,)),
}  # fmt: skip
