"""Evaluation, plain: one prompt at a time, the logits of every position (docs/methods/evaluation.md)."""

from __future__ import annotations

import torch

from benchmarks.plain import common
from raysweep.evals.scoring import Scores
from raysweep.models import tokens
from raysweep.models.lm import LanguageModel
from raysweep.models.modules import replacement
from raysweep.records import Probe


def score(lm: LanguageModel, probe: Probe) -> Scores:
    """Return what the model answers to *probe*."""
    asked = tokens.labelled_ids(lm, probe.prompt, tokens.join(probe.prompt, probe.target))
    ids, mask = tokens.pad([asked.ids], lm.device)
    with torch.no_grad(), replacement.row_context(lm, [asked.start - 1], mask):
        logits = common.logits(lm, ids, mask)[0]
    spots = range(asked.start - 1, len(asked.ids) - 1)
    answers = tuple(logits.argmax(-1)[spots].tolist())
    logp = logits.float().log_softmax(-1)[spots, list(asked.labels)]
    return Scores(asked.labels, answers, float(logp.double().sum()), tokens.decode(lm, answers))
