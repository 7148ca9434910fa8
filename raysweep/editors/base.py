"""What an editor is: it proposes a patch for a batch of records and leaves the model bit-identical.

Shape legend of this package: ``d_in`` width of a key (input of the edited linear map), ``d_out`` width of a value,
``n`` records of a batch, ``k`` keys (columns). Deltas are in the *logical* orientation ``[d_out, d_in]``; only
``models/patching.py`` knows how a parameter is stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Protocol, TypeVar

from raysweep.config.schema import Spec
from raysweep.records import EditRecord

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from raysweep.artifacts import Artifact
    from raysweep.models.lm import LanguageModel

S = TypeVar("S")


class EditorConfig(Spec):
    """Base of every editor's and wrapper's configuration: frozen, unknown keys are errors."""


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

    def times(self, keys: Tensor) -> Tensor:
        """Return ``Δ K`` for keys ``[d_in, k]`` in the keys' dtype."""
        return self.value.to(keys.dtype) @ keys


Delta = LowRank | Dense


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
        kind: ``moments`` or ``contexts``; the folder name in the artifact store.
        inputs: canonical data that the artifact depends on (model digest, layer, text digest, counts, seed, dtype).
            The artifact's digest is derived from it.
        builder: ``module:function`` called as ``function(lm, request, texts)`` on the pristine model, returning
            ``(tensors, metadata)``.
    """

    kind: str
    inputs: Mapping[str, Any]
    builder: str


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
