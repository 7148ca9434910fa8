"""A wrapper: it halves what the editor inside proposes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Unpack

from raysweep.editors.base import EditInputs, EditorConfig, EditStep
from raysweep.editors.wrappers.base import BaseWrapper
from raysweep.models.patches import Dense, WeightDelta

if TYPE_CHECKING:
    from raysweep import EditRecord
    from raysweep.models.lm import LanguageModel


class HalfConfig(EditorConfig):
    """It has no hyper-parameters."""


class Half(BaseWrapper[HalfConfig, object]):
    """An editor made of another: half of its change."""

    name = "half"
    version = 1
    config_type = HalfConfig

    def edit(
        self, lm: LanguageModel, batch: Sequence[EditRecord], state: object, **given: Unpack[EditInputs]
    ) -> EditStep[object]:
        """Let the inner editor propose, and halve it."""
        step = self.inner.edit(lm, batch, state, **given)
        assert isinstance(step.patch, WeightDelta)
        deltas = {name: Dense(0.5 * delta.dense()) for name, delta in step.patch.deltas.items()}
        return EditStep(WeightDelta(deltas), step.state, step.stats)
