"""Ask a model many probes: teacher-forced arg-max tokens and log-probabilities, batched and padding-invariant (§3.1–3.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from raysweep.models import partial, tokens, wrapping
from raysweep.models.lm import LanguageModel
from raysweep.records import Probe


@dataclass(frozen=True, slots=True)
class Scores:
    """What the model answered to one probe.

    Attributes:
        labels: ids of the target (teacher-forced).
        answers: arg-max ids at the same positions.
        logprob: sum of the log-probabilities of the labels, nats.
        text: the answers decoded.
    """

    labels: tuple[int, ...]
    answers: tuple[int, ...]
    logprob: float
    text: str


def score(lm: LanguageModel, probes: Sequence[Probe], *, batch: int = 64) -> list[Scores]:
    """Return one :class:`Scores` per probe, in order.

    ``ids = enc(prompt + " " + target)``; the answer begins after the ids of the prompt; position j is predicted from all
    ids before it. Equal rows are computed once; rows of similar length share a forward pass; the head is applied at the
    answer's positions only.

    Args:
        lm: the model.
        probes: the questions.
        batch: rows per forward pass.
    """
    asked = [tokens.scored(lm, p.prompt, tokens.join(p.prompt, p.target)) for p in probes]
    unique = sorted(set(asked), key=lambda s: (len(s.ids), s.ids, s.start))
    found: dict[tokens.Scored, Scores] = {}
    for begin in range(0, len(unique), batch):
        for s, result in zip(unique[begin : begin + batch], _forward(lm, unique[begin : begin + batch]), strict=True):
            found[s] = result
    return [found[s] for s in asked]


def _forward(lm: LanguageModel, rows: Sequence[tokens.Scored]) -> list[Scores]:
    ids, mask = tokens.pad([s.ids for s in rows], lm.device)
    spots = [(i, j) for i, s in enumerate(rows) for j in range(s.start - 1, len(s.ids) - 1)]
    if not spots:
        return [Scores((), (), 0.0, "") for _ in rows]
    row, column = (torch.tensor(c, device=lm.device) for c in zip(*spots, strict=True))
    with torch.no_grad():
        with wrapping.asking(lm, [s.start - 1 for s in rows], mask):
            hidden = partial.run(lm, ids=ids, mask=mask)
        logits = partial.logits(lm, hidden[row, column])
        best = logits.argmax(-1).tolist()
        labels = ids[row, column + 1]
        logp = (logits.gather(1, labels[:, None])[:, 0] - logits.logsumexp(-1)).double().tolist()
    out, at = [], 0
    for s in rows:
        m = len(s.labels)
        answers = tuple(best[at : at + m])
        out.append(Scores(s.labels, answers, float(sum(logp[at : at + m])), tokens.decode(lm, answers)))
        at += m
    return out
