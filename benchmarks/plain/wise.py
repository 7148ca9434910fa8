"""WISE, plain: every update of the side memory runs the whole model on all rows (docs/methods/wise.md); ``retrieve`` mode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.plain import common
from raysweep.editors.wise import merging, padded_rows, training
from raysweep.editors.wise.config import WiseConfig
from raysweep.models.lm import LanguageModel
from raysweep.models.modules import replacement, side_memory
from raysweep.records import EditRecord


@dataclass
class Memory:
    """The side memory ``[d_out, d_in]``, its mask and least activation, and the finished ones with theirs."""

    side: Tensor
    mask: Tensor
    act: float = training.NO_DISTANCE
    finished: list[tuple[Tensor, float]] = field(default_factory=list)
    edits: int = 0


def begin(lm: LanguageModel, config: WiseConfig) -> Memory:
    """Return an untouched side memory."""
    frozen = original(lm, config)
    return Memory(frozen.clone(), torch.ones_like(frozen))


def original(lm: LanguageModel, config: WiseConfig) -> Tensor:
    """Return the edited map's weight ``[d_out, d_in]``."""
    return replacement.weight_and_bias(lm.part(lm.layout.mlp_matrix(config.layer, config.matrix)))[0]


def edit(
    lm: LanguageModel, record: EditRecord, config: WiseConfig, contexts: Sequence[str], memory: Memory, mask: Tensor
) -> None:
    """Write *record* into *memory*; the model is left as it was.

    Args:
        lm: the model.
        record: the fact to write, with its unrelated text (or the configuration's).
        config: hyper-parameters (``replay`` must be off).
        contexts: context templates, ``{}`` first.
        memory: what was written before.
        mask: ``[d_out, d_in]`` entries to train if a side memory begins with this edit.
    """
    frozen = original(lm, config)
    if memory.edits % config.shard == 0:
        memory.mask = mask.float()
    side, act = _train(lm, record, config, contexts, memory, frozen)
    memory.side, memory.act, memory.edits = side, min(memory.act, act), memory.edits + 1
    if memory.edits % config.shard == 0:
        memory.finished.append((memory.side, memory.act))
        memory.side, memory.act = frozen.clone(), training.NO_DISTANCE
    if memory.edits % config.merge_every == 0:
        n, spec = config.merge_every // config.shard, config.merge
        weights, acts = zip(*memory.finished[-n:], strict=True)
        shares, rng = [spec.weight / n] * n, torch.Generator().manual_seed(0)
        merged = merging.merge(
            frozen, weights, shares, algorithm=spec.algorithm, density=spec.density, rng=rng, first_only=spec.published
        )
        memory.finished[-n:] = [(merged, min(acts))]


def _train(
    lm: LanguageModel, record: EditRecord, config: WiseConfig, contexts: Sequence[str], memory: Memory, frozen: Tensor
) -> tuple[Tensor, float]:
    name, n = lm.layout.mlp_matrix(config.layer, config.matrix), len(contexts)
    fact, others = (record.prompt, record.target), [record.unrelated or config.unrelated]
    if config.ref_padding:
        rows = padded_rows.left_rows(lm, contexts, fact, others, ref_labels=config.ref_labels)
        mask = rows.mask(lm)
    else:
        rows = padded_rows.right_rows(lm, contexts, fact, others)
        mask = rows.counted.long()
    act, (_, bias) = side_memory.mlp_activation(lm), replacement.weight_and_bias(lm.part(name))
    side = memory.side.clone().requires_grad_(True)
    sgd = torch.optim.SGD([side], lr=config.lr, weight_decay=config.weight_decay)
    outputs: list[Tensor] = []

    def hook(_: object, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        outputs[:] = [output, F.linear(arguments[0], side, bias)]
        return outputs[1].clone()  # some blocks add to it in place

    earlier, found = [training.NO_DISTANCE, training.NO_DISTANCE], 0.0
    with common.hooked(lm, name, hook), torch.enable_grad():
        for _ in range(config.steps):
            logits = common.logits(lm, rows.ids, mask)
            moved = side_memory.mean_distance(side_memory.activation_distance(act, *outputs), rows.counted)
            loss = _answers(logits[:n], rows) + training.activation_loss(moved[:n], moved[n:], config.margins)
            found = float(moved[:n].detach().mean())
            if abs(earlier[1] - earlier[0]) <= config.stop_change and earlier[1] <= config.stop_loss:
                break
            sgd.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            assert side.grad is not None
            side.grad *= memory.mask
            _step(sgd, side, frozen, config)
            earlier = [earlier[1], float(loss.detach())]
    return side.detach(), found


def _answers(logits: Tensor, rows: padded_rows.PaddedRows) -> Tensor:
    """Return the mean over rows of ``Σ CE / (m + 1)``."""
    losses = []
    for i, (first, end) in enumerate(rows.answers):
        total = F.cross_entropy(logits[i, first - 1 : end - 1], rows.ids[i, first:end], reduction="sum")
        losses.append(total / (end - first + 1))
    return torch.stack(losses).mean()


def _step(sgd: torch.optim.SGD, side: Tensor, frozen: Tensor, config: WiseConfig) -> None:
    sgd.step()
    if config.norm_constraint is not None:
        with torch.no_grad():
            width = config.norm_constraint
            side.copy_(torch.maximum(torch.minimum(side, frozen + width), frozen - width))
