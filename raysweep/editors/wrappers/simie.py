"""SimIE: make any weight editor lifelong by recursive least squares (Guo et al., ICML 2025; editors.md §13).

Per edited matrix, ``P_t = P_{t−1} + K_t K_tᵀ`` with ``P_0 = λI``, and ``W_t = W_{t−1} + E_t K_t K_tᵀ P_t⁻¹`` (paper eq. 5).
``K_t`` are the keys of all tokens of prompt and target; ``E_t`` is the base editor's change (``sequential``), or
``W_0 + Δ_t − W_{t−1}`` with ``Δ_t`` computed on the pristine weights (``init``; Remark D.1). Never more than ``k``
right-hand sides: ``E K (P⁻¹K)ᵀ``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from raysweep.config.schema import Count, Positive
from raysweep.editors.base import ArtifactRequest, Delta, Dense, EditorConfig, EditStep, LowRank, WeightDelta
from raysweep.lazy import lazy
from raysweep.records import EditRecord

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from raysweep.artifacts import Artifact
    from raysweep.editors import keys, leastsq
    from raysweep.editors.base import Editor
    from raysweep.models import patching
    from raysweep.models.lm import LanguageModel
else:
    torch = lazy("torch")
    keys, leastsq = lazy("raysweep.editors.keys"), lazy("raysweep.editors.leastsq")
    patching = lazy("raysweep.models.patching")


class SimIEConfig(EditorConfig):
    """Hyper-parameters of SimIE.

    Attributes:
        lam: λ > 0 of the ridge, in absolute units of key energy.
        mode: ``sequential`` edits the model as it stands (published for ROME, MEMIT, AlphaEdit⁻); ``init`` edits the
            pristine weights each time (published for MEND).
        backend: ``woodbury64`` (O(d²k) recursion in fp64), ``chol64`` (one Cholesky per edit), ``svd`` (hermitian
            pseudo-inverse in fp64), ``ref_fp32_lu`` (the published fp32 solve with ``d_out`` right-hand sides).
        keys: take keys ``before`` the base edit (published) or ``after`` it.
        refresh: recompute the inverse from P after this many updates (woodbury64).
        tolerance: recompute it when ``‖P G − K‖/‖K‖`` exceeds this (woodbury64).
    """

    lam: Positive = 10.0
    mode: Literal["sequential", "init"] = "sequential"
    backend: Literal["woodbury64", "chol64", "svd", "ref_fp32_lu"] = "woodbury64"
    keys: Literal["before", "after"] = "before"
    refresh: Count = 100
    tolerance: Positive = 1e-8


class SimIE:
    """An editor made of a weight editor: the inner one proposes, the ridge regression over all edits so far disposes."""

    name: ClassVar[str] = "simie"
    version: ClassVar[int] = 1
    config_type: ClassVar[type[EditorConfig]] = SimIEConfig
    accepts: ClassVar[tuple[str, ...]] = ("weights",)
    patch_kind: ClassVar[Literal["weights", "modules"]] = "weights"
    paper: ClassVar[str] = "Guo et al., ICML 2025, PMLR 267:20793–20824"

    def __init__(self, config: SimIEConfig, inner: Editor[Any]) -> None:
        self.config = config
        self.inner = inner

    def edited(self, lm: LanguageModel) -> tuple[str, ...]:
        """Return the inner editor's parameters."""
        return self.inner.edited(lm)

    def needs(self, lm: LanguageModel) -> Mapping[str, ArtifactRequest]:
        """Ask for what the inner editor asks for."""
        return self.inner.needs(lm)

    def begin(self, lm: LanguageModel, artifacts: Mapping[str, Artifact]) -> dict[str, Any]:
        """Return ``P = λI`` per matrix; in ``init`` mode also its pristine weights and the total change ``S = 0``."""
        reference = self.config.backend == "ref_fp32_lu"
        state: dict[str, Any] = {"inner": self.inner.begin(lm, artifacts), "matrices": {}}
        for name in self._matrices(lm):
            weight = lm.logical(name)
            ridge = leastsq.ridge_begin(
                weight.shape[1],
                self.config.lam,
                inverse=self.config.backend == "woodbury64",
                dtype=torch.float32 if reference else torch.float64,
                device=weight.device,
            )
            part: dict[str, Any] = {"gram": ridge.gram, "age": 0}
            if ridge.inverse is not None:
                part["inverse"] = ridge.inverse
            if self.config.mode == "init":
                part["pristine"] = weight.float().clone()
                part["total"] = torch.zeros_like(part["pristine"])
            state["matrices"][name] = part
        return state

    def edit(
        self,
        lm: LanguageModel,
        batch: Sequence[EditRecord],
        state: dict[str, Any],
        *,
        artifacts: Mapping[str, Artifact],
        rng: torch.Generator,
    ) -> EditStep[dict[str, Any]]:
        """Let the inner editor propose, then project its change on what the keys of all edits so far allow."""
        parts = state["matrices"]
        home: dict[str, Tensor] = {}
        if self.config.mode == "init":
            home = {n: patching.stored(lm, n, p["pristine"]) for n, p in parts.items()}
        with patching.substituted(lm, home):
            step = self.inner.edit(lm, batch, state["inner"], artifacts=artifacts, rng=rng)
            assert isinstance(step.patch, WeightDelta)
            proposed = step.patch.deltas
            modules = [n.rpartition(".")[0] for n in parts]
            with patching.applied(lm, proposed if self.config.keys == "after" else {}):
                found = keys.all_token_keys(lm, batch, modules) if modules else {}
        deltas: dict[str, Delta] = {}
        stats = dict(step.stats)
        after: dict[str, Any] = {}
        for name, part in parts.items():
            columns = found[name.rpartition(".")[0]]
            deltas[name], after[name], drift = self._correct(part, proposed[name], columns)
            stats[f"simie_drift/{name}"] = drift
            stats[f"simie_kept/{name}"] = _kept(deltas[name], proposed[name])
        return EditStep(WeightDelta(deltas), {"inner": step.state, "matrices": after}, stats)

    def _matrices(self, lm: LanguageModel) -> list[str]:
        return [n for n in self.inner.edited(lm) if lm.weight(n).dim() == 2]

    def _correct(self, part: Mapping[str, Any], delta: Delta, columns: Tensor) -> tuple[Delta, dict[str, Any], float]:
        """Return the corrected change, the new memory and the drift of the inverse."""
        if self.config.backend == "ref_fp32_lu":
            return self._reference(part, delta, columns.float())
        columns = columns.double()
        values = delta.times(columns)  # Δ K [d_out, k]
        if "total" in part:
            values = values - part["total"].double() @ columns
        ridge = leastsq.RidgeState(self.config.lam, part["gram"], part.get("inverse"), part["age"])
        drift = 0.0
        if self.config.backend == "woodbury64":
            ridge, gain, drift = leastsq.woodbury(
                ridge, columns, refresh=self.config.refresh, tolerance=self.config.tolerance
            )
        elif self.config.backend == "chol64":
            ridge, gain = leastsq.cholesky_gain(ridge, columns)
        else:
            ridge, gain = leastsq.pinv_gain(ridge, columns)
        change = LowRank(values, gain.T)
        after: dict[str, Any] = {"gram": ridge.gram, "age": ridge.age}
        if ridge.inverse is not None:
            after["inverse"] = ridge.inverse
        return change, self._advance(part, after, change), drift

    def _reference(self, part: Mapping[str, Any], delta: Delta, columns: Tensor) -> tuple[Delta, dict[str, Any], float]:
        """Solve as published: P in fp32, ``d_out`` right-hand sides, general LU (quirks Q38, Q40)."""
        gram = part["gram"] + columns @ columns.T
        change = delta.dense().float()
        if "total" in part:
            change = change - part["total"]
        right = change @ columns @ columns.T
        corrected = Dense(torch.linalg.solve(gram.T, right.T).T)
        return corrected, self._advance(part, {"gram": gram, "age": 0}, corrected), 0.0

    def _advance(self, part: Mapping[str, Any], after: dict[str, Any], change: Delta) -> dict[str, Any]:
        if "total" in part:
            after["pristine"] = part["pristine"]
            after["total"] = part["total"] + change.dense().float()
        return after


def _kept(corrected: Delta, proposed: Delta) -> float:
    """Return the Frobenius norm of the corrected change over that of the proposed one."""
    before = float(proposed.dense().norm())
    return float(corrected.dense().norm()) / before if before else 0.0
