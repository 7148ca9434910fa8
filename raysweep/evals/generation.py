"""Ask a model to write its own answers: greedy generation of as many tokens as the target has (editors.md §3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from raysweep.evals.scoring import Scores, score
from raysweep.models import final, partial, tokens
from raysweep.models.lm import LanguageModel
from raysweep.records import Probe


def generate(lm: LanguageModel, prompts: Sequence[str], lengths: Sequence[int], *, batch: int = 64) -> list[list[int]]:
    """Continue each prompt greedily by at most ``lengths[i]`` tokens; an end-of-text token ends a row early (and is kept).

    The whole row is recomputed at each step, so a memory editor sees what it saw when it was written; padding is on the right,
    and a row's result does not depend on its neighbours.
    """
    asked = sorted({(tuple(tokens.encode(lm, p)), m) for p, m in zip(prompts, lengths, strict=True)}, key=_by_length)
    found: dict[tuple[tuple[int, ...], int], list[int]] = {}
    for begin in range(0, len(asked), batch):
        rows = asked[begin : begin + batch]
        found |= dict(zip(rows, _continue(lm, rows), strict=True))
    return [found[tuple(tokens.encode(lm, p)), m] for p, m in zip(prompts, lengths, strict=True)]


def _by_length(row: tuple[tuple[int, ...], int]) -> tuple[int, tuple[int, ...], int]:
    return len(row[0]), row[0], row[1]


def _continue(lm: LanguageModel, rows: Sequence[tuple[tuple[int, ...], int]]) -> list[list[int]]:
    end = lm.tokenizer.eos_token_id
    written: list[list[int]] = [[] for _ in rows]
    while True:
        open_rows = [
            i for i, (_, m) in enumerate(rows) if len(written[i]) < m and not (written[i] and written[i][-1] == end)
        ]
        if not open_rows:
            return written
        asked = [[*rows[i][0], *written[i]] for i in open_rows]
        ends = [(j, len(row) - 1) for j, row in enumerate(asked)]
        with torch.no_grad():
            hidden = final.states(lm, asked, [len(rows[i][0]) - 1 for i in open_rows], ends)
            best = partial.logits(lm, hidden).argmax(-1).tolist()
        for i, token in zip(open_rows, best, strict=True):
            written[i].append(token)


def score_generated(
    lm: LanguageModel, probes: Sequence[Probe], *, batch: int = 64, published: bool = False
) -> list[Scores]:
    """Return one :class:`~raysweep.evals.scoring.Scores` per probe whose ``answers`` the model wrote itself.

    ``labels`` and ``logprob`` are the teacher-forced ones, so the target's ids carry their joining space. Where a row ended
    early, the missing answers are -1, which is no token and so never counts as a match with a label.

    Args:
        lm: the model.
        probes: the questions.
        batch: rows per forward pass.
        published: compare as the SimIE reference does (quirk Q7): the target's ids without a joining space against the last ids of
            prompt and continuation together (-1 where there are not that many). ``logprob`` is then NaN, since those ids are
            never asked for.
    """
    if published:
        return _published(lm, probes, batch)
    scores = score(lm, probes, batch=batch)
    written = generate(lm, [p.prompt for p in probes], [len(s.labels) for s in scores], batch=batch)
    return [
        replace(s, answers=(*w, *[-1] * (len(s.labels) - len(w))), text=tokens.decode(lm, w))
        for s, w in zip(scores, written, strict=True)
    ]


def _published(lm: LanguageModel, probes: Sequence[Probe], batch: int) -> list[Scores]:
    labels = [tokens.bare(lm, p.target) for p in probes]
    written = generate(lm, [p.prompt for p in probes], [len(ids) for ids in labels], batch=batch)
    out = []
    for probe, wanted, found in zip(probes, labels, written, strict=True):
        answers = [*[-1] * len(wanted), *tokens.encode(lm, probe.prompt), *found][-len(wanted) :]
        out.append(Scores(tuple(wanted), tuple(answers), float("nan"), tokens.decode(lm, found)))
    return out
