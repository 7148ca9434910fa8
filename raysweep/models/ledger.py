"""The only writer of weights.

A :class:`Ledger` holds the edited parameters in fp32 and writes them into the model in its own precision, so that small
changes add up in bf16 models too, and a snapshot of the ledger is enough to go on bit for bit.

A weight has two orientations. *Logical* is ``[d_out, d_in]``, in which changes are written. *Stored* is the one of the parameter:
the same for ``nn.Linear``, transposed for GPT-2's Conv1D. A transpose undoes itself, so one rule serves both ways
(:func:`to_stored_layout`, :func:`to_logical_layout`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from raysweep.models.lm import LanguageModel
from raysweep.models.patches import Delta, LowRank, ModulePatch, Patch, WeightDelta


def to_stored_layout(lm: LanguageModel, name: str, logical: Tensor) -> Tensor:
    """Return a logical ``[d_out, d_in]`` tensor in the orientation in which parameter *name* is stored (a view)."""
    return logical.t() if logical.dim() == 2 and lm.transposed(name) else logical


def to_logical_layout(lm: LanguageModel, name: str, stored: Tensor) -> Tensor:
    """Return a tensor in the orientation in which parameter *name* is stored as ``[d_out, d_in]`` (a view)."""
    # a transpose is its own inverse
    return to_stored_layout(lm, name, stored)


# Numbers of a low-rank product formed at a time: on a CPU what its caches hold. To an accelerator each part is three launches, so
# there a part is as large as its memory does not mind (128 MB in fp64).
PRODUCT_BLOCK = 1 << 18
DEVICE_PRODUCT_BLOCK = 1 << 24


def add_delta_logical_(target: Tensor, delta: Delta) -> None:
    """Add a change in place to a weight in logical orientation.

    The change is formed in its own dtype and rounded before the sum; a low-rank one is formed by parts, so that a weight's worth of
    numbers is never held beside the weight.

    Args:
        target: ``[d_out, d_in]`` (or a bias), fp32.
        delta: the change, on any device.
    """
    delta = delta.to(target.device)
    block = PRODUCT_BLOCK if target.is_cpu else DEVICE_PRODUCT_BLOCK
    if isinstance(delta, LowRank) and target.numel() > block:
        # parts of whole rows, so that each is written once while it is in the cache
        rows = max(1, block // target.shape[1])
        for part, left in zip(torch.split(target, rows), torch.split(delta.left, rows), strict=True):
            part.add_((left @ delta.right).to(torch.float32))
    else:
        target.add_(delta.dense().to(torch.float32))


def add_delta_(lm: LanguageModel, name: str, weight: Tensor, delta: Delta) -> Tensor:
    """Add a change in place to a weight in the orientation in which parameter *name* is stored, and return the weight.

    Args:
        lm: the model.
        name: of the parameter.
        weight: fp32, as stored.
        delta: the change, in logical orientation.
    """
    add_delta_logical_(to_logical_layout(lm, name, weight), delta)
    return weight


@contextmanager
def substituted(lm: LanguageModel, tensors: Mapping[str, Tensor]) -> Iterator[dict[str, nn.Parameter]]:
    """Let parameters hold other tensors (stored orientation) inside the block; the originals come back untouched.

    The original ``Parameter`` objects are set aside, not copied, so nothing can be lost by rounding.

    Yields:
        The substitutes by name; set ``requires_grad`` on them to train.
    """
    originals: list[tuple[nn.Module, str, nn.Parameter]] = []
    substitutes: dict[str, nn.Parameter] = {}
    try:
        for name, tensor in tensors.items():
            owner_name, _, leaf = name.rpartition(".")
            owner = lm.part(owner_name)
            # through the register, not by setattr: that would count as training code and run hooks
            original = owner._parameters[leaf]
            assert original is not None
            originals.append((owner, leaf, original))
            substitutes[name] = nn.Parameter(tensor.to(original.device, original.dtype), requires_grad=False)
            owner._parameters[leaf] = substitutes[name]
        yield substitutes
    finally:
        for owner, leaf, original in originals:
            owner._parameters[leaf] = original


@contextmanager
def applied(lm: LanguageModel, deltas: Mapping[str, Delta]) -> Iterator[None]:
    """Let *deltas* be added to their parameters inside the ``with`` statement.

    The sum is made in fp32 and rounded to the model's precision, as :meth:`Ledger.apply` does; the originals come back untouched.
    """
    tensors = {n: add_delta_(lm, n, lm.weight(n).detach().to(torch.float32, copy=True), d) for n, d in deltas.items()}
    with substituted(lm, tensors):
        yield


class Ledger:
    """The edited state of one model.

    Promises: :meth:`apply` is the only writer; :meth:`restore` brings the pristine bits back; ``load(tensors())`` is the identity.

    Attributes:
        lm: the model.
        pristine: a copy of each edited parameter as it was, in the model's precision.
        master: the edited parameters in fp32, as stored; the model's own are these, rounded.
        replaced: the modules that others took the place of.
    """

    def __init__(self, lm: LanguageModel) -> None:
        self.lm = lm
        self.pristine: dict[str, Tensor] = {}
        self.master: dict[str, Tensor] = {}
        self.replaced: dict[str, nn.Module] = {}

    def _open(self, name: str) -> Tensor:
        if name not in self.master:
            weight = self.lm.weight(name).detach()
            # the copy keeps the model's precision, so that restoring brings back the very bits
            self.pristine[name] = weight.clone()
            self.master[name] = weight.to(torch.float32, copy=True)
        return self.master[name]

    def apply(self, patch: Patch) -> None:
        """Write *patch* into the model."""
        if isinstance(patch, ModulePatch):
            for name, module in patch.modules.items():
                owner_name, _, leaf = name.rpartition(".")
                owner = self.lm.part(owner_name)
                # only the first replacement set the original aside
                if name not in self.replaced:
                    self.replaced[name] = owner._modules[leaf]  # type: ignore[assignment]
                owner._modules[leaf] = module
            return
        assert isinstance(patch, WeightDelta)
        with torch.no_grad():
            for name, delta in patch.deltas.items():
                self.lm.weight(name).copy_(add_delta_(self.lm, name, self._open(name), delta))

    @contextmanager
    def with_view(self, deltas: Mapping[str, Delta]) -> Iterator[None]:
        """Let *deltas* be added to the weights, edited or not, inside the ``with`` statement; nothing of it stays.

        The sum is made in fp32 with the weights before rounding.
        """
        tensors = {n: add_delta_(self.lm, n, self._edited(n).clone(), d) for n, d in deltas.items()}
        with substituted(self.lm, tensors):
            yield

    def _edited(self, name: str) -> Tensor:
        edited = self.master.get(name)
        return self.lm.weight(name).detach().to(torch.float32) if edited is None else edited

    def total_deltas(self) -> dict[str, Tensor]:
        """Return the total change of each edited weight, fp32, in logical orientation, on the model's device (new tensors)."""
        changes = {n: (m - self.pristine[n].float()).to(self.lm.device) for n, m in self.master.items()}
        return {n: to_logical_layout(self.lm, n, change) for n, change in changes.items()}

    def tensors(self) -> dict[str, Tensor]:
        """Return the edited weights in fp32 (copies), by name, for a snapshot."""
        return {name: tensor.clone() for name, tensor in self.master.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Write the weights of a snapshot into the (pristine) model."""
        with torch.no_grad():
            for name, tensor in tensors.items():
                self._open(name).copy_(tensor)
                self.lm.weight(name).copy_(self.master[name])

    def restore(self) -> None:
        """Bring the pristine model back, bit for bit."""
        with torch.no_grad():
            for name, tensor in self.pristine.items():
                self.lm.weight(name).copy_(tensor)
        for name, module in self.replaced.items():
            owner_name, _, leaf = name.rpartition(".")
            self.lm.part(owner_name)._modules[leaf] = module
        self.pristine.clear()
        self.master.clear()
        self.replaced.clear()

    def norms(self) -> dict[str, float]:
        """Return the Frobenius norm of the total change of each edited weight."""
        return {n: float((m - self.pristine[n].float()).norm()) for n, m in self.master.items()}

    def non_finite(self) -> dict[str, int]:
        """Return how many entries are NaN or infinite, of each edited weight and replaced module that has any.

        Looked at is what the model computes with: rounded to its own precision, and inside :meth:`with_view` the view.
        """
        tensors = {name: [self.lm.weight(name)] for name in self.master}
        tensors |= {name: list(self.lm.part(name).parameters()) for name in self.replaced}
        # a finite sum has finite terms only, and is faster than a look at each; it may overflow, so then each is looked at
        suspects = {name: [t for t in group if not t.sum().isfinite()] for name, group in tensors.items()}
        counts = {name: sum(int(t.numel() - t.isfinite().sum()) for t in group) for name, group in suspects.items()}
        return {name: count for name, count in counts.items() if count}
