"""How far a model has moved from the unedited one on a fixed text that no edit is about (docs/methods/evaluation.md).

The text is cut into pieces of ``PIECE`` tokens. On each, every token is predicted from those before it in the piece: the perplexity
is ``exp(−mean log p)`` over all of them. After a piece's last token the whole distribution is looked at: the divergence is the mean
of ``KL(p ‖ q) = Σ_v p_v (log p_v − log q_v)``, in nats, from the unedited model's *p* to the edited model's *q*.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from raysweep.evals.memory import within_memory
from raysweep.models import tokens
from raysweep.models.forward import blocks, head, positions
from raysweep.models.lm import LanguageModel

PIECE = 32
MOST_PIECES = 64  # whose last distributions are kept: [64, V] fp32, 32 MB for a vocabulary of 128,000
ROUNDS_OF_POWER = 30
Piece = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TextReading:
    """What a model makes of the pieces.

    Attributes:
        nll: the mean of ``−log p`` over every predicted token, nats.
        last: log-probabilities after the last token of the first ``MOST_PIECES`` pieces, ``[pieces, V]``, fp32 on the host.
    """

    nll: float
    last: Tensor


def pieces_of(lm: LanguageModel, texts: Iterable[str], count: int) -> list[Piece]:
    """Return about *count* tokens of *texts* as pieces of at most ``PIECE``; what is too short for a prediction is left out."""
    out: list[Piece] = []
    taken = 0
    for text in texts:
        ids = tokens.encode(lm, text)
        for begin in range(0, len(ids), PIECE):
            piece = tuple(ids[begin : begin + PIECE])[: count - taken]
            if len(piece) > 1:
                out.append(piece)
                taken += len(piece)
            if taken >= count - 1:
                return out
    return out


def read(lm: LanguageModel, pieces: Sequence[Piece], *, batch: int) -> TextReading:
    """Return what *lm* makes of *pieces* as it stands, *batch* pieces per pass."""
    logprobs: list[float] = []
    last: list[Tensor] = []
    for begin in range(0, len(pieces), batch):
        found = within_memory(partial(_read, lm, pieces[begin : begin + batch]), batch)
        logprobs += found[0]
        last.append(found[1])
    # fsum: the mean does not depend on how pieces were batched beyond their own last bits.
    return TextReading(-math.fsum(logprobs) / max(len(logprobs), 1), torch.cat(last)[:MOST_PIECES])


def _read(lm: LanguageModel, rows: Sequence[Piece]) -> tuple[list[float], Tensor]:
    inner = [(i, j) for i, row in enumerate(rows) for j in range(len(row) - 1)]
    ends = [(i, len(row) - 1) for i, row in enumerate(rows)]
    with torch.no_grad():
        # A piece is a prompt as a whole: a memory editor looks it up by its last token.
        hidden = positions.hidden_at(lm, rows, [len(row) - 1 for row in rows], [*inner, *ends])
        labels = torch.tensor([rows[i][j + 1] for i, j in inner], device=lm.device)
        _, logprob = head.argmax_and_logprob(lm, hidden[: len(inner)], labels)
        last = blocks.logits(lm, hidden[len(inner) :]).float().log_softmax(-1).cpu()
    return logprob.double().tolist(), last


def moved(unedited: TextReading, now: TextReading) -> dict[str, float]:
    """Return ``text_ppl`` and ``text_kl`` of *now*; NaN where its logits are not finite."""
    p, q = unedited.last.double(), now.last.double()
    # A token that the unedited model rules out adds nothing, whatever the edited one says.
    terms = torch.where(p > -torch.inf, p.exp() * (p - q), torch.zeros_like(p))
    # exp(700) is about the largest number that fp64 holds.
    ppl = math.exp(min(now.nll, 700.0)) if math.isfinite(now.nll) else math.nan
    return {"text_ppl": ppl, "text_kl": float(terms.sum(-1).mean())}


def spectrum(deltas: Mapping[str, Tensor]) -> dict[str, float]:
    """Return, of each changed matrix ``[a, b]``, its largest singular value and its stable rank ``‖Δ‖_F² / σ₁²``.

    The singular value is that of ``ROUNDS_OF_POWER`` rounds of the power method from a fixed vector, fp64: within a per mille where
    the second one is not nearly as large, and never too large.
    """
    out: dict[str, float] = {}
    for name, delta in deltas.items():
        matrix = delta.double()
        if matrix.ndim != 2 or not bool(torch.isfinite(matrix).all()) or not bool(matrix.any()):
            continue
        vector = torch.ones(matrix.shape[1], dtype=torch.float64, device=matrix.device)
        # An alternating tail, so that a change which a constant vector does not see is seen all the same.
        vector[1::2] = 0.5
        for _ in range(ROUNDS_OF_POWER):
            image = matrix.T @ (matrix @ vector)
            vector = image / image.norm().clamp_min(1e-300)
        top = float((matrix @ vector).norm())
        if top > 0.0:
            out[f"top_singular/{name}"] = top
            out[f"stable_rank/{name}"] = float(matrix.norm()) ** 2 / top**2
    return out
