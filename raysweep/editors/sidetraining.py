"""How a side memory learns one record: rows, losses, masked SGD (editors.md §11.2–11.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from raysweep.models import hooks, partial, sidememory, tokens, wrapping
from raysweep.models.lm import LanguageModel
from raysweep.records import EditRecord

if TYPE_CHECKING:
    from raysweep.editors.wise import MarginSpec, WiseConfig

FAR = 1e9  # the activation statistic of a memory without edits, and the first losses of the stopping rule


@dataclass(frozen=True, slots=True)
class Rows:
    """A padded batch: edit rows first, other texts last.

    Attributes:
        ids: ``[R, L]``.
        mask: ``[R, L]``, 1 = a real token; or ``[R, 1, L, L]`` to be added to the attention scores.
        counted: ``[R, L]`` tokens over which activation distances are averaged.
        answers: first and last-plus-one column of each edit row's answer.
    """

    ids: Tensor
    mask: Tensor
    counted: Tensor
    answers: tuple[tuple[int, int], ...]


def right_rows(lm: LanguageModel, templates: Sequence[str], record: tuple[str, str], others: Sequence[str]) -> Rows:
    """Return rows padded on the right, each with its own answer's columns."""
    prompt, target = record
    asked = [
        tokens.scored(lm, t.replace("{}", prompt), t.replace("{}", tokens.join(prompt, target))) for t in templates
    ]
    ids, mask = tokens.pad([*(s.ids for s in asked), *(tokens.encode(lm, text) for text in others)], lm.device)
    return Rows(ids, mask, mask.bool(), tuple((s.start, len(s.ids)) for s in asked))


def left_rows(
    lm: LanguageModel, templates: Sequence[str], record: tuple[str, str], others: Sequence[str], *, ref_labels: bool
) -> Rows:
    """Return rows padded on the left with the tokenizer's pad token, pads counted, as published.

    With *ref_labels* every answer begins at column ``max |enc(template(prompt))|`` (or where the row itself begins), which
    is right only if no other text is the longest row.
    """
    prompt, target = record
    asked = [
        tokens.scored(lm, t.replace("{}", prompt), t.replace("{}", tokens.join(prompt, target))) for t in templates
    ]
    rows = [*(list(s.ids) for s in asked), *(tokens.encode(lm, text) for text in others)]
    width, pad = max(len(r) for r in rows), lm.tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(r)) + r for r in rows], device=lm.device)
    begins = torch.tensor([width - len(r) for r in rows], device=lm.device)
    longest = max(len(tokens.encode(lm, t.replace("{}", prompt))) for t in templates)
    firsts = [max(longest, width - len(s.ids)) if ref_labels else width - len(s.ids) + s.start for s in asked]
    counted = torch.ones_like(ids, dtype=torch.bool)
    return Rows(ids, _left_mask(begins, width, lm.dtype), counted, tuple((first, width) for first in firsts))


def _left_mask(begins: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """Return the additive causal mask ``[R, 1, L, L]`` of rows that begin at column ``begins[r]``.

    A padding position may attend to nothing, which the softmax turns into equal attention to all columns. Its activations
    are counted here, so this has to be said, not left to the attention kernel.
    """
    column = torch.arange(width, device=begins.device)
    seen = (column[None, None, :] <= column[None, :, None]) & (column[None, None, :] >= begins[:, None, None])
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)[:, None]


def positive_mean(values: Tensor) -> Tensor:
    """Return the mean of the positive entries, 0 if there is none."""
    positive = values > 0
    return torch.where(positive, values, 0.0).sum() / positive.sum().clamp(min=1)


def activation_loss(edits: Tensor, other: Tensor, margins: MarginSpec) -> Tensor:
    """Return the margin loss of the edit rows' distances ``[n]`` and the unrelated row's ``[1]``."""
    return (
        positive_mean(other - edits + margins.gamma)
        + positive_mean(other - margins.alpha)
        + positive_mean(margins.beta - edits)
    )


@dataclass(slots=True)
class Replay:
    """Earlier edits: groups that were merged (taken in turn; ``cursors`` move on) and the present group (drawn)."""

    groups: Sequence[Sequence[Sequence[str]]]
    cursors: list[int]
    group: Sequence[Sequence[str]]
    rng: torch.Generator

    def past(self) -> list[tuple[str, str]]:
        """Return the next edit of each merged group."""
        found = []
        for i, group in enumerate(self.groups):
            prompt, target = group[self.cursors[i] % len(group)]
            found.append((prompt, target))
            self.cursors[i] = (self.cursors[i] + 1) % len(group)
        return found

    def present(self) -> tuple[str, str]:
        """Return a random edit of the present group."""
        prompt, target = self.group[int(torch.randint(len(self.group), (1,), generator=self.rng))]
        return prompt, target


