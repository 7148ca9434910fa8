"""How a side memory learns one record: rows, losses, masked SGD (editors.md §11.2–11.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from raysweep.models import hooks, tokens
from raysweep.models.forward import blocks, head, prefix_tree, resume
from raysweep.models.lm import LanguageModel
from raysweep.models.modules import replacement, side_memory
from raysweep.records import EditRecord

if TYPE_CHECKING:
    from raysweep.editors.wise.editor import MarginSpec, WiseConfig

FAR = 1e9  # the activation statistic of a memory without edits, and the first losses of the stopping rule


@dataclass(frozen=True, slots=True)
class Rows:
    """A padded batch: edit rows first, other texts last.

    Attributes:
        ids: ``[R, L]``.
        seen: ``[R, L, L]``, whether a token (second axis) may look at another (third).
        counted: ``[R, L]`` tokens over which activation distances are averaged.
        answers: first and last-plus-one column of each edit row's answer.
    """

    ids: Tensor
    seen: Tensor
    counted: Tensor
    answers: tuple[tuple[int, int], ...]

    def mask(self, lm: LanguageModel) -> prefix_tree.AttentionMask:
        """Return what is added to attention scores."""
        place = torch.arange(self.ids.shape[1], device=self.ids.device).expand_as(self.ids)
        return prefix_tree.attention_mask(lm, self.seen, place, place)


def right_rows(lm: LanguageModel, templates: Sequence[str], record: tuple[str, str], others: Sequence[str]) -> Rows:
    """Return rows padded on the right, each with its own answer's columns."""
    prompt, target = record
    asked = [
        tokens.scored(lm, t.replace("{}", prompt), t.replace("{}", tokens.join(prompt, target))) for t in templates
    ]
    ids, mask = tokens.pad([*(s.ids for s in asked), *(tokens.encode(lm, text) for text in others)], lm.device)
    seen = mask.bool()[:, None, :] & _earlier(ids.shape[1], ids.device)
    return Rows(ids, seen, mask.bool(), tuple((s.start, len(s.ids)) for s in asked))


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
    # A pad may look at nothing, which the softmax turns into equal attention to all columns. Its activations are counted here,
    # so this has to be said, not left to the attention kernel.
    seen = _earlier(width, ids.device) & (torch.arange(width, device=ids.device) >= begins[:, None])[:, None, :]
    return Rows(ids, seen, counted, tuple((first, width) for first in firsts))


def _earlier(width: int, device: torch.device) -> Tensor:
    """Return ``[L, L]`` True on and below the diagonal."""
    return torch.ones(width, width, dtype=torch.bool, device=device).tril()


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
        rows, n = self._rows((record.prompt, record.target), [unrelated]), len(self.templates)
        scale, answers = self._prepared(rows)
        side = side.clone()
        earlier, losses, act = [FAR, FAR], [], 0.0
        for _ in range(self.config.steps):
            side.requires_grad_(True)
            with torch.enable_grad():
                output = scale.output(side)
                distance = scale.distance(output)
                loss = answers.loss(output) + activation_loss(distance[:n], distance[n:], self.config.margins)
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

    def _prepared(self, rows: Rows) -> tuple[Scale, Answers]:
        """Compute once what no side memory can change: everything below the linear map, and beside it."""
        lm, block = self.lm, self.lm.layout.block.format(self.config.layer)
        sides: list[tuple[str, hooks.Side]] = [(self.name, "input"), (self.name, "output")]
        sides += [(block, "input"), (block, "output")]
        bare = replacement.unwrap(lm.part(self.name))
        with torch.no_grad(), replacement.modules_replaced(lm, {self.name: bare}), hooks.capture(lm, sides) as seen:
            blocks.run(lm, ids=rows.ids, mask=rows.mask(lm), last=self.config.layer)
        keys, outputs, entering, leaving = (seen[side] for side in sides)
        return Scale.of(self, keys, rows.counted), Answers.of(self, rows, outputs, entering, leaving)

    def _rows(self, record: tuple[str, str], others: Sequence[str]) -> Rows:
        if self.config.ref_padding:
            return left_rows(self.lm, self.templates, record, others, ref_labels=self.config.ref_labels)
        return right_rows(self.lm, self.templates, record, others)

    def _replay_loss(self, replay: Replay, side: Tensor) -> Tensor:
        """Keep one edit of each past group below α, and one of the present group above β."""
        past = [positive_mean(self._replayed(r, side) - self.config.margins.alpha) for r in replay.past()]
        present = positive_mean(self.config.margins.beta - self._replayed(replay.present(), side))
        return torch.stack(past).mean() + present

    def _replayed(self, record: tuple[str, str], side: Tensor) -> Tensor:
        rows = self._rows(record, [])
        with torch.no_grad(), hooks.capture(self.lm, [(self.name, "input")]) as seen:
            blocks.run(self.lm, ids=rows.ids, mask=rows.mask(self.lm), last=self.config.layer)
        scale = Scale.of(self, seen[self.name, "input"], rows.counted)
        return scale.distance(scale.output(side))

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


