"""What a model is trained on, as a few hex digits: two settings that write the same documents share one model.

The digest is taken from the sentences themselves, so no list of settings has to be kept right; and from one pass over them with the
layout of the documents, so that the documents need not be written (five passes of 2.4 million sentences at the published size).
"""

from __future__ import annotations

import hashlib

from raysweep.belief.corpus.corpus import Corpus
from raysweep.hashing import digest

VERSION = 1  # of how corpus and documents come from equal specs; raise it when the corpus writer changes
_PART = 4096  # sentences that are rendered at once
_END, _ANSWER = "\x1e", "\x1f"  # behind a sentence; before its answer


def documents_digest(corpus: Corpus) -> str:
    """Return 16 hex digits that are equal for equal documents, and differ where a text, an answer or the layout does.

    A document is a part of an order of sentences, and the orders are drawn from the corpus' seed over each subject's sentences
    (:meth:`.Corpus.documents`). So the sentences by subject, the seed, the number of orders and the length of
    a part say everything. A part longer than whatever it could hold is as good as one that just holds it.
    """
    spec, statements, hasher = corpus.spec, corpus.statements, hashlib.blake2b()
    # In parts, so that 2.4 million sentences are never in memory at once.
    for start in range(0, len(statements), _PART):
        texts = statements.texts(corpus.names, start, start + _PART)
        lengths = statements.answers(corpus.names, start, start + _PART)
        rows = (f"{t[: len(t) - n]}{_ANSWER}{t[len(t) - n :]}{_END}" for t, n in zip(texts, lengths, strict=True))
        hasher.update("".join(rows).encode())
    hasher.update(statements.owner.astype("<i4").tobytes())
    # A part longer than the longest list of sentences is as good as one that just holds it.
    longest = len(statements) if spec.heterogeneous else int(corpus.sentences_per_subject.max(initial=1))
    layout = [corpus.seed, spec.homogeneous, spec.heterogeneous, min(spec.max_sentences_per_doc, longest)]
    return digest([hasher.hexdigest(), layout])
