"""The rows that WISE trains on: a record in every context template, then other texts, padded to one batch (docs/methods/wise.md).

Right padding is the default. The published code pads on the left without position ids, and counts pads (quirks Q28, Q31).

Shape legend: ``R`` rows, ``n`` edit rows of them, ``L`` columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raysweep.models import tokens
from raysweep.models.forward import prefix_tree
from raysweep.models.lm import LanguageModel


@dataclass(frozen=True, slots=True)
class PaddedRows:
    """A padded batch: edit rows first, other texts last.

    Attributes:
        ids: ``[R, L]``.
        seen: ``[R, L, L]``, whether a token (second axis) may look at another (third).
        counted: ``[R, L]`` tokens over which activation distances are averaged.
        answers: first and last-plus-one column of each edit row's answer; ``n`` of them.
    """

    ids: Tensor
    seen: Tensor
    counted: Tensor
    answers: tuple[tuple[int, int], ...]

    def mask(self, lm: LanguageModel) -> prefix_tree.AttentionMask:
        """Return what is added to attention scores."""
        column = torch.arange(self.ids.shape[1], device=self.ids.device).expand_as(self.ids)
        return prefix_tree.attention_mask(lm, self.seen, column, column)


def right_rows(
    lm: LanguageModel, templates: Sequence[str], record: tuple[str, str], others: Sequence[str]
) -> PaddedRows:
    """Return rows padded on the right, each with its own answer's columns.

    Args:
        lm: the model, for its tokenizer.
        templates: contexts with ``{}`` in place of the prompt; one edit row each.
        record: prompt and target.
        others: texts that bring no answer, unrelated ones.
    """
    prompt, target = record
    scored = [_in_context(lm, t, prompt, target) for t in templates]
    ids, mask = tokens.pad([*(s.ids for s in scored), *(tokens.encode(lm, text) for text in others)], lm.device)
    # [R, 1, L] and [L, L]: a token looks at what is no padding and not later than itself
    seen = mask.bool()[:, None, :] & _earlier(ids.shape[1], ids.device)
    return PaddedRows(ids, seen, mask.bool(), tuple((s.start, len(s.ids)) for s in scored))


def left_rows(
    lm: LanguageModel, templates: Sequence[str], record: tuple[str, str], others: Sequence[str], *, ref_labels: bool
) -> PaddedRows:
    """Return rows padded on the left with the tokenizer's pad token, pads counted, as published.

    With *ref_labels* every answer begins at column ``max |enc(template(prompt))|`` (or where the row itself begins), which
    is right only if no other text is the longest row.
    """
    prompt, target = record
    scored = [_in_context(lm, t, prompt, target) for t in templates]
    rows = [*(list(s.ids) for s in scored), *(tokens.encode(lm, text) for text in others)]
    width, pad = max(len(r) for r in rows), lm.tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(r)) + r for r in rows], device=lm.device)
    begins = torch.tensor([width - len(r) for r in rows], device=lm.device)
    # The published rule counts the prompt from the padded row's left end (quirk Q28).
    longest = max(len(tokens.encode(lm, tokens.in_context(lm, t, prompt))) for t in templates)
    firsts = [max(longest, width - len(s.ids)) if ref_labels else width - len(s.ids) + s.start for s in scored]
    counted = torch.ones_like(ids, dtype=torch.bool)
    # A pad may look at nothing, which the softmax turns into equal attention to all columns. Its activations are counted here,
    # so this is stated here, not left to the attention kernel.
    seen = _earlier(width, ids.device) & (torch.arange(width, device=ids.device) >= begins[:, None])[:, None, :]
    return PaddedRows(ids, seen, counted, tuple((first, width) for first in firsts))


def _in_context(lm: LanguageModel, context: str, prompt: str, target: str) -> tokens.LabelledIds:
    whole = tokens.in_context(lm, context, tokens.join(prompt, target))
    return tokens.labelled_ids(lm, tokens.in_context(lm, context, prompt), whole)


def _earlier(width: int, device: torch.device) -> Tensor:
    """Return ``[L, L]`` True on and below the diagonal."""
    return torch.ones(width, width, dtype=torch.bool, device=device).tril()
