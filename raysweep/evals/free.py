"""Let a model write answers freely: greedy, batched, each token computed once, up to a stop string (docs/protocols.md).

A row's answer does not depend on its neighbours: attention keys and values of the tokens before it are kept row by row, and
padding is masked. Only rounding differs with the batch, so an arg-max that is all but a tie may flip; the margin is returned.

Shape legend: ``R`` rows of a pass that are still written, ``T`` tokens of the longest prompt, ``t`` tokens written so far, ``H``
heads, ``e`` entries of a head, ``d`` width of the stream.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from raysweep.evals.memory import within_memory
from raysweep.models import tokens
from raysweep.models.forward import blocks, positions, prefix_tree
from raysweep.models.lm import LanguageModel
from raysweep.models.modules import replacement
from raysweep.protocols import Stop, is_ended

NEAR = 16.0
"""Margins below so many units in the last place of the largest logit (or of 1), in the model's precision, are near ties."""


class Asked(NamedTuple):
    """One question as the model gets it.

    Attributes:
        ids: of the prompt.
        inner: how many full stops stand inside the target.
    """

    ids: tuple[int, ...]
    inner: int = 0


@dataclass(frozen=True, slots=True)
class Extent:
    """How far one stop rule lets an answer go: so many tokens, the last one included, and why it ends there."""

    length: int
    stop: Stop


@dataclass(frozen=True, slots=True)
class Written:
    """What a model wrote.

    Attributes:
        ids: all of it; with the end-of-text token or the token that completes the stop string.
        published: the extent under the published rule, which stops at any full stop.
        whole: the extent under the rule that lets the target's own inner full stops pass; all of ``ids``.
        margin: by how much the largest logit was above the second, at the least, in the published extent; NaN: none was finite.
        near_tie: whether a margin there was within rounding, so that another batch size may give another answer.
    """

    ids: tuple[int, ...]
    published: Extent
    whole: Extent
    margin: float
    near_tie: bool

    @property
    def text_ids(self) -> tuple[int, ...]:
        """The ids of the published extent."""
        return self.ids[: self.published.length]


def write(lm: LanguageModel, rows: Sequence[Asked], *, most: int, batch: int = 64) -> list[Written]:
    """Continue each of *rows* greedily by at most *most* tokens; equal rows are written once.

    Args:
        lm: the model as it stands.
        rows: the questions.
        most: tokens that an answer may have.
        batch: rows per pass.
    """
    # sorted by length, so that a pass pads little; the rest of the order makes it one and the same for the same questions
    order = sorted(set(rows), key=lambda row: (len(row.ids), row.ids, row.inner))
    written: dict[Asked, Written] = {}
    for begin in range(0, len(order), batch):
        chosen = order[begin : begin + batch]
        done = within_memory(partial(_write, lm, chosen, most), batch)
        written |= zip(chosen, done, strict=True)
    return [written[row] for row in rows]


@dataclass(slots=True)
class _Draft:
    """A row while it is written."""

    asked: Asked
    ids: list[int] = field(default_factory=list)
    published: Extent | None = None
    whole: Extent | None = None
    margin: float = math.inf
    near_tie: bool = False

    def add(self, lm: LanguageModel, token: int, margin: float, largest: float, most: int) -> None:
        """Append *token*, whose logit *largest* was *margin* above the next, and tell where the rules end the answer."""
        if not math.isfinite(largest):
            return self._end("non_finite", "non_finite")
        # The margins of what the longer rule adds say nothing about the published answer.
        if self.published is None:
            self.margin = min(self.margin, margin)
            self.near_tie = self.near_tie or margin <= NEAR * torch.finfo(lm.dtype).eps * max(1.0, abs(largest))
        self.ids.append(token)
        # by id: its text may be spelled in an answer as well
        if token == lm.tokenizer.eos_token_id:
            return self._end("eos", "eos")
        # decoded as a whole: a token alone may be half a character, or lose its space
        text = tokens.decode(lm, self.ids)
        reached: Stop | None = "length" if len(self.ids) == most else None
        return self._end(
            "string" if is_ended(text) else reached, "string" if is_ended(text, self.asked.inner) else reached
        )

    def _end(self, published: Stop | None, whole: Stop | None) -> None:
        if published is not None:
            self.published = self.published or Extent(len(self.ids), published)
        if whole is not None:
            self.whole = Extent(len(self.ids), whole)

    def done(self) -> Written:
        """Return it, once ``whole`` is known."""
        assert self.published is not None
        assert self.whole is not None
        margin = self.margin if math.isfinite(self.margin) else math.nan
        return Written(tuple(self.ids), self.published, self.whole, margin, self.near_tie)


