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
from itertools import islice
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
        update: with ``woodbury64``, what tells whether the gain may be used.
    """

    keys: Tensor
    gain: Tensor
    update: ridge.RidgeUpdate | None = None


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
        # Matrices that read one input have the same keys: they are absorbed once.
        columns: dict[str, Tensor] = {}
        for name in memories:
            columns.setdefault(input_of(lm, name), by_module[name.rpartition(".")[0]])
        absorbed = {s: self.absorb_keys(state["inputs"][s], keys) for s, keys in columns.items()}
        deltas = self._correct_all(lm, memories, proposed, absorbed)
        checks, ratios = read_numbers(absorbed, deltas, proposed)
        failed = [s for s in checks if not self._stands(absorbed[s][1], checks[s])]
        if failed:
            absorbed |= {s: self.absorb_anew(state["inputs"][s], columns[s]) for s in failed}
            deltas = self._correct_all(lm, memories, proposed, absorbed)
            checks, ratios = read_numbers(absorbed, deltas, proposed)
        after: RecursiveState = {
            "inner": step.state,
            "inputs": {s: memory for s, (memory, _) in absorbed.items()},
            "matrices": {n: advance_total(memory, deltas[n]) for n, memory in memories.items()},
        }
        drifts = {s: u.drift(checks[s]) for s, (_, a) in absorbed.items() if (u := a.update) is not None}
        stats = dict(step.stats)
        for name in memories:
            source = input_of(lm, name)
            stats[f"simie_lambda/{source}"] = state["inputs"][source]["lam"]
            drift = drifts.get(source)
            if drift is not None:
                stats[f"simie_drift/{name}"] = drift
            stats[f"simie_kept/{name}"] = ratios[name]
        return EditStep(WeightDelta(deltas), after, stats)

    def _correct_all(
        self,
        lm: LanguageModel,
        memories: Mapping[str, MatrixMemory],
        proposed: Mapping[str, Delta],
        absorbed: Mapping[str, tuple[InputMemory, Absorbed]],
    ) -> dict[str, Delta]:
        """Return the corrected change of each matrix."""
        return {n: self.correct(memory, proposed[n], absorbed[input_of(lm, n)][1]) for n, memory in memories.items()}

    def _stands(self, absorbed: Absorbed, check: Sequence[float]) -> bool:
        return absorbed.update is None or absorbed.update.stands(check, self.config.tolerance)

    def initial_memory(self, lam: float, weight: Tensor) -> InputMemory:
        """Return the memory of the input of *weight* before the first edit: λ and, unless it is left implicit, ``P = λI``."""
        if self.config.backend == "woodbury64":
            return _as_memory(ridge.RidgeInverse(lam))
        dtype = torch.float32 if self.config.backend == "ref_fp32_lu" else torch.float64
        return {"lam": lam, "gram": lam * torch.eye(weight.shape[1], dtype=dtype, device=weight.device)}

    def absorb_keys(self, memory: InputMemory, columns: Tensor) -> tuple[InputMemory, Absorbed]:
        """Take in the keys ``[d_in, k]`` of one input; return its new memory, and what the matrices that read it need.

        With ``woodbury64`` nobody has looked yet whether the update stands; where it does not, :meth:`absorb_anew` takes its place.
        """
        if self.config.backend == "woodbury64":
            update = ridge.attempt(ridge.RidgeInverse(**memory), columns, refresh=self.config.refresh)
            return _as_memory(update.state), Absorbed(columns.double(), update.gain, update)
        if self.config.backend == "ref_fp32_lu":
            columns = columns.float()
            gram = memory["gram"] + columns @ columns.T
            return {**memory, "gram": gram}, Absorbed(columns, gram)
        columns = columns.double()
        solve = ridge.cholesky_gain if self.config.backend == "chol64" else ridge.pinv_gain
        gram, gain = solve(memory["gram"], columns)
        return {**memory, "gram": gram}, Absorbed(columns, gain)

    def absorb_anew(self, memory: InputMemory, columns: Tensor) -> tuple[InputMemory, Absorbed]:
        """Take in the keys ``[d_in, k]`` as :meth:`absorb_keys` does, the inverse computed from ``P`` (``woodbury64``)."""
        update = ridge.renew(ridge.RidgeInverse(**memory), columns)
        return _as_memory(update.state), Absorbed(columns.double(), update.gain, update)

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


def read_numbers(
    absorbed: Mapping[str, tuple[InputMemory, Absorbed]], corrected: Mapping[str, Delta], proposed: Mapping[str, Delta]
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Read what tells whether each input's update stands, and how much of each matrix's change is kept, all at once.

    Returns:
        The checks of the updates that have one (``woodbury64``) by input, and by matrix the Frobenius norm of the corrected
        change over that of the proposed one; 0 where nothing was proposed.
    """
    checks = {s: a.update.check for s, (_, a) in absorbed.items() if a.update is not None}
    norms = [delta.norm_on_device()[None] for n, after in corrected.items() for delta in (after, proposed[n])]
    if not norms:
        return {}, {}
    numbers = iter(torch.cat([*checks.values(), *norms]).tolist())
    found = {s: list(islice(numbers, len(check))) for s, check in checks.items()}
    pairs = zip(numbers, numbers, strict=True)
    return found, {n: after / before if before else 0.0 for n, (after, before) in zip(corrected, pairs, strict=True)}
