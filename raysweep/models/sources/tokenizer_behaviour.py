"""What a tokenizer does with a fixed battery of texts, as a digest: equal files may still be tokenised otherwise.

The class that reads the files, the version of a library and the BOS policy all decide which ids a model sees. So the ids
themselves are hashed, beside the files (:mod:`.fingerprint`). The plan does it once per tokenizer and keeps the
digest (:class:`Records`); whoever loads the model compares.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from raysweep.atomic import write_file
from raysweep.hashing import digest, file_digest, text_digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATTERY_VERSION = 1  # of the texts, and of what is looked at; raise it when either changes
_PACKAGES = ("transformers", "tokenizers", "sentencepiece", "tiktoken", "protobuf", "mistral-common", "gguf")
_CODE = (
    "tokenizer_behaviour.py",
    "gguf.py",
    "gguf_tokenizer.py",
    "tokenizers.py",
    "tokenizer_files.py",
)  # what opens a tokenizer
_ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_WRITTEN_OUT = 64  # added tokens that are tried inside a text, those with the lowest ids

TEXTS: tuple[str, ...] = (
    *("", " ", "  ", "   ", "a", " a", "  a", "   a", "a ", "a  ", "a b", "a  b", "a   b    c"),
    *("\n", "\n\n", "a\nb", "a \n b", "a\n\nb", "\ta", "a\tb", "a\r\nb", " \n", "\n "),
    *("Tomé", " Tomé", "Tome\u0301", "naïve café", "Ελλάδα", "Москва", "Zürich Straße", "العربية", "हिन्दी", "ไทย"),
    *(
        "東京",
        " 東京",
        "東京都に住む",
        "서울",
        "👍🏽",
        "👩‍👩‍👧",
        "a 🙂 b",
        "\u200b",
        "a\u00a0b",
        "\ufeffa",
        "\ufffd",
        "\x07",
    ),
    *("0", "7", "12", "123", "1234", "12345678", "1,234.56", "3.14159", "2024-02-29", "a1b22c333", "²½"),
    *("The", "the", " the", "THE", "The capital of France is", " The capital of France is", "Hello, world!"),
    *("can't won't I'll they've we're I'd it's", "CAN'T", "o'clock", "rock-'n'-roll", "“quoted” – text…", "e.g. i.e."),
    *(
        "foo_bar(baz)",
        "x = y ** 2;",
        "if (a) {\n    b();\n}",
        '<div class="a">',
        "https://a.example/b?c=d&e=f",
        "C:\\x",
    ),
    *("▁", "▁a", "Ġ", "Ġa", "##ing", "</w>", "<0x0A>", "<unk>", "<s>", "</s>", "<pad>", "[CLS]", "[SEP]", "[MASK]"),
    *("<|endoftext|>", "<|begin_of_text|>", "<|im_start|>", "a<s>b", "a </s> b", "a<|endoftext|>b"),
    *("antidisestablishmentarianism", "Llanfairpwllgwyngyll", "z" * 40, "ab" * 40, "qxj vkz"),
)
LONG = "word " * 1200  # longer than the window of a small model: nothing may be cut off
PAIRS: tuple[tuple[str, str], ...] = (
    ("The capital of France is", "Paris"),
    ("The capital of France is", " Paris"),
    ("The capital of France is ", "Paris"),
    ("Where was Tomé born?", "東京"),
    ("Who designed Lyra Bridge?", "Ada Kern"),
    ("It was in", "1984"),
    ("", "Paris"),
    ("Answer:\n", "yes."),
)


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase, bos: Sequence[int]) -> str:
    """Return 16 hex digits over what *tokenizer* makes of the battery.

    Of each text: the ids with and without special tokens, the offsets of the former, and what the latter decode to; of each pair of
    prompt and target: both alone, and joined. Besides, the ids of the special tokens and those that the policy prepends.

    Args:
        tokenizer: fast, with the BOS policy applied (:func:`raysweep.models.sources.tokenizers.fit_tokenizer`).
        bos: ids that are put before every text by hand.
    """
    added = sorted((number, str(token)) for number, token in tokenizer.added_tokens_decoder.items())
    # an added token is cut out of texts in ways that differ with what stands beside it
    in_texts = [f"{a}{token}{b}" for _, token in added[:_WRITTEN_OUT] for a, b in (("", ""), ("a", "b"), ("a ", " b"))]
    joined = [text for prompt, target in PAIRS for text in (prompt, target, f"{prompt} {target}", f"{prompt}{target}")]
    behaviour = {
        "battery": BATTERY_VERSION,
        "bos": list(bos),
        "texts": [_tokenised(tokenizer, text) for text in (*TEXTS, *joined, *in_texts)],
        "long": tokenizer(LONG, verbose=False)["input_ids"],
        "added": added,
        "special": {role: getattr(tokenizer, f"{role}_token_id") for role in _ROLES},
        "specials": sorted(tokenizer.all_special_ids),
        "size": len(tokenizer),
    }
    # plain data already, and much of it
    return text_digest(json.dumps(behaviour, separators=(",", ":")))


def _tokenised(tokenizer: PreTrainedTokenizerBase, text: str) -> list[object]:
    # offsets too: subjects and targets are found by them
    encoded = tokenizer(text, return_offsets_mapping=True, verbose=False)
    alone = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    back = tokenizer.decode(alone, clean_up_tokenization_spaces=False)
    return [encoded["input_ids"], encoded["offset_mapping"], alone, back]


class Records:
    """Digests of tokenizers seen before, one small file each, so that planning need not open them again.

    A file is named by everything that the digest depends on: what the tokenizer is made of, the BOS policy, the battery, the code
    and the packages that read it. A folder that cannot be written is no error.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def file(self, made_of: Mapping[str, object]) -> Path:
        """Return where the digest of the tokenizer made of *made_of* is kept."""
        folder = Path(__file__).parent
        # other code may read the same files otherwise, so it is part of the name
        code = [file_digest(folder / name) for name in _CODE]
        return self.folder / f"{digest({'of': made_of, 'code': code, 'packages': packages()})}.json"

    def get_or_make(self, made_of: Mapping[str, object], make: Callable[[], str]) -> str:
        """Return the digest that is kept for *made_of*, else the one that *make* returns, and keep it."""
        file = self.file(made_of)
        try:
            recorded = json.loads(file.read_text(encoding="utf-8"))["tokenizer_digest"]
        except (OSError, ValueError, KeyError, TypeError):
            recorded = None
        if isinstance(recorded, str) and recorded:
            return recorded
        # no record, or one that is damaged: look, and write it anew
        fresh = make()
        self._keep(file, {"tokenizer_digest": fresh, "of": dict(made_of), "packages": packages()})
        return fresh

    def _keep(self, file: Path, value: Mapping[str, object]) -> None:
        with suppress(OSError):  # a folder that cannot be written keeps nothing
            write_file(file, json.dumps(value, indent=1, sort_keys=True) + "\n", sync=False)


def packages() -> dict[str, str | None]:
    """Return the versions of what reads tokenizers; None = not installed."""
    versions: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return versions