def _write(lm: LanguageModel, rows: Sequence[Asked], most: int) -> list[Written]:
    drafts = [_Draft(row) for row in rows]
    open_drafts = drafts
    with torch.no_grad():
        steps: _Steps = _Cached(lm) if can_reuse(lm) else _WholeRows(lm)
        hidden = steps.begin(rows)
        while True:
            logits = blocks.logits(lm, hidden)
            top, ids = logits.topk(2, dim=-1)
            # NaN may hide from topk's order; the arg-max of a row with a NaN is a NaN, of one with infinity an infinity
            largest = logits.gather(-1, logits.argmax(-1, keepdim=True))[:, 0]
            # one read for all: fp64 holds ids and fp32 numbers exactly
            read = torch.stack([ids[:, 0].double(), (top[:, 0] - top[:, 1]).double(), largest.double()]).tolist()
            for draft, token, margin, highest in zip(open_drafts, *read, strict=True):
                draft.add(lm, int(token), margin, highest, most)
            left = [i for i, draft in enumerate(open_drafts) if draft.whole is None]
            if not left:
                return [draft.done() for draft in drafts]
            steps.keep(left)
            open_drafts = [open_drafts[i] for i in left]
            hidden = steps.go_on([draft.ids[-1] for draft in open_drafts])


def can_reuse(lm: LanguageModel) -> bool:
    """Tell whether a token's states are a function of the keys and values of the tokens before it.

    Not where an editor has put modules of its own into the model (GRACE, WISE): those decide by whole rows, and must see what
    they saw when they were written. Nor where a layout says that rows are more than their keys and values.
    """
    return lm.layout.shares_prefixes and replacement.first_replaced_block(lm) is None


class _Steps(Protocol):
    """Final states at the last tokens of rows that grow."""

    def begin(self, rows: Sequence[Asked]) -> Tensor:
        """Return ``[R, d]`` at the last tokens of the prompts."""
        ...

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with *rows* only."""
        ...

    def go_on(self, written: Sequence[int]) -> Tensor:
        """Return ``[R, d]`` at the tokens *written*, one per row."""
        ...


class _WholeRows:
    """Every row is computed as a whole at each step."""

    def __init__(self, lm: LanguageModel) -> None:
        self.lm = lm
        self.rows: list[list[int]] = []
        self.last: list[int] = []

    def begin(self, rows: Sequence[Asked]) -> Tensor:
        self.rows = [list(row.ids) for row in rows]
        self.last = [len(row) - 1 for row in self.rows]
        return self._hidden()

    def keep(self, rows: Sequence[int]) -> None:
        self.rows, self.last = [self.rows[i] for i in rows], [self.last[i] for i in rows]

    def go_on(self, written: Sequence[int]) -> Tensor:
        for row, token in zip(self.rows, written, strict=True):
            row.append(token)
        return self._hidden()

    def _hidden(self) -> Tensor:
        ends = [(i, len(row) - 1) for i, row in enumerate(self.rows)]
        return positions.hidden_at(self.lm, self.rows, self.last, ends)


class _Cached:
    """Keys and values of earlier tokens are kept; prompts that begin alike are computed as one (:mod:`.prefix_tree`).

    Attributes:
        cache: of each block, keys and values ``[R, H, T + t, e]``; shorter prompts are padded on their right.
        visible: ``[R, T + t]`` False at padding.
        places: ``[R, T + t]`` positions of the tokens.
    """

    def __init__(self, lm: LanguageModel) -> None:
        self.lm = lm

    def begin(self, rows: Sequence[Asked]) -> Tensor:
        lm, device = self.lm, self.lm.device
        packs = prefix_tree.pack_rows(lm, [row.ids for row in rows])
        mask = prefix_tree.attention_mask(lm, packs.visible, packs.positions, packs.positions)
        from transformers.cache_utils import DynamicCache

        packed = DynamicCache()
        hidden = blocks.run(lm, ids=packs.ids, mask=mask, positions=packs.positions, cache=packed)
        lengths = torch.tensor([len(row.ids) for row in rows], device=device)
        self.places = torch.arange(int(lengths.max()), device=device).repeat(len(rows), 1)
        self.visible = self.places < lengths[:, None]
        self.cache = DynamicCache()
        for number, layer in enumerate(packed.layers):
            assert layer.keys is not None
            assert layer.values is not None
            # [B, H, N, e] → [R, H, T, e]: the tokens that rows share are copied into each
            keys, values = (packs.to_rows(t.transpose(1, 2)).transpose(1, 2) for t in (layer.keys, layer.values))
            self.cache.update(keys, values, number)
        self.lengths = lengths
        return packs.last_states(hidden)

    def keep(self, rows: Sequence[int]) -> None:
        # mostly no row has ended, and then nothing need be copied
        if len(rows) == len(self.visible):
            return
        # on the host: blocks may lie on several devices
        kept = torch.tensor(rows)
        self.visible, self.places, self.lengths = self.visible[kept], self.places[kept], self.lengths[kept]
        self.cache.batch_select_indices(kept)

    def go_on(self, written: Sequence[int]) -> Tensor:
        lm = self.lm
        here = self.lengths[:, None]
        self.places = torch.cat([self.places, here], dim=1)
        self.visible = torch.cat([self.visible, torch.ones_like(here, dtype=torch.bool)], dim=1)
        # By positions, not by columns: shorter prompts have a gap between their last token and the first one written.
        mask = prefix_tree.attention_mask(lm, self.visible[:, None], here, self.places)
        ids = torch.tensor(written, device=lm.device)[:, None]
        hidden = blocks.run(lm, ids=ids, mask=mask, positions=here, cache=self.cache)
        self.lengths = self.lengths + 1
        return hidden[:, 0]
