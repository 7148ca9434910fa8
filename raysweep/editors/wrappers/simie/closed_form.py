"""SimIE in ``init`` mode by its closed form: edits are remembered, the regression is solved when the model is looked at.

In ``init`` mode keys and the inner editor's change do not depend on λ, and the recursion of ``recursive.py`` telescopes to::

    W_T(λ) = W_0 + A (λI + C)⁻¹        A = Σ_t Δ_t K_t K_tᵀ  [d_out, d_in],   C = Σ_t K_t K_tᵀ  [d_in, d_in]

So one run over the records serves every λ (docs/methods/simie.md). While fewer than ``d_in`` keys are held, keys and values
``Δ K`` themselves are kept as rows, and the regression is solved over the distinct keys.

Shape legend: ``k`` keys of one edit, ``d_in``, ``d_out`` of a matrix; keys ``[k, d_in]`` and values ``[k, d_out]`` are rows here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Required, TypeAlias, TypedDict, Unpack, cast

from raysweep.editors.base import EditInputs, EditStep, JointInputs, Proposal, ReportView
from raysweep.editors.wrappers.simie.common import BaseSimIE, SimIEState, input_of
from raysweep.editors.wrappers.simie.config import CANDIDATES
from raysweep.lazy import lazy
from raysweep.models.patches import Delta, Dense, LowRank, WeightDelta
from raysweep.records import EditRecord

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from raysweep.artifacts import Artifact
    from raysweep.editors.linalg import chunks, ridge
    from raysweep.models.lm import LanguageModel
else:
    torch = lazy("torch")
    chunks, ridge = lazy("raysweep.editors.linalg.chunks"), lazy("raysweep.editors.linalg.ridge")


class InputMemory(TypedDict, total=False):
    """What is remembered of one input.

    Attributes:
        energy: mean energy of its keys on the pristine model.
        count: keys so far.
        keys: those not yet in ``gram``, as chunks of rows ``[n_i, d_in]``: a list, so that an edit copies no earlier one.
        gram: ``C [d_in, d_in]`` of the others; there once ``d_in`` keys are in.
    """

    energy: Required[float]
    count: Required[int]
    keys: Required[list[Tensor]]
    gram: Tensor


class MatrixMemory(TypedDict, total=False):
    """What is remembered of one matrix.

    Attributes:
        values: ``Δ K`` of the input's ``keys``, as chunks of rows ``[n_i, d_out]``.
        square: the sum of squares of all values.
        sums: ``Aᵀ [d_in, d_out]`` of the other values; there where the input has ``gram``.
    """

    values: Required[list[Tensor]]
    square: Required[float]
    sums: Tensor


ClosedFormState: TypeAlias = SimIEState[InputMemory, MatrixMemory]
"""State of :class:`ClosedFormSimIE`; its memories are in fp64."""


class KeysAndValues(TypedDict):
    """What a batch adds: keys ``[k, d_in]`` by input, values ``[k, d_out]`` by parameter name, the inner editor's numbers."""

    keys: dict[str, Tensor]
    values: dict[str, Tensor]
    stats: dict[str, float]


