"""Tokens that a tokenizer has and the embedding has no row for.

A common one is ``[PAD]``, added after training so that batches can be padded; the weights were never resized. Padding here
repeats id 0 behind a mask, so such a token is never fed to the model, unless a text spells it out.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from raysweep.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def drop_rowless(tokenizer: PreTrainedTokenizerBase, rows: int) -> tuple[str, ...]:
    """Take added tokens that have no row out of *tokenizer*, in place, and return them.

    A text that spells one out is then cut into ordinary tokens, as the model was trained to read it. Where such a token was
    the pad, the end of text pads instead.

    Args:
        tokenizer: a fast one.
        rows: of the embedding.

    Raises:
        ModelError: tokens of the vocabulary itself have no row, or one without a row is put around every text.
    """
    # ids beyond the last row would read outside of the matrix
    lost = {token: number for token, number in tokenizer.get_vocab().items() if number >= rows}
    if not lost:
        return ()
    backend = tokenizer.backend_tokenizer
    tree = json.loads(backend.to_str())
    added = {entry["content"] for entry in tree.get("added_tokens", ())}
    # an entry of the vocabulary itself cannot be taken out: merges refer to it by id
    inside = sorted((number, token) for token, number in lost.items() if token not in added)
    needed = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token} & lost.keys()
    if inside or needed:
        token = inside[-1][1] if inside else sorted(needed)[0]
        raise ModelError(
            f"the tokenizer has id {lost[token]}, the embedding only {rows} rows",
            hint="tokenizer and weights belong to different models, or the weights were never resized to the tokenizer",
        )
    tree["added_tokens"] = [entry for entry in tree["added_tokens"] if entry["content"] not in lost]
    # the fast tokenizer cannot forget a token, so it is built again from its JSON without them
    tokenizer._tokenizer = type(backend).from_str(json.dumps(tree))
    if tokenizer.pad_token in lost:
        tokenizer.pad_token = tokenizer.eos_token
    return tuple(sorted(lost, key=lost.__getitem__))
