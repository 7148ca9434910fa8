"""SimIE: make any weight editor lifelong by recursive least squares (Guo et al., ICML 2025; editors.md §13).

Per edited matrix, ``P_t = P_{t−1} + K_t K_tᵀ`` with ``P_0 = λI``, and ``W_t = W_{t−1} + E_t K_t K_tᵀ P_t⁻¹`` (paper eq. 5).
``K_t`` are the keys of all tokens of prompt and target; ``E_t`` is the base editor's change (``sequential``) or
``W_0 + Δ_t − W_{t−1}`` with ``Δ_t`` computed on the pristine weights (``init``; Remark D.1). Never more than ``k``
right-hand sides: ``E K (P⁻¹K)ᵀ``. Matrices that read the same input (the gate and up projections of a block) share one ``P``.

In ``init`` mode keys and Δ do not depend on λ, and ``W_T(λ) = W_0 + A (λI + C)⁻¹`` with ``A = Σ Δ K Kᵀ``, ``C = Σ K Kᵀ``
(editors.md §13.8). The back end ``closed64`` remembers those, never changes the model, and solves when it is asked for a view;
one pass over the edits then serves every λ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Tag, model_validator

from raysweep.artifacts import ArtifactRequest
from raysweep.config.schema import Count, Positive, Spec, TextSpec
from raysweep.editors.base import BaseWrapper, EditorConfig, EditStep, Proposal, ReportView
from raysweep.lazy import lazy
from raysweep.models.patches import Delta, Dense, LowRank, WeightDelta
from raysweep.records import EditRecord

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from raysweep.artifacts import Artifact
    from raysweep.editors.base import AnyEditor
    from raysweep.editors.linalg import least_squares
    from raysweep.editors.locate import keys, second_moments
    from raysweep.models import ledger
    from raysweep.models.lm import LanguageModel
else:
    torch = lazy("torch")
    keys = lazy("raysweep.editors.locate.keys")
    least_squares = lazy("raysweep.editors.linalg.least_squares")
    second_moments = lazy("raysweep.editors.locate.second_moments")
    ledger = lazy("raysweep.models.ledger")


class Energy(Spec):
    """λ in units of the mean energy of keys: ``λ = energy · E‖k‖²``, so that one value means the same on every layer and model.

    The mean is taken on the pristine model, for each input of an edited matrix, over every token of ``SimIEConfig.text``. It is
    an artifact of model and text: no trial's edits, their order, its seed, mode or back end move it.

    Attributes:
        energy (mean energy of a key): λ as a multiple of it.
    """

    energy: Positive


def _form(lam: Any) -> str:
    """Return in which form λ is given."""
    return "mapping" if isinstance(lam, Mapping | Energy) else "word" if lam == "gcv" else "number"


Ridge = Annotated[
    Annotated[Positive, Tag("number")] | Annotated[Energy, Tag("mapping")] | Annotated[Literal["gcv"], Tag("word")],
    Discriminator(_form),
]
CANDIDATES = tuple(10 ** (i / 4) for i in range(-24, 9))  # λ for `gcv`, in mean energies: 1e-6 … 100, four per decade


class SimIEConfig(EditorConfig):
    """Hyper-parameters of SimIE.

    Attributes:
        lam (energy of a key): λ > 0 of the ridge: a number, in absolute units of key energy (published), or
            ``{energy: x}``, x times the mean energy of a key (:class:`Energy`). Swept as ``wrap.simie.lam`` or
            ``wrap.simie.lam.energy``. ``gcv`` (closed64 only): for each input at each view, the candidate with the
            least generalised cross-validation error, taken over the matrices that read the input. Each input is a
            regression of its own, so there is no reason to tie their λ.
        mode: ``sequential`` edits the model as it stands (published for ROME, MEMIT, AlphaEdit⁻); ``init`` edits the
            pristine weights each time (published for MEND).
        backend: ``woodbury64`` (O(d²k) recursion in fp64), ``chol64`` (one Cholesky per edit), ``svd`` (hermitian
            pseudo-inverse in fp64), ``ref_fp32_lu`` (the published fp32 solve with ``d_out`` right-hand sides), ``closed64``
            (``init`` mode only: the model is left alone, the closed form is solved for each view, in fp64).
        keys: take keys ``before`` the base edit (published) or ``after`` it.
        refresh (updates): recompute the inverse from P after this many updates (woodbury64).
        tolerance: recompute it when the drift exceeds this (woodbury64): the relative error of the regression's last solution,
            looked at every eighth update (:func:`raysweep.editors.linalg.least_squares.woodbury`).
        text: where the mean energy of keys is taken from, if λ is in its units.
    """

    lam: Ridge = 10.0
    mode: Literal["sequential", "init"] = "sequential"
    backend: Literal["woodbury64", "chol64", "svd", "ref_fp32_lu", "closed64"] = "woodbury64"
    keys: Literal["before", "after"] = "before"
    refresh: Count = 1000
    tolerance: Positive = 1e-6
    text: TextSpec = TextSpec(tokens=4096)

    @model_validator(mode="after")
    def _fits(self) -> SimIEConfig:
        if self.backend == "closed64" and self.mode != "init":
            raise ValueError("mode must be init for backend closed64, whose form holds on pristine weights only")
        if self.lam == "gcv" and self.backend != "closed64":
            raise ValueError("backend must be closed64 for lam gcv: a recursion cannot change its λ")
        return self


class SimIE(BaseWrapper[SimIEConfig, dict[str, Any]]):
    """An editor made of a weight editor: the inner one proposes, the ridge regression over all edits so far disposes."""

    name = "simie"
    version = 2
    config_type = SimIEConfig
    paper = "Guo et al., ICML 2025, PMLR 267:20793–20824"
    artifact_kinds = ("energy",)
    shareable: ClassVar[Mapping[str, Mapping[str, str]]] = {"lam": {"mode": "init", "backend": "closed64"}}

    @classmethod
    def around(cls, config: SimIEConfig, inner: AnyEditor) -> SimIE:
        """Return the closed form or the recursion around *inner*, as ``config.backend`` says."""
        return ClosedSimIE(config, inner) if config.backend == "closed64" else SimIE(config, inner)

    @classmethod
    def output_kind(cls, config: SimIEConfig) -> str:
        """Return what the wrapped editor is to a wrapper around it."""
        return "views" if config.backend == "closed64" else "weights"

    @classmethod
    def state_bytes(cls, config: SimIEConfig, matrices: Sequence[tuple[int, int]], columns: int) -> Mapping[str, int]:
        """Return the bytes of the memory after *columns* keys, each matrix ``[d_out, d_in]`` with an input of its own."""
        keys, totals = 0, 0
        for out, width in matrices:
            if config.backend == "closed64":
                keys += 8 * width * min(columns, width)
                totals += 8 * out * min(columns, width)
            elif config.backend == "woodbury64":
                keys += 2 * 8 * width * min(columns, width)
                totals += 8 * min(out * width, columns * (out + width))
            else:
                keys += (4 if config.backend == "ref_fp32_lu" else 8) * width**2
                totals += 4 * out * width
            totals += 4 * out * width if config.backend != "closed64" else 0
        return {"keys": keys, "totals": totals if config.mode == "init" else 0}

    def artifact_requests(self, lm: LanguageModel) -> Mapping[str, ArtifactRequest]:
        """Ask for what the inner editor asks for and, if λ is in its units, for the mean energy of each input's keys."""
        found = dict(self.inner.artifact_requests(lm))
        if isinstance(self.config.lam, Energy) or self.config.backend == "closed64":
            inputs = {_input(lm, n): n.rpartition(".")[0] for n in self._matrices(lm)}
            found |= {f"energy/{i}": second_moments.energy_request(lm, m, self.config.text) for i, m in inputs.items()}
        return found

    def begin(self, lm: LanguageModel, artifacts: Mapping[str, Artifact]) -> dict[str, Any]:
        """Remember λ of each input; in ``init`` mode also each matrix's pristine weights and total change ``S = 0``."""
        recursive = self.config.backend == "woodbury64"
        state: dict[str, Any] = {"inner": self.inner.begin(lm, artifacts), "inputs": {}, "matrices": {}}
        energies = self._energies(lm, artifacts)
        for name in self._matrices(lm):
            weight = lm.logical(name)
            source = _input(lm, name)
            if source not in state["inputs"]:
                state["inputs"][source] = self._started(self._ridge(energies.get(source, 1.0)), weight)
            part: dict[str, Any] = {}
            if self.config.mode == "init":
                pristine = weight.float().clone(memory_format=torch.contiguous_format)
                total: dict[str, Any] = (
                    {"left": [], "right": []} if recursive else {"total": torch.zeros_like(pristine)}
                )
                part = {"pristine": pristine, **total}
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
            home = {n: ledger.to_stored_layout(lm, n, p["pristine"]).contiguous() for n, p in parts.items()}
        with ledger.substituted(lm, home):
            step = self.inner.edit(lm, batch, state["inner"], artifacts=artifacts, rng=rng)
            assert isinstance(step.patch, WeightDelta)
            proposed = step.patch.deltas
            found = self._keys(lm, batch, list(parts), proposed)
        deltas: dict[str, Delta] = {}
        stats = dict(step.stats)
        after: dict[str, Any] = {"inner": step.state, "inputs": {}, "matrices": {}}
        absorbed: dict[str, tuple[Tensor, Tensor, float | None]] = {}  # by input: keys, gain (or P if solved), drift
        for name, part in parts.items():
            source = _input(lm, name)
            if source not in absorbed:
                columns = found[name.rpartition(".")[0]]
                after["inputs"][source], absorbed[source] = self._absorb(state["inputs"][source], columns)
                stats[f"simie_lambda/{source}"] = state["inputs"][source]["lam"]
            columns, gain, drift = absorbed[source]
            deltas[name] = self._correct(part, proposed[name], columns, gain)
            after["matrices"][name] = _advanced(part, deltas[name])
            if drift is not None:
                stats[f"simie_drift/{name}"] = drift
            stats[f"simie_kept/{name}"] = _share(deltas[name], proposed[name])
        return EditStep(WeightDelta(deltas), after, stats)

    def _keys(
        self, lm: LanguageModel, batch: Sequence[EditRecord], names: Sequence[str], proposed: Mapping[str, Delta]
    ) -> dict[str, Tensor]:
        """Return the keys ``[d_in, k]`` of all tokens of *batch* by module, before or after the *proposed* change."""
        modules = [n.rpartition(".")[0] for n in names]
        with ledger.applied(lm, proposed if self.config.keys == "after" else {}):
            return keys.all_token_keys(lm, batch, modules) if modules else {}

    def _matrices(self, lm: LanguageModel) -> list[str]:
        return [n for n in self.inner.edited_parameters(lm) if lm.weight(n).dim() == 2]

    def _energies(self, lm: LanguageModel, artifacts: Mapping[str, Artifact]) -> dict[str, float]:
        """Return the mean energy of the keys of each input for which it was asked."""
        sources = dict.fromkeys(_input(lm, n) for n in self._matrices(lm))
        return {s: float(artifacts[f"energy/{s}"].meta["energy"]) for s in sources if f"energy/{s}" in artifacts}

    def _ridge(self, energy: float) -> float:
        """Return λ of the matrices that read an input whose keys have the mean *energy*."""
        lam = self.config.lam
        return lam.energy * energy if isinstance(lam, Energy) else float(lam)

    def _started(self, lam: float, weight: Tensor) -> dict[str, Any]:
        """Return the memory of the input of *weight* before the first edit: λ and, unless it is left implicit, ``P = λI``."""
        if self.config.backend == "woodbury64":
            return _kept(least_squares.Inverse(lam))
        dtype = torch.float32 if self.config.backend == "ref_fp32_lu" else torch.float64
        return {"lam": lam, "gram": lam * torch.eye(weight.shape[1], dtype=dtype, device=weight.device)}

    def _absorb(
        self, kept: Mapping[str, Any], columns: Tensor
    ) -> tuple[dict[str, Any], tuple[Tensor, Tensor, float | None]]:
        """Take in the keys of one input; return its new memory, and the keys, ``G = P⁻¹K`` and the drift, if it was measured.

        In ``ref_fp32_lu`` there is no gain: ``P`` itself takes its place.
        """
        if self.config.backend == "woodbury64":
            refresh, tolerance = self.config.refresh, self.config.tolerance
            state, gain, drift = least_squares.woodbury(
                least_squares.Inverse(**kept), columns, refresh=refresh, tolerance=tolerance
            )
            return _kept(state), (columns.double(), gain, drift)
        if self.config.backend == "ref_fp32_lu":
            columns = columns.float()
            gram = kept["gram"] + columns @ columns.T
            return {**kept, "gram": gram}, (columns, gram, None)
        columns = columns.double()
        solve = least_squares.cholesky_gain if self.config.backend == "chol64" else least_squares.pinv_gain
        gram, gain = solve(kept["gram"], columns)
        return {**kept, "gram": gram}, (columns, gain, None)

    def _correct(self, part: Mapping[str, Any], delta: Delta, columns: Tensor, gain: Tensor) -> Delta:
        """Return the corrected change of one matrix; ``ref_fp32_lu`` solves as published (quirks Q38, Q40)."""
        if self.config.backend == "ref_fp32_lu":
            change = delta.dense().float()
            if "total" in part:
                change = change - part["total"]
            right = change @ columns @ columns.T
            return Dense(torch.linalg.solve(gain.T, right.T).T)
        values = delta.times(columns)  # Δ K [d_out, k]
        if "total" in part:
            values = values - part["total"].double() @ columns
        elif "left" in part:
            rows = columns.T
            before = rows @ part["base"].T if "base" in part else rows.new_zeros(len(rows), len(values))
            values = values - least_squares.through(before, rows, part["right"], part["left"]).T
        return LowRank(values, gain.T)


