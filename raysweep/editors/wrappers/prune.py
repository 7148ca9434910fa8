"""PRUNE: report a model whose total change has its large singular values restrained (Ma et al., ICLR 2025; docs/methods/prune.md).

With the total change ``D = W − W_0 = U diag(s) Vᵀ`` and ``M = σ_max(W_0)``, every ``s_i ≥ M`` is restrained, the others
stay::

    F(s) = M + log_b(s / M),   or ``linear``: F(s) = ½ s + ½ M             view: W + Σ_i (F(s_i) − s_i) u_i v_iᵀ

Only values that move are computed, so the view is a low-rank change.

By default the edits never see it: the view is put on for each measurement and taken off again. ``persist: true`` is the published
loop (quirk Q23): rounds write the view into the model, later edits start from it, and so the result depends on which rounds there
are. Between rounds, immediate measurements see the view without keeping it, in both modes.

Shape legend: ``D [d_out, d_in]``, logical orientation; ``r`` singular values that move.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, TypedDict, Unpack

from pydantic import BeforeValidator

from raysweep.editors.base import EditInputs, EditorConfig, EditStep, ReportView
from raysweep.editors.wrappers.base import BaseWrapper
from raysweep.errors import WrapError
from raysweep.jsontypes import Scalar
from raysweep.lazy import lazy
from raysweep.models.patches import Delta, LowRank, WeightDelta
from raysweep.records import EditRecord

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from raysweep.artifacts import Artifact
    from raysweep.editors.base import AnyEditor
    from raysweep.models.lm import LanguageModel
else:
    torch = lazy("torch")

log = logging.getLogger(__name__)

LOGARITHMS = {"1.2": math.log(1.2), "1.5": math.log(1.5), "2": math.log(2.0), "e": 1.0}


def _text(value: object) -> object:
    """Let YAML's numbers stand for bases: 1.2, 2 and 2.0."""
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else value


class PruneConfig(EditorConfig):
    """Hyper-parameters of PRUNE.

    Attributes:
        base: of the logarithm, ``1.2``, ``1.5``, ``2`` or ``e``; or ``linear``. A logarithm *enlarges* values just above
            ``M`` if ``M < 1 / ln b`` (5.48 for 1.2, 1.44 for 2; quirk Q24, warned about and counted).
        persist: write the view into the model at every round of the protocol, as published; then the rounds matter.
    """

    base: Annotated[Literal["1.2", "1.5", "2", "e", "linear"], BeforeValidator(_text)] = "1.2"
    persist: bool = False


class PruneState(TypedDict):
    """State of :class:`Prune`: the inner editor's, and ``M = σ_max(W_0)`` by parameter name."""

    inner: object
    largest: dict[str, float]


