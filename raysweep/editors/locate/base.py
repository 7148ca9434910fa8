"""What ROME, MEMIT and AlphaEdit are: editors that write into the MLPs' value matrices of chosen blocks, located by the subject.

A block's *value matrix* ``W`` is the last linear map of its MLP (``down_proj``, ``c_proj``; ``layout.mlp_out``). All three editors
read the model at the subject's last token: what enters ``W`` there is the *key* ``k [d_in]``, and a *target value* is found for it
(docs/methods/rome.md). They differ in how a change of ``W`` maps the one to the other.

Both are averages over *contexts*: the prompt alone (the *bare* prompt), and the prompt behind short sampled texts. A context
template is such a text with ``{}`` where the prompt goes; that of the bare prompt is ``"{}"`` and is always the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, TypeVar

from raysweep.artifacts import ArtifactRequest
from raysweep.config.schema import Blocks
from raysweep.editors.base import BaseEditor, EditorConfig, RecordCheck, StateT
from raysweep.lazy import lazy
from raysweep.models import activations
from raysweep.records import subject_error

if TYPE_CHECKING:
    import torch

    from raysweep.artifacts import Artifact
    from raysweep.editors.linalg import cholesky
    from raysweep.editors.locate import contexts
    from raysweep.editors.locate import second_moments as moments
    from raysweep.editors.specs import ContextSpec, MomentSpec, ValueSpec
    from raysweep.models import step_graphs
    from raysweep.models.lm import LanguageModel
    from raysweep.models.sizes import ModelSize
else:
    cholesky = lazy("raysweep.editors.linalg.cholesky")
    contexts = lazy("raysweep.editors.locate.contexts")
    moments = lazy("raysweep.editors.locate.second_moments")
    step_graphs = lazy("raysweep.models.step_graphs")


class LocateConfig(EditorConfig):
    """Hyper-parameters that these editors share; the others have another default in each, which sets them.

    Attributes:
        layers: blocks to edit, rising.
    """

    layers: Blocks

    if TYPE_CHECKING:
        value: ValueSpec
        moments: MomentSpec
        contexts: ContextSpec


LocateConfigT = TypeVar("LocateConfigT", bound=LocateConfig)


class LocateEditor(BaseEditor[LocateConfigT, StateT]):
    """Base of the editors that write into value matrices at the subject's key."""

    # 2: the gradient of the KL without Σ ∂p, which is rounding where the head is not a bare fp32 matrix on the CPU
    narrow_version = 2
    spans_devices = True
    artifact_kinds: ClassVar[tuple[str, ...]] = ("contexts", "moments")

    @classmethod
    def record_check(cls, config: LocateConfigT) -> RecordCheck:
        """Refuse records without a subject in the prompt: the method reads the model at the subject's last token."""
        return subject_error

    @classmethod
    def working_bytes(cls, config: LocateConfigT, shape: ModelSize, size: int) -> Mapping[str, int]:
        """Return what the optimisation of target values keeps; the value is found at the last of the chosen blocks."""
        return cls.value_bytes(config, shape, size, layer=max(config.layers))

    @staticmethod
    def value_bytes(config: LocateConfigT, shape: ModelSize, size: int, *, layer: int) -> Mapping[str, int]:
        """Return what the optimisation of values at *layer* keeps: the blocks above, for the prompt in every context."""
        contexts_used, together = config.contexts.count, config.value.batch
        tokens, predictions = contexts_used * activations.ROW, contexts_used * activations.TARGET
        blocks = max(shape.layers - 1 - layer, 0)
        kept = activations.kept_for_gradients(shape, size, blocks=blocks, packs=together, tokens=tokens)
        return {"activations": kept + activations.of_the_head(shape, size, predictions=together * predictions)}

    def __init__(self, config: LocateConfigT) -> None:
        super().__init__(config)
        # By the artifact's digest. No memory of edits: a factor follows from its artifact alone.
        self._factors: dict[str, cholesky.Factor] = {}
        self._graphs: step_graphs.StepGraphs | None = None

    def edited_parameters(self, lm: LanguageModel) -> tuple[str, ...]:
        """Return the value matrices of the chosen layers."""
        return tuple(f"{lm.layout.mlp_out.format(layer)}.weight" for layer in self.config.layers)

    def artifact_requests(self, lm: LanguageModel) -> Mapping[str, ArtifactRequest]:
        """Ask for second moments of each layer's keys and, unless given, context templates."""
        requests = {
            f"moments/{layer}": moments.request(lm, lm.layout.mlp_out, layer, self.config.moments)
            for layer in self.config.layers
        }
        return {**requests, **self.context_requests(lm)}

    def context_requests(self, lm: LanguageModel) -> dict[str, ArtifactRequest]:
        """Return the request for sampled context templates, unless they are given."""
        spec = self.config.contexts
        return {} if spec.templates is not None else {"contexts": contexts.request(lm, spec)}

    def context_templates(self, artifacts: Mapping[str, Artifact]) -> tuple[str, ...]:
        """Return the context templates, the bare prompt's ``"{}"`` first."""
        return contexts.templates(self.config.contexts, artifacts.get("contexts"))

    def graphs(self) -> step_graphs.StepGraphs | None:
        """Return the steps recorded by this editor so far, where ``value.captured``; None where steps are not recorded."""
        if self._graphs is None and self.config.value.captured:
            self._graphs = step_graphs.StepGraphs()
        return self._graphs

    def moment_factor(self, artifacts: Mapping[str, Artifact], layer: int, device: torch.device) -> cholesky.Factor:
        """Return the Cholesky factor (fp64) of the second moments ``C [d_in, d_in]`` of a layer's keys, computed once per editor.

        Args:
            artifacts: of the trial.
            layer: one of the edited blocks.
            device: where to factor.

        Raises:
            ArtifactError: ``C`` is not positive definite.
        """
        artifact = artifacts[f"moments/{layer}"]
        # O(d_in³), and the same for every edit of a run
        if artifact.digest not in self._factors:
            matrix = artifact.tensors["moments"].to(device)
            # damped here, not in the artifact, so that trials of other dampings share the sums (decision 009)
            self._factors[artifact.digest] = cholesky.factor(matrix, damping=self.config.moments.damping)
        return self._factors[artifact.digest]
