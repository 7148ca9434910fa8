"""What an edit with MEND and its training share: texts and labels, gradient factors, a forward pass with per-row updates.

The gradient of a row's loss at a linear map ``y = W x`` is a sum of outer products over its tokens (Mitchell et al. 2022)::

    ∂L/∂W = Σ_t δ_t x_tᵀ        x_t the map's input, δ_t = ∂L/∂y_t the gradient at its output

so ``x [T, d_in]`` and ``δ [T, d_out]``, its *factors*, say all of it in far fewer numbers.

Shape legend: ``B`` rows (one record or text each), ``T`` tokens, ``m`` labels of a row, ``k`` labels of all rows, ``F`` tokens of
gradient factors, ``d`` width of the residual stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raysweep.models import hooks, tokens
from raysweep.models.forward import blocks
from raysweep.models.lm import LanguageModel

RowUpdates = Mapping[str, tuple[Tensor, Tensor]]
"""By module: ``(x̃ [B, F, d_in], η δ̃ [B, F, d_out])``; the module of row b computes ``y + (x x̃_bᵀ) (η δ̃_b)``."""


@dataclass(frozen=True, slots=True)
class LabelledText:
    """A text and the ids demanded at its end: label j is predicted from all ids before position ``len(ids) − m + j``."""

    ids: tuple[int, ...]
    labels: tuple[int, ...]

    @property
    def predicting(self) -> range:
        """The positions whose predictions are compared with the labels."""
        return range(len(self.ids) - 1 - len(self.labels), len(self.ids) - 1)


def label_text(lm: LanguageModel, prompt: str, target: str, *, special: bool = False) -> LabelledText:
    """Return ``prompt + target`` (a space put between them unless there is one) with labels for its end.

    Args:
        lm: the model.
        prompt: the text before the target.
        target: what is demanded.
        special: take the labels from encoding the target alone, special tokens included (published; quirk Q33), so that
            BOS is demanded where the last prompt token is predicted; else the labels are the text's own last ids.
    """
    text = prompt + tokens.with_space(target)
    if special:
        # Labels of the target alone, right-aligned: with BOS they begin before the target does.
        ids, labels = tokens.encode(lm, text), tokens.encode(lm, tokens.with_space(target))
    else:
        scored = tokens.labelled_ids(lm, prompt, text)
        ids = list(scored.ids)
        labels = ids[min(scored.start, len(ids) - 1) :]  # the last one at least
    return LabelledText(tuple(ids), tuple(labels[-(len(ids) - 1) :]))


@dataclass(frozen=True, slots=True)
class TextBatch:
    """Texts as tensors.

    Attributes:
        mask: ``[B, T]``.
        states: what enters block ``first``, ``[B, T, d]``.
        first: the lowest block that is computed.
        row, column, label: ``[k]``, one entry per label of all rows: where it is predicted, and its id.
        share: ``[k]``, one over the number of labels of its row.
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


def batch_texts(lm: LanguageModel, texts: Sequence[LabelledText], first: int) -> TextBatch:
    """Return *texts* as one padded batch, with everything below block *first* computed, without gradient."""
    ids, mask = tokens.pad([a.ids for a in texts], lm.device)
    entry = lm.layout.block.format(first)
    with torch.no_grad(), hooks.capture(lm, [(entry, "input")]) as seen:
        blocks.run(lm, ids=ids, mask=mask, last=first)
    # One entry per label: its row, the position that predicts it, its id, its share of the row's mean.
    flat = [(i, t, a.labels[j], 1 / len(a.labels)) for i, a in enumerate(texts) for j, t in enumerate(a.predicting)]
    row, column, label, share = (torch.tensor(c, device=lm.device) for c in zip(*flat, strict=True))
    return TextBatch(mask, seen[entry, "input"].detach(), first, row, column, label, share)


@dataclass(frozen=True, slots=True)
class GradientFactors:
    """Gradient factors by module, ``x [B, T, d_in]`` and ``δ [B, T, d_out]`` in fp32, and each row's loss ``[B]``.

    Both are zero at padding: ``∂L_b/∂W = Σ_t δ_bt x_btᵀ``.
    """

    pairs: Mapping[str, tuple[Tensor, Tensor]]
    loss: Tensor


def gradient_factors(lm: LanguageModel, batch: TextBatch, modules: Sequence[str]) -> GradientFactors:
    """Return the factors of each row's own loss at *modules*; no parameter is asked for a gradient, only the maps' outputs."""
    sides: list[tuple[str, hooks.Side]] = [(m, "input") for m in modules]
    sides += [(m, "output") for m in modules]
    # The block's input is made a leaf, so that a graph is built although no parameter requires a gradient.
    states = batch.states.clone().requires_grad_(True)
    with torch.enable_grad(), hooks.capture(lm, sides) as seen:
        full = blocks.run(lm, states=states, mask=batch.mask, first=batch.first)
        loss = batch.nll(blocks.logits(lm, full[batch.row, batch.column]))
        # δ = ∂L/∂y at each map's output; rows share nothing, so the sum's gradient is each row's own.
        gradients = torch.autograd.grad(loss.sum(), [seen[m, "output"] for m in modules])
    # Padding has inputs, but its outputs reach no loss: both factors are set to 0 there.
    keep = batch.mask[..., None].float()
    pairs = {
        m: (seen[m, "input"].detach().float() * keep, g.float() * keep) for m, g in zip(modules, gradients, strict=True)
    }
    return GradientFactors(pairs, loss.detach())


@contextmanager
def row_updates_applied(lm: LanguageModel, updates: RowUpdates) -> Iterator[None]:
    """Let each row of the batch be computed with its own update inside the block; always undone."""
    handles = []

    def hook_for(right: Tensor, left: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            # (x x̃ᵀ) (η δ̃): [B, T, F] between, instead of a [d_out, d_in] matrix per row
            extra = (args[0].float() @ right.transpose(1, 2)) @ left
            return output + extra.to(output.dtype)

        return hook

    try:
        for name, (right, left) in updates.items():
            handles.append(lm.part(name).register_forward_hook(hook_for(right, left)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def repeat_updates(updates: RowUpdates, owners: Sequence[int]) -> RowUpdates:
    """Return *updates* for a batch whose row i is computed with the update of record ``owners[i]``."""
    # Gather along the first axis: row i gets the factors of its owner.
    pick = torch.tensor(list(owners))
    return {n: (x[pick.to(x.device)], d[pick.to(d.device)]) for n, (x, d) in updates.items()}
