"""The editor that does nothing: the floor of every table, and a fake for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from raysweep.editors.base import BaseEditor, EditorConfig, EditStep
from raysweep.models.patches import WeightDelta
from raysweep.records import EditRecord

if TYPE_CHECKING:
    import torch

    from raysweep.artifacts import Artifact
    from raysweep.models.lm import LanguageModel


class NullConfig(EditorConfig):
    """No hyper-parameters."""


class Null(BaseEditor[NullConfig, None]):
    """Proposes an empty patch."""

    name = "null"
    version = 1
    config_type = NullConfig

    def edited_parameters(self, lm: LanguageModel) -> tuple[str, ...]:
        """Return nothing."""
        return ()

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