class ClosedFormSimIE(BaseSimIE[ClosedFormState]):
    """Remembers keys and values of all edits and reports ``W_0 + A (λI + C)⁻¹``; the weights stay pristine."""

    def edit_dependencies(self) -> Mapping[str, object] | None:
        """Return everything but λ."""
        return self.description_without("lam")

    def begin(self, lm: LanguageModel, artifacts: Mapping[str, Artifact]) -> ClosedFormState:
        """Remember the mean energy of each input's keys."""
        energies = self._energies(lm, artifacts)
        return {
            "inner": self.inner.begin(lm, artifacts),
            "inputs": {source: {"energy": energy, "count": 0, "keys": []} for source, energy in energies.items()},
            "matrices": {name: {"values": [], "square": 0.0} for name in self._matrices(lm)},
        }

    def edit(
        self, lm: LanguageModel, batch: Sequence[EditRecord], state: ClosedFormState, **given: Unpack[EditInputs]
    ) -> EditStep[ClosedFormState]:
        """Let the inner editor propose on the pristine weights; remember keys and values, change nothing."""
        step = self.inner.edit(lm, batch, state["inner"], **given)
        return self._remember(lm, state, self._keys_and_values(lm, batch, step), step.state)

    def can_propose(self) -> bool:
        """Whether edits may be computed apart: the wrapped editor must have no memory."""
        return self.inner.is_stateless

    def propose(self, lm: LanguageModel, batch: Sequence[EditRecord], **given: Unpack[EditInputs]) -> Proposal:
        """Return the keys ``K [k, d_in]`` of each input and the values ``Δ K [k, d_out]`` of each matrix, as rows in fp64."""
        step = self.inner.edit(lm, batch, None, **given)
        return self._keys_and_values(lm, batch, step)

    @property
    def group_size(self) -> int:
        """That of the wrapped editor."""
        return self.inner.group_size

    def propose_many(
        self, lm: LanguageModel, batches: Sequence[Sequence[EditRecord]], **given: Unpack[JointInputs]
    ) -> list[Proposal]:
        """Return a proposal per batch; the wrapped editor finds all edits together."""
        steps = self.inner.edit_many(lm, batches, **given)
        return [self._keys_and_values(lm, batch, step) for batch, step in zip(batches, steps, strict=True)]

    def absorb(self, lm: LanguageModel, state: ClosedFormState, proposal: Proposal) -> EditStep[ClosedFormState]:
        """Remember the keys and values of one proposal."""
        # what propose returned, here or elsewhere
        return self._remember(lm, state, cast("KeysAndValues", proposal), state["inner"])

    def _keys_and_values(self, lm: LanguageModel, batch: Sequence[EditRecord], step: EditStep[object]) -> KeysAndValues:
        """Return the keys of *batch* and the values of the wrapped editor's *step*."""
        assert isinstance(step.patch, WeightDelta)
        names = self._matrices(lm)
        by_module = self._keys(lm, batch, names, step.patch.deltas)
        # Values are computed from the change's factors, Δ K [d_out, k], without the change itself.
        columns = {n: by_module[n.rpartition(".")[0]].double() for n in names}
        return {
            "keys": {input_of(lm, n): c.T for n, c in columns.items()},
            "values": {n: step.patch.deltas[n].times(c).T for n, c in columns.items()},
            "stats": dict(step.stats),
        }

    def _remember(
        self, lm: LanguageModel, state: ClosedFormState, proposal: KeysAndValues, inner: object
    ) -> EditStep[ClosedFormState]:
        """Return the step that adds *proposal* to the memory; the weights stay as they are."""
        inputs = {source: _with_keys(memory, proposal["keys"][source]) for source, memory in state["inputs"].items()}
        matrices = {
            name: _with_values(memory, proposal["values"][name], inputs[input_of(lm, name)])
            for name, memory in state["matrices"].items()
        }
        # The values above were summed against the keys as rows, so keys are summed into C only now.
        for source, memory in inputs.items():
            if _should_sum(memory):
                gram = chunks.add_gram(memory.get("gram"), memory["keys"])
                inputs[source] = {**memory, "gram": gram, "keys": []}
        after: ClosedFormState = {"inner": inner, "inputs": inputs, "matrices": matrices}
        return EditStep(WeightDelta({}), after, proposal["stats"])

    def report_view(
        self, lm: LanguageModel, totals: Callable[[], Mapping[str, Tensor]], state: ClosedFormState
    ) -> ReportView:
        """Return ``A (λI + C)⁻¹`` of each matrix; matrices that read the same input are solved side by side."""
        deltas: dict[str, Delta] = {}
        stats: dict[str, float] = {}
        for source, memory in state["inputs"].items():
            readers = {n: m for n, m in state["matrices"].items() if input_of(lm, n) == source}
            normal = _normal_equations(memory, list(readers.values()))
            # The candidate with the least error, over all matrices that read this input.
            if self.config.lam == "gcv":
                lams = [c * memory["energy"] for c in CANDIDATES]
                errors = normal.gcv(lams, memory["count"], sum(m["square"] for m in readers.values()))
                stats[f"simie_gcv/{source}"], lam = min(zip(errors, lams, strict=True))
            else:
                lam = self._ridge(memory["energy"])
            stats[f"simie_lambda/{source}"] = lam
            solution, start = normal.solve(lam), 0
            for name in readers:
                # columns start:stop of the solution belong to this matrix; S = Xᵀ, or Xᵀ K̃ over the distinct keys
                stop = start + lm.logical(name).shape[0]
                left = solution[:, start:stop].T
                deltas[name] = Dense(left) if normal.keys is None else LowRank(left, normal.keys)
                stats[f"drift/{name}"] = deltas[name].norm()
                start = stop
        return ReportView(WeightDelta(deltas), stats)


def _with_keys(memory: InputMemory, rows: Tensor) -> InputMemory:
    """Return the memory of one input with the keys *rows* ``[k, d_in]`` in it."""
    return {**memory, "count": memory["count"] + len(rows), "keys": chunks.append_chunk(memory["keys"], rows)}


def _should_sum(memory: InputMemory) -> bool:
    """Return whether the keys held as rows should be summed: all ``d_in`` of them, later every ``d_in / 8``."""
    count = chunks.n_rows(memory["keys"])
    return bool(count) and count >= memory["keys"][0].shape[1] // (8 if "gram" in memory else 1)


def _with_values(memory: MatrixMemory, rows: Tensor, source: InputMemory) -> MatrixMemory:
    """Return the memory of one matrix with the values *rows* ``[k, d_out]`` in it, summed when the keys of its input will be."""
    values = chunks.append_chunk(memory["values"], rows)
    memory = {**memory, "values": values, "square": memory["square"] + float(rows.square().sum())}
    if not _should_sum(source):
        return memory
    return {**memory, "sums": chunks.fold_chunks(memory.get("sums"), source["keys"], values), "values": []}


def _normal_equations(memory: InputMemory, readers: Sequence[MatrixMemory]) -> ridge.NormalEquations:
    """Return the normal equations of the matrices *readers*, side by side, that read the input *memory*."""
    rows = memory["keys"]
    # Fewer keys than their width: solve over the distinct ones (dual). Else over C (primal).
    if "gram" not in memory:
        values = torch.cat([torch.cat(m["values"]) for m in readers], dim=1)
        return ridge.NormalEquations.dual(torch.cat(rows), values)
    sums = torch.cat([chunks.fold_chunks(m["sums"], rows, m["values"]) for m in readers], dim=1)
    return ridge.NormalEquations(chunks.add_gram(memory["gram"], rows), sums)
