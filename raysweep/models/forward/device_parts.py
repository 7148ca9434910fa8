"""The parts of a block on an accelerator: maps, norms, activations, rotary positions; each in as few launches as torch allows.

Tokens lie one below the other, ``[n, width]``. Weights are constants: only inputs have gradients. Where the parameters of several
maps lie one behind the other in memory (:mod:`raysweep.models.joined`), they are one product.

Shape legend: ``n`` tokens, ``e`` width of a head, ``m`` width of the MLP, ``d_in`` and ``d_out`` of a linear map.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raysweep.models.joined import joined
from raysweep.models.layout import NormKind
from raysweep.models.lm import LanguageModel

_MATRICES_UP_TO = 2**24  # entries: more tokens are turned by more launches and less memory


class Maps(NamedTuple):
    """Linear maps that read the same.

    Attributes:
        weights: ``W [d_out, d_in]`` each; a single one where they lie in memory one behind the other.
        biases: ``b [d_out]`` each, or None.
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor | None, ...]

    @classmethod
    def of(cls, lm: LanguageModel, names: Sequence[str]) -> Maps:
        """Take the parameters of the modules called *names* (views, not copies)."""
        weights = [lm.logical(f"{name}.weight") for name in names]
        biases = [lm.part(name)._parameters.get("bias") for name in names]
        together = joined(weights), joined(biases)
        # a joined product adds one bias or none, so joined weights with scattered biases are of no use
        if together[0] is not None and (together[1] is not None or all(b is None for b in biases)):
            return cls((together[0],), (together[1],))
        return cls(tuple(weights), tuple(None if b is None else b.detach() for b in biases))

    def __call__(self, x: Tensor) -> Tensor:
        """Return what the maps make of ``x [n, d_in]``, side by side."""
        out = [F.linear(x, w, b) for w, b in zip(self.weights, self.biases, strict=True)]
        return out[0] if len(out) == 1 else torch.cat(out, 1)

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """Return ``residual + W x + b`` of a single map, the sum as a part of the product."""
        # addmm adds one term for free, which is the stream; a bias costs one launch more
        total = torch.addmm(residual, x, self.weights[0].t())
        return total if self.biases[0] is None else total + self.biases[0]

    def split(self, width: int) -> tuple[Maps, Maps]:
        """Return the maps that make the first *width* entries, and those that make the others."""
        # of maps that lie apart the first is the one that makes the first *width* entries: callers see to that
        if len(self.weights) > 1:
            return Maps(self.weights[:1], self.biases[:1]), Maps(self.weights[1:], self.biases[1:])
        # rows of a joined W are entries of what it makes, so both halves are views
        (w,), (b,) = self
        first, second = (None, None) if b is None else (b[:width], b[width:])
        return Maps((w[:width],), (first,)), Maps((w[width:],), (second,))


class Norm(NamedTuple):
    """A norm over the width: its kind, ``w [d]``, ``b [d]`` of a layer norm, and ``ε``; as they were when it was made."""

    kind: NormKind
    weight: Tensor
    bias: Tensor | None
    eps: float

    @classmethod
    def of(cls, module: Any, kind: NormKind) -> Norm:
        """Take the parameters of a norm of transformers."""
        # Llama's kind of RMS norm calls it variance_epsilon, other norms eps
        eps = getattr(module, "variance_epsilon", None) or module.eps
        weight, bias = module.weight.detach(), getattr(module, "bias", None)
        # such a norm stores w − 1; added here, once, it is an ordinary RMS norm in every pass
        weight = weight + 1 if kind == "rms_plus_one" else weight
        return cls(kind, weight, None if bias is None else bias.detach(), eps)

    def __call__(self, x: Tensor) -> Tensor:
        """Norm ``x [n, d]``."""
        if self.kind == "layer":
            return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class HeadNorm(NamedTuple):
    """RMS norms of single heads: a weight ``[heads, e]`` for each, and ``ε``."""

    weight: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        """Norm each head of ``x [n, heads, e]``."""
        # rms_norm takes one weight [e] for all heads, and here each has its own: [n, heads, e] ⊙ [heads, e]
        return F.rms_norm(x, x.shape[-1:], None, self.eps) * self.weight

    def split(self, heads: int) -> tuple[HeadNorm, HeadNorm]:
        """Return those of the first so many heads, and of the others."""
        return self._replace(weight=self.weight[:heads]), self._replace(weight=self.weight[heads:])


