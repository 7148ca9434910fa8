"""How a side memory ``W′`` of WISE learns one record: padded rows, two losses, SGD on masked entries (docs/methods/wise.md).

Beside the frozen map ``W_0`` (Wang et al. 2024, eq. 3, 5 and 7), with the model's MLP activation ``φ`` and a row's tokens ``T``::

    a(row)   = mean_T ‖φ(W′ x) − φ(W_0 x)‖₂                                  activation distance
    L_answer = mean over edit rows of Σ_j CE_j / (m + 1)                     (one more than there are tokens; quirk Q27)
    L_act    = mean⁺(a_u − a_e + γ) + mean⁺(a_u − α) + mean⁺(β − a_e)        a_e of edit rows, a_u of the unrelated one

    W′ ← clamp(W′ − lr · (mask ⊙ ∂L/∂W′ + decay · W′), W_0 ± norm_constraint)

``mean⁺`` is the mean of the positive entries. Edit rows are the record in every context template, the unrelated text is the last
row.

Shape legend: ``R`` rows, ``n`` edit rows of them, ``L`` columns, ``K`` counted tokens of all rows, ``k`` answer tokens of all edit
rows, ``m`` those of one, ``d`` width of the residual stream, ``W′ [d_out, d_in]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from raysweep.editors.stopping import steps_between_reads
from raysweep.editors.wise import padded_rows
from raysweep.editors.wise.config import MarginSpec, WiseConfig
from raysweep.models import hooks
from raysweep.models.forward import blocks, head, resume
from raysweep.models.lm import LanguageModel
from raysweep.models.modules import replacement, side_memory
from raysweep.records import EditRecord

# activation distance of a memory without edits, and the losses before the first of the stopping rule
NO_DISTANCE = 1e9


def positive_mean(values: Tensor) -> Tensor:
    """Return the mean of the positive entries, 0 if there is none."""
    positive = values > 0
    return torch.where(positive, values, 0.0).sum() / positive.sum().clamp(min=1)


def activation_loss(edits: Tensor, other: Tensor, margins: MarginSpec) -> Tensor:
    """Return the margin loss ``mean⁺(a_u − a_e + γ) + mean⁺(a_u − α) + mean⁺(β − a_e)``.

    Args:
        edits: activation distances ``a_e [n]`` of the edit rows.
        other: that of the unrelated row, ``a_u [1]``.
        margins: ``α``, ``β``, ``γ``.
    """
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
        edits = []
        for i, group in enumerate(self.groups):
            prompt, target = group[self.cursors[i] % len(group)]
            edits.append((prompt, target))
            self.cursors[i] = (self.cursors[i] + 1) % len(group)
        return edits

    def present(self) -> tuple[str, str]:
        """Return a random edit of the present group."""
        prompt, target = self.group[int(torch.randint(len(self.group), (1,), generator=self.rng))]
        return prompt, target


@dataclass(frozen=True, slots=True)
class SideMemoryTraining:
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
        """Return the trained side memory and what to report; ``act`` is the edit rows' mean distance at the end.

        Args:
            record: to learn.
            unrelated: a text whose activations should stay.
            side: ``W′ [d_out, d_in]`` so far, fp32; not changed in place.
            replay: earlier edits to keep in or out; None = none.
        """
        # Rows 0 … n − 1 are the record in each context, row n is the unrelated text.
        rows, n = self._rows((record.prompt, record.target), [unrelated]), len(self.templates)
        activations, answers = self._prepare(rows)
        side = side.clone()
        # Replayed edits are laid out in every step, which waits anyway.
        history = History(self.config, side, every=1 if replay is not None else steps_between_reads(side))
        for _ in range(self.config.steps):
            side.requires_grad_(True)
            with torch.enable_grad():
                output = activations.output(side)
                distance = activations.distance(output)
                loss = answers.loss(output) + activation_loss(distance[:n], distance[n:], self.config.margins)
                if history.ended(distance[:n].detach().mean()):
                    break
                if replay is not None:
                    loss = loss + self._replay_loss(replay, side)
                (gradient,) = torch.autograd.grad(loss, [side])
            side = history.keep_if_stopped(side.detach(), self._sgd_step(side.detach(), gradient))
            history.add(loss.detach())
        losses, act = history.read()
        stats = {"loss": losses[-1], "first_loss": losses[0], "steps": float(len(losses)), "act": act}
        return side.detach(), stats

    def _prepare(self, rows: padded_rows.PaddedRows) -> tuple[ActivationDistance, AnswerLoss]:
        """Compute once what no side memory can change: everything below the linear map, and beside it."""
        lm, block = self.lm, self.lm.layout.block.format(self.config.layer)
        sides: list[tuple[str, hooks.Side]] = [(self.name, "input"), (self.name, "output")]
        sides += [(block, "input"), (block, "output")]
        # Everything is read with the bare map in place: earlier memories must not answer.
        bare = replacement.unwrap(lm.part(self.name))
        with torch.no_grad(), replacement.modules_replaced(lm, {self.name: bare}), hooks.capture(lm, sides) as seen:
            blocks.run(lm, ids=rows.ids, mask=rows.mask(lm), last=self.config.layer)
        keys, outputs, entering, leaving = (seen[side] for side in sides)
        activations = ActivationDistance.prepare(self, keys, rows.counted)
        return activations, AnswerLoss.prepare(self, rows, outputs, entering, leaving)

    def _rows(self, record: tuple[str, str], others: Sequence[str]) -> padded_rows.PaddedRows:
        if self.config.ref_padding:
            return padded_rows.left_rows(self.lm, self.templates, record, others, ref_labels=self.config.ref_labels)
        return padded_rows.right_rows(self.lm, self.templates, record, others)

    def _replay_loss(self, replay: Replay, side: Tensor) -> Tensor:
        """Keep one edit of each past group below α, and one of the present group above β."""
        # Earlier edits belong to other memories: this one should leave their activations alone.
        past = [positive_mean(self._replay_distance(r, side) - self.config.margins.alpha) for r in replay.past()]
        present = positive_mean(self.config.margins.beta - self._replay_distance(replay.present(), side))
        return torch.stack(past).mean() + present

    def _replay_distance(self, record: tuple[str, str], side: Tensor) -> Tensor:
        """Return the activation distance of an earlier edit's rows ``[n]``."""
        rows = self._rows(record, [])
        with torch.no_grad(), hooks.capture(self.lm, [(self.name, "input")]) as seen:
            blocks.run(self.lm, ids=rows.ids, mask=rows.mask(self.lm), last=self.config.layer)
        activations = ActivationDistance.prepare(self, seen[self.name, "input"], rows.counted)
        return activations.distance(activations.output(side))

    def _sgd_step(self, side: Tensor, gradient: Tensor) -> Tensor:
        """Return *side* after one step of masked SGD (decay is not masked unless configured), clamped around ``W_0``."""
        decay = self.config.weight_decay * side
        if self.config.mask_weight_decay:
            decay = decay * self.mask
        # W′ ← W′ − lr (mask ⊙ g + decay), the decay over all entries unless masked (quirk Q29).
        side = side - self.config.lr * (gradient * self.mask + decay)
        if self.config.norm_constraint is None:
            return side
        width = self.config.norm_constraint
        return torch.maximum(torch.minimum(side, self.frozen + width), self.frozen - width)


