"""The hypernetwork of MEND: from the gradient factors of one token to the factors of an update (docs/methods/mend.md).

Per edited shape one network (the editor network of Mitchell et al. 2022), on normalised factors ``x̂ = (x − μ) / σ``, ``δ̂``
likewise::

    z_0 = [x̂; δ̂],   z_{i+1} = max((U_i V_i z_i + b_i) ⊙ g_p + h_p, 0) + z_i,   [x̃; δ̃] = z_2        p = number of the matrix
    W ← W + η_p Σ_t δ̃_t x̃_tᵀ

Parameters are named as in the published archives, so that those load as they are.

Shape legend: ``n`` tokens, ``x [n, d_in]`` inputs of a linear map, ``δ [n, d_out]`` gradients of the loss with respect to its
outputs, ``D = d_in + d_out``, ``r`` rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raysweep.errors import ArtifactError

EPSILON = 1e-7


@dataclass(frozen=True, slots=True)
class Matrix:
    """An edited weight: its name and its logical shape."""

    name: str
    d_in: int
    d_out: int

    @property
    def shape_key(self) -> str:
        """The name of the network that all matrices of this shape share: ``(d_in, d_out)``."""
        return str((self.d_in, self.d_out))

    @property
    def name_key(self) -> str:
        """The name of a network for this matrix alone (dots are not allowed in it)."""
        return self.name.replace(".", "#")


class Residual(nn.Module):
    """One low-rank layer: ``y = max((U V x + b) ⊙ g_p + h_p, 0) + x``; the identity where ``U = b = h = 0``.

    The clamp's gradient at exactly 0 is 1, which is what lets ``U`` leave 0.

    ``u [D, r]``, ``v [r, D]``, ``bias [D]``, ``mode_scale`` ``g`` and ``mode_shift`` ``h`` ``[matrices, D]``.
    """

    def __init__(self, width: int, rank: int, matrices: int, rng: torch.Generator) -> None:
        super().__init__()
        self.u = nn.Parameter(torch.zeros(width, rank))
        self.v = nn.Parameter(torch.randn(rank, width, generator=rng))
        self.bias = nn.Parameter(torch.zeros(width))
        self.mode_scale = nn.Embedding(matrices, width, _weight=torch.ones(matrices, width))
        self.mode_shift = nn.Embedding(matrices, width, _weight=torch.zeros(matrices, width))

    def forward(self, x: Tensor, mode: int) -> Tensor:
        """Map ``[…, D]`` to ``[…, D]`` for matrix number *mode*."""
        # U V x without the [D, D] product: r numbers per token between.
        before = x @ self.v.T @ self.u.T + self.bias
        after: Tensor = (before * self.mode_scale.weight[mode] + self.mode_shift.weight[mode]).clamp(min=0) + x
        return after


class _Stack(nn.Module):
    """The layers, under the name the archives use."""

    def __init__(self, width: int, rank: int, matrices: int, depth: int, rng: torch.Generator) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Residual(width, rank, matrices, rng) for _ in range(depth))


class FactorNet(nn.Module):
    """One network: running statistics of ``x`` and ``δ``, and layers on ``[x̂; δ̂]``."""

    u_mean: Tensor
    u_std: Tensor
    u_s: Tensor
    v_mean: Tensor
    v_std: Tensor
    v_s: Tensor
    k: Tensor

    def __init__(self, d_in: int, d_out: int, *, rank: int, matrices: int, depth: int, rng: torch.Generator) -> None:
        super().__init__()
        for side, width in (("u", d_in), ("v", d_out)):
            self.register_buffer(f"{side}_mean", torch.zeros(width))
            self.register_buffer(f"{side}_std", torch.ones(width))
            self.register_buffer(f"{side}_s", torch.zeros(width))
        self.register_buffer("k", torch.zeros(1))
        width = d_in + d_out
        self.mlp = _Stack(width, min(rank, width), matrices, depth, rng)

    @torch.no_grad()
    def update_statistics(self, x: Tensor, delta: Tensor) -> None:
        """Take tokens ``[n, d]`` into the running mean and deviation, all at once (equal to Welford's update one by one).

        With ``k`` tokens before and mean ``μ'`` of the new ones: ``μ ← μ + (μ' − μ) n / (k + n)``,
        ``s ← s + Σ (x − μ')² + (μ' − μ)² k n / (k + n)``, ``σ = √(s / (k + n − 1))``.
        """
        before, new = float(self.k), x.shape[0]
        if new == 0:
            return
        total = before + new
        for side, rows in (("u", x.double()), ("v", delta.double())):
            mean, square_sum = (getattr(self, f"{side}_{part}") for part in ("mean", "s"))
            new_mean = rows.mean(0)
            shift = new_mean - mean.double()
            squares = ((rows - new_mean) ** 2).sum(0) + shift**2 * (before * new / total)
            mean.copy_(mean.double() + shift * (new / total))
            square_sum.copy_(square_sum.double() + squares)
            # Bessel's correction; the deviation of a single token stays 1.
            if total > 1:
                getattr(self, f"{side}_std").copy_((square_sum.double() / (total - 1)).sqrt())
        self.k.fill_(total)

    def forward(self, x: Tensor, delta: Tensor, mode: int) -> tuple[Tensor, Tensor]:
        """Return ``(x̃, δ̃)``; outputs stay in normalised units.

        Args:
            x: inputs of the map ``[…, d_in]``.
            delta: gradients at its outputs ``[…, d_out]``.
            mode: number of the matrix among those of this shape.
        """
        joint = torch.cat(
            [(x - self.u_mean) / (self.u_std + EPSILON), (delta - self.v_mean) / (self.v_std + EPSILON)], dim=-1
        )
        for layer in self.mlp.layers:
            joint = layer(joint, mode)
        return joint[..., : x.shape[-1]], joint[..., x.shape[-1] :]


class Hypernetwork(nn.Module):
    """All networks of one model, and a learnt step size ``η`` per edited matrix, in the order of *matrices*."""

    def __init__(
        self,
        matrices: Sequence[Matrix],
        *,
        rank: int,
        edit_lr: float,
        shared: bool = True,
        depth: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        # A network per shape, shared, or per matrix; a matrix's number there is its row in the embeddings.
        groups: dict[str, list[Matrix]] = {}
        for matrix in matrices:
            groups.setdefault(matrix.shape_key if shared else matrix.name_key, []).append(matrix)
        self.place = {m.name: (key, mode) for key, group in groups.items() for mode, m in enumerate(group)}
        self.order = {m.name: i for i, m in enumerate(matrices)}
        self.mend = nn.ModuleDict(
            {
                key: FactorNet(g[0].d_in, g[0].d_out, rank=rank, matrices=len(g), depth=depth, rng=rng)
                for key, g in groups.items()
            }
        )
        self.edit_lrs = nn.Parameter(torch.full((len(matrices),), edit_lr))

    @staticmethod
    def load(matrices: Sequence[Matrix], tensors: Mapping[str, Tensor]) -> Hypernetwork:
        """Return the hypernetwork that an archive holds for *matrices*; rank, depth and sharing are read off it.

        Raises:
            ArtifactError: the archive was made for other matrices.
        """
        shared = any(name.startswith(f"mend.{matrices[0].shape_key}.") for name in tensors)
        first = f"mend.{matrices[0].shape_key if shared else matrices[0].name_key}.mlp.layers."
        # Depth and rank are what the archive's tensors say; nothing else records them.
        depth = len({name.removeprefix(first).partition(".")[0] for name in tensors if name.startswith(first)})
        rank = tensors[f"{first}0.u"].shape[1] if depth else 1
        network = Hypernetwork(matrices, rank=rank, edit_lr=0.0, shared=shared, depth=max(depth, 1))
        needed = network.state_dict()
        loaded = {n: x.float().reshape(needed[n].shape) for n, x in tensors.items() if _fits(n, x, needed)}
        # a network of one matrix needs no embedding of its number: archives may leave it out
        optional = {n for n in needed if ".mode_" in n} if not shared else set()
        missing = sorted(set(needed) - set(loaded) - optional)
        if missing:
            raise ArtifactError(
                f"the hypernetwork's archive does not fit: {len(missing)} of {len(needed)} tensors are missing or of "
                f"another shape, first '{missing[0]}' {list(needed[missing[0]].shape)}",
                hint="it was trained for another model, or for other layers or modules than configured",
            )
        network.load_state_dict({**needed, **loaded})
        return network.eval().requires_grad_(False)

    def net(self, name: str) -> tuple[FactorNet, int]:
        """Return the network of matrix *name* and its number there."""
        key, mode = self.place[name]
        network = self.mend[key]
        assert isinstance(network, FactorNet)
        return network, mode

    def forward(self, name: str, x: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(x̃, η δ̃)`` of matrix *name*, whose update is ``Σ η δ̃ x̃ᵀ`` over tokens.

        Shape: ``x […, d_in]``, ``delta […, d_out]``. Tokens at which either is entirely zero give zero rows.
        """
        net, mode = self.net(name)
        counted = nonzero_tokens(x, delta)
        if self.training:
            net.update_statistics(x[counted], delta[counted])
        left, right = net(x, delta, mode)
        mask = counted[..., None]
        return left * mask, right * mask * self.edit_lrs[self.order[name]]


def nonzero_tokens(x: Tensor, delta: Tensor) -> Tensor:
    """Return ``[…]``, True at the tokens at which neither factor is entirely zero."""
    nonzero: Tensor = (x != 0).any(-1) & (delta != 0).any(-1)
    return nonzero


def _fits(name: str, tensor: Tensor, needed: Mapping[str, Tensor]) -> bool:
    return name in needed and tensor.numel() == needed[name].numel()
