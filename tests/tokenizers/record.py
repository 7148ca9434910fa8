"""Write ``recorded.json``: the ids that transformers 4.44 gives for every variant and text of ``battery.py``.

See ``make.py`` for the environment. Where SentencePiece itself reads the folder too (the slow class), its ids of every text without
special tokens must be the same; that is asserted here.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import tokenizers
import transformers
from battery import RECORDED, TEXTS, VARIANTS
from transformers import AutoTokenizer

SLOW = (
    "llama-2",
    "llama-2, legacy",
    "mistral",
    "llama-2, model file, no settings",
    "gpt2",
    "gpt2, vocabulary and merges",
    "qwen2",
)
MARKS = ("<", "▁", "[")


def recorded(folder: Path, *, slow: bool) -> dict[str, Any]:
    fast = AutoTokenizer.from_pretrained(folder)
    assert fast.is_fast
    ids = [fast(text).input_ids for text in TEXTS]
    bare = [fast(text, add_special_tokens=False).input_ids for text in TEXTS]
    if slow:
        other = AutoTokenizer.from_pretrained(folder, use_fast=False, legacy=True)
        assert not other.is_fast
        for text, found in zip(TEXTS, ids, strict=True):
            if not any(m in text for m in MARKS) and other(text).input_ids != found:
                raise SystemExit(f"{folder}: {text!r} is {other(text).input_ids} slow, {found} fast")
    decoded = [fast.decode(row, clean_up_tokenization_spaces=False) for row in bare]
    return {"ids": ids, "bare": bare, "decoded": decoded}


def main() -> None:
    found: dict[str, Any] = {}
    made = {
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
        "by": "tests/tokenizers/record.py",
    }
    with tempfile.TemporaryDirectory() as where:
        for number, (name, variant) in enumerate(VARIANTS.items()):
            try:
                one = recorded(variant.write(Path(where, str(number))), slow=name in SLOW)
            except Exception as error:  # it cannot read this folder: nothing was published with it
                one = {"fails": f"{type(error).__name__}: {error}"[:120]}
            twin = next((other for other, ids in found.items() if ids == one), None)
            found[name] = {"as": twin} if twin else one
            print(name, "=", twin or "its own")
    lines = [
        f"{json.dumps(name)}: {json.dumps(one, ensure_ascii=False, separators=(',', ':'))}"
        for name, one in found.items()
    ]
    RECORDED.write_text(
        "{"
        + f'"made": {json.dumps(made)},\n"texts": {json.dumps(list(TEXTS))},\n"variants": {{\n'
        + ",\n".join(lines)
        + "\n}}\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
