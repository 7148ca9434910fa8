"""What an editor is: it proposes a patch for a batch of records and leaves the model bit-identical.

**The life of an editor.** A trial builds its editor from the configuration, which touches no model. On the unedited model it
asks :meth:`BaseEditor.artifact_requests` for what must be computed or read first (second moments, context templates, a trained
network), has it made or found, and calls :meth:`BaseEditor.begin` once for the state of an editor that has edited nothing. Then,
batch after batch, :meth:`BaseEditor.edit` gets the model as it stands and the state, and returns an :class:`EditStep`: a patch, the
new state, and numbers for the table ``editor_stats``. The study applies the patch; the editor itself writes nothing. Between
batches the study may measure the model, write the state to disk, and go on in another process from what was written: so all memory
is in the state, and all randomness comes from the generator that is handed in.

**What else an editor can do** are methods with a default, which the study calls without asking what kind of editor it has:

* *Edits that do not depend on each other* (:attr:`~BaseEditor.is_stateless`, :meth:`~BaseEditor.can_propose`,
  :meth:`~BaseEditor.edit_many`): they may be computed together, elsewhere, in any order.
* *A report that is not the model as it stands* (:meth:`~BaseEditor.report_view`): PRUNE restrains the weights before they are
  measured, SimIE's closed form computes them only then.
* *Edits shared by several trials* (:meth:`~BaseEditor.edit_dependencies`): trials that differ only in what the report depends on.
* *Answers while an edit is under way* (:meth:`~BaseEditor.edit_with_checkpoints`), which the belief study asks for.

Shape legend of this package: ``d_in`` width of a key (input of the edited linear map), ``d_out`` width of a value,
``n`` records of a batch, ``k`` keys (columns). Deltas are in the *logical* orientation ``[d_out, d_in]``; only
``models/ledger.py`` knows how a parameter is stored.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeAlias, TypedDict, TypeVar, Unpack

from raysweep.config.editor_schema import EditorConfig as EditorConfig
from raysweep.jsontypes import Scalar
from raysweep.records import EditRecord

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from raysweep.artifacts import Artifact, ArtifactRequest
    from raysweep.errors import DataError, RecordError
    from raysweep.models.lm import LanguageModel
    from raysweep.models.patches import ModulePatch, Patch, WeightDelta
    from raysweep.models.sizes import ModelSize

KEYS_PER_EDIT = 20  # tokens of prompt and target, about: what ``state_bytes`` is told of a run's length
PatchKind = Literal["weights", "modules"]
RecordCheck = Callable[[EditRecord], "RecordError | None"]
"""What tells why a record cannot be written, as an error; None where it can."""
Proposal = Mapping[str, object]
"""What a batch adds to a state: a nested dict of tensors and plain JSON values, like a state."""


class EditInputs(TypedDict):
    """What an edit may use besides the model, the records and the state; passed by keyword.

    Attributes:
        artifacts: those of :meth:`BaseEditor.artifact_requests`, by name.
        rng: a generator on the CPU, seeded by the trial's seed and the step.
    """

    artifacts: Mapping[str, Artifact]
    rng: torch.Generator


class JointInputs(TypedDict):
    """What the edits of several batches may use; passed by keyword.

    Attributes:
        artifacts: those of :meth:`BaseEditor.artifact_requests`, by name.
        rngs: a generator for each batch.
    """

    artifacts: Mapping[str, Artifact]
    rngs: Sequence[torch.Generator]


ConfigT = TypeVar("ConfigT", bound=EditorConfig)
StateT = TypeVar("StateT")


@dataclass(frozen=True, slots=True)
class EditStep(Generic[StateT]):
    """What one call of an editor proposes.

    Attributes:
        patch: the change to apply.
        state: everything the editor must remember; the next call gets it back.
        stats: residual norms, losses, counts; rows of table ``editor_stats``. Must be deterministic (no times).
    """

    patch: Patch
    state: StateT
    stats: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ReportView:
    """What an editor reports instead of the model as it stands.

    Attributes:
        patch: the change to add to the weights while they are measured.
        stats: rows of table ``editor_stats``; deterministic.
    """

    patch: WeightDelta
    stats: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Records edited apart from each other and at once, after ``step`` steps of their edits.

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


class BaseEditor(ABC, Generic[ConfigT, StateT]):
    """Proposes patches for batches of records.

    A subclass sets :attr:`name`, :attr:`version` and :attr:`config_type` and writes :meth:`edited_parameters` and :meth:`edit`;
    everything else has a default. ``raysweep/testing/editor_contract.py`` examines the promises.

    Promises
        1. :meth:`edit` leaves ``lm`` bit-identical: weights, buffers, hooks, requires_grad, train/eval mode.
        2. All memory is in the state; two editors in one process never influence each other.
        3. Randomness comes only from the generator that is handed in; the global generators are neither read nor advanced.
        4. The state is ``None`` or a dict of tensors and plain JSON values, so a snapshot is safetensors + JSON.
        5. Construction is cheap and touches no model.

    Attributes:
        name: what a search space calls it.
        version: of its numbers, a part of every trial's key; raise it when they change.
        narrow_version: of its numbers in models that are narrower than fp32; raise it where only those change.
        config_type: the class of its configuration.
        patch_kind: what :meth:`edit` proposes, changes of ``weights`` or ``modules`` that take the place of others.
        shareable: of a wrapper, keys whose values can share edits (``path`` in a search space), each with the configuration that
            this takes.
        spans_devices: whether it edits a model whose blocks lie on several devices (``model.devices``): it must take nothing for
            granted but that what :func:`raysweep.models.hooks.capture` records is on the model's device.
        artifact_kinds: kinds of artifacts (``raysweep/artifacts.py``) that it may ask for; their versions join the key.
        needs: what it asks of a model's layout, in the words of :attr:`raysweep.models.layout.Layout.lacks`.
        paper: the source of the method.
        config: what it was built from.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    narrow_version: ClassVar[int] = 1
    config_type: ClassVar[type[EditorConfig]]
    patch_kind: ClassVar[PatchKind] = "weights"
    shareable: ClassVar[Mapping[str, Mapping[str, Scalar]]] = {}
    spans_devices: ClassVar[bool] = False
    artifact_kinds: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[tuple[str, ...]] = ("dense_mlp",)
    paper: ClassVar[str] = "–"

    def __init__(self, config: ConfigT) -> None:
        self.config = config

    # What a plan asks of the class, before anything is built.

    @classmethod
    def record_check(cls, config: ConfigT) -> RecordCheck | None:
        """Return what tells, of a record, why it cannot be written with *config*; None = every record can."""
        return None

    @staticmethod
    def train_split_error(records: Sequence[EditRecord]) -> DataError | None:
        """Return why *records* cannot be trained on, as an error; None where they can, or where nothing is trained."""
        return None

    @classmethod
    def state_bytes(
        cls, config: ConfigT, matrices: Sequence[tuple[int, int]], columns: int
    ) -> Mapping[str, int] | None:
        """Return what the state takes, in bytes by part, for ``raysweep plan``; None = not known.

        Args:
            config: of the component.
            matrices: shapes ``(d_out, d_in)`` of the edited matrices, or of the map that a module replaces.
            columns: keys that the run adds, about: ``KEYS_PER_EDIT`` for each edit.
        """
        return {} if matrices and cls.patch_kind == "weights" else None

    @classmethod
    def working_bytes(cls, config: ConfigT, shape: ModelSize, size: int) -> Mapping[str, int] | None:
        """Return what an edit takes while it is made, in bytes by part, for ``raysweep plan``; None = not known.

        Args:
            config: of the component.
            shape: of the model.
            size: bytes of one of its weights.
        """
        return None

    # The edit.

    @abstractmethod
    def edited_parameters(self, lm: LanguageModel) -> tuple[str, ...]:
        """Return the names of the parameters that this editor may change, ``"model.layers.5.mlp.down_proj.weight"`` say."""

    def artifact_requests(self, lm: LanguageModel) -> Mapping[str, ArtifactRequest]:
        """Return the artifacts that must exist before :meth:`begin`, by name."""
        return {}

    def begin(self, lm: LanguageModel, artifacts: Mapping[str, Artifact]) -> StateT:
        """Return the state of an editor that has edited nothing; called once, on the unedited model."""
        return None  # type: ignore[return-value]  # an editor with another state overrides this

    @abstractmethod
    def edit(
        self, lm: LanguageModel, batch: Sequence[EditRecord], state: StateT, **given: Unpack[EditInputs]
    ) -> EditStep[StateT]:
        """Propose a patch that writes *batch* into the model as it stands.

        Args:
            lm: the model, with all earlier patches applied.
            batch: records to write together, one or more.
            state: what :meth:`begin` or the last :meth:`edit` returned; must not be changed in place.
            given: artifacts and a generator (:class:`EditInputs`).
        """

    def module_patch(self, lm: LanguageModel, state: StateT) -> ModulePatch:
        """Return the patch that *state* stands for; a run that goes on from a snapshot applies it (``patch_kind = "modules"``)."""
        raise NotImplementedError(f"{self.name} patches modules and has no module_patch")

    # Edits that do not depend on each other.

    @property
    def is_stateless(self) -> bool:
        """Whether the state is always None, so that an edit depends on the model and its batch alone."""
        return False

    @property
    def group_size(self) -> int:
        """How many batches of one record :meth:`edit_many` or :meth:`propose_many` takes together; 1 = none."""
        return 1

    def edit_many(
        self, lm: LanguageModel, batches: Sequence[Sequence[EditRecord]], **given: Unpack[JointInputs]
    ) -> list[EditStep[StateT]]:
        """Return the edit of each of *batches*, each from the model as it stands; only of an editor without state.

        Promise: the model is bit-identical afterwards, and each edit is what :meth:`edit` proposes, but for rounding. The default
        makes them one by one.
        """
        state = self.begin(lm, given["artifacts"])
        return [self.edit(lm, batch, state, **one) for batch, one in zip(batches, split_inputs(given), strict=True)]

    def can_propose(self) -> bool:
        """Whether edits may be computed apart from each other, anywhere and in any order, by :meth:`propose`.

        Promises, where it is true
            1. :meth:`propose` depends on the pristine model, the batch, the artifacts and the generator alone.
            2. ``edit(lm, batch, state, …)`` is ``absorb(lm, state, propose(lm, batch, …))``, bit for bit; so it matters in which
               order proposals are absorbed, never where or when they were computed.
        """
        return False

    def propose(self, lm: LanguageModel, batch: Sequence[EditRecord], **given: Unpack[EditInputs]) -> Proposal:
        """Return what *batch* adds: the expensive part of an edit. ``lm`` stays bit-identical."""
        raise NotImplementedError(f"{self.name} cannot propose")

    def propose_many(
        self, lm: LanguageModel, batches: Sequence[Sequence[EditRecord]], **given: Unpack[JointInputs]
    ) -> list[Proposal]:
        """Return a proposal per batch.

        Promise: each is what :meth:`propose` returns, but for rounding; so a study always takes the same batches together."""
        return [self.propose(lm, batch, **one) for batch, one in zip(batches, split_inputs(given), strict=True)]

    def absorb(self, lm: LanguageModel, state: StateT, proposal: Proposal) -> EditStep[StateT]:
        """Take in one proposal: the cheap part of an edit."""
        raise NotImplementedError(f"{self.name} cannot absorb")

    # What is measured.

    @property
    def view_persists(self) -> bool:
        """Whether the protocol's rounds write the view into the model, so that the result depends on them (quirk Q23)."""
        return False

    def report_view(
        self, lm: LanguageModel, totals: Callable[[], Mapping[str, Tensor]], state: StateT
    ) -> ReportView | None:
        """Return what to measure instead of the model as it stands; None = the model as it stands.

        Args:
            lm: the model with all patches applied.
            totals: returns the change of each edited weight since the pristine model, fp32, ``[d_out, d_in]``.
            state: of the editor.
        """
        return None

    def edit_dependencies(self) -> Mapping[str, object] | None:
        """Return the part of the configuration that determines :meth:`begin` and :meth:`edit`; None = all of it.

        Trials equal in it, and in all else of their TrialSpec but the editor, may take their edits from one run over the records;
        each asks its own editor for its view of the shared state.
        """
        return None

    # Answers while an edit is under way.

    @property
    def checkpoint_batch(self) -> int:
        """How many records :meth:`edit_with_checkpoints` edits together; 0 = the editor cannot be asked along the way."""
        return 0

    def edit_with_checkpoints(
        self, lm: LanguageModel, records: Sequence[EditRecord], *, seeds: Sequence[int]
    ) -> Iterator[Checkpoint]:
        """Edit *records* apart from each other and at once, and yield where they are to be asked.

        It yields after steps of its choice, and after the last one. Promise: the model is bit-identical afterwards, and no record's
        edit depends on which others are edited with it but for rounding.
        """
        raise NotImplementedError(f"{self.name} cannot be asked along the way")

    # How it is made of others.

    def description(self) -> dict[str, object]:
        """Return name and configuration, and those of the editors inside, as plain data."""
        return {"name": self.name, "config": self.config.model_dump(mode="json")}

    def innermost(self) -> AnyEditor:
        """Return the editor inside all wrappers: this one, if it wraps none."""
        return self


AnyEditor: TypeAlias = BaseEditor[Any, Any]
"""An editor of whatever configuration and state: what a study or a wrapper holds."""


def split_inputs(given: JointInputs) -> list[EditInputs]:
    """Return what each batch may use, for edits that are made one by one after all."""
    return [{"artifacts": given["artifacts"], "rng": rng} for rng in given["rngs"]]
