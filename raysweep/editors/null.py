"""The editor that does nothing: the floor of every table, and a fake for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from raysweep.artifacts import ArtifactRequest
from raysweep.editors.base import EditorConfig, EditStep
from raysweep.models.patches import WeightDelta
from raysweep.records import EditRecord

if TYPE_CHECKING:
    import torch

    from raysweep.artifacts import Artifact
    from raysweep.models.lm import LanguageModel


class NullConfig(EditorConfig):
    """No hyper-parameters."""


class Null:
    """Proposes an empty patch."""

    name: ClassVar[str] = "null"
    version: ClassVar[int] = 1
    config_type: ClassVar[type[EditorConfig]] = NullConfig
    patch_kind: ClassVar[Literal["weights", "modules"]] = "weights"
    paper: ClassVar[str] = "–"

    def __init__(self, config: NullConfig) -> None:
        self.config = config

    def edited(self, lm: LanguageModel) -> tuple[str, ...]:
        """Return nothing."""
        return ()

    def needs(self, lm: LanguageModel) -> Mapping[str, ArtifactRequest]:
        """Ask for nothing."""
        return {}

    def begin(self, lm: LanguageModel, artifacts: Mapping[str, Artifact]) -> None:
        """Remember nothing."""

    def edit(
        self,
        lm: LanguageModel,
        batch: Sequence[EditRecord],
        state: None,
        *,
        artifacts: Mapping[str, Artifact],
        rng: torch.Generator,
    ) -> EditStep[None]:
        """Propose no change."""
        return EditStep(WeightDelta({}), state, {})
