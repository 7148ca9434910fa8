"""Which documents make up which training step: a pure function of lengths, recipe and seed.

A document becomes the row BOS, its tokens, EOS; the budget counts its tokens alone. Rows of a batch are padded to the longest one,
before or behind, or laid one after the other into rows of a fixed width, blind to each other.

Shapes: D documents, B documents of one batch, T tokens of the longest row; packed: R rows of W tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from raysweep.belief.corpus.corpus import Document
from raysweep.belief.graph.graph import Ints
from raysweep.errors import BeliefError
from raysweep.seeds import derive

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_READ = 8192  # documents that are tokenised together
_POOL = 50  # batches that are sorted by length together


@dataclass(frozen=True, eq=False)
class EncodedDocuments:
    """Documents as ids, one after the other, without begin and end.

    Attributes:
        ids: int32, all tokens.
        starts: int64 [D + 1]: document d is ``ids[starts[d]:starts[d + 1]]``.
        sentences: int64 [D]: sentences of each document.
        answers: bool, of each token: it belongs to what a sentence answers, its object or its label.
    """

    ids: NDArray[np.int32]
    starts: Ints
    sentences: Ints
    answers: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.sentences)

    @property
    def lengths(self) -> Ints:
        """int64 [D]: tokens of each document; what the budget counts."""
        return np.diff(self.starts)


def encode_documents(documents: Iterable[Document], tokenizer: PreTrainedTokenizerFast) -> EncodedDocuments:
    """Return *documents* as ids.

    Raises:
        BeliefError: there is none, or one has no token.
    """
    pieces: list[NDArray[np.int32]] = []
    lengths: list[int] = []
    sentences: list[int] = []
    answers: list[bool] = []
    source = iter(documents)
    while part := list(itertools.islice(source, _READ)):
        encodings = tokenizer.backend_tokenizer.encode_batch([d.text for d in part], add_special_tokens=False)
        pieces.append(np.array([i for e in encodings for i in e.ids], dtype=np.int32))
        lengths += [len(e.ids) for e in encodings]
        sentences += [d.sentences for d in part]
        for document, encoding in zip(part, encodings, strict=True):
            # Offsets are in characters, as the spans of the answers are.
            answers += _overlaps(encoding.offsets, document.answers)
    if not lengths or not min(lengths):
        raise BeliefError("a corpus without documents, or with an empty one", hint="raise num_atomic_facts")
    # One array for all documents, and where each begins.
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return EncodedDocuments(
        np.concatenate(pieces), starts, np.array(sentences, dtype=np.int64), np.array(answers, dtype=np.bool_)
    )


def _overlaps(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[bool]:
    """Say of each token whether it overlaps a span; both rise."""
    overlaps = []
    at = 0  # the first span that does not end before this token
    for start, stop in offsets:
        while at < len(spans) and spans[at][1] <= start:
            at += 1
        overlaps.append(at < len(spans) and spans[at][0] < stop)
    return overlaps


@dataclass(frozen=True, slots=True)
class TrainingStep:
    """One optimiser step: its epoch, its number within the epoch, and the documents of each of its batches."""

    epoch: int
    number: int
    batches: tuple[Ints, ...]


def epoch_steps(
    epoch: int, lengths: Ints, *, batch: int, accumulation: int, bucketed: bool, seed: int
) -> Iterator[TrainingStep]:
    """Yield the steps of one epoch; the last may be smaller.

    Args:
        epoch: from 0; each has its own order.
        lengths: int64 [D].
        batch: documents per batch.
        accumulation: batches per step.
        bucketed: sort pools of some batches by length, so that little is padded; the batches of a pool are shuffled.
        seed: root of the order.
    """
    # A stream per epoch: a resumed run draws the same order without the epochs before.
    rng = np.random.default_rng(derive(seed, "pretrain", "order", epoch))
    order = rng.permutation(len(lengths))
    if bucketed:
        order = _in_buckets(order, lengths, batch, rng)
    batches = [order[i : i + batch] for i in range(0, len(order), batch)]
    for number, start in enumerate(range(0, len(batches), accumulation)):
        yield TrainingStep(epoch, number, tuple(batches[start : start + accumulation]))


def _in_buckets(order: Ints, lengths: Ints, batch: int, rng: np.random.Generator) -> Ints:
    """Return *order* with documents of like length in a batch; an incomplete last batch stays as it is."""
    # Documents of complete batches; the rest is shorter than a batch and stays last.
    full = len(order) // batch * batch
    parts: list[Ints] = []
    for start in range(0, full, batch * _POOL):
        pool = order[start : min(start + batch * _POOL, full)]
        # Sorted by length within the pool, then cut into batches.
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        parts.append(rng.permutation(pool.reshape(-1, batch)).reshape(-1))  # rows = batches, shuffled as wholes
    return np.concatenate([*parts, order[full:]])


def training_steps(
    lengths: Ints, tokens: int, *, batch: int, accumulation: int, bucketed: bool, seed: int
) -> Iterator[tuple[TrainingStep, int]]:
    """Yield steps, each with the tokens seen after it, until *tokens* are reached (rulings F3, F7).

    Args:
        lengths: int64 [D], tokens of each document.
        tokens: the budget.
        batch: documents per batch.
        accumulation: batches per step.
        bucketed: put documents of like length into a batch.
        seed: root of the order.
    """
    tokens_so_far = 0
    for epoch in itertools.count():
        for step in epoch_steps(epoch, lengths, batch=batch, accumulation=accumulation, bucketed=bucketed, seed=seed):
            # Without begin, end and padding.
            tokens_so_far += sum(int(lengths[chosen].sum()) for chosen in step.batches)
            yield step, tokens_so_far
            if tokens_so_far >= tokens:
                return


def token_rows(encoded: EncodedDocuments, chosen: Sequence[int] | Ints, bos: int, eos: int) -> list[NDArray[np.int32]]:
    """Return begin, document, end for each chosen document.

    Args:
        encoded: all documents.
        chosen: int64 [B], which of them.
        bos: id of the begin.
        eos: id of the end.
    """
    head, tail = np.array([bos], dtype=np.int32), np.array([eos], dtype=np.int32)
    return [
        np.concatenate([head, encoded.ids[encoded.starts[d] : encoded.starts[d + 1]], tail]) for d in map(int, chosen)
    ]


def token_weights(encoded: EncodedDocuments, chosen: Sequence[int] | Ints, text: float) -> list[NDArray[np.float32]]:
    """Return the weight in the loss of each token of :func:`token_rows`: 0 for the begin, 1 for answers and ends, else *text*.

    Args:
        encoded: all documents.
        chosen: int64 [B], which of them.
        text: weight of a token that answers nothing.
    """
    rows = []
    for d in map(int, chosen):
        answers = encoded.answers[encoded.starts[d] : encoded.starts[d + 1]]
        inner = np.where(answers, 1.0, text)
        rows.append(np.concatenate([[0.0], inner, [1.0]]).astype(np.float32))
    return rows


def pad_rows(
    rows: Sequence[NDArray[np.int32]], pad: int, *, left: bool, extension: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return ids and mask (1 = a real token), int64 [B, T + extension].

    Args:
        rows: ids of each row.
        pad: id that fills up.
        left: pad before the row, else behind.
        extension: columns beyond the longest row.
    """
    width = max(len(row) for row in rows) + extension
    ids = np.full((len(rows), width), pad, dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=np.int64)
    for i, row in enumerate(rows):
        # Before the row, or behind it.
        part = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, part], mask[i, part] = row, 1
    return ids, mask


