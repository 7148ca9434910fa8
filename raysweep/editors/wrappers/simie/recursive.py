"""SimIE by recursive least squares: each proposed change is corrected by what the keys of all edits so far allow.

Per edited matrix, with the keys ``K_t [d_in, k]`` of all tokens of the t-th prompt and target (Guo et al. 2025)::

    P_0 = λI,   P_t = P_{t−1} + K_t K_tᵀ,   W_t = W_{t−1} + E_t K_t (P_t⁻¹ K_t)ᵀ

``E_t`` is the inner editor's change (``sequential``), or ``W_0 + Δ_t − W_{t−1}`` with ``Δ_t`` computed on the pristine weights
(``init``, a remark in their appendix). There are never more than ``k`` right-hand sides: the correction is the product of
``E_t K_t [d_out, k]`` and the gain ``G = P_t⁻¹ K_t [d_in, k]``. ``docs/methods/simie.md`` tells modes, back ends and deviations.

Shape legend: ``k`` keys of one edit (columns), ``d_in``, ``d_out`` of a matrix, ``S = W_t − W_0 [d_out, d_in]`` its total change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Required, TypeAlias, TypedDict, Unpack, cast

from raysweep.editors.base import EditInputs, EditStep
from raysweep.editors.wrappers.simie.common import BaseSimIE, SimIEState, input_of
from raysweep.lazy import lazy
from raysweep.models.patches import Delta, Dense, LowRank, WeightDelta
from raysweep.records import EditRecord

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from raysweep.artifacts import Artifact
    from raysweep.editors.linalg import chunks, ridge
    from raysweep.models import ledger
    from raysweep.models.lm import LanguageModel
else:
    torch = lazy("torch")
    chunks, ridge = lazy("raysweep.editors.linalg.chunks"), lazy("raysweep.editors.linalg.ridge")
    ledger = lazy("raysweep.models.ledger")


class InputMemory(TypedDict, total=False):
    """What is remembered of one input: λ, and the fields of a ``RidgeInverse`` (``woodbury64``) or ``P`` alone (the others).

    Attributes:
        lam: λ.
        gram: ``P [d_in, d_in]``; with ``woodbury64`` only once its keys are summed.
        inverse: ``P⁻¹ [d_in, d_in]``, but for the rows.
        keys, rows: chunks ``[n_i, d_in]`` not yet in ``gram`` and ``inverse``.
        age: updates since the inverse was last computed from ``P``.
    """

    lam: Required[float]
    gram: Tensor
    inverse: Tensor
    keys: list[Tensor]
    rows: list[Tensor]
    age: int


class MatrixMemory(TypedDict, total=False):
    """What is remembered of one matrix in ``init`` mode (nothing in ``sequential``).

    Attributes:
        pristine: ``W_0 [d_out, d_in]``, fp32.
        total: ``S`` in fp32, with the back ends that keep it dense.
        left, right, base: ``S = base + Σ Lᵀ R`` with chunks ``L [n_i, d_out]``, ``R [n_i, d_in]`` in fp64 (``woodbury64``).
    """

    pristine: Tensor
    total: Tensor
    left: list[Tensor]
    right: list[Tensor]
    base: Tensor


RecursiveState: TypeAlias = SimIEState[InputMemory, MatrixMemory]
"""State of :class:`RecursiveSimIE`."""


@dataclass(frozen=True, slots=True)
class Absorbed:
    """What one edit's keys are to all matrices that read them.

    Attributes:
        keys: ``K [d_in, k]``.
        gain: ``G = P⁻¹ K [d_in, k]``; with ``ref_fp32_lu`` ``P [d_in, d_in]`` itself.
        drift: of the inverse, if it was measured.
    """

    keys: Tensor
    gain: Tensor
    drift: float | None


class RecursiveSimIE(BaseSimIE[RecursiveState]):
    """Corrects the inner editor's change at every edit; the model always holds the regression's solution."""

    def begin(self, lm: LanguageModel, artifacts: Mapping[str, Artifact]) -> RecursiveState:
        """Remember λ of each input; in ``init`` mode also each matrix's pristine weights and total change ``S = 0``."""
        state: RecursiveState = {"inner": self.inner.begin(lm, artifacts), "inputs": {}, "matrices": {}}
        energies = self._energies(lm, artifacts)
        for name in self._matrices(lm):
            weight = lm.logical(name).to(lm.device)
            source = input_of(lm, name)
            if source not in state["inputs"]:
                state["inputs"][source] = self.initial_memory(self._ridge(energies.get(source, 1.0)), weight)
            memory: MatrixMemory = {}
            if self.config.mode == "init":
                # A copy, since the live weights will change; fp32 holds every shipped dtype exactly.
                pristine = weight.float().clone(memory_format=torch.contiguous_format)
                if self.config.backend == "woodbury64":
                    memory = {"pristine": pristine, "left": [], "right": []}
                else:
                    memory = {"pristine": pristine, "total": torch.zeros_like(pristine)}
            state["matrices"][name] = memory
        return state

    def edit(
        self, lm: LanguageModel, batch: Sequence[EditRecord], state: RecursiveState, **given: Unpack[EditInputs]
    ) -> EditStep[RecursiveState]:
        """Let the inner editor propose, then project its change on what the keys of all edits so far allow."""
        memories = state["matrices"]
        # In init mode the inner editor edits the pristine weights, whatever the model holds by now.
        pristine: dict[str, Tensor] = {}
        if self.config.mode == "init":
            pristine = {n: ledger.to_stored_layout(lm, n, m["pristine"]).contiguous() for n, m in memories.items()}
        with ledger.substituted(lm, pristine):
            step = self.inner.edit(lm, batch, state["inner"], **given)
            assert isinstance(step.patch, WeightDelta)
            proposed = step.patch.deltas
            by_module = self._keys(lm, batch, list(memories), proposed)
        deltas: dict[str, Delta] = {}
        stats = dict(step.stats)
        after: RecursiveState = {"inner": step.state, "inputs": {}, "matrices": {}}
        absorbed: dict[str, Absorbed] = {}
        for name, memory in memories.items():
            source = input_of(lm, name)
            # Matrices that read one input have the same keys: absorb them once.
            if source not in absorbed:
                columns = by_module[name.rpartition(".")[0]]
                after["inputs"][source], absorbed[source] = self.absorb_keys(state["inputs"][source], columns)
                stats[f"simie_lambda/{source}"] = state["inputs"][source]["lam"]
            deltas[name] = self.correct(memory, proposed[name], absorbed[source])
            after["matrices"][name] = advance_total(memory, deltas[name])
            drift = absorbed[source].drift
            if drift is not None:
                stats[f"simie_drift/{name}"] = drift
            # keeps its place among the numbers; read for all matrices at once, below
            stats[f"simie_kept/{name}"] = 0.0
        stats |= {f"simie_kept/{name}": ratio for name, ratio in norm_ratios(deltas, proposed).items()}
        return EditStep(WeightDelta(deltas), after, stats)

    def initial_memory(self, lam: float, weight: Tensor) -> InputMemory:
        """Return the memory of the input of *weight* before the first edit: λ and, unless it is left implicit, ``P = λI``."""
        if self.config.backend == "woodbury64":
            return _as_memory(ridge.RidgeInverse(lam))
        dtype = torch.float32 if self.config.backend == "ref_fp32_lu" else torch.float64
        return {"lam": lam, "gram": lam * torch.eye(weight.shape[1], dtype=dtype, device=weight.device)}

    def absorb_keys(self, memory: InputMemory, columns: Tensor) -> tuple[InputMemory, Absorbed]:
        """Take in the keys ``[d_in, k]`` of one input; return its new memory, and what the matrices that read it need."""
        if self.config.backend == "woodbury64":
            refresh, tolerance = self.config.refresh, self.config.tolerance
            state, gain, drift = ridge.woodbury(
                ridge.RidgeInverse(**memory), columns, refresh=refresh, tolerance=tolerance
            )
            return _as_memory(state), Absorbed(columns.double(), gain, drift)
        if self.config.backend == "ref_fp32_lu":
            columns = columns.float()
            gram = memory["gram"] + columns @ columns.T
            return {**memory, "gram": gram}, Absorbed(columns, gram, None)
        columns = columns.double()
        solve = ridge.cholesky_gain if self.config.backend == "chol64" else ridge.pinv_gain
        gram, gain = solve(memory["gram"], columns)
        return {**memory, "gram": gram}, Absorbed(columns, gain, None)

    def correct(self, memory: MatrixMemory, delta: Delta, absorbed: Absorbed) -> Delta:
        """Return the corrected change ``E K Gᵀ`` of one matrix, ``E = Δ`` or, in ``init`` mode, ``Δ − S``.

        ``ref_fp32_lu`` solves ``X P = E K Kᵀ`` with ``d_out`` right-hand sides, as published (quirks Q38, Q40).
        """
        columns, gain = absorbed.keys, absorbed.gain
        if self.config.backend == "ref_fp32_lu":
            change = delta.dense().float()
            if "total" in memory:
                change = change - memory["total"]
            # X P = E K Kᵀ is Pᵀ Xᵀ = (E K Kᵀ)ᵀ, solved as a general system.
            right = change @ columns @ columns.T
            return Dense(torch.linalg.solve(gain.T, right.T).T)
        values = delta.times(columns)  # Δ K [d_out, k]
        if "total" in memory:
            values = values - memory["total"].double() @ columns
        elif "left" in memory:
            # (S K)ᵀ = Kᵀ Sᵀ with Sᵀ = baseᵀ + Σ Rᵀ L, as rows
            rows = columns.T
            base = rows @ memory["base"].T if "base" in memory else rows.new_zeros(len(rows), len(values))
            values = values - chunks.add_gram_product(base, rows, memory["right"], memory["left"]).T
        return LowRank(values, gain.T)


