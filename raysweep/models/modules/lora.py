"""Low-rank adapters of many owners on one model: each row of a batch sees its own owner's (LoRA).

An adapter (Hu et al. 2021, arXiv 2106.09685) changes a linear map ``y = W x`` to ``y = W x + (α / r) B A x`` with ``A [r, d_in]``
(*down*) and ``B [d_out, r]`` (*up*), which alone are trained. ``B`` starts at zero, so an adapter starts as no change.

Shape legend: ``P`` owners, ``r`` rank, ``B`` rows, ``T`` tokens of a row, ``d_in`` and ``d_out`` of the last linear map of an MLP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from raysweep.models import attention
from raysweep.models.forward import prefix_tree
from raysweep.models.lm import LanguageModel
from raysweep.seeds import derive


class LoraBank:
    """Adapters ``scale · B A`` of P owners on every block's last MLP map; the model itself is never written to.

    Attributes:
        owner_of_row: int64 ``[B]``, the owner of each row of the next forward pass; ``[1]``: of all of them.
        names: of the adapted parameters, in block order.
        down: per block, ``A`` of all owners, fp32 ``[P, r, d_in]``; uniform within ``±1/√d_in``, as PEFT starts it.
        up: per block, ``B`` of all owners, fp32 ``[P, d_out, r]``; zero.
        scale: ``α / r``.
    """

    def __init__(self, lm: LanguageModel, seeds: Sequence[int], *, rank: int, alpha: float) -> None:
        self.lm = lm
        self.scale = alpha / rank
        modules = [lm.layout.mlp_out.format(i) for i in range(lm.n_blocks)]
        self.names = tuple(f"{module}.weight" for module in modules)
        self.down: list[Tensor] = []
        self.up: list[Tensor] = []
        for block, name in enumerate(self.names):
            d_out, d_in = lm.logical(name).shape
            # each owner draws by its own seed, so its adapter does not depend on who else is there
            drawn = [
                torch.empty(rank, d_in).uniform_(
                    -(d_in**-0.5), d_in**-0.5, generator=torch.Generator().manual_seed(derive(seed, "adapter", block))
                )
                for seed in seeds
            ]
            self.down.append(torch.stack(drawn).to(lm.device).requires_grad_(True))
            self.up.append(torch.zeros(len(seeds), d_out, rank, device=lm.device).requires_grad_(True))
        self.owner_of_row = torch.zeros(0, dtype=torch.int64, device=lm.device)

    @property
    def owners(self) -> int:
        """How many owners there are, ``P``."""
        return len(self.down[0])

    def parameters(self) -> list[Tensor]:
        """Return every A and B."""
        return [*self.down, *self.up]

    def select_owners(self, owner_of_row: Tensor) -> None:
        """Name the owner of each row of the next forward pass, int64 ``[B]``, or of all of them, int64 ``[1]``."""
        self.owner_of_row = owner_of_row

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Let the model answer with the adapters inside the ``with`` statement."""
        # hooks on the output: the model's own modules and weights stay as they are
        handles = [
            self.lm.part(name.removesuffix(".weight")).register_forward_hook(self._hook(block))
            for block, name in enumerate(self.names)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, block: int) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def add(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            # [B or 1, r, d_in] and [B or 1, d_out, r]: each row's own, or one pair broadcast over all rows
            down, up = self.down[block][self.owner_of_row], self.up[block][self.owner_of_row]
            # [B, T, r]: A x, in fp32 whatever the model's precision
            low = args[0].float() @ down.mT
            return output + (self.scale * (low @ up.mT)).to(output.dtype)

        return add

    def clip(self, limit: float) -> None:
        """Scale each owner's gradient down to norm *limit*, independently of the others'."""
        # ‖g‖² of owner i is the sum over all tensors of the squares in its slice; torch's clip_grad_norm_ adds the same 1e-6
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        square = sum(g.flatten(1).square().sum(1) for g in gradients)
        # gradients beyond the limit shrink to it, others stay
        factor = (limit / (torch.as_tensor(square).sqrt() + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(factor[:, None, None])

    def factors(self, owner: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Return one owner's change of each adapted weight as ``left [d_out, r]``, ``right [r, d_in]``, logical orientation."""
        return {
            name: (self.scale * self.up[i][owner].detach(), self.down[i][owner].detach().clone())
            for i, name in enumerate(self.names)
        }


def train(
    bank: LoraBank,
    rows: Sequence[Sequence[int]],
    starts: Sequence[int],
    *,
    owners: Sequence[int],
    steps: int,
    lr: float,
    weight_decay: float,
    clip: float,
    divisors: Sequence[int],
) -> Iterator[Tensor]:
    """Train the owners on their rows for *steps* steps of AdamW; after each, yield the loss ``[B]`` of every row before it.

    Losses stay on the device: whoever reads them waits for it.

    Owners never influence each other but for rounding: gradients, clipping and the optimiser's moments are elementwise by owner.

    Args:
        bank: the adapters.
        rows: ids.
        starts: where each row's labels begin.
        owners: whose row each is.
        steps: optimiser steps.
        lr: constant rate.
        weight_decay: of AdamW.
        clip: norm to which each owner's gradient is clipped.
        divisors: what each row's summed loss is divided by.
    """
    from raysweep.models import tokens

    device = bank.lm.device
    ids, mask = tokens.pad(rows, device)
    place = torch.arange(ids.shape[1], device=device)
    # [B, T - 1]: whether the next token is one of the row's labels
    is_label = (mask[:, 1:] == 1) & (place[1:] >= torch.tensor(list(starts), device=device)[:, None])
    weight = 1 / torch.tensor(list(divisors), dtype=torch.float32, device=device)
    adam = torch.optim.AdamW(bank.parameters(), lr=lr, weight_decay=weight_decay)
    owner_of_row = torch.tensor(list(owners), dtype=torch.int64, device=device)
    seen = _causal_mask(bank.lm, ids)
    for _ in range(steps):
        bank.select_owners(owner_of_row)
        with torch.enable_grad(), bank.attached():
            # with a named error, before transformers fails inside
            attention.check_row(bank.lm.module.config, ids.shape[1])
            logits = bank.lm.module(input_ids=ids, attention_mask=seen, use_cache=False).logits[:, :-1].float()
            # [B, T - 1]: log p of the token that comes next
            logp = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
            losses = -(logp * is_label).sum(1) * weight
            adam.zero_grad(set_to_none=True)
            # a sum over rows: owners share no tensor, so no gradient mixes
            torch.autograd.backward(losses.sum())
        bank.clip(clip)
        adam.step()
        yield losses.detach()


def _causal_mask(lm: LanguageModel, ids: Tensor) -> prefix_tree.AttentionMask | None:
    """Return who looks at whom, each token at those before it; None where the model may find that out by itself."""
    if ids.is_cpu:
        return None
    # Without a mask transformers would read back in every pass whether the rows are packed.
    rows, width = ids.shape
    places = torch.arange(width, device=ids.device).expand(rows, -1)
    return prefix_tree.attention_mask(lm, places[:, :, None] >= places[:, None, :], places, places)