class History:
    """The losses of a training, and whether it has ended: by the two losses before the present one, as published.

    The device latches that it has ended and keeps the side memory from then on; the host asks every few steps.
    """

    def __init__(self, config: WiseConfig, like: Tensor, *, every: int) -> None:
        self.every, self._change, self._loss = every, config.stop_change, config.stop_loss
        # fp64, in which Python compares
        none = torch.full((), NO_DISTANCE, dtype=torch.float64, device=like.device)
        self._losses, self._acts = [none, none], list[Tensor]()
        self._stopped = torch.zeros((), dtype=torch.bool, device=like.device)
        self._stops: list[Tensor] = []

    def ended(self, act: Tensor) -> bool:
        """Take the mean distance of the edit rows before a step; tell, in every few steps, whether no step is left."""
        before, last = self._losses[-2:]
        self._stopped = self._stopped | (((last - before).abs() <= self._change) & (last <= self._loss))
        self._stops.append(self._stopped)
        self._acts.append(act)
        return len(self._acts) % self.every == 0 and bool(self._stopped)

    def keep_if_stopped(self, side: Tensor, stepped: Tensor) -> Tensor:
        """Return *stepped*, or *side* if the training had ended before."""
        # who asks in every step takes none after the end
        return stepped if self.every == 1 else torch.where(self._stopped, side, stepped)

    def add(self, loss: Tensor) -> None:
        """Take the loss before a step."""
        self._losses.append(loss.double())

    def read(self) -> tuple[list[float], float]:
        """Return the losses up to the end, and the distance at the end; one read for all."""
        n, taken = len(self._acts), len(self._losses) - 2
        values: list[float] = torch.stack([x.double() for x in (*self._acts, *self._stops, *self._losses[2:])]).tolist()
        acts, stops, losses = values[:n], values[n : 2 * n], values[2 * n :]
        # The step that finds the end measures the distance, and its loss does not count.
        end = stops.index(1.0) if 1.0 in stops else taken
        return losses[:end], acts[min(end, n - 1)]


