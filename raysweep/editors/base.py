"""What an editor is: it proposes a patch for a batch of records and leaves the model bit-identical.

Shape legend of this package: ``d_in`` width of a key (input of the edited linear map), ``d_out`` width of a value,
``n`` records of a batch, ``k`` keys (columns). Deltas are in the *logical* orientation ``[d_out, d_in]``; only
``models/ledger.py`` knows how a parameter is stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, Literal, Protocol, TypeVar, runtime_checkable

from pydantic import Field, model_validator

from raysweep.config.schema import Count, DataSpec, NonNegative, Positive, Spec, TextSpec
from raysweep.lazy import lazy
from raysweep.records import EditRecord

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from raysweep.artifacts import Artifact
    from raysweep.models.lm import LanguageModel

S = TypeVar("S")
_torch = lazy("torch")


class EditorConfig(Spec):
    """Base of every editor's and wrapper's configuration: frozen, unknown keys are errors.

    ``dropped`` names hyper-parameters of the published files that change no number there: accepted and left out (quirk Q46).
    """

    dropped: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _without_dead_names(cls, data: Any) -> Any:
        return {k: v for k, v in data.items() if k not in cls.dropped} if isinstance(data, Mapping) else data


class ContextSpec(Spec):
    """Which context templates to put before a prompt (§4.2 of editors.md).

    Attributes:
        lengths (tokens, texts): pairs (tokens per text, number of texts) to sample; ROME uses ``[[5, 10], [10,
            10]]``, MEMIT ``[[10, 5]]``.
        seed: of the sampling.
        templates: use these instead of sampling (``{}`` is always first).
    """

    lengths: tuple[tuple[int, int], ...] = ((5, 10), (10, 10))
    seed: int = 0
    templates: tuple[str, ...] | None = None


class MomentSpec(Spec):
    """How to estimate second moments of keys (§4.1 of editors.md).

    Attributes:
        text: where the tokens come from, and how many.
        width (tokens): longest row in tokens; longer texts are cut.
        skip (tokens): leading tokens of each row to leave out (1 for models whose position 0 is an attention sink; 0 = published).
        damping (mean diagonal of C): added to the diagonal, in units of its mean, before factoring (0 = published).
        ref_fp32: add the products up in fp32, as published (quirk Q10).
    """

    text: TextSpec = TextSpec()
    width: Count = 512
    skip: Annotated[int, Field(ge=0)] = 0
    damping: NonNegative = 0.0
    ref_fp32: bool = False


class ValueSpec(Spec):
    """How the value is optimised.

    Attributes:
        steps (passes): loop length; at most ``steps - 1`` updates are made (the last pass only measures).
        lr: of Adam.
        weight_decay: factor of ``‖δ‖ / ‖v₀‖²``.
        clamp (norm of v₀): ``‖δ‖ ≤ clamp · ‖v₀‖`` after each update.
        kl: factor of ``KL(P_δ ‖ P_0)`` at the subject in ``"{subject} is a"``.
        batch (records): records optimised at once: those of a batch (MEMIT, AlphaEdit), or of that many steps where
            edits do not see each other (SimIE in ``init`` mode with ``closed64``). The same numbers but for rounding.
        stop_on_argmax: also stop as soon as the target is the arg-max in every context (ENCORE's MPES; off = published).
        strip_dummy_piece: do not demand the stand-alone space piece that SentencePiece puts before a target encoded by itself
            (quirk Q6; off = published).
        ref_decoded_rows: the row behind a prompt is the decoded text of all target ids but the last, as published, which breaks
            characters of several tokens (quirk Q50). Off: rows are cut from the ids of prompt and target.
    """

    steps: Count = 20
    lr: Positive = 0.5
    weight_decay: NonNegative = 0.5
    clamp: Positive = 4.0
    kl: NonNegative = 0.0625
    batch: Count = 1
    stop_on_argmax: bool = False
    strip_dummy_piece: bool = False
    ref_decoded_rows: bool = False


@dataclass(frozen=True, slots=True)
class LowRank:
    """``left @ right``: a change of a weight in logical orientation.

    Shape: left ``[d_out, r]``, right ``[r, d_in]``, in fp32 or fp64 on the model's device.
    """

    left: Tensor
    right: Tensor

    def dense(self) -> Tensor:
        """Return the full ``[d_out, d_in]`` change in the factors' dtype."""
        return self.left @ self.right

    def norm(self) -> float:
        """Return the Frobenius norm without forming the product: ``√⟨LᵀL, RRᵀ⟩``."""
        left, right = self.left.double(), self.right.double()
        square = float(((left.T @ left) * (right @ right.T)).sum())
        return math.sqrt(max(square, 0.0))

    def times(self, keys: Tensor) -> Tensor:
        """Return ``Δ K`` for keys ``[d_in, k]`` without forming ``Δ``, in the keys' dtype."""
        return self.left.to(keys.dtype) @ (self.right.to(keys.dtype) @ keys)


@dataclass(frozen=True, slots=True)
class Dense:
    """A full change of a weight (``[d_out, d_in]``, logical orientation) or of a bias (``[d_out]``)."""

    value: Tensor

    def dense(self) -> Tensor:
        """Return the change itself."""
        return self.value

    def norm(self) -> float:
        """Return the Frobenius norm."""
        return float(self.value.norm())

    def times(self, keys: Tensor) -> Tensor:
        """Return ``Δ K`` for keys ``[d_in, k]`` in the keys' dtype."""
        return self.value.to(keys.dtype) @ keys


Delta = LowRank | Dense


def plus(first: Delta | None, second: Delta) -> Delta:
    """Return the sum of two changes of one weight, low-rank where both are."""
    if first is None:
        return second
    if isinstance(first, LowRank) and isinstance(second, LowRank):
        left = [f.left.double() for f in (first, second)]
        right = [f.right.double() for f in (first, second)]
        return LowRank(_torch.cat(left, dim=1), _torch.cat(right, dim=0))
    return Dense(first.dense().float() + second.dense().float())


@dataclass(frozen=True, slots=True)
class WeightDelta:
    """Additive changes by parameter name (``"model.layers.3.mlp.down_proj.weight"``)."""

    deltas: Mapping[str, Delta]


@dataclass(frozen=True, slots=True)
class ModulePatch:
    """Submodules that take the place of others while they are applied (memory editors)."""

    modules: Mapping[str, torch.nn.Module]


Patch = WeightDelta | ModulePatch


@dataclass(frozen=True, slots=True)
class EditStep(Generic[S]):
    """What one call of an editor proposes.

    Attributes:
        patch: the change to apply.
        state: everything the editor must remember; the next call gets it back.
        stats: residual norms, losses, counts; rows of table ``editor_stats``. Must be deterministic (no times).
    """

    patch: Patch
    state: S
    stats: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ArtifactRequest:
    """An expensive input, named by everything it depends on.

    Attributes:
        kind: ``moments``, ``projector``, ``contexts``, …; the folder name in the artifact store.
        inputs: canonical data that the artifact depends on besides the model (layer, text digest, counts, seed).
        builder: ``module:function`` called as ``function(lm, requests, texts)`` on the pristine model, returning
            ``[(tensors, metadata), …]``, one per request; requests with the same builder are served together.
        model: the model it is computed with (``lm.identity``: weights, precision, tokenizer, BOS policy); empty = one that nobody
            can tell from another; None = it is computed without a model.
        sources: other artifacts this one is computed from, by name; they are part of its identity. The builder of such a
            request gets, in place of *texts*, one mapping of artifacts per request.
        data: records this one is computed from; ``inputs`` must cover them. The builder of such a request gets, in place of
            *texts*, the records.
        where: how to find what ``inputs`` names (paths); not part of the artifact's identity.
        text: the text whose iterator the builder gets as *texts*; ``inputs`` must cover it.
        version: of the builder's numbers; part of the identity. Raise it when they change (``raysweep/artifacts.py``: VERSIONS).
        threads: CPU threads it is computed with, which move the last bits; filled in by who computes it.
    """

    kind: str
    inputs: Mapping[str, Any]
    builder: str
    model: str | None = field(kw_only=True)
    sources: Mapping[str, ArtifactRequest] = field(default_factory=dict)
    data: DataSpec | None = None
    where: Mapping[str, Any] = field(default_factory=dict)
    text: TextSpec | None = None
    version: int = 1
    threads: int = 0

    @property
    def known(self) -> bool:
        """Whether everything it is computed from has a digest; if not, it must not be kept."""
        named = self.model != "" and (self.text is None or bool(self.text.digest))
        return named and all(source.known for source in self.sources.values())

    def identity(self) -> dict[str, Any]:
        """Return everything that the artifact depends on, as plain data, without what is empty; its digest is the hash of it."""
        sources = {name: source.identity() for name, source in self.sources.items()}
        optional = {"model": self.model, "threads": self.threads, "sources": sources}
        named = {"kind": self.kind, "version": self.version, "inputs": self.inputs}
        return named | {key: value for key, value in optional.items() if value}


@dataclass(frozen=True, slots=True)
class View:
    """What an editor reports instead of the model as it stands.

    Attributes:
        patch: the change to add to the weights while they are measured.
        stats: rows of table ``editor_stats``; deterministic.
    """

    patch: WeightDelta
    stats: Mapping[str, float] = field(default_factory=dict)


@runtime_checkable
class Viewer(Protocol):
    """An editor that reports a reduced model (optional, beside :class:`Editor`).

    The study calls :meth:`view` before each measurement. ``persists = False``: the change is taken back afterwards, so
    measuring changes nothing. ``persists = True``: at the protocol's rounds the change stays and later edits start from
    it, so the result depends on the schedule of rounds (quirk Q23).
    """

    @property
    def persists(self) -> bool:
        """Tell whether rounds write the view into the model."""
        ...

    def view(self, lm: LanguageModel, totals: Mapping[str, Tensor], state: Any) -> View:
        """Return the view, given the total change of each edited weight since the pristine model (fp32, logical)."""
        ...


@runtime_checkable
class Sharer(Protocol):
    """An editor whose edits and state do not depend on all of its hyper-parameters (optional, beside Viewer)."""

    def shared(self) -> Mapping[str, Any] | None:
        """Return the part of the composed configuration that determines `begin` and `edit` (None: all of it; nothing can be
        shared).

        Trials equal in it, and in all else of their TrialSpec but the editor, may take their edits from one pass; each asks its own
        editor for its view of the shared state.
        """
        ...


@dataclass(frozen=True, slots=True)
class Along:
    """Records edited apart and at once, after ``step`` steps of their edits.

    Attributes:
        step: steps taken; from 1.
        last: the edits are complete.
        losses: of each record, in the step that was taken last.
        attached: inside its block the model answers as edited.
        select: names, before each forward pass, the record whose edit each row sees, int64 [B]; [1] = one for all rows.
    """

    step: int
    last: bool
    losses: Sequence[float]
    attached: Callable[[], AbstractContextManager[None]]
    select: Callable[[Tensor], None]


@runtime_checkable
class Stepwise(Protocol):
    """An editor that can edit many records apart at once, each from the model as it stands, and be asked along the way (optional).

    Promise: the model is bit-identical afterwards, and no record's edit depends on which others are edited with it but for
    rounding.
    """

    @property
    def at_once(self) -> int:
        """How many records to edit together."""
        ...

    def along(self, lm: LanguageModel, records: Sequence[EditRecord], *, seeds: Sequence[int]) -> Iterator[Along]:
        """Yield after the steps at which the edits are to be asked about, and after the last one."""
        ...


def composed(editor: Any) -> dict[str, Any]:
    """Return name and configuration of *editor* and, if it is a wrapper, of all editors inside it, as plain data."""
    found = {"name": editor.name, "config": editor.config.model_dump(mode="json")}
    return {**found, "inner": composed(editor.inner)} if hasattr(editor, "inner") else found


@runtime_checkable
class Proposer(Protocol[S]):
    """An editor whose edits may be computed apart from each other, anywhere and in any order (optional, beside Editor).

    Promises, where :meth:`apart` is true
        1. ``propose`` depends on the pristine model, the batch, the artifacts and *rng* alone; ``lm`` stays bit-identical.
        2. A proposal is a dict (nested) of tensors and plain JSON values, like a state.
        3. ``edit(lm, batch, state, …)`` is ``absorb(lm, state, propose(lm, batch, …))``, bit for bit; so it matters in which
           order proposals are absorbed, never where or when they were computed.
    """

    def apart(self) -> bool:
        """Tell whether this configuration keeps the promises.

        A wrapper asks the wrapped editor's ``memoryless`` (absent = False): its state is always None.
        """
        ...

    def propose(
        self,
        lm: LanguageModel,
        batch: Sequence[EditRecord],
        *,
        artifacts: Mapping[str, Artifact],
        rng: torch.Generator,
    ) -> Mapping[str, Any]:
        """Return what *batch* adds: the expensive part of an edit."""
        ...

    def absorb(self, lm: LanguageModel, state: S, proposal: Mapping[str, Any]) -> EditStep[S]:
        """Take in one proposal: the cheap part of an edit."""
        ...


@runtime_checkable
class GroupProposer(Protocol):
    """A Proposer that can compute several proposals together (optional).

    Promise: each is what :meth:`Proposer.propose` returns, but for rounding; so a study must always take the same batches
    together.
    """

    @property
    def group(self) -> int:
        """How many batches of one record to take together; 1 = none."""
        ...

    def propose_group(
        self,
        lm: LanguageModel,
        batches: Sequence[Sequence[EditRecord]],
        *,
        artifacts: Mapping[str, Artifact],
        rngs: Sequence[torch.Generator],
    ) -> list[dict[str, Any]]:
        """Return a proposal per batch; *rngs* has one generator for each."""
        ...


@runtime_checkable
class Grouper(Protocol):
    """An editor that can find the edits of several batches together, each on the model as it stands (optional, beside Editor).

    Promise: the model is bit-identical afterwards, and each edit is what :meth:`Editor.edit` proposes without memory, but for
    rounding.
    """

    @property
    def group(self) -> int:
        """How many batches of one record to take together; 1 = none."""
        ...

    def edit_apart(
        self,
        lm: LanguageModel,
        batches: Sequence[Sequence[EditRecord]],
        *,
        artifacts: Mapping[str, Artifact],
        rngs: Sequence[torch.Generator],
    ) -> list[EditStep[Any]]:
        """Return one step per batch; *rngs* has one generator for each."""
        ...


class Editor(Protocol[S]):
    """Proposes patches for batches of records.

    Promises
        1. ``edit`` leaves ``lm`` bit-identical: weights, buffers, hooks, requires_grad, train/eval mode.
        2. All memory is in ``S``; two editors in one process never influence each other.
        3. Randomness comes only from ``rng``; the global generators are neither read nor advanced.
        4. ``S`` is ``None`` or a dict of tensors and plain JSON values, so a snapshot is safetensors + JSON.
        5. Construction is cheap and touches no model.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    config_type: ClassVar[type[EditorConfig]]
    patch_kind: ClassVar[Literal["weights", "modules"]]
    paper: ClassVar[str]
    artifacts: ClassVar[
        tuple[str, ...]
    ] = ()  # kinds (raysweep/artifacts.py) it may ask for; their versions join the key

    def needs(self, lm: LanguageModel) -> Mapping[str, ArtifactRequest]:
        """Return the artifacts that must exist before :meth:`begin`, by name."""
        ...

    def begin(self, lm: LanguageModel, artifacts: Mapping[str, Artifact]) -> S:
        """Return the memory of an editor that has edited nothing; called once, on the unedited model."""
        ...

    def edit(
        self,
        lm: LanguageModel,
        batch: Sequence[EditRecord],
        state: S,
        *,
        artifacts: Mapping[str, Artifact],
        rng: torch.Generator,
    ) -> EditStep[S]:
        """Propose a patch that writes *batch*."""
        ...

    def edited(self, lm: LanguageModel) -> tuple[str, ...]:
        """Return the names of the parameters this editor may change."""
        ...