@dataclass(frozen=True, slots=True)
class Scale:
    """Counted tokens of some rows, and what a side memory's outputs there are compared with.

    Attributes:
        keys: ``[K, d_in]`` inputs of the linear map.
        row: ``[K]`` the row of each token.
        count: ``[R]`` tokens of each row.
        base: ``[K, d_out]`` activations of the original outputs.
        act: the model's MLP activation.
        bias: of the map, or None.
    """

    keys: Tensor
    row: Tensor
    count: Tensor
    base: Tensor
    act: side_memory.Activation
    bias: Tensor | None

    @classmethod
    def of(cls, job: Job, keys: Tensor, counted: Tensor) -> Scale:
        """Pick the *counted* ones of ``keys [R, L, d_in]``."""
        act, chosen = side_memory.mlp_activation(job.lm), keys[counted]
        _, bias = replacement.weight_and_bias(replacement.unwrap(job.lm.part(job.name)))
        base = act(F.linear(chosen, job.frozen.to(keys.dtype), bias))
        return cls(chosen, counted.nonzero()[:, 0], counted.sum(1).clamp(min=1), base, act, bias)

    def output(self, side: Tensor) -> Tensor:
        """Return the side memory's outputs ``[K, d_out]``."""
        return F.linear(self.keys, side.to(self.keys.dtype), self.bias)

    def distance(self, output: Tensor) -> Tensor:
        """Return each row's mean activation distance ``[R]`` from the original."""
        moved = torch.linalg.vector_norm((self.act(output) - self.base).float(), dim=-1)
        return torch.zeros(len(self.count), device=moved.device).index_add(0, self.row, moved) / self.count


@dataclass(frozen=True, slots=True)
class Answers:
    """The edit rows above the linear map, and what they are asked.

    Attributes:
        job: the model and the map.
        outputs: ``[n, T, d_out]`` original outputs of the map.
        stream: ``[n, T, d]`` what the map's outputs are added to (value matrix), or what enters the block (first map).
        upper: the blocks above, or from the map's own on, read where predictions are asked.
        kept: which of the scale's tokens these rows hold; ``place`` is their row and column.
        wanted: the id demanded of each prediction; ``weight``.
    """

    job: Job
    outputs: Tensor
    stream: Tensor
    upper: resume.ReadPositions
    kept: Tensor
    place: tuple[Tensor, Tensor]
    wanted: Tensor
    weight: Tensor

    @classmethod
    def of(cls, job: Job, rows: Rows, outputs: Tensor, entering: Tensor, leaving: Tensor) -> Answers:
        """Cut all rows but the edits away, and what comes after the last prediction."""
        n, width, layer = len(rows.answers), max(end for _, end in rows.answers) - 1, job.config.layer
        row, column = rows.counted.nonzero().T
        kept = (row < n) & (column < width)
        spots = [
            (i, j, 1 / (end - first + 1)) for i, (first, end) in enumerate(rows.answers) for j in range(first, end)
        ]
        i, j, weight = (torch.tensor(c, device=rows.ids.device) for c in zip(*spots, strict=True))
        above = job.config.matrix == "out"
        positions = torch.arange(width, device=rows.ids.device).expand(n, -1)
        upper = resume.UpperBlocks.prepare(job.lm, layer + above, positions, rows.seen[:n, :width, :width]).read_at(
            i, j - 1
        )
        stream = (leaving - outputs if above else entering)[:n, :width]
        place = (row[kept], column[kept])
        return cls(job, outputs[:n, :width], stream, upper, kept, place, rows.ids[i, j], weight)

    def loss(self, output: Tensor) -> Tensor:
        """Return the mean over rows of ``Σ CE / (m + 1)`` for m answer tokens (one more than there are; quirk Q27)."""
        lm, outputs = self.job.lm, self.outputs.index_put(self.place, output[self.kept])
        if self.job.config.matrix == "out":
            hidden = self.upper.hidden(lm, self.stream + outputs)
        else:
            given = side_memory.FixedOutput(replacement.unwrap(lm.part(self.job.name)), outputs)
            with replacement.modules_replaced(lm, {self.job.name: given}):
                hidden = self.upper.hidden(lm, self.stream)
        each = torch.arange(len(self.wanted), device=hidden.device)
        found = head.target_logprobs(lm, hidden, each, self.wanted)
        return -(found * self.weight).sum() / len(self.stream)
