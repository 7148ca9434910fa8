"""Ask a model to write its own answers: greedy generation of as many tokens as the target has (docs/methods/evaluation.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch

from raysweep.evals.memory import within_memory
from raysweep.evals.scoring import Scores, score
from raysweep.metrics import NON_FINITE
from raysweep.models import tokens
from raysweep.models.forward import blocks, positions
from raysweep.models.lm import LanguageModel
from raysweep.records import Probe


def generate(lm: LanguageModel, prompts: Sequence[str], lengths: Sequence[int], *, batch: int = 64) -> list[list[int]]:
    """Continue each prompt greedily by at most ``lengths[i]`` tokens; an end-of-text token ends a row early (and is kept).

    So does ``NON_FINITE``, which is written where the logits are not finite.

    The whole row is recomputed at each step, so a memory editor sees what it saw when it was written; padding is on the right,
    and a row's result does not depend on its neighbours.
    """
    # Equal prompts are written once; sorted by length, so that a batch pads little.
    rows_to_write = sorted(
        {(tuple(tokens.encode(lm, p)), m) for p, m in zip(prompts, lengths, strict=True)}, key=_by_length
    )
    written: dict[tuple[tuple[int, ...], int], list[int]] = {}
    for begin in range(0, len(rows_to_write), batch):
        rows = rows_to_write[begin : begin + batch]
        continued = within_memory(partial(_continue, lm, rows), batch)
        written |= dict(zip(rows, continued, strict=True))
    return [written[tuple(tokens.encode(lm, p)), m] for p, m in zip(prompts, lengths, strict=True)]


def continuations(lm: LanguageModel, prompts: Sequence[str], length: int) -> list[str]:
    """Return how *lm* goes on after each of *prompts*, greedily, in at most *length* tokens, as text."""
    rows = generate(lm, prompts, [length] * len(prompts))
    return [_text(lm, row) for row in rows]


def _by_length(row: tuple[tuple[int, ...], int]) -> tuple[int, tuple[int, ...], int]:
    return len(row[0]), row[0], row[1]


def _continue(lm: LanguageModel, rows: Sequence[tuple[tuple[int, ...], int]]) -> list[list[int]]:
    """Return what each of *rows* (ids, number of tokens to write) is continued with."""
    ends_row = {lm.tokenizer.eos_token_id, NON_FINITE}
    written: list[list[int]] = [[] for _ in rows]
    while True:
        open_rows = [
            i
            for i, (_, m) in enumerate(rows)
            if len(written[i]) < m and not (written[i] and written[i][-1] in ends_row)
        ]
        if not open_rows:
            return written
        so_far = [[*rows[i][0], *written[i]] for i in open_rows]
        ends = [(j, len(row) - 1) for j, row in enumerate(so_far)]
        with torch.no_grad():
            hidden = positions.hidden_at(lm, so_far, [len(rows[i][0]) - 1 for i in open_rows], ends)
            logits = blocks.logits(lm, hidden)
            best = logits.argmax(-1)
            # the arg-max of a row with a NaN is a NaN
            finite = logits.gather(-1, best[:, None])[:, 0].isfinite()
        for i, token, known in zip(open_rows, best.tolist(), finite.tolist(), strict=True):
            written[i].append(token if known else NON_FINITE)


def score_generated(
    lm: LanguageModel, probes: Sequence[Probe], *, batch: int = 64, published: bool = False
) -> list[Scores]:
    """Return one :class:`~raysweep.evals.scoring.Scores` per probe whose ``answers`` the model wrote itself.

    ``labels`` and ``logprob`` are the teacher-forced ones, so the target's ids carry their joining space. Where a row ended
    early, the missing answers are -1, which is no token and so never counts as a match with a label. Where logits were not
    finite, written or teacher-forced, the first answer that cannot be told is ``NON_FINITE``.

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
        replace(s, answers=_answers(w if s.finite else [NON_FINITE], len(s.labels)), text=_text(lm, w))
        for s, w in zip(scores, written, strict=True)
    ]


def _answers(written: Sequence[int], length: int) -> tuple[int, ...]:
    return (*written, *[-1] * (length - len(written)))


def _text(lm: LanguageModel, written: Sequence[int]) -> str:
    # Negative: what stands for a token where the logits were not finite.
    return tokens.decode(lm, [token for token in written if token >= 0])


def _published(lm: LanguageModel, probes: Sequence[Probe], batch: int) -> list[Scores]:
    labels = [tokens.encode_alone(lm, p.target) for p in probes]
    written = generate(lm, [p.prompt for p in probes], [len(ids) for ids in labels], batch=batch)
    out = []
    for probe, ids, answer in zip(probes, labels, written, strict=True):
        # the last len(ids) ids of prompt and answer together, -1 in front of them where there are fewer
        answers = [*[-1] * len(ids), *tokens.encode(lm, probe.prompt), *answer][-len(ids) :]
        out.append(Scores(tuple(ids), tuple(answers), float("nan"), _text(lm, answer)))
    return out