class Prune(BaseWrapper[PruneConfig, PruneState]):
    """An editor made of a weight editor: it edits as the inner one does and reports a restrained model."""

    name = "prune"
    version = 1
    spans_devices = True
    config_type = PruneConfig
    shareable: ClassVar[Mapping[str, Mapping[str, Scalar]]] = {"base": {"persist": False}}
    paper = "Ma et al. 2025, arXiv 2405.16821"

    def __init__(self, config: PruneConfig, inner: AnyEditor) -> None:
        reason = self.incompatible_with(config, wrapped=isinstance(inner, BaseWrapper))
        if reason:
            raise WrapError(reason, hint=f"set {self.name}.persist: false, or remove the inner wrapper")
        super().__init__(config, inner)

    @classmethod
    def output_kind(cls, config: PruneConfig) -> str:
        """Return ``views``: nothing that corrects changes can wrap it, since its reports are not changes (quirk Q42)."""
        return "views"

    @classmethod
    def incompatible_with(cls, config: PruneConfig, *, wrapped: bool) -> str:
        """Return why this cannot wrap an editor that is itself *wrapped*, or nothing.

        A wrapper that corrects changes remembers its own weights; rounds that write others under it break its recursion.
        """
        if config.persist and wrapped:
            return "persist: true cannot wrap a wrapped editor, whose memory would not know of the pruned weights"
        return ""

    @property
    def view_persists(self) -> bool:
        """Whether rounds write the view into the model."""
        return self.config.persist

    def begin(self, lm: LanguageModel, artifacts: Mapping[str, Artifact]) -> PruneState:
        """Remember ``M = σ_max(W_0)`` of each matrix."""
        state: PruneState = {"inner": self.inner.begin(lm, artifacts), "largest": {}}
        for name in self.edited_parameters(lm):
            weight = lm.logical(name)
            if weight.dim() == 2:
                largest = state["largest"][name] = float(_spectrum(weight)[0][-1])
                rate = LOGARITHMS.get(self.config.base)
                # F(M + ε) = M + ε / (M ln b) + …: above M it grows if M ln b < 1 (quirk Q24).
                if rate is not None and largest * rate < 1:
                    message = (
                        "base %s enlarges singular values just above σ_max(W_0) = %.3g of %s: below 1 / ln b = %.3g"
                    )
                    log.warning(message, self.config.base, largest, name, 1 / rate)
        return state

    def edit(
        self, lm: LanguageModel, batch: Sequence[EditRecord], state: PruneState, **given: Unpack[EditInputs]
    ) -> EditStep[PruneState]:
        """Let the inner editor edit."""
        step = self.inner.edit(lm, batch, state["inner"], **given)
        return EditStep(step.patch, {**state, "inner": step.state}, step.stats)

    def edit_dependencies(self) -> Mapping[str, object] | None:
        """Return everything but the restraint's base, which only the view knows; nothing is shared if rounds write the view."""
        if self.view_persists:
            return None
        return self.description_without("base")

    def report_view(
        self, lm: LanguageModel, totals: Callable[[], Mapping[str, Tensor]], state: PruneState
    ) -> ReportView:
        """Return the change from the edited to the restrained weights."""
        deltas: dict[str, Delta] = {}
        stats: dict[str, float] = {}
        for name, total in totals().items():
            # Biases have no singular values.
            if name not in state["largest"]:
                continue
            change, values, after = restraint(total, state["largest"][name], self.config.base)
            if change is not None:
                deltas[name] = change
            stats[f"pruned/{name}"] = float(len(values))
            stats[f"pruned_up/{name}"] = float((after > values).sum())
        return ReportView(WeightDelta(deltas), stats)


def restrain(values: Tensor, largest: float, base: str) -> Tensor:
    """Return ``F(s)`` of singular values *values*: those from *largest* ``= M`` on shrink towards it.

    >>> restrain(torch.tensor([25.0, 12.0, 10.0, 4.0]), 10.0, "linear").tolist()
    [17.5, 11.0, 10.0, 4.0]
    """
    if base == "linear":
        moved = (values + largest) / 2
    else:
        moved = largest + (values / largest).log() / LOGARITHMS[base]
    return torch.where(values >= largest, moved, values)


def restraint(total: Tensor, largest: float, base: str) -> tuple[LowRank | None, Tensor, Tensor]:
    """Return ``(change, s, F(s))`` for the singular values ``s ≥ M`` of *total* ``[d_out, d_in]``; no change if there are none.

    Args:
        total: ``D = W − W_0``, logical orientation.
        largest: ``M = σ_max(W_0)``.
        base: key of the restraint.
    """
    none = total.new_zeros(0, dtype=torch.float64)
    # ‖D‖_F bounds σ_max(D): after few edits nothing is large, and nothing has to be decomposed.
    if float(total.double().norm()) < largest:
        return None, none, none
    values, vectors = _spectrum(total)
    # Only these move; the rest of the spectrum is not touched, not even by rounding.
    big = values >= largest
    values, vectors = values[big], vectors[:, big]
    if len(values) == 0:
        return None, none, none
    after = restrain(values, largest, base)
    rate = after / values - 1
    full = total.double()
    # The vectors are those of the shorter side. With u: u (F(s) − s) vᵀ = u (F(s)/s − 1) uᵀD, as uᵀD = s vᵀ; with v likewise.
    if full.shape[0] <= full.shape[1]:
        return LowRank(vectors * rate, vectors.T @ full), values, after
    return LowRank((full @ vectors) * rate, vectors.T), values, after


def _spectrum(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return singular values (rising) and the singular vectors of the shorter side, from the smaller Gram matrix in fp64."""
    full = matrix.double()
    gram = full @ full.T if full.shape[0] <= full.shape[1] else full.T @ full
    values, vectors = torch.linalg.eigh(gram)  # D Dᵀ = U diag(s²) Uᵀ, or Dᵀ D = V diag(s²) Vᵀ
    return values.clamp(min=0).sqrt(), vectors
