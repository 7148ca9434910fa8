"""What ROME, MEMIT and AlphaEdit are: editors that write into the MLPs' value matrices of chosen blocks, located by the subject.

All three read the model at the subject's last token: the input of a block's value matrix there is the *key* ``k [d_in]``, and a
*target value* is found for it (docs/methods/rome.md). They differ in how a change of the matrix maps the one to the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar

from raysweep.artifacts import ArtifactRequest
from raysweep.config.schema import Blocks
from raysweep.editors.base import BaseEditor, EditorConfig, RecordCheck, StateT
from raysweep.lazy import lazy
from raysweep.records import subject_error

if TYPE_CHECKING:
    import torch

    from raysweep.artifacts import Artifact
    from raysweep.editors.linalg import cholesky
    from raysweep.editors.locate import contexts
    from raysweep.editors.specs import ContextSpec, ValueSpec
    from raysweep.models.lm import LanguageModel
else:
    cholesky = lazy("raysweep.editors.linalg.cholesky")
    contexts = lazy("raysweep.editors.locate.contexts")


class LocateConfig(EditorConfig):
    """Hyper-parameters that these editors share; ``value`` and ``contexts`` have another default in each, which sets them.

    Attributes:
        layers: blocks to edit, rising.
    """

    layers: Blocks

    if TYPE_CHECKING:
        value: ValueSpec
        contexts: ContextSpec


LocateConfigT = TypeVar("LocateConfigT", bound=LocateConfig)


class LocateEditor(BaseEditor[LocateConfigT, StateT]):
    """Base of the editors that write into value matrices at the subject's key."""

    @classmethod
    def record_check(cls, config: LocateConfigT) -> RecordCheck:
        """Refuse records without a subject in the prompt: the method reads the model at the subject's last token."""
        return subject_error

    def __init__(self, config: LocateConfigT) -> None:
        super().__init__(config)
        # memo by artifact digest: a pure function's values
        self._factors: dict[str, cholesky.Factor] = {}

    def edited_parameters(self, lm: LanguageModel) -> tuple[str, ...]:
        """Return the value matrices of the chosen layers."""
        return tuple(f"{lm.layout.mlp_out.format(layer)}.weight" for layer in self.config.layers)

    def context_requests(self, lm: LanguageModel) -> dict[str, ArtifactRequest]:
        """Return the request for sampled context templates, unless they are given."""
        spec = self.config.contexts
        return {} if spec.templates is not None else {"contexts": contexts.request(lm, spec)}

    def context_templates(self, artifacts: Mapping[str, Artifact]) -> tuple[str, ...]:
        """Return the context templates, the bare prompt's ``"{}"`` first."""
        return contexts.templates(self.config.contexts, artifacts.get("contexts"))

    def moment_factor(self, artifact: Artifact, device: torch.device, damping: float) -> cholesky.Factor:
        """Return the Cholesky factor (fp64) of second moments, computed once per editor.

        Args:
            artifact: of second moments ``C [d_in, d_in]``.
            device: where to factor.
            damping: added to the diagonal, in units of its mean.

        Raises:
            ArtifactError: ``C`` is not positive definite.
        """
        if artifact.digest not in self._factors:
            matrix = artifact.tensors["moments"].to(device)
            self._factors[artifact.digest] = cholesky.factor(matrix, damping=damping)
        return self._factors[artifact.digest]
