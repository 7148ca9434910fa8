"""Ask a model many probes: teacher-forced arg-max tokens and log-probabilities, batched and padding-invariant.

With ``ids = enc(x + " " + y)`` and ``a = |enc(x)|``, position ``j ≥ a`` is answered by ``ŷ_j = argmax p(· | ids_{<j})`` and its
label is ``ids_j`` (docs/methods/evaluation.md).

Shape legend: ``R`` rows of a pass, ``k`` answer tokens of all of them, ``m`` of one, ``d`` width of the residual stream.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from raysweep.evals.memory import within_memory
from raysweep.metrics import NON_FINITE
from raysweep.models import tokens
from raysweep.models.forward import head, positions
from raysweep.models.lm import LanguageModel
from raysweep.records import Probe


@dataclass(frozen=True, slots=True)
class Scores:
    """What the model answered to one probe.

    Attributes:
        labels: ids of the target (teacher-forced).
        answers: arg-max ids at the same positions; ``NON_FINITE`` where the logits were not finite.
        logprob: sum of the log-probabilities of the labels, nats; NaN or infinite where a logit was.
        text: the answers decoded, without those that are no ids.
    """

    labels: tuple[int, ...]
    answers: tuple[int, ...]
    logprob: float
    text: str

    @property
    def finite(self) -> bool:
        """Whether the logits behind every answer were finite."""
        return NON_FINITE not in self.answers


def score(lm: LanguageModel, probes: Sequence[Probe], *, batch: int = 64) -> list[Scores]:
    """Return one :class:`Scores` per probe, in order.

    ``ids = enc(prompt + " " + target)``; the answer begins after the ids of the prompt; position j is predicted from all
    ids before it. Equal rows are computed once, and so is what the rows of a pass begin with in common; the head is applied at
    the answer's positions only.

    Args:
        lm: the model.
        probes: the questions.
        batch: rows per forward pass.
    """
    rows_asked = [tokens.labelled_ids(lm, p.prompt, tokens.join(p.prompt, p.target)) for p in probes]
    # Many probes are equal (locality questions recur): each text is run once.
    unique = list(dict.fromkeys(rows_asked))
    scores: dict[tokens.LabelledIds, Scores] = {}
    for begin in range(0, len(unique), batch):
        rows = unique[begin : begin + batch]
        found = within_memory(partial(_forward, lm, rows), batch)
        scores.update(zip(rows, found, strict=True))
    return [scores[row] for row in rows_asked]


def _forward(lm: LanguageModel, rows: Sequence[tokens.LabelledIds]) -> list[Scores]:
    # (row, position) of every token that predicts an answer token, row by row: k of them
    predicting = [(i, j) for i, s in enumerate(rows) for j in range(s.start - 1, len(s.ids) - 1)]
    if not predicting:
        return [Scores((), (), 0.0, "") for _ in rows]
    with torch.no_grad():
        hidden = positions.hidden_at(lm, [s.ids for s in rows], [s.start - 1 for s in rows], predicting)
        labels = torch.tensor([rows[i].ids[j + 1] for i, j in predicting], device=lm.device)
        best, logprob = head.argmax_and_logprob(lm, hidden, labels)
        # one read for both: fp64 holds ids and fp32 numbers exactly
        answered, logprobs = torch.stack([best.double(), logprob.double()]).tolist()
    out, at = [], 0
    for s in rows:
        m = len(s.labels)
        # a label's log-probability is finite only if the row has no NaN and its largest logit is finite
        pairs = zip(answered[at : at + m], logprobs[at : at + m], strict=True)
        answers = tuple(int(token) if math.isfinite(logprob) else NON_FINITE for token, logprob in pairs)
        text = tokens.decode(lm, [token for token in answers if token >= 0])
        out.append(Scores(s.labels, answers, float(sum(logprobs[at : at + m])), text))
        at += m
    return out