@dataclass(frozen=True, eq=False)
class PackedRows:
    """Documents laid one after the other into rows.

    Attributes:
        ids: int64 [R, W].
        segments: int64 [R, W]: which document a token is of, from 1; 0 = padding.
        positions: int64 [R, W], from 0 in each document.
        weights: fp32 [R, W], of each token in the loss.
    """

    ids: NDArray[np.int64]
    segments: NDArray[np.int64]
    positions: NDArray[np.int64]
    weights: NDArray[np.float32]


def pack_rows(
    rows: Sequence[NDArray[np.int32]], weights: Sequence[NDArray[np.float32]], pad: int, width: int
) -> PackedRows:
    """Lay *rows* in their order into rows of *width* tokens, or of the longest one's; one that does not fit begins a new row.

    Args:
        rows: ids of each row.
        weights: fp32, the weight of each token in the loss, row by row.
        pad: id that fills up.
        width: W, tokens of a packed row.
    """
    width = max(width, *(len(row) for row in rows))
    # Where each row goes: the packed row, and the columns within it.
    places, at, line = [], width, -1
    for row in rows:
        # It does not fit behind the others: a new packed row.
        if at + len(row) > width:
            at, line = 0, line + 1
        places.append((line, slice(at, at + len(row))))
        at += len(row)
    shape = (line + 1, width)
    packed = PackedRows(
        np.full(shape, pad, dtype=np.int64),
        np.zeros(shape, dtype=np.int64),
        np.zeros(shape, dtype=np.int64),
        np.zeros(shape, dtype=np.float32),
    )
    for number, (place, row, weight) in enumerate(zip(places, rows, weights, strict=True), start=1):
        packed.ids[place], packed.segments[place], packed.weights[place] = row, number, weight
        packed.positions[place] = np.arange(len(row))
    return packed