class Rotation(NamedTuple):
    """Turns each head of each token to the token's position: ``y_j = x_j cos_j + x_swap(j) sin_j``.

    That is a product with one small matrix for each token, ``[e, e]``, a single launch, and one in the backward pass.

    Attributes:
        cos, sin: ``[n, 1, e]``; 1 and 0 where a head is not turned; the sine with the sign that its entry needs.
        swap: ``[e]`` the entry with which each is turned.
        matrices: ``[n, e, e]``; None: they would be too large.
    """

    cos: Tensor
    sin: Tensor
    swap: Tensor
    matrices: Tensor | None

    @classmethod
    def by_angles(cls, cos: Tensor, sin: Tensor, e: int, *, pairs: bool) -> Rotation:
        """Take ``cos`` and ``sin``, ``[n, r/2]``: of neighbours (*pairs*), or of entries half of ``r`` apart."""
        n, half = cos.shape
        # stacked on axis 2, the members of a pair become neighbours; on axis 1, they lie half of r apart
        entries, axis = torch.arange(e, device=cos.device), 2 if pairs else 1
        # the halves, or the members of the pairs, change places
        turned = entries[: 2 * half].view((half, 2) if pairs else (2, half)).flip(axis - 1).flatten()
        rest = n, e - 2 * half
        # [n, r/2] → [n, r], as one angle serves both members of its pair, → [n, e] with 1 where nothing turns
        table = torch.cat([torch.stack([cos, cos], axis).flatten(1), cos.new_ones(rest)], 1)
        # (x, y) → (x cos − y sin, y cos + x sin): the sine is negative for the first member only
        signed = torch.cat([torch.stack([-sin, sin], axis).flatten(1), sin.new_zeros(rest)], 1)
        return cls(table[:, None], signed[:, None], torch.cat([turned, entries[2 * half :]]), None)._with_matrices()

    def _with_matrices(self) -> Rotation:
        n, _, e = self.cos.shape
        if n * e * e > _MATRICES_UP_TO:
            return self
        # y = x R with R_ij = δ_ij cos_j + [i = swap(j)] sin_j
        unit = torch.eye(e, dtype=self.cos.dtype, device=self.cos.device)
        return self._replace(matrices=torch.addcmul(unit * self.cos, unit.index_select(1, self.swap), self.sin))

    def select(self, tokens: Tensor) -> Rotation:
        """Return the rotations of some tokens, ``[k]``."""
        cos, sin = self.cos.index_select(0, tokens), self.sin.index_select(0, tokens)
        matrices = None if self.matrices is None else self.matrices.index_select(0, tokens)
        return Rotation(cos, sin, self.swap, matrices)

    def __call__(self, x: Tensor) -> Tensor:
        """Turn ``x [n, heads, e]``."""
        if self.matrices is not None:
            return torch.bmm(x, self.matrices)
        swapped: Tensor = _Swap.apply(x, self.swap)  # type: ignore[no-untyped-call]
        return torch.addcmul(x * self.cos, swapped, self.sin)


class _Swap(torch.autograd.Function):
    """Entries of heads ``[n, heads, e]`` change places in pairs, and so do their gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, swap: Tensor) -> Tensor:
        ctx.swap = swap
        return x.index_select(2, swap)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        # the swap is its own inverse, so the gradient moves the same way (autograd's would add up into zeros)
        return grads[0].index_select(2, ctx.swap), None


class Activation(NamedTuple):
    """An activation and its derivative times something, both into given memory."""

    value: Callable[[Tensor, Tensor], Tensor]
    slope: Callable[[Tensor, Tensor, Tensor], Tensor]
    plain: Callable[[Tensor], Tensor]


def _gelu(approximate: str) -> Activation:
    ops = torch.ops.aten
    return Activation(
        lambda x, out: ops.gelu.out(x, approximate=approximate, out=out),
        lambda g, x, out: ops.gelu_backward.grad_input(g, x, approximate=approximate, grad_input=out),
        lambda x: F.gelu(x, approximate=approximate),
    )


_SILU = Activation(
    lambda x, out: torch.ops.aten.silu.out(x, out=out),
    lambda g, x, out: torch.ops.aten.silu_backward.grad_input(g, x, grad_input=out),
    F.silu,
)
# by transformers' names
ACTIVATIONS: Mapping[str, Activation] = {
    "silu": _SILU,
    "swish": _SILU,
    "gelu": _gelu("none"),
    # transformers writes this one out in several operations; torch's tanh form is the same but for rounding
    "gelu_new": _gelu("tanh"),
    "gelu_pytorch_tanh": _gelu("tanh"),
}


def activate(x: Tensor, activation: Activation, *, gated: bool) -> Tensor:
    """Return ``act(x)``; or, *gated*, ``act(a) ⊙ b`` of ``x = (a, b) [n, 2m]``."""
    if not gated:
        return activation.plain(x)
    out: Tensor = _Gated.apply(x, activation)  # type: ignore[no-untyped-call]
    return out


class _Gated(torch.autograd.Function):
    """``y = act(a) ⊙ b``: ``∂L/∂a = g ⊙ b ⊙ act′(a)`` and ``∂L/∂b = g ⊙ act(a)``.

    What ``g`` is multiplied with is made in the forward pass, both side by side, so that the backward pass is one launch.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, activation: Activation) -> Tensor:
        a, b = x.chunk(2, 1)
        # without a gradient nothing is kept; act(a) is new memory, so the product may overwrite it
        if not ctx.needs_input_grad[0]:
            return activation.plain(a).mul_(b)
        slopes = torch.empty_like(x)
        to_a, to_b = slopes.chunk(2, 1)
        # ∂y/∂a = b ⊙ act′(a): b takes the place of the gradient from above in torch's own backward kernel
        activation.slope(b, a, to_a)
        # ∂y/∂b = act(a), which is also a factor of y: computed once, used twice
        activation.value(a, to_b)
        ctx.save_for_backward(slopes)
        return to_b * b

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (slopes,) = ctx.saved_tensors
        # [n, 1, m] · [n, 2, m]
        return (grads[0][:, None] * slopes.view(len(slopes), 2, -1)).view(slopes.shape), None


def owners(module: nn.Module) -> set[nn.Module]:
    """Return the modules within *module* that hold parameters themselves."""
    return {m for m in module.modules() if any(p is not None for p in m._parameters.values())}