def _as_memory(state: ridge.RidgeInverse) -> InputMemory:
    """Return *state* as plain data, without what is implicit."""
    values = {f.name: getattr(state, f.name) for f in fields(state)}
    plain = {k: list(v) if isinstance(v, Sequence) else v for k, v in values.items() if v is not None}
    return cast("InputMemory", plain)


def advance_total(memory: MatrixMemory, change: Delta) -> MatrixMemory:
    """Return what to remember of one matrix after *change*: nothing, or in ``init`` mode its new total change ``S``.

    ``woodbury64`` keeps ``S = base + Σ Lᵀ R`` in fp64 with the last changes as rows, added up when they cost more than the sum.
    """
    if "total" in memory:
        return {**memory, "total": memory["total"] + change.dense().float()}
    if "left" not in memory:
        return {**memory}
    assert isinstance(change, LowRank)
    left = chunks.append_chunk(memory["left"], change.left.T)
    right = chunks.append_chunk(memory["right"], change.right)
    # n rows cost n (d_out + d_in) numbers, S costs d_out d_in
    rows = change.left.shape[0] * change.right.shape[1] // (change.left.shape[0] + change.right.shape[1])
    if chunks.n_rows(left) < (rows // 4 if "base" in memory else rows):
        return {**memory, "left": left, "right": right}
    return {**memory, "base": chunks.fold_chunks(memory.get("base"), left, right), "left": [], "right": []}


def norm_ratios(corrected: Mapping[str, Delta], proposed: Mapping[str, Delta]) -> dict[str, float]:
    """Return the Frobenius norm of each corrected change over that of the proposed one; 0 where nothing was proposed."""
    if not corrected:
        return {}
    # one read for the norms of all matrices
    norms = torch.stack([delta.norm_on_device() for n, after in corrected.items() for delta in (after, proposed[n])])
    pairs = norms.view(-1, 2).tolist()
    return {n: after / before if before else 0.0 for n, (after, before) in zip(corrected, pairs, strict=True)}