def _input(lm: LanguageModel, name: str) -> str:
    """Return the name of what enters the module of weight *name*."""
    return lm.layout.input_of(name.rpartition(".")[0])


def _kept(state: least_squares.Inverse) -> dict[str, Any]:
    """Return *state* as plain data."""
    found = {f.name: getattr(state, f.name) for f in fields(state)}
    return {k: list(v) if isinstance(v, Sequence) else v for k, v in found.items() if v is not None}


def _advanced(part: Mapping[str, Any], change: Delta) -> dict[str, Any]:
    """Return what to remember of one matrix after *change*: nothing, or in ``init`` mode its new total change ``S``.

    ``woodbury64`` keeps ``S = base + Σ Lᵀ R`` in fp64 with the last changes as rows, added up when they cost more than the sum.
    """
    if "total" in part:
        return {**part, "total": part["total"] + change.dense().float()}
    if "left" not in part:
        return dict(part)
    assert isinstance(change, LowRank)
    left, right = least_squares.pushed(part["left"], change.left.T), least_squares.pushed(part["right"], change.right)
    rows = change.left.shape[0] * change.right.shape[1] // (change.left.shape[0] + change.right.shape[1])
    if least_squares.length(left) < (rows // 4 if "base" in part else rows):
        return {**part, "left": left, "right": right}
    return {**part, "base": least_squares.folded(part.get("base"), left, right), "left": [], "right": []}


def _share(corrected: Delta, proposed: Delta) -> float:
    """Return the Frobenius norm of the corrected change over that of the proposed one."""
    before = proposed.norm()
    return corrected.norm() / before if before else 0.0


class ClosedSimIE(SimIE):
    """SimIE in ``init`` mode by its closed form: it remembers keys and values, and reports ``W_0 + A (λI + C)⁻¹``.

    The memory does not depend on λ. Of each input it holds the keys as rows until there are d of them, then ``C``, each with the
    rows since the last sum; of each matrix the values ``Δ K`` likewise, then ``Aᵀ``; all in fp64.
    """

    def edit_dependencies(self) -> Mapping[str, Any] | None:
        """Return everything but λ."""
        found = self.description()
        return {**found, "config": {k: v for k, v in found["config"].items() if k != "lam"}}

    def begin(self, lm: LanguageModel, artifacts: Mapping[str, Artifact]) -> dict[str, Any]:
        """Remember the mean energy of each input's keys."""
        energies = self._energies(lm, artifacts)
        return {
            "inner": self.inner.begin(lm, artifacts),
            "inputs": {source: {"energy": energy, "count": 0, "keys": []} for source, energy in energies.items()},
            "matrices": {name: {"values": [], "square": 0.0} for name in self._matrices(lm)},
        }

    def edit(
        self,
        lm: LanguageModel,
        batch: Sequence[EditRecord],
        state: dict[str, Any],
        *,
        artifacts: Mapping[str, Artifact],
        rng: torch.Generator,
    ) -> EditStep[dict[str, Any]]:
        """Let the inner editor propose on the pristine weights; remember keys and values, change nothing."""
        return self._taken_in(lm, state, *self._proposed(lm, batch, state["inner"], artifacts=artifacts, rng=rng))

    def can_propose(self) -> bool:
        """Tell whether edits may be computed apart: the wrapped editor must have no memory."""
        return self.inner.is_stateless

    def propose(
        self,
        lm: LanguageModel,
        batch: Sequence[EditRecord],
        *,
        artifacts: Mapping[str, Artifact],
        rng: torch.Generator,
    ) -> dict[str, Any]:
        """Return the keys ``K [k, d]`` of each input and the values ``Δ K`` as rows ``[k, d_out]`` of each matrix, in fp64."""
        return self._proposed(lm, batch, None, artifacts=artifacts, rng=rng)[0]

    @property
    def group_size(self) -> int:
        """That of the wrapped editor."""
        return self.inner.group_size

    def propose_many(
        self,
        lm: LanguageModel,
        batches: Sequence[Sequence[EditRecord]],
        *,
        artifacts: Mapping[str, Artifact],
        rngs: Sequence[torch.Generator],
    ) -> list[Proposal]:
        """Return a proposal per batch; the wrapped editor finds all edits together."""
        steps = self.inner.edit_many(lm, batches, artifacts=artifacts, rngs=rngs)
        return [self._gathered(lm, batch, step) for batch, step in zip(batches, steps, strict=True)]

    def absorb(self, lm: LanguageModel, state: dict[str, Any], proposal: Mapping[str, Any]) -> EditStep[dict[str, Any]]:
        """Remember the keys and values of one proposal."""
        return self._taken_in(lm, state, proposal, state["inner"])

    def _proposed(
        self,
        lm: LanguageModel,
        batch: Sequence[EditRecord],
        inner: Any,
        *,
        artifacts: Mapping[str, Artifact],
        rng: torch.Generator,
    ) -> tuple[dict[str, Any], Any]:
        """Return what *batch* adds, and the wrapped editor's new state."""
        step = self.inner.edit(lm, batch, inner, artifacts=artifacts, rng=rng)
        return self._gathered(lm, batch, step), step.state

    def _gathered(self, lm: LanguageModel, batch: Sequence[EditRecord], step: EditStep[Any]) -> dict[str, Any]:
        """Return the keys of *batch* and the values of the wrapped editor's *step*."""
        assert isinstance(step.patch, WeightDelta)
        names = self._matrices(lm)
        found = self._keys(lm, batch, names, step.patch.deltas)
        columns = {n: found[n.rpartition(".")[0]].double() for n in names}
        return {
            "keys": {_input(lm, n): c.T for n, c in columns.items()},
            "values": {n: step.patch.deltas[n].times(c).T for n, c in columns.items()},
            "stats": dict(step.stats),
        }

    def _taken_in(
        self, lm: LanguageModel, state: dict[str, Any], proposal: Mapping[str, Any], inner: Any
    ) -> EditStep[dict[str, Any]]:
        """Return the step that adds *proposal* to the memory; the weights stay as they are."""
        inputs = {source: _taken(kept, proposal["keys"][source]) for source, kept in state["inputs"].items()}
        matrices = {
            name: _summed(part, proposal["values"][name], inputs[_input(lm, name)])
            for name, part in state["matrices"].items()
        }
        for source, kept in inputs.items():
            if _full(kept):
                gram = least_squares.squared(kept.get("gram"), kept["keys"])
                inputs[source] = {**kept, "gram": gram, "keys": []}
        after = {"inner": inner, "inputs": inputs, "matrices": matrices}
        return EditStep(WeightDelta({}), after, proposal["stats"])

    def report_view(
        self, lm: LanguageModel, totals: Callable[[], Mapping[str, Tensor]], state: dict[str, Any]
    ) -> ReportView:
        """Return ``A (λI + C)⁻¹`` of each matrix."""
        deltas: dict[str, Delta] = {}
        stats: dict[str, float] = {}
        for source, kept in state["inputs"].items():
            parts = {n: p for n, p in state["matrices"].items() if _input(lm, n) == source}
            normal = _normal(kept, list(parts.values()))
            if self.config.lam == "gcv":
                lams = [c * kept["energy"] for c in CANDIDATES]
                errors = normal.gcv(lams, kept["count"], sum(p["square"] for p in parts.values()))
                stats[f"simie_gcv/{source}"], lam = min(zip(errors, lams, strict=True))
            else:
                lam = self._ridge(kept["energy"])
            stats[f"simie_lambda/{source}"] = lam
            solved, start = normal.solve(lam), 0
            for name in parts:
                stop = start + lm.logical(name).shape[0]
                found = solved[:, start:stop].T
                deltas[name] = Dense(found) if normal.keys is None else LowRank(found, normal.keys)
                stats[f"drift/{name}"] = deltas[name].norm()
                start = stop
        return ReportView(WeightDelta(deltas), stats)


def _taken(kept: Mapping[str, Any], rows: Tensor) -> dict[str, Any]:
    """Return the memory of one input with the keys *rows* ``[k, d]`` in it."""
    return {**kept, "count": kept["count"] + len(rows), "keys": least_squares.pushed(kept["keys"], rows)}


def _full(kept: Mapping[str, Any]) -> bool:
    """Tell whether the keys held as rows should be summed: all d of them, later every d / 8."""
    held = least_squares.length(kept["keys"])
    return bool(held) and held >= kept["keys"][0].shape[1] // (8 if "gram" in kept else 1)


def _summed(part: Mapping[str, Any], rows: Tensor, kept: Mapping[str, Any]) -> dict[str, Any]:
    """Return the memory of one matrix with the values *rows* ``[k, d_out]`` in it, summed when the keys of its input will be."""
    values = least_squares.pushed(part["values"], rows)
    part = {**part, "values": values, "square": part["square"] + float(rows.square().sum())}
    if not _full(kept):
        return part
    return {**part, "sums": least_squares.folded(part.get("sums"), kept["keys"], values), "values": []}


def _normal(kept: Mapping[str, Any], parts: Sequence[Mapping[str, Any]]) -> least_squares.Normal:
    """Return the normal equations of the matrices *parts*, side by side, that read the input *kept*."""
    rows = kept["keys"]
    if "gram" not in kept:
        return least_squares.Normal.dual(torch.cat(rows), torch.cat([torch.cat(p["values"]) for p in parts], dim=1))
    sums = torch.cat([least_squares.folded(p["sums"], rows, p["values"]) for p in parts], dim=1)
    return least_squares.Normal(least_squares.squared(kept["gram"], rows), sums)