@dataclass(frozen=True, slots=True)
class ActivationDistance:
    """Counted tokens of some rows, and what a side memory's activations there are compared with.

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
    def prepare(cls, training: SideMemoryTraining, keys: Tensor, counted: Tensor) -> ActivationDistance:
        """Compute the original activations at the counted tokens.

        Args:
            training: model, map and frozen weight.
            keys: what enters the map, ``[R, L, d_in]``.
            counted: ``[R, L]`` bool, the tokens over which distances are averaged.
        """
        act, chosen = side_memory.mlp_activation(training.lm), keys[counted]  # [K, d_in]
        _, bias = replacement.weight_and_bias(replacement.unwrap(training.lm.part(training.name)))
        # φ(W_0 x) at the counted tokens, [K, d_out]; it never changes, so it is computed once.
        base = act(F.linear(chosen, training.frozen.to(keys.dtype), bias))
        return cls(chosen, counted.nonzero()[:, 0], counted.sum(1).clamp(min=1), base, act, bias)

    def output(self, side: Tensor) -> Tensor:
        """Return the side memory's outputs ``[K, d_out]``."""
        return F.linear(self.keys, side.to(self.keys.dtype), self.bias)

    def distance(self, output: Tensor) -> Tensor:
        """Return each row's mean activation distance ``[R]`` from the original, given outputs ``[K, d_out]``."""
        moved = torch.linalg.vector_norm((self.act(output) - self.base).float(), dim=-1)
        # sum the K tokens' distances by row, then divide: a mean over each row's tokens
        return torch.zeros(len(self.count), device=moved.device).index_add(0, self.row, moved) / self.count


@dataclass(frozen=True, slots=True)
class AnswerLoss:
    """The edit rows above the linear map, and the tokens that they should predict.

    Attributes:
        training: the model and the map.
        outputs: ``[n, T, d_out]`` original outputs of the map.
        stream: ``[n, T, d]`` what the map's outputs are added to (value matrix), or what enters the block (first map).
        upper: the blocks above, or from the map's own on, read where an answer token is predicted.
        counted: indices of the counted tokens (of ``K``) that these rows hold; ``place`` is their row and column.
        token: ``[k]`` the id of each answer token; ``weight`` its weight in the loss.
    """

    training: SideMemoryTraining
    outputs: Tensor
    stream: Tensor
    upper: resume.ReadPositions
    counted: Tensor
    place: tuple[Tensor, Tensor]
    token: Tensor
    weight: Tensor

    @classmethod
    def prepare(
        cls,
        training: SideMemoryTraining,
        rows: padded_rows.PaddedRows,
        outputs: Tensor,
        entering: Tensor,
        leaving: Tensor,
    ) -> AnswerLoss:
        """Cut all rows but the edits away, and what comes after the last prediction.

        Args:
            training: model, map and configuration.
            rows: the batch.
            outputs: original outputs of the map, ``[R, L, d_out]``.
            entering: what enters the map's block, ``[R, L, d]``.
            leaving: what leaves it.
        """
        n, width, layer = len(rows.answers), max(end for _, end in rows.answers) - 1, training.config.layer
        row, column = rows.counted.nonzero().T
        # Counted tokens come in the order of nonzero, row by row; these are the ones that answers depend on.
        counted = ((row < n) & (column < width)).nonzero()[:, 0]
        answer_tokens = [
            (i, j, 1 / (end - first + 1)) for i, (first, end) in enumerate(rows.answers) for j in range(first, end)
        ]
        i, j, weight = (torch.tensor(c, device=rows.ids.device) for c in zip(*answer_tokens, strict=True))
        above = training.config.matrix == "out"
        positions = torch.arange(width, device=rows.ids.device).expand(n, -1)
        # With the value matrix the blocks above suffice; the first map's own block must run again.
        upper = resume.UpperBlocks.prepare(
            training.lm, layer + above, positions, rows.seen[:n, :width, :width]
        ).read_at(i, j - 1)
        # The block's output less what comes of the map's: what that is added to.
        stream = (leaving - training.lm.to_stream(layer, outputs) if above else entering)[:n, :width]
        place = (row[counted], column[counted])
        return cls(training, outputs[:n, :width], stream, upper, counted, place, rows.ids[i, j], weight)

    def loss(self, output: Tensor) -> Tensor:
        """Return the mean over rows of ``Σ CE / (m + 1)`` for m answer tokens, given the side memory's outputs ``[K, d_out]``."""
        # outputs[row, column] of the edit rows' counted tokens become the side memory's; pads keep the original ones
        lm, outputs = self.training.lm, self.outputs.index_put(self.place, output[self.counted])
        if self.training.config.matrix == "out":
            hidden = self.upper.hidden(lm, self.stream + lm.to_stream(self.training.config.layer, outputs))
        else:
            # The first map's output goes through activation and value matrix: hand it in as if computed.
            given = side_memory.FixedOutput(replacement.unwrap(lm.part(self.training.name)), outputs)
            with replacement.modules_replaced(lm, {self.training.name: given}):
                hidden = self.upper.hidden(lm, self.stream)
        logp = head.target_logprobs(lm, hidden, None, self.token)
        return -(logp * self.weight).sum() / len(self.stream)
