"""Tokenizers of the belief models: one token per word of the graph's names, or the ids of a ``tokenizer.json``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from raysweep.belief.graph.graph import KnowledgeGraph
from raysweep.belief.graph.name_length import tokenizer_file
from raysweep.errors import DataError, SpecError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, UNK = "<pad>", "<s>", "</s>", "<unk>"
_PIECE = r"\w+|[^\w\s]"
_FRAME_WORDS = 'is true false not and or if then " .'


def vocabulary_words(graph: KnowledgeGraph) -> list[str]:
    """Return every word and mark that a sentence about *graph* can hold, sorted."""
    names = (
        *graph.subjects,
        *graph.relations,
        *graph.objects,
        *(w for others in graph.wordings for w in others),
        _FRAME_WORDS,
    )
    return sorted({piece for name in names for piece in re.findall(_PIECE, name)})


def word_tokenizer(graph: KnowledgeGraph) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per word: pad, begin, end and unknown are ids 0 to 3; a text gets its begin.

    Raises:
        SpecError: a name of the graph holds nothing but white space.
    """
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    names = (*graph.subjects, *graph.relations, *graph.objects)
    if not all(name.split() for name in names):
        raise SpecError("a name of the graph is empty", hint="mend the graph's files")
    # Special tokens first, then the words in alphabetical order: ids depend on the graph alone.
    table = {token: i for i, token in enumerate([PAD, BOS, EOS, UNK, *vocabulary_words(graph)])}
    core = Tokenizer(models.WordLevel(table, unk_token=UNK))
    # `invert`: what matches is kept, what stands between is removed.
    core.pre_tokenizer = pre_tokenizers.Split(Regex(_PIECE), behavior="removed", invert=True)
    return _as_fast_tokenizer(core, PAD)


def file_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a ``tokenizer.json`` (or of a folder with one) that has ``<s>``, ``</s>`` and ``<unk>``.

    Padding is ``<unk>``, as published (Mistral's has no pad token).

    Raises:
        DataError: the file is missing or has no such tokens.
    """
    from tokenizers import Tokenizer

    file = tokenizer_file(path)
    core = Tokenizer.from_file(str(file))
    missing = [token for token in (BOS, EOS, UNK) if core.token_to_id(token) is None]
    if missing:
        raise DataError(f"{file} lacks the tokens {', '.join(missing)}", hint="give a Llama or Mistral tokenizer")
    return _as_fast_tokenizer(core, UNK)


def tokenizer_from_json(text: str, pad: str) -> PreTrainedTokenizerFast:
    """Return the tokenizer whose core was written as *text*, padding with *pad*."""
    from tokenizers import Tokenizer

    return _as_fast_tokenizer(Tokenizer.from_str(text), pad)


def _as_fast_tokenizer(core: object, pad: str) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    assert isinstance(core, Tokenizer)
    # Every text begins with BOS; an end is written only where a document ends.
    begin = (BOS, core.token_to_id(BOS))
    core.post_processor = TemplateProcessing(single=f"{BOS} $A", pair=f"{BOS} $A {BOS}:1 $B:1", special_tokens=[begin])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        pad_token=pad,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
