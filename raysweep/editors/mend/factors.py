"""What an edit with MEND and its training share: texts and labels, gradient factors, a forward pass with per-row updates.

Shape legend: ``B`` rows (one record or text each), ``T`` tokens, ``m`` labels of a row, ``F`` tokens of gradient factors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from raysweep.models import hooks, tokens
from raysweep.models.forward import blocks
from raysweep.models.lm import LanguageModel

Shifts = Mapping[str, tuple[Tensor, Tensor]]
"""By module: ``(x̃ [B, F, d_in], η δ̃ [B, F, d_out])``; the module of row b computes ``y + (x x̃_bᵀ) (η δ̃_b)``."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A text and the ids demanded at its end: label j is predicted from all ids before position ``len(ids) − m + j``."""

    ids: tuple[int, ...]
    labels: tuple[int, ...]

    @property
    def spots(self) -> range:
        """The positions whose predictions are compared with the labels."""
        return range(len(self.ids) - 1 - len(self.labels), len(self.ids) - 1)


def ask(lm: LanguageModel, prompt: str, target: str, *, special: bool = False) -> Ask:
    """Return ``prompt + target`` (a space put between them unless there is one) with labels for its end.

    Args:
        lm: the model.
        prompt: the text before the target.
        target: what is demanded.
        special: take the labels from encoding the target alone, special tokens included (published; quirk Q33), so that
            BOS is demanded where the last prompt token is predicted; else the labels are the text's own last ids.
    """
    text = prompt + tokens.spaced(target)
    if special:
        ids, labels = tokens.encode(lm, text), tokens.encode(lm, tokens.spaced(target))
    else:
        found = tokens.scored(lm, prompt, text)
        ids = list(found.ids)
        labels = ids[min(found.start, len(ids) - 1) :]
    return Ask(tuple(ids), tuple(labels[-(len(ids) - 1) :]))


@dataclass(frozen=True, slots=True)
class Rows:
    """Asks as tensors.

    Attributes:
        mask: ``[B, T]``.
        states: what enters block ``first``, ``[B, T, d]``.
        first: the lowest block that is computed.
        row, column, label: one entry per label of all rows.
        share: one over the number of labels of its row.
    """

    mask: Tensor
    states: Tensor
    first: int
    row: Tensor
    column: Tensor
    label: Tensor
    share: Tensor

    def hidden(self, lm: LanguageModel) -> Tensor:
        """Run the blocks from ``first`` on; return normed states at the labels' positions."""
        full = blocks.run(lm, states=self.states, mask=self.mask, first=self.first)
        return full[self.row, self.column]

    def nll(self, logits: Tensor) -> Tensor:
        """Return each row's mean negative log-likelihood ``[B]`` of its labels, from logits at their positions."""
        each = logits.logsumexp(-1) - logits.gather(1, self.label[:, None])[:, 0]
        return self.mean(each)

    def mean(self, each: Tensor) -> Tensor:
        """Average one value per label within each row, ``[B]``."""
        return each.new_zeros(self.mask.shape[0]).index_add(0, self.row, each * self.share)


def rows(lm: LanguageModel, asks: Sequence[Ask], first: int) -> Rows:
    """Return *asks* as one padded batch, with everything below block *first* computed, without gradient."""
    ids, mask = tokens.pad([a.ids for a in asks], lm.device)
    entry = lm.layout.block.format(first)
    with torch.no_grad(), hooks.capture(lm, [(entry, "input")]) as seen:
        blocks.run(lm, ids=ids, mask=mask, last=first)
    flat = [(i, t, a.labels[j], 1 / len(a.labels)) for i, a in enumerate(asks) for j, t in enumerate(a.spots)]
    row, column, label, share = (torch.tensor(c, device=lm.device) for c in zip(*flat, strict=True))
    return Rows(mask, seen[entry, "input"].detach(), first, row, column, label, share)


@dataclass(frozen=True, slots=True)
class Factors:
    """Gradient factors by module, ``x [B, T, d_in]`` and ``δ [B, T, d_out]`` in fp32, and each row's loss ``[B]``.

    Both are zero at padding: ``∂L_b/∂W = Σ_t δ_bt x_btᵀ``.
    """

    pairs: Mapping[str, tuple[Tensor, Tensor]]
    loss: Tensor


def factors(lm: LanguageModel, batch: Rows, modules: Sequence[str]) -> Factors:
    """Return the gradient factors of each row's own loss at *modules*; no parameter is asked for a gradient."""
    asked: list[tuple[str, hooks.Side]] = [(m, "input") for m in modules]
    asked += [(m, "output") for m in modules]
    states = batch.states.clone().requires_grad_(True)
    with torch.enable_grad(), hooks.capture(lm, asked) as seen:
        full = blocks.run(lm, states=states, mask=batch.mask, first=batch.first)
        loss = batch.nll(blocks.logits(lm, full[batch.row, batch.column]))
        gradients = torch.autograd.grad(loss.sum(), [seen[m, "output"] for m in modules])
    keep = batch.mask[..., None].float()
    pairs = {
        m: (seen[m, "input"].detach().float() * keep, g.float() * keep) for m, g in zip(modules, gradients, strict=True)
    }
    return Factors(pairs, loss.detach())


@contextmanager
def shifted(lm: LanguageModel, shifts: Shifts) -> Iterator[None]:
    """Let each row of the batch be computed with its own update inside the block; always undone."""
    handles = []

    def shifter(right: Tensor, left: Tensor) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            extra = (args[0].float() @ right.transpose(1, 2)) @ left
            return output + extra.to(output.dtype)

        return hook

    try:
        for name, (right, left) in shifts.items():
            handles.append(lm.part(name).register_forward_hook(shifter(right, left)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def repeated(shifts: Shifts, owners: Sequence[int]) -> Shifts:
    """Return *shifts* for a batch whose row i is computed with the update of record ``owners[i]``."""
    pick = torch.tensor(list(owners))
    return {n: (x[pick.to(x.device)], d[pick.to(d.device)]) for n, (x, d) in shifts.items()}