@dataclass(frozen=True, slots=True)
class Job:
    """Everything that stays the same while one record is learnt.

    Attributes:
        lm: the model (left as it is).
        name: the linear map.
        config: hyper-parameters.
        templates: contexts, ``{}`` first.
        frozen: the original weight ``[d_out, d_in]``, fp32.
        mask: entries that may be trained.
    """

    lm: LanguageModel
    name: str
    config: WiseConfig
    templates: tuple[str, ...]
    frozen: Tensor
    mask: Tensor

    def train(
        self, record: EditRecord, unrelated: str, side: Tensor, replay: Replay | None
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the trained side memory and what to report; ``act`` is the edit rows' mean distance at the end."""
        rows = self._rows((record.prompt, record.target), [unrelated])
        entry, n = self.lm.layout.block.format(self.config.layer), len(self.templates)
        with torch.no_grad(), hooks.capture(self.lm, [(entry, "input"), (self.name, "input")]) as seen:
            partial.run(self.lm, ids=rows.ids, mask=rows.mask, last=self.config.layer)
            states, keys = seen[entry, "input"][:n], seen[self.name, "input"]
        side = side.clone()
        earlier, losses, act = [FAR, FAR], [], 0.0
        for _ in range(self.config.steps):
            side.requires_grad_(True)
            with torch.enable_grad():
                output, distance = self._distances(keys, side, rows.counted)
                loss = self._answer_loss(rows, states, output[:n])
                loss = loss + activation_loss(distance[:n], distance[n:], self.config.margins)
                done = abs(earlier[1] - earlier[0]) <= self.config.stop_change and earlier[1] <= self.config.stop_loss
                act = float(distance[:n].detach().mean())
                if done:
                    break
                if replay is not None:
                    loss = loss + self._replay_loss(replay, side)
                (gradient,) = torch.autograd.grad(loss, [side])
            side = self._stepped(side.detach(), gradient)
            losses.append(float(loss.detach()))
            earlier = [earlier[1], losses[-1]]
        stats = {"loss": losses[-1], "first_loss": losses[0], "steps": float(len(losses)), "act": act}
        return side.detach(), stats

    def _rows(self, record: tuple[str, str], others: Sequence[str]) -> Rows:
        if self.config.ref_padding:
            return left_rows(self.lm, self.templates, record, others, ref_labels=self.config.ref_labels)
        return right_rows(self.lm, self.templates, record, others)

    def _distances(self, keys: Tensor, side: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
        """Return the side memory's outputs ``[R, L, d_out]`` and each row's mean activation distance ``[R]``."""
        act = sidememory.activation(self.lm)
        _, bias = wrapping.linear(wrapping.inner(self.lm.part(self.name)))
        output = F.linear(keys, side.to(keys.dtype), bias)
        base = F.linear(keys, self.frozen.to(keys.dtype), bias)
        return output, sidememory.mean_change(sidememory.change(act, base, output), counted)

    def _answer_loss(self, rows: Rows, states: Tensor, output: Tensor) -> Tensor:
        """Return the mean over edit rows of ``Σ CE / (m + 1)`` for m answer tokens (one more than there are; quirk Q27)."""
        spots = [
            (i, j, 1 / (end - first + 1)) for i, (first, end) in enumerate(rows.answers) for j in range(first, end)
        ]
        row, column, weight = (torch.tensor(c, device=states.device) for c in zip(*spots, strict=True))
        given = sidememory.Given(wrapping.inner(self.lm.part(self.name)), output)
        with wrapping.installed(self.lm, {self.name: given}):
            hidden = partial.run(self.lm, states=states, mask=rows.mask[: len(states)], first=self.config.layer)
        logits = partial.logits(self.lm, hidden[row, column - 1])
        losses = F.cross_entropy(logits, rows.ids[row, column], reduction="none")
        return (losses * weight).sum() / len(rows.answers)

    def _replay_loss(self, replay: Replay, side: Tensor) -> Tensor:
        """Keep one edit of each past group below α, and one of the present group above β."""
        past = [positive_mean(self._replayed(r, side) - self.config.margins.alpha) for r in replay.past()]
        present = positive_mean(self.config.margins.beta - self._replayed(replay.present(), side))
        return torch.stack(past).mean() + present

    def _replayed(self, record: tuple[str, str], side: Tensor) -> Tensor:
        rows = self._rows(record, [])
        with torch.no_grad(), hooks.capture(self.lm, [(self.name, "input")]) as seen:
            partial.run(self.lm, ids=rows.ids, mask=rows.mask, last=self.config.layer)
        return self._distances(seen[self.name, "input"], side, rows.counted)[1]

    def _stepped(self, side: Tensor, gradient: Tensor) -> Tensor:
        """One step of SGD: the gradient is masked, decay is not unless configured; then clamp around the original."""
        decay = self.config.weight_decay * side
        if self.config.mask_weight_decay:
            decay = decay * self.mask
        side = side - self.config.lr * (gradient * self.mask + decay)
        if self.config.norm_constraint is None:
            return side
        width = self.config.norm_constraint
        return torch.maximum(torch.minimum(side, self.frozen + width), self.frozen - width)
